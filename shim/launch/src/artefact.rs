//! Compiling on a cache miss: once for all shims of the node, in a process that owns nothing.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slipway_cache::{Key, Lookup, Options, Store};
use slipway_cgroup::Cgroup;
use slipway_protocol::Tier;
use slipway_sys::Exec;

use crate::Install;
use crate::install::c_path;

/// Longest compile without optimisation. The largest module tried (39 MB) took 120 s on two busy cores.
const QUICK_DEADLINE: Duration = Duration::from_secs(600);
/// Longest compile with optimisation. 36 MB took 380 s.
const FULL_DEADLINE: Duration = Duration::from_secs(1800);
/// Most of the compiler's own output that is read, in bytes.
const MAX_MESSAGE: u64 = 16 << 10;
/// slipway-aot's status for a module that it refuses.
const REFUSED: u32 = 3;

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
    /// Told what happens, for a log or a terminal.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

/// One module to compile.
#[derive(Debug)]
pub struct Job {
    /// Its file.
    pub module: OwnedFd,
    /// sha256 of its bytes.
    pub digest: [u8; 32],
    /// Its size in bytes.
    pub size: u64,
    /// Its name, for messages.
    pub path: String,
    /// The engine's part of the key.
    pub engine: String,
    /// What was wrong with a former artefact.
    pub damaged: Option<String>,
    /// What is wanted.
    pub tier: Tier,
}

/// Why there is no artefact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The module is not one that runs here.
    #[error("{0}")]
    Refused(String),
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

    fn compile_now(&self, job: &Job) -> Result<(), CompileError> {
        let full = job.tier.is_full(job.size);
        let tier = if full {
            slipway_cache::Tier::Full
        } else {
            slipway_cache::Tier::Quick
        };
        let key = Key::new(job.digest, &job.engine, tier);
        let store = Store::open(
            &self.cache_dir,
            Options {
                max_bytes: self.cache_bytes,
            },
        )?;
        if let Some(damage) = &job.damaged {
            (self.progress)(&format!("damaged artefact removed: {damage}"));
        }
        let lock = store.lock(&key)?;
        match store.lookup(&key)? {
            Lookup::Hit(_) => return Ok(()),
            Lookup::Refused(reason) => return Err(CompileError::Refused(reason)),
            Lookup::Miss { .. } => {}
        }
        (self.progress)(&format!(
            "compiling {} ({} bytes, {} optimisation)",
            job.path,
            job.size,
            if full { "full" } else { "no" }
        ));
        let started = std::time::Instant::now();
        let pending = store.pending(&lock)?;
        let out = pending
            .file()
            .try_clone()
            .map_err(|e| CompileError::Failed(e.to_string()))?;
        match self.run(job, tier, out.into()) {
            Ok(()) => drop(store.insert(&lock, pending, &job.path)?),
            Err(CompileError::Refused(reason)) => {
                // Not worth failing for: the next pod would hear it from the compiler again.
                let _ = store.insert_refusal(&lock, &reason, &job.path);
                return Err(CompileError::Refused(reason));
            }
            Err(e) => return Err(e),
        }
        (self.progress)(&format!(
            "compiled {} in {:.1} s",
            job.path,
            started.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// slipway-aot from start to end: namespaces of its own, the module in, the artefact out.
    fn run(&self, job: &Job, tier: slipway_cache::Tier, out: OwnedFd) -> Result<(), CompileError> {
        let failed = |e: std::io::Error| CompileError::Failed(e.to_string());
        let argv = self
            .install
            .command(
                "slipway-aot",
                &["compiler", "runtime"],
                &[&tier.to_string()],
            )
            .map_err(failed)?;
        let memfd = || rustix::fs::memfd_create(c"slipway-aot", rustix::fs::MemfdFlags::CLOEXEC);
        let message = memfd().map_err(|e| failed(e.into()))?;
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
                clone(&job.module)?,
                out,
            ],
            directory: Some(c_path(std::path::Path::new("/")).map_err(failed)?),
        };
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
        let cgroup = self.cgroup.as_ref().map(Cgroup::cpu_entry).transpose();
        let cgroup = cgroup
            .map_err(|e| CompileError::Failed(e.to_string()))?
            .unwrap_or_default();
        let child = slipway_sys::spawn(exec, namespaces, None, &cgroup).map_err(failed)?;
        let deadline = match tier {
            slipway_cache::Tier::Quick => QUICK_DEADLINE,
            slipway_cache::Tier::Full => FULL_DEADLINE,
        };
        let status = wait(&child, deadline).map_err(failed)?;
        let mut text = String::new();
        let mut message = File::from(message);
        let _ = message
            .rewind()
            .and_then(|()| message.take(MAX_MESSAGE).read_to_string(&mut text));
        let text = text.trim();
        match status {
            Some(0) => Ok(()),
            Some(REFUSED) => Err(CompileError::Refused(text.to_string())),
            Some(status) if text.is_empty() => Err(CompileError::Failed(format!(
                "the compiler ended with status {status}; it may have run out of memory (dmesg tells)"
            ))),
            Some(_) => Err(CompileError::Failed(text.to_string())),
            None => Err(CompileError::Failed(format!(
                "no result within {} s; annotation slipway.dev/compile: quick takes less time",
                deadline.as_secs()
            ))),
        }
    }
}

/// The status at the end; `None` at the deadline, when the process has been killed.
fn wait(child: &slipway_sys::Child, deadline: Duration) -> std::io::Result<Option<u32>> {
    let timeout = Timespec {
        tv_sec: deadline.as_secs() as i64,
        tv_nsec: 0,
    };
    let ended = poll(
        &mut [PollFd::new(&child.pidfd, PollFlags::IN)],
        Some(&timeout),
    )? > 0;
    if !ended {
        slipway_sys::pidfd_kill(child.pidfd.as_fd(), libc::SIGKILL)?;
        poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], None)?;
    }
    let status = slipway_sys::reap(child.pid)?;
    Ok(status.filter(|_| ended))
}

/// Path by which another process of root's can open a descriptor of this one.
pub(crate) fn path_of(fd: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}
