//! The live memory budget of a container: shared memory that the host and all its guests see. The host writes the limit, and
//! each guest its own share of what is taken; nobody's growth may take all of them together over the limit.
//!
//! There is no common counter: a guest that is killed between two writes would leave it wrong. A guest asks whether its growth
//! has room, writes it down in its own share, and adds all shares up again. Of two that grow at the same moment one sees the
//! other, or both do and are refused; never do both get what there is room for only once. The host clears the share of a guest
//! that has ended, so whatever it counted is given back.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(test)]
mod tests;

/// A page of WebAssembly linear memory in bytes.
pub const PAGE_BYTES: u64 = 64 << 10;

/// Most guests of one container at a time.
pub const MAX_SHARES: usize = 1023;

/// The kernel has 8 bytes of page tables for 4 KiB of memory, which are charged with it.
const PAGE_TABLES: u64 = 512;

/// Layout of the shared memory. Only atomics: all sides see every write whole.
#[derive(Debug)]
#[repr(C)]
pub struct BudgetPage {
    /// Bytes that the container may take altogether; `u64::MAX` for no limit.
    limit: AtomicU64,
    /// How many of the shares have ever been used: the first ones.
    count: AtomicU64,
    unused: [u64; 6],
    shares: [Share; MAX_SHARES],
}

/// A guest's part of it, in bytes.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Share {
    /// Bytes that its memories have now.
    used: AtomicU64,
    /// Bytes that are held for it beside its memories: by the engine for the module, by the kernel.
    held: AtomicU64,
    /// The most that its memories ever had.
    peak: AtomicU64,
    /// Number of growths refused.
    refused: AtomicU64,
    /// Size in bytes that the last refused growth would have led to.
    wanted: AtomicU64,
    /// What was taken beside its memories then, by the engine and by others.
    beside: AtomicU64,
}

const SHARE_BYTES: u64 = size_of::<Share>() as u64;
/// The two words of a share that count.
const COUNTED: usize = 16;

/// A growth that was refused, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusal {
    /// What the program's memories would have had.
    pub wanted: u64,
    /// What was taken beside them, by the engine and by the container's other processes.
    pub beside: u64,
    /// The container's limit.
    pub limit: u64,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            wanted,
            beside,
            limit,
        } = self;
        write!(
            f,
            "memory budget exceeded: the program needed {wanted} bytes of memory, its limit is {limit} bytes, of which the engine and the container's other processes hold {beside}"
        )
    }
}

impl BudgetPage {
    /// A guest's own share, which is never another's at the same time.
    pub fn share(&self, index: usize) -> Option<GuestShare<'_>> {
        let own = self.shares.get(index)?;
        Some(GuestShare { page: self, own })
    }

    fn taken(&self) -> u64 {
        let count = usize::try_from(self.count.load(Ordering::SeqCst)).unwrap_or(MAX_SHARES);
        let shares = self.shares.iter().take(count);
        shares.map(Share::taken).fold(0, u64::saturating_add)
    }
}

impl Share {
    fn taken(&self) -> u64 {
        let used = self.used.load(Ordering::SeqCst);
        let held = self.held.load(Ordering::SeqCst);
        with_page_tables(used).saturating_add(held)
    }
}

fn with_page_tables(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / PAGE_TABLES)
}

/// The guest's view of the budget.
#[derive(Debug, Clone, Copy)]
pub struct GuestShare<'a> {
    page: &'a BudgetPage,
    own: &'a Share,
}

