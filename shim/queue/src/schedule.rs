//! Which job is begun next: what a start waits for before what nobody waits for; then each tenant's first before anybody's second, for
//! whoever sends many modules must not be before all others; then the smallest module, where the one that has waited longer counts as
//! smaller. A compile that has run for long keeps nobody out any more: a module that takes the compiler an
//! hour must not be what a node's other pods wait for. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// Memory that a compile is expected to take: so much, and so many times the module's size. 2.5 GB were seen for 14 MB, 3.3 GB
/// for 36 MB, with and without optimisation.
const BASE_BYTES: u64 = 96 << 20;
const FACTOR: u64 = 180;

/// Bytes of memory that compiling a module of this size is expected to take.
pub fn expected(module: u64) -> u64 {
    BASE_BYTES.saturating_add(module.saturating_mul(FACTOR))
}

/// A job as far as its turn is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// A start waits for it.
    pub waited: bool,
    /// Whose it is, by numbers: of each tenant that waits for it; where none does, of who has asked for it first.
    pub tenants: &'a [u64],
    /// It failed for want of memory beside others.
    pub alone: bool,
    /// Size of its module in bytes.
    pub size: u64,
    /// Seconds since it came.
    pub age: u64,
    /// Its place in the order in which jobs have come.
    pub arrival: u64,
    /// It is being compiled.
    pub running: Option<Run>,
}

/// A compile that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// For longer than [`LONG`].
    pub long: bool,
    /// Bytes of memory that it has by now.
    pub memory: u64,
}

/// From then on a compile has the lowest priority, no place among those that run at once, and the memory that it has.
pub const LONG: Duration = Duration::from_secs(60);
/// What a second of waiting takes off the size of a module, in bytes: after a minute one of 4 MB has the rank of none.
const PER_SECOND: u64 = 64 << 10;

/// A job's place in the order of all: the smaller, the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    unwaited: bool,
    /// How many of its tenant's own jobs run or come before it.
    behind_own: usize,
    alone: bool,
    size: u64,
    arrival: u64,
}

/// The ranks of these jobs.
pub fn ranks<'a>(turns: impl IntoIterator<Item = &'a Turn<'a>>) -> Vec<Rank> {
    let turns: Vec<&Turn<'_>> = turns.into_iter().collect();
    let mut ranks: Vec<Rank> = turns.iter().map(|turn| turn.own_rank()).collect();
    let mut order: Vec<usize> = (0..turns.len()).collect();
    order.sort_unstable_by_key(|&at| (turns[at].running.is_none(), ranks[at]));
    let mut counts: BTreeMap<(u64, bool), usize> = BTreeMap::new();
    for at in order {
        let Turn {
            tenants, waited, ..
        } = turns[at];
        let of = |tenant: &u64| (*tenant, *waited);
        let before = tenants
            .iter()
            .map(|t| counts.get(&of(t)).copied().unwrap_or(0));
        // Nobody else's many jobs keep one back that a tenant with few has asked for, too.
        ranks[at].behind_own = before.min().unwrap_or(0);
        for tenant in tenants.iter() {
            *counts.entry(of(tenant)).or_default() += 1;
        }
    }
    ranks
}

