//! The file: opened, added to, read.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use slipway_sys::SharedWords;

use crate::{BOUNDS, Counter, Histogram};

const FILE: &str = "counters";
/// Size of the file in words and in bytes.
const WORDS: usize = 512;
const BYTES: u64 = 8 * WORDS as u64;
/// The first word: the last byte is the version of the layout.
const MAGIC: u64 = u64::from_ne_bytes(*b"slipway\x01");
/// The first histogram, and the words of each: its buckets, the one above all bounds, the sum.
const HISTOGRAMS: usize = 64;
const HISTOGRAM: usize = BOUNDS + 2;
/// Where the guests' locks are: at this offset plus the pid, for all pids that Linux may give.
const GUESTS: Range<i64> = 1 << 32..(1 << 32) + (1 << 22);

const fn sum(histogram: Histogram) -> usize {
    bucket(histogram, BOUNDS + 1)
}

const fn bucket(histogram: Histogram, bucket: usize) -> usize {
    HISTOGRAMS + histogram as usize * HISTOGRAM + bucket
}

fn lock_of(pid: u32) -> Option<i64> {
    let at = GUESTS.start + i64::from(pid);
    GUESTS.contains(&at).then_some(at)
}

/// Adds to the node's counters. Cheap to clone; the default counts nowhere.
#[derive(Debug, Clone, Default)]
pub struct Counters(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    page: Option<Page>,
    /// The guests that run, by pid.
    running: Vec<u32>,
}

impl Counters {
    /// In this directory, which is made with the file at the first count.
    pub fn new(dir: &Path) -> Self {
        Self(Some(Arc::new(Shared {
            dir: dir.to_owned(),
            state: Mutex::default(),
        })))
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts so many.
    pub fn add(&self, counter: Counter, n: u64) {
        if n > 0 {
            self.with(|state, dir| {
                let page = state.page(dir)?;
                page.add(counter as usize, n);
                Some(())
            });
        }
    }

    /// Counts a duration.
    pub fn observe(&self, histogram: Histogram, duration: Duration) {
        let (number, micros) = histogram.bucket(duration);
        self.with(|state, dir| {
            let page = state.page(dir)?;
            page.add(sum(histogram), micros);
            page.add(bucket(histogram, number), 1);
            Some(())
        });
    }

    /// A guest runs, until it does no more or this process ends.
    pub fn runs(&self, pid: u32, runs: bool) {
        self.with(|state, dir| {
            state.running.retain(|known| *known != pid);
            if runs {
                state.running.push(pid);
            }
            state.page(dir)?.lock(pid, runs);
            Some(())
        });
    }

    /// What cannot be counted is not: nobody's start fails for it.
    fn with(&self, count: impl FnOnce(&mut State, &Path) -> Option<()>) {
        if let Some(shared) = &self.0 {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = count(&mut state, &shared.dir);
        }
    }
}

impl State {
    /// The file as it is on the node now.
    fn page(&mut self, dir: &Path) -> Option<&Page> {
        if !self.page.as_ref().is_some_and(Page::is_whole) {
            self.page = Page::open(dir).ok();
            if let Some(page) = &self.page {
                self.running.iter().for_each(|pid| page.lock(*pid, true));
            }
        }
        self.page.as_ref()
    }
}

/// The file, mapped.
#[derive(Debug)]
struct Page {
    file: File,
    words: SharedWords,
}

impl Page {
    fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let path = dir.join(FILE);
        if let Some(page) = Self::try_open(&path)? {
            return Ok(page);
        }
        // Damaged, or somebody else's: those who have it open see that it is gone.
        std::fs::remove_file(&path)?;
        Self::try_open(&path)?.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// `None`: the file is not what it should be.
    fn try_open(path: &Path) -> io::Result<Option<Self>> {
        // A FIFO in its place would make an open wait, a link would lead elsewhere.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if path.symlink_metadata().is_ok_and(|m| !m.is_file()) => {
                return if path.is_dir() { Err(e) } else { Ok(None) };
            }
            Err(e) => return Err(e),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || ![0, BYTES].contains(&metadata.len()) {
            return Ok(None);
        }
        // All of it now: a page that is not there when it is written to, in a full file system, would end this process.
        fallocate(&file, FallocateFlags::empty(), 0, BYTES)?;
        let words = SharedWords::map(file.as_fd(), WORDS)?;
        let page = Self { file, words };
        let first = &page.words.words()[0];
        let _ = first.compare_exchange(0, MAGIC, Relaxed, Relaxed);
        Ok((first.load(Relaxed) == MAGIC).then_some(page))
    }

    /// It is still the node's, and may be touched.
    fn is_whole(&self) -> bool {
        let whole = |m: std::fs::Metadata| m.nlink() > 0 && m.len() == BYTES;
        self.file.metadata().is_ok_and(whole) && self.words.words()[0].load(Relaxed) == MAGIC
    }

    fn add(&self, word: usize, n: u64) {
        self.words.words()[word].fetch_add(n, Relaxed);
    }

    fn lock(&self, pid: u32, locked: bool) {
        if let Some(at) = lock_of(pid) {
            // Held by another only where a pid has come again before its shim has noticed.
            let _ = slipway_sys::lock_byte(self.file.as_fd(), at, locked);
        }
    }
}

/// The counters at one moment.
#[derive(Debug)]
pub struct Snapshot {
    words: Vec<u64>,
    running: u64,
}

impl Snapshot {
    /// Reads them. Where there is no whole file, nothing has been counted, or is lost: all are zero.
    pub fn read(dir: &Path) -> Self {
        Self::try_read(dir).unwrap_or_else(|_| Self {
            words: vec![0; WORDS],
            running: 0,
        })
    }

