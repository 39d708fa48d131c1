//! The engine's functions that the crate hides or narrows: connecting to an IPv6 address and getaddrinfo with its hints;
//! and those that tell an address, where optimised builds of the crate have 0.0.0.0 for IPv4: it does not say that the
//! engine writes its buffer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::ptr;

use wasmedge_wasi_socket::socket::Socket;

const INET4: u8 = 1;
const INET6: u8 = 2;
/// Results that a call has room for.
const MOST: usize = 16;

#[repr(C)]
struct Address {
    bytes: *const u8,
    length: usize,
}

#[repr(C)]
struct Buffer {
    bytes: *mut u8,
    length: usize,
}

/// An address of any family, as the second version of the engine's functions has it.
#[repr(C)]
struct Storage {
    family: u16,
    bytes: [u8; 126],
}

/// A result of getaddrinfo, or a question to it.
#[repr(C)]
struct Info {
    flags: u16,
    family: u8,
    kind: u8,
    protocol: u32,
    address_length: u32,
    address: *mut InfoAddress,
    name: *mut u8,
    name_length: u32,
    next: *mut Info,
}

#[repr(C)]
struct InfoAddress {
    family: u8,
    length: u32,
    /// Port and address as in the tail of a sockaddr_in or sockaddr_in6.
    data: *mut u8,
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn sock_connect(socket: i32, address: *const Address, port: u32) -> i32;
    fn sock_getlocaladdr(
        socket: i32,
        address: *const Address,
        family: *mut u32,
        port: *mut u32,
    ) -> i32;
    fn sock_getpeeraddr(
        socket: i32,
        address: *const Address,
        family: *mut u32,
        port: *mut u32,
    ) -> i32;
    fn sock_recv_from(
        socket: i32,
        buffers: *mut Buffer,
        count: usize,
        address: *const Address,
        flags: u16,
        port: *mut u32,
        received: *mut usize,
        flags_out: *mut usize,
    ) -> i32;
    fn sock_getaddrinfo(
        node: *const u8,
        node_length: usize,
        service: *const u8,
        service_length: usize,
        hints: *const Info,
        results: *const *mut Info,
        most: usize,
        count: *mut usize,
    ) -> i32;
}

/// connect(2); the crate's refuses IPv6.
pub fn connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    let bytes = match to.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let address = Address {
        bytes: bytes.as_ptr(),
        length: bytes.len(),
    };
    // SAFETY: address and bytes live during the call.
    match unsafe { sock_connect(socket.as_raw_fd(), &raw const address, to.port().into()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// getsockname(2).
pub fn local(socket: &impl AsRawFd) -> io::Result<SocketAddr> {
    end(socket, sock_getlocaladdr)
}

/// getpeername(2).
pub fn peer(socket: &impl AsRawFd) -> io::Result<SocketAddr> {
    end(socket, sock_getpeeraddr)
}

type End = unsafe extern "C" fn(i32, *const Address, *mut u32, *mut u32) -> i32;

fn end(socket: &impl AsRawFd, call: End) -> io::Result<SocketAddr> {
    /// The first version of these functions counts the families like IP.
    const IPV4: u32 = 4;
    let mut bytes = [0; 16];
    let address = Address {
        bytes: (&raw mut bytes).cast::<u8>(),
        length: bytes.len(),
    };
    let (mut family, mut port) = (0, 0);
    // SAFETY: all that is written lives until the end of the call and is as long as it says.
    let error = unsafe {
        call(
            socket.as_raw_fd(),
            &raw const address,
            &raw mut family,
            &raw mut port,
        )
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let [a, b, c, d, ..] = bytes;
    let ip: IpAddr = match family {
        IPV4 => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(bytes).into(),
    };
    Ok(SocketAddr::new(ip, port as u16))
}

/// recvfrom(2).
pub fn receive_from(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    let mut storage = Storage {
        family: 0,
        bytes: [0; 126],
    };
    let address = Address {
        bytes: (&raw mut storage).cast::<u8>(),
        length: size_of::<Storage>(),
    };
    let mut data = Buffer {
        bytes: buffer.as_mut_ptr(),
        length: buffer.len(),
    };
    let (mut port, mut received, mut flags) = (0, 0, 0);
    // SAFETY: all that is written lives until the end of the call and is as long as it says.
    let error = unsafe {
        sock_recv_from(
            socket.as_raw_fd(),
            &raw mut data,
            1,
            &raw const address,
            0,
            &raw mut port,
            &raw mut received,
            &raw mut flags,
        )
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let [a, b, c, d, ..] = storage.bytes;
    let ip: IpAddr = match storage.family as u8 {
        INET4 => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(std::array::from_fn(|index| storage.bytes[index])).into(),
    };
    Ok((received, SocketAddr::new(ip, port as u16)))
}

/// What a name is asked for.
#[derive(Clone, Copy, Default)]
pub struct Hints {
    pub family: u8,
    pub kind: u8,
}

impl Hints {
    pub const STREAM: u8 = 2;

    pub const fn streams(family: u8) -> Self {
        Self {
            family,
            kind: Self::STREAM,
        }
    }
}

/// getaddrinfo(3): the addresses in their order, or the engine's number of the error.
pub fn addresses(node: &str, service: &str, hints: Hints) -> Result<Vec<SocketAddr>, i32> {
    let empty = || Info {
        flags: 0,
        family: 0,
        kind: 0,
        protocol: 0,
        address_length: 0,
        address: ptr::null_mut(),
        name: ptr::null_mut(),
        name_length: 0,
        next: ptr::null_mut(),
    };
    let mut data = [[0_u8; 26]; MOST];
    let mut details: Vec<InfoAddress> = data
        .iter_mut()
        .map(|data| InfoAddress {
            family: 0,
            length: data.len() as u32,
            data: data.as_mut_ptr(),
        })
        .collect();
    let mut infos: Vec<Info> = (0..MOST).map(|_| empty()).collect();
    let first = infos.as_mut_ptr();
    for (index, detail) in details.iter_mut().enumerate() {
        infos[index].address = detail;
        // The last one's is not followed.
        infos[index].next = first.wrapping_add(index + 1);
    }
    let question = Info {
        family: hints.family,
        kind: hints.kind,
        ..empty()
    };
    let mut count = 0;
    // SAFETY: everything that the call reads or writes lives until its end: infos, and what they point to.
    let error = unsafe {
        sock_getaddrinfo(
            node.as_ptr(),
            node.len(),
            service.as_ptr(),
            service.len(),
            &raw const question,
            &raw const first,
            MOST,
            &raw mut count,
        )
    };
    if error != 0 {
        return Err(error);
    }
    Ok((0..count)
        .filter_map(|index| socket_address(details[index].family, &data[index]))
        .collect())
}

fn socket_address(family: u8, data: &[u8; 26]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([data[0], data[1]]);
    match family {
        INET4 => {
            let octets: [u8; 4] = data[2..6].try_into().ok()?;
            Some(SocketAddr::new(Ipv4Addr::from(octets).into(), port))
        }
        INET6 => {
            let octets: [u8; 16] = data[6..22].try_into().ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(octets).into(), port))
        }
        _ => None,
    }
}
