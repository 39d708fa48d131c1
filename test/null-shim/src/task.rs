//! The Task service: what each method does to a container, and the events it publishes.
//!
//! ```text
//! Create ─▶ Created ─ Start ─▶ Running ─ exit ─▶ Stopped ─ Delete ─▶ (gone)
//!              └───────────────── Delete (killed) ─────────────────────▲
//! ```

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::{
    ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse,
    KillRequest, PidsRequest, PidsResponse, StartRequest, StartResponse, StateRequest,
    StateResponse, Status, WaitResponse,
};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskIO, TaskStart};
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::types::task::ProcessInfo;

use crate::process::{Plan, Process};
use crate::publisher::Publisher;
use crate::spec::Spec;
use crate::{Error, Result, io};

/// The pod's containers, its sandbox among them.
pub struct Tasks {
    tasks: HashMap<String, Task>,
    /// Where events go.
    pub publisher: Publisher,
    /// What a container runs: the program beside the shim's executable.
    sleeper: PathBuf,
}

struct Task {
    request: CreateTaskRequest,
    process: Process,
    cgroups: Vec<PathBuf>,
    state: State,
}

enum State {
    Created,
    Running,
    Stopped { status: u32, at: Timestamp },
}

/// The time of day, as containerd's messages have it.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Default::default()
    }
}

impl Tasks {
    /// No containers yet; events go to containerd's namespace `namespace`.
    pub fn new(namespace: String) -> Result<Self> {
        let sleeper = std::env::current_exe()
            .map_err(io("/proc/self/exe"))?
            .with_file_name("sleeper");
        Ok(Self {
            tasks: HashMap::new(),
            publisher: Publisher::connect(namespace)?,
            sleeper,
        })
    }

    /// Whether the shim may end.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn get(&mut self, id: &str) -> Result<&mut Task> {
        self.tasks
            .get_mut(id)
            .ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// The container whose process has this pidfd.
    pub fn id_of(&self, pidfd: RawFd) -> Option<String> {
        self.tasks
            .iter()
            .find(|(_, task)| task.process.as_fd().as_raw_fd() == pidfd)
            .map(|(id, _)| id.clone())
    }

