//! Functions of the C library that stand between it and the engine: its calls pass through its PLT, and find the guest's first.

pub mod memory;
mod paths;
mod poll;
mod sockets;
pub mod stack;

use std::ffi::{CStr, c_int, c_void};

use slipway_guest::{budget, drain, end_without_memory};

/// close(2) as the engine calls it.
///
/// # Safety
/// close(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    poll::closed(fd);
    drain::closed(fd);
    // SAFETY: passed on as it came.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
}

extern "C" fn on_exhaustion() {
    end_without_memory(format!(
        "memory limit exceeded: the engine has no memory left for the program's tables and its own objects; the program's limit is {} bytes",
        budget::limit()
    ))
}

/// Reports an engine that finds no memory for itself: behind the budget of the module's memories stands a limit of the
/// process (`RLIMIT_DATA`). The engine would abort.
pub fn report_exhaustion() {
    type Handler = extern "C" fn();
    // SAFETY: looks a name up in what is loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_ZSt15set_new_handlerPFvvE".as_ptr()) };
    if !found.is_null() {
        // SAFETY: std::set_new_handler(void (*)()) of the C++ library, by its name in the ABI. Its `operator new` calls
        // the handler, which does not return, in the context of an ordinary call.
        unsafe {
            let set: extern "C" fn(Handler) -> *mut c_void = std::mem::transmute(found);
            set(on_exhaustion);
        }
    }
}

/// An error unless the engine calls this program's functions where they stand between it and the C library's: budgets, walls and
/// reports hang on that, and the linker decides it.
///
/// # Errors
/// The name of the first that it would miss.
pub fn check() -> Result<(), String> {
    let ours: [(&CStr, *const c_void); 21] = [
        (c"mmap", memory::mmap as *const c_void),
        (c"mmap64", memory::mmap64 as *const c_void),
        (c"munmap", memory::munmap as *const c_void),
        (c"close", close as *const c_void),
        (c"listen", sockets::listen as *const c_void),
        (c"readlinkat", paths::readlinkat as *const c_void),
        (c"fstatat", paths::fstatat as *const c_void),
        (c"openat", paths::openat as *const c_void),
        (c"mkdirat", paths::mkdirat as *const c_void),
        (c"epoll_ctl", poll::epoll_ctl as *const c_void),
        (c"epoll_wait", poll::epoll_wait as *const c_void),
        (c"ioctl", poll::ioctl as *const c_void),
        (c"recvmsg", sockets::recvmsg as *const c_void),
        (c"sendmsg", sockets::sendmsg as *const c_void),
        (c"connect", sockets::connect as *const c_void),
        (c"getsockopt", sockets::getsockopt as *const c_void),
        (c"accept", sockets::accept as *const c_void),
        (c"fcntl", sockets::fcntl as *const c_void),
        (c"getaddrinfo", sockets::getaddrinfo as *const c_void),
        (c"sigaction", stack::sigaction as *const c_void),
        (
            c"_Unwind_Backtrace",
            stack::_Unwind_Backtrace as *const c_void,
        ),
    ];
    for (name, function) in ours {
        // SAFETY: looks a name up in what is loaded, as the loader does for the engine.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if !std::ptr::eq(found, function) {
            return Err(format!(
                "this slipway-guest was linked wrongly: the engine would not call its {}",
                name.to_string_lossy()
            ));
        }
    }
    Ok(())
}