impl GuestShare<'_> {
    /// Asks for `bytes` more; false, and counted, where the budget has no room.
    pub fn grow(&self, bytes: u64) -> bool {
        let used = self.own.used.load(Ordering::SeqCst);
        let wanted = used.saturating_add(bytes);
        let limit = self.limit();
        let growth = with_page_tables(wanted) - with_page_tables(used);
        // Before it is written down: a request that is hopeless shall not be in the way of another guest's.
        if self.page.taken().saturating_add(growth) <= limit {
            self.own.used.store(wanted, Ordering::SeqCst);
            if self.page.taken() <= limit {
                self.own.peak.fetch_max(wanted, Ordering::Relaxed);
                return true;
            }
            self.own.used.store(used, Ordering::SeqCst);
        }
        let beside = self.page.taken().saturating_sub(used);
        self.own.wanted.store(wanted, Ordering::Relaxed);
        self.own.beside.store(beside, Ordering::Relaxed);
        self.own.refused.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Gives `bytes` back.
    pub fn shrink(&self, bytes: u64) {
        // Never below zero: an unmapped reservation may never have been counted.
        let used = self.own.used.load(Ordering::SeqCst);
        let left = used.saturating_sub(bytes);
        self.own.used.store(left, Ordering::SeqCst);
    }

    /// Bytes that are held for this guest beside its memories.
    pub fn held(&self) -> u64 {
        self.own.held.load(Ordering::SeqCst)
    }

    /// Writes down what is held for this guest beside its memories, in bytes.
    pub fn set_held(&self, bytes: u64) {
        self.own.held.store(bytes, Ordering::SeqCst);
    }

    /// The container's limit in bytes; `u64::MAX` for no limit.
    pub fn limit(&self) -> u64 {
        self.page.limit.load(Ordering::SeqCst)
    }

    /// The last growth that was refused, if any was.
    pub fn refusal(&self) -> Option<Refusal> {
        let load = |a: &AtomicU64| a.load(Ordering::Relaxed);
        (load(&self.own.refused) > 0).then(|| Refusal {
            wanted: load(&self.own.wanted),
            beside: load(&self.own.beside),
            limit: self.limit(),
        })
    }
}

/// A budget in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the container may take altogether; `None` for no limit.
    pub limit: Option<u64>,
    /// Bytes of the guests' memories.
    pub used: u64,
    /// The most that the memories of one guest ever had, in bytes.
    pub peak: u64,
    /// Number of growths refused.
    pub refused: u64,
    /// Bytes held beside the memories, by the engine and the kernel.
    pub held: u64,
}

impl Usage {
    /// Numbers of the fields that carry limit, used, peak, refused and held in containerd's messages of metrics. Those who
    /// do not know them skip them.
    pub const METRICS_FIELDS: [u32; 5] = [1000, 1001, 1002, 1003, 1004];
}

/// The host's handle on a container's budget: a memfd, written with positioned writes, so that the host maps nothing.
#[derive(Debug)]
pub struct Budget {
    fd: OwnedFd,
    /// What the page's first word is to be. A guest can write there what it likes, and only it itself reads that.
    limit: AtomicU64,
    /// By share: a guest has it.
    given: Mutex<Vec<bool>>,
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

impl Budget {
    /// A budget with this limit in bytes; `None` for no limit.
    ///
    /// # Errors
    /// memfd_create's or write's.
    pub fn new(limit: Option<u64>) -> io::Result<Arc<Self>> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        let fd = memfd_create(c"budget", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, size_of::<BudgetPage>() as u64)?;
        // A guest could end the others by taking the page from under them.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let budget = Self {
            fd,
            limit: AtomicU64::new(u64::MAX),
            given: Mutex::default(),
        };
        budget.set_limit(limit)?;
        Ok(Arc::new(budget))
    }

    fn given(&self) -> MutexGuard<'_, Vec<bool>> {
        // Never held across a call that can panic.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the limit of all guests, in bytes.
    ///
    /// # Errors
    /// write's.
    pub fn set_limit(&self, limit: Option<u64>) -> io::Result<()> {
        let limit = limit.unwrap_or(u64::MAX);
        rustix::io::pwrite(&self.fd, &limit.to_ne_bytes(), 0)?;
        self.limit.store(limit, Ordering::Relaxed);
        Ok(())
    }

    /// The limit as it is now, in bytes; `None` for no limit.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
    }

    /// A share for a further guest, with nothing in it.
    ///
    /// # Errors
    /// write's; [`MAX_SHARES`] guests have one.
    pub fn share(self: &Arc<Self>) -> io::Result<HostShare> {
        let mut given = self.given();
        let index = match given.iter().position(|taken| !taken) {
            Some(free) => free,
            None if given.len() < MAX_SHARES => {
                given.push(false);
                given.len() - 1
            }
            None => {
                return Err(io::Error::other(format!(
                    "the container has {MAX_SHARES} processes, more cannot share its memory budget: end some first"
                )));
            }
        };
        let share = HostShare {
            budget: self.clone(),
            index,
        };
        rustix::io::pwrite(&self.fd, &[0; SHARE_BYTES as usize], share.offset())?;
        rustix::io::pwrite(&self.fd, &(given.len() as u64).to_ne_bytes(), 8)?;
        if let Some(taken) = given.get_mut(index) {
            *taken = true;
        }
        drop(given);
        Ok(share)
    }

    /// What the guests have made of it so far, those that have ended and are still known included.
    ///
    /// # Errors
    /// read's.
    pub fn read(&self) -> io::Result<Usage> {
        let limit = self.limit();
        let count = self.given().len();
        let mut bytes = vec![0u8; count * SHARE_BYTES as usize];
        let read = rustix::io::pread(&self.fd, bytes.as_mut_slice(), SHARE_BYTES)?;
        bytes.truncate(read);
        let start = Usage {
            limit,
            ..Usage::default()
        };
        let shares = bytes.chunks_exact(SHARE_BYTES as usize);
        Ok(shares.map(figures).fold(start, |all, one| Usage {
            limit,
            used: all.used.saturating_add(one.used),
            peak: all.peak.max(one.peak),
            refused: all.refused.saturating_add(one.refused),
            held: all.held.saturating_add(one.held),
        }))
    }
}

