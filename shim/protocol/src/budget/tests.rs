use std::sync::atomic::AtomicBool;

use super::*;

fn page(limit: u64, count: u64) -> Box<BudgetPage> {
    Box::new(BudgetPage {
        limit: limit.into(),
        count: count.into(),
        unused: [0; 6],
        shares: std::array::from_fn(|_| Share::default()),
    })
}

/// Room for so many pages, with the kernel's tables for them.
fn pages(n: u64) -> u64 {
    with_page_tables(n * PAGE_BYTES)
}

#[test]
fn growth_is_refused_past_the_limit_and_counted_once() {
    let page = page(pages(3), 1);
    let guest = page.share(0).unwrap();
    assert!(guest.grow(2 * PAGE_BYTES));
    assert_eq!(guest.refusal(), None);
    assert!(!guest.grow(2 * PAGE_BYTES));
    assert!(guest.grow(PAGE_BYTES));
    let refusal = Refusal {
        wanted: 4 * PAGE_BYTES,
        beside: 2 * PAGE_BYTES / PAGE_TABLES,
        limit: pages(3),
    };
    assert_eq!(guest.refusal(), Some(refusal));
    assert_eq!(guest.own.refused.load(Ordering::Relaxed), 1);
    assert_eq!(guest.own.peak.load(Ordering::Relaxed), 3 * PAGE_BYTES);
    guest.shrink(u64::MAX);
    assert!(guest.grow(3 * PAGE_BYTES));
}

#[test]
fn what_the_engine_holds_comes_off_the_limit() {
    let page = page(pages(3), 1);
    let guest = page.share(0).unwrap();
    guest.set_held(PAGE_BYTES);
    assert!(!guest.grow(3 * PAGE_BYTES));
    assert!(guest.grow(2 * PAGE_BYTES));
    // More is held than there was room for: nothing more is granted, and nothing wraps.
    guest.set_held(u64::MAX);
    assert!(!guest.grow(1));
}

#[test]
fn a_guest_has_what_the_others_have_left() {
    let page = page(pages(4), 2);
    let [main, exec] = [0, 1].map(|index| page.share(index).unwrap());
    assert!(main.grow(3 * PAGE_BYTES));
    exec.set_held(PAGE_BYTES / 2);
    assert!(!exec.grow(PAGE_BYTES));
    exec.set_held(0);
    assert!(exec.grow(PAGE_BYTES));
    assert!(!main.grow(PAGE_BYTES));
    exec.shrink(PAGE_BYTES);
    assert!(main.grow(PAGE_BYTES));
}

#[test]
fn guests_that_grow_at_once_never_pass_the_limit_together() {
    const GUESTS: usize = 4;
    const ROOM: u64 = 64 * PAGE_BYTES;
    let page = page(with_page_tables(ROOM), GUESTS as u64);
    let granted = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for index in 0..GUESTS {
            let (guest, granted, over) = (page.share(index).unwrap(), &granted, &over);
            scope.spawn(move || {
                for round in 0..20_000 {
                    let bytes = PAGE_BYTES * (1 + round % 40);
                    if guest.grow(bytes) {
                        let all = granted.fetch_add(bytes, Ordering::SeqCst) + bytes;
                        over.fetch_or(all > ROOM, Ordering::SeqCst);
                        granted.fetch_sub(bytes, Ordering::SeqCst);
                        guest.shrink(bytes);
                    }
                }
            });
        }
    });
    assert!(!over.load(Ordering::SeqCst));
    assert_eq!(page.taken(), 0);
}

#[test]
fn a_guest_that_writes_over_the_limit_does_not_move_the_hosts() {
    let budget = Budget::new(Some(7)).unwrap();
    rustix::io::pwrite(&budget.fd, &u64::MAX.to_ne_bytes(), 0).unwrap();
    assert_eq!(budget.limit(), Some(7));
    assert_eq!(budget.read().unwrap().limit, Some(7));
}

#[test]
fn the_hosts_handle_reads_what_it_wrote() {
    let budget = Budget::new(Some(7)).unwrap();
    assert_eq!(budget.limit(), Some(7));
    budget.set_limit(None).unwrap();
    assert_eq!(budget.limit(), None);
    let shares = [5, 6].map(|held| {
        let share = budget.share().unwrap();
        share.set_held(held).unwrap();
        share
    });
    assert_eq!([shares[0].index(), shares[1].index()], [0, 1]);
    assert_eq!(shares[1].read().unwrap().held, 6);
    assert_eq!(budget.read().unwrap().held, 11);
    shares[0].give_back();
    assert_eq!(budget.read().unwrap().held, 6);
}

#[test]
fn the_host_reads_what_a_guest_has_written() {
    let budget = Budget::new(Some(10)).unwrap();
    let [_, share] = [(), ()].map(|()| budget.share().unwrap());
    assert_eq!(share.refusal(), None);
    let mut words = [1u64, 2, 3, 4, 5, 6].map(u64::to_ne_bytes).concat();
    words.resize(SHARE_BYTES as usize, 0);
    rustix::io::pwrite(&budget.fd, &words, share.offset()).unwrap();
    let refusal = Refusal {
        wanted: 5,
        beside: 6,
        limit: 10,
    };
    assert_eq!(share.refusal(), Some(refusal));
    let usage = Usage {
        limit: None,
        used: 1,
        held: 2,
        peak: 3,
        refused: 4,
    };
    assert_eq!(share.read().unwrap(), usage);
}

#[test]
fn a_share_is_given_again_when_its_guest_is_gone() {
    let budget = Budget::new(None).unwrap();
    let mut shares: Vec<_> = (0..MAX_SHARES).map(|_| budget.share().unwrap()).collect();
    let error = budget.share().unwrap_err().to_string();
    assert!(error.contains("1023 processes"), "{error}");
    shares[3].set_held(9).unwrap();
    drop(shares.swap_remove(3));
    let again = budget.share().unwrap();
    assert_eq!((again.index(), again.read().unwrap().held), (3, 0));
}

#[test]
fn a_guest_cannot_take_the_memory_from_under_the_others() {
    let budget = Budget::new(None).unwrap();
    let share = budget.share().unwrap();
    assert!(rustix::fs::ftruncate(share.as_fd(), 0).is_err());
}
