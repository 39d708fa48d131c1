//! Compiling on a cache miss: once for all shims of the node, in a process that owns nothing.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slipway_cache::{Key, KeyLock, Lookup, Options, Store};
use slipway_cgroup::Cgroup;
use slipway_counters::{Counter, Counters, Histogram};
use slipway_module::Digest;
use slipway_protocol::{Facts, Module, Purpose, Tier, ToGuest};
use slipway_sys::Exec;

use crate::Install;
use crate::install::c_path;

/// Longest compile without optimisation. The largest module tried (39 MB) took 120 s on two busy cores.
const QUICK_DEADLINE: Duration = Duration::from_secs(600);
/// Longest compile with optimisation. 36 MB took 380 s.
const FULL_DEADLINE: Duration = Duration::from_secs(1800);
/// Most of the compiler's own output that is read, in bytes.
const MAX_MESSAGE: u64 = 16 << 10;
/// Memory of a full compile as a multiple of the module's size: 2.5 GB for 14 MB, 3.3 GB for 36 MB.
const COMPILE_MEMORY_FACTOR: u64 = 180;
/// The nice value of a compile that nobody waits for.
const LOWEST: i32 = 19;
/// slipway-aot's status for a module that it refuses.
const REFUSED: u32 = 3;
/// Its status where it cannot write the artefact.
const UNWRITTEN: u32 = 4;
/// Its status where the file is no longer the module of the digest.
const CHANGED: u32 = 6;
/// What it says when it writes more than the cache takes: as the first process of its namespace it gets no SIGXFSZ.
const FILE_TOO_LARGE: &str = "File too large";
/// What the compiler and its libraries say when there is no more memory, each in its own words: LLVM, C++, Rust and the
/// engine, a thread that cannot start, a file that cannot be mapped, and the working directory, which is memory.
const OUT_OF_MEMORY: [&str; 6] = [
    "out of memory",
    "std::bad_alloc",
    "memory allocation",
    "Resource temporarily unavailable",
    "Cannot allocate memory",
    "No space left on device",
];
/// Its end when the working directory has no room for a page of a file that it has mapped.
const NO_PAGE: u32 = 128 + libc::SIGBUS as u32;
/// Most memory of a compile in bytes, however much the node has. The largest module tried (39 MB, unoptimised) took 6.6 GB.
const MAX_COMPILE_MEMORY: u64 = 16 << 30;
/// Its status for a module that runs here, but not for the purpose.
const UNFIT: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Priority {
    /// A start waits for it.
    Normal,
    /// Nobody does.
    Low,
}

/// Makes artefacts for one pod.
#[derive(Clone)]
pub struct Compiler {
    /// Where slipway-aot is.
    pub install: Install,
    /// The artefact cache.
    pub cache_dir: String,
    /// Its bound in bytes.
    pub cache_bytes: u64,
    /// Whose CPU time a compile takes.
    pub cgroup: Option<Cgroup>,
    /// What runs unoptimised is compiled in full as well, for its next start.
    pub improves: bool,
    /// Told how often and how long.
    pub counters: Counters,
    /// Told what happens, for a log or a terminal.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

/// One module to compile.
#[derive(Debug)]
pub struct Job {
    /// Its file.
    file: OwnedFd,
    /// What it is.
    module: Module,
    /// What was wrong with a former artefact.
    pub damaged: Option<String>,
    /// What it is compiled for.
    pub purpose: Purpose,
    /// What is wanted.
    tier: Tier,
    /// The host's end of the socket of the guest that waits for it.
    waiter: Option<Arc<OwnedFd>>,
}

impl Job {
    /// The module in `file`, compiled as `tier` says.
    pub fn new(file: OwnedFd, module: Module, tier: Tier) -> Self {
        Self {
            file,
            module,
            damaged: None,
            purpose: Purpose::default(),
            tier,
            waiter: None,
        }
    }

    /// The guest that was to wait for it is gone.
    fn is_abandoned(&self) -> bool {
        let gone = |waiter: &Arc<OwnedFd>| {
            let mut fds = [PollFd::new(waiter.as_ref(), PollFlags::empty())];
            poll(&mut fds, Some(&Timespec::default())).is_ok()
                && fds[0].revents().contains(PollFlags::HUP)
        };
        self.waiter.as_ref().is_some_and(gone)
    }

