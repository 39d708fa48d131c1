//! Standard streams: containerd's FIFOs go to the guest as they are, nothing is copied on the way.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;

/// How long output that nobody has read yet is kept after the end.
const LINGER: Duration = Duration::from_secs(10);

/// Paths as containerd gives them; empty for none.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// stdin
    pub stdin: String,
    /// stdout
    pub stdout: String,
    /// stderr
    pub stderr: String,
}

/// The shim's own ends, which keep the FIFOs alive.
#[derive(Debug, Default)]
pub struct Kept {
    /// While this is open, the program's stdin does not end.
    stdin: Option<OwnedFd>,
    /// Read and write ends: a log reader may come late, or go away and come back.
    output: Vec<OwnedFd>,
}

fn nonblocking() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

fn blocking(fd: &impl AsFd) -> std::io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, false)?)
}

/// Opens the three streams for a guest.
///
/// # Errors
/// A text that names the stream and its path.
pub fn open(paths: &Paths) -> Result<([OwnedFd; 3], Kept), String> {
    let mut kept = Kept::default();
    let stdin = match paths.stdin.as_str() {
        "" => null()?,
        path => open_stdin(path, &mut kept).map_err(|e| format!("stdin {path}: {e}"))?,
    };
    let mut output = |name: &str, path: &str| match path {
        "" => null(),
        path => open_output(path, &mut kept).map_err(|e| format!("{name} {path}: {e}")),
    };
    let stdout = output("stdout", &paths.stdout)?;
    let stderr = output("stderr", &paths.stderr)?;
    Ok(([stdin, stdout, stderr], kept))
}

fn null() -> Result<OwnedFd, String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|e| format!("/dev/null: {e}"))
}

fn open_stdin(path: &str, kept: &mut Kept) -> std::io::Result<OwnedFd> {
    // The read end first: without a writer it must not block, and without a reader the writer would fail.
    let read = File::options()
        .read(true)
        .custom_flags(nonblocking())
        .open(path)?;
    let write = File::options()
        .write(true)
        .custom_flags(nonblocking())
        .open(path)?;
    blocking(&read)?;
    kept.stdin = Some(write.into());
    Ok(read.into())
}

fn open_output(path: &str, kept: &mut Kept) -> std::io::Result<OwnedFd> {
    let unsupported = |what: &str| {
        let text = format!(
            "{what} is not supported; use a FIFO (containerd's and CRI's default) or file://PATH"
        );
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, text))
    };
    let plain = match path.split_once("://") {
        Some(("fifo", path)) => path,
        Some(("file", path)) => {
            if let Some(parent) = Path::new(path).parent() {
                std::fs::create_dir_all(parent)?;
            }
            return Ok(File::options().append(true).create(true).open(path)?.into());
        }
        Some((scheme, _)) => return unsupported(&format!("a log driver {scheme}://")),
        None => path,
    };
    let both = File::options()
        .read(true)
        .write(true)
        .custom_flags(nonblocking())
        .open(plain)?;
    if !both.metadata()?.file_type().is_fifo() {
        return unsupported("anything but a FIFO");
    }
    let write = File::options().write(true).open(plain)?;
    kept.output.push(both.into());
    Ok(write.into())
}

impl Kept {
    /// The program's stdin ends as soon as containerd's own end is closed too.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// After the program's end: lets a reader see the end of file once it has read everything.
    pub fn finish(&mut self) {
        self.stdin = None;
        for fifo in self.output.drain(..) {
            if unread(&fifo) > 0 {
                tokio::spawn(linger(fifo));
            }
        }
    }
}

fn unread(fifo: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(fifo).unwrap_or(0)
}

/// Keeps a FIFO with unread output open until its reader has taken it.
async fn linger(fifo: OwnedFd) {
    let Ok(fifo) = slipway_sys::watch(fifo, Interest::WRITABLE) else {
        return;
    };
    let drained = async {
        while unread(fifo.get_ref()) > 0 {
            // Edge-triggered: every read by the other side makes the FIFO writable anew.
            match fifo.writable().await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drained).await;
}
