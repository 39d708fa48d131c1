//! `slipway-queue CACHE`: compiles what lies in the cache's queue and what shims ask for, and ends when there is nothing to do.
//! A shim that finds none starts it; a second one ends at once.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};
use slipway_queue::Worker;

fn main() -> ExitCode {
    // A connection and a module for each start that waits: the shim's soft limit may be for a program that uses select(2).
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    let mut arguments = std::env::args().skip(1);
    let (Some(cache), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: slipway-queue CACHE; a shim starts it");
        return ExitCode::FAILURE;
    };
    let done = Worker::new(&cache)
        .and_then(|worker| worker.map_or(Ok(()), |w| w.run().map_err(|e| e.to_string())));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
