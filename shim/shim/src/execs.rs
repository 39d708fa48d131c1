//! The processes that were added to a running container.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::Status;
use slipway_spec::Plan;

use crate::error::{self, Result};
use crate::events::now;
use crate::process::{Exit, Process};

/// One of them.
pub struct Exec {
    /// The process.
    pub process: Process,
    /// What it is to become.
    pub plan: Plan,
}

/// All that are known.
pub struct Execs {
    /// The container's id, for messages.
    container: String,
    by_id: Mutex<HashMap<String, Arc<Exec>>>,
}

impl Execs {
    /// None yet.
    pub fn of(container: &str) -> Self {
        Self {
            container: container.into(),
            by_id: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        // Never held across an await or a call that can panic.
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, as they are now.
    pub fn all(&self) -> Vec<Arc<Exec>> {
        self.lock().values().cloned().collect()
    }

    /// One by its id.
    pub fn get(&self, id: &str) -> Result<Arc<Exec>> {
        let none = || error::not_found(format!("exec {id} of container {}", self.container));
        self.lock().get(id).cloned().ok_or_else(none)
    }

    /// Adds one that does not run yet.
    pub fn add(&self, exec: Exec) -> Result<()> {
        let mut execs = self.lock();
        if execs.contains_key(&exec.process.id) {
            return Err(error::exists(&exec.process.id));
        }
        execs.insert(exec.process.id.clone(), Arc::new(exec));
        Ok(())
    }

    /// Takes one away that does not run.
    pub async fn remove(&self, id: &str) -> Result<Exit> {
        let exec = self.get(id)?;
        if exec.process.status() == Status::RUNNING {
            return Err(error::precondition(format!(
                "exec {id} is running: kill it first"
            )));
        }
        if exec.process.is_being_started() {
            return Err(error::precondition(format!(
                "exec {id} is being started: kill it first"
            )));
        }
        // One whose Start was given up before it ran.
        if exec.process.kill(libc::SIGKILL.unsigned_abs()).is_ok() {
            exec.process.wait().await;
        }
        exec.process.handed_over().await;
        self.lock().remove(id);
        let never = Exit {
            status: 0,
            at: now(),
        };
        Ok(exec.process.exited().unwrap_or(never))
    }
}
