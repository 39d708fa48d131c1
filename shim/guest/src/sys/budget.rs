//! The container's memory budget, as this guest sees it: a page that the host and all guests of the container share. An engine asks it
//! for each growth of a memory.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use slipway_protocol::{BudgetPage, GuestShare, Refusal};

/// This guest's share of the container's budget; none before the launch.
static BUDGET: OnceLock<GuestShare<'static>> = OnceLock::new();
/// What is held for this guest beside its memories and its heap, in bytes; wrapped below 0 where more of the heap is charged
/// to others than is held beside it.
static BESIDE_HEAP: AtomicU64 = AtomicU64::new(0);

/// Maps the budget that the host and the container's guests share.
pub fn obey(fd: &OwnedFd, share: usize) -> io::Result<()> {
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

/// A memory grows by so many bytes, where that is no refusal (`None`): the result is counted from now on, and to be given back by
/// [`shrink`]. Before the launch nothing is.
pub fn grow(bytes: u64) -> Option<u64> {
    let Some(budget) = BUDGET.get() else {
        return Some(0);
    };
    hold_heap(budget);
    budget.grow(bytes).then_some(bytes)
}

/// So many bytes are given back.
pub fn shrink(bytes: u64) {
    if let Some(budget) = BUDGET.get() {
        budget.shrink(bytes);
    }
}

/// Writes down what is held for this guest now.
fn hold_heap(budget: &GuestShare<'_>) {
    let held = BESIDE_HEAP.load(Ordering::Relaxed).wrapping_add(heap());
    // The heap may have become smaller than what of it is charged to others.
    budget.set_held(u64::try_from(held.cast_signed()).unwrap_or(0));
}

/// What the heap has of the system, in bytes: the engine's objects, the program's tables, the bytes of its data segments.
fn heap() -> u64 {
    // SAFETY: reads the C library's own counters.
    let info = unsafe { libc::mallinfo2() };
    (info.arena as u64).saturating_add(info.hblkhd as u64)
}

/// The container's memory limit now, in bytes; `u64::MAX` without one.
pub fn limit() -> u64 {
    BUDGET.get().map_or(u64::MAX, GuestShare::limit)
}

/// The last growth that was refused, if any was.
pub fn refusal() -> Option<Refusal> {
    BUDGET.get()?.refusal()
}
