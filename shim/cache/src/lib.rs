//! The node's store of compiled artefacts: native shared objects that WasmEdge's compiler made of modules.
//!
//! Every process that starts a Wasm container looks here first; whoever misses compiles under the key's lock and
//! inserts. The protocol, for any number of processes at once:
//!
//! ```text
//! lookup ──Hit──▶ load it                       no directory scan, no hashing once verified since boot
//!   │ └──Refused─▶ tell the user
//!  Miss
//!   ▼
//! lock ──▶ lookup again ──Hit──▶ another process was faster
//!              │ Miss
//!              ▼
//!           pending ──▶ compile into it ──▶ insert | insert_refusal
//! ```
//!
//! The store is one flat directory, root's alone:
//!
//! ```text
//! <key>.so       an entry: ELF file ‖ sealed description (see `entry`); dlopen ignores what follows the ELF's segments
//! <key>.refused  an entry: the compiler's refusal ‖ sealed description
//! <key>.seen     which file <key>.so was verified as, in which boot; its mtime is the entry's last use
//! <key>.lock     held while one process compiles; gone when nobody does
//! tmp-…          being written; swept when its writer is dead
//! store.lock     held for moments while entries appear or disappear
//! queue-…        the directory of the compile queue, another crate's
//! ```
//!
//! An entry is one file, so it appears, is replaced and disappears atomically. It is never changed in place: whatever
//! changes it moves its ctime, which no one can set, and then it is hashed again before it is used.
//!
//! An artefact is as hostile as the module it was made of: nothing here loads it, and no process that runs one should
//! still hold a [`Store`].

mod dir;
mod entry;
mod error;
mod key;
mod list;
mod lock;
mod store;
mod write;

#[cfg(test)]
mod tests;

pub use entry::Meta;
pub use error::{Error, remedy};
pub use key::{Key, Tier, cpu_features};
pub use list::{Entry, Kind, Removed};
pub use lock::KeyLock;
pub use store::{Artefact, Lookup, Options, Store};
pub use write::PendingArtefact;

/// Version of keys and entries. A store may hold entries of several; each Slipway sees its own. Also to be raised when
/// the module checker or the compiler's options change, for artefacts and refusals outlive the program that made them.
pub const FORMAT: u32 = 2;
/// The largest artefact in bytes. Modules are at most 256 MiB; native code is two to four times as large.
pub const MAX_ARTEFACT_BYTES: u64 = 1 << 30;
/// Most entries of a store. An insert looks at each of them, which takes 8 µs: beyond the bound it removes the least recently
/// used, as beyond the bound in bytes.
pub const MAX_ENTRIES: usize = 10_000;
/// The longest text of a refusal in bytes; longer ones are cut.
pub const MAX_REFUSAL_BYTES: usize = 4096;
/// The longest origin in bytes; longer ones are cut.
pub const MAX_ORIGIN_BYTES: usize = 256;
/// The fewest hexadecimal digits that name entries to [`Store::remove`].
pub const MIN_PREFIX: usize = 4;

/// `bytes` as lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The longest beginning of `text` that has at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}
