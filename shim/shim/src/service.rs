//! The task service: each method decodes, makes one call, and encodes.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::types::task::ProcessInfo;
use slipway_spec::Resources;

use crate::error::{self, Result};
use crate::pod::{Member, Pod};
use crate::{create, exec, stats};

struct Service(Arc<Pod>);

impl Service {
    /// What is asked of a Linux container is the delegate's to answer.
    async fn forward<Q: Message, R: Message>(
        &self,
        id: &str,
        method: &str,
        context: &TtrpcContext,
        request: &Q,
    ) -> Result<R> {
        let delegate = &self.0.delegate;
        delegate.forward(id, method, context, request).await
    }
}

/// Serves a pod on its socket, under both names of the task API: the messages are the same, containerd 1.7 calls
/// version 2.
pub async fn listen(socket: UnixListener, pod: Arc<Pod>) -> std::result::Result<Server, String> {
    let fail = |e: &dyn std::fmt::Display| format!("serve: {e}");
    socket.set_nonblocking(true).map_err(|e| fail(&e))?;
    let listener = Listener::try_from(socket).map_err(|e| fail(&e))?;
    let mut server = Server::new().add_listener(listener);
    for version in ["v3", "v2"] {
        let services = create_task(Arc::new(Service(pod.clone())));
        let renamed = services
            .into_iter()
            .map(|(name, service)| (name.replace("v3", version), service))
            .collect();
        server = server.register_service(renamed);
    }
    server.start().await.map_err(|e| fail(&e))?;
    Ok(server)
}

/// The type of Update's resources.
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

fn resources(request: &api::UpdateTaskRequest) -> Result<Resources> {
    let any = request.resources.get_or_default();
    if !any.type_url.ends_with(RESOURCES) {
        return Err(error::invalid(format!(
            "resources of type {:?}: expected {RESOURCES}",
            any.type_url
        )));
    }
    slipway_spec::parse_resources(&any.value).map_err(error::invalid)
}

