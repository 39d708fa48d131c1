//! A TCP server in one thread, for modules that run under WasmEdge: one `poll_oneoff` waits for the
//! listener and all connections, so an idle keep-alive connection never blocks another client.
//!
//! A connection either reads or has a reply to write, never both: a client that does not read its
//! replies is not read from, and memory stays bounded.

use std::env;
use std::io::{self, ErrorKind, Read, Write};

use wasmedge_wasi_socket::poll::{EventType, Subscription, poll};
use wasmedge_wasi_socket::{TcpListener, TcpStream};

/// Connections held at a time; further clients wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Bytes taken from a connection by one read.
const READ_SIZE: usize = 16 * 1024;
const DEFAULT_PORT: u16 = 8080;
const LISTENER: u64 = u64::MAX;

/// What happens to a connection once its reply is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait for more from the client.
    KeepOpen,
    /// Close it.
    Close,
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    reply: Vec<u8>,
    next: Next,
}

/// Serves TCP on the port that the environment variable `PORT` names (8080 without it), on all IPv4
/// addresses.
///
/// `answer` is called whenever bytes came in, with all that is received and not yet consumed; it
/// removes what it consumes and appends its answer to the second buffer.
///
/// Returns when the listener has been shut down, as a draining stop does it, and all that had begun is answered.
///
/// # Errors
/// `PORT` is not a port number, or the listener cannot be opened or polled.
pub fn serve(answer: impl Fn(&mut Vec<u8>, &mut Vec<u8>) -> Next) -> io::Result<()> {
    let port = port()?;
    let mut listener = Some(TcpListener::bind(("0.0.0.0", port), true)?);
    println!("listening on port {port}");
    let mut connections: Vec<Connection> = Vec::new();
    while listener.is_some() || !connections.is_empty() {
        for event in poll(&subscriptions(listener.as_ref(), &connections))? {
            if event.userdata == LISTENER {
                match listener.as_ref().map(|l| l.accept(true)) {
                    None => {}
                    Some(Ok((stream, _))) => connections.push(Connection::new(stream)),
                    // Said of a socket that does not listen any more.
                    Some(Err(error)) if error.kind() == ErrorKind::InvalidInput => listener = None,
                    // The client may be gone again before it is accepted.
                    Some(Err(error)) => eprintln!("accept: {error}"),
                }
            } else if let Some(connection) = connections.get_mut(event.userdata as usize) {
                connection.advance(&event.event_type, &answer);
            }
        }
        connections.retain(|c| !c.is_done() && (listener.is_some() || !c.is_idle()));
    }
    Ok(())
}

fn port() -> io::Result<u16> {
    match env::var("PORT") {
        Ok(text) => text.parse().map_err(|error| {
            let message = format!("PORT is '{text}', not a port number: {error}");
            io::Error::new(ErrorKind::InvalidInput, message)
        }),
        Err(_) => Ok(DEFAULT_PORT),
    }
}

/// Events of a connection carry its index, which holds until the round's end.
fn subscriptions(listener: Option<&TcpListener>, connections: &[Connection]) -> Vec<Subscription> {
    let mut all = Vec::with_capacity(connections.len() + 1);
    if let Some(listener) = listener.filter(|_| connections.len() < MAX_CONNECTIONS) {
        all.push(Subscription::io(LISTENER, listener, true, false, None));
    }
    for (index, connection) in connections.iter().enumerate() {
        let writing = !connection.reply.is_empty();
        let stream = &connection.stream;
        all.push(Subscription::io(
            index as u64,
            stream,
            !writing,
            writing,
            None,
        ));
    }
    all
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            reply: Vec::new(),
            next: Next::KeepOpen,
        }
    }

    fn is_done(&self) -> bool {
        self.next == Next::Close && self.reply.is_empty()
    }

    /// Nothing has come of a request, and nothing is left of a reply.
    fn is_idle(&self) -> bool {
        self.received.is_empty() && self.reply.is_empty()
    }

    /// Takes one step; a connection that fails is closed, its peer is gone.
    fn advance(&mut self, event: &EventType, answer: impl Fn(&mut Vec<u8>, &mut Vec<u8>) -> Next) {
        let step = match event {
            EventType::Read => self.read(answer),
            EventType::Write => self.write(),
            EventType::Error(_) | EventType::Timeout => Err(ErrorKind::NotConnected.into()),
        };
        match step {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                self.reply.clear();
                self.next = Next::Close;
            }
            _ => {}
        }
    }

    fn read(&mut self, answer: impl Fn(&mut Vec<u8>, &mut Vec<u8>) -> Next) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        let count = self.stream.read(&mut buffer)?;
        if count == 0 {
            self.next = Next::Close;
            return Ok(());
        }
        self.received.extend_from_slice(&buffer[..count]);
        self.next = answer(&mut self.received, &mut self.reply);
        // Nearly always the socket takes the reply at once: no round through poll.
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.reply.is_empty() {
            let count = self.stream.write(&self.reply)?;
            self.reply.drain(..count);
        }
        Ok(())
    }
}
