//! What the node's counters are told of a container's life.

use std::time::Instant;

use slipway_counters::{Counter, Counters, Histogram};
use slipway_protocol::{Cause, End};

/// A container that is created.
#[derive(Clone, Copy)]
pub struct StartTimer {
    asked: Instant,
    missed: bool,
}

impl StartTimer {
    /// Create is done; it was asked for at this moment, and had to compile or not.
    pub fn created(counters: &Counters, asked: Instant, missed: bool) -> Self {
        let histogram = match missed {
            false => Histogram::CreateHit,
            true => Histogram::CreateMiss,
        };
        counters.observe(histogram, asked.elapsed());
        Self { asked, missed }
    }

    /// Its program runs.
    pub fn started(self, counters: &Counters, pid: u32) {
        let histogram = match self.missed {
            false => Histogram::StartHit,
            true => Histogram::StartMiss,
        };
        counters.observe(histogram, self.asked.elapsed());
        counters.runs(pid, true);
    }
}

/// An exec runs, whose Start came at this moment.
pub fn exec_started(counters: &Counters, asked: Instant, pid: u32) {
    counters.observe(Histogram::Exec, asked.elapsed());
    counters.runs(pid, true);
}

/// A program that ran has ended.
pub fn ended(counters: &Counters, pid: u32, end: &End) {
    counters.runs(pid, false);
    counters.count(reason(end));
}

fn reason(end: &End) -> Counter {
    match (end.cause, end.status) {
        (Cause::OutOfMemory, _) => Counter::EndedOutOfMemory,
        (Cause::Trap, _) => Counter::EndedTrap,
        (Cause::CpuTime, _) => Counter::EndedCpuTime,
        (Cause::Status, 0) => Counter::EndedCompleted,
        // By the shells' rule: a program may also end with such a status by itself.
        (Cause::Status, 129..=192) => Counter::EndedSignal,
        (Cause::Status, _) => Counter::EndedError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_counted_by_its_cause() {
        for (status, cause, counter) in [
            (0, Cause::Status, Counter::EndedCompleted),
            (7, Cause::Status, Counter::EndedError),
            (255, Cause::Status, Counter::EndedError),
            (143, Cause::Status, Counter::EndedSignal),
            (134, Cause::Trap, Counter::EndedTrap),
            (134, Cause::Status, Counter::EndedSignal),
            (137, Cause::OutOfMemory, Counter::EndedOutOfMemory),
            (152, Cause::CpuTime, Counter::EndedCpuTime),
            (152, Cause::Status, Counter::EndedSignal),
        ] {
            let end = End::new(status, cause, "");
            assert_eq!(reason(&end), counter, "{end:?}");
        }
    }
}
