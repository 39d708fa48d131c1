//! Where the time of a start goes: marks of both processes on one clock.

use std::borrow::Cow;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Steps of a start in the order in which they were reached.
///
/// A mark costs one reading of the clock (20 ns), so marks are always taken; the shim logs them at debug level
/// and `make bench` collects them from there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline(Vec<(Cow<'static, str>, u64)>);

impl Timeline {
    /// A timeline that begins now.
    pub fn begin() -> Self {
        let mut timeline = Self::default();
        timeline.mark("begin");
        timeline
    }

    /// `step` is done.
    pub fn mark(&mut self, step: &'static str) {
        self.0.push((step.into(), now()));
    }

    /// The steps so far, for the other process; this timeline begins anew.
    pub fn hand_over(&mut self) -> Self {
        std::mem::replace(self, Self::begin())
    }

    /// The other process's steps, which happened since the last mark of this one.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// Microseconds from each mark to the next: `spec=41 cgroup=203`.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pair) in self.0.windows(2).enumerate() {
            let [(_, from), (step, to)] = pair else {
                continue;
            };
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{step}={}", to.saturating_sub(*from) / 1000)?;
        }
        Ok(())
    }
}

/// Nanoseconds since the epoch: the same in all processes of a node.
///
/// The standard library's monotonic clock cannot be sent to another process, and rustix's aborts the process on a
/// kernel whose vDSO has no `__vdso_getcpu` (User-mode Linux). Who sets the clock during a start spoils one figure.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_by_the_time_since_the_step_before() {
        let mut shim = Timeline(vec![
            ("begin".into(), 1_000_000),
            ("spec".into(), 1_041_000),
        ]);
        shim.append(Timeline(vec![("mounts".into(), 2_000_000)]));
        assert_eq!(shim.to_string(), "spec=41 mounts=959");
    }
}
