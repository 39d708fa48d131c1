//! WasmEdge as a guest's engine.

use std::ffi::CStr;

use slipway_engine::{Call, Wasi};
use slipway_guest::{ARTEFACT, Engine, Loaded, Outcome, Preopen, Run, Trap};
use slipway_module::{Export, ExternKind};
use slipway_protocol::Facts;

use crate::interpose::{self, memory, stack};

/// The engine, ready to load one artefact.
pub struct WasmEdge(slipway_engine::Engine);

impl Engine for WasmEdge {
    type Loaded<'engine> = Module<'engine>;

    fn version() -> String {
        slipway_engine::version()
    }

    fn start() -> Result<Self, String> {
        interpose::check()?;
        interpose::report_exhaustion();
        stack::give_to_handler();
        Ok(Self(slipway_engine::Engine::new()))
    }

    fn warm_up() {
        slipway_engine::Engine::warm_up();
    }

    fn expect(&self, facts: &Facts) {
        memory::expect(facts);
    }

    fn load(&self, artefact: &CStr) -> Result<Module<'_>, String> {
        self.0.load(artefact).map(Module).map_err(|e| e.to_string())
    }
}

/// A module that WasmEdge has loaded.
pub struct Module<'engine>(slipway_engine::Loaded<'engine>);

impl Loaded for Module<'_> {
    fn prepare(self, run: &Run<'_>) -> Result<impl FnOnce() -> Outcome, String> {
        let call = entry_call(&self.0, run)?;
        let preopens: Vec<_> = run.preopens.iter().map(preopen).collect();
        let wasi = Wasi::new(run.args, run.env, &preopens).map_err(|e| e.to_string())?;
        stack::watch(ARTEFACT);
        Ok(move || outcome(self.0.run(&wasi, &call)))
    }
}

/// The call that the entrypoint means: `_start`, or the named function, with the command's arguments where it has parameters.
fn entry_call(loaded: &slipway_engine::Loaded<'_>, run: &Run<'_>) -> Result<Call, String> {
    let function = run.function.unwrap_or(slipway_module::START);
    let arguments = run.args.get(1..).unwrap_or_default();
    loaded.call(function, arguments).map_err(|e| {
        // The checker's text is the one that a module has met before it was compiled.
        let exports: Vec<_> = loaded.exports().into_iter().map(export).collect();
        match slipway_module::check_entry(&exports, function, Some(arguments.len())) {
            Err(problem) => problem.to_string(),
            Ok(()) => format!("function {function:?}: {e}"),
        }
    })
}

fn export((name, signature): (String, Option<String>)) -> Export {
    Export {
        name,
        kind: match signature {
            Some(_) => ExternKind::Function,
            // Whatever it is, it cannot be called.
            None => ExternKind::Global,
        },
        signature,
    }
}

/// A directory in WasmEdge's form.
fn preopen(directory: &Preopen) -> String {
    format!("{}:{}", directory.name, directory.path)
}

fn outcome(of: slipway_engine::Outcome) -> Outcome {
    match of {
        slipway_engine::Outcome::Returned(values) => Outcome::Returned(values),
        slipway_engine::Outcome::Exited(status) => Outcome::Exited(status),
        slipway_engine::Outcome::Trapped(slipway_engine::Trap { reason, stack }) => {
            Outcome::Trapped(Trap { reason, stack })
        }
    }
}
