//! A containerd shim for Wasm, built the way its libraries suggest: `containerd-shim-wasm` does all of the
//! shim's work, `wasmedge-sdk` with its default configuration runs the module. Both are unchanged, as they come
//! from crates.io. Slipway's benchmarks run beside it.

use std::collections::HashMap;

use anyhow::Result;
use containerd_shim_wasm::sandbox::Sandbox;
use containerd_shim_wasm::sandbox::context::RuntimeContext;
use containerd_shim_wasm::shim::{Cli, Shim, Version, version};
use wasmedge_sdk::vm::SyncInst;
use wasmedge_sdk::wasi::WasiModule;
use wasmedge_sdk::{Module, Store, Vm};

struct Conventional;

#[derive(Default)]
struct WasmEdge;

impl Shim for Conventional {
    type Sandbox = WasmEdge;

    fn name() -> &'static str {
        "conventional"
    }

    fn version() -> Version {
        version!()
    }
}

impl Sandbox for WasmEdge {
    /// Runs the entrypoint's function; the exit status is the one the module gave to WASI.
    async fn run_wasi(&self, context: &impl RuntimeContext) -> Result<i32> {
        let entrypoint = context.entrypoint();
        let arguments = context.args().iter().map(String::as_str).collect();
        let environment = context.envs().iter().map(String::as_str).collect();
        let mut wasi = WasiModule::create(Some(arguments), Some(environment), Some(vec!["/:/"]))?;

        let imports: HashMap<String, &mut dyn SyncInst> =
            HashMap::from([(wasi.name().to_owned(), wasi.as_mut() as _)]);
        let mut vm = Vm::new(Store::new(None, imports)?);
        vm.register_module(
            None,
            Module::from_bytes(None, entrypoint.source.as_bytes()?)?,
        )?;
        vm.run_func(None, &entrypoint.func, [])?;
        Ok(i32::try_from(wasi.exit_code())?)
    }
}

fn main() {
    Conventional::run(None);
}