impl Turn<'_> {
    /// Its rank among its tenant's.
    fn own_rank(&self) -> Rank {
        Rank {
            unwaited: !self.waited,
            behind_own: 0,
            alone: self.alone,
            size: self
                .size
                .saturating_sub(self.age.saturating_mul(PER_SECOND)),
            arrival: self.arrival,
        }
    }

    /// It runs, and others look whether there is a place beside it.
    fn holds_a_place(&self) -> bool {
        self.running.is_some_and(|run| !run.long)
    }

    /// What is left to others without it.
    fn takes(&self) -> u64 {
        match self.running {
            Some(Run { long: true, memory }) => memory,
            _ => expected(self.size),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<T> {
    Begin(T),
    /// Stopped, and put back into the queue.
    GiveWay(T),
    Nothing,
}

/// What is to be done with jobs of which `at_once` may run, with `bound` bytes of memory together.
pub fn next<T: Copy>(jobs: &[(T, Turn<'_>)], at_once: usize, bound: u64) -> Next<T> {
    let running = || jobs.iter().filter(|(_, turn)| turn.running.is_some());
    let all: Vec<&Turn<'_>> = running().map(|(_, turn)| turn).collect();
    let long: Vec<&Turn<'_>> = running()
        .map(|(_, turn)| turn)
        .filter(|turn| turn.waited && !turn.holds_a_place())
        .collect();
    // What has no room beside long ones that starts wait for waits for them, and nobody waits for it. One that nobody waits for gives way.
    let ranked = jobs.iter().zip(ranks(jobs.iter().map(|(_, turn)| turn)));
    let waiting =
        ranked.filter(|((_, turn), _)| turn.running.is_none() && fits(turn, &long, at_once, bound));
    let Some(((head, turn), _)) = waiting.min_by_key(|(_, rank)| *rank) else {
        return Next::Nothing;
    };
    let background = running().find(|(_, turn)| !turn.waited);
    match background {
        // One at a time of those that nobody waits for.
        Some(_) if !turn.waited => Next::Nothing,
        _ if fits(turn, &all, at_once, bound) => Next::Begin(*head),
        Some((id, _)) => {
            let waited: Vec<&Turn<'_>> = all.into_iter().filter(|turn| turn.waited).collect();
            match fits(turn, &waited, at_once, bound) {
                true => Next::GiveWay(*id),
                false => Next::Nothing,
            }
        }
        None => Next::Nothing,
    }
}

/// Whether a job may run beside these. Beside none each may.
fn fits(turn: &Turn<'_>, running: &[&Turn<'_>], at_once: usize, bound: u64) -> bool {
    let taken = running.iter().map(|turn| turn.takes());
    let taken = taken.fold(expected(turn.size), u64::saturating_add);
    let places = || running.iter().filter(|turn| turn.holds_a_place());
    let alone = turn.alone || places().any(|turn| turn.alone);
    let at_once = if alone { 1 } else { at_once };
    running.is_empty() || places().count() < at_once && taken <= bound
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn turn(waited: bool, size: u64, running: bool) -> Turn<'static> {
        Turn {
            waited,
            tenants: &[0],
            alone: false,
            size: size * MB,
            age: 0,
            arrival: 0,
            running: running.then_some(Run {
                long: false,
                memory: 0,
            }),
        }
    }

    /// Jobs by their place in the list.
    fn next_of(turns: &[Turn<'_>], at_once: usize, bound: u64) -> Next<usize> {
        let jobs: Vec<_> = turns.iter().copied().enumerate().collect();
        next(&jobs, at_once, bound)
    }

    #[test]
    fn what_a_start_waits_for_comes_first_and_then_the_smallest() {
        let turns = [
            turn(false, 1, false),
            turn(true, 9, false),
            turn(true, 3, false),
        ];
        assert_eq!(next_of(&turns, 2, u64::MAX), Next::Begin(2));
        assert_eq!(next_of(&turns[..2], 2, u64::MAX), Next::Begin(1));
        assert_eq!(next_of(&turns[..1], 2, u64::MAX), Next::Begin(0));
        assert_eq!(next_of(&[], 2, u64::MAX), Next::Nothing);
    }

    #[test]
    fn those_that_run_fit_into_the_bound_together_or_one_runs_alone() {
        let room = expected(2 * MB) + expected(3 * MB);
        let two = [turn(true, 2, true), turn(true, 3, false)];
        assert_eq!(next_of(&two, 2, room), Next::Begin(1));
        assert_eq!(next_of(&two, 2, room - 1), Next::Nothing);
        assert_eq!(next_of(&two, 1, room), Next::Nothing);
        assert_eq!(next_of(&two[1..], 2, 0), Next::Begin(0));
    }

    #[test]
    fn one_that_nobody_waits_for_gives_way() {
        let turns = [turn(false, 2, true), turn(true, 3, false)];
        assert_eq!(next_of(&turns, 2, u64::MAX), Next::Begin(1));
        assert_eq!(next_of(&turns, 1, u64::MAX), Next::GiveWay(0));
        assert_eq!(next_of(&turns, 2, expected(4 * MB)), Next::GiveWay(0));
        // There would be no room without it, either.
        let third = [turns[0], turn(true, 4, true), turns[1]];
        assert_eq!(next_of(&third, 3, expected(6 * MB)), Next::Nothing);
        let second = [turn(false, 2, true), turn(false, 1, false)];
        assert_eq!(next_of(&second, 2, u64::MAX), Next::Nothing);
        let beside = [turn(true, 2, true), turn(false, 1, false)];
        assert_eq!(next_of(&beside, 2, u64::MAX), Next::Begin(1));
        assert_eq!(next_of(&beside, 1, u64::MAX), Next::Nothing);
    }

    #[test]
    fn one_that_failed_for_memory_runs_alone_and_last() {
        let alone = Turn {
            alone: true,
            ..turn(true, 1, false)
        };
        let small = [alone, turn(true, 5, false)];
        assert_eq!(next_of(&small, 2, u64::MAX), Next::Begin(1));
        let beside = [alone, turn(true, 5, true)];
        assert_eq!(next_of(&beside, 2, u64::MAX), Next::Nothing);
        let running = Turn {
            running: turn(true, 1, true).running,
            ..alone
        };
        assert_eq!(
            next_of(&[running, turn(true, 5, false)], 2, u64::MAX),
            Next::Nothing
        );
    }

    #[test]
    fn one_that_runs_for_long_keeps_nobody_out() {
        let long = |waited, size, memory| Turn {
            running: Some(Run { long: true, memory }),
            ..turn(waited, size, true)
        };
        let small = turn(true, 1, false);
        // As many as there are processors, and one that is larger than what all may take together.
        let bound = expected(8 * MB);
        let all = [long(true, 2, MB), long(true, 100, 2 * MB), small];
        assert_eq!(next_of(&all, 2, bound), Next::Begin(2));
        let alone = Turn {
            alone: true,
            ..long(true, 1, MB)
        };
        assert_eq!(next_of(&[alone, small], 2, bound), Next::Begin(1));
        let full = [long(true, 2, bound), small];
        assert_eq!(next_of(&full, 2, bound), Next::Nothing);
        // What has no room beside it, though it comes first, keeps no other out.
        let old = Turn {
            age: 1000,
            ..turn(true, 8, false)
        };
        let beside = [long(true, 100, MB), old, small];
        assert_eq!(next_of(&beside, 2, bound), Next::Begin(2));
        let failed = Turn {
            alone: true,
            ..small
        };
        assert_eq!(
            next_of(&[long(true, 100, MB), failed], 2, bound),
            Next::Begin(1)
        );
    }

    #[test]
    fn who_has_waited_comes_before_smaller_ones_that_have_just_come() {
        let old = Turn {
            age: 120,
            ..turn(true, 6, false)
        };
        assert_eq!(
            next_of(&[turn(true, 1, false), old], 2, u64::MAX),
            Next::Begin(1)
        );
        let unwanted = Turn {
            waited: false,
            ..old
        };
        assert_eq!(
            next_of(&[unwanted, turn(true, 9, false)], 2, u64::MAX),
            Next::Begin(1)
        );
    }

    #[test]
    fn each_tenants_first_comes_before_anybodys_second() {
        let of = |tenants, size, running| Turn {
            tenants,
            ..turn(true, size, running)
        };
        let many = [of(&[1], 1, false), of(&[1], 2, false), of(&[1], 3, false)];
        let mut turns = [&many[..], &[of(&[2], 9, false)]].concat();
        assert_eq!(next_of(&turns, 9, u64::MAX), Next::Begin(0));
        // What runs counts.
        turns[0] = of(&[1], 1, true);
        assert_eq!(next_of(&turns, 9, u64::MAX), Next::Begin(3));
        turns[3] = of(&[2], 9, true);
        assert_eq!(next_of(&turns, 9, u64::MAX), Next::Begin(1));
        // What another one has asked for, too, is not behind the others of who has asked for it first.
        turns[2].tenants = &[1, 3];
        assert_eq!(next_of(&turns, 9, u64::MAX), Next::Begin(2));
        // What nobody waits for keeps back none that a start waits for.
        let own = [
            turn(false, 1, true),
            turn(true, 3, false),
            of(&[2], 4, false),
        ];
        assert_eq!(next_of(&own, 9, u64::MAX), Next::Begin(1));
    }

    #[test]
    fn a_tenants_jobs_stand_one_behind_the_other() {
        let turns: Vec<_> = (0..100).map(|n| turn(true, n % 7, false)).collect();
        let ranks = ranks(&turns);
        let mut places: Vec<_> = ranks.iter().map(|rank| rank.behind_own).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..100));
    }

    #[test]
    fn one_that_nobody_waits_for_gives_way_however_long_it_has_run() {
        let long = Turn {
            running: Some(Run {
                long: true,
                memory: 1000 * MB,
            }),
            ..turn(false, 2, true)
        };
        let turns = [long, turn(true, 1, false)];
        assert_eq!(next_of(&turns, 2, 1000 * MB), Next::GiveWay(0));
        assert_eq!(next_of(&turns, 2, 2000 * MB), Next::Begin(1));
    }

    #[test]
    fn one_that_must_be_alone_has_its_turn_though_another_tenant_has_many() {
        let alone = Turn {
            alone: true,
            tenants: &[1],
            ..turn(true, 9, false)
        };
        let many = [turn(true, 1, true), turn(true, 1, false), alone];
        // Nothing else is begun until it can be.
        assert_eq!(next_of(&many, 2, u64::MAX), Next::Nothing);
        assert_eq!(next_of(&many[1..], 2, u64::MAX), Next::Begin(0));
        let own_first = [turn(true, 1, true), turn(true, 1, false)];
        assert_eq!(next_of(&own_first, 2, u64::MAX), Next::Begin(1));
    }
}
