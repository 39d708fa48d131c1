//! `slipway doctor`: is this node fit to run Wasm pods, and if not, what is to be done?

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use slipway_cache::{Options, Store};
use slipway_install::{Layout, Status};
use slipway_launch::{Install, LOADER};

use crate::args::Doctor;
use crate::report;
use crate::terminal::Level;

/// The first Linux with mount_setattr(2), which recursive read-only volumes need.
const KERNEL: (u32, u32) = (5, 12);

/// The node's containerd, as it was told, as the installation knows it, or as it is by default.
pub struct Containerd {
    pub address: PathBuf,
    pub config: PathBuf,
    pub unit: String,
}

impl Containerd {
    fn of(args: &Doctor, status: Option<&Status>) -> Self {
        let known = |of: fn(&Status) -> Option<PathBuf>| status.and_then(of);
        let address = args.address.clone().or(known(|s| Some(s.address.clone())));
        let config = args.config.clone().or(known(|s| s.config.clone()));
        Self {
            address: address.unwrap_or_else(|| "/run/containerd/containerd.sock".into()),
            config: config.unwrap_or_else(|| "/etc/containerd/config.toml".into()),
            unit: status
                .and_then(|s| s.unit.clone())
                .unwrap_or_else(|| "containerd.service".into()),
        }
    }
}

#[derive(serde::Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    finding: String,
    remedy: String,
}

fn good(check: &'static str, finding: impl Into<String>) -> Finding {
    Finding {
        check,
        level: Level::Ok,
        finding: finding.into(),
        remedy: String::new(),
    }
}

fn bad(
    check: &'static str,
    level: Level,
    finding: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        check,
        level,
        finding: finding.into(),
        remedy: remedy.into(),
    }
}

pub fn doctor(args: &Doctor) -> Result<ExitCode, String> {
    if args.host {
        let host = slipway_install::Host {
            dir: args.host_options.host_dir.clone(),
            install_dir: args.install_dir.clone(),
            systemd_dir: args.host_options.systemd_dir.clone(),
        };
        print!("{}", host.report(&args.node)?);
        return Ok(ExitCode::SUCCESS);
    }
    let install = Install::locate();
    let status = slipway_install::status(&Layout::new(&args.install_dir));
    let containerd = Containerd::of(args, status.as_ref().ok().and_then(Option::as_ref));
    let findings = [
        user(),
        kernel(),
        cgroups(),
        files(&install),
        engine(&install),
        cache(args),
        daemon(&containerd.address),
        config(&containerd.config),
        installation(&args.install_dir, status),
        program(
            "sidecars",
            "containerd-shim-runc-v2",
            "Linux containers in Wasm pods need containerd's runc shim; install containerd's package",
        ),
    ];
    let text: String = findings.iter().map(Finding::text).collect();
    if let Some(file) = &args.report {
        report::write(file, &text, args, &containerd)?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.json {
        true => println!(
            "{}",
            serde_json::to_string_pretty(&findings).map_err(|e| e.to_string())?
        ),
        false => print!("{text}"),
    }
    let failed = findings.iter().any(|f| f.level == Level::Error);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Finding {
    fn text(&self) -> String {
        let mut text = format!(
            "{:10} {}: {}\n",
            self.check,
            self.level.word(),
            self.finding
        );
        if !self.remedy.is_empty() {
            text += &format!("{:10} → {}\n", "", self.remedy);
        }
        text
    }
}

fn user() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => good("user", "root"),
        false => bad(
            "user",
            Level::Error,
            "not root",
            "run `sudo slipway doctor`; without root some checks below cannot tell",
        ),
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version >= KERNEL {
        true => good("kernel", release),
        false => bad(
            "kernel",
            Level::Error,
            release,
            format!("Linux {}.{} or newer is needed", KERNEL.0, KERNEL.1),
        ),
    }
}

fn cgroups() -> Finding {
    let has = |path: &str| Path::new(path).exists();
    if has("/sys/fs/cgroup/cgroup.controllers") {
        return good("cgroup", "version 2");
    }
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|c| !has(&format!("/sys/fs/cgroup/{c}/cgroup.procs")))
        .collect();
    match missing.is_empty() {
        true => good("cgroup", "version 1"),
        false => bad(
            "cgroup",
            Level::Error,
            format!("controllers missing: {}", missing.join(", ")),
            "mount them below /sys/fs/cgroup, or boot with cgroup version 2",
        ),
    }
}

fn files(install: &Install) -> Finding {
    let wanted = [
        "bin/containerd-shim-slipway-v1",
        "libexec/slipway-guest",
        "libexec/slipway-aot",
        "libexec/slipway-layers",
        "libexec/slipway-queue",
        LOADER,
        "lib/runtime/libwasmedge.so.0",
        "lib/mount-points/etc/hosts",
        "lib/skeleton",
    ];
    let missing: Vec<_> = wanted
        .into_iter()
        .filter(|f| !install.root().join(f).exists())
        .collect();
    match missing.is_empty() {
        true => good("files", install.root().display().to_string()),
        false => bad(
            "files",
            Level::Error,
            format!(
                "missing below {}: {}",
                install.root().display(),
                missing.join(", ")
            ),
            "unpack the release's tar again, or set SLIPWAY_ROOT to where it is",
        ),
    }
}

