//! Registering a pod's scope with systemd, where that is the cgroup driver.
//!
//! systemd leaves directories alone that it does not know, but takes the controllers away from a slice in which it knows
//! no unit that needs them, and with them the limits of everything inside. One delegated scope for each pod, its
//! sandbox's, keeps them. The containers need none of their own.
//!
//! One method call on systemd's own socket (no bus daemon in between), written by hand: the libraries for D-Bus bring an
//! executor or 38 crates into the process of every pod.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use slipway_spec::CgroupPath;

use crate::{Error, fail, weight};

/// Where systemd takes calls of root without a bus (systemd.directives; sd_bus_open_system_machine(3) and systemctl use it).
const SOCKET: &str = "/run/systemd/private";
/// systemd answers in a millisecond; it may be busy with others.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any answer to this call.
const MAX_ANSWER: usize = 1 << 16;

/// Message types of the D-Bus specification.
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
/// Header fields of the D-Bus specification.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Name of the unit that a spec's path means: `prefix-name.scope`.
pub(crate) fn unit(prefix: &str, name: &str) -> String {
    match prefix.is_empty() {
        true => format!("{name}.scope"),
        false => format!("{prefix}-{name}.scope"),
    }
}

/// systemd's socket; `None` where there is no systemd.
fn connect() -> Result<Option<UnixStream>, Error> {
    match UnixStream::connect(SOCKET) {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fail(Path::new(SOCKET), "connect to systemd")(e)),
    }
}

/// A scope that systemd has been asked for.
#[must_use = "systemd's answer says whether it took the scope"]
#[derive(Debug)]
pub struct Registration {
    socket: UnixStream,
    unit: String,
}

impl Registration {
    /// Asks systemd to take the cgroup as a scope, with this process of it and these cpu.shares. `None` where there is
    /// nobody to ask: another driver's cgroup, or no systemd.
    ///
    /// # Errors
    /// systemd's socket cannot be used.
    pub fn begin(
        cgroup: &CgroupPath,
        pid: i32,
        shares: Option<u64>,
    ) -> Result<Option<Self>, Error> {
        let CgroupPath::Systemd {
            slice,
            prefix,
            name,
        } = cgroup
        else {
            return Ok(None);
        };
        let unit = unit(prefix, name);
        let slice = match slice.as_str() {
            "" => "-.slice",
            slice => slice,
        };
        let call = start_transient_unit(&unit, slice, pid, shares.map(weight));
        match connect()? {
            Some(socket) => Self::ask(socket, unit, &call).map(Some),
            None => Ok(None),
        }
    }

    /// Tells systemd that the cgroup is gone. It may not have seen it: it would make it anew when it is reloaded.
    pub fn end(cgroup: &CgroupPath) {
        let CgroupPath::Systemd { prefix, name, .. } = cgroup else {
            return;
        };
        let unit = unit(prefix, name);
        let call = stop_unit(&unit);
        // A unit that it does not know any more is what is wanted.
        if let Ok(Some(socket)) = connect() {
            let _ = Self::ask(socket, unit, &call).and_then(Self::finish);
        }
    }

    fn ask(mut socket: UnixStream, unit: String, call: &[u8]) -> Result<Self, Error> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        // All at once: the answers to the handshake and to the call come one after the other.
        let mut bytes = format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes();
        bytes.extend(call);
        socket
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| socket.write_all(&bytes))
            .map_err(fail(Path::new(&unit), "register with systemd"))?;
        Ok(Self { socket, unit })
    }

    /// Waits for systemd's answer.
    ///
    /// # Errors
    /// systemd's own words, or that it did not answer.
    pub fn finish(mut self) -> Result<(), Error> {
        let failed = |source| fail(Path::new(&self.unit), "register with systemd")(source);
        let answer = read_line(&mut self.socket).map_err(failed)?;
        if !answer.starts_with("OK ") {
            return Err(failed(io::Error::other(format!("it said {answer:?}"))));
        }
        loop {
            let message = Message::read(&mut self.socket).map_err(failed)?;
            match message.kind {
                METHOD_RETURN => return Ok(()),
                ERROR => return Err(failed(io::Error::other(message.text()))),
                // Signals go to everybody.
                _ => {}
            }
        }
    }
}

/// The call `StartTransientUnit(name, mode, properties, aux)` of org.freedesktop.systemd1(5).
fn start_transient_unit(unit: &str, slice: &str, pid: i32, weight: Option<u64>) -> Vec<u8> {
    let mut body = Encoder::default();
    body.string(unit);
    body.string("replace");
    body.array(8, |properties| {
        let text = |value: &str| {
            let value = value.to_string();
            move |e: &mut Encoder| e.string(&value)
        };
        let yes = |e: &mut Encoder| e.u32(1);
        let no = |e: &mut Encoder| e.u32(0);
        let description = format!("Slipway pod {unit}");
        properties.property("Description", "s", text(&description));
        properties.property("Slice", "s", text(slice));
        properties.property("PIDs", "au", |e| {
            e.array(4, |pids| pids.u32(pid.unsigned_abs()))
        });
        properties.property("Delegate", "b", yes);
        properties.property("DefaultDependencies", "b", no);
        properties.property("CollectMode", "s", text("inactive-or-failed"));
        // Else systemd's own default limit would replace none.
        properties.property("TasksMax", "t", |e| e.u64(u64::MAX));
        if let Some(weight) = weight {
            properties.property("CPUWeight", "t", |e| e.u64(weight));
        }
    });
    body.array(8, |_| {});
    manager_call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
}

