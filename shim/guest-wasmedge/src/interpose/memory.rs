//! The module's linear memories: each growth is a call of mmap(2), which finds the one here first and asks the budget.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use slipway_guest::{budget, end_without_memory};
use slipway_module::MAX_MEMORIES;
use slipway_protocol::Facts;

/// Linear memories that the engine has reserved: (start, length) pairs, in the order in which the module has them.
static START: [AtomicUsize; MAX_MEMORIES] = [const { AtomicUsize::new(0) }; MAX_MEMORIES];
static LENGTH: [AtomicUsize; MAX_MEMORIES] = [const { AtomicUsize::new(0) }; MAX_MEMORIES];
/// Bytes counted for each.
static COUNTED: [AtomicU64; MAX_MEMORIES] = [const { AtomicU64::new(0) }; MAX_MEMORIES];
/// Bytes that each is to begin with, until it has them.
static INITIAL: [AtomicU64; MAX_MEMORIES] = [const { AtomicU64::new(0) }; MAX_MEMORIES];

/// The engine reserves 12 GiB for each memory (lib/system/allocator.cpp); nothing else maps as much without access.
const RESERVATION: usize = 8 << 30;

/// Which of the module's memories an address is in.
pub fn memory_at(address: usize) -> Option<usize> {
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
    let initial = memory.is_some_and(|m| INITIAL[m].swap(0, Ordering::Relaxed) > 0);
    let mut counted = 0;
    if let Some(memory) = memory {
        let Some(bytes) = budget::grow(len as u64) else {
            if initial {
                end_without_memory(budget::refusal().unwrap_or_default().to_string());
            }
            return errno(libc::ENOMEM);
        };
        counted = bytes;
        COUNTED[memory].fetch_add(counted, Ordering::Relaxed);
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
        if let Some(memory) = memory {
            budget::shrink(counted);
            COUNTED[memory].fetch_sub(counted, Ordering::Relaxed);
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
        budget::shrink(counted);
    }
    // SAFETY: passed on as it came.
    unsafe { libc::syscall(libc::SYS_munmap, addr, len) as c_int }
}

/// Takes down what the module's memories begin with. Before it is loaded.
pub fn expect(facts: &Facts) {
    for (initial, bytes) in INITIAL.iter().zip(&facts.memories) {
        initial.store(*bytes, Ordering::Relaxed);
    }
}
