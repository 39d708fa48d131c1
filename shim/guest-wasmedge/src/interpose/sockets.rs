//! Calls of the engine's sockets, as it makes them through its PLT, put right where its own code is wrong.
//! `docs/wasi.md` has what cannot be.

use std::ffi::{c_char, c_int, c_long, c_ulong, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use slipway_guest::drain;

/// listen(2) as the engine calls it for sock_listen.
///
/// # Safety
/// listen(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: passed on as it came.
    let done = unsafe { libc::syscall(libc::SYS_listen, fd, backlog) } as c_int;
    if done == 0 {
        drain::listening(fd);
    }
    done
}

/// recvmsg(2) as the engine calls it for sock_recv and sock_recv_from: the sender's port in the host's byte order, in
/// which all other functions of the engine have it and sock_send_to takes it.
///
/// # Safety
/// recvmsg(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> isize {
    // SAFETY: passed on as it came; an address is as long as its family's structure.
    unsafe {
        let received = libc::syscall(libc::SYS_recvmsg, fd, message, c_long::from(flags));
        if received < 0 {
            name_error();
        } else if !(*message).msg_name.is_null() && (*message).msg_namelen > 0 {
            // IPv4 and IPv6 have the port at the same place.
            let address = (*message).msg_name.cast::<libc::sockaddr_in>();
            if matches!(
                c_int::from((*address).sin_family),
                libc::AF_INET | libc::AF_INET6
            ) {
                (*address).sin_port = u16::from_be((*address).sin_port);
            }
        }
        received as isize
    }
}

/// sendmsg(2) as the engine calls it for sock_send and sock_send_to.
///
/// # Safety
/// sendmsg(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    // SAFETY: passed on as it came.
    let sent = unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, c_long::from(flags)) };
    if sent < 0 {
        name_error();
    }
    sent as isize
}

/// Small writes leave at once. A program cannot ask for that, for the engine takes no option of TCP, and an answer in two
/// writes would wait 40 ms for the peer's delayed acknowledgement.
fn no_delay(fd: c_int) {
    let on: c_int = 1;
    // SAFETY: takes a number by its address; what is no TCP socket refuses.
    unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
}

/// connect(2) as the engine calls it for sock_connect.
///
/// # Safety
/// connect(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(
    fd: c_int,
    address: *const libc::sockaddr,
    length: libc::socklen_t,
) -> c_int {
    no_delay(fd);
    // SAFETY: passed on as it came.
    let done = unsafe { libc::syscall(libc::SYS_connect, fd, address, length) } as c_int;
    if done < 0 {
        name_error();
    }
    done
}

/// getsockopt(2) as the engine calls it for sock_getsockopt: SO_ERROR is an error, too. Of the two options whose values it
/// translates, the engine ends the process where there is less than a whole one.
///
/// # Safety
/// getsockopt(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut libc::socklen_t,
) -> c_int {
    // SAFETY: passed on as it came; SO_ERROR is an int, where there is room for one. errno's location is valid for the
    // calling thread.
    unsafe {
        let translated =
            level == libc::SOL_SOCKET && [libc::SO_TYPE, libc::SO_ERROR].contains(&name);
        if translated && (*length as usize) < size_of::<c_int>() {
            *libc::__errno_location() = libc::EINVAL;
            return -1;
        }
        let done = libc::syscall(libc::SYS_getsockopt, fd, level, name, value, length) as c_int;
        let is_error = (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR);
        if done == 0 && is_error {
            let error = value.cast::<c_int>();
            error.write_unaligned(nameable(error.read_unaligned()));
        }
        done
    }
}

fn name_error() {
    // SAFETY: errno's location is valid for the calling thread.
    unsafe {
        let errno = libc::__errno_location();
        *errno = nameable(*errno);
    }
}

/// In the place of an error that WASI has no number for, at which the engine ends the process, the nearest: a router can
/// bring these about by ICMP (`icmp_err_convert` of the kernel).
fn nameable(errno: c_int) -> c_int {
    match errno {
        libc::EHOSTDOWN | libc::ENONET => libc::EHOSTUNREACH,
        other => other,
    }
}

/// The connection that was accepted last.
static ACCEPTED: AtomicI32 = AtomicI32::new(-1);

/// accept(2) as the engine calls it for sock_accept.
///
/// # Safety
/// accept(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(
    listener: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
) -> c_int {
    // SAFETY: passed on as it came.
    let fd = unsafe { libc::syscall(libc::SYS_accept, listener, address, length) } as c_int;
    ACCEPTED.store(fd, Ordering::Relaxed);
    if fd >= 0 {
        no_delay(fd);
    }
    fd
}

/// fcntl(2) as the engine calls it, which has one argument each time: where sock_accept is to make the new connection
/// non-blocking, the engine sets the listener's flags in its place. It has read the connection's first, so that the access
/// mode is among them; fd_fdstat_set_flags, its other use of F_SETFL, has none.
///
/// # Safety
/// fcntl(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    let accepting = command == libc::F_SETFL
        && argument & libc::O_ACCMODE as c_ulong == libc::O_RDWR as c_ulong;
    let fd = match accepting {
        true => ACCEPTED.load(Ordering::Relaxed),
        false => fd,
    };
    // SAFETY: passed on as it came, with a connection that the engine has not yet told anyone of.
    unsafe { libc::syscall(libc::SYS_fcntl, fd, command, argument) as c_int }
}

type GetAddrInfo = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const libc::addrinfo,
    *mut *mut libc::addrinfo,
) -> c_int;

/// The C library's.
static GETADDRINFO: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// getaddrinfo(3) as the engine calls it for sock_getaddrinfo: streams and datagrams only. Without a socket type in its
/// hints the C library's also has raw sockets, for which WASI has no number: the engine ends the process.
///
/// # Safety
/// getaddrinfo(3)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const libc::addrinfo,
    results: *mut *mut libc::addrinfo,
) -> c_int {
    let mut found = GETADDRINFO.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: looks a name up in what is loaded after this program.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"getaddrinfo".as_ptr()) };
        if found.is_null() {
            return libc::EAI_FAIL;
        }
        GETADDRINFO.store(found, Ordering::Relaxed);
    }
    // SAFETY: the C library's function of this name and type, called as this one was; the list is ours then, and each
    // member has been allocated by itself, as freeaddrinfo(3) says.
    unsafe {
        let library: GetAddrInfo = std::mem::transmute(found);
        let error = library(node, service, hints, results);
        let mut place = results;
        while error == 0 && !(*place).is_null() {
            let info = *place;
            if matches!((*info).ai_socktype, libc::SOCK_STREAM | libc::SOCK_DGRAM) {
                place = &raw mut (*info).ai_next;
            } else {
                *place = (*info).ai_next;
                (*info).ai_next = ptr::null_mut();
                libc::freeaddrinfo(info);
            }
        }
        error
    }
}