fn engine(install: &Install) -> Finding {
    match install.engine_version() {
        Ok(version) => good("engine", version),
        Err(e) => bad(
            "engine",
            Level::Error,
            e.to_string(),
            "the loader or a library of lib/runtime or lib/compiler is damaged: unpack the release's tar again",
        ),
    }
}

fn cache(args: &Doctor) -> Finding {
    let store = Store::open(
        &args.store.cache_dir,
        Options {
            max_bytes: args.store.cache_bytes,
        },
    );
    match store.and_then(|s| s.list()) {
        Ok(entries) => good(
            "cache",
            format!("{}: {} entries", args.store.cache_dir, entries.len()),
        ),
        Err(e) => bad(
            "cache",
            Level::Error,
            e.to_string(),
            "without the cache no module can run: see the message",
        ),
    }
}

fn daemon(address: &Path) -> Finding {
    match std::os::unix::net::UnixStream::connect(address) {
        Ok(_) => good("containerd", address.display().to_string()),
        Err(e) => bad(
            "containerd",
            Level::Error,
            format!("{}: {e}", address.display()),
            "start containerd, or give its socket with --address",
        ),
    }
}

/// The configuration, with the file that `slipway install` has it import.
fn configuration(path: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let own = path.with_file_name("conf.d/slipway.toml");
    let imported = text.contains("imports") && own.exists();
    Ok(match imported {
        true => text + &std::fs::read_to_string(own)?,
        false => text,
    })
}

fn config(path: &Path) -> Finding {
    let text = match configuration(path) {
        Ok(text) => text,
        Err(e) => {
            return bad(
                "config",
                Level::Warning,
                format!("{}: {e}", path.display()),
                "give containerd's configuration with --config",
            );
        }
    };
    let shim = path.display();
    if !text.contains("io.containerd.slipway.v1") && !text.contains("containerd-shim-slipway-v1") {
        return bad(
            "config",
            Level::Error,
            format!("{shim}: no runtime slipway"),
            "run `slipway install`; or by hand: add [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.slipway] with runtime_type = \"io.containerd.runc.v2\" and runtime_path = \"/opt/slipway/bin/containerd-shim-slipway-v1\" (containerd 1.7: plugins.\"io.containerd.grpc.v1.cri\"), and restart containerd",
        );
    }
    if !text.contains("slipway.dev/") {
        return bad(
            "config",
            Level::Warning,
            format!("{shim}: pods' annotations slipway.dev/… do not reach the runtime"),
            "add pod_annotations = [\"slipway.dev/*\"] to the runtime",
        );
    }
    good("config", shim.to_string())
}

/// What `slipway install` has done, and whether containerd knows of it.
fn installation(
    directory: &Path,
    status: Result<Option<Status>, slipway_install::Error>,
) -> Finding {
    const CHECK: &str = "installed";
    const AGAIN: &str = "run `slipway install` again: it goes on where it was";
    let status = match status {
        Ok(Some(status)) => status,
        Ok(None) => {
            return bad(
                CHECK,
                Level::Warning,
                format!("not by `slipway install` below {}", directory.display()),
                "`slipway install --dry-run` tells what it would do; whoever has configured containerd by hand needs it not",
            );
        }
        Err(e) => return bad(CHECK, Level::Error, e.to_string(), "see the message"),
    };
    if !status.complete {
        return bad(CHECK, Level::Error, status.phase, AGAIN);
    }
    if !status.changed.is_empty() {
        let names: Vec<_> = status
            .changed
            .iter()
            .map(|p| p.display().to_string())
            .collect();
        let finding = format!("changed since by somebody else: {}", names.join(", "));
        return bad(CHECK, Level::Warning, finding, AGAIN);
    }
    match status.missing {
        Ok(missing) if missing.is_empty() => good(
            CHECK,
            format!("{}: {}", status.tree, status.handlers.join(", ")),
        ),
        Ok(missing) => bad(
            CHECK,
            Level::Error,
            format!("containerd does not list {}", missing.join(", ")),
            "restart containerd",
        ),
        Err(e) => bad(CHECK, Level::Error, e, "see the message of containerd"),
    }
}

fn program(check: &'static str, name: &str, remedy: &str) -> Finding {
    match Command::new(name).arg("-v").output() {
        Ok(out) if out.status.success() => good(check, name),
        Ok(out) => bad(
            check,
            Level::Error,
            format!("{name} -v: {}", out.status),
            remedy,
        ),
        Err(e) => bad(check, Level::Warning, format!("{name}: {e}"), remedy),
    }
}
