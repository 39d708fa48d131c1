//! How containerd starts a shim: the bootstrap answer, the daemon.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::RuntimeInfo;

use crate::flags::Flags;
use crate::settings::Settings;
use crate::{RUNTIME, delegate, features, handler, log, oom_score, serve, socket};

/// What containerd may write to `start`: bootstrap parameters or runtime options. containerd's own bound.
const MAX_INPUT: u64 = 10 << 20;
/// In the bundle: the socket's address.
const ADDRESS_FILE: &str = "address";
/// The newest version of the task API that this shim speaks. With it, containerd 2 asks a pod's shim for its further
/// containers; with an older one it would run `start` and `delete` for each, which takes as long as Create itself.
const TASK_API: i32 = 3;
/// What containerd 1.7 knows; it refuses a newer one, and both say MAX_SHIM_VERSION=2.
const OLD_TASK_API: i32 = 2;

/// How to answer `start`.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// containerd 2.3 and later: a protobuf message.
    Protobuf,
    /// Before: JSON with a version that the daemon knows.
    Json(i32),
}

/// What containerd tells a shim that it starts.
#[derive(Debug, PartialEq)]
struct Bootstrap {
    /// containerd's ttrpc address.
    ttrpc: String,
    /// containerd's gRPC address.
    grpc: String,
    /// The options of the handler.
    options: Option<Any>,
    /// How it wants to be answered.
    answer: Answer,
}

/// From bootstrap parameters, or where there are none from flags and environment, with the options as all of the input.
fn bootstrap(flags: &Flags, input: &[u8], by_containerd_2: bool) -> Result<Bootstrap, String> {
    // Runtime options (a protobuf Any) decode as bootstrap parameters too; the id tells them apart.
    let params = BootstrapParams::parse_from_bytes(input)
        .ok()
        .filter(|p| !input.is_empty() && p.instance_id == flags.id);
    let mut found = match params {
        Some(p) => Bootstrap {
            ttrpc: p.containerd_ttrpc_address,
            grpc: p.containerd_grpc_address,
            options: p
                .extensions
                .into_iter()
                .filter_map(|e| e.value.into_option())
                .find(handler::is_options),
            answer: Answer::Protobuf,
        },
        None => Bootstrap {
            ttrpc: std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
            grpc: String::new(),
            options: Any::parse_from_bytes(input).ok(),
            answer: Answer::Json(match by_containerd_2 {
                true => TASK_API,
                false => OLD_TASK_API,
            }),
        },
    };
    if found.ttrpc.is_empty() {
        return Err(
            "containerd's ttrpc address is missing (TTRPC_ADDRESS): events could not be published"
                .into(),
        );
    }
    if found.grpc.is_empty() {
        found.grpc = flags.address.clone();
    }
    Ok(found)
}

