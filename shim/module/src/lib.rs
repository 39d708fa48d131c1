//! What a Wasm module is, and whether it would run here.
//!
//! Bytes from an image or a file are judged once, at the door: [`prepare`] either refuses them with a text that says
//! what to do instead, or returns the bytes that the engine gets. [`inspect`] describes the same bytes for a person,
//! including those that would not run. "Here" is WasmEdge 0.17 with the proposals of [`PROPOSALS`] and the host
//! functions of its `wasi_snapshot_preview1`.
//!
//! The input is hostile: everything read has a bound, and no input panics. Time is linear in its size (roughly that of
//! a Wasm validation), so a caller that has seen the same [`Digest`] before should not ask again.

mod binary;
mod describe;
mod digest;
mod entrypoint;
mod info;
mod kind;
mod problem;
mod proposals;
#[cfg(test)]
mod tests;
mod values;
mod wasi;

pub use describe::{Prepared, inspect, prepare};
pub use digest::{Digest, Hasher, ParseDigestError};
pub use entrypoint::{Entrypoint, START};
pub use info::{CustomSection, Export, ExternKind, Import, Memory, ModuleInfo, check_entry};
pub use kind::{Compression, Kind};
pub use problem::{Problem, Reason};
pub use proposals::{PROPOSALS, Proposal};

/// The largest module accepted, in bytes: four times the largest seen in use (yosys, 68 MB).
pub const MAX_MODULE_BYTES: u64 = 256 << 20;
/// The largest text module (WAT) accepted, in bytes: its parser needs a multiple of this in memory.
pub const MAX_TEXT_BYTES: u64 = 8 << 20;
/// The most imports a module may have.
pub const MAX_IMPORTS: usize = 10_000;
/// The most exports a module may have: programs linked with `--export-all` have tens of thousands.
pub const MAX_EXPORTS: usize = 100_000;
/// The most linear memories a module may have: the engine reserves 12 GiB of address space for each, and the guest has
/// room to watch so many.
pub const MAX_MEMORIES: usize = 16;
/// The most custom sections a module may have.
pub const MAX_CUSTOM_SECTIONS: usize = 10_000;
/// Values (parameters, results and locals, and those of blocks, branches and calls) that any module may have. They take
/// the compiler up to 100 MB of memory, whatever they are.
pub const FREE_VALUES: u64 = 1 << 16;
/// Values that a module may have besides those for each byte of its code. Compilers emit 0.06 (Go) to 0.13 (C++, LLVM
/// itself, 75 MB), optimised or not; the most that code can use is one, in instructions of a single byte.
pub const VALUES_PER_CODE_BYTE: u64 = 1;
/// One page of linear memory, in bytes.
pub const PAGE_BYTES: u64 = 64 << 10;
/// How many names a message lists before it stops.
const NAMED_IN_MESSAGE: usize = 8;