    /// Create: the process stands in its namespaces and cgroups, held back. The rootfs stays unmounted.
    /// Also returns the descriptor that turns readable at the end of the process.
    pub fn create(
        &mut self,
        request: CreateTaskRequest,
    ) -> Result<(CreateTaskResponse, BorrowedFd<'_>)> {
        let spec = Spec::read(Path::new(&request.bundle))?;
        let cgroups = spec.cgroups()?;
        for cgroup in &cgroups {
            std::fs::create_dir_all(cgroup).map_err(io(cgroup.to_string_lossy()))?;
        }
        let plan = Plan {
            program: self.sleeper.clone(),
            namespaces: spec.namespaces()?,
            cgroups,
            hostname: spec.hostname,
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let process = Process::spawn(&plan)?;
        let pid = process.pid;
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            })
            .into(),
            pid,
            ..Default::default()
        };
        let task = Task {
            process,
            cgroups: plan.cgroups,
            state: State::Created,
            request,
        };
        self.publisher
            .publish("/tasks/create", "containerd.events.TaskCreate", &event)?;
        let task = self
            .tasks
            .entry(event.container_id)
            .insert_entry(task)
            .into_mut();
        Ok((
            CreateTaskResponse {
                pid,
                ..Default::default()
            },
            task.process.as_fd(),
        ))
    }

    /// Start: the process has become its program.
    pub fn start(&mut self, request: &StartRequest) -> Result<StartResponse> {
        if !request.exec_id.is_empty() {
            return Err(Error::Unimplemented("Exec".into()));
        }
        let task = self.get(&request.id)?;
        task.process.start()?;
        task.state = State::Running;
        let pid = task.process.pid;
        let event = TaskStart {
            container_id: request.id.clone(),
            pid,
            ..Default::default()
        };
        self.publisher
            .publish("/tasks/start", "containerd.events.TaskStart", &event)?;
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    /// The end of a container's process.
    pub fn ended(&mut self, id: &str) -> Result<()> {
        let task = self.get(id)?;
        let status = task.process.reap()?;
        let at = now();
        let event = TaskExit {
            container_id: id.to_owned(),
            id: id.to_owned(),
            pid: task.process.pid,
            exit_status: status,
            exited_at: Some(at.clone()).into(),
            ..Default::default()
        };
        task.state = State::Stopped { status, at };
        self.publisher
            .publish("/tasks/exit", "containerd.events.TaskExit", &event)
    }

    /// Wait: `None` as long as the container has not ended.
    pub fn wait(&mut self, id: &str) -> Result<Option<WaitResponse>> {
        let State::Stopped { status, at } = &self.get(id)?.state else {
            return Ok(None);
        };
        Ok(Some(WaitResponse {
            exit_status: *status,
            exited_at: Some(at.clone()).into(),
            ..Default::default()
        }))
    }

    /// Kill: one signal. containerd kills twice, and wants to hear "not found" the second time.
    pub fn kill(&mut self, request: &KillRequest) -> Result<()> {
        let task = self.get(&request.id)?;
        match task.state {
            State::Stopped { .. } => Err(Error::NotFound(format!(
                "{}: process already finished",
                request.id
            ))),
            State::Created | State::Running => task.process.kill(request.signal),
        }
    }

    /// Delete: forgets a container that has ended, or was never started, and removes its cgroups.
    pub fn delete(&mut self, request: &DeleteRequest) -> Result<DeleteResponse> {
        let task = self.get(&request.id)?;
        match task.state {
            State::Running => return Err(Error::Invalid(format!("{}: still running", request.id))),
            State::Created => {
                task.process.kill(libc::SIGKILL as u32)?;
                self.ended(&request.id)?;
            }
            State::Stopped { .. } => {}
        }
        let task = self
            .tasks
            .remove(&request.id)
            .ok_or_else(|| Error::NotFound(request.id.clone()))?;
        for cgroup in &task.cgroups {
            std::fs::remove_dir(cgroup).map_err(io(cgroup.to_string_lossy()))?;
        }
        let State::Stopped { status, at } = task.state else {
            return Err(Error::Invalid(format!("{}: not stopped", request.id)));
        };
        let event = TaskDelete {
            container_id: request.id.clone(),
            pid: task.process.pid,
            exit_status: status,
            exited_at: Some(at.clone()).into(),
            ..Default::default()
        };
        self.publisher
            .publish("/tasks/delete", "containerd.events.TaskDelete", &event)?;
        let (pid, exited_at) = (task.process.pid, Some(at).into());
        Ok(DeleteResponse {
            pid,
            exit_status: status,
            exited_at,
            ..Default::default()
        })
    }

    /// State: what containerd shows of a container.
    pub fn state(&mut self, request: &StateRequest) -> Result<StateResponse> {
        let task = self.get(&request.id)?;
        let mut response = StateResponse {
            id: task.request.id.clone(),
            bundle: task.request.bundle.clone(),
            pid: task.process.pid,
            stdin: task.request.stdin.clone(),
            stdout: task.request.stdout.clone(),
            stderr: task.request.stderr.clone(),
            terminal: task.request.terminal,
            ..Default::default()
        };
        response.status = match &task.state {
            State::Created => Status::CREATED,
            State::Running => Status::RUNNING,
            State::Stopped { status, at } => {
                (response.exit_status, response.exited_at) = (*status, Some(at.clone()).into());
                Status::STOPPED
            }
        }
        .into();
        Ok(response)
    }

    /// Pids: the one process.
    pub fn pids(&mut self, request: &PidsRequest) -> Result<PidsResponse> {
        let process = ProcessInfo {
            pid: self.get(&request.id)?.process.pid,
            ..Default::default()
        };
        Ok(PidsResponse {
            processes: vec![process],
            ..Default::default()
        })
    }

    /// Connect: the pids of shim and container.
    pub fn connect(&mut self, id: &str) -> Result<ConnectResponse> {
        let task_pid = self.get(id)?.process.pid;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: "null".into(),
            ..Default::default()
        })
    }
}
