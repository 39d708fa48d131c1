//! `containerd-shim-slipway-v1`: containerd's shim for Wasm pods. One process per pod, no engine inside.
//!
//! Reading order: `flags`, `boot`, `socket` and `serve` (how containerd starts a shim), `service` (what it asks), `create` and `exec`
//! (how a process comes to be), `pod`, `container`, `process` (what there is, and how it ends), `sandbox` and `holder` (the pod's own
//! container), `delegate` (Linux containers), then `events`, `stdio`, `stats`, `cleanup`.

mod boot;
mod claims;
mod cleanup;
mod container;
mod count;
mod create;
mod delegate;
mod error;
mod events;
mod exec;
mod execs;
mod features;
mod flags;
mod handler;
mod holder;
mod log;
mod members;
mod new_cgroup;
mod oom_score;
mod pod;
mod process;
mod sandbox;
mod serve;
mod service;
mod settings;
mod socket;
mod stats;
mod stdio;
mod termination_message;

use std::process::ExitCode;

use flags::Command;

/// The runtime's name, as containerd derives it from the binary's.
pub const RUNTIME: &str = "io.containerd.slipway.v1";

fn main() -> ExitCode {
    let result = match Command::parse(std::env::args().skip(1)) {
        Ok(Command::Version) => {
            println!(
                "containerd-shim-slipway-v1:\n  Version:  {}",
                env!("CARGO_PKG_VERSION")
            );
            Ok(())
        }
        Ok(Command::Info) => boot::info(),
        Ok(Command::Start(flags)) => boot::start(&flags),
        Ok(Command::Delete(flags)) => cleanup::delete(&flags),
        Err(usage) => Err(usage),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // containerd shows a failed `start` by its stderr.
            eprintln!("containerd-shim-slipway-v1: {message}");
            ExitCode::FAILURE
        }
    }
}
