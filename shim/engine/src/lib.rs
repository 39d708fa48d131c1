//! WasmEdge behind a small safe face: compile a module to native code, load an artefact, run it with WASI.
//!
//! Written on the C API, not on the crates `wasmedge-sdk`/`wasmedge-sys`, for what they cost a guest: their executor
//! wraps every host call into two `sigprocmask` system calls, and they need libclang at build time.

mod ffi;
mod log;
mod outcome;
mod values;
mod wasi;

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr;

pub use log::Error;
pub use outcome::{Outcome, Trap};
pub use wasi::Wasi;

use log::{capture_log, check, failure, text_of};
use values::{FunctionType, parse, show};

/// A command's function, and what a reactor exports to be called before any other (WASI's application ABI).
const START: &str = "_start";
const INITIALISE: &str = "_initialize";

/// Name and version of the loaded library, as artefacts are keyed by it.
pub fn version() -> String {
    // SAFETY: a constant string of the library.
    let version = unsafe { CStr::from_ptr(ffi::WasmEdge_VersionGet()) };
    format!("wasmedge-{}", version.to_string_lossy())
}

/// Optimisation of native code. There is no O1: it crashes LLVM 19 and 21.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimisation {
    /// O0.
    None,
    /// O2.
    Full,
}

/// Settings shared by everything that follows.
struct Configure(*mut ffi::Configure);

impl Configure {
    fn new() -> Self {
        // SAFETY: a fresh context, owned by this value; the setters take plain integers.
        unsafe {
            let c = ffi::WasmEdge_ConfigureCreate();
            // memory64 has no bounds checks under AOT, exception handling writes out of bounds in the interpreter;
            // the other two lean on them or have no user yet. The module checker refuses the same ones.
            for proposal in [
                ffi::PROPOSAL_MEMORY64,
                ffi::PROPOSAL_EXCEPTION_HANDLING,
                ffi::PROPOSAL_FUNCTION_REFERENCES,
                ffi::PROPOSAL_GC,
                ffi::PROPOSAL_COMPONENT,
            ] {
                ffi::WasmEdge_ConfigureRemoveProposal(c, proposal);
            }
            ffi::WasmEdge_ConfigureSetRunMode(c, ffi::RUN_MODE_AOT);
            Self(c)
        }
    }
}

impl Drop for Configure {
    fn drop(&mut self) {
        // SAFETY: owned, deleted once.
        unsafe { ffi::WasmEdge_ConfigureDelete(self.0) }
    }
}

/// Compiles a module's bytes into a native shared object at `out`.
///
/// # Errors
/// The engine's, for example that the output cannot be written.
pub fn compile(module: &[u8], out: &CStr, optimisation: Optimisation) -> Result<(), Error> {
    capture_log();
    let configure = Configure::new();
    let level = match optimisation {
        Optimisation::None => 0,
        Optimisation::Full => 2,
    };
    // SAFETY: contexts are owned here and deleted once; the buffer and path outlive the call.
    unsafe {
        ffi::WasmEdge_ConfigureCompilerSetOptimizationLevel(configure.0, level);
        ffi::WasmEdge_ConfigureCompilerSetOutputFormat(configure.0, 0);
        let compiler = ffi::WasmEdge_CompilerCreate(configure.0);
        if compiler.is_null() {
            return Err(Error("this libwasmedge has no compiler".into()));
        }
        let result = ffi::WasmEdge_CompilerCompileFromBuffer(
            compiler,
            module.as_ptr(),
            module.len() as u64,
            out.as_ptr(),
        );
        ffi::WasmEdge_CompilerDelete(compiler);
        check(result)
    }
}

/// A module with one of each of the sections that programs have:
///
/// ```wat
/// (module
///   (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
///   (table 1 funcref) (memory (export "memory") 1) (global (mut i32) (i32.const 0))
///   (func $start (export "_start")
///     (block (br_if 0 (i32.const 1)))
///     (drop (call $fd_write (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0))))
///   (elem (i32.const 0) $start) (data (i32.const 0) "h"))
/// ```
const SMALL_MODULE: &[u8] = include_bytes!("small.wasm");

/// The engine, ready to load one artefact. Nothing of anybody's module has been seen yet.
pub struct Engine {
    configure: Configure,
}

