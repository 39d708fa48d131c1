use wasmparser::{BinaryReaderError, WasmFeatures};

use crate::problem::{Problem, Reason};

/// A Wasm proposal and whether it is on here.
///
/// The engine must be configured alike: a proposal that only one side has is either a module refused for
/// nothing or one that the engine meets unprepared.
#[derive(Debug, Clone, Copy)]
pub struct Proposal {
    /// The proposal's usual name.
    pub name: &'static str,
    /// Whether modules may use it.
    pub on: bool,
    /// What to do when a module needs it and it is off.
    remedy: &'static str,
    features: WasmFeatures,
}

const fn on(name: &'static str, features: WasmFeatures) -> Proposal {
    Proposal {
        name,
        on: true,
        remedy: "",
        features,
    }
}

const fn off(name: &'static str, features: WasmFeatures, remedy: &'static str) -> Proposal {
    Proposal {
        name,
        on: false,
        remedy,
        features,
    }
}

/// Every proposal that this crate knows about: WasmEdge 0.17's defaults (its `Wasm3` standard) without the four that are
/// unsafe there or rest on those. memory64 has no bounds checks in AOT code; exception handling writes out of bounds in
/// the interpreter; GC and typed function references are new and need a collector. What WasmEdge lacks or has
/// off by default stays off.
pub const PROPOSALS: &[Proposal] = &[
    on("mutable globals", WasmFeatures::MUTABLE_GLOBAL),
    on(
        "non-trapping float-to-int conversions",
        WasmFeatures::SATURATING_FLOAT_TO_INT,
    ),
    on("sign extension", WasmFeatures::SIGN_EXTENSION),
    on("multi-value", WasmFeatures::MULTI_VALUE),
    on("bulk memory", WasmFeatures::BULK_MEMORY),
    // `externref` is one of wasmparser's GC_TYPES; those of the GC proposal need GC as well, which is off.
    on(
        "reference types",
        WasmFeatures::REFERENCE_TYPES.union(WasmFeatures::GC_TYPES),
    ),
    on("SIMD", WasmFeatures::SIMD),
    on("relaxed SIMD", WasmFeatures::RELAXED_SIMD),
    on("tail calls", WasmFeatures::TAIL_CALL),
    on(
        "extended constant expressions",
        WasmFeatures::EXTENDED_CONST,
    ),
    on("multiple memories", WasmFeatures::MULTI_MEMORY),
    off(
        "memory64",
        WasmFeatures::MEMORY64,
        "build for wasm32 (wasm32-wasip1), not wasm64",
    ),
    off(
        "exception handling",
        WasmFeatures::EXCEPTIONS.union(WasmFeatures::LEGACY_EXCEPTIONS),
        "build without Wasm exceptions: C and C++ without -fwasm-exceptions and setjmp, Rust with panic=abort",
    ),
    off(
        "threads",
        WasmFeatures::THREADS,
        "build without threads: no -pthread, wasm32-wasip1 rather than wasm32-wasip1-threads",
    ),
    off(
        "shared-everything threads",
        WasmFeatures::SHARED_EVERYTHING_THREADS,
        "build without threads: no -pthread, wasm32-wasip1 rather than wasm32-wasip1-threads",
    ),
    off(
        "garbage collection",
        WasmFeatures::GC,
        "use a toolchain that brings its own memory management (Kotlin, Dart and Java compile to GC)",
    ),
    off(
        "typed function references",
        WasmFeatures::FUNCTION_REFERENCES,
        "build without typed function references (call_ref)",
    ),
    off(
        "wide arithmetic",
        WasmFeatures::WIDE_ARITHMETIC,
        "build without -mwide-arithmetic",
    ),
    off(
        "custom page sizes",
        WasmFeatures::CUSTOM_PAGE_SIZES,
        "build with pages of 64 KiB",
    ),
    off(
        "stack switching",
        WasmFeatures::STACK_SWITCHING,
        "build without stack switching",
    ),
    off(
        "compact import section",
        WasmFeatures::COMPACT_IMPORTS,
        "build with the ordinary import section",
    ),
];

/// The features that modules may use, for wasmparser.
pub(crate) fn enabled() -> WasmFeatures {
    features(|proposal| proposal.on)
}

/// The features of every known proposal: what describes a module that may not run.
pub(crate) fn known() -> WasmFeatures {
    features(|_| true)
}

fn features(wanted: impl Fn(&&Proposal) -> bool) -> WasmFeatures {
    // wasmparser counts floating point, part of Wasm 1.0, as a feature.
    PROPOSALS
        .iter()
        .filter(wanted)
        .fold(WasmFeatures::FLOATS, |all, proposal| {
            all | proposal.features
        })
}

/// Turns the validator's complaint into a problem: a proposal that is off, or an invalid module.
pub(crate) fn explain(error: &BinaryReaderError) -> Problem {
    let missing = error.missing_wasm_feature();
    missing
        .and_then(|features| switched_off(features, error.message()))
        .unwrap_or_else(|| {
            Problem::new(
                Reason::Invalid,
                format!(
                    "the module is truncated, damaged or invalid: {}",
                    error.message()
                ),
                "build or copy the file again and compare its size and checksum with the original's",
            )
        })
        .at(error.offset())
}

/// The problem with a module that needs `features`, if a proposal with one of them is off; `how` says where it shows.
pub(crate) fn switched_off(features: WasmFeatures, how: &str) -> Option<Problem> {
    let proposal = PROPOSALS
        .iter()
        .find(|proposal| !proposal.on && proposal.features.intersects(features))?;
    let text = format!(
        "the module uses {}, which is not enabled here: {how}",
        proposal.name
    );
    Some(Problem::new(Reason::Proposal, text, proposal.remedy))
}
