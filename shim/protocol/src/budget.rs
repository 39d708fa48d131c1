//! The live memory budget: one page of shared memory that the host writes and the guest obeys.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// A page of WebAssembly linear memory in bytes.
pub const PAGE_BYTES: u64 = 64 << 10;

/// Layout of the shared page. Only atomics: both sides see every write whole.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BudgetPage {
    /// Bytes of linear memory that the guest's memories may have together; `u64::MAX` for no limit.
    pub limit: AtomicU64,
    /// Bytes that they have now.
    pub used: AtomicU64,
    /// The most that they ever had.
    pub peak: AtomicU64,
    /// Number of growths refused.
    pub refused: AtomicU64,
    /// Size in bytes that the last refused growth would have led to.
    pub wanted: AtomicU64,
}

impl BudgetPage {
    /// Asks for `bytes` more; false, and counted, where the budget has no room.
    pub fn grow(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut wanted = 0;
        let grown = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                wanted = used.saturating_add(bytes);
                (wanted <= limit).then_some(wanted)
            });
        match grown {
            Ok(_) => {
                self.peak.fetch_max(wanted, Ordering::Relaxed);
                true
            }
            Err(_) => {
                self.wanted.store(wanted, Ordering::Relaxed);
                self.refused.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Gives `bytes` back.
    pub fn shrink(&self, bytes: u64) {
        // Never below zero: an unmapped reservation may never have been counted.
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                Some(used.saturating_sub(bytes))
            });
    }
}

/// A budget in figures, as [`BudgetPage`] has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes; `None` for no limit.
    pub limit: Option<u64>,
    /// Bytes.
    pub used: u64,
    /// Bytes.
    pub peak: u64,
    /// Number of growths refused.
    pub refused: u64,
}

impl Usage {
    /// Numbers of the fields that carry limit, used, peak and refused in containerd's messages of metrics. Those who do
    /// not know them skip them.
    pub const METRICS_FIELDS: [u32; 4] = [1000, 1001, 1002, 1003];
}

/// The host's handle on the page: a memfd, written with positioned writes, so that the host maps nothing.
#[derive(Debug)]
pub struct Budget {
    fd: OwnedFd,
}

impl Budget {
    /// A page with this limit in bytes; `None` for no limit.
    ///
    /// # Errors
    /// memfd_create's or write's.
    pub fn new(limit: Option<u64>) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(c"budget", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, 4096)?;
        let budget = Self { fd };
        budget.set_limit(limit)?;
        Ok(budget)
    }

    /// Moves the limit of a running guest, in bytes.
    ///
    /// # Errors
    /// write's.
    pub fn set_limit(&self, limit: Option<u64>) -> io::Result<()> {
        rustix::io::pwrite(&self.fd, &limit.unwrap_or(u64::MAX).to_ne_bytes(), 0)?;
        Ok(())
    }

    /// What the guest has made of it so far.
    ///
    /// # Errors
    /// read's.
    pub fn read(&self) -> io::Result<Usage> {
        let mut bytes = [0u8; 32];
        rustix::io::pread(&self.fd, &mut bytes[..], 0)?;
        let mut fields = [0u64; 4];
        for (field, chunk) in fields.iter_mut().zip(bytes.chunks_exact(8)) {
            let mut word = [0u8; 8];
            word.copy_from_slice(chunk);
            *field = u64::from_ne_bytes(word);
        }
        let [limit, used, peak, refused] = fields;
        Ok(Usage {
            limit: (limit != u64::MAX).then_some(limit),
            used,
            peak,
            refused,
        })
    }
}

impl AsFd for Budget {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_refused_past_the_limit_and_counted_once() {
        let page = BudgetPage::default();
        page.limit.store(3 * PAGE_BYTES, Ordering::Relaxed);
        assert!(page.grow(2 * PAGE_BYTES));
        assert!(!page.grow(2 * PAGE_BYTES));
        assert!(page.grow(PAGE_BYTES));
        assert_eq!(page.refused.load(Ordering::Relaxed), 1);
        assert_eq!(page.wanted.load(Ordering::Relaxed), 4 * PAGE_BYTES);
        assert_eq!(page.peak.load(Ordering::Relaxed), 3 * PAGE_BYTES);
    }

    #[test]
    fn the_hosts_handle_reads_what_it_wrote() {
        let budget = Budget::new(Some(7)).unwrap();
        let limit = || budget.read().unwrap().limit;
        assert_eq!(limit(), Some(7));
        budget.set_limit(None).unwrap();
        assert_eq!(limit(), None);
    }
}
