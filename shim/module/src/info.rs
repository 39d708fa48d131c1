//! What a module contains, and whether an entrypoint means one of its functions.

use std::fmt;

use serde::{Deserialize, Serialize};
use wasmparser::{ExternalKind, MemoryType, TypeRef};

use crate::problem::{Problem, Reason};
use crate::{Kind, NAMED_IN_MESSAGE, PAGE_BYTES, START};

/// Longest part of an export's name that a message shows, in bytes.
const BYTES_OF_NAME: usize = 200;

/// The types of what a command line can give to a function.
const NUMBERS: [&str; 4] = ["i32", "i64", "f32", "f64"];

/// What a module contains. Lists are empty, and signatures missing, as far as the bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// What the file is.
    pub kind: Kind,
    /// Length of the file in bytes.
    pub size: u64,
    /// Functions defined in the module (imported ones not counted).
    pub functions: u32,
    /// Index of the function that runs on instantiation.
    pub start: Option<u32>,
    /// What it needs from its host.
    pub imports: Vec<Import>,
    /// What it offers to its host.
    pub exports: Vec<Export>,
    /// Linear memories, imported ones first.
    pub memories: Vec<Memory>,
    /// Custom sections: names, debug information, producers, native code of a compiler.
    pub custom_sections: Vec<CustomSection>,
    /// Why it does not run here; empty if it does (see [`ModuleInfo::check_entry`] for the function to run).
    pub problems: Vec<Problem>,
}

/// An import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// The module it is looked up in.
    pub module: String,
    /// Its name there.
    pub name: String,
    /// What it is.
    pub kind: ExternKind,
    /// Its type, if it is a function of a valid module: `(i32, i64) -> (i32)`.
    pub signature: Option<String>,
}

/// An export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ExternKind,
    /// Its type, if it is a function of a valid module: `() -> ()`.
    pub signature: Option<String>,
}

/// What an import or export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the five kinds of the Wasm specification")]
pub enum ExternKind {
    Function,
    Table,
    Memory,
    Global,
    Tag,
}

/// A linear memory. Sizes are in pages of 64 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Pages it starts with.
    pub min: u64,
    /// Pages it may grow to, if bounded by the module.
    pub max: Option<u64>,
    /// Shared between threads.
    pub shared: bool,
    /// Addressed by 64-bit values.
    pub memory64: bool,
}

impl Memory {
    /// Bytes that it starts with.
    pub fn min_bytes(&self) -> u64 {
        self.min.saturating_mul(PAGE_BYTES)
    }
}

/// A custom section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomSection {
    /// Its name, as in `name`, `.debug_info`, `producers`.
    pub name: String,
    /// Length of its contents in bytes.
    pub size: u64,
}

impl ModuleInfo {
    /// Bytes of linear memory that the module has from its first instruction on: a budget below this cannot run it.
    pub fn min_memory_bytes(&self) -> u64 {
        self.memories
            .iter()
            .fold(0, |sum, memory| memory.min_bytes().saturating_add(sum))
    }

    /// [`check_entry`] with this module's exports.
    pub fn check_entry(&self, func: &str, arguments: Option<usize>) -> Result<(), Problem> {
        check_entry(&self.exports, func, arguments)
    }
}

/// Whether `func` (see [`crate::Entrypoint::func`]) can be run: exported, and a function. `_start` is () -> (); others
/// take numbers, one of the command's `arguments` for each (where they are known), or nothing and find them through WASI.
pub fn check_entry(
    exports: &[Export],
    func: &str,
    arguments: Option<usize>,
) -> Result<(), Problem> {
    let found = exports.iter().find(|export| export.name == func);
    let signature = |export: &Export| {
        let signature = export.signature.as_deref();
        signature.unwrap_or("unknown").to_owned()
    };
    let text = match found {
        Some(export) if export.is_runnable() => {
            let parameters = export.parameters().len();
            return match arguments {
                Some(given) if parameters > 0 && given != parameters => Err(Problem::new(
                    Reason::Entry,
                    format!("function {func:?} takes {parameters} arguments, {given} given"),
                    format!("give one for each parameter of {}", signature(export)),
                )),
                _ => Ok(()),
            };
        }
        Some(export) if export.kind == ExternKind::Function => {
            let signature = signature(export);
            format!("the module's function {func:?} cannot be run: its type is {signature}")
        }
        Some(_) => format!("the module's export {func:?} is not a function"),
        None => format!("the module exports no function {func:?}"),
    };
    let mut names = exports
        .iter()
        .filter(|export| export.is_runnable())
        .map(|export| &export.name[..export.name.floor_char_boundary(BYTES_OF_NAME)]);
    let remedy = match names.next() {
        Some(first) => {
            let names = names
                .take(NAMED_IN_MESSAGE - 1)
                .fold(first.to_owned(), |all, name| all + ", " + name);
            format!("name a function that can, as in app.wasm#{first}: {names}")
        }
        None => "build a program (a WASI command with a main function), not a library".to_owned(),
    };
    Err(Problem::new(Reason::Entry, text, remedy))
}

impl Export {
    /// Whether a command can run this: `_start` is () -> () in WASI, others take what a command line can give.
    fn is_runnable(&self) -> bool {
        self.kind == ExternKind::Function
            && match (self.name.as_str(), self.signature.as_deref()) {
                (_, None) => false,
                (START, Some(signature)) => signature == "() -> ()",
                _ => self.parameters().iter().all(|kind| NUMBERS.contains(kind)),
            }
    }

    /// The types of its parameters.
    fn parameters(&self) -> Vec<&str> {
        let signature = self.signature.as_deref().unwrap_or_default();
        let parameters = signature.strip_prefix('(').and_then(|s| s.split_once(')'));
        let parameters = parameters.map_or("", |(parameters, _)| parameters);
        parameters.split(", ").filter(|p| !p.is_empty()).collect()
    }
}

impl From<MemoryType> for Memory {
    fn from(memory: MemoryType) -> Memory {
        Memory {
            min: memory.initial,
            max: memory.maximum,
            shared: memory.shared,
            memory64: memory.memory64,
        }
    }
}

impl From<TypeRef> for ExternKind {
    fn from(ty: TypeRef) -> ExternKind {
        match ty {
            TypeRef::Func(_) | TypeRef::FuncExact(_) => ExternKind::Function,
            TypeRef::Table(_) => ExternKind::Table,
            TypeRef::Memory(_) => ExternKind::Memory,
            TypeRef::Global(_) => ExternKind::Global,
            TypeRef::Tag(_) => ExternKind::Tag,
        }
    }
}

impl From<ExternalKind> for ExternKind {
    fn from(kind: ExternalKind) -> ExternKind {
        match kind {
            ExternalKind::Func | ExternalKind::FuncExact => ExternKind::Function,
            ExternalKind::Table => ExternKind::Table,
            ExternalKind::Memory => ExternKind::Memory,
            ExternalKind::Global => ExternKind::Global,
            ExternalKind::Tag => ExternKind::Tag,
        }
    }
}

impl fmt::Display for ExternKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExternKind::Function => "function",
            ExternKind::Table => "table",
            ExternKind::Memory => "memory",
            ExternKind::Global => "global",
            ExternKind::Tag => "tag",
        })
    }
}