/// The answer of a method that has none.
fn empty(done: Result<()>) -> Result<api::Empty> {
    done.map(|()| api::Empty::default())
}

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        let pid = create::create(&self.0, &request, context).await?;
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        context: &TtrpcContext,
        request: api::StartRequest,
    ) -> Result<api::StartResponse> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                match request.exec_id.as_str() {
                    "" => container.start(&self.0.events, &self.0.log).await?,
                    id => {
                        let added = container.execs.get(id)?;
                        exec::start(&self.0, &container, &added, context.timeout_nano > 0).await?;
                    }
                }
                let pid = container.process(&request.exec_id)?.pid();
                Ok(api::StartResponse {
                    pid,
                    ..Default::default()
                })
            }
            Member::Linux => self.forward(&request.id, "Start", context, &request).await,
        }
    }

    async fn exec(
        &self,
        context: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => empty(exec::add(&self.0, &container, &request)),
            Member::Linux => self.forward(&request.id, "Exec", context, &request).await,
        }
    }

    async fn kill(&self, context: &TtrpcContext, request: api::KillRequest) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => empty(match request.exec_id.as_str() {
                "" => container.kill(request.signal, request.all),
                exec => container.execs.get(exec)?.process.kill(request.signal),
            }),
            Member::Linux => self.forward(&request.id, "Kill", context, &request).await,
        }
    }

    async fn state(
        &self,
        context: &TtrpcContext,
        request: api::StateRequest,
    ) -> Result<api::StateResponse> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let process = container.process(&request.exec_id)?;
                let exit = process.exited();
                Ok(api::StateResponse {
                    id: container.id.clone(),
                    exec_id: request.exec_id,
                    bundle: container.bundle.clone(),
                    pid: process.pid(),
                    status: process.status().into(),
                    stdin: process.paths.stdin.clone(),
                    stdout: process.paths.stdout.clone(),
                    stderr: process.paths.stderr.clone(),
                    terminal: process.terminal,
                    exit_status: exit.as_ref().map_or(0, |e| e.status),
                    exited_at: exit.map(|e| e.at).into(),
                    ..Default::default()
                })
            }
            Member::Linux if request.exec_id.is_empty() => {
                self.0.delegate.state(context, &request).await
            }
            Member::Linux => self.forward(&request.id, "State", context, &request).await,
        }
    }

    async fn wait(
        &self,
        context: &TtrpcContext,
        request: api::WaitRequest,
    ) -> Result<api::WaitResponse> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let exit = container.process(&request.exec_id)?.wait().await;
                Ok(api::WaitResponse {
                    exit_status: exit.status,
                    exited_at: Some(exit.at).into(),
                    ..Default::default()
                })
            }
            Member::Linux if request.exec_id.is_empty() => {
                self.0.delegate.wait(context, &request).await
            }
            Member::Linux => self.forward(&request.id, "Wait", context, &request).await,
        }
    }

    async fn delete(
        &self,
        context: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> Result<api::DeleteResponse> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let pid = container.process(&request.exec_id)?.pid();
                let exit = match request.exec_id.as_str() {
                    "" => self.0.delete(&container).await?,
                    exec => container.execs.remove(exec).await?,
                };
                Ok(api::DeleteResponse {
                    pid,
                    exit_status: exit.status,
                    exited_at: Some(exit.at).into(),
                    ..Default::default()
                })
            }
            Member::Linux if request.exec_id.is_empty() => {
                let response = self.0.delegate.delete(context, &request).await?;
                self.0.forget(&request.id);
                Ok(response)
            }
            Member::Linux => self.forward(&request.id, "Delete", context, &request).await,
        }
    }

    async fn pause(
        &self,
        context: &TtrpcContext,
        request: api::PauseRequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => empty(container.pause(&self.0.events).await),
            Member::Linux => self.forward(&request.id, "Pause", context, &request).await,
        }
    }

    async fn resume(
        &self,
        context: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => empty(container.resume(&self.0.events).await),
            Member::Linux => self.forward(&request.id, "Resume", context, &request).await,
        }
    }

    async fn update(
        &self,
        context: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => empty(container.update(&resources(&request)?, &self.0.log)),
            Member::Linux => self.forward(&request.id, "Update", context, &request).await,
        }
    }

    async fn resize_pty(
        &self,
        context: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let side = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                let process = container.process(&request.exec_id)?;
                empty(process.resize(side(request.width), side(request.height)))
            }
            Member::Linux => {
                self.forward(&request.id, "ResizePty", context, &request)
                    .await
            }
        }
    }

    async fn close_io(
        &self,
        context: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let process = container.process(&request.exec_id)?;
                if request.stdin {
                    process.close_stdin();
                }
                empty(Ok(()))
            }
            Member::Linux => {
                self.forward(&request.id, "CloseIO", context, &request)
                    .await
            }
        }
    }

    async fn checkpoint(
        &self,
        context: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> Result<api::Empty> {
        match self.0.member(&request.id)? {
            Member::Own(container) => Err(error::unimplemented(format!(
                "container {}: a Wasm container cannot be checkpointed",
                container.id
            ))),
            Member::Linux => {
                self.forward(&request.id, "Checkpoint", context, &request)
                    .await
            }
        }
    }

    async fn pids(
        &self,
        context: &TtrpcContext,
        request: api::PidsRequest,
    ) -> Result<api::PidsResponse> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let info = |pid| ProcessInfo {
                    pid,
                    ..Default::default()
                };
                Ok(api::PidsResponse {
                    processes: container.pids().into_iter().map(info).collect(),
                    ..Default::default()
                })
            }
            Member::Linux => self.forward(&request.id, "Pids", context, &request).await,
        }
    }

    async fn stats(
        &self,
        context: &TtrpcContext,
        request: api::StatsRequest,
    ) -> Result<api::StatsResponse> {
        match self.0.member(&request.id)? {
            Member::Own(container) => {
                let cgroup = container.cgroup.as_ref().ok_or_else(|| {
                    error::precondition("linux.cgroupsPath is empty: nothing is accounted")
                })?;
                container.count_refused();
                let any = stats::read(cgroup, container.memory()).map_err(error::internal)?;
                Ok(api::StatsResponse {
                    stats: MessageField::some(any),
                    ..Default::default()
                })
            }
            Member::Linux => self.forward(&request.id, "Stats", context, &request).await,
        }
    }

    async fn connect(
        &self,
        context: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> Result<api::ConnectResponse> {
        let task_pid = match self.0.member(&request.id) {
            Ok(Member::Own(container)) => container.main.pid(),
            Ok(Member::Linux) => {
                let answer: Result<api::ConnectResponse> = self
                    .forward(&request.id, "Connect", context, &request)
                    .await;
                answer.map_or(0, |a| a.task_pid)
            }
            // containerd connects to a shim before the shim has a task.
            Err(_) => 0,
        };
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Result<api::Empty> {
        self.0.shutdown();
        Ok(api::Empty::default())
    }
}