/// The call `StopUnit(name, mode)`.
fn stop_unit(unit: &str) -> Vec<u8> {
    let mut body = Encoder::default();
    body.string(unit);
    body.string("replace");
    manager_call("StopUnit", "ss", body)
}

/// A call of systemd's manager.
fn manager_call(method: &str, signature: &str, body: Encoder) -> Vec<u8> {
    let body = body.0;
    let mut message = Encoder::default();
    // Little endian, a method call without flags, version 1 of the protocol, the first message.
    message.0.extend([b'l', METHOD_CALL, 0, 1]);
    message.u32(body.len() as u32);
    message.u32(1);
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
        field(PATH, "o", "/org/freedesktop/systemd1");
        field(INTERFACE, "s", "org.freedesktop.systemd1.Manager");
        field(MEMBER, "s", method);
        field(DESTINATION, "s", "org.freedesktop.systemd1");
        field(SIGNATURE, "g", signature);
    });
    message.align(8);
    message.0.extend(body);
    message.0
}

/// D-Bus' wire format, little endian.
#[derive(Default)]
struct Encoder(Vec<u8>);

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

    fn string(&mut self, s: &str) {
        self.u32(s.len() as u32);
        self.0.extend(s.bytes().chain([0]));
    }

    fn signature(&mut self, s: &str) {
        self.0.push(s.len() as u8);
        self.0.extend(s.bytes().chain([0]));
    }

    /// Elements of this alignment. The length is without the gap before the first.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.align(alignment);
        let start = self.0.len();
        elements(self);
        let bytes = (self.0.len() - start) as u32;
        self.0[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    /// A structure of a name and a variant.
    fn property(&mut self, name: &str, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.string(name);
        self.signature(signature);
        value(self);
    }
}

/// A message as far as an answer to one call needs it.
struct Message {
    kind: u8,
    body: Vec<u8>,
}

impl Message {
    fn read(from: &mut impl Read) -> io::Result<Self> {
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
    fn text(&self) -> String {
        let text = self.body.get(4..self.body.len().saturating_sub(1));
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }
}

/// A line of the handshake, without its end.
fn read_line(from: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < MAX_ANSWER {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers like systemd, and returns what it was sent.
    fn answered(kind: u8, body: &[u8]) -> (Result<(), Error>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let asked = Registration::ask(ours, "a-b.scope".into(), &stop_unit("a-b.scope")).unwrap();
        theirs.write_all(b"OK 0123\r\n").unwrap();
        for (kind, body) in [(4, &b"a signal"[..]), (kind, body)] {
            let mut message = vec![b'l', kind, 0, 1];
            message.extend((body.len() as u32).to_le_bytes());
            message.extend([7, 0, 0, 0]);
            // One header field of 8 bytes: REPLY_SERIAL 1.
            message.extend([8, 0, 0, 0, 5, 1, b'u', 0, 1, 0, 0, 0]);
            message.extend(body);
            theirs.write_all(&message).unwrap();
        }
        let result = asked.finish();
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).unwrap();
        (result, sent)
    }

    #[test]
    fn systemds_answer_decides() {
        assert!(answered(METHOD_RETURN, b"").0.is_ok());
        let error = answered(ERROR, b"\x08\0\0\0No, thus\0")
            .0
            .unwrap_err()
            .to_string();
        assert_eq!(error, "cgroup a-b.scope: register with systemd: No, thus");
    }

    #[test]
    fn a_silent_or_strange_systemd_is_an_error() {
        for said in [
            &b""[..],
            b"REJECTED\r\n",
            b"OK\r\n",
            b"OK 1\r\nGET / HTTP/1.1\r\n\r\n  ",
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let asked = Registration::ask(ours, "u".into(), &stop_unit("u")).unwrap();
            theirs.write_all(said).unwrap();
            drop(theirs);
            assert!(asked.finish().is_err(), "{said:?}");
        }
    }

    #[test]
    fn the_call_is_aligned_as_dbus_demands() {
        let call = start_transient_unit("a-b.scope", "x.slice", 42, Some(1));
        let body = u32::from_le_bytes(call[4..8].try_into().unwrap()) as usize;
        let fields = u32::from_le_bytes(call[12..16].try_into().unwrap()) as usize;
        assert_eq!(call.len(), (16 + fields).next_multiple_of(8) + body);
        // The body ends with an empty array of structures.
        assert_eq!(&call[call.len() - 4..], [0; 4]);
    }
}
