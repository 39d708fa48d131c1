//! A TCP echo server for any number of clients on any number of addresses: one poll for all of them. When nothing listens any
//! more, it serves those that are there, and ends.

use std::io::{self, ErrorKind, Read, Write};

use wasmedge_wasi_socket::poll::{EventType, Subscription, poll};
use wasmedge_wasi_socket::{TcpListener, TcpStream};

use crate::{Outcome, raw};

struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
    /// The client has said all it has to say; what is pending is still sent.
    ended: bool,
}

pub fn serve(addresses: &[&str]) -> Outcome {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(*address, true)?;
        println!("listening on {}", raw::local(&listener)?);
        listeners.push(listener);
    }
    let mut connections: Vec<Connection> = Vec::new();
    let mut most = 0;
    while !(listeners.is_empty() && connections.is_empty()) {
        let listening = listeners.iter().enumerate();
        let mut subscriptions: Vec<Subscription> = listening
            .map(|(index, listener)| Subscription::io(index as u64, listener, true, false, None))
            .collect();
        subscriptions.extend(connections.iter().enumerate().map(|(index, connection)| {
            let writing = !connection.pending.is_empty();
            let index = (listeners.len() + index) as u64;
            Subscription::io(index, &connection.stream, !writing, writing, None)
        }));
        let mut accepted = Vec::new();
        let mut closed = Vec::new();
        let mut gone = Vec::new();
        for event in poll(&subscriptions)? {
            let index = event.userdata as usize;
            if let Some(listener) = listeners.get(index) {
                if !accept_all(listener, &mut accepted) {
                    closed.push(index);
                }
                continue;
            }
            let index = index - listeners.len();
            if let Err(error) = connections[index].advance(&event.event_type) {
                println!("connection ended: {error}");
                connections[index].ended = true;
                connections[index].pending.clear();
            }
            if connections[index].ended && connections[index].pending.is_empty() {
                gone.push(index);
            }
        }
        // From the end, so that the others keep their place.
        closed.sort_unstable();
        closed.dedup();
        for index in closed.into_iter().rev() {
            listeners.swap_remove(index);
        }
        gone.sort_unstable();
        gone.dedup();
        for index in gone.into_iter().rev() {
            connections.swap_remove(index);
        }
        connections.append(&mut accepted);
        if connections.len() / 100 > most / 100 {
            println!("{} clients", connections.len() / 100 * 100);
        }
        most = most.max(connections.len());
    }
    Ok(())
}

/// Non-blocking: the last call says that nobody waits any more. False when the listener is none any more, as that of a server
/// that is drained.
fn accept_all(listener: &TcpListener, accepted: &mut Vec<Connection>) -> bool {
    loop {
        match listener.accept(true) {
            Ok((stream, _)) => accepted.push(Connection {
                stream,
                pending: Vec::new(),
                ended: false,
            }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == ErrorKind::InvalidInput => return false,
            // It has reset its connection before it was accepted.
            Err(error) => println!("no client: {error}"),
        }
    }
}

impl Connection {
    fn advance(&mut self, event: &EventType) -> io::Result<()> {
        match event {
            EventType::Read => self.read(),
            EventType::Write => self.write(),
            EventType::Error(error) => Err(error.kind().into()),
            EventType::Timeout => Ok(()),
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.stream.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
