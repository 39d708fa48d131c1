//! Prometheus' text form.

use std::fmt::{Display, Write};

use crate::{Counter, Histogram, Snapshot};

/// Families of metrics, each with its help and type.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// A family of one value.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help, "gauge");
        self.sample(name, &[], value);
    }

    /// Begins a family.
    pub fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A sample of the family that was begun.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// All that is counted.
    pub fn counters(&mut self, snapshot: &Snapshot) {
        self.gauge(
            "slipway_running_guests",
            "Wasm programs that run on this node now, those of execs included.",
            snapshot.running(),
        );
        let mut counter = |name: &str, help: &str, label: &str, of: &[(&str, Counter)]| {
            self.family(name, help, "counter");
            for (value, counter) in of {
                let label = (label, *value);
                let labels = if value.is_empty() {
                    &[][..]
                } else {
                    &[label][..]
                };
                self.sample(name, labels, snapshot.counter(*counter));
            }
        };
        use Counter as C;
        counter(
            "slipway_cache_hits_total",
            "Containers and execs whose compiled module was in the node's cache.",
            "",
            &[("", C::CacheHits)],
        );
        counter(
            "slipway_cache_misses_total",
            "Containers and execs whose module had to be compiled before.",
            "",
            &[("", C::CacheMisses)],
        );
        counter(
            "slipway_compile_failures_total",
            "Compiles that made nothing: the module was refused, or the compiler failed.",
            "",
            &[("", C::CompileFailures)],
        );
        counter(
            "slipway_start_failures_total",
            "Pods' sandboxes and Wasm containers that could not be created or started.",
            "",
            &[("", C::StartFailures)],
        );
        counter(
            "slipway_refused_memory_growths_total",
            "Growths of a program's memory that its limit did not allow; told when statistics are read, and at the end.",
            "",
            &[("", C::GrowthsRefused)],
        );
        counter(
            "slipway_ended_guests_total",
            "Wasm programs that have run and ended, those of execs included, by how.",
            "reason",
            &[
                ("completed", C::EndedCompleted),
                ("error", C::EndedError),
                ("signal", C::EndedSignal),
                ("trap", C::EndedTrap),
                ("out_of_memory", C::EndedOutOfMemory),
                ("cpu_time", C::EndedCpuTime),
            ],
        );
        use Histogram as H;
        let cached = |hit, miss| [("hit", hit), ("miss", miss)];
        self.histogram(
            snapshot,
            "slipway_create_seconds",
            "From containerd's Create of a Wasm container to the shim's answer; a compile included where the cache missed.",
            "cache",
            &cached(H::CreateHit, H::CreateMiss),
        );
        self.histogram(
            snapshot,
            "slipway_start_seconds",
            "From containerd's Create of a Wasm container until its module is told to run, with what containerd and kubelet take before Start.",
            "cache",
            &cached(H::StartHit, H::StartMiss),
        );
        self.histogram(
            snapshot,
            "slipway_exec_start_seconds",
            "From containerd's Start of an exec until its module is told to run.",
            "",
            &[("", H::Exec)],
        );
        self.histogram(
            snapshot,
            "slipway_compile_seconds",
            "Compiles of modules into the cache, those in the background included; quick is without optimisation.",
            "tier",
            &[("quick", H::CompileQuick), ("full", H::CompileFull)],
        );
    }

    fn histogram(
        &mut self,
        snapshot: &Snapshot,
        name: &str,
        help: &str,
        label: &str,
        of: &[(&str, Histogram)],
    ) {
        self.family(name, help, "histogram");
        for (value, histogram) in of {
            let (buckets, sum) = snapshot.histogram(*histogram);
            let own = [(label, *value)];
            let own = if value.is_empty() { &[][..] } else { &own[..] };
            let bounds = histogram.bounds().map(|micros| seconds(micros).to_string());
            let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
            let mut total = 0;
            for (bound, count) in bounds.zip(buckets) {
                total += count;
                let labels = [own, &[("le", bound)]].concat();
                self.sample(&format!("{name}_bucket"), &labels, total);
            }
            self.sample(&format!("{name}_sum"), own, seconds(sum));
            self.sample(&format!("{name}_count"), own, total);
        }
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counters;
    use std::time::Duration;

    #[test]
    fn buckets_are_cumulative_and_in_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let counters = Counters::new(dir.path());
        for millis in [1, 2, 700_000] {
            counters.observe(Histogram::StartHit, Duration::from_millis(millis));
        }
        counters.count(Counter::EndedTrap);
        counters.runs(9, true);
        let mut text = Text::default();
        text.counters(&Snapshot::read(dir.path()));
        let text = String::from(text);
        for line in [
            "# TYPE slipway_start_seconds histogram\n",
            "slipway_start_seconds_bucket{cache=\"hit\",le=\"0.001\"} 1\n",
            "slipway_start_seconds_bucket{cache=\"hit\",le=\"0.0025\"} 2\n",
            "slipway_start_seconds_bucket{cache=\"hit\",le=\"600\"} 2\n",
            "slipway_start_seconds_bucket{cache=\"hit\",le=\"+Inf\"} 3\n",
            "slipway_start_seconds_sum{cache=\"hit\"} 700.003\n",
            "slipway_start_seconds_count{cache=\"hit\"} 3\n",
            "slipway_exec_start_seconds_bucket{le=\"1\"} 0\n",
            "slipway_ended_guests_total{reason=\"trap\"} 1\n",
            "slipway_cache_hits_total 0\n",
            "slipway_running_guests 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