    /// The same module in full, where this job leaves it unoptimised by size and nobody has asked for that.
    fn improved(&self) -> Option<Self> {
        let quick = self.tier == Tier::Auto && self.tier() == slipway_cache::Tier::Quick;
        let file = quick.then(|| self.file.try_clone().ok()).flatten()?;
        Some(Self::new(file, self.module.clone(), Tier::Full))
    }

    fn tier(&self) -> slipway_cache::Tier {
        match self.tier.is_full(self.module.size) {
            true => slipway_cache::Tier::Full,
            false => slipway_cache::Tier::Quick,
        }
    }

    fn key(&self) -> Key {
        Key::new(self.module.digest, &self.module.engine, self.tier())
    }
}

/// Why there is no artefact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The module is not one that runs here.
    #[error("{0}")]
    Refused(String),
    /// It does, but not for this purpose; nothing is said about others.
    #[error("{0}")]
    Unfit(String),
    /// The compiler did not do its work.
    #[error("compile: {0}")]
    Failed(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] slipway_cache::Error),
}

impl Compiler {
    /// Compiles a module into the cache, or waits for the one who does. The work runs on a thread of its own.
    ///
    /// # Errors
    /// Every kind of [`CompileError`].
    pub async fn compile(&self, job: Job) -> Result<(), CompileError> {
        let compiler = self.clone();
        let done = tokio::task::spawn_blocking(move || compiler.compile_now(&job)).await;
        done.unwrap_or_else(|e| Err(CompileError::Failed(e.to_string())))
    }

    /// Compiles a module for a guest that waits for it at the other end of `control`, and tells it how that went.
    pub(crate) async fn supply(self, mut job: Job, control: OwnedFd) {
        let control = Arc::new(control);
        job.waiter = Some(control.clone());
        let improved = job.improved();
        let answer = match self.compile(job).await {
            Ok(()) => ToGuest::Artefact,
            Err(e) => ToGuest::NoArtefact(e.to_string()),
        };
        let unoptimised = improved.filter(|_| matches!(answer, ToGuest::Artefact));
        // A guest that has gone does not miss it; the next one will.
        let _ = slipway_protocol::send(control.as_fd(), &answer, &[]);
        if let Some(job) = unoptimised {
            self.improve(job);
        }
    }

