//! A shim's side of the queue.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use slipway_cache::{Options, Store, Tier};
use slipway_compile::{CompileError, Install, c_path};
use slipway_protocol::{Module, Purpose, discard};
use slipway_sys::{CgroupEntry, Child, Exec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::directory::Directory;
use crate::record::Record;
use crate::wire::{FromWorker, Order, ToWorker};

/// How long a worker may take from its start until it listens.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to reach one that is being started.
const ATTEMPT: Duration = Duration::from_millis(10);
/// Before who found the queue full asks again.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// After which a start that waits says so in the log: the worker may stand still.
const LONG_WAIT: Duration = Duration::from_secs(60);
/// How often the worker may be killed in the middle of a compile that a start waits for.
const MAX_WORKERS: u32 = 10;
/// How often the module of somebody else may not serve.
const MAX_AGAIN: u32 = 1000;
/// From here on, a status is that of a signal.
const KILLED: u32 = 129;
/// Most of what a worker says when it cannot start, in bytes.
const MAX_MESSAGE: u64 = 4096;

/// Asks the node's worker to compile, and starts one where there is none. Within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    /// Where the worker and the compiler are.
    pub install: Install,
    /// The artefact cache.
    pub cache_dir: String,
    /// Its bound in bytes.
    pub cache_bytes: u64,
    /// For whom: the namespace of the pod.
    pub tenant: String,
    /// Told what happens, for the log.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A module to be compiled.
#[derive(Debug)]
pub struct Request {
    /// Its file.
    pub file: OwnedFd,
    /// What it is.
    pub module: Module,
    /// How thoroughly.
    pub tier: Tier,
    /// What was wrong with a former artefact.
    pub damaged: Option<String>,
    /// What a start waits for; `None`: nobody waits.
    pub purpose: Option<Purpose>,
    /// Compiled without optimisation, it is compiled in full afterwards.
    pub full_afterwards: bool,
}

/// A connection, and what it was told last.
struct Heard {
    socket: AsyncFd<OwnedFd>,
    result: Result<(), CompileError>,
}

impl Client {
    /// Has a module compiled into the cache. When `left` comes to its end, nobody waits any more: the compile goes on, and
    /// this listens on, for the log has what becomes of it.
    ///
    /// # Errors
    /// Every kind of [`CompileError`].
    pub async fn compile(
        &self,
        request: Request,
        left: impl Future<Output = ()>,
    ) -> Result<(), CompileError> {
        let path = request.module.path.clone();
        let heard = self.ask(request, left).await?;
        if heard.result.is_ok() {
            let client = self.clone();
            tokio::spawn(async move {
                client.listen_on(&heard.socket, &path).await;
            });
        }
        heard.result
    }

    /// Has a module compiled for its next start; nobody waits for it. What becomes of it is for the log alone.
    pub async fn compile_for_the_next_start(&self, request: Request) {
        let path = request.module.path.clone();
        let heard = self.ask(request, std::future::pending()).await;
        if let Err(e) = heard.and_then(|heard| heard.result) {
            self.say_not_optimised(&path, &e);
        }
    }

    /// Starts a worker, where there are jobs and none works them off: one was killed, or the machine has started anew.
    pub async fn resume(&self) {
        let directory = Directory::open(Path::new(&self.cache_dir));
        let jobs = directory.and_then(|directory| directory.jobs());
        if jobs.is_ok_and(|jobs| !jobs.is_empty())
            && let Err(e) = self.connect().await
        {
            (self.progress)(&e.to_string());
        }
    }

    fn say_not_optimised(&self, path: &str, e: &CompileError) {
        (self.progress)(&format!("{path}: not optimised: {e}"));
    }

    /// Hears what becomes of a module whose first compile is done, and sees to it that there is a worker for it.
    async fn listen_on(&self, socket: &AsyncFd<OwnedFd>, path: &str) {
        loop {
            match hear(socket).await {
                Ok(FromWorker::Said(text)) => (self.progress)(&text),
                // To who administers the node.
                Ok(FromWorker::Forgotten(_) | FromWorker::Again | FromWorker::Full) => {}
                Ok(FromWorker::Ended(Ok(()))) => return,
                Ok(FromWorker::Ended(Err(e))) => return self.say_not_optimised(path, &e),
                Err(_) => return self.resume().await,
            }
        }
    }

    async fn ask(
        &self,
        request: Request,
        left: impl Future<Output = ()>,
    ) -> Result<Heard, CompileError> {
        let order = Box::new(Order {
            record: Record {
                install: self.install.root().display().to_string(),
                cache_bytes: self.cache_bytes,
                module: request.module,
                tier: request.tier,
                full_afterwards: request.full_afterwards,
                tenant: self.tenant.clone(),
            },
            damaged: request.damaged,
            purpose: request.purpose,
        });
        let heard = self.submit(order, request.file.as_fd(), left).await;
        discard(vec![request.file]);
        heard
    }

    async fn submit(
        &self,
        mut order: Box<Order>,
        file: BorrowedFd<'_>,
        left: impl Future<Output = ()>,
    ) -> Result<Heard, CompileError> {
        let mut left = pin!(left);
        let path = order.record.module.path.clone();
        let mut long = pin!(tokio::time::sleep(LONG_WAIT));
        let mut told = false;
        let (mut killed, mut again, mut full) = (0, 0, false);
        while killed < MAX_WORKERS && again < MAX_AGAIN {
            // Who was turned away because something was short comes back later.
            let pause = match full {
                true => FULL_PAUSE,
                false => ATTEMPT * (killed + again.min(MAX_WORKERS)) * 10,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = &mut left, if order.purpose.is_some() => order.purpose = None,
            }
            let socket = self.connect().await?;
            let submitted = ToWorker::Submit(order);
            let sent = slipway_protocol::send(socket.as_fd(), &submitted, &[file]);
            let ToWorker::Submit(given) = submitted else {
                break;
            };
            order = given;
            match sent {
                Err(slipway_protocol::Error::Closed) => {
                    killed += 1;
                    continue;
                }
                sent => sent?,
            }
            loop {
                let waits = order.purpose.is_some();
                let heard = tokio::select! {
                    heard = hear(&socket) => heard,
                    () = &mut left, if waits => {
                        order.purpose = None;
                        let _ = slipway_protocol::send(socket.as_fd(), &ToWorker::Leave, &[]);
                        continue;
                    }
                    () = &mut long, if waits && !told => {
                        told = true;
                        let seconds = LONG_WAIT.as_secs();
                        (self.progress)(&format!(
                            "{path}: its compile has been waited for for {seconds} s; `slipway cache ls` shows whether it waits or is being compiled, slipway-queue is the process that sees to it"
                        ));
                        continue;
                    }
                };
                match heard {
                    Ok(FromWorker::Said(text)) => (self.progress)(&text),
                    Ok(FromWorker::Forgotten(_)) => {}
                    Ok(FromWorker::Ended(result)) => return Ok(Heard { socket, result }),
                    Ok(FromWorker::Again) => {
                        again += 1;
                        break;
                    }
                    Ok(FromWorker::Full) => {
                        if !full {
                            (self.progress)(&format!(
                                "{path} waits for a place in the compile queue: too many modules of its namespace are in it"
                            ));
                        }
                        full = true;
                        break;
                    }
                    // It was killed, or has just ended: another one goes on.
                    Err(slipway_protocol::Error::Closed) => {
                        killed += 1;
                        break;
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Err(CompileError::Failed(match killed {
            MAX_WORKERS => "the compile queue's worker was killed again and again".into(),
            _ => format!(
                "other pods' files of the same module changed {again} times while they were copied; try again"
            ),
        }))
    }

    /// A connection to the worker, which is started where there is none.
    async fn connect(&self) -> Result<AsyncFd<OwnedFd>, CompileError> {
        // Makes the directory where it is missing, and sees to it that it is root's alone.
        let max_bytes = self.cache_bytes;
        let store = Store::open(&self.cache_dir, Options { max_bytes })?;
        let directory = Directory::make(store.path()).map_err(|e| {
            let remedy = slipway_cache::remedy(&e);
            CompileError::Store(format!("compile queue of {}: {e}{remedy}", self.cache_dir))
        })?;
        let deadline = Instant::now() + PATIENCE;
        let mut started: Option<Started> = None;
        loop {
            match directory.connect() {
                Ok(socket) => {
                    if let Some(started) = started {
                        tokio::spawn(started.ends());
                    }
                    return Ok(slipway_sys::async_fd(socket, Interest::READABLE)?);
                }
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
            match &started {
                None => started = Some(self.start()?),
                // Another one had the lock, which may be on its way in or out.
                Some(one) if one.has_ended()? => started = None,
                Some(_) => {}
            }
            if Instant::now() >= deadline {
                if let Some(started) = started {
                    tokio::spawn(started.ends());
                }
                let text = "the compile queue's worker does not answer";
                return Err(CompileError::Failed(text.into()));
            }
            tokio::time::sleep(ATTEMPT).await;
        }
    }

    /// Starts a worker, which owns nothing of this process and ends by itself.
    fn start(&self) -> io::Result<Started> {
        let program = c_path(&self.install.program("slipway-queue"))?;
        let null = slipway_sys::open_null;
        let memfd = rustix::fs::memfd_create(c"slipway-queue", rustix::fs::MemfdFlags::CLOEXEC)?;
        let exec = Exec {
            program: program.clone(),
            argv: vec![program, c_path(Path::new(&self.cache_dir))?],
            envp: Vec::new(),
            fds: vec![null()?, null()?, memfd.try_clone()?],
            directory: Some(c_path(Path::new("/"))?),
            read_only: None,
            with_parent: false,
        };
        let Child { pid, pidfd } = slipway_sys::spawn(exec, 0, &CgroupEntry::default())?;
        Ok(Started {
            pid,
            pidfd: slipway_sys::async_fd(pidfd, Interest::READABLE)?,
            said: memfd.into(),
        })
    }
}

/// A worker that this process has started.
struct Started {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    /// What it says when it cannot work.
    said: File,
}

impl Started {
    /// Whether it has ended, and not because it cannot work.
    fn has_ended(&self) -> Result<bool, CompileError> {
        match slipway_sys::reap(self.pid)? {
            None => Ok(false),
            // It was killed before it listened: another one is tried.
            Some(0 | KILLED..) => Ok(true),
            Some(status) => {
                let mut text = String::new();
                let mut said = &self.said;
                said.rewind()?;
                said.take(MAX_MESSAGE).read_to_string(&mut text)?;
                let name = "slipway-queue";
                Err(CompileError::Failed(match text.trim() {
                    "" => format!("{name} ended with status {status}"),
                    text => text.into(),
                }))
            }
        }
    }

    /// Takes it off the kernel's table, whenever it ends.
    async fn ends(self) {
        let _ = self.pidfd.readable().await;
        let _ = slipway_sys::reap(self.pid);
    }
}

async fn hear(socket: &AsyncFd<OwnedFd>) -> Result<FromWorker, slipway_protocol::Error> {
    loop {
        let mut ready = socket.readable().await?;
        match slipway_protocol::recv(socket.as_fd()) {
            Err(slipway_protocol::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
            }
            Err(e) => return Err(e),
            Ok((message, _)) => return Ok(message),
        }
    }
}
