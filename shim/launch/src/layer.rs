//! The module of an image that is a Wasm artefact: it is a layer, which containerd does not unpack.

use std::fs::File;
use std::os::fd::OwnedFd;

use slipway_sys::{CgroupEntry, Exec};
use tokio::io::Interest;

use crate::{Install, StartError};

/// slipway-layers' status for an image that is no Wasm artefact.
const NOT_AN_ARTEFACT: u32 = 3;
/// Its status where it cannot tell what the image is.
const UNKNOWN: u32 = 4;
/// Most of its messages that is read, in bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// Where the module of an image that is a Wasm artefact comes from.
#[derive(Debug, Clone, Copy)]
pub struct LayerSource<'a> {
    /// Where the helper is.
    pub install: &'a Install,
    /// containerd's gRPC socket.
    pub address: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's id there: its record tells the image.
    pub container: &'a str,
    /// The container's command, for an image of several modules.
    pub entrypoint: &'a str,
}

impl LayerSource<'_> {
    /// Asks a short-lived helper to read the layer from containerd into memory: a gRPC stack in every shim would cost memory
    /// for a few calls. `missing` is what is said where the image is no artefact, or perhaps none.
    ///
    /// # Errors
    /// [`StartError::NoEntrypoint`] with `missing`, or the helper's own text.
    pub(crate) async fn fetch(&self, missing: String) -> Result<OwnedFd, StartError> {
        let Self {
            install,
            address,
            namespace,
            container,
            entrypoint,
        } = *self;
        let io = |e: rustix::io::Errno| StartError::Io(e.into());
        let program = install.program("slipway-layers");
        if !program.exists() {
            return Err(StartError::NoEntrypoint(missing));
        }
        let memfd = |name: &std::ffi::CStr| {
            rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).map_err(io)
        };
        let (module, message) = (memfd(c"module")?, memfd(c"message")?);
        let text = |s: &str| std::ffi::CString::new(s).map_err(std::io::Error::other);
        let program = program.display().to_string();
        let arguments = [
            &program,
            "-address",
            address,
            "-namespace",
            namespace,
            "-container",
            container,
            "-entrypoint",
            entrypoint,
            "-out",
            "3",
        ];
        let exec = Exec {
            program: text(&program)?,
            argv: arguments
                .into_iter()
                .map(text)
                .collect::<std::io::Result<_>>()?,
            envp: Vec::new(),
            fds: vec![
                File::open("/dev/null")?.into(),
                message.try_clone()?,
                message.try_clone()?,
                module.try_clone()?,
            ],
            directory: None,
            read_only: None,
            with_parent: true,
        };
        let child = slipway_sys::spawn(exec, 0, &CgroupEntry::default())?;
        let pidfd = slipway_sys::async_fd(child.pidfd, Interest::READABLE)?;
        let _ = pidfd.readable().await?;
        match slipway_sys::reap(child.pid)? {
            Some(0) => Ok(module),
            Some(NOT_AN_ARTEFACT) => Err(StartError::NoEntrypoint(missing)),
            status => {
                let mut bytes = vec![0; MAX_MESSAGE];
                let n = rustix::io::pread(&message, &mut bytes[..], 0).map_err(io)?;
                let said = String::from_utf8_lossy(&bytes[..n]).trim().to_string();
                Err(match status {
                    Some(UNKNOWN) => StartError::NoEntrypoint(format!(
                        "{missing}. Whether it is a Wasm artefact is not known: {said}"
                    )),
                    _ => StartError::Refused(said),
                })
            }
        }
    }
}
