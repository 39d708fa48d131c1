//! Compiling one module: `slipway-aot` from start to end, in a process that owns nothing, under the key's lock.
//!
//! The node's queue compiles what pods wait for; the command line compiles in its own process ([`Direct`]). Both hold the
//! key's lock, so nothing is compiled twice at a time.

mod bounds;
mod install;

pub use bounds::{available_memory, memory_bound, memory_of};
pub use install::{Install, LOADER, c_path};

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use slipway_cache::{Key, KeyLock, Lookup, Options, Store, Tier};
use slipway_module::Digest;
use slipway_protocol::{Facts, Module, Purpose, aot_status};
use slipway_sys::{CgroupEntry, Child, Exec};

/// CPU time of a compile without optimisation in seconds. The largest module tried (39 MB) took 120 s.
const QUICK_SECONDS: u64 = 600;
/// CPU time of a compile with optimisation in seconds. 36 MB took 380 s.
const FULL_SECONDS: u64 = 3600;
/// The longest compile on the clock. It ends one that stands still; a compile of low priority on a busy node may take hours.
const CLOCK_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// How long one that was killed may take to end: the kernel may hold it, on a disk that does not answer.
const KILL_LIMIT: Duration = Duration::from_secs(60);
/// Most of the compiler's own output that is read, in bytes.
const MAX_MESSAGE: u64 = 16 << 10;
/// The nice value of a compile that nobody waits for.
const LOWEST: i32 = 19;
/// What slipway-aot says when it writes more than the cache takes: as the first process of its namespace it gets no SIGXFSZ.
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
/// The end of a compiler whose working directory has no room for a page of a file that it has mapped.
const NO_PAGE: u32 = 128 + libc::SIGBUS as u32;
/// The end of one that the kernel has killed.
const KILLED: u32 = 128 + libc::SIGKILL as u32;

/// One module to compile.
#[derive(Debug)]
pub struct Job {
    /// Its file.
    pub file: OwnedFd,
    /// What it is.
    pub module: Module,
    /// What was wrong with a former artefact.
    pub damaged: Option<String>,
    /// What it is compiled for.
    pub purpose: Purpose,
    /// How thoroughly.
    pub tier: Tier,
}

impl Job {
    /// The module in `file`, for any purpose.
    pub fn new(file: OwnedFd, module: Module, tier: Tier) -> Self {
        Self {
            file,
            module,
            damaged: None,
            purpose: Purpose::default(),
            tier,
        }
    }

    /// The key of its artefact.
    pub fn key(&self) -> Key {
        Key::new(self.module.digest, &self.module.engine, self.tier)
    }
}

/// What a compile may take, and where it runs.
#[derive(Debug, Default)]
pub struct Limits {
    /// RLIMIT_DATA in bytes.
    pub memory: u64,
    /// Nobody waits for it.
    pub background: bool,
    /// Where it is charged; the default is this process's cgroup.
    pub cgroup: CgroupEntry,
}

/// What is told of a compile while it runs.
#[derive(Debug)]
pub enum Step<'a> {
    /// The compiler has been started.
    Started(&'a Child),
    /// For a log or a terminal.
    Said(String),
}

/// Why there is no artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
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
    /// The file was another one by the time it was read: nothing is said about the module.
    #[error(
        "compile: the file changed while it was compiled, and nothing was stored; try again when nobody writes to it"
    )]
    Changed,
    /// It may have done so with more memory.
    #[error("compile: {0}")]
    OutOfMemory(String),
    /// The store failed.
    #[error("{0}")]
    Store(String),
}

impl From<slipway_cache::Error> for CompileError {
    fn from(e: slipway_cache::Error) -> Self {
        Self::Store(e.to_string())
    }
}

impl From<std::io::Error> for CompileError {
    fn from(e: std::io::Error) -> Self {
        Self::Failed(e.to_string())
    }
}

impl From<slipway_protocol::Error> for CompileError {
    fn from(e: slipway_protocol::Error) -> Self {
        Self::Failed(e.to_string())
    }
}

/// Compiles in this process, for the command line.
#[derive(Clone)]
pub struct Direct {
    /// Where slipway-aot is.
    pub install: Install,
    /// The artefact cache.
    pub cache_dir: String,
    /// Its bound in bytes.
    pub cache_bytes: u64,
    /// Told what happens, for a terminal.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Direct {
    /// Compiles a module into the cache, or waits, in this thread, for the one who does.
    ///
    /// # Errors
    /// Every kind of [`CompileError`].
    pub fn compile(&self, job: &Job) -> Result<(), CompileError> {
        let max_bytes = self.cache_bytes;
        let store = Store::open(&self.cache_dir, Options { max_bytes })?;
        let limits = Limits {
            memory: memory_bound(available_memory()),
            ..Limits::default()
        };
        let told = |step: Step<'_>| {
            if let Step::Said(text) = step {
                (self.progress)(&text);
            }
        };
        compile(&store, &self.install, job, &limits, told).map(drop)
    }
}

