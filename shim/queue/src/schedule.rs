//! Which job is begun next: what a start waits for before what nobody waits for, then the smallest module. Pure.

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
pub struct Turn {
    /// A start waits for it.
    pub waited: bool,
    /// It failed for want of memory beside others.
    pub alone: bool,
    /// Size of its module in bytes.
    pub size: u64,
    /// Its place in the order in which jobs have come.
    pub arrival: u64,
    /// It is being compiled.
    pub running: bool,
}

impl Turn {
    /// The smaller, the earlier.
    pub fn rank(&self) -> impl Ord + use<> {
        (!self.waited, self.alone, self.size, self.arrival)
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
pub fn next<T: Copy>(jobs: &[(T, Turn)], at_once: usize, bound: u64) -> Next<T> {
    let running = || jobs.iter().filter(|(_, turn)| turn.running);
    let waiting = jobs.iter().filter(|(_, turn)| !turn.running);
    let Some((head, turn)) = waiting.min_by_key(|(_, turn)| turn.rank()) else {
        return Next::Nothing;
    };
    let taken = running().fold(0u64, |sum, (_, turn)| {
        sum.saturating_add(expected(turn.size))
    });
    let fits = running().count() < at_once
        && taken.saturating_add(expected(turn.size)) <= bound
        && !turn.alone
        && running().all(|(_, turn)| !turn.alone);
    let background = running().find(|(_, turn)| !turn.waited);
    match background {
        _ if running().next().is_none() => Next::Begin(*head),
        // One at a time of those that nobody waits for.
        Some(_) if !turn.waited => Next::Nothing,
        _ if fits => Next::Begin(*head),
        Some((id, _)) if turn.waited => Next::GiveWay(*id),
        _ => Next::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn turn(waited: bool, size: u64, running: bool) -> Turn {
        Turn {
            waited,
            alone: false,
            size: size * MB,
            arrival: 0,
            running,
        }
    }

    /// Jobs by their place in the list.
    fn next_of(turns: &[Turn], at_once: usize, bound: u64) -> Next<usize> {
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
            running: true,
            ..alone
        };
        assert_eq!(
            next_of(&[running, turn(true, 5, false)], 2, u64::MAX),
            Next::Nothing
        );
    }
}
