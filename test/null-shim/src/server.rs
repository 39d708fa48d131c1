//! ttrpc by hand: one thread, one epoll loop. The protocol: containerd/ttrpc, `PROTOCOL.md`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use containerd_shim_protos::api::{ConnectRequest, WaitRequest};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{Code, Request, Response, Status};
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::task::Tasks;
use crate::{Error, Result, io};

/// Bytes of a frame's header: length and stream (4 each, big endian), type and flags.
const HEADER: usize = 10;
const RESPONSE: u8 = 2;
/// Type of a frame that carries a [`Request`].
pub const REQUEST: u8 = 1;
/// The largest payload that ttrpc's implementations accept, in bytes.
const PAYLOAD_LIMIT: usize = 4 << 20;

/// A frame of the given type on the given stream.
pub fn frame(kind: u8, stream: u32, message: &impl Message) -> Result<Vec<u8>> {
    let payload = message.write_to_bytes()?;
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[kind, 0]);
    frame.extend_from_slice(&payload);
    Ok(frame)
}

struct Server {
    epoll: OwnedFd,
    tasks: Tasks,
    connections: HashMap<RawFd, Connection>,
    /// Wait calls that have no answer yet.
    waiting: Vec<Wait>,
    done: bool,
}

struct Connection {
    stream: UnixStream,
    /// Bytes of a frame that is not complete.
    input: Vec<u8>,
}

struct Wait {
    connection: RawFd,
    stream: u32,
    id: String,
}

/// What a method gives back.
enum Answer {
    Now(Vec<u8>),
    /// When this container has ended.
    AtExit(String),
}

/// Serves until containerd calls Shutdown on an empty pod.
pub fn serve(listener: UnixListener, tasks: Tasks) -> Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io("epoll"))?;
    let mut server = Server {
        epoll,
        tasks,
        connections: HashMap::new(),
        waiting: Vec::new(),
        done: false,
    };
    let events = server.tasks.publisher.as_fd().as_raw_fd();
    server.watch(listener.as_fd(), EventFlags::IN)?;
    server.watch(server.tasks.publisher.as_fd(), EventFlags::IN)?;
    while !server.done {
        let ready = server.next()?;
        if ready == listener.as_raw_fd() {
            let (stream, _) = listener.accept().map_err(io("accept"))?;
            server.watch(stream.as_fd(), EventFlags::IN)?;
            server.connections.insert(
                stream.as_raw_fd(),
                Connection {
                    stream,
                    input: Vec::new(),
                },
            );
        } else if ready == events {
            if !server.tasks.publisher.drain() {
                epoll::delete(&server.epoll, server.tasks.publisher.as_fd())
                    .map_err(io("epoll"))?;
            }
        } else if let Some(id) = server.tasks.id_of(ready) {
            server.tasks.ended(&id)?;
            server.answer_waiting()?;
        } else {
            server.receive(ready)?;
        }
    }
    Ok(())
}