    /// Compiles a module that runs unoptimised in full, for its next start: at low priority, one at a time on a node,
    /// and only where there is memory for it. That it cannot be done is for the log alone. The work runs on a thread of
    /// its own.
    pub(crate) fn improve(&self, job: Job) {
        if !self.improves {
            return;
        }
        let compiler = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(e) = compiler.try_improve(&job) {
                (compiler.progress)(&format!("{}: not optimised: {e}", job.module.path));
            }
        });
    }

    fn try_improve(&self, job: &Job) -> Result<(), CompileError> {
        let store = self.store()?;
        let Some(_turn) = store.background_turn()? else {
            return Ok(());
        };
        let needed = job.module.size.saturating_mul(COMPILE_MEMORY_FACTOR);
        let available = available_memory();
        if available < 2 * needed {
            return Err(CompileError::Failed(format!(
                "it may take {needed} bytes of memory, and the node has {available} available; `slipway compile --tier full` does it anyway"
            )));
        }
        // Whoever compiles it already does so for all.
        let Some(lock) = store.lock_until(&job.key(), Instant::now())? else {
            return Ok(());
        };
        match store.lookup(&job.key())? {
            Lookup::Miss { .. } => self.fill(&store, &lock, job, Priority::Low),
            _ => Ok(()),
        }
    }

    fn store(&self) -> Result<Store, slipway_cache::Error> {
        let max_bytes = self.cache_bytes;
        Store::open(&self.cache_dir, Options { max_bytes })
    }

    fn compile_now(&self, job: &Job) -> Result<(), CompileError> {
        let store = self.store()?;
        if let Some(damage) = &job.damaged {
            (self.progress)(&format!("damaged artefact removed: {damage}"));
        }
        let lock = store.lock(&job.key())?;
        match store.lookup(&job.key())? {
            Lookup::Hit(_) => Ok(()),
            Lookup::Refused(reason) => Err(CompileError::Refused(reason)),
            // One that has begun goes on for the next start; one that has waited for its turn until nobody wants it does not begin.
            Lookup::Miss { .. } if job.is_abandoned() => {
                Err(CompileError::Failed("nobody waits for it any more".into()))
            }
            Lookup::Miss { .. } => self.fill(&store, &lock, job, Priority::Normal),
        }
    }

    /// Compiles into the entry that is locked.
    fn fill(
        &self,
        store: &Store,
        lock: &KeyLock,
        job: &Job,
        priority: Priority,
    ) -> Result<(), CompileError> {
        let path = &job.module.path;
        let started = Instant::now();
        let pending = store.pending(lock)?;
        let out = pending
            .file()
            .try_clone()
            .map_err(|e| CompileError::Failed(e.to_string()))?;
        let run = self.run(job, priority, out.into());
        match (&run, job.tier()) {
            (Err(CompileError::Unfit(_)), _) => {}
            (Err(_), _) => self.counters.count(Counter::CompileFailures),
            (Ok(_), tier) => self.counters.observe(histogram(tier), started.elapsed()),
        }
        match run {
            Ok(facts) => drop(store.insert(lock, pending, path, facts)?),
            Err(CompileError::Refused(reason)) => {
                // Not worth failing for: the next pod would hear it from the compiler again.
                let _ = store.insert_refusal(lock, &reason, path);
                return Err(CompileError::Refused(reason));
            }
            Err(e) => return Err(e),
        }
        (self.progress)(&format!(
            "compiled {path} in {:.1} s",
            started.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// slipway-aot from start to end: namespaces of its own, the module in, the artefact out.
    fn run(&self, job: &Job, priority: Priority, out: OwnedFd) -> Result<Facts, CompileError> {
        let failed = |e: std::io::Error| CompileError::Failed(e.to_string());
        let bound = compile_memory(available_memory());
        let arguments = [
            &job.tier().to_string(),
            &Digest::from(job.module.digest).to_string(),
            &bound.to_string(),
        ];
        let argv = self
            .install
            .command(
                "slipway-aot",
                &["compiler", "runtime"],
                &arguments.map(String::as_str),
            )
            .map_err(failed)?;
        let memfd = || rustix::fs::memfd_create(c"slipway-aot", rustix::fs::MemfdFlags::CLOEXEC);
        let message = memfd().map_err(|e| failed(e.into()))?;
        let (control, compilers) = slipway_protocol::pair().map_err(failed)?;
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(failed);
        let null = File::open("/dev/null").map_err(failed)?.into();
        let exec = Exec {
            program: argv.first().cloned().unwrap_or_default(),
            argv,
            envp: Vec::new(),
            fds: vec![
                null,
                clone(&message)?,
                clone(&message)?,
                clone(&job.file)?,
                clone(&out)?,
                compilers,
            ],
            directory: Some(c_path(std::path::Path::new("/")).map_err(failed)?),
            read_only: None,
            with_parent: true,
        };
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
        // What the container waits for takes its CPU time; what nobody waits for must not use its quota up.
        let own = self
            .cgroup
            .as_ref()
            .filter(|_| priority == Priority::Normal);
        let cgroup = own.map(Cgroup::cpu_entry).transpose();
        let cgroup = cgroup
            .map_err(|e| CompileError::Failed(e.to_string()))?
            .unwrap_or_default();
        let child = slipway_sys::spawn(exec, namespaces, &cgroup).map_err(failed)?;
        if priority == Priority::Low {
            // Fails only for a process that has ended.
            let _ = rustix::process::Pid::from_raw(child.pid)
                .map(|pid| rustix::process::setpriority_process(Some(pid), LOWEST));
        }
        let limit = match job.tier() {
            slipway_cache::Tier::Quick => QUICK_DEADLINE,
            slipway_cache::Tier::Full => FULL_DEADLINE,
        };
        let deadline = Instant::now() + limit;
        let facts = self.agree(job, priority, &child, &control, deadline);
        let status = wait(&child, deadline).map_err(failed)?;
        let mut said = Vec::new();
        let mut message = File::from(message);
        let _ = message
            .rewind()
            .and_then(|()| message.take(MAX_MESSAGE).read_to_end(&mut said));
        let text = String::from_utf8_lossy(&said);
        let text = text.trim();
        match status {
            Some(0) => facts,
            Some(UNFIT) => Err(CompileError::Unfit(text.to_string())),
            Some(REFUSED) => Err(CompileError::Refused(text.to_string())),
            Some(_) if text.contains(FILE_TOO_LARGE) => {
                Err(CompileError::Store(slipway_cache::Error::TooLarge {
                    what: "compiled artefact",
                    size: slipway_cache::MAX_ARTEFACT_BYTES + 1,
                    limit: slipway_cache::MAX_ARTEFACT_BYTES,
                }))
            }
            Some(UNWRITTEN) => Err(CompileError::Store(slipway_cache::Error::Write {
                dir: self.cache_dir.clone().into(),
                needed: File::from(out).metadata().map_err(failed)?.len(),
                source: std::io::Error::other(text),
            })),
            Some(CHANGED) => Err(CompileError::Failed(
                "the file changed while it was compiled, and nothing was stored; try again when nobody writes to it".into(),
            )),
            Some(status)
                if status == NO_PAGE || OUT_OF_MEMORY.iter().any(|words| text.contains(words)) =>
            {
                Err(CompileError::Failed(format!(
                    "compiling needs more than {bound} bytes of memory, the bound of this node (three quarters of what it had available); \
                     {}give it more memory, or compile the module on a bigger one",
                    match job.tier() {
                        slipway_cache::Tier::Full => "annotation slipway.dev/compile: quick may take less; ",
                        slipway_cache::Tier::Quick => "",
                    }
                )))
            }
            Some(status) if text.is_empty() => Err(CompileError::Failed(format!(
                "the compiler ended with status {status}, with a bound of {bound} bytes of memory; where the node has run out of memory, \
                 it is killed first (dmesg tells)"
            ))),
            Some(_) => Err(CompileError::Failed(text.to_string())),
            None => Err(CompileError::Failed(format!(
                "no result within {} s; annotation slipway.dev/compile: quick takes less time",
                limit.as_secs()
            ))),
        }
    }

    /// Says what the module is compiled for, and hears what it is: from then on it is being compiled.
    fn agree(
        &self,
        job: &Job,
        priority: Priority,
        child: &slipway_sys::Child,
        control: &OwnedFd,
        deadline: Instant,
    ) -> Result<Facts, CompileError> {
        let failed = |e: slipway_protocol::Error| CompileError::Failed(e.to_string());
        slipway_protocol::send(control.as_fd(), &job.purpose, &[]).map_err(failed)?;
        let mut fds = [
            PollFd::new(control, PollFlags::IN),
            PollFd::new(&child.pidfd, PollFlags::IN),
        ];
        poll(&mut fds, Some(&left(deadline))).map_err(|e| failed(e.into()))?;
        if !fds[0].revents().contains(PollFlags::IN) {
            return Err(CompileError::Failed("the compiler said nothing".into()));
        }
        let (facts, _) = slipway_protocol::recv(control.as_fd()).map_err(failed)?;
        (self.progress)(&format!(
            "compiling {} ({} bytes, {} optimisation{})",
            job.module.path,
            job.module.size,
            match job.tier() {
                slipway_cache::Tier::Full => "full",
                slipway_cache::Tier::Quick => "no",
            },
            match priority {
                Priority::Normal => "",
                Priority::Low => ", at low priority for the next start",
            }
        ));
        Ok(facts)
    }
}

/// Time until then.
fn left(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    }
}

fn histogram(tier: slipway_cache::Tier) -> Histogram {
    match tier {
        slipway_cache::Tier::Full => Histogram::CompileFull,
        slipway_cache::Tier::Quick => Histogram::CompileQuick,
    }
}

/// The bound of a compile's memory in bytes on a node with so much available. A quarter is left for its files, which are
/// memory too, and for others.
fn compile_memory(available: u64) -> u64 {
    (available / 4 * 3).min(MAX_COMPILE_MEMORY)
}

/// MemAvailable of /proc/meminfo in bytes; 0 where it cannot be read.
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The status at the end; `None` at the deadline, when the process has been killed.
fn wait(child: &slipway_sys::Child, deadline: Instant) -> std::io::Result<Option<u32>> {
    let ended = poll(
        &mut [PollFd::new(&child.pidfd, PollFlags::IN)],
        Some(&left(deadline)),
    )? > 0;
    if !ended {
        slipway_sys::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL)?;
        poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], None)?;
    }
    let status = slipway_sys::reap(child.pid)?;
    Ok(status.filter(|_| ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compile_gets_three_quarters_of_the_available_memory_up_to_a_maximum() {
        assert_eq!(compile_memory(0), 0);
        assert_eq!(compile_memory(2 << 30), 3 << 29);
        assert_eq!(compile_memory(u64::MAX), MAX_COMPILE_MEMORY);
    }

    #[test]
    fn a_digest_is_lower_case_hexadecimal() {
        let mut digest = [0; 32];
        digest[31] = 0xa1;
        assert_eq!(
            Digest::from(digest).to_string(),
            format!("{}a1", "0".repeat(62))
        );
    }
}
