//! The host functions of WasmEdge, to tell at the door what an import will meet at instantiation.

use wasmparser::{FuncType, ValType};

use crate::NAMED_IN_MESSAGE;
use crate::problem::{Problem, Reason};

/// The one module that the engine provides.
const PREVIEW1: &str = "wasi_snapshot_preview1";

/// How the names of WASI 0.2's interfaces begin, as in `wasi:io/streams@0.2.0`.
const INTERFACES: &str = "wasi:";
/// How the names of its interfaces for HTTP begin.
pub(crate) const HTTP: &str = "wasi:http/";
/// What to do without them.
pub(crate) const NO_HTTP: &str = "WASI preview 1 has no HTTP, so building for wasm32-wasip1 alone does not help: write the server or client over \
     WasmEdge's sockets, as examples/http-server and examples/https-client do, or run this one in a runtime that has wasi:http, such \
     as wasmtime serve or Spin";

/// Function and parameters (`i` = i32, `I` = i64) of WasmEdge 0.17.1's `wasi_snapshot_preview1`, in order of names, as
/// `WasmEdge_ModuleInstanceListFunction` and `WasmEdge_FunctionInstanceGetFunctionType` give them: preview 1, and
/// WasmEdge's sockets. All return one i32 but `proc_exit`, which returns nothing.
#[rustfmt::skip]
const FUNCTIONS: &[(&str, &str)] = &[
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("clock_res_get", "ii"),
    ("clock_time_get", "iIi"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("epoll_oneoff", "iiii"),
    ("fd_advise", "iIIi"),
    ("fd_allocate", "iII"),
    ("fd_close", "i"),
    ("fd_datasync", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_fdstat_set_rights", "iII"),
    ("fd_filestat_get", "ii"),
    ("fd_filestat_set_size", "iI"),
    ("fd_filestat_set_times", "iIIi"),
    ("fd_pread", "iiiIi"),
    ("fd_prestat_dir_name", "iii"),
    ("fd_prestat_get", "ii"),
    ("fd_pwrite", "iiiIi"),
    ("fd_read", "iiii"),
    ("fd_readdir", "iiiIi"),
    ("fd_renumber", "ii"),
    ("fd_seek", "iIii"),
    ("fd_sync", "i"),
    ("fd_tell", "ii"),
    ("fd_write", "iiii"),
    ("path_create_directory", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiiIIi"),
    ("path_link", "iiiiiii"),
    ("path_open", "iiiiiIIii"),
    ("path_readlink", "iiiiii"),
    ("path_remove_directory", "iii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_unlink_file", "iii"),
    ("poll_oneoff", "iiii"),
    ("proc_exit", "i"),
    ("proc_raise", "i"),
    ("random_get", "ii"),
    ("sched_yield", ""),
    ("sock_accept", "ii"),
    ("sock_accept_v2", "iii"),
    ("sock_bind", "iii"),
    ("sock_bind_v2", "iii"),
    ("sock_connect", "iii"),
    ("sock_connect_v2", "iii"),
    ("sock_getaddrinfo", "iiiiiiii"),
    ("sock_getlocaladdr", "iiii"),
    ("sock_getlocaladdr_v2", "iii"),
    ("sock_getpeeraddr", "iiii"),
    ("sock_getpeeraddr_v2", "iii"),
    ("sock_getsockopt", "iiiii"),
    ("sock_listen", "ii"),
    ("sock_listen_v2", "ii"),
    ("sock_open", "iii"),
    ("sock_open_v2", "iii"),
    ("sock_recv", "iiiiii"),
    ("sock_recv_from", "iiiiiii"),
    ("sock_recv_from_v2", "iiiiiiii"),
    ("sock_recv_v2", "iiiiii"),
    ("sock_send", "iiiii"),
    ("sock_send_to", "iiiiiii"),
    ("sock_send_to_v2", "iiiiiii"),
    ("sock_send_v2", "iiiii"),
    ("sock_setsockopt", "iiiii"),
    ("sock_shutdown", "ii"),
];

/// An import, as far as the engine compares it.
pub(crate) struct Wanted<'a> {
    pub module: &'a str,
    pub name: &'a str,
    /// Its type; `None` unless it is a function.
    pub function: Option<&'a FuncType>,
}

impl Wanted<'_> {
    fn is_provided(&self) -> bool {
        let Some(function) = self.function else {
            return false;
        };
        let results: &[ValType] = if self.name == "proc_exit" {
            &[]
        } else {
            &[ValType::I32]
        };
        // The engine also tries NAME_v2 under NAME: wasi-libc's sock_accept has the second type.
        let types = [
            parameters(self.name),
            parameters(&format!("{}_v2", self.name)),
        ];
        self.module == PREVIEW1
            && function.results() == results
            && types.into_iter().flatten().any(|params| {
                function
                    .params()
                    .iter()
                    .copied()
                    .eq(params.bytes().map(value))
            })
    }

    /// `module::name`, with what the engine has instead if only the type differs. Of an interface of WASI 0.2 the functions' names
    /// say nothing more, and are long.
    fn describe(&self) -> String {
        let module = shortened(self.module);
        let name = shortened(self.name);
        match parameters(self.name) {
            Some(_) if self.module == PREVIEW1 => {
                format!("{module}::{name} (with another type than the engine's)")
            }
            _ if self.module.starts_with(INTERFACES) => module,
            _ => format!("{module}::{name}"),
        }
    }

    /// What most often puts such an import into a module, and what to do about it.
    fn remedy(&self) -> &'static str {
        match self.module {
            PREVIEW1 => {
                "build for WASI preview 1 (target wasm32-wasip1); beyond it only WasmEdge's sockets are provided"
            }
            "wasi_unstable" => {
                "this is WASI preview 0: build with a current toolchain for wasm32-wasip1"
            }
            "wasi" => {
                "wasi-threads is not supported: build for wasm32-wasip1, not wasm32-wasip1-threads"
            }
            "go" | "gojs" => "build with GOOS=wasip1 GOARCH=wasm, not GOOS=js",
            "wbg" => {
                "this is a module for browsers (wasm-bindgen): build a program for wasm32-wasip1"
            }
            "env" => {
                "`env` holds what the linker did not find, or Emscripten's runtime: link every library, and build with \
                 a WASI toolchain (target wasm32-wasip1)"
            }
            module if module.starts_with("__wbindgen") => {
                "this is a module for browsers (wasm-bindgen): build a program for wasm32-wasip1"
            }
            module if module.starts_with(HTTP) => NO_HTTP,
            module if module.starts_with(INTERFACES) => {
                "this is the core of a WASI 0.2 component: build for wasm32-wasip1, not wasm32-wasip2"
            }
            module if module.starts_with("wasi_") => {
                "WasmEdge's plug-ins are not installed here: build without this interface"
            }
            _ => {
                "build a program that needs nothing but wasi_snapshot_preview1 (target wasm32-wasip1)"
            }
        }
    }
}

