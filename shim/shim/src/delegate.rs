//! Linux containers of the pod: every request goes, as it came, to a `containerd-shim-runc-v2` of the node.
//!
//! It is started on first need, with a socket of ours as descriptor 3 and without the verb `start` (which would find
//! our own socket and answer with it), and told to go when its last container is deleted. Its containers join the
//! holder's namespaces through the paths in their specs; it publishes their events itself.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::ttrpc::asynchronous::Client;
use containerd_shim_protos::ttrpc::proto::Request;
use containerd_shim_protos::ttrpc::{self, Code};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use slipway_sys::Exec;
use tokio::io::Interest;

use crate::boot::Flags;
use crate::error::{self, Result};
use crate::events::{Events, now};
use crate::features;
use crate::handler;
use crate::log::Log;
use crate::pod::Settings;
use crate::process::Exit;
use crate::socket;

const PROGRAM: &str = "containerd-shim-runc-v2";
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
/// Poll interval while a `delete` without a runtime waits for a process to go.
const WHILE_KILLED: Duration = Duration::from_millis(5);

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

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin".into());
    std::env::split_paths(&path)
        .map(|d| d.join(name))
        .find(|p| p.is_file())
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
            if let Err(Ok(_)) = answer.send(created) {
                delegate.give_up(&request.id).await;
                gone();
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
        // Where another is being created, that one's end stops the delegate.
        if let Ok(_alone) = self.shared.creating.try_write()
            && self.containers().is_empty()
        {
            self.stop().await;
        }
        Ok(response)
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

    async fn start(&self) -> Result<Running> {
        let mut slot = self.shared.running.lock().await;
        if let Some(running) = slot.as_ref() {
            return Ok(running.clone());
        }
        let program = find_program(PROGRAM).ok_or_else(|| {
            error::precondition(format!("this container runs a Linux program, which needs {PROGRAM}: it is not on containerd's PATH"))
        })?;
        let socket = self.socket();
        let started = self
            .launch(&program, &socket)
            .map_err(|e| error::internal(format!("{}: {e}", program.display())))?;
        let gone = started.1;
        let pid = started.0;
        let client = Client::connect(&format!("unix://{}", socket.display())).await?;
        let request = api::ConnectRequest {
            id: self.shared.group.clone(),
            ..Default::default()
        };
        let mut running = Running {
            client,
            service: SERVICES[0],
            pid,
            gone,
        };
        let first =
            call::<_, api::ConnectResponse>(&running, "Connect", &self.context(), &request).await;
        if matches!(&first, Err(ttrpc::Error::RpcStatus(s)) if s.code() == Code::INVALID_ARGUMENT || s.code() == Code::UNIMPLEMENTED)
        {
            running.service = SERVICES[1];
            call::<_, api::ConnectResponse>(&running, "Connect", &self.context(), &request).await?;
        } else {
            first?;
        }
        *slot = Some(running.clone());
        Ok(running)
    }

    fn launch(
        &self,
        program: &Path,
        socket: &Path,
    ) -> std::io::Result<(i32, tokio::sync::watch::Receiver<bool>)> {
        let directory = self.shared.bundle.join(DIRECTORY);
        std::fs::create_dir_all(&directory)?;
        // containerd's own FIFO: the delegate's lines land in containerd's log. Without the file it would not start.
        match std::os::unix::fs::symlink("../log", directory.join("log")) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let _ = std::fs::remove_file(socket);
        let listener = socket::bind(socket)?;
        let null = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        let text = |s: &str| std::ffi::CString::new(s).map_err(std::io::Error::other);
        // Not the sandbox's id: at its end the delegate removes the socket of its id's bundle, which is ours.
        let id = format!("{}-runc", self.shared.group);
        let arguments = [
            PROGRAM,
            "-namespace",
            &self.shared.namespace,
            "-id",
            &id,
            "-address",
            &self.shared.grpc,
        ];
        let path = std::env::var("PATH").unwrap_or_default();
        let environment = [
            format!("TTRPC_ADDRESS={}", self.shared.ttrpc),
            format!("PATH={path}"),
            "GOMAXPROCS=2".into(),
        ];
        let exec = Exec {
            program: text(&program.display().to_string())?,
            argv: arguments
                .into_iter()
                .map(text)
                .collect::<std::io::Result<_>>()?,
            envp: environment
                .iter()
                .map(|s| text(s))
                .collect::<std::io::Result<_>>()?,
            fds: vec![null()?, null()?, null()?, listener.into()],
            directory: Some(text(&directory.display().to_string())?),
            read_only: None,
            with_parent: false,
        };
        let child = slipway_sys::spawn(exec, 0, &slipway_sys::CgroupEntry::default())?;
        std::fs::write(
            directory.join(PID_FILE),
            format!(
                "{} {} {}",
                child.pid,
                start_time(child.pid).unwrap_or_default(),
                socket.display()
            ),
        )?;
        let (tell, gone) = tokio::sync::watch::channel(false);
        let pidfd = slipway_sys::watch(child.pidfd, Interest::READABLE)?;
        let delegate = self.clone();
        tokio::spawn(async move {
            let _ = pidfd.readable().await;
            let _ = slipway_sys::reap(child.pid);
            delegate.clean_up(child.pid).await;
            let _ = tell.send(true);
        });
        Ok((child.pid, gone))
    }

    /// The delegate is gone. Where it had containers, it was killed: ends them, and tells the truth about them.
    async fn clean_up(&self, pid: i32) {
        let _ = std::fs::remove_file(self.socket());
        let _ = std::fs::remove_file(self.shared.bundle.join(DIRECTORY).join(PID_FILE));
        let lost: Vec<(String, Linux)> = self
            .containers()
            .iter()
            .filter(|(_, c)| c.exit.is_none())
            .map(|(id, c)| (id.clone(), c.clone()))
            .collect();
        if lost.is_empty() {
            return;
        }
        // Requests that come now must not wait for a reader that is gone.
        if let Ok(mut slot) = self.shared.running.try_lock() {
            slot.take_if(|running| running.pid == pid);
        }
        self.shared.log.error(&format!(
            "{PROGRAM} (pid {pid}) is gone with {} containers",
            lost.len()
        ));
        for (id, linux) in lost {
            let (namespace, grpc, bundle) = (
                self.shared.namespace.clone(),
                self.shared.grpc.clone(),
                linux.bundle.clone(),
            );
            let name = id.clone();
            let _ = tokio::task::spawn_blocking(move || {
                delete_container(&namespace, &grpc, &name, Path::new(&bundle))
            })
            .await;
            let exit = Exit {
                status: 137,
                at: now(),
            };
            if let Some(known) = self.containers().get_mut(&id) {
                known.exit = Some(exit.clone());
            }
            self.shared.events.publish(&TaskExit {
                container_id: id.clone(),
                id,
                pid: linux.pid,
                exit_status: exit.status,
                exited_at: Some(exit.at).into(),
                ..Default::default()
            });
        }
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

/// The features of the node's runc, asked of its shim with the handler's options.
pub fn info(options: &[u8]) -> Option<RuntimeInfo> {
    use std::io::Write;
    let options = handler::runc_options(Any::parse_from_bytes(options).ok()?).ok()?;
    let mut child = std::process::Command::new(find_program(PROGRAM)?)
        .arg("-info")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let options = options.write_to_bytes().ok()?;
    child.stdin.take()?.write_all(&options).ok()?;
    let output = child.wait_with_output().ok()?;
    RuntimeInfo::parse_from_bytes(&output.stdout).ok()
}

/// Whether the runc of these options maps the ids of mounts. Takes as long as two programs' start.
pub fn maps_ids(options: Option<&Any>) -> bool {
    let options = options.and_then(|any| any.write_to_bytes().ok());
    let info = info(&options.unwrap_or_default());
    info.is_some_and(|info| info.features.as_ref().is_some_and(features::map_ids))
}

/// The delegate's own `delete`: kills what is left of a container and removes it.
fn delete_container(namespace: &str, grpc: &str, id: &str, bundle: &Path) {
    if let Some(program) = find_program(PROGRAM) {
        let _ = std::process::Command::new(program)
            .args([
                "-namespace",
                namespace,
                "-address",
                grpc,
                "-id",
                id,
                "delete",
            ])
            .current_dir(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Field 22 of /proc/PID/stat: a pid that was used again has another.
fn start_time(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?
        .1
        .split_whitespace()
        .nth(19)
        .map(String::from)
}

/// After the death of our shim: ends the delegate and its containers.
pub fn cleanup(flags: &Flags) {
    let file = flags.bundle.join(DIRECTORY).join(PID_FILE);
    let Ok(text) = std::fs::read_to_string(&file) else {
        return;
    };
    let mut fields = text.splitn(3, ' ');
    let (pid, started, socket) = (
        fields.next().and_then(|p| p.parse::<i32>().ok()),
        fields.next(),
        fields.next(),
    );
    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    if let Some(pid) = pid
        && start_time(pid).as_deref() == started
    {
        let _ = slipway_sys::kill(pid, libc::SIGKILL);
        for _ in 0..400 {
            if start_time(pid).as_deref() != started {
                break;
            }
            std::thread::sleep(WHILE_KILLED);
        }
    }
    let members =
        std::fs::read_to_string(flags.bundle.join(crate::cleanup::MEMBERS)).unwrap_or_default();
    let bundles = flags
        .bundle
        .canonicalize()
        .unwrap_or_else(|_| flags.bundle.clone());
    for id in members
        .lines()
        .filter_map(|l| l.split_once(' '))
        .map(|(id, _)| id)
    {
        let Some(bundle) = bundles.parent().map(|p| p.join(id)) else {
            continue;
        };
        // runc's shim leaves this in the bundles that are its own.
        if bundle.join("runtime").exists() || bundle.join("options.json").exists() {
            delete_container(&flags.namespace, &flags.address, id, &bundle);
        }
    }
    let _ = std::fs::remove_file(file);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = start_time(std::process::id() as i32).unwrap();
        assert!(own.parse::<u64>().unwrap() > 0);
        assert_eq!(start_time(i32::MAX), None);
    }
}
