//! Who is connected: shims, `slipway compile` and `slipway cache rm`. What they ask, and what they are told.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use slipway_compile::CompileError;

use super::Worker;
use super::job::State;
use super::jobs::unwanted;
use crate::wire::{FromWorker, ToWorker};

/// Between two attempts to take a connection while there is no descriptor for it.
const WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(20);

impl Worker {
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE) => {
                // The connection stays where it is until one of the others goes, which has no event of its own.
                std::thread::sleep(WITHOUT_DESCRIPTORS);
                return;
            }
            Err(_) => return,
        };
        // The directory lets nobody else in; this holds although somebody may open it one day.
        if slipway_sys::peer_user(socket.as_fd()).is_ok_and(|user| user == 0) {
            let number = self.number();
            self.clients.insert(number, socket);
        }
    }

    pub(super) fn hear(&mut self, client: u64) {
        let Some(socket) = self.clients.get(&client) else {
            return;
        };
        match slipway_protocol::recv(socket.as_fd()) {
            Ok((ToWorker::Submit(order), fds)) => match fds.into_iter().next() {
                Some(module) => self.submit(client, *order, module),
                None => {
                    let text = "the compile queue's worker has no descriptor left for the module";
                    let failed = Err(CompileError::Failed(text.into()));
                    self.send(client, &FromWorker::Ended(failed));
                    self.hang_up(client);
                }
            },
            Ok((ToWorker::Leave, _)) => self.leave(client, true),
            Ok((ToWorker::Forget(name), _)) => {
                let forgotten = self.forget(&name);
                self.send(client, &FromWorker::Forgotten(forgotten));
            }
            Ok((ToWorker::Stop, _)) => self.is_stopped = true,
            Err(slipway_protocol::Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.hang_up(client),
        }
    }

    fn hang_up(&mut self, client: u64) {
        self.clients.remove(&client);
        self.leave(client, false);
    }

    /// A client does not wait any longer; it may go on listening.
    fn leave(&mut self, client: u64, listens: bool) {
        for job in self.jobs.values_mut() {
            let Some(at) = job.listeners.iter().position(|l| l.client == client) else {
                continue;
            };
            let waited = job.listeners[at].purpose.take().is_some();
            if !listens {
                job.listeners.remove(at);
            }
            if waited {
                // The next start finds it done.
                job.wanted = true;
                job.set_priority();
            }
        }
    }

    /// Takes a job out of the queue, unless a start waits for it.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let Some(job) = self.jobs.get_mut(name) else {
            return true;
        };
        if job.waited() {
            return false;
        }
        job.wanted = false;
        // Its compiler takes a moment to end. A worker that is killed until then leaves the job to nobody.
        self.directory.withdraw(name);
        job.kept = None;
        self.abandon(name);
        true
    }

    /// Ends what nobody wants, now or when its thread tells of it.
    fn abandon(&mut self, name: &str) {
        match self.jobs.get_mut(name).map(|job| &mut job.state) {
            Some(State::Running(running)) => running.stop(),
            Some(State::Waiting) => self.finish(name, Err(unwanted())),
            Some(State::Arriving(_)) | None => {}
        }
    }

    /// Tells whoever listens to any job: something of the node's.
    pub(super) fn say_to_somebody(&mut self, text: String) {
        let jobs = self.jobs.iter();
        let listened = jobs.filter(|(_, job)| !job.listeners.is_empty());
        if let Some(name) = listened.map(|(name, _)| name.clone()).next() {
            self.say(&name, text);
        }
    }

    /// Tells the first who listens to a job: one log of a node is enough.
    pub(super) fn say(&mut self, name: &str, text: String) {
        let listeners = self.jobs.get(name).map(|job| &job.listeners);
        if let Some(client) = listeners.and_then(|l| l.first()).map(|l| l.client) {
            self.send(client, &FromWorker::Said(text));
        }
    }

    /// Never waits. Who does not read what is said misses it; who misses the end sees the connection closed, and asks again.
    pub(super) fn send(&mut self, client: u64, message: &FromWorker) {
        let Some(socket) = self.clients.get(&client) else {
            return;
        };
        let sent = slipway_protocol::send(socket.as_fd(), message, &[]);
        if sent.is_err() && matches!(message, FromWorker::Ended(_)) {
            self.clients.remove(&client);
        }
    }
}
