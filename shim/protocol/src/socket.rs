//! Packets on the pair of sockets between host and guest.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The guest's end of the pair is this descriptor.
pub const CONTROL_FD: i32 = 3;

/// A packet's bound in bytes; a launch body is not a packet (it travels as a memfd).
pub const MAX_PACKET: usize = 64 << 10;

/// Most descriptors in one packet.
const MAX_FDS: usize = 16;

/// A failure of the handshake itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side is gone.
    #[error("the other side has closed the control socket")]
    Closed,
    /// The system call failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// Whoever speaks is not the guest: the process with this id.
    #[error("control socket: a message of process {0}, which is not the guest")]
    Stranger(i32),
    /// Not a message of this version.
    #[error(
        "control socket: not a message of this version ({0}); shim and guest must come from one installation"
    )]
    Encoding(#[from] postcard::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

/// Encodes a message into one packet.
///
/// # Errors
/// [`Error::Encoding`] where the message is over [`MAX_PACKET`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let bytes = postcard::to_stdvec(message)?;
    if bytes.len() > MAX_PACKET {
        return Err(Error::Encoding(postcard::Error::SerializeBufferFull));
    }
    Ok(bytes)
}

/// Sends one message with descriptors. Blocks only when the socket's buffer is full.
///
/// # Errors
/// [`Error::Closed`] when the reader is gone.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    match rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    ) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(Error::Closed),
        Err(e) => Err(e.into()),
    }
}

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    /// What it brought (close-on-exec). To close a descriptor of a stranger's can take as long as he likes (`SO_LINGER`).
    pub fds: Vec<OwnedFd>,
    /// The kernel's word for who sent it; only where [`pair`] has asked for it, at the host's end.
    pub sender: Option<i32>,
}

impl Packet {
    /// The message in it.
    ///
    /// # Errors
    /// [`Error::Encoding`], also where the packet goes on behind it.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match postcard::take_from_bytes(&self.bytes)? {
            (message, []) => Ok(message),
            (_, _) => Err(Error::Encoding(postcard::Error::DeserializeBadEncoding)),
        }
    }
}

/// Receives one message with its descriptors (close-on-exec).
///
/// # Errors
/// [`Error::Closed`] at the end; `WouldBlock` in [`Error::Io`] on a non-blocking socket.
pub fn recv<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), Error> {
    let packet = recv_packet(socket)?;
    Ok((packet.message()?, packet.fds))
}

/// Receives one packet.
///
/// # Errors
/// As [`recv`], but for what is in it.
pub fn recv_packet(socket: BorrowedFd<'_>) -> Result<Packet, Error> {
    // Its size first: packets are small, and 64 KiB for each would stay with the process.
    let mut bytes = vec![0u8; size_of_next(socket)?];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // It is there: this neither waits nor is interrupted.
    let n = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?
    .bytes;
    bytes.truncate(n);
    let (mut fds, mut sender) = (Vec::new(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(more) => fds.extend(more),
            RecvAncillaryMessage::ScmCredentials(who) => {
                sender = Some(who.pid.as_raw_nonzero().get());
            }
            _ => {}
        }
    }
    Ok(Packet { bytes, fds, sender })
}

/// Waits for a packet; its size in bytes.
fn size_of_next(socket: BorrowedFd<'_>) -> Result<usize, Error> {
    loop {
        match rustix::net::recv(socket, &mut [0u8; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return Err(Error::Closed),
            Ok((_, size)) => return Ok(size.min(MAX_PACKET)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A new pair: the host's end, where the kernel says who has sent a packet, and the guest's.
///
/// # Errors
/// socketpair's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (host, guest) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::sockopt::set_socket_passcred(&host, true)?;
    Ok((host, guest))
}

/// Convenience of callers that hold owned descriptors.
pub fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}
