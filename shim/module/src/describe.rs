//! The pass over a module's bytes: what it contains, whether it is valid, and what the engine gets of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use wasmparser::types::{EntityType, Types, TypesRef};
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ExternalKind, FuncType, KnownCustom, MemoryType, Name,
    Parser, Payload, TypeRef, ValType, Validator, WasmFeatures,
};

use crate::problem::{Problem, Reason};
use crate::proposals::{enabled, explain, known, switched_off};
use crate::values;
use crate::wasi::{self, Wanted};
use crate::{
    Compression, Kind, MAX_CUSTOM_SECTIONS, MAX_EXPORTS, MAX_IMPORTS, MAX_MEMORIES,
    MAX_MODULE_BYTES, MAX_TEXT_BYTES, NAMED_IN_MESSAGE, PAGE_BYTES, START,
};

/// Parameters, and results, beyond this number are left out of a signature's text: a type has up to 1,000 of each, and
/// any number of exports may share it.
const VALUES_IN_SIGNATURE: usize = 16;

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

/// A module that the engine may have.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The module in binary form without its custom sections: names and debug information cost memory in every pod, and
    /// a native section (`wasmedge`) inside an image must never run. Offsets in the engine's messages refer to this.
    pub stripped: Vec<u8>,
    /// What it contains, custom sections included. Without problems.
    pub info: ModuleInfo,
    /// Names of its functions by index, as far as it has a section of names.
    pub names: Vec<(u32, String)>,
}

/// Validates a binary or text module and strips it for the engine.
///
/// The error is the first of those that [`inspect`] lists.
pub fn prepare(bytes: &[u8]) -> Result<Prepared, Problem> {
    let (mut info, binary) = examine(bytes);
    if !info.problems.is_empty() {
        return Err(info.problems.swap_remove(0));
    }
    let stripped = strip(&binary).map_err(|error| explain(&error))?;
    let names = names(&binary);
    Ok(Prepared {
        stripped,
        info,
        names,
    })
}

/// Describes any file as far as it can be read, with everything that keeps it from running here.
pub fn inspect(bytes: &[u8]) -> ModuleInfo {
    examine(bytes).0
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

/// Describes `bytes` and returns the module in binary form beside it; empty where there is none.
fn examine(bytes: &[u8]) -> (ModuleInfo, Cow<'_, [u8]>) {
    let mut info = ModuleInfo {
        kind: Kind::sniff(bytes),
        size: bytes.len() as u64,
        functions: 0,
        start: None,
        imports: Vec::new(),
        exports: Vec::new(),
        memories: Vec::new(),
        custom_sections: Vec::new(),
        problems: Vec::new(),
    };
    let binary = match to_binary(info.kind, bytes) {
        Ok(binary) => binary,
        Err(problem) => {
            info.problems.push(problem);
            return (info, Cow::Borrowed(&[]));
        }
    };
    let (validated, too_many) = match values::validate(&binary) {
        Ok((types, too_many)) => (Ok(types), too_many),
        Err(error) => (Err(error), None),
    };
    // A module that only uses what is off here has types all the same.
    let lenient = validated.is_err().then(|| {
        Validator::new_with_features(known())
            .validate_all(&binary)
            .map(Some)
    });
    let types = lenient
        .as_ref()
        .unwrap_or(&validated)
        .as_ref()
        .ok()
        .and_then(Option::as_ref)
        .map(Types::as_ref);
    let described = describe(&binary, types, &mut info);
    // What fails to validate is described as far as possible; where that stops says nothing new.
    if let Err(problem) = validated
        .map_err(|error| explain(&error))
        .and(too_many.map_or(Ok(()), Err))
        .and(described)
    {
        info.problems.insert(0, problem);
    } else if !info
        .exports
        .iter()
        .any(|export| export.kind == ExternKind::Function)
    {
        info.problems.push(
            Problem::new(
                Reason::Entry,
                "the module exports no function, so there is nothing to run",
                "build a program (a WASI command with a main function); if it is one, the file may be truncated",
            )
            .at(binary.len() as u64),
        );
    }
    (info, binary)
}

/// The bytes of a binary module, from either form.
fn to_binary(kind: Kind, bytes: &[u8]) -> Result<Cow<'_, [u8]>, Problem> {
    const WANTED: &str = "give a WebAssembly module, built for example with --target wasm32-wasip1";
    let not_wasm =
        |text: String, remedy: &str| Err(Problem::new(Reason::NotWasm, text, remedy).at(0));
    let limit = if kind == Kind::Wat {
        MAX_TEXT_BYTES
    } else {
        MAX_MODULE_BYTES
    };
    if bytes.len() as u64 > limit {
        let text = format!(
            "the {kind} has {} bytes, more than the {limit} allowed",
            bytes.len()
        );
        let remedy = "strip debug information, build for size, or move data into files";
        return Err(Problem::new(Reason::TooLarge, text, remedy));
    }
    match kind {
        Kind::CoreModule => Ok(Cow::Borrowed(bytes)),
        Kind::Wat => wat::parse_bytes(bytes).map_err(|error| {
            if let Some(problem) = old_exceptions(bytes) {
                return problem;
            }
            let text = format!("the module's text does not parse: {error}");
            Problem::new(Reason::Text, text, "correct the text, or give the module in binary form")
        }),
        Kind::Component if names_http(bytes) => Err(Problem::new(
            Reason::Component,
            "this is a WebAssembly component that names wasi:http, and no engine for components is installed",
            wasi::NO_HTTP,
        )
        .at(4)),
        Kind::Component => Err(Problem::new(
            Reason::Component,
            "this is a WebAssembly component, and no engine for components is installed",
            "build a core module instead: for example --target wasm32-wasip1 rather than wasm32-wasip2, without \
             `wasm-tools component new`",
        )
        .at(4)),
        Kind::Elf => not_wasm(
            "this is a native executable (ELF), not a WebAssembly module".to_owned(),
            "build for wasm32-wasip1, or run the image without the runtime class of Wasm",
        ),
        Kind::Script => not_wasm(
            "this is a script (#!), not a WebAssembly module".to_owned(),
            "make the module itself the entrypoint, or run the image without the runtime class of Wasm",
        ),
        Kind::Empty => not_wasm("the file is empty".to_owned(), WANTED),
        Kind::Other if let Some(how) = Compression::sniff(bytes) => not_wasm(
            format!("this is no WebAssembly module but a file that is compressed with {how}"),
            "give the module as it was before; only an image's layer of type application/wasm may be compressed",
        ),
        Kind::Other => {
            let start = &bytes[..bytes.len().min(8)];
            not_wasm(format!("this is not a WebAssembly module: it starts with the bytes {start:02x?}"), WANTED)
        }
    }
}

