//! Files that processes share: as words of memory, and by locks that end with who holds them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The beginning of a file as words that all processes see at once. A word that the file no longer has when it is used
/// ends the process by SIGBUS.
#[derive(Debug)]
pub struct SharedWords {
    at: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to this value alone, and its words are atomic.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps so many words of a file that is open for reading and writing.
    ///
    /// # Errors
    /// mmap's.
    pub fn map(file: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast::<AtomicU64>()) {
            Some(words) if at != libc::MAP_FAILED => Ok(Self { at: words, count }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self`, aligned to a page, and any bytes are words.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the words any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

fn lock(kind: i32, range: &Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.start,
        l_len: range.end - range.start,
        l_pid: 0,
    }
}

/// Locks one byte of a file, which need not have it, or unlocks it. The lock is the open file's (F_OFD_SETLK): it ends
/// when the last descriptor of that is closed, however its process ends.
///
/// # Errors
/// EAGAIN where another open file has it.
pub fn lock_byte(file: BorrowedFd<'_>, at: i64, locked: bool) -> io::Result<()> {
    let kind = if locked { libc::F_WRLCK } else { libc::F_UNLCK };
    let lock = lock(kind, &(at..at + 1));
    // SAFETY: reads a struct that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes of a range others have locked.
///
/// # Errors
/// fcntl's.
pub fn locked_bytes(file: BorrowedFd<'_>, range: Range<i64>) -> io::Result<u64> {
    let mut count = 0;
    let mut left = vec![range];
    while let Some(range) = left.pop() {
        if range.is_empty() {
            continue;
        }
        let mut found = lock(libc::F_RDLCK, &range);
        // SAFETY: reads and writes a struct that outlives the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut found) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if i32::from(found.l_type) == libc::F_UNLCK {
            continue;
        }
        // Any of those that are there, not the first: what is before and behind it is asked for again.
        let start = found.l_start.max(range.start);
        let end = match found.l_len {
            0 => range.end,
            length => (found.l_start + length).min(range.end),
        };
        count += (end - start).unsigned_abs();
        left.extend([range.start..start, end..range.end]);
    }
    Ok(count)
}