/// Compiles a module into the store, unless another process has done so by the time that this one holds the key's lock.
/// Returns how long the compiler took; `None`: the artefact was there.
///
/// # Errors
/// Every kind of [`CompileError`].
pub fn compile(
    store: &Store,
    install: &Install,
    job: &Job,
    limits: &Limits,
    mut told: impl FnMut(Step<'_>),
) -> Result<Option<Duration>, CompileError> {
    let path = &job.module.path;
    if let Some(damage) = &job.damaged {
        told(Step::Said(format!("damaged artefact removed: {damage}")));
    }
    let lock = store.lock(&job.key())?;
    match store.lookup(&job.key())? {
        Lookup::Hit(_) => return Ok(None),
        Lookup::Refused(reason) => return Err(CompileError::Refused(reason)),
        Lookup::Miss { .. } => {}
    }
    let started = Instant::now();
    let pending = store.pending(&lock)?;
    let out = pending.file().try_clone()?;
    match run(store, install, job, limits, out.into(), &mut told) {
        Ok(facts) => drop(store.insert(&lock, pending, path, facts)?),
        Err(CompileError::Refused(reason)) => {
            keep_refusal(store, &lock, &reason, path);
            return Err(CompileError::Refused(reason));
        }
        Err(e) => return Err(e),
    }
    let took = started.elapsed();
    told(Step::Said(format!(
        "compiled {path} in {:.1} s",
        took.as_secs_f64()
    )));
    Ok(Some(took))
}

/// Not worth failing for: the next pod would hear it from the compiler again.
fn keep_refusal(store: &Store, lock: &KeyLock, reason: &str, path: &str) {
    let _ = store.insert_refusal(lock, reason, path);
}

/// Changes the priority of a compiler that runs, with all its threads: whether anybody waits for it.
pub fn set_background(pid: i32, background: bool) {
    let nice = if background { LOWEST } else { 0 };
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let id = thread.file_name().to_str().and_then(|id| id.parse().ok());
        // Fails only for a thread that has ended.
        let _ = id
            .and_then(rustix::process::Pid::from_raw)
            .map(|thread| rustix::process::setpriority_process(Some(thread), nice));
    }
}

