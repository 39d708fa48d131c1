//! What the node's counters are told of a container's life.

use std::time::Instant;

use slipway_counters::{Counter, Counters, Histogram};
use slipway_protocol::End;

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
    match end.status {
        _ if end.out_of_memory => Counter::EndedOutOfMemory,
        0 => Counter::EndedCompleted,
        _ if end.reason.starts_with("trap: ") => Counter::EndedTrap,
        152 if !end.reason.is_empty() => Counter::EndedCpuTime,
        // By the shells' rule: a program may also end with such a status by itself.
        129..=192 => Counter::EndedSignal,
        _ => Counter::EndedError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_counted_by_its_reason() {
        let end = |status, reason: &str, out_of_memory| End {
            status,
            reason: reason.into(),
            out_of_memory,
        };
        for (end, counter) in [
            (end(0, "", false), Counter::EndedCompleted),
            (end(7, "", false), Counter::EndedError),
            (end(255, "", false), Counter::EndedError),
            (end(143, "", false), Counter::EndedSignal),
            (end(134, "trap: unreachable", false), Counter::EndedTrap),
            (end(134, "", false), Counter::EndedSignal),
            (
                end(137, "killed by the kernel", true),
                Counter::EndedOutOfMemory,
            ),
            (
                end(152, "CPU-time budget of 1 s used up", false),
                Counter::EndedCpuTime,
            ),
        ] {
            assert_eq!(reason(&end), counter, "{end:?}");
        }
    }
}
