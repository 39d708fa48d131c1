//! Sockets and names as a module sees them; `test/integration/test_network.py` runs it in pods.
//!
//! ```text
//! network tcp ADDRESS...            echoes each connection until its client's end, of any number of clients
//! network udp ADDRESS               answers each datagram with its sender's address and what it said
//! network send TEXT PEER...         says TEXT to each of tcp/ADDRESS and udp/ADDRESS, and prints what comes back
//! network timeouts ADDRESS          waits in each way for what the silent server at ADDRESS never sends
//! network reuse ADDRESS             a listener takes the place of one whose connections linger
//! network flood ADDRESS             writes to one client more than it reads
//! network refused ADDRESS           waits for an answer to a datagram that nobody takes
//! network names NAME...             what getaddrinfo says, per name
//! network lookup NAME               what the crate's own look-up says
//! ```

mod echo;
mod names;
mod raw;
mod waits;

use std::env;
use std::error::Error;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use wasmedge_wasi_socket::socket::{AddressFamily, Socket, SocketType};
use wasmedge_wasi_socket::{Shutdown, TcpStream, UdpSocket};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("network: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Outcome {
    match words {
        ["tcp", addresses @ ..] => echo::serve(addresses),
        ["udp", address] => answer_datagrams(address.parse()?),
        ["send", text, peers @ ..] => peers.iter().try_for_each(|peer| send(peer, text)),
        ["timeouts", address] => waits::timeouts(address.parse()?),
        ["reuse", address] => waits::reuse(address.parse()?),
        ["flood", address] => waits::flood(address.parse()?),
        ["refused", address] => waits::refused(address.parse()?),
        ["names", names @ ..] => names::print(names),
        ["lookup", name] => names::print_lookup(name),
        _ => Err(format!("no such command: {words:?}").into()),
    }
}

fn answer_datagrams(address: SocketAddr) -> Outcome {
    let socket = UdpSocket::bind(address)?;
    println!("listening on {address}");
    let mut buffer = [0; 2048];
    loop {
        let (count, peer) = raw::receive_from(socket.as_ref(), &mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..count]);
        socket.send_to(format!("{peer} {text}").as_bytes(), peer)?;
    }
}

fn send(peer: &str, text: &str) -> Outcome {
    match peer.split_once('/') {
        Some(("tcp", address)) => send_stream(address.parse()?, text),
        Some(("udp", address)) => send_datagram(address.parse()?, text),
        _ => Err(format!("neither tcp/ADDRESS nor udp/ADDRESS: {peer:?}").into()),
    }
}

fn send_stream(address: SocketAddr, text: &str) -> Outcome {
    let socket = Socket::new(AddressFamily::from(&address), SocketType::Stream)?;
    raw::connect(&socket, address)?;
    let mut stream = TcpStream::new(socket);
    // Nothing is known of a connection that both sides have ended.
    let (local, peer) = (raw::local(&stream)?, raw::peer(&stream)?);
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{local} to {peer}: {answer}");
    Ok(())
}

fn send_datagram(address: SocketAddr, text: &str) -> Outcome {
    let socket = Socket::new(AddressFamily::from(&address), SocketType::Datagram)?;
    socket.send_to(text.as_bytes(), address)?;
    let mut buffer = [0; 2048];
    let (count, peer) = raw::receive_from(&socket, &mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..count]);
    println!("from {peer}: {answer}");
    Ok(())
}
