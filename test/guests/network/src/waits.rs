//! Waits that end without what was waited for, and what a listener's address is afterwards.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

use wasmedge_wasi_socket::poll::{EventType, Subscription, poll};
use wasmedge_wasi_socket::socket::{
    AddressFamily, Socket, SocketOptLevel, SocketOptName, SocketType,
};
use wasmedge_wasi_socket::{Shutdown, TcpListener, TcpStream};

use crate::{Outcome, raw};

/// Far longer than anything takes that does not wait, on a busy machine too.
const WAIT: Duration = Duration::from_secs(3);
/// A wait that is woken more often than this is none.
const MOST_ROUNDS: u32 = 1000;

fn stream_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(AddressFamily::from(&address), SocketType::Stream)
}

/// Polls one descriptor until it is ready or the time is over; says in how many rounds.
fn wait(socket: &impl AsRawFd, reading: bool) -> io::Result<(String, u32)> {
    let deadline = SystemTime::now() + WAIT;
    for round in 1..=MOST_ROUNDS {
        let subscriptions = [
            Subscription::io(0, socket, reading, !reading, None),
            Subscription::timeout(1, deadline),
        ];
        if let Some(event) = poll(&subscriptions)?.into_iter().next() {
            let what = match event.event_type {
                EventType::Timeout => "time is over".to_string(),
                EventType::Error(error) => format!("error: {error}"),
                EventType::Read | EventType::Write => "ready".to_string(),
            };
            return Ok((what, round));
        }
    }
    Ok(("neither".to_string(), MOST_ROUNDS))
}

/// The kind of error of a call, and whether it took the time of a wait.
fn waited<T>(started: Instant, result: io::Result<T>) -> String {
    let kind = result.map_or_else(|error| format!("{:?}", error.kind()), |_| "success".into());
    if started.elapsed() < WAIT {
        format!("{kind} at once")
    } else {
        format!("{kind} in time")
    }
}

pub fn timeouts(silent: SocketAddr) -> Outcome {
    let mut stream = TcpStream::connect(silent)?;
    stream.as_ref().set_recv_timeout(Some(WAIT))?;
    println!("limit: {:?}", stream.as_ref().get_recv_timeout()?);
    let started = Instant::now();
    println!("receive: {}", waited(started, stream.read(&mut [0])));
    println!("poll: {}", wait(&stream, true)?.0);
    stream.set_nonblocking(true)?;
    let started = Instant::now();
    println!("non-blocking: {}", waited(started, stream.read(&mut [0])));

    let listener = TcpListener::bind("127.0.0.1:0", true)?;
    let started = Instant::now();
    println!("accept: {}", waited(started, listener.accept(false)));
    let free = raw::local(&listener)?;
    drop(listener);

    let socket = stream_socket(free)?;
    socket.set_nonblocking(true)?;
    let begun = raw::connect(&socket, free);
    println!("connect: {:?}", begun.map_err(|error| error.raw_os_error()));
    wait(&socket, false)?;
    println!("refused: {:?}", socket.take_error().map_err(|e| e.kind()));
    let started = Instant::now();
    let blocking = stream_socket(free)?;
    println!(
        "refused: {}",
        waited(started, raw::connect(&blocking, free))
    );
    Ok(())
}

pub fn reuse(address: SocketAddr) -> Outcome {
    let connection = || -> Outcome {
        // Closed by the server first: its side lingers in TIME_WAIT.
        let listener = TcpListener::bind(address, false)?;
        let mut client = TcpStream::connect(address)?;
        let (server, _) = listener.accept(false)?;
        server.shutdown(Shutdown::Both)?;
        let end = client.read(&mut [0])?;
        assert_eq!(end, 0);
        Ok(())
    };
    connection()?;
    let socket = stream_socket(address)?;
    let level = || SocketOptLevel::SolSocket;
    println!("by default: {}", socket.reuse_address()?);
    let second = socket.bind(&address).map_err(|error| error.kind());
    println!("without SO_REUSEADDR: {second:?}");
    socket.setsockopt(level(), SocketOptName::SoReuseaddr, 1_i32)?;
    println!("set: {}", socket.reuse_address()?);
    let third = socket.bind(&address).map_err(|error| error.kind());
    println!("with SO_REUSEADDR: {third:?}");
    socket.listen(1)?;
    println!("listener: {}", socket.is_listener()?);
    let second = stream_socket(address)?;
    second.setsockopt(level(), SocketOptName::SoReuseaddr, 1_i32)?;
    let fourth = second.bind(&address).map_err(|error| error.kind());
    println!("beside a listener: {fourth:?}");
    Ok(())
}

pub fn flood(address: SocketAddr) -> Outcome {
    let listener = TcpListener::bind(address, false)?;
    println!("listening on {address}");
    let (mut stream, _) = listener.accept(true)?;
    wait(&stream, true)?;
    let ended = stream.read(&mut [0])? == 0;
    println!("the client has ended: {ended}");
    let (what, rounds) = loop {
        fill(&mut stream)?;
        // The buffers grow, and the client's kernel takes what is on its way.
        let waited = wait(&stream, false)?;
        if waited.0 != "ready" {
            break waited;
        }
    };
    println!("room to write: {what} after {rounds} rounds");
    Ok(())
}

/// Writes until there is no room.
fn fill(stream: &mut TcpStream) -> io::Result<()> {
    loop {
        match stream.write(&[0; 64 * 1024]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

pub fn refused(address: SocketAddr) -> Outcome {
    let socket = Socket::new(AddressFamily::from(&address), SocketType::Datagram)?;
    raw::connect(&socket, address)?;
    socket.send(b"is there anybody?")?;
    let (what, rounds) = wait(&socket, true)?;
    println!("poll: {what} after {rounds} rounds");
    socket.set_nonblocking(true)?;
    let answer = socket.recv(&mut [0]).map_err(|error| error.kind());
    println!("receive: {answer:?}");
    Ok(())
}
