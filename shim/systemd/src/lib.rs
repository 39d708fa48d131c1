//! A client of systemd's private socket: the few calls of org.freedesktop.systemd1(5) that Slipway makes.
//!
//! No bus daemon is in between, and the wire format is written by hand: the libraries for D-Bus bring an executor or 38
//! crates into the process of every pod. What systemd answers is read with bounds; what is not D-Bus is an error.

mod wire;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use wire::{Encoder, Message};

/// Where systemd takes calls of root without a bus (systemctl uses it).
pub const SOCKET: &str = "/run/systemd/private";
/// systemd answers in a millisecond; it may be busy with others.
const PATIENCE: Duration = Duration::from_secs(10);
/// What systemd reads at once of a handshake. Of a call that has come whole with it, it would take notice only when more
/// comes.
const HANDSHAKE_BUFFER: usize = 256;
/// How often a unit is looked at that is waited for.
const INTERVAL: Duration = Duration::from_millis(50);

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// A method call.
#[derive(Debug)]
pub struct Call {
    path: String,
    interface: &'static str,
    member: &'static str,
    signature: &'static str,
    body: Vec<u8>,
}

/// A property of a transient unit, systemd.directives(7).
#[derive(Debug, Clone)]
pub enum Property<'a> {
    /// Text.
    Text(&'static str, &'a str),
    /// A switch.
    Bool(&'static str, bool),
    /// A number of 64 bits.
    Number(&'static str, u64),
    /// The processes of a scope.
    Pids(&'static str, &'a [u32]),
    /// The command of a service: the first word is the program's path.
    Command(&'static str, &'a [String]),
}

impl Call {
    fn manager(member: &'static str, signature: &'static str, body: Encoder) -> Self {
        Self {
            path: "/org/freedesktop/systemd1".into(),
            interface: MANAGER,
            member,
            signature,
            body: body.into(),
        }
    }

    /// `StartTransientUnit`: makes a unit of this name and starts it.
    pub fn start_transient_unit(unit: &str, properties: &[Property]) -> Self {
        let mut body = Encoder::default();
        body.string(unit);
        body.string("replace");
        body.array(8, |e| properties.iter().for_each(|p| e.property(p)));
        body.array(8, |_| {});
        Self::manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    }

    /// `StopUnit`.
    pub fn stop_unit(unit: &str) -> Self {
        Self::unit_and_mode("StopUnit", unit)
    }

    /// `RestartUnit`.
    pub fn restart_unit(unit: &str) -> Self {
        Self::unit_and_mode("RestartUnit", unit)
    }

    /// `ResetFailedUnit`: forgets that it failed.
    pub fn reset_failed_unit(unit: &str) -> Self {
        let mut body = Encoder::default();
        body.string(unit);
        Self::manager("ResetFailedUnit", "s", body)
    }

    fn unit_and_mode(member: &'static str, unit: &str) -> Self {
        let mut body = Encoder::default();
        body.string(unit);
        body.string("replace");
        Self::manager(member, "ss", body)
    }

    fn property(unit: &str, interface: &str, name: &str) -> Self {
        let mut body = Encoder::default();
        body.string(interface);
        body.string(name);
        Self {
            path: object_path(unit),
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            signature: "ss",
            body: body.into(),
        }
    }
}

/// The D-Bus object of a unit: all but letters and digits is escaped.
fn object_path(unit: &str) -> String {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (i, byte) in unit.bytes().enumerate() {
        match byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit()) {
            true => path.push(byte.into()),
            false => path.push_str(&format!("_{byte:02x}")),
        }
    }
    path
}

/// What a unit is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `ActiveState`: active, activating, deactivating, failed, inactive.
    pub active: String,
    /// `SubState`: of a service, exited, running, failed and others.
    pub sub: String,
    /// Something is still to be done with it.
    pub busy: bool,
}

/// A connection to systemd.
#[derive(Debug)]
pub struct Systemd {
    socket: UnixStream,
    /// Number of the last call.
    serial: u32,
    /// systemd has answered the handshake.
    greeted: bool,
}

