//! Linux containers of the pod: every request goes, as it came, to a `containerd-shim-runc-v2` of the node.
//!
//! It is started on first need, with a socket of ours as descriptor 3 and without the verb `start` (which would find
//! our own socket and answer with it), and told to go when its last container is deleted, or could not be made. Its containers join the
//! holder's namespaces through the paths in their specs; it publishes their events itself.

mod cleanup;
mod life;
mod program;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::asynchronous::Client;
use containerd_shim_protos::ttrpc::proto::Request;

pub use cleanup::clean_up;
use program::PROGRAM;
pub use program::{info, maps_ids};

use crate::error::{self, Result};
use crate::events::Events;
use crate::log::Log;
use crate::process::Exit;
use crate::settings::Settings;
use crate::{handler, socket};

/// Directory in the sandbox's bundle that is the delegate's working directory.
const DIRECTORY: &str = "delegate";
/// In it: the delegate's pid, start time and socket, for `delete` after a crash.
const PID_FILE: &str = "pid";
/// Names of the task service, newest first: containerd 2's delegate serves both or the newer, 1.7's the older.
const SERVICES: [&str; 2] = ["containerd.task.v3.Task", "containerd.task.v2.Task"];
/// How long a delegate may take to answer its first request.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a delegate may take to end after Shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The pod's Linux containers.
#[derive(Clone)]
pub struct Delegate {
    shared: Arc<Shared>,
}

struct Shared {
    group: String,
    namespace: String,
    grpc: String,
    ttrpc: String,
    bundle: PathBuf,
    events: Events,
    log: Log,
    /// Held while the delegate is started or stopped.
    running: tokio::sync::Mutex<Option<Running>>,
    /// Read while a container is being created: the delegate is not stopped then. It knows of none yet, and would obey.
    creating: tokio::sync::RwLock<()>,
    containers: Mutex<HashMap<String, Linux>>,
}

#[derive(Clone)]
struct Running {
    client: Client,
    service: &'static str,
    pid: i32,
    gone: tokio::sync::watch::Receiver<bool>,
}

/// What must be known of a Linux container should its shim die.
#[derive(Clone)]
struct Linux {
    bundle: String,
    pid: u32,
    exit: Option<Exit>,
}

impl Delegate {
    /// Nothing is started yet.
    pub fn new(settings: &Settings, events: Events) -> Self {
        Self {
            shared: Arc::new(Shared {
                group: settings.group.clone(),
                namespace: settings.namespace.clone(),
                grpc: settings.grpc.clone(),
                ttrpc: settings.ttrpc.clone(),
                bundle: settings.bundle.clone(),
                events,
                log: settings.log.clone(),
                running: tokio::sync::Mutex::default(),
                creating: tokio::sync::RwLock::default(),
                containers: Mutex::default(),
            }),
        }
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Linux>> {
        self.shared
            .containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Create, on a delegate that is started when there is none. The delegate goes on with it when the client gives up: what
    /// nobody has heard of is deleted again, which is told by `gone`.
    pub async fn create(
        &self,
        request: &api::CreateTaskRequest,
        context: &TtrpcContext,
        gone: impl FnOnce() + Send + 'static,
    ) -> Result<u32> {
        let mut request = request.clone();
        if let Some(options) = request.options.take() {
            let options = handler::runc_options(options).map_err(error::invalid)?;
            request.options = MessageField::some(options);
        }
        let mut context = with_metadata(context.metadata.clone());
        // The client's deadline is not the delegate's.
        context.timeout_nano = 0;
        let delegate = self.clone();
        let (answer, answered) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let creating = delegate.shared.creating.read().await;
            let created = delegate.create_now(&request, &context).await;
            drop(creating);
            let failed = created.is_err();
            if let Err(Ok(_)) = answer.send(created) {
                delegate.give_up(&request.id).await;
                gone();
            }
            if failed {
                delegate.stop_unneeded().await;
            }
        });
        answered.await.map_err(error::internal)?
    }

