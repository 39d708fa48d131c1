//! What happens to the Wasm containers of a node, counted by all its shims in one file of shared memory.
//!
//! ```text
//! /run/slipway/counters     one page: 512 words, only root may open it
//!   word 0                  what this is, and its version
//!   words 1 to 63           counters
//!   words from 64 on        histograms: 15 buckets and the sum in microseconds each
//!   locks behind the page   one byte for each guest that runs, at its pid: they end with the shim that holds them
//! ```
//! A count is an addition to a word: nothing is lost when a shim ends, however it ends, and nobody waits for anybody.
//! Counting never fails for its caller: a file that is gone or damaged is made anew.

mod file;
mod text;

pub use file::{Counters, Snapshot};
pub use text::Text;

use std::time::Duration;

/// Where the file is.
pub const DIR: &str = "/run/slipway";

/// Something that is counted. The number is its word in the file, which no other version gives another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// The artefact was in the cache.
    CacheHits = 1,
    /// It was not.
    CacheMisses,
    /// A compile made no artefact.
    CompileFailures,
    /// A container or a sandbox could not be created or started.
    StartFailures,
    /// A growth of memory was refused by a budget.
    GrowthsRefused,
    /// A program ended with status 0.
    EndedCompleted,
    /// … with another status of its own.
    EndedError,
    /// … by a signal.
    EndedSignal,
    /// … by a trap.
    EndedTrap,
    /// … for want of memory.
    EndedOutOfMemory,
    /// … for its CPU-time budget was used up.
    EndedCpuTime,
}

/// A duration that is counted. The number is its place among the histograms of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Histogram {
    /// Create of a container whose artefact was in the cache.
    CreateHit = 0,
    /// … was not.
    CreateMiss,
    /// From Create to the module being told to run; the artefact was in the cache.
    StartHit,
    /// … was not.
    StartMiss,
    /// Start of an exec.
    Exec,
    /// A compile without optimisation.
    CompileQuick,
    /// A compile with optimisation.
    CompileFull,
}

/// Finite bounds of the buckets of one histogram.
const BOUNDS: usize = 14;

impl Histogram {
    /// Upper bounds of the buckets, in microseconds; there is one more bucket for what is above.
    const fn bounds(self) -> [u64; BOUNDS] {
        const START: [u64; BOUNDS] = [
            1_000,
            2_500,
            5_000,
            10_000,
            25_000,
            50_000,
            100_000,
            250_000,
            500_000,
            1_000_000,
            2_500_000,
            10_000_000,
            60_000_000,
            600_000_000,
        ];
        const COMPILE: [u64; BOUNDS] = [
            50_000,
            100_000,
            250_000,
            500_000,
            1_000_000,
            2_500_000,
            5_000_000,
            10_000_000,
            30_000_000,
            60_000_000,
            120_000_000,
            300_000_000,
            600_000_000,
            1_800_000_000,
        ];
        match self {
            Self::CompileQuick | Self::CompileFull => COMPILE,
            _ => START,
        }
    }

    /// The bucket that a duration falls into, and the duration in microseconds.
    fn bucket(self, duration: Duration) -> (usize, u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds().partition_point(|bound| *bound < micros);
        (bucket, micros)
    }
}
