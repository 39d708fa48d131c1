//! Making an artefact for a guest that waits for it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slipway_compile::{CompileError, Direct, Job};
use slipway_protocol::{CompileMode, Module, Purpose, ToGuest};
use slipway_queue::{Client, Request};
use tokio::io::Interest;

/// Who compiles.
#[derive(Clone)]
pub enum Compiler {
    /// This process, with a compiler of its own: the command line.
    Direct(Direct),
    /// The node's queue: shims.
    Queue(Client),
}

/// A module that a guest waits for.
pub(crate) struct Wanted {
    pub(crate) file: OwnedFd,
    pub(crate) module: Module,
    /// What was wrong with a former artefact.
    pub(crate) damaged: Option<String>,
    pub(crate) mode: CompileMode,
    pub(crate) purpose: Purpose,
}

impl Compiler {
    /// Compiles a module for a guest that waits for it at the other end of `control`, and tells it how that went.
    pub(crate) async fn supply(self, wanted: Wanted, control: OwnedFd) {
        let answer = match self.compile(wanted, &control).await {
            Ok(()) => ToGuest::Artefact,
            Err(e) => ToGuest::NoArtefact(e.to_string()),
        };
        // A guest that has gone does not miss it; the next one will.
        let _ = slipway_protocol::send(control.as_fd(), &answer, &[]);
    }

    async fn compile(&self, wanted: Wanted, control: &OwnedFd) -> Result<(), CompileError> {
        let tier = match wanted.mode.is_full(wanted.module.size) {
            true => slipway_cache::Tier::Full,
            false => slipway_cache::Tier::Quick,
        };
        match self {
            Self::Direct(direct) => {
                let mut job = Job::new(wanted.file, wanted.module, tier);
                job.damaged = wanted.damaged;
                job.purpose = wanted.purpose;
                let direct = direct.clone();
                let done = tokio::task::spawn_blocking(move || direct.compile(&job)).await;
                done.unwrap_or_else(|e| Err(CompileError::Failed(e.to_string())))
            }
            Self::Queue(client) => {
                let request = Request {
                    file: wanted.file,
                    module: wanted.module,
                    tier,
                    damaged: wanted.damaged,
                    purpose: Some(wanted.purpose),
                    // Nobody has asked for it to stay unoptimised.
                    full_afterwards: wanted.mode == CompileMode::Auto,
                };
                let gone = gone(control.try_clone()?);
                client.compile(request, gone).await
            }
        }
    }

    /// Has a module that runs unoptimised compiled in full, for its next start.
    pub(crate) fn compile_for_the_next_start(&self, file: OwnedFd, module: Module) {
        // A command ends with its program.
        let Self::Queue(client) = self.clone() else {
            return;
        };
        let request = Request {
            file,
            module,
            tier: slipway_cache::Tier::Full,
            damaged: None,
            purpose: None,
            full_afterwards: false,
        };
        tokio::spawn(async move { client.compile_for_the_next_start(request).await });
    }
}

/// Ends when the guest at the other end has gone. It says nothing while it waits.
async fn gone(control: OwnedFd) {
    let Ok(control) = slipway_sys::async_fd(control, Interest::READABLE) else {
        return std::future::pending().await;
    };
    loop {
        let Ok(mut ready) = control.readable().await else {
            return;
        };
        let mut fds = [PollFd::new(&control, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        if polled.is_ok() && fds[0].revents().contains(PollFlags::HUP) {
            return;
        }
        ready.clear_ready();
    }
}
