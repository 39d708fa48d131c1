//! What a program finds through WASI.

use std::ffi::CString;

use crate::ffi;
use crate::log::Error;

/// What a program finds through WASI. Standard descriptors are the process's own 0, 1, 2.
pub struct Wasi {
    args: Vec<CString>,
    env: Vec<CString>,
    preopens: Vec<CString>,
}

impl Wasi {
    /// Arguments, `NAME=value` environment, and preopens as `guest:host` directories.
    ///
    /// # Errors
    /// A string with a NUL byte.
    pub fn new(args: &[String], env: &[String], preopens: &[String]) -> Result<Self, Error> {
        let all = |list: &[String]| {
            list.iter()
                .map(|s| {
                    CString::new(s.as_str())
                        .map_err(|_| Error(format!("{s:?} contains a NUL byte")))
                })
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            args: all(args)?,
            env: all(env)?,
            preopens: all(preopens)?,
        })
    }

    pub(crate) fn create(&self) -> *mut ffi::Module {
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (args, env, preopens) = (
            pointers(&self.args),
            pointers(&self.env),
            pointers(&self.preopens),
        );
        // SAFETY: the engine copies the strings during the call.
        unsafe {
            ffi::WasmEdge_ModuleInstanceCreateWASI(
                args.as_ptr(),
                args.len() as u32,
                env.as_ptr(),
                env.len() as u32,
                preopens.as_ptr(),
                preopens.len() as u32,
            )
        }
    }
}
