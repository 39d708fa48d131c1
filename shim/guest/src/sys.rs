//! The guest's system calls that need `unsafe`: the engine's hook for memory growth, and signal handlers; below, the
//! functions of the C library that stand between it and the engine.

pub mod drain;
mod paths;
mod poll;
mod sockets;
mod stack;

pub use stack::{give_handler_stack, watch_stack};

use std::ffi::{CStr, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use slipway_protocol::{
    BudgetPage, CONTROL_FD, End, FORBIDDEN_CALL, Facts, FromGuest, GuestShare, Refusal,
};
use slipway_sys::TrappedCall;

/// The connection to the host.
static CONTROL: OnceLock<OwnedFd> = OnceLock::new();
/// This guest's share of the container's budget; none before the launch.
static BUDGET: OnceLock<GuestShare<'static>> = OnceLock::new();
/// What is held for this guest beside its memories and its heap, in bytes; wrapped below 0 where more of the heap is charged
/// to others than is held beside it.
static BESIDE_HEAP: AtomicU64 = AtomicU64::new(0);

/// Linear memories that the engine has reserved: (start, length) pairs, in the order in which the module has them. The
/// module checker accepts so many.
const MAX_MEMORIES: usize = 16;
static START: [AtomicUsize; MAX_MEMORIES] = [const { AtomicUsize::new(0) }; MAX_MEMORIES];
static LENGTH: [AtomicUsize; MAX_MEMORIES] = [const { AtomicUsize::new(0) }; MAX_MEMORIES];
/// Bytes counted for each.
static COUNTED: [AtomicU64; MAX_MEMORIES] = [const { AtomicU64::new(0) }; MAX_MEMORIES];
/// Bytes that each is to begin with, until it has them.
static INITIAL: [AtomicU64; MAX_MEMORIES] = [const { AtomicU64::new(0) }; MAX_MEMORIES];

/// The engine reserves 12 GiB for each memory (lib/system/allocator.cpp); nothing else maps as much without access.
const RESERVATION: usize = 8 << 30;

fn memory_at(address: usize) -> Option<usize> {
    (0..MAX_MEMORIES).find(|&i| {
        let start = START[i].load(Ordering::Relaxed);
        start != 0 && address >= start && address - start < LENGTH[i].load(Ordering::Relaxed)
    })
}

fn errno(e: c_int) -> *mut c_void {
    // SAFETY: errno's location is valid for the calling thread.
    unsafe { *libc::__errno_location() = e };
    libc::MAP_FAILED
}

/// mmap(2) as the engine calls it (through its PLT, which finds this symbol first).
///
/// A linear memory grows by a MAP_FIXED mapping over its reservation: that is compared with the live budget, and
/// `memory.grow` returns -1 where there is no room. What a memory begins with is mapped in the same way. Where the engine
/// cannot have that, or the reservation, it goes on with a memory at address 0, so the process ends here.
///
/// # Safety
/// mmap(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    off: i64,
) -> *mut c_void {
    let growth = flags & libc::MAP_FIXED != 0 && prot & libc::PROT_WRITE != 0 && fd == -1;
    let memory = if growth {
        memory_at(addr as usize)
    } else {
        None
    };
    let budget = BUDGET.get();
    let initial = memory.is_some_and(|m| INITIAL[m].swap(0, Ordering::Relaxed) > 0);
    if let (Some(memory), Some(budget)) = (memory, budget) {
        hold_heap(budget);
        if !budget.grow(len as u64) {
            if initial {
                end_without_memory(refused_growth().unwrap_or_default().to_string());
            }
            return errno(libc::ENOMEM);
        }
        COUNTED[memory].fetch_add(len as u64, Ordering::Relaxed);
    }
    // All as wide as a register: the kernel reads all 64 bits of what a variadic call passes.
    let (prot_bits, flag_bits, fd) = (c_long::from(prot), c_long::from(flags), c_long::from(fd));
    // SAFETY: passed on as it came.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, addr, len, prot_bits, flag_bits, fd, off) };
    let mapped = mapped as *mut c_void;
    let reservation = prot == libc::PROT_NONE && len >= RESERVATION;
    if mapped == libc::MAP_FAILED {
        if initial || reservation {
            let error = io::Error::last_os_error();
            end_without_memory(format!(
                "memory limit exceeded: the kernel refuses {len} bytes for a memory of the module: {error}"
            ));
        }
        if let (Some(memory), Some(budget)) = (memory, budget) {
            budget.shrink(len as u64);
            COUNTED[memory].fetch_sub(len as u64, Ordering::Relaxed);
        }
    } else if reservation {
        let Some(free) = (0..MAX_MEMORIES).find(|&i| START[i].load(Ordering::Relaxed) == 0) else {
            end_without_memory(format!(
                "the module has more than the {MAX_MEMORIES} memories that are possible"
            ));
        };
        LENGTH[free].store(len, Ordering::Relaxed);
        START[free].store(mapped as usize, Ordering::Relaxed);
    }
    mapped
}

