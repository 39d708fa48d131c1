//! `slipway-guest`: the process that is a Wasm container, with WasmEdge in it.

mod engine;
mod interpose;

fn main() {
    slipway_guest::run::<engine::WasmEdge>()
}
