//! `slipway-layers`: writes the module of a Wasm artefact in containerd to a file or an inherited descriptor. The shim
//! starts it for a container whose entrypoint is no file in its root file system; nothing of it stays in memory.
//!
//! Its exit status is 0; 3 for an image that is no Wasm artefact; 2 for arguments that make no sense; 1 for anything
//! else. A line on stderr says why.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use slipway_layers::{Containerd, LayersError, Module, copy_module, find_module};

const USAGE: &str = "usage: slipway-layers -address SOCKET -namespace NAMESPACE (-image NAME | -container ID) [-entrypoint NAME] [-out DESCRIPTOR|FILE]";
/// For everything: containerd answers within milliseconds, and a pod's creation waits.
const DEADLINE: Duration = Duration::from_secs(30);

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const NOT_WASM: u8 = 3;

/// The command line.
struct Options {
    address: String,
    namespace: String,
    image: Image,
    /// Which of several modules.
    entrypoint: Option<String>,
    /// Where the module goes; without it, it is only described.
    out: Option<String>,
}

enum Image {
    Name(String),
    OfContainer(String),
}

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(problem) => return fail(WRONG_USAGE, format_args!("{problem}; {USAGE}")),
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e @ LayersError::NotWasm { .. }) => fail(NOT_WASM, e),
        Err(e) => fail(FAILED, e),
    }
}

fn run(options: &Options) -> Result<(), LayersError> {
    let address = &options.address;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let module = runtime
        .map_err(|e| LayersError::Connect {
            address: address.clone(),
            reason: e.to_string(),
        })?
        .block_on(async { tokio::time::timeout(DEADLINE, fetch(options)).await })
        .map_err(|_| LayersError::Late {
            address: address.clone(),
            seconds: DEADLINE.as_secs(),
        })??;
    writeln!(io::stdout(), "{}", serde_json::json!(module)).map_err(LayersError::Write)
}

async fn fetch(options: &Options) -> Result<Module, LayersError> {
    let mut containerd = Containerd::connect(&options.address, &options.namespace).await?;
    let image = match &options.image {
        Image::Name(name) => containerd.image(name).await?,
        Image::OfContainer(id) => {
            let name = containerd.container_image(id).await?;
            containerd.image(&name).await?
        }
    };
    let module = find_module(&mut containerd, image, options.entrypoint.as_deref()).await?;
    if let Some(out) = &options.out {
        let mut file = create(out)?;
        let copied = copy_module(&mut containerd, &module, &mut file).await;
        if copied.is_err() {
            // Nobody shall run what arrived so far. A pipe cannot take it back; its reader has our exit status.
            let _ = file.set_len(0);
        }
        copied?;
    }
    Ok(module)
}

/// Opens the module's destination: a number is a descriptor that this process was started with.
fn create(out: &str) -> Result<File, LayersError> {
    match out.parse::<u32>() {
        Ok(descriptor) => File::create(format!("/proc/self/fd/{descriptor}")),
        Err(_) => File::create(out),
    }
    .map_err(LayersError::Write)
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut args = args
        .map(|arg| {
            arg.into_string()
                .map_err(|arg| format!("argument {arg:?} is not UTF-8"))
        })
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    let [
        mut address,
        mut namespace,
        mut image,
        mut container,
        mut entrypoint,
        mut out,
    ] = [const { None }; 6];
    while let Some(flag) = args.next() {
        let value = match flag.as_str() {
            "-address" => &mut address,
            "-namespace" => &mut namespace,
            "-image" => &mut image,
            "-container" => &mut container,
            "-entrypoint" => &mut entrypoint,
            "-out" => &mut out,
            _ => return Err(format!("unknown argument {flag:?}")),
        };
        *value = Some(args.next().ok_or_else(|| format!("{flag} needs a value"))?);
    }
    Ok(Options {
        address: address.ok_or("-address is missing")?,
        namespace: namespace.ok_or("-namespace is missing")?,
        image: match (image, container) {
            (Some(name), None) => Image::Name(name),
            (None, Some(id)) => Image::OfContainer(id),
            _ => return Err("exactly one of -image and -container is needed".to_owned()),
        },
        entrypoint,
        out,
    })
}

/// Says why, in one line whatever others put into it.
fn fail(status: u8, problem: impl Display) -> ExitCode {
    // With stderr gone, the status is all that can be said.
    let _ = writeln!(
        io::stderr(),
        "{}",
        problem.to_string().replace(char::is_control, " ")
    );
    ExitCode::from(status)
}