/// The same under its other name: `off_t` is 64 bits wide here.
///
/// # Safety
/// mmap(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    off: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { mmap(addr, len, prot, flags, fd, off) }
}

/// munmap(2): a memory that goes gives its bytes back.
///
/// # Safety
/// munmap(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    if let Some(memory) =
        memory_at(addr as usize).filter(|m| START[*m].load(Ordering::Relaxed) == addr as usize)
    {
        START[memory].store(0, Ordering::Relaxed);
        let counted = COUNTED[memory].swap(0, Ordering::Relaxed);
        if let Some(budget) = BUDGET.get() {
            budget.shrink(counted);
        }
    }
    // SAFETY: passed on as it came.
    unsafe { libc::syscall(libc::SYS_munmap, addr, len) as c_int }
}

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

/// Maps the budget that the host and the container's guests share.
pub fn obey_budget(fd: &OwnedFd, share: usize) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let size = size_of::<BudgetPage>();
    // SAFETY: a new shared mapping of what the host has sized; it is never unmapped.
    let page = unsafe { rustix::mm::mmap(ptr::null_mut(), size, access, MapFlags::SHARED, fd, 0) }?;
    // SAFETY: mapped once and for ever, as large, aligned to a page; only atomics inside.
    let page: &'static BudgetPage = unsafe { &*page.cast() };
    let own = page.share(share).ok_or(io::ErrorKind::InvalidInput)?;
    let _ = BUDGET.set(own);
    Ok(())
}

/// The program is about to start: the host has written down what is held for this guest so far. What the engine's heap grows
/// by from now on comes on top.
pub fn note_heap() {
    if let Some(budget) = BUDGET.get() {
        let beside = budget.held().wrapping_sub(heap());
        BESIDE_HEAP.store(beside, Ordering::Relaxed);
    }
}

/// Takes down what the module's memories begin with. Before it is loaded.
pub fn expect_memories(facts: &Facts) {
    for (initial, bytes) in INITIAL.iter().zip(&facts.memories) {
        initial.store(*bytes, Ordering::Relaxed);
    }
}

/// Writes down what is held for this guest now.
fn hold_heap(budget: &GuestShare<'_>) {
    let held = BESIDE_HEAP.load(Ordering::Relaxed).wrapping_add(heap());
    // The heap may have become smaller than what of it is charged to others.
    budget.hold(u64::try_from(held.cast_signed()).unwrap_or(0));
}

/// What the heap has of the system, in bytes: the engine's objects, the program's tables, the bytes of its data segments.
fn heap() -> u64 {
    // SAFETY: reads the C library's own counters.
    let info = unsafe { libc::mallinfo2() };
    (info.arena as u64).saturating_add(info.hblkhd as u64)
}

/// The container's memory limit now, in bytes; `u64::MAX` without one.
pub fn budget_limit() -> u64 {
    BUDGET.get().map_or(u64::MAX, GuestShare::limit)
}

/// The last growth that was refused, if any was.
pub fn refused_growth() -> Option<Refusal> {
    BUDGET.get()?.refusal()
}

/// Signals whose default is not to end the process (signal(7)), those that cannot be caught, those of faults, which are
/// the engine's, and SIGPIPE, which is ignored.
const NOT_ENDING: [c_int; 15] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCONT,
    libc::SIGCHLD,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGPIPE,
    libc::SIGILL,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGTRAP,
];
/// The last real-time signal, and the two that the C library keeps for itself.
const LAST_SIGNAL: c_int = 64;
const RESERVED: [c_int; 2] = [32, 33];

/// What a handler says, encoded beforehand: it may not allocate.
struct Report {
    /// To the host.
    message: Vec<u8>,
    /// To the program's stderr.
    line: String,
}

static REPORTS: [AtomicPtr<Report>; LAST_SIGNAL as usize + 1] =
    [const { AtomicPtr::new(ptr::null_mut()) }; LAST_SIGNAL as usize + 1];

extern "C" fn on_ending(signal: c_int) {
    say_report(signal);
    exit(128 + signal)
}

/// Says what was prepared for a signal. Async-signal-safe.
fn say_report(signal: c_int) {
    if let Some(report) = REPORTS.get(signal as usize) {
        // SAFETY: never freed; write, send and _exit are async-signal-safe.
        unsafe {
            if let Some(Report { message, line }) = report.load(Ordering::Acquire).as_ref() {
                libc::write(2, line.as_ptr().cast(), line.len());
                libc::send(
                    CONTROL_FD,
                    message.as_ptr().cast(),
                    message.len(),
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                );
            }
        }
    }
}

