//! `slipway-layers`: writes the module of a Wasm artefact in containerd to a file or an inherited descriptor. The shim
//! starts it for a container whose entrypoint is no file in its root file system; nothing of it stays in memory.
//!
//! It is root's for as long as it takes to connect. Before it reads a byte of what others have pushed it has no user, no capability and no
//! file but the one that it writes, and makes no system call but those that asking and writing take.
//!
//! Its exit status is 0; 3 for an image that is no Wasm artefact; 4 where it cannot tell whether the image is one; 2 for arguments that
//! make no sense; 1 for anything else. A line on stderr says why.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use slipway_layers::{
    Containerd, Image, LayersError, Module, copy_module, find_image, find_module,
};
use slipway_sys::TrappedCall;

const USAGE: &str = "usage: slipway-layers -address SOCKET -namespace NAMESPACE -container ID [-entrypoint NAME] [-out DESCRIPTOR|FILE]";
/// For everything: containerd answers within milliseconds, and a pod's creation waits.
const DEADLINE: Duration = Duration::from_secs(30);

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
const NOT_WASM: u8 = 3;
const UNKNOWN: u8 = 4;

/// Nobody, by Debian's and most other numbers.
const NOBODY: u32 = 65534;
/// The kernel's highest: killed before any pod when the node runs out of memory (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ: &str = "1000";

/// The command line.
struct Options {
    address: String,
    namespace: String,
    container: String,
    /// Which of several modules.
    entrypoint: Option<String>,
    /// Where the module goes; without it, it is only described.
    out: Option<String>,
}

/// The exit status and what is said.
type Failure = (u8, String);

fn main() -> ExitCode {
    let options = match parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(problem) => return fail(WRONG_USAGE, format_args!("{problem}; {USAGE}")),
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, problem)) => fail(status, problem),
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let address = &options.address;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let unknown = |e: LayersError| (UNKNOWN, e.to_string());
    let module = runtime
        .map_err(|e| LayersError::Connect {
            address: address.clone(),
            reason: e.to_string(),
        })
        .map_err(unknown)?
        .block_on(async { tokio::time::timeout(DEADLINE, fetch(options)).await })
        .map_err(|_| LayersError::Late {
            address: address.clone(),
            seconds: DEADLINE.as_secs(),
        })
        .map_err(unknown)??;
    writeln!(io::stdout(), "{}", serde_json::json!(module))
        .map_err(|e| (FAILED, LayersError::Write(e).to_string()))
}

async fn fetch(options: &Options) -> Result<Module, Failure> {
    let unknown = |e: LayersError| (UNKNOWN, e.to_string());
    let out = options.out.as_deref().map(create).transpose();
    let out = out.map_err(|e| (FAILED, e.to_string()))?;
    let mut containerd = Containerd::connect(&options.address, &options.namespace)
        .await
        .map_err(unknown)?;
    enclose().map_err(|e| (UNKNOWN, format!("the helper's sandbox: {e}")))?;
    let noted = match containerd.container_image(&options.container).await {
        Err(e @ LayersError::NoImage(_)) => return Err((NOT_WASM, e.to_string())),
        noted => noted.map_err(unknown)?,
    };
    let in_image = |status| {
        let name = noted.name();
        move |e: LayersError| (status, format!("image {name}: {e}"))
    };
    let image = find_image(&mut containerd, &noted)
        .await
        .map_err(in_image(UNKNOWN))?;
    match copy(&mut containerd, &image, options.entrypoint.as_deref(), out).await {
        Err(e @ LayersError::NotWasm { .. }) => Err(in_image(NOT_WASM)(e)),
        copied => copied.map_err(in_image(FAILED)),
    }
}

async fn copy(
    containerd: &mut Containerd,
    image: &Image,
    entrypoint: Option<&str>,
    out: Option<File>,
) -> Result<Module, LayersError> {
    let module = find_module(containerd, image, entrypoint).await?;
    if let Some(mut file) = out {
        let copied = copy_module(containerd, &module, &mut file).await;
        if copied.is_err() {
            // Nobody shall run what arrived so far. A pipe cannot take it back; its reader has our exit status.
            let _ = file.set_len(0);
        }
        copied?;
    }
    Ok(module)
}

/// Gives up what this process has of root's for good. What is open stays: the connection to containerd, and where the module goes.
fn enclose() -> Result<(), String> {
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)
        .map_err(|e| format!("oom_score_adj: {e}"))?;
    slipway_confine::leave_session_keyring()?;
    slipway_sys::set_rlimit(libc::RLIMIT_CORE as i32, 0, 0)
        .map_err(|e| format!("no core file: {e}"))?;
    slipway_sys::become_user(NOBODY, NOBODY, &[])?;
    slipway_sys::set_no_new_privs()?;
    // The change of user has cleared it: it must not outlive the shim that waits for it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| format!("end with the parent: {e}"))?;
    slipway_confine::no_files()?;
    let list = slipway_seccomp::allow_list(&slipway_seccomp::layers());
    slipway_confine::calls(list, None, end_at_trapped_call).map_err(|e| format!("seccomp: {e}"))
}

/// Says which system call it was that this program never makes.
fn end_at_trapped_call(call: TrappedCall) -> ! {
    let name = slipway_seccomp::name(call.number);
    let _ = writeln!(
        io::stderr(),
        "slipway-layers made a system call that it never makes, {name} (number {}), and was ended",
        call.number
    );
    slipway_sys::exit_now(FAILED.into())
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
        mut container,
        mut entrypoint,
        mut out,
    ] = [const { None }; 5];
    while let Some(flag) = args.next() {
        let value = match flag.as_str() {
            "-address" => &mut address,
            "-namespace" => &mut namespace,
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
        container: container.ok_or("-container is missing")?,
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
