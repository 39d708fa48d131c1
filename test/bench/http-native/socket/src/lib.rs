//! The part of the crate `wasmedge_wasi_socket` that examples/serve uses, on the standard library's sockets and poll(2).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};

pub struct TcpListener(std::net::TcpListener);

impl TcpListener {
    pub fn bind(address: impl ToSocketAddrs, nonblocking: bool) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(nonblocking)?;
        Ok(Self(listener))
    }

    pub fn accept(&self, nonblocking: bool) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.accept()?;
        stream.set_nonblocking(nonblocking)?;
        Ok((TcpStream(stream), peer))
    }
}

impl AsRawFd for TcpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

pub struct TcpStream(std::net::TcpStream);

impl AsRawFd for TcpStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Read for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for TcpStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub mod poll {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
    use std::time::SystemTime;

    use rustix::event::{PollFd, PollFlags};

    pub struct Subscription {
        userdata: u64,
        fd: RawFd,
        flags: PollFlags,
    }

    impl Subscription {
        pub fn io(
            userdata: u64,
            fd: &impl AsRawFd,
            read: bool,
            write: bool,
            _: Option<SystemTime>,
        ) -> Self {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            Self {
                userdata,
                fd: fd.as_raw_fd(),
                flags,
            }
        }
    }

    pub enum EventType {
        Timeout,
        Error(io::Error),
        Read,
        Write,
    }

    pub struct Event {
        pub event_type: EventType,
        pub userdata: u64,
    }

    pub fn poll(subscriptions: &[Subscription]) -> io::Result<Vec<Event>> {
        let mut fds: Vec<PollFd> = subscriptions
            .iter()
            // SAFETY: the caller holds the sockets that it has subscribed to until the call ends.
            .map(|s| PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(s.fd) }, s.flags))
            .collect();
        rustix::event::poll(&mut fds, None)?;
        let ready = subscriptions
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready
            .map(|(subscription, _)| Event {
                // What is wrong with a socket, the next read or write tells.
                event_type: if subscription.flags.contains(PollFlags::IN) {
                    EventType::Read
                } else {
                    EventType::Write
                },
                userdata: subscription.userdata,
            })
            .collect())
    }
}