    async fn create_now(
        &self,
        request: &api::CreateTaskRequest,
        context: &TtrpcContext,
    ) -> Result<u32> {
        let mut again = true;
        loop {
            let running = self.start().await?;
            let created =
                call::<_, api::CreateTaskResponse>(&running, "Create", context, request).await;
            match created {
                Ok(response) => {
                    let linux = Linux {
                        bundle: request.bundle.clone(),
                        pid: response.pid,
                        exit: None,
                    };
                    self.containers().insert(request.id.clone(), linux);
                    return Ok(response.pid);
                }
                // It went away under the request, its last container just deleted.
                Err(e) if again && !matches!(e, ttrpc::Error::RpcStatus(_)) => {
                    again = false;
                    *self.shared.running.lock().await = None;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes a container away that nobody knows of.
    async fn give_up(&self, id: &str) {
        let context = self.context();
        let kill = api::KillRequest {
            id: id.into(),
            signal: libc::SIGKILL.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        let _ = self
            .forward::<_, api::Empty>(id, "Kill", &context, &kill)
            .await;
        let wait = api::WaitRequest {
            id: id.into(),
            ..Default::default()
        };
        let _ = self.wait(&context, &wait).await;
        let delete = api::DeleteRequest {
            id: id.into(),
            ..Default::default()
        };
        if let Err(e) = self.delete(&context, &delete).await {
            self.shared.log.error(&format!(
                "container {id}, whose Create nobody waited for, cannot be deleted: {}",
                error::text(&e)
            ));
        }
    }

    /// Whether it has a container of that id.
    pub fn has(&self, id: &str) -> bool {
        self.containers().contains_key(id)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    /// Any other request about a Linux container.
    pub async fn forward<Q: Message, R: Message>(
        &self,
        id: &str,
        method: &str,
        context: &TtrpcContext,
        request: &Q,
    ) -> Result<R> {
        let running = self.shared.running.lock().await.clone();
        let Some(running) = running else {
            return Err(error::not_found(format!(
                "container {id}: its shim is gone; process already finished"
            )));
        };
        call(&running, method, context, request).await
    }

    /// Wait: an answer even when the delegate dies.
    pub async fn wait(
        &self,
        context: &TtrpcContext,
        request: &api::WaitRequest,
    ) -> Result<api::WaitResponse> {
        let running = self.shared.running.lock().await.clone();
        if let Some(mut running) = running {
            match call(&running, "Wait", context, request).await {
                Err(e) if !matches!(e, ttrpc::Error::RpcStatus(_)) => {
                    // `clean_up` sets it when the ends of all its containers are known.
                    let _ =
                        tokio::time::timeout(START_TIMEOUT, running.gone.wait_for(|gone| *gone))
                            .await;
                }
                answer => return answer,
            }
        }
        let exit = self.exited(&request.id)?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: Some(exit.at).into(),
            ..Default::default()
        })
    }

    fn exited(&self, id: &str) -> Result<Exit> {
        let exit = self.containers().get(id).and_then(|c| c.exit.clone());
        exit.ok_or_else(|| error::not_found(format!("container {id}")))
    }

    /// State: from what is known where the delegate is gone.
    pub async fn state(
        &self,
        context: &TtrpcContext,
        request: &api::StateRequest,
    ) -> Result<api::StateResponse> {
        let known = self.containers().get(&request.id).cloned();
        if let Some(Linux {
            bundle,
            pid,
            exit: Some(exit),
        }) = known
        {
            return Ok(api::StateResponse {
                id: request.id.clone(),
                bundle,
                pid,
                status: api::Status::STOPPED.into(),
                exit_status: exit.status,
                exited_at: Some(exit.at).into(),
                ..Default::default()
            });
        }
        self.forward(&request.id, "State", context, request).await
    }

    /// Delete of a container (not of an exec). The last one takes the delegate with it.
    pub async fn delete(
        &self,
        context: &TtrpcContext,
        request: &api::DeleteRequest,
    ) -> Result<api::DeleteResponse> {
        let known = self.containers().get(&request.id).cloned();
        let response = match known {
            Some(Linux {
                pid,
                exit: Some(exit),
                ..
            }) => api::DeleteResponse {
                pid,
                exit_status: exit.status,
                exited_at: Some(exit.at).into(),
                ..Default::default()
            },
            _ => {
                self.forward(&request.id, "Delete", context, request)
                    .await?
            }
        };
        self.containers().remove(&request.id);
        self.stop_unneeded().await;
        Ok(response)
    }

    /// Ends the delegate where it has no container.
    async fn stop_unneeded(&self) {
        // Where one is being created, that one's end stops the delegate, or its failure does.
        if let Ok(_alone) = self.shared.creating.try_write()
            && self.containers().is_empty()
        {
            self.stop().await;
        }
    }

    /// Ends the delegate; it obeys only without containers.
    pub async fn stop(&self) {
        let mut slot = self.shared.running.lock().await;
        let Some(mut running) = slot.take() else {
            return;
        };
        let request = api::ShutdownRequest {
            id: self.shared.group.clone(),
            ..Default::default()
        };
        let _ = call::<_, api::Empty>(&running, "Shutdown", &self.context(), &request).await;
        if tokio::time::timeout(STOP_TIMEOUT, running.gone.wait_for(|gone| *gone))
            .await
            .is_err()
        {
            let _ = slipway_sys::kill(running.pid, libc::SIGKILL);
            let _ = running.gone.wait_for(|gone| *gone).await;
        }
        let _ = std::fs::remove_file(self.socket());
    }

    fn socket(&self) -> PathBuf {
        socket::delegates(&self.shared.group)
    }

    fn context(&self) -> TtrpcContext {
        let namespace = (
            "containerd-namespace-ttrpc".to_string(),
            vec![self.shared.namespace.clone()],
        );
        with_metadata(HashMap::from([namespace]))
    }
}

/// A request of ours, with a deadline of ours.
fn with_metadata(metadata: HashMap<String, Vec<String>>) -> TtrpcContext {
    TtrpcContext {
        metadata,
        timeout_nano: START_TIMEOUT.as_nanos() as i64,
        ..TtrpcContext::default()
    }
}

async fn call<Q: Message, R: Message>(
    running: &Running,
    method: &str,
    context: &TtrpcContext,
    request: &Q,
) -> Result<R> {
    let request = Request {
        service: running.service.into(),
        method: method.into(),
        timeout_nano: context.timeout_nano,
        metadata: ttrpc::context::to_pb(context.metadata.clone()),
        payload: request.write_to_bytes().map_err(error::invalid)?,
        ..Default::default()
    };
    let response = running.client.request(request).await?;
    R::parse_from_bytes(&response.payload)
        .map_err(|e| error::internal(format!("{PROGRAM} {method}: {e}")))
}
