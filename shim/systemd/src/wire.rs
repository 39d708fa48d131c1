//! D-Bus' wire format, little endian.

use std::io::{self, Read};

use crate::{Call, Property};

/// More than any answer to these calls.
const MAX_ANSWER: usize = 1 << 16;

/// Message types of the D-Bus specification.
const METHOD_CALL: u8 = 1;
pub const METHOD_RETURN: u8 = 2;
pub const ERROR: u8 = 3;
/// Header fields of the D-Bus specification.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// The message of a call.
pub fn encode(call: &Call, serial: u32) -> Vec<u8> {
    let mut message = Encoder::default();
    // Little endian, a method call without flags, version 1 of the protocol.
    message.0.extend([b'l', METHOD_CALL, 0, 1]);
    message.u32(call.body.len() as u32);
    message.u32(serial);
    message.array(8, |fields| {
        let mut field = |code, signature, value: &str| {
            fields.align(8);
            fields.0.push(code);
            fields.signature(signature);
            match signature {
                "g" => fields.signature(value),
                _ => fields.string(value),
            }
        };
        field(PATH, "o", &call.path);
        field(INTERFACE, "s", call.interface);
        field(MEMBER, "s", call.member);
        field(DESTINATION, "s", "org.freedesktop.systemd1");
        field(SIGNATURE, "g", call.signature);
    });
    message.align(8);
    message.0.extend(&call.body);
    message.0
}

#[derive(Default)]
pub struct Encoder(Vec<u8>);

impl From<Encoder> for Vec<u8> {
    fn from(encoder: Encoder) -> Self {
        encoder.0
    }
}

impl Encoder {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, n: u32) {
        self.align(4);
        self.0.extend(n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.align(8);
        self.0.extend(n.to_le_bytes());
    }

    pub fn string(&mut self, s: &str) {
        self.u32(s.len() as u32);
        self.0.extend(s.bytes().chain([0]));
    }

    fn signature(&mut self, s: &str) {
        self.0.push(s.len() as u8);
        self.0.extend(s.bytes().chain([0]));
    }

    /// Elements of this alignment. The length is without the gap before the first.
    pub fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        elements(self);
        let bytes = (self.0.len() - start) as u32;
        self.0[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    /// A structure of a name and a variant.
    pub fn property(&mut self, property: &Property) {
        self.align(8);
        let mut head = |name: &str, signature: &str| {
            self.string(name);
            self.signature(signature);
        };
        match property {
            Property::Text(name, value) => {
                head(name, "s");
                self.string(value);
            }
            Property::Bool(name, value) => {
                head(name, "b");
                self.u32(u32::from(*value));
            }
            Property::Number(name, value) => {
                head(name, "t");
                self.u64(*value);
            }
            Property::Pids(name, pids) => {
                head(name, "au");
                self.array(4, |e| pids.iter().for_each(|pid| e.u32(*pid)));
            }
            Property::Command(name, command) => {
                head(name, "a(sasb)");
                self.array(8, |e| {
                    e.align(8);
                    e.string(command.first().map_or("", String::as_str));
                    e.array(4, |e| command.iter().for_each(|word| e.string(word)));
                    // Its failure is the unit's.
                    e.u32(0);
                });
            }
        }
    }
}

/// A message as far as an answer to one call needs it.
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Message {
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 16];
        from.read_exact(&mut head)?;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (body, fields) = (word(4) as usize, word(12) as usize);
        if head[0] != b'l' || body > MAX_ANSWER || fields > MAX_ANSWER {
            return Err(io::Error::other("the answer is not one of D-Bus"));
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        from.read_exact(&mut rest)?;
        Ok(Self {
            kind: head[1],
            body: rest.split_off(fields.next_multiple_of(8)),
        })
    }

    /// The first string of the body: an error's text.
    pub fn text(&self) -> String {
        let text = self.body.get(4..self.body.len().saturating_sub(1));
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }
}

/// A line of the handshake, without its end.
pub fn read_line(from: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < MAX_ANSWER {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_string())
}

/// A body that is a variant of a string.
pub fn text(body: &[u8]) -> io::Result<String> {
    let (signature, at) = variant(body)?;
    let length = word(body, at.next_multiple_of(4))? as usize;
    let start = at.next_multiple_of(4) + 4;
    match (signature, body.get(start..start.saturating_add(length))) {
        (b"s", Some(text)) => Ok(String::from_utf8_lossy(text).into_owned()),
        _ => Err(strange()),
    }
}

/// A body that is a variant of a number of 32 bits, or of a structure that begins with one.
pub fn number(body: &[u8]) -> io::Result<u32> {
    match variant(body)? {
        (b"u" | b"i", at) => word(body, at.next_multiple_of(4)),
        (b"(uo)", at) => word(body, at.next_multiple_of(8)),
        _ => Err(strange()),
    }
}

/// A variant's signature, and where its value begins, but for the alignment.
fn variant(body: &[u8]) -> io::Result<(&[u8], usize)> {
    let length = usize::from(*body.first().ok_or_else(strange)?);
    let signature = body.get(1..1 + length).ok_or_else(strange)?;
    Ok((signature, length + 2))
}

fn word(body: &[u8], at: usize) -> io::Result<u32> {
    let bytes = body.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or_else(strange)
}

fn strange() -> io::Error {
    io::Error::other("the answer is not of the type that this property has")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_is_aligned_as_dbus_demands() {
        let command = ["/bin/true".to_string(), "x".to_string()];
        let properties = [
            Property::Text("Slice", "x.slice"),
            Property::Pids("PIDs", &[42]),
            Property::Bool("Delegate", true),
            Property::Number("CPUWeight", 1),
            Property::Command("ExecStart", &command),
        ];
        let call = encode(&Call::start_transient_unit("a-b.scope", &properties), 1);
        let body = u32::from_le_bytes(call[4..8].try_into().unwrap()) as usize;
        let fields = u32::from_le_bytes(call[12..16].try_into().unwrap()) as usize;
        assert_eq!(call.len(), (16 + fields).next_multiple_of(8) + body);
        // The body ends with an empty array of structures.
        assert_eq!(&call[call.len() - 4..], [0; 4]);
    }

    #[test]
    fn properties_are_read_with_their_types() {
        assert_eq!(text(b"\x01s\0\0\x06\0\0\0active\0").unwrap(), "active");
        assert_eq!(number(b"\x01u\0\0\x07\0\0\0").unwrap(), 7);
        assert_eq!(number(b"\x04(uo)\0\0\0\x07\0\0\0\x01\0\0\0/\0").unwrap(), 7);
    }

    #[test]
    fn a_property_of_another_type_or_cut_short_is_an_error() {
        let bodies: [&[u8]; 6] = [
            b"",
            b"\x01",
            b"\xffs",
            b"\x01s\0\0\xff\xff\xff\xffa",
            b"\x01u\0",
            b"\x02as\0",
        ];
        for body in bodies {
            assert!(text(body).is_err(), "{body:?}");
            assert!(number(body).is_err(), "{body:?}");
        }
    }
}
