//! The task service: each method decodes, makes one call, and encodes.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::types::task::ProcessInfo;

use crate::container::Container;
use crate::error::{self, Result};
use crate::pod::{Member, Pod};
use crate::stats;

/// A request's metadata and timeout, for the delegate.
pub type Forward<'a> = &'a TtrpcContext;

struct Service(Arc<Pod>);

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

/// Execs are not there yet; their requests carry an exec id.
fn no_exec(container: &Container, exec: &str) -> Result<()> {
    match exec.is_empty() {
        true => Ok(()),
        false => Err(error::not_found(format!(
            "exec {exec} of container {}",
            container.id
        ))),
    }
}

fn not_yet(what: &str, id: &str) -> containerd_shim_protos::ttrpc::Error {
    error::unimplemented(format!(
        "container {id}: {what} is not supported yet for Wasm containers"
    ))
}

/// Methods that are Unimplemented for our own containers and forwarded for Linux ones.
macro_rules! later {
    ($($method:ident($request:ty) $name:literal;)* { $($rest:tt)* }) => {
        #[async_trait]
        impl Task for Service {
            $(async fn $method(&self, context: &TtrpcContext, request: $request) -> Result<api::Empty> {
                match self.0.member(&request.id)? {
                    Member::Own(_) => Err(not_yet($name, &request.id)),
                    Member::Linux => self.0.delegate.forward(&request.id, $name, context, &request).await,
                }
            })*
            $($rest)*
        }
    };
}

later! {
    pause(api::PauseRequest) "Pause";
    resume(api::ResumeRequest) "Resume";
    checkpoint(api::CheckpointTaskRequest) "Checkpoint";
    exec(api::ExecProcessRequest) "Exec";
    resize_pty(api::ResizePtyRequest) "ResizePty";
    update(api::UpdateTaskRequest) "Update";
    {
        async fn create(&self, context: &TtrpcContext, request: api::CreateTaskRequest) -> Result<api::CreateTaskResponse> {
            let pid = self.0.create(&request, context).await?;
            Ok(api::CreateTaskResponse { pid, ..Default::default() })
        }

        async fn start(&self, context: &TtrpcContext, request: api::StartRequest) -> Result<api::StartResponse> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    no_exec(&container, &request.exec_id)?;
                    container.start(&self.0.events, &self.0.log).await?;
                    Ok(api::StartResponse { pid: container.pid(), ..Default::default() })
                }
                Member::Linux => self.0.delegate.forward(&request.id, "Start", context, &request).await,
            }
        }

        async fn state(&self, context: &TtrpcContext, request: api::StateRequest) -> Result<api::StateResponse> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    no_exec(&container, &request.exec_id)?;
                    let exit = container.exited();
                    Ok(api::StateResponse {
                        id: container.id.clone(),
                        bundle: container.bundle.clone(),
                        pid: container.pid(),
                        status: container.status().into(),
                        stdin: container.paths.stdin.clone(),
                        stdout: container.paths.stdout.clone(),
                        stderr: container.paths.stderr.clone(),
                        exit_status: exit.as_ref().map_or(0, |e| e.status),
                        exited_at: exit.map(|e| e.at).into(),
                        ..Default::default()
                    })
                }
                Member::Linux if request.exec_id.is_empty() => self.0.delegate.state(context, &request).await,
                Member::Linux => self.0.delegate.forward(&request.id, "State", context, &request).await,
            }
        }

        async fn wait(&self, context: &TtrpcContext, request: api::WaitRequest) -> Result<api::WaitResponse> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    no_exec(&container, &request.exec_id)?;
                    let exit = container.wait().await;
                    Ok(api::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at).into(), ..Default::default() })
                }
                Member::Linux if request.exec_id.is_empty() => self.0.delegate.wait(context, &request).await,
                Member::Linux => self.0.delegate.forward(&request.id, "Wait", context, &request).await,
            }
        }

        async fn kill(&self, context: &TtrpcContext, request: api::KillRequest) -> Result<api::Empty> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    no_exec(&container, &request.exec_id)?;
                    // `all` means the same: a container of ours is one process.
                    container.kill(request.signal)?;
                    Ok(api::Empty::default())
                }
                Member::Linux => self.0.delegate.forward(&request.id, "Kill", context, &request).await,
            }
        }

        async fn delete(&self, context: &TtrpcContext, request: api::DeleteRequest) -> Result<api::DeleteResponse> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    no_exec(&container, &request.exec_id)?;
                    let exit = self.0.delete(&container).await?;
                    Ok(api::DeleteResponse {
                        pid: container.pid(),
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
                Member::Linux => self.0.delegate.forward(&request.id, "Delete", context, &request).await,
            }
        }

        async fn pids(&self, context: &TtrpcContext, request: api::PidsRequest) -> Result<api::PidsResponse> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    let info = |pid| ProcessInfo { pid, ..Default::default() };
                    Ok(api::PidsResponse { processes: container.pids().into_iter().map(info).collect(), ..Default::default() })
                }
                Member::Linux => self.0.delegate.forward(&request.id, "Pids", context, &request).await,
            }
        }

        async fn close_io(&self, context: &TtrpcContext, request: api::CloseIORequest) -> Result<api::Empty> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    no_exec(&container, &request.exec_id)?;
                    if request.stdin {
                        container.close_stdin();
                    }
                    Ok(api::Empty::default())
                }
                Member::Linux => self.0.delegate.forward(&request.id, "CloseIO", context, &request).await,
            }
        }

        async fn stats(&self, context: &TtrpcContext, request: api::StatsRequest) -> Result<api::StatsResponse> {
            match self.0.member(&request.id)? {
                Member::Own(container) => {
                    let cgroup = container.cgroup.as_ref().ok_or_else(|| error::precondition("linux.cgroupsPath is empty: nothing is accounted"))?;
                    let any = stats::read(cgroup).map_err(error::internal)?;
                    Ok(api::StatsResponse { stats: MessageField::some(any), ..Default::default() })
                }
                Member::Linux => self.0.delegate.forward(&request.id, "Stats", context, &request).await,
            }
        }

        async fn connect(&self, context: &TtrpcContext, request: api::ConnectRequest) -> Result<api::ConnectResponse> {
            let task_pid = match self.0.member(&request.id) {
                Ok(Member::Own(container)) => container.pid(),
                Ok(Member::Linux) => {
                    let answer: Result<api::ConnectResponse> = self.0.delegate.forward(&request.id, "Connect", context, &request).await;
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
}