/// A share's words as figures.
fn figures(share: &[u8]) -> Usage {
    let mut words = share.chunks_exact(8).map(word);
    let mut next = || words.next().unwrap_or(0);
    let (used, held, peak, refused) = (next(), next(), next(), next());
    Usage {
        limit: None,
        used,
        peak,
        refused,
        held,
    }
}

/// The host's handle on one guest's share. Dropped only when the guest is gone.
#[derive(Debug)]
pub struct HostShare {
    budget: Arc<Budget>,
    index: usize,
}

impl HostShare {
    /// Which of the shares it is, for [`crate::ToGuest::Launch`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// The container's.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    fn offset(&self) -> u64 {
        SHARE_BYTES * (self.index as u64 + 1)
    }

    /// Writes down what is held for the guest before its program runs, in bytes.
    ///
    /// # Errors
    /// write's.
    pub fn set_held(&self, bytes: u64) -> io::Result<()> {
        rustix::io::pwrite(&self.budget.fd, &bytes.to_ne_bytes(), self.offset() + 8)?;
        Ok(())
    }

    /// The guest has ended: what it had is the others' again. Its figures of the past stay to be read.
    pub fn give_back(&self) {
        // A write to a sealed memfd that is as large as it was made fails for nobody.
        let _ = rustix::io::pwrite(&self.budget.fd, &[0; COUNTED], self.offset());
    }

    fn bytes(&self) -> io::Result<[u8; SHARE_BYTES as usize]> {
        let mut bytes = [0u8; SHARE_BYTES as usize];
        rustix::io::pread(&self.budget.fd, &mut bytes[..], self.offset())?;
        Ok(bytes)
    }

    /// What the guest has made of it so far; without the limit, which is the container's.
    ///
    /// # Errors
    /// read's.
    pub fn read(&self) -> io::Result<Usage> {
        self.bytes().map(|bytes| figures(&bytes))
    }

    /// The last growth that was refused, if any was. Of a guest that could not tell it itself any more.
    pub fn refusal(&self) -> Option<Refusal> {
        let bytes = self.bytes().ok()?;
        let mut words = bytes.chunks_exact(8).map(word).skip(3);
        let (refused, wanted, beside) = (words.next()?, words.next()?, words.next()?);
        let limit = self.budget.limit().unwrap_or(u64::MAX);
        (refused > 0).then_some(Refusal {
            wanted,
            beside,
            limit,
        })
    }
}

impl Drop for HostShare {
    fn drop(&mut self) {
        self.give_back();
        if let Some(taken) = self.budget.given().get_mut(self.index) {
            *taken = false;
        }
    }
}

impl AsFd for HostShare {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.budget.fd.as_fd()
    }
}