impl Server {
    fn watch(&self, fd: BorrowedFd<'_>, flags: EventFlags) -> Result<()> {
        epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(fd.as_raw_fd() as u64),
            flags,
        )
        .map_err(io("epoll"))
    }

    /// The next readable descriptor. One at a time, so that none can be closed and reused before its turn.
    fn next(&self) -> Result<RawFd> {
        let mut event = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        loop {
            match epoll::wait(&self.epoll, &mut event, None) {
                Ok(_) => return Ok(event[0].data.u64() as RawFd),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::Io("epoll".into(), e.into())),
            }
        }
    }

    /// Reads what a connection has for us and answers its complete requests.
    fn receive(&mut self, fd: RawFd) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&fd) else {
            return Ok(());
        };
        let mut buffer = [0; 16 << 10];
        let length = connection.stream.read(&mut buffer).unwrap_or(0);
        connection.input.extend_from_slice(&buffer[..length]);
        let mut input = std::mem::take(&mut connection.input);
        let mut rest = &input[..];
        let mut broken = length == 0;
        while let Some((header, body)) = rest.split_first_chunk::<HEADER>() {
            let [a, b, c, d, e, f, g, h, _, _] = *header;
            let size = u32::from_be_bytes([a, b, c, d]) as usize;
            broken |= size > PAYLOAD_LIMIT;
            if broken || body.len() < size {
                break;
            }
            self.call(fd, u32::from_be_bytes([e, f, g, h]), &body[..size])?;
            rest = &body[size..];
        }
        let consumed = input.len() - rest.len();
        input.drain(..consumed);
        // An empty buffer must not keep the pages of the largest request so far.
        input.shrink_to_fit();
        if broken {
            self.connections.remove(&fd);
            self.waiting.retain(|wait| wait.connection != fd);
        } else if let Some(connection) = self.connections.get_mut(&fd) {
            connection.input = input;
        }
        Ok(())
    }

    fn call(&mut self, connection: RawFd, stream: u32, frame: &[u8]) -> Result<()> {
        let answer = Request::parse_from_bytes(frame)
            .map_err(Error::from)
            .and_then(|request| self.dispatch(&request.method, &request.payload));
        match answer {
            Ok(Answer::AtExit(id)) => self.waiting.push(Wait {
                connection,
                stream,
                id,
            }),
            Ok(Answer::Now(payload)) => self.reply(connection, stream, Ok(payload))?,
            Err(e) => self.reply(connection, stream, Err(e))?,
        }
        self.answer_waiting()
    }

    /// One method of `containerd.task.v2.Task` or `v3`: the ones used here are the same.
    fn dispatch(&mut self, method: &str, payload: &[u8]) -> Result<Answer> {
        fn of<M: Message>(payload: &[u8]) -> Result<M> {
            Ok(M::parse_from_bytes(payload)?)
        }
        let tasks = &mut self.tasks;
        let answer = match method {
            "Create" => {
                let (response, pidfd) = tasks.create(of(payload)?)?;
                // Once is enough: a pidfd stays readable after the end.
                epoll::add(
                    &self.epoll,
                    pidfd,
                    EventData::new_u64(pidfd.as_raw_fd() as u64),
                    EventFlags::IN | EventFlags::ONESHOT,
                )
                .map_err(io("epoll"))?;
                response.write_to_bytes()
            }
            "Start" => tasks.start(&of(payload)?)?.write_to_bytes(),
            "State" => tasks.state(&of(payload)?)?.write_to_bytes(),
            "Pids" => tasks.pids(&of(payload)?)?.write_to_bytes(),
            "Delete" => tasks.delete(&of(payload)?)?.write_to_bytes(),
            "Connect" => tasks
                .connect(&of::<ConnectRequest>(payload)?.id)?
                .write_to_bytes(),
            "Wait" => {
                let id = of::<WaitRequest>(payload)?.id;
                match tasks.wait(&id)? {
                    Some(response) => response.write_to_bytes(),
                    None => return Ok(Answer::AtExit(id)),
                }
            }
            "Kill" => tasks.kill(&of(payload)?).map(|()| Ok(Vec::new()))?,
            "Shutdown" => {
                self.done = tasks.is_empty();
                Ok(Vec::new())
            }
            other => return Err(Error::Unimplemented(other.to_owned())),
        };
        Ok(Answer::Now(answer?))
    }

    /// Answers the Wait calls whose container has ended, or is gone.
    fn answer_waiting(&mut self) -> Result<()> {
        for wait in std::mem::take(&mut self.waiting) {
            match self.tasks.wait(&wait.id) {
                Ok(None) => self.waiting.push(wait),
                Ok(Some(response)) => {
                    self.reply(wait.connection, wait.stream, Ok(response.write_to_bytes()?))?
                }
                Err(e) => self.reply(wait.connection, wait.stream, Err(e))?,
            }
        }
        Ok(())
    }

    fn reply(&mut self, connection: RawFd, stream: u32, result: Result<Vec<u8>>) -> Result<()> {
        let response = match result {
            Ok(payload) => Response {
                payload,
                ..Default::default()
            },
            Err(e) => {
                let code = match e {
                    Error::NotFound(_) => Code::NOT_FOUND,
                    Error::Unimplemented(_) => Code::UNIMPLEMENTED,
                    Error::Invalid(_) => Code::INVALID_ARGUMENT,
                    Error::Io(..) | Error::Protobuf(_) => Code::INTERNAL,
                };
                let status = Status {
                    code: code.into(),
                    message: e.to_string(),
                    ..Default::default()
                };
                Response {
                    status: Some(status).into(),
                    ..Default::default()
                }
            }
        };
        let frame = frame(RESPONSE, stream, &response)?;
        if let Some(connection) = self.connections.get_mut(&connection) {
            // A client that went away is noticed, and removed, by the read that follows.
            let _ = connection.stream.write_all(&frame);
        }
        Ok(())
    }
}