/// Why a text does not parse that has the words of the old form of exception handling, which its parser does not know.
fn old_exceptions(text: &[u8]) -> Option<Problem> {
    let is_word = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'(' | b')' | b';');
    let word = text
        .split(|byte| !is_word(byte))
        .find(|word| matches!(*word, b"try" | b"rethrow" | b"delegate"))?;
    let word = String::from_utf8_lossy(word);
    switched_off(
        WasmFeatures::LEGACY_EXCEPTIONS,
        &format!("its old form, with {word}"),
    )
}

/// Whether a component, in binary or text, names an interface of wasi:http. For a message: it need not be read to know.
fn names_http(component: &[u8]) -> bool {
    component
        .windows(wasi::HTTP.len())
        .any(|name| name == wasi::HTTP.as_bytes())
}

/// Fills `info` from the sections of `binary`; with `types`, those of a valid module, also signatures and whether
/// the engine provides the imports.
fn describe(
    binary: &[u8],
    types: Option<TypesRef<'_>>,
    info: &mut ModuleInfo,
) -> Result<(), Problem> {
    for payload in parser(known()).parse_all(binary) {
        describe_section(payload, types, info).map_err(|error| match error {
            Stop::Unreadable(error) => explain(&error),
            Stop::TooMany(problem) => problem,
        })?;
    }
    Ok(())
}

/// Why the description of a module ends early.
enum Stop {
    Unreadable(BinaryReaderError),
    TooMany(Problem),
}

impl From<BinaryReaderError> for Stop {
    fn from(error: BinaryReaderError) -> Stop {
        Stop::Unreadable(error)
    }
}

