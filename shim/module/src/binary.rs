//! A module's bytes in binary form: from either form, without what the engine is not to have, and the names in them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use wasmparser::{BinaryReaderError, KnownCustom, Name, Parser, Payload, WasmFeatures};

use crate::problem::{Problem, Reason};
use crate::proposals::{enabled, switched_off};
use crate::wasi;
use crate::{Compression, Kind, MAX_MODULE_BYTES, MAX_TEXT_BYTES};

/// The bytes of a binary module, from either form.
pub fn to_binary(kind: Kind, bytes: &[u8]) -> Result<Cow<'_, [u8]>, Problem> {
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

pub fn parser(features: WasmFeatures) -> Parser {
    let mut parser = Parser::new(0);
    parser.set_features(features);
    parser
}

/// A copy of a valid module without its custom sections.
pub fn strip(binary: &[u8]) -> Result<Vec<u8>, BinaryReaderError> {
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
pub fn names(binary: &[u8]) -> Vec<(u32, String)> {
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
