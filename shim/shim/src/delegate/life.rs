//! The delegate's own life: its start on first need, and its end, whoever brought that about.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::ttrpc::asynchronous::Client;
use containerd_shim_protos::ttrpc::{self, Code};
use slipway_sys::Exec;
use tokio::io::Interest;

use super::program::{self, PROGRAM, delete_container};
use super::{DIRECTORY, Delegate, Linux, PID_FILE, Running, SERVICES, call, cleanup};
use crate::error::{self, Result};
use crate::events::now;
use crate::process::Exit;
use crate::socket;

impl Delegate {
    /// The one that runs, or a new one.
    pub(super) async fn start(&self) -> Result<Running> {
        let mut slot = self.shared.running.lock().await;
        if let Some(running) = slot.as_ref() {
            return Ok(running.clone());
        }
        let program = program::find(PROGRAM).ok_or_else(|| {
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
        let null = slipway_sys::open_null;
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
        std::fs::write(directory.join(PID_FILE), cleanup::record(child.pid, socket))?;
        let (tell, gone) = tokio::sync::watch::channel(false);
        let pidfd = slipway_sys::async_fd(child.pidfd, Interest::READABLE)?;
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