fn describe_section(
    payload: Result<Payload<'_>, BinaryReaderError>,
    types: Option<TypesRef<'_>>,
    info: &mut ModuleInfo,
) -> Result<(), Stop> {
    match payload? {
        Payload::ImportSection(section) => {
            let offset = section.range().start;
            bound(section.count() as usize, MAX_IMPORTS, "imports", offset)?;
            let mut wanted = Vec::new();
            for import in section.into_imports() {
                let import = import?;
                let function = types
                    .and_then(|types| function(types, types.entity_type_from_import(&import)?));
                if let TypeRef::Memory(memory) = import.ty {
                    info.memories.push(memory.into());
                }
                info.imports.push(Import {
                    module: import.module.to_owned(),
                    name: import.name.to_owned(),
                    kind: import.ty.into(),
                    signature: function.map(signature),
                });
                wanted.push(Wanted {
                    module: import.module,
                    name: import.name,
                    function,
                });
            }
            if types.is_some() {
                info.problems.extend(wasi::missing(&wanted, offset));
            }
        }
        Payload::FunctionSection(section) => info.functions = section.count(),
        Payload::MemorySection(section) => {
            let count = info.memories.len().saturating_add(section.count() as usize);
            bound(count, MAX_MEMORIES, "memories", section.range().start)?;
            for memory in section {
                info.memories.push(memory?.into());
            }
        }
        Payload::ExportSection(section) => {
            bound(
                section.count() as usize,
                MAX_EXPORTS,
                "exports",
                section.range().start,
            )?;
            for export in section {
                let export = export?;
                let function = types
                    .and_then(|types| function(types, types.entity_type_from_export(&export)?));
                info.exports.push(Export {
                    name: export.name.to_owned(),
                    kind: export.kind.into(),
                    signature: function.map(signature),
                });
            }
        }
        Payload::StartSection { func, .. } => info.start = Some(func),
        Payload::CustomSection(section) => {
            bound(
                info.custom_sections.len() + 1,
                MAX_CUSTOM_SECTIONS,
                "custom sections",
                section.range().start,
            )?;
            info.custom_sections.push(CustomSection {
                name: section.name().to_owned(),
                size: section.data().len() as u64,
            });
        }
        _ => {}
    }
    Ok(())
}

fn bound(count: usize, limit: usize, what: &str, offset: u64) -> Result<(), Stop> {
    if count <= limit {
        return Ok(());
    }
    let text = format!("the module has {count} {what}, more than the {limit} allowed");
    Err(Stop::TooMany(
        Problem::new(
            Reason::TooLarge,
            text,
            format!("build it with fewer {what}"),
        )
        .at(offset),
    ))
}

fn parser(features: WasmFeatures) -> Parser {
    let mut parser = Parser::new(0);
    parser.set_features(features);
    parser
}

fn function<'a>(types: TypesRef<'a>, entity: EntityType) -> Option<&'a FuncType> {
    let EntityType::Func(id) = entity else {
        return None;
    };
    match &types.get(id)?.composite_type.inner {
        CompositeInnerType::Func(function) => Some(function),
        _ => None,
    }
}

/// The text of a function's type, such as `(i32, i64) -> (i32)`.
fn signature(function: &FuncType) -> String {
    let mut text = values(function.params());
    text.push_str(" -> ");
    text.push_str(&values(function.results()));
    text
}

fn values(types: &[ValType]) -> String {
    let mut text = String::from("(");
    for (index, value) in types.iter().enumerate() {
        if index == VALUES_IN_SIGNATURE {
            text.push_str(", ...");
            break;
        }
        if index > 0 {
            text.push_str(", ");
        }
        text.push_str(&value.to_string());
    }
    text + ")"
}

/// A copy of a valid module without its custom sections.
fn strip(binary: &[u8]) -> Result<Vec<u8>, BinaryReaderError> {
    let mut stripped = Vec::with_capacity(binary.len());
    stripped.extend_from_slice(b"\0asm\x01\0\0\0");
    for payload in parser(enabled()).parse_all(binary) {
        let payload = payload?;
        if matches!(payload, Payload::CustomSection(_)) {
            continue;
        }
        if let Some((id, range)) = payload.as_section() {
            let contents = &binary[range.start as usize..range.end as usize];
            stripped.push(id);
            push_leb128(&mut stripped, contents.len());
            stripped.extend_from_slice(contents);
        }
    }
    Ok(stripped)
}

/// The names of a module's functions. They are for messages alone: a section that cannot be read ends them.
fn names(binary: &[u8]) -> Vec<(u32, String)> {
    let mut names = BTreeMap::new();
    for payload in parser(enabled()).parse_all(binary) {
        let Ok(Payload::CustomSection(section)) = payload else {
            continue;
        };
        let KnownCustom::Name(subsections) = section.as_known() else {
            continue;
        };
        let functions = subsections
            .map_while(Result::ok)
            .filter_map(|name| match name {
                Name::Function(functions) => Some(functions),
                _ => None,
            });
        let namings = functions.flat_map(|map| map.into_iter().map_while(Result::ok));
        names.extend(namings.map(|naming| (naming.index, naming.name.to_owned())));
    }
    names.into_iter().collect()
}

/// Appends `value` as an unsigned LEB128, the encoding of section lengths.
fn push_leb128(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
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
