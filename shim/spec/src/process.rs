//! The process: what it runs, as whom, and its own limits.

use slipway_protocol::{CA_CERTIFICATES, Program};

use crate::plan::refuse;
use crate::{Error, oci};

/// Environment variables and arguments together, in bytes: what execve(2) would take on Linux.
const MAX_ARGS_BYTES: usize = 2 << 20;

/// The file mode creation mask where the spec gives none, as other runtimes have it.
const UMASK: u32 = 0o022;

/// What a process's own fields say.
pub fn program(
    process: oci::Process,
    rlimits: Vec<(i32, u64, u64)>,
    ca_certificates: bool,
) -> Program {
    Program {
        args: process.args,
        env: environment(process.env, ca_certificates),
        cwd: match process.cwd.is_empty() {
            true => "/".into(),
            false => process.cwd,
        },
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids,
        umask: Some(process.user.umask.unwrap_or(UMASK)),
        rlimits,
        apparmor_profile: process.apparmor_profile,
        selinux_label: process.selinux_label,
        ..Program::default()
    }
}

/// What TLS libraries ask for the file of CA certificates.
const CA_VARIABLE: &str = "SSL_CERT_FILE";

/// A program's environment; the variable names the CA certificates, unless it names others.
fn environment(mut env: Vec<String>, ca_certificates: bool) -> Vec<String> {
    let named = |v: &String| {
        v.split_once('=')
            .is_some_and(|(name, _)| name == CA_VARIABLE)
    };
    if ca_certificates && !env.iter().any(named) {
        env.push(format!("{CA_VARIABLE}={CA_CERTIFICATES}"));
    }
    env
}

/// Refuses what could not be handed to a guest.
pub fn check(process: &oci::Process) -> Result<(), Error> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(refuse(
            "process.args",
            "empty: the image has no entrypoint and the pod gives no command; name the module, for example command: [\"/app.wasm\"]",
        ));
    }
    if !process.cwd.is_empty() && !process.cwd.starts_with('/') {
        return Err(refuse(
            "process.cwd",
            format!("{:?} is not an absolute path", process.cwd),
        ));
    }
    let strings = process.args.iter().chain(&process.env);
    let bytes: usize = strings.clone().map(|s| s.len() + 1).sum();
    if bytes > MAX_ARGS_BYTES {
        return Err(refuse(
            "process.args and process.env",
            format!(
                "{bytes} bytes together, the limit is {MAX_ARGS_BYTES}; move large values into a ConfigMap volume"
            ),
        ));
    }
    if let Some(bad) = strings.clone().find(|s| s.contains('\0')) {
        return Err(refuse(
            "process.args and process.env",
            format!(
                "{:?} contains a NUL byte",
                bad.chars().take(40).collect::<String>()
            ),
        ));
    }
    for (field, value) in [
        ("process.apparmorProfile", &process.apparmor_profile),
        ("process.selinuxLabel", &process.selinux_label),
    ] {
        // The kernel would read no further, and find another name.
        if value.contains('\0') {
            return Err(refuse(field, format!("{value:?} contains a NUL byte")));
        }
    }
    Ok(())
}

/// Names of getrlimit(2) and their numbers on Linux (asm-generic/resource.h).
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// A limit as (number, soft, hard).
pub fn rlimit(i: usize, limit: &oci::Rlimit) -> Result<(i32, u64, u64), Error> {
    let field = format!("process.rlimits[{i}].type");
    let n = RLIMITS
        .iter()
        .position(|name| *name == limit.kind)
        .ok_or_else(|| {
            refuse(
                &field,
                format!("{:?} is not a resource of getrlimit(2)", limit.kind),
            )
        })?;
    if RLIMITS[n] == "RLIMIT_AS" {
        return Err(refuse(
            &field,
            "RLIMIT_AS cannot be honoured: the engine reserves 12 GiB of address space per memory. Use the memory limit",
        ));
    }
    Ok((n as i32, limit.soft, limit.hard))
}
