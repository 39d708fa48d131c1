//! `slipway-aot`: the compiler process, with WasmEdge's compiler and LLVM in it.

use std::ffi::CStr;
use std::process::ExitCode;

use slipway_aot::{Compiler, Tier};
use slipway_engine::Optimisation;

struct WasmEdge;

impl Compiler for WasmEdge {
    fn version() -> String {
        slipway_engine::version()
    }

    fn compile(module: &[u8], out: &CStr, tier: Tier) -> Result<(), String> {
        let optimisation = match tier {
            Tier::Quick => Optimisation::None,
            Tier::Full => Optimisation::Full,
        };
        slipway_engine::compile(module, out, optimisation).map_err(|e| e.to_string())
    }
}

fn main() -> ExitCode {
    slipway_aot::run::<WasmEdge>()
}
