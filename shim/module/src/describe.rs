//! The pass over a module's bytes: what it contains, whether it is valid, and what the engine gets of it.

use std::borrow::Cow;

use wasmparser::types::{EntityType, Types, TypesRef};
use wasmparser::{
    BinaryReaderError, CompositeInnerType, FuncType, Payload, TypeRef, ValType, Validator,
};

use crate::binary::{names, parser, strip, to_binary};
use crate::info::{CustomSection, Export, ExternKind, Import, ModuleInfo};
use crate::problem::{Problem, Reason};
use crate::proposals::{explain, known};
use crate::values;
use crate::wasi::{self, Wanted};
use crate::{Kind, MAX_CUSTOM_SECTIONS, MAX_EXPORTS, MAX_IMPORTS, MAX_MEMORIES};

/// Parameters, and results, beyond this number are left out of a signature's text: a type has up to 1,000 of each, and
/// any number of exports may share it.
const VALUES_IN_SIGNATURE: usize = 16;

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