impl Systemd {
    /// Connects to systemd; `None` where there is none.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn connect() -> io::Result<Option<Self>> {
        Self::connect_to(Path::new(SOCKET))
    }

    /// Connects to a systemd whose private socket is at this path.
    ///
    /// # Errors
    /// As [`Systemd::connect`].
    pub fn connect_to(path: &Path) -> io::Result<Option<Self>> {
        match UnixStream::connect(path) {
            Ok(socket) => Self::over(socket).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Speaks over a socket that is connected.
    ///
    /// # Errors
    /// It takes no deadline.
    pub fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            serial: 0,
            greeted: false,
        })
    }

    /// Sends a call. Where that is safe, the first goes with the handshake: the answers come one after the other.
    ///
    /// # Errors
    /// The connection is broken, or systemd does not answer the handshake.
    pub fn send(&mut self, call: &Call) -> io::Result<()> {
        let first = self.serial == 0;
        self.serial += 1;
        let message = wire::encode(call, self.serial);
        if !first {
            return self.socket.write_all(&message);
        }
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        let mut bytes = format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes();
        if bytes.len() + message.len() <= HANDSHAKE_BUFFER {
            self.socket.write_all(&bytes)?;
            self.greet()?;
            return self.socket.write_all(&message);
        }
        bytes.extend(message);
        self.socket.write_all(&bytes)
    }

    /// Reads the answer to the handshake.
    fn greet(&mut self) -> io::Result<()> {
        let answer = wire::read_line(&mut self.socket)?;
        if !answer.starts_with("OK ") {
            return Err(io::Error::other(format!("it said {answer:?}")));
        }
        self.greeted = true;
        Ok(())
    }

    /// Waits for the answer to the call that was sent last; its body.
    ///
    /// # Errors
    /// systemd's own words, or that it did not answer.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        if !self.greeted {
            self.greet()?;
        }
        loop {
            let message = Message::read(&mut self.socket)?;
            match message.kind {
                wire::METHOD_RETURN => return Ok(message.body),
                wire::ERROR => return Err(io::Error::other(message.text())),
                // Signals go to everybody.
                _ => {}
            }
        }
    }

    /// Sends a call and waits for the answer.
    ///
    /// # Errors
    /// As [`Systemd::send`] and [`Systemd::receive`].
    pub fn call(&mut self, call: &Call) -> io::Result<Vec<u8>> {
        self.send(call)?;
        self.receive()
    }

    fn text(&mut self, unit: &str, interface: &str, name: &str) -> io::Result<String> {
        wire::text(&self.call(&Call::property(unit, interface, name))?)
    }

    fn number(&mut self, unit: &str, interface: &str, name: &str) -> io::Result<u32> {
        wire::number(&self.call(&Call::property(unit, interface, name))?)
    }

    /// What a unit is doing; one that systemd does not know is inactive.
    ///
    /// # Errors
    /// As [`Systemd::call`].
    pub fn state(&mut self, unit: &str) -> io::Result<State> {
        Ok(State {
            // First: what comes after it is then at least as new.
            busy: self.number(unit, UNIT, "Job")? != 0,
            active: self.text(unit, UNIT, "ActiveState")?,
            sub: self.text(unit, UNIT, "SubState")?,
        })
    }

    /// What a service's main process ended with.
    ///
    /// # Errors
    /// As [`Systemd::call`].
    pub fn exit_status(&mut self, unit: &str) -> io::Result<u32> {
        self.number(unit, SERVICE, "ExecMainStatus")
    }

    /// The pid of a service's main process, 0 without.
    ///
    /// # Errors
    /// As [`Systemd::call`].
    pub fn main_pid(&mut self, unit: &str) -> io::Result<u32> {
        self.number(unit, SERVICE, "MainPID")
    }

    /// Restarts a unit and waits until that is done.
    ///
    /// # Errors
    /// systemd refuses, the unit does not become active, or it takes longer than `patience`.
    pub fn restart(&mut self, unit: &str, patience: Duration) -> io::Result<()> {
        // What failed just now counts against the limit of starts, which would be the end of this one.
        let _ = self.call(&Call::reset_failed_unit(unit));
        self.call(&Call::restart_unit(unit))?;
        let started = Instant::now();
        loop {
            let state = self.state(unit)?;
            match (state.busy, state.active.as_str()) {
                (false, "active") => return Ok(()),
                (false, "failed" | "inactive") => {
                    return Err(io::Error::other(format!("{unit} is {}", state.active)));
                }
                // systemd would go on trying.
                _ if state.sub == "auto-restart" => {
                    return Err(io::Error::other(format!("{unit} does not start")));
                }
                _ if started.elapsed() > patience => {
                    let text = format!(
                        "{unit} is still {} after {} s",
                        state.active,
                        patience.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                _ => std::thread::sleep(INTERVAL),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Answers as told, and returns the result of a call and what was sent.
    fn answered(said: &[u8], unit: &str) -> (io::Result<Vec<u8>>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut systemd = Systemd::over(ours).unwrap();
        let result = systemd.call(&Call::stop_unit(unit));
        let mut sent = vec![0; 1024];
        let length = theirs.read(&mut sent).unwrap();
        sent.truncate(length);
        (result, sent)
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'l', kind, 0, 1];
        message.extend((body.len() as u32).to_le_bytes());
        message.extend([7, 0, 0, 0]);
        // One header field of 8 bytes: REPLY_SERIAL 1.
        message.extend([8, 0, 0, 0, 5, 1, b'u', 0, 1, 0, 0, 0]);
        message.extend(body);
        message
    }

    fn said(kind: u8, body: &[u8]) -> Vec<u8> {
        [
            b"OK 0123\r\n".to_vec(),
            message(4, b"a signal"),
            message(kind, body),
        ]
        .concat()
    }

    #[test]
    fn systemds_answer_decides() {
        for unit in ["a-b.scope", &"long".repeat(64)] {
            let (result, sent) = answered(&said(wire::METHOD_RETURN, b"body"), unit);
            assert_eq!(result.unwrap(), b"body");
            assert!(sent.starts_with(b"\0AUTH EXTERNAL "));
            let error = answered(&said(wire::ERROR, b"\x08\0\0\0No, thus\0"), unit).0;
            assert_eq!(error.unwrap_err().to_string(), "No, thus");
        }
    }

    #[test]
    fn a_short_call_waits_for_the_handshake() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let asked = std::thread::spawn(move || {
            let mut systemd = Systemd::over(ours).unwrap();
            systemd.call(&Call::stop_unit("a"))
        });
        let handshake =
            wire::read_line(&mut theirs).unwrap() + &wire::read_line(&mut theirs).unwrap();
        assert!(handshake.ends_with("BEGIN"), "{handshake:?}");
        theirs.set_nonblocking(true).unwrap();
        let error = theirs.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(&said(wire::METHOD_RETURN, b"")).unwrap();
        assert!(asked.join().unwrap().is_ok());
    }

    #[test]
    fn a_silent_or_strange_systemd_is_an_error() {
        for said in [
            &b""[..],
            b"REJECTED\r\n",
            b"OK\r\n",
            b"OK 1\r\nGET / HTTP/1.1\r\n\r\n  ",
            b"OK 1\r\nl\x02\0\x01\xff\xff\xff\xff\x01\0\0\0\0\0\0\0",
        ] {
            for unit in ["a-b.scope", &"long".repeat(64)] {
                assert!(answered(said, unit).0.is_err(), "{said:?}");
            }
        }
    }

    #[test]
    fn units_are_objects_with_escaped_names() {
        assert_eq!(
            object_path("slipway-install.service"),
            "/org/freedesktop/systemd1/unit/slipway_2dinstall_2eservice"
        );
        assert_eq!(object_path("0a"), "/org/freedesktop/systemd1/unit/_30a");
    }
}
