//! What a shim and the worker say to each other: each packet one message, as between host and guest.
//!
//! ```text
//! shim                                worker
//!   Submit + [module] ────────────────▶│
//!   ◀─ Said …                          │  any number, for the log
//!   Leave ────────────────────────────▶│  nobody waits any more; the compile goes on
//!   ◀─ Ended                           │
//!   ◀─ Said …, Ended                   │  where the module is compiled once more, in full
//! ```
//! A shim that hangs up has left, too. Who administers the node sends other messages:
//!
//! ```text
//!   Forget ───────────────────────────▶│
//!   ◀─ Forgotten                       │
//!   Stop ─────────────────────────────▶│  ends its compilers, removes its cgroup and hangs up
//! ```
//! A change of these messages or of the records is a change of
//! [`Directory`](crate::directory::Directory)'s name.

use serde::{Deserialize, Serialize};
use slipway_compile::CompileError;
use slipway_protocol::Purpose;

use crate::record::Record;

/// From a shim to the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Compile the module in the packet's descriptor.
    Submit(Box<Order>),
    /// Nobody waits for it any more.
    Leave,
    /// The job of this name is not wanted.
    Forget(String),
    /// End; the next worker goes on with what is kept.
    Stop,
}

/// A module that is to be compiled.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// What is kept of it.
    pub record: Record,
    /// What was wrong with a former artefact.
    pub damaged: Option<String>,
    /// What a start waits for; `None`: nobody waits.
    pub purpose: Option<Purpose>,
}

/// From the worker to a shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// For the log.
    Said(String),
    /// The artefact is there, or why not.
    Ended(Result<(), CompileError>),
    /// Ask again, on a connection of its own: the module of another who had asked before did not serve.
    Again,
    /// Ask again later: there is no place for a module yet.
    Full,
    /// The job is none any more, or stays because a start waits for it.
    Forgotten(bool),
}