/// slipway-aot from start to end: namespaces of its own, the module in, the artefact out.
fn run(
    store: &Store,
    install: &Install,
    job: &Job,
    limits: &Limits,
    out: OwnedFd,
    told: &mut impl FnMut(Step<'_>),
) -> Result<Facts, CompileError> {
    let seconds = match job.tier {
        Tier::Quick => QUICK_SECONDS,
        Tier::Full => FULL_SECONDS,
    };
    let arguments = [
        &job.tier.to_string(),
        &Digest::from(job.module.digest).to_string(),
        &limits.memory.to_string(),
        &seconds.to_string(),
    ];
    let argv = install.command(
        "slipway-aot",
        &["compiler", "runtime"],
        &arguments.map(String::as_str),
    )?;
    let memfd = rustix::fs::memfd_create(c"slipway-aot", rustix::fs::MemfdFlags::CLOEXEC);
    let message = memfd.map_err(std::io::Error::from)?;
    let (control, compilers) = slipway_protocol::pair()?;
    let exec = Exec {
        program: argv.first().cloned().unwrap_or_default(),
        argv,
        envp: Vec::new(),
        fds: vec![
            File::open("/dev/null")?.into(),
            message.try_clone()?,
            message.try_clone()?,
            job.file.try_clone()?,
            out.try_clone()?,
            compilers,
        ],
        directory: Some(c_path(std::path::Path::new("/"))?),
        read_only: None,
        with_parent: true,
    };
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let child = slipway_sys::spawn(exec, namespaces, &limits.cgroup)?;
    if limits.background {
        set_background(child.pid, true);
    }
    told(Step::Started(&child));
    let deadline = Instant::now() + CLOCK_LIMIT;
    let facts = agree(job, limits, &child, &control, deadline, told);
    let end = wait(&child, deadline)?;
    let mut said = Vec::new();
    let mut message = File::from(message);
    let _ = message
        .rewind()
        .and_then(|()| message.take(MAX_MESSAGE).read_to_end(&mut said));
    let text = String::from_utf8_lossy(&said);
    let bound = limits.memory;
    let quicker = match job.tier {
        Tier::Full => "; annotation slipway.dev/compile: quick takes less",
        Tier::Quick => "",
    };
    match end {
        End::Exited(0) => facts,
        End::Exited(status) => Err(failure(
            status,
            text.trim(),
            bound,
            job.tier,
            store,
            &File::from(out),
        )),
        End::OutOfCpuTime => Err(CompileError::Failed(format!(
            "no result within {seconds} s of CPU time{quicker}"
        ))),
        End::OutOfTime => Err(CompileError::Failed(format!(
            "no result within {} hours{quicker}",
            CLOCK_LIMIT.as_secs() / 3600
        ))),
    }
}

/// What a compiler that ended with this status and text means.
fn failure(
    status: u32,
    text: &str,
    bound: u64,
    tier: Tier,
    store: &Store,
    out: &File,
) -> CompileError {
    match u8::try_from(status).unwrap_or(u8::MAX) {
        aot_status::UNFIT => return CompileError::Unfit(text.into()),
        aot_status::REFUSED => return CompileError::Refused(text.into()),
        aot_status::CHANGED => return CompileError::Changed,
        _ => {}
    }
    if text.contains(FILE_TOO_LARGE) {
        return slipway_cache::Error::TooLarge {
            what: "compiled artefact",
            size: slipway_cache::MAX_ARTEFACT_BYTES + 1,
            limit: slipway_cache::MAX_ARTEFACT_BYTES,
        }
        .into();
    }
    if status == u32::from(aot_status::UNWRITTEN) {
        return slipway_cache::Error::Write {
            dir: store.path().into(),
            needed: out.metadata().map_or(0, |m| m.len()),
            source: std::io::Error::other(text),
        }
        .into();
    }
    if status == NO_PAGE || OUT_OF_MEMORY.iter().any(|words| text.contains(words)) {
        let hint = match tier {
            Tier::Full => "annotation slipway.dev/compile: quick may take less; ",
            Tier::Quick => "",
        };
        return CompileError::OutOfMemory(format!(
            "compiling needs more than {bound} bytes of memory, the bound of this node (three quarters of what it had available); \
             {hint}give it more memory, or compile the module on a bigger one"
        ));
    }
    if !text.is_empty() {
        return CompileError::Failed(text.into());
    }
    let text = format!(
        "the compiler ended with status {status}, with a bound of {bound} bytes of memory; where the node has run out of memory, \
         it is killed first (dmesg tells)"
    );
    match status {
        KILLED => CompileError::OutOfMemory(text),
        _ => CompileError::Failed(text),
    }
}

/// Says what the module is compiled for, and hears what it is: from then on it is being compiled.
fn agree(
    job: &Job,
    limits: &Limits,
    child: &Child,
    control: &OwnedFd,
    deadline: Instant,
    told: &mut impl FnMut(Step<'_>),
) -> Result<Facts, CompileError> {
    slipway_protocol::send(control.as_fd(), &job.purpose, &[])?;
    let waited = [control.as_fd(), child.pidfd.as_fd()];
    let [said, _ended] = slipway_sys::readable_until(waited, deadline)?;
    if !said {
        return Err(CompileError::Failed("the compiler said nothing".into()));
    }
    let (facts, _) = slipway_protocol::recv(control.as_fd())?;
    told(Step::Said(format!(
        "compiling {} ({} bytes, {} optimisation{})",
        job.module.path,
        job.module.size,
        match job.tier {
            Tier::Full => "full",
            Tier::Quick => "no",
        },
        match limits.background {
            true => ", at low priority for the next start",
            false => "",
        }
    )));
    Ok(facts)
}

/// How a compiler ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exited(u32),
    /// RLIMIT_CPU: the kernel kills it, and does not say why.
    OutOfCpuTime,
    /// It was killed at the deadline.
    OutOfTime,
}

fn wait(child: &Child, deadline: Instant) -> std::io::Result<End> {
    let [ended] = slipway_sys::readable_until([child.pidfd.as_fd()], deadline)?;
    if !ended {
        slipway_sys::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL)?;
        let killed = Instant::now() + KILL_LIMIT;
        slipway_sys::readable_until([child.pidfd.as_fd()], killed)?;
    }
    // Before it is reaped: afterwards the number is nobody's.
    let out_of_cpu_time = bounds::has_used_up_its_cpu_time(child.pid);
    let status = slipway_sys::reap(child.pid)?.unwrap_or(KILLED);
    Ok(match ended {
        true if status == KILLED && out_of_cpu_time => End::OutOfCpuTime,
        true => End::Exited(status),
        false => End::OutOfTime,
    })
}