/// Prepares what the handler of an ending signal says.
fn set_report(signal: c_int, status: c_int, reason: String) {
    let line = match reason.is_empty() {
        true => String::new(),
        false => format!("slipway: {reason}\n"),
    };
    let end = End {
        status: status as u8,
        reason,
        out_of_memory: false,
    };
    if let Ok(message) = slipway_protocol::encode(&FromGuest::Ended(end)) {
        // The one before, if any, may be read at this moment: it stays.
        let report = Box::into_raw(Box::new(Report { message, line }));
        REPORTS[signal as usize].store(report, Ordering::Release);
    }
}

/// The end that RLIMIT_CPU is about to bring gets a reason.
pub fn report_cpu_time(seconds: u64) {
    let reason = format!("CPU-time budget used up: the program may compute for {seconds} s");
    set_report(libc::SIGXCPU, 128 + libc::SIGXCPU, reason);
}

/// Ends the process at a system call that its filter has trapped, with a reason.
pub fn end_at_trapped_call(call: TrappedCall) -> ! {
    let name = slipway_seccomp::name(call.number);
    end(End {
        status: 128 + libc::SIGSYS as u8,
        reason: match call.data {
            // The program raised the signal itself.
            _ if call.number < 0 => String::new(),
            slipway_seccomp::UNLISTED => format!(
                "the process made a system call that no WebAssembly program makes, {name} (number {}), and was ended (SIGSYS)",
                call.number
            ),
            _ => FORBIDDEN_CALL.to_string(),
        },
        out_of_memory: false,
    })
}

/// Installs handlers that report the end and end the process: pid 1 of a namespace has no default actions.
pub fn report_signals() {
    let ending = |signal: &c_int| !NOT_ENDING.contains(signal) && !RESERVED.contains(signal);
    for signal in (1..=LAST_SIGNAL).filter(ending) {
        set_report(signal, 128 + signal, String::new());
        // SAFETY: the handler is a function of this program and only makes async-signal-safe calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_ending as *const () as libc::sighandler_t;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
    // SAFETY: a disposition. A closed pipe or connection must reach the program as EPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

extern "C" fn on_exhaustion() {
    end_without_memory(format!(
        "memory limit exceeded: the engine has no memory left for the program's tables and its own objects; the program's limit is {} bytes",
        budget_limit()
    ))
}

/// Ends a program that cannot have what it cannot run without.
fn end_without_memory(reason: String) -> ! {
    end(End {
        status: 137,
        reason,
        out_of_memory: true,
    })
}

/// Ends the program here and now.
fn end(end: End) -> ! {
    if !end.reason.is_empty() {
        write_line(2, &format!("slipway: {}", end.reason));
    }
    let status = c_int::from(end.status);
    if let Some(control) = CONTROL.get() {
        let _ = slipway_protocol::send(control.as_fd(), &FromGuest::Ended(end), &[]);
    }
    exit(status)
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

/// The connection to the host, with which this process was started.
///
/// # Errors
/// It was not.
pub fn take_control() -> io::Result<BorrowedFd<'static>> {
    let control = slipway_sys::inherit(CONTROL_FD)?;
    Ok(CONTROL.get_or_init(|| control).as_fd())
}

/// An error unless the engine calls this program's functions where they stand between it and the C library's: budgets, walls and
/// reports hang on that, and the linker decides it.
///
/// # Errors
/// The name of the first that it would miss.
pub fn check_interposed() -> Result<(), String> {
    let ours: [(&CStr, *const c_void); 21] = [
        (c"mmap", mmap as *const c_void),
        (c"mmap64", mmap64 as *const c_void),
        (c"munmap", munmap as *const c_void),
        (c"close", close as *const c_void),
        (c"listen", drain::listen as *const c_void),
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

/// Puts three descriptors onto 0, 1 and 2.
pub fn set_standard_streams([stdin, stdout, stderr]: &[OwnedFd; 3]) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Puts a null device of the container's own in the place of the node's where that is a standard stream: its mode and owner
/// are for everybody on the node, and root can change them through a descriptor.
pub fn give_up_nodes_null(own: &OwnedFd) -> io::Result<()> {
    if crate::mounts::is_null(rustix::stdio::stdin()) {
        rustix::stdio::dup2_stdin(own)?;
    }
    if crate::mounts::is_null(rustix::stdio::stdout()) {
        rustix::stdio::dup2_stdout(own)?;
    }
    if crate::mounts::is_null(rustix::stdio::stderr()) {
        rustix::stdio::dup2_stderr(own)?;
    }
    Ok(())
}

/// Writes a line in one call, and ignores a reader that is gone.
pub fn write_line(fd: c_int, text: &str) {
    let line = format!("{text}\n");
    // SAFETY: the buffer lives during the call.
    unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
}

/// Ends the process without destructors: the engine's would take milliseconds, and the kernel frees it all.
pub fn exit(status: c_int) -> ! {
    slipway_sys::exit_now(status)
}
