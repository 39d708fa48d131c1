//! The node's compile queue: modules that shims want compiled, in files that outlive pods, and the one process that works
//! them off.
//!
//! ```text
//! shim A ──┐                        ┌─▶ slipway-aot   a start waits for it
//! shim B ──┼─ socket ─▶ worker ─────┤
//! shim C ──┘              │         └─▶ slipway-aot   nobody waits: nice 19
//!                         └─ queue-2/KEY.job, KEY.wasm
//! ```
//! A shim that finds no worker starts one ([`Client`]); it ends when there is nothing to do. Whatever is killed, at any
//! moment: a job's files are whole or none, the compilers end with the worker, the next worker goes on with the files, and
//! the shims whose starts wait ask it again.
//!
//! The purposes of those who wait for one module can differ. The compiler is asked with the first one's; where the module
//! does not suit that, the first one is told so, and the next one's turn comes. Who joins a compile that runs has its purpose
//! compared when the artefact is loaded, as on any hit.

mod admin;
mod client;
mod directory;
mod list;
mod record;
mod room;
mod schedule;
mod wire;
mod worker;

pub use admin::{Stopped, forget, stop};
pub use client::{Client, Request};
pub use list::{Queued, list};
pub use record::Record;
pub use worker::Worker;