/// The value type that a letter of [`FUNCTIONS`] stands for.
fn value(letter: u8) -> ValType {
    if letter == b'I' {
        ValType::I64
    } else {
        ValType::I32
    }
}

fn parameters(name: &str) -> Option<&'static str> {
    let index = FUNCTIONS
        .binary_search_by_key(&name, |(name, _)| name)
        .ok()?;
    Some(FUNCTIONS[index].1)
}

/// The problem with those of `imports` that the engine does not provide, if any. `offset` is the import section's.
pub(crate) fn missing(imports: &[Wanted<'_>], offset: u64) -> Option<Problem> {
    let missing = || imports.iter().filter(|wanted| !wanted.is_provided());
    // What tells most about where the module comes from: HTTP is what no other build brings.
    let telling = missing()
        .find(|wanted| wanted.module.starts_with(HTTP))
        .or(missing().next())?;
    let mut names: Vec<String> = missing().map(Wanted::describe).collect();
    names.dedup();
    let unnamed = names.len().saturating_sub(NAMED_IN_MESSAGE);
    names.truncate(NAMED_IN_MESSAGE);
    let mut text = format!(
        "the module imports what this engine does not provide: {}",
        names.join(", ")
    );
    if unnamed > 0 {
        text += &format!(" and {unnamed} more");
    }
    Some(Problem::new(Reason::Import, text, telling.remedy()).at(offset))
}

/// A name for a message: as it is, or its beginning. Names may have 100,000 bytes.
fn shortened(name: &str) -> String {
    const MOST: usize = 60;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_uses_two_letters() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(
            FUNCTIONS
                .iter()
                .all(|(_, params)| params.bytes().all(|letter| b"iI".contains(&letter)))
        );
    }

    #[test]
    fn an_import_is_provided_in_the_engines_type_or_its_second_version() {
        for (name, params, results, provided) in [
            ("fd_write", "iiii", "i", true),
            ("fd_write", "iii", "i", false),
            ("fd_write", "iiiI", "i", false),
            ("fd_write", "iiii", "", false),
            ("fd_write", "iiii", "I", false),
            ("proc_exit", "i", "", true),
            ("proc_exit", "i", "i", false),
            ("sock_accept", "ii", "i", true),
            ("sock_accept", "iii", "i", true),
            ("sock_accept", "iiii", "i", false),
            ("sock_getaddrinfo", "iiiiiiii", "i", true),
            ("thread-spawn", "i", "i", false),
        ] {
            let function = FuncType::new(params.bytes().map(value), results.bytes().map(value));
            let mut wanted = Wanted {
                module: PREVIEW1,
                name,
                function: Some(&function),
            };
            assert_eq!(wanted.is_provided(), provided, "{name} {params} {results}");
            wanted.module = "wasi_unstable";
            assert!(!wanted.is_provided(), "{name} of another module");
        }
    }
}