fn write_answer(answer: &Answer, address: &str) -> Result<(), String> {
    let bytes = match answer {
        Answer::Protobuf => {
            let result = BootstrapResult {
                version: TASK_API,
                address: address.into(),
                protocol: "ttrpc".into(),
                ..BootstrapResult::default()
            };
            result.write_to_bytes().map_err(|e| e.to_string())?
        }
        Answer::Json(version) => {
            format!(r#"{{"version":{version},"address":"{address}","protocol":"ttrpc"}}"#)
                .into_bytes()
        }
    };
    let mut out = std::io::stdout().lock();
    out.write_all(&bytes)
        .and_then(|()| out.flush())
        .map_err(|e| format!("answer to start: {e}"))
}

/// `start`: binds the pod's socket, forks the daemon that serves it, and answers. No second exec: 0.3 ms, not 1.6.
pub fn start(flags: &Flags) -> Result<(), String> {
    let input = read_stdin()?;
    let preview = slipway_spec::preview(&flags.bundle);
    let Bootstrap {
        ttrpc,
        grpc,
        options,
        answer,
    } = bootstrap(flags, &input, preview.by_containerd_2)?;
    let cache_bytes = options.as_ref().map_or(Ok(None), handler::cache_bytes)?;
    let group = preview.pod.unwrap_or_else(|| flags.id.clone());
    let path = socket::path(flags, &group);
    let address = format!("unix://{}", path.display());
    note(&flags.bundle, &address)?;
    let Some(listener) = socket::listen(&path)? else {
        return write_answer(&answer, &address);
    };
    if !slipway_sys::fork().map_err(|e| format!("fork: {e}"))? {
        return write_answer(&answer, &address);
    }
    daemonize();
    let logger = log::Log::open(&flags.bundle, flags.debug);
    let settings = Settings {
        namespace: flags.namespace.clone(),
        group,
        ttrpc,
        grpc,
        cache_bytes,
        bundle: std::env::current_dir().unwrap_or_else(|_| flags.bundle.clone()),
        log: logger.clone(),
    };
    let served = serve::serve(settings, listener);
    if let Err(e) = &served {
        logger.error(&format!("shim ends: {e}"));
    }
    let _ = std::fs::remove_file(path);
    socket::sweep();
    served
}

/// containerd 1.7 looks here for its shims after a restart; 2.x keeps a record of its own.
fn note(bundle: &Path, address: &str) -> Result<(), String> {
    let file = bundle.join(ADDRESS_FILE);
    std::fs::write(&file, address).map_err(|e| {
        let whole = std::path::absolute(&file);
        format!("{}: {e}", whole.as_ref().unwrap_or(&file).display())
    })
}

fn read_stdin() -> Result<Vec<u8>, String> {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        stdin
            .lock()
            .take(MAX_INPUT)
            .read_to_end(&mut input)
            .map_err(|e| format!("read stdin: {e}"))?;
    }
    Ok(input)
}

/// Leaves containerd's session and pipes: containerd reads `start`'s output to its end.
fn daemonize() {
    let _ = rustix::process::setsid();
    if let Ok(null) = slipway_sys::open_null() {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    oom_score::raise_own();
}

/// `-info`: what the runtime can do. The kubelet decides by it whether a pod may have a user namespace or recursive
/// read-only mounts.
pub fn info() -> Result<(), String> {
    let input = read_stdin()?;
    let mut info = delegate::info(&input).unwrap_or_default();
    info.name = RUNTIME.into();
    info.features = Some(features::handlers(info.features.as_ref())).into();
    info.version = Some(
        containerd_shim_protos::types::introspection::RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        },
    )
    .into();
    let bytes = RuntimeInfo::write_to_bytes(&info).map_err(|e| e.to_string())?;
    std::io::stdout()
        .write_all(&bytes)
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::MessageField;

    use super::*;

    #[test]
    fn a_full_disk_is_told_with_the_path() {
        let bundle = tempfile::tempdir().unwrap();
        let file = bundle.path().join(ADDRESS_FILE);
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        let error = note(bundle.path(), "unix:///s").unwrap_err();
        assert!(
            error.starts_with(&format!("{}: No space left", file.display())),
            "{error}"
        );
    }

    #[test]
    fn bootstrap_parameters_are_told_from_runtime_options() {
        let flags = Flags {
            id: "i".into(),
            namespace: "n".into(),
            ..Flags::default()
        };
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"o".to_vec(),
            ..Any::default()
        };
        let extension = |value: Any| Extension {
            value: MessageField::some(value),
            ..Extension::default()
        };
        let params = BootstrapParams {
            instance_id: "i".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "/t".into(),
            containerd_grpc_address: "/g".into(),
            extensions: vec![extension(Any::default()), extension(options.clone())],
            ..BootstrapParams::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        let found = bootstrap(&flags, &bytes, false).unwrap();
        assert_eq!((found.ttrpc.as_str(), found.grpc.as_str()), ("/t", "/g"));
        assert_eq!(found.answer, Answer::Protobuf);
        assert_eq!(found.options, Some(options));
    }
}
