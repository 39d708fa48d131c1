//! `containerd-shim-slipway-v1`: containerd's shim for Wasm pods. One process per pod, no engine inside.
//!
//! Reading order: `boot` and `socket` (how containerd starts a shim), `service` (what it asks), `pod` (who answers), then
//! `container`, `sandbox`, `delegate` (what the answer is about), `events`, `stdio`, `stats`, `cleanup`.

mod boot;
mod cleanup;
mod container;
mod count;
mod delegate;
mod error;
mod events;
mod features;
mod handler;
mod log;
mod pod;
mod process;
mod sandbox;
mod service;
mod socket;
mod stats;
mod stdio;

use std::process::ExitCode;

/// The runtime's name, as containerd derives it from the binary's.
pub const RUNTIME: &str = "io.containerd.slipway.v1";

fn main() -> ExitCode {
    let result = match boot::Command::parse(std::env::args().skip(1)) {
        Ok(boot::Command::Version) => {
            println!(
                "containerd-shim-slipway-v1:\n  Version:  {}",
                env!("CARGO_PKG_VERSION")
            );
            Ok(())
        }
        Ok(boot::Command::Info) => boot::info(),
        Ok(boot::Command::Start(flags)) => boot::start(&flags),
        Ok(boot::Command::Delete(flags)) => cleanup::delete(&flags),
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
