//! Sends commands to a Redis server and prints the replies, one value a line.
//!
//! ```text
//! redis-client COMMAND [ARGUMENT...] [';' COMMAND [ARGUMENT...]]...
//! ```
//!
//! `REDIS` names the server as HOST:PORT, by default `127.0.0.1:6379`: a container of the same pod.
//! All commands are sent before the first reply is read. The exit status is 1 if the server cannot
//! be talked to or one of its replies is an error.

use std::env;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use wasmedge_wasi_socket::{TcpStream, nslookup};

const DEFAULT_SERVER: &str = "127.0.0.1:6379";
/// Longest silence of the server.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest string taken, in bytes, and most elements of an array.
const MAX_LENGTH: usize = 64 << 20;
/// Deepest nesting of arrays.
const MAX_DEPTH: usize = 32;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let commands: Vec<&[String]> = arguments.split(|word| word == ";").collect();
    if commands.iter().any(|command| command.is_empty()) {
        eprintln!("usage: redis-client COMMAND [ARGUMENT...] [';' COMMAND [ARGUMENT...]]...");
        return ExitCode::from(2);
    }
    let server = env::var("REDIS").unwrap_or_else(|_| DEFAULT_SERVER.to_owned());
    match run(&server, &commands) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("redis-client: {server}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether every command did what it should.
fn run(server: &str, commands: &[&[String]]) -> io::Result<bool> {
    let mut stream = connect(server)?;
    let mut requests = Vec::new();
    for command in commands {
        write_command(&mut requests, command)?;
    }
    stream.write_all(&requests)?;
    let mut replies = BufReader::new(stream);
    let mut out = BufWriter::new(io::stdout().lock());
    let mut good = true;
    for _ in commands {
        let reply = read_reply(&mut replies, MAX_DEPTH).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => {
                let message = format!("no reply within {} s", PATIENCE.as_secs());
                io::Error::new(ErrorKind::TimedOut, message)
            }
            _ => error,
        })?;
        good &= reply.print(&mut out)?;
    }
    out.flush()?;
    Ok(good)
}

fn connect(server: &str) -> io::Result<TcpStream> {
    let (host, port) = server.rsplit_once(':').ok_or_else(|| {
        io::Error::new(
            ErrorKind::InvalidInput,
            "REDIS is not of the form HOST:PORT",
        )
    })?;
    // The port as the service: a service's name would be looked up in /etc/services, which images
    // of a module alone do not have.
    let stream = TcpStream::connect(&nslookup(host, port)?[..])?;
    stream.as_ref().set_recv_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A command is an array of strings in RESP, the protocol of Redis.
fn write_command(out: &mut impl Write, words: &[String]) -> io::Result<()> {
    write!(out, "*{}\r\n", words.len())?;
    for word in words {
        write!(out, "${}\r\n{word}\r\n", word.len())?;
    }
    Ok(())
}

#[derive(Debug)]
enum Reply {
    Text(Vec<u8>),
    Error(String),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    /// Says whether there was no error in it.
    fn print(&self, out: &mut impl Write) -> io::Result<bool> {
        match self {
            Self::Text(bytes) => {
                out.write_all(bytes)?;
                out.write_all(b"\n")?;
            }
            Self::Error(message) => {
                eprintln!("redis-client: {message}");
                return Ok(false);
            }
            Self::Nil => writeln!(out, "(nil)")?,
            Self::Array(elements) => {
                let mut good = true;
                for element in elements {
                    good &= element.print(out)?;
                }
                return Ok(good);
            }
        }
        Ok(true)
    }
}

/// Reads one reply in version 2 of the protocol, which a server speaks unless asked for another.
fn read_reply(from: &mut impl BufRead, depth: usize) -> io::Result<Reply> {
    let line = read_line(from)?;
    let (Some(kind), Some(rest)) = (line.get(..1), line.get(1..)) else {
        return Err(invalid("an empty line"));
    };
    match kind {
        "+" | ":" => Ok(Reply::Text(rest.into())),
        "-" => Ok(Reply::Error(rest.into())),
        "$" => match length(rest)? {
            None => Ok(Reply::Nil),
            Some(length) => {
                let mut bytes = vec![0; length + 2];
                from.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Ok(Reply::Text(bytes))
            }
        },
        "*" if depth == 0 => Err(invalid("arrays nested too deep")),
        "*" => match length(rest)? {
            None => Ok(Reply::Nil),
            Some(count) => (0..count)
                .map(|_| read_reply(from, depth - 1))
                .collect::<io::Result<_>>()
                .map(Reply::Array),
        },
        _ => Err(invalid("a reply of no known type: is this Redis?")),
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(MAX_LENGTH as u64).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(text) => Ok(text.to_owned()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// The number before a string or an array; −1 is that there is none.
fn length(text: &str) -> io::Result<Option<usize>> {
    match text.parse() {
        Ok(length) if length <= MAX_LENGTH => Ok(Some(length)),
        Err(_) if text == "-1" => Ok(None),
        _ => Err(invalid("a length out of range")),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
