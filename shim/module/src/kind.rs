use std::fmt;

use serde::{Deserialize, Serialize};

/// What a file is, judged by its first bytes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Starts with the Wasm magic and is not a component. Whether it is whole and valid is for [`crate::prepare`].
    CoreModule,
    /// A component (WASI 0.2 and later): the Wasm magic, and layer 1 in the version word.
    Component,
    /// Text whose first token is a parenthesis, as in the Wasm text format.
    Wat,
    /// A native executable or library.
    Elf,
    /// Starts with `#!`.
    Script,
    /// No bytes at all.
    Empty,
    /// Anything else.
    Other,
}

/// How a file is compressed, judged by its first bytes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// How many leading bytes [`Compression::sniff`] needs.
    pub const SNIFF_BYTES: usize = 4;

    /// Judges a file by its first bytes. Neither begins as a module does, in binary or in text.
    pub fn sniff(bytes: &[u8]) -> Option<Compression> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

const MAGIC: &[u8] = b"\0asm";
/// Bytes 6 and 7 of a binary, little-endian: 0 in a core module, 1 in a component (component-model, Binary.md).
const COMPONENT_LAYER: &[u8] = &[1, 0];

impl Kind {
    /// How many leading bytes [`Kind::sniff`] needs; fewer are enough except for text that starts with long comments.
    pub const SNIFF_BYTES: usize = 4096;

    /// Judges a file by its first bytes, of which [`Kind::SNIFF_BYTES`] suffice.
    pub fn sniff(bytes: &[u8]) -> Kind {
        if bytes.is_empty() {
            Kind::Empty
        } else if bytes.starts_with(MAGIC) {
            if bytes.get(6..8) == Some(COMPONENT_LAYER) {
                Kind::Component
            } else {
                Kind::CoreModule
            }
        } else if bytes.starts_with(b"\x7fELF") {
            Kind::Elf
        } else if bytes.starts_with(b"#!") {
            Kind::Script
        } else {
            match skip_text_trivia(bytes) {
                rest if rest.starts_with(b"(component") => Kind::Component,
                rest if rest.starts_with(b"(") => Kind::Wat,
                _ => Kind::Other,
            }
        }
    }

    /// Whether a file of this kind is meant for the Wasm engine, though perhaps not one that this engine runs.
    pub fn is_wasm(self) -> bool {
        matches!(self, Kind::CoreModule | Kind::Component | Kind::Wat)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::CoreModule => "core module",
            Kind::Component => "component",
            Kind::Wat => "module in text format",
            Kind::Elf => "native executable (ELF)",
            Kind::Script => "script",
            Kind::Empty => "empty file",
            Kind::Other => "unknown file",
        })
    }
}

/// `text` without leading white space and comments (`;; line`, `(; block ;)`, which nests).
fn skip_text_trivia(mut text: &[u8]) -> &[u8] {
    loop {
        text = text.trim_ascii_start();
        if text.starts_with(b";;") {
            let end = text
                .iter()
                .position(|&byte| byte == b'\n')
                .unwrap_or(text.len());
            text = &text[end..];
        } else if text.starts_with(b"(;") {
            text = skip_block_comment(text);
        } else {
            return text;
        }
    }
}

fn skip_block_comment(text: &[u8]) -> &[u8] {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let step = match &text[at..] {
            [b'(', b';', ..] => {
                depth += 1;
                2
            }
            [b';', b')', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    &text[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_follows_from_the_leading_bytes() {
        for (bytes, kind) in [
            (&b""[..], Kind::Empty),
            (b"\0asm\x01\0\0\0", Kind::CoreModule),
            (b"\0asm", Kind::CoreModule),
            (b"\0asm\x0d\0\x01\0", Kind::Component),
            (b"\0as", Kind::Other),
            (b"\x7fELF\x02", Kind::Elf),
            (b"#!/bin/sh\n", Kind::Script),
            (b"(module)", Kind::Wat),
            (b" \n;; hello\n(; a (; nested ;) ;)\t(module)", Kind::Wat),
            (b"(component)", Kind::Component),
            (b"(; never closed", Kind::Other),
            (b";; only a comment", Kind::Other),
            (b"hello", Kind::Other),
        ] {
            assert_eq!(
                Kind::sniff(bytes),
                kind,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