impl Engine {
    /// Starts the engine in AOT mode; without it, it would quietly interpret.
    pub fn new() -> Self {
        capture_log();
        Self {
            configure: Configure::new(),
        }
    }

    /// Loads an artefact (dlopen) and validates it. Call it only with privileges dropped: an artefact is as hostile
    /// as the module it was compiled from.
    ///
    /// # Errors
    /// The engine's.
    pub fn load(&self, path: &CStr) -> Result<Loaded<'_>, Error> {
        // SAFETY: the path lives during the call; loader and place are `parse`'s.
        self.parse(|loader, ast| unsafe {
            ffi::WasmEdge_LoaderParseFromFile(loader, ast, path.as_ptr())
        })
    }

    /// Loads a module of no artefact in an engine of its own, and drops both: the code that loading takes is in this process's memory
    /// then, and the first artefact is loaded in three quarters of the time.
    pub fn warm_up() {
        let engine = Self::new();
        let length = SMALL_MODULE.len() as u32;
        // SAFETY: the bytes are a constant; loader and place are `parse`'s. Nothing of the module is run.
        let loaded = engine.parse(|loader, ast| unsafe {
            ffi::WasmEdge_LoaderParseFromBuffer(loader, ast, SMALL_MODULE.as_ptr(), length)
        });
        drop(loaded);
        // That it is no artefact is nothing that a later failure has to tell.
        log::clear();
    }

    /// Parses by one of the loader's functions, which sets the module where its result is good, and validates.
    fn parse(
        &self,
        parse: impl FnOnce(*mut ffi::Loader, *mut *mut ffi::AstModule) -> ffi::Res,
    ) -> Result<Loaded<'_>, Error> {
        // SAFETY: contexts are owned here and deleted once; `ast` is set where the result is good.
        unsafe {
            let loader = ffi::WasmEdge_LoaderCreate(self.configure.0);
            let mut ast = ptr::null_mut();
            let parsed = check(parse(loader, &raw mut ast));
            ffi::WasmEdge_LoaderDelete(loader);
            parsed?;
            let loaded = Loaded {
                ast,
                engine: PhantomData,
                configure: self.configure.0,
            };
            let validator = ffi::WasmEdge_ValidatorCreate(self.configure.0);
            let valid = check(ffi::WasmEdge_ValidatorValidate(validator, ast));
            ffi::WasmEdge_ValidatorDelete(validator);
            valid.map(|()| loaded)
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

/// A loaded module of which nothing has run.
pub struct Loaded<'e> {
    ast: *mut ffi::AstModule,
    configure: *const ffi::Configure,
    engine: PhantomData<&'e Engine>,
}