    fn try_read(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(dir.join(FILE))?;
        let mut bytes = [0; 8 * WORDS];
        // Read, not mapped: nothing can be taken away meanwhile.
        let _ = rustix::io::pread(&file, &mut bytes[..], 0)?;
        let words = bytes.as_chunks().0.iter();
        let words: Vec<u64> = words.map(|word| u64::from_ne_bytes(*word)).collect();
        if file.metadata()?.len() != BYTES || words.first() != Some(&MAGIC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            words,
            running: slipway_sys::locked_bytes(file.as_fd(), GUESTS)?,
        })
    }

    /// How often.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.words[counter as usize]
    }

    /// How many guests run.
    pub fn running(&self) -> u64 {
        self.running
    }

    /// Durations in each bucket, the last one for what is above all bounds, and their sum in microseconds.
    pub fn histogram(&self, histogram: Histogram) -> (&[u64], u64) {
        let first = bucket(histogram, 0);
        let sum = sum(histogram);
        (&self.words[first..sum], self.words[sum])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    fn hits(dir: &Path) -> u64 {
        Snapshot::read(dir).counter(Counter::CacheHits)
    }

    #[test]
    fn counts_of_all_add_up_and_outlive_them() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("slipway");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let counters = Counters::new(&below);
                    (0..1000).for_each(|_| counters.count(Counter::CacheHits));
                });
            }
        });
        assert_eq!(hits(&below), 8000);
        let mode = below.join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nothing_there_is_nothing_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(hits(&dir.path().join("none")), 0);
        // Nor does it disturb who counts.
        Counters::default().count(Counter::CacheHits);
        Counters::new(Path::new("/proc/none")).count(Counter::CacheHits);
    }

    #[test]
    fn a_file_that_is_damaged_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let counters = Counters::new(dir.path());
        let damages: [&dyn Fn(); 7] = [
            &|| std::fs::remove_file(&path).unwrap(),
            &|| {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(0)
                    .unwrap()
            },
            &|| {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(100)
                    .unwrap()
            },
            &|| {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(1 << 20)
                    .unwrap()
            },
            &|| {
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .write_all_at(b"other", 0)
                    .unwrap()
            },
            &|| {
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
            },
            &|| {
                std::fs::remove_file(&path).unwrap();
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    rustix::fs::FileType::Fifo,
                    0o600.into(),
                    0,
                )
                .unwrap();
            },
        ];
        counters.runs(7, true);
        for damage in damages {
            counters.count(Counter::CacheHits);
            damage();
            assert_eq!(hits(dir.path()), 0);
            counters.count(Counter::CacheHits);
            assert_eq!(hits(dir.path()), 1);
            assert_eq!(Snapshot::read(dir.path()).running(), 1);
        }
    }

    #[test]
    fn guests_run_until_they_end_or_their_shim_does() {
        let dir = tempfile::tempdir().unwrap();
        let running = || Snapshot::read(dir.path()).running();
        let [a, b] = [0; 2].map(|_| Counters::new(dir.path()));
        for (counters, pids) in [(&a, [10, 11, 30]), (&b, [12, 20, 4_194_303])] {
            pids.into_iter().for_each(|pid| counters.runs(pid, true));
        }
        assert_eq!(running(), 6);
        a.runs(11, false);
        assert_eq!(running(), 5);
        drop(b);
        assert_eq!(running(), 2);
    }

    /// `cargo test --release -p slipway-counters cost -- --nocapture` prints the figures; the bound is for any machine, and of this thread's
    /// own time, whatever else the machine does.
    #[test]
    fn the_cost_of_a_start_is_microseconds() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let timed = |of: &mut dyn FnMut()| {
            let now = || {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                Duration::try_from(time).unwrap()
            };
            let started = now();
            of();
            now() - started
        };
        let (mut first, mut more): (Vec<_>, Vec<_>) = (1..=1000)
            .map(|pid| {
                let counters = Counters::new(dir.path());
                let opened = timed(&mut || counters.count(Counter::CacheHits));
                // What else a start counts, and its end.
                let counted = timed(&mut || {
                    counters.observe(Histogram::CreateHit, Duration::from_millis(2));
                    counters.observe(Histogram::StartHit, Duration::from_millis(9));
                    counters.runs(pid, true);
                    counters.runs(pid, false);
                    counters.count(Counter::EndedCompleted);
                });
                (opened, counted)
            })
            .unzip();
        for (what, times) in [
            ("first count", &mut first),
            ("a start and an end", &mut more),
        ] {
            times.sort();
            let [p50, p95] = [times[500], times[950]];
            println!("{what}: {p50:?} p50, {p95:?} p95");
            assert!(p50 < Duration::from_millis(1), "{what}: {p50:?}");
        }
    }

    #[test]
    fn a_duration_is_in_the_bucket_that_it_is_not_above() {
        let dir = tempfile::tempdir().unwrap();
        let counters = Counters::new(dir.path());
        for micros in [0, 1_000, 1_001, 700_000_000] {
            counters.observe(Histogram::StartHit, Duration::from_micros(micros));
        }
        let snapshot = Snapshot::read(dir.path());
        let (buckets, sum) = snapshot.histogram(Histogram::StartHit);
        assert_eq!((buckets[0], buckets[1], buckets[BOUNDS]), (2, 1, 1));
        assert_eq!((buckets.len(), sum), (BOUNDS + 1, 700_002_001));
        assert_eq!(snapshot.histogram(Histogram::CreateMiss).0, [0; BOUNDS + 1]);
        assert_eq!(snapshot.histogram(Histogram::StartMiss).1, 0);
    }
}