impl Loaded<'_> {
    /// What the module exports: names, and of functions their types, as in `(i32, i64) -> (i32)`.
    pub fn exports(&self) -> Vec<(String, Option<String>)> {
        let describe = |e| {
            // SAFETY: export types and their names live as long as the module.
            let (name, kind) = unsafe {
                (
                    text_of(ffi::WasmEdge_ExportTypeGetExternalName(e)),
                    ffi::WasmEdge_ExportTypeGetFunctionType(self.ast, e),
                )
            };
            let kind = (!kind.is_null()).then(|| FunctionType::of(kind));
            (name, kind.map(|kind| kind.to_string()))
        };
        self.export_types().into_iter().map(describe).collect()
    }

    fn export_types(&self) -> Vec<*const ffi::ExportType> {
        // SAFETY: the array has room for as many as the engine says there are.
        unsafe {
            let n = ffi::WasmEdge_ASTModuleListExportsLength(self.ast);
            let mut list = vec![ptr::null(); n as usize];
            ffi::WasmEdge_ASTModuleListExports(self.ast, list.as_mut_ptr(), n);
            list
        }
    }

    fn function(&self, name: &str) -> Option<FunctionType> {
        // SAFETY: export types and their names live as long as the module.
        self.export_types().into_iter().find_map(|e| unsafe {
            if text_of(ffi::WasmEdge_ExportTypeGetExternalName(e)) != name {
                return None;
            }
            let t = ffi::WasmEdge_ExportTypeGetFunctionType(self.ast, e);
            (!t.is_null()).then(|| FunctionType::of(t))
        })
    }

    /// Checks that `function` is exported and takes `arguments`, and turns them into a call. A reactor's `_initialize`
    /// comes before it, unless it is a command's `_start`, which initialises itself.
    ///
    /// # Errors
    /// A text that names the function and the argument.
    pub fn call(&self, function: &str, arguments: &[String]) -> Result<Call, Error> {
        let kind = self
            .function(function)
            .ok_or_else(|| Error(format!("the module exports no function {function:?}")))?;
        let FunctionType { params, returns } = kind;
        if function == START && !(params.is_empty() && returns.is_empty()) {
            return Err(Error(format!("function {function:?} is not () -> ()")));
        }
        // A function without parameters finds them as WASI's arguments.
        if !params.is_empty() && params.len() != arguments.len() {
            return Err(Error(format!(
                "function {function:?} takes {} arguments, {} given",
                params.len(),
                arguments.len()
            )));
        }
        let params = params
            .iter()
            .zip(arguments)
            .map(|(kind, text)| parse(*kind, text))
            .collect::<Result<_, _>>()?;
        Ok(Call {
            initialise: function != START && function != INITIALISE && self.has_initialiser(),
            function: function.to_string(),
            params,
            returns: returns.len() as u32,
        })
    }

    /// Whether the module is a reactor with something to initialise (WASI's application ABI).
    fn has_initialiser(&self) -> bool {
        self.function(INITIALISE)
            .is_some_and(|kind| kind.params.is_empty() && kind.returns.is_empty())
    }

    /// Instantiates the module (its start section runs) and makes the call. Never returns to Wasm afterwards.
    pub fn run(self, wasi: &Wasi, call: &Call) -> Outcome {
        // SAFETY: contexts are made here and deliberately never deleted: the process ends after the run.
        unsafe {
            let executor = ffi::WasmEdge_ExecutorCreate(self.configure, ptr::null_mut());
            let store = ffi::WasmEdge_StoreCreate();
            let host = wasi.create();
            let ended = |e: ffi::Res| {
                if ffi::WasmEdge_ResultGetCode(e) == ffi::ERR_TERMINATED {
                    return Outcome::Exited(ffi::WasmEdge_ModuleInstanceWASIGetExitCode(host));
                }
                match failure(e) {
                    None => Outcome::Returned(Vec::new()),
                    Some((message, details)) => Outcome::Trapped(Trap::from(message, details)),
                }
            };
            if let Err(e) = check(ffi::WasmEdge_ExecutorRegisterImport(executor, store, host)) {
                return Outcome::Trapped(e.into());
            }
            let mut instance = ptr::null_mut();
            let made =
                ffi::WasmEdge_ExecutorInstantiate(executor, &raw mut instance, store, self.ast);
            if instance.is_null() || !ffi::WasmEdge_ResultOK(made) {
                return ended(made);
            }
            let invoke = |name: &str, params: &[ffi::Value], returns: u32| {
                let text = ffi::Str {
                    length: name.len() as u32,
                    buf: name.as_ptr().cast(),
                };
                let function = ffi::WasmEdge_ModuleInstanceFindFunction(instance, text);
                if function.is_null() {
                    return Outcome::Trapped(Error(format!("function {name:?} is gone")).into());
                }
                let mut values = vec![ffi::WasmEdge_ValueGenI32(0); returns as usize];
                let result = ffi::WasmEdge_ExecutorInvoke(
                    executor,
                    function,
                    params.as_ptr(),
                    params.len() as u32,
                    values.as_mut_ptr(),
                    returns,
                );
                match ended(result) {
                    Outcome::Returned(_) => {
                        Outcome::Returned(values.into_iter().map(show).collect())
                    }
                    other => other,
                }
            };
            if call.initialise {
                let outcome = invoke(INITIALISE, &[], 0);
                if !matches!(outcome, Outcome::Returned(_)) {
                    return outcome;
                }
            }
            invoke(&call.function, &call.params, call.returns)
        }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, deleted once.
        unsafe { ffi::WasmEdge_ASTModuleDelete(self.ast) }
    }
}

/// A checked call.
pub struct Call {
    /// `_initialize` is to be called before.
    initialise: bool,
    function: String,
    params: Vec<ffi::Value>,
    returns: u32,
}
