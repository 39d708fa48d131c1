//! Standard streams: containerd's FIFOs go to the guest as they are, nothing is copied on the way. A terminal is a pty of
//! which the shim keeps the master, and copies between that and the FIFOs.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinHandle};

/// How long output that nobody has read yet is kept after the end.
const LINGER: Duration = Duration::from_secs(10);

/// How often it is looked at: a pipe tells its writers of a read only where it was full before (`pipe_read`, fs/pipe.c).
pub const LOOK: Duration = Duration::from_millis(2);

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

impl Paths {
    /// Those that a Create names.
    pub fn of(request: &CreateTaskRequest) -> Self {
        Self {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        }
    }
}

/// A program's streams, until it runs, and the shim's ends of them.
pub type Streams = (Option<[OwnedFd; 3]>, ShimStreams);

/// The shim's own ends, which keep the FIFOs alive.
#[derive(Debug, Default)]
pub struct ShimStreams {
    /// While this is open, the program's stdin does not end.
    stdin: Option<OwnedFd>,
    /// Read and write ends: a log reader may come late, or go away and come back.
    output: Vec<OwnedFd>,
    terminal: Option<Terminal>,
    /// What still hands output over after the program's end.
    remains: Vec<JoinHandle<()>>,
}

/// The master's side of a pty.
#[derive(Debug)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    /// Copies from stdin's FIFO.
    input: Option<AbortHandle>,
    /// Copies to stdout's FIFO.
    output: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Sets the size in characters; the program's side is told by SIGWINCH.
    pub fn resize(&self, width: u16, height: u16) -> std::io::Result<()> {
        let size = Winsize {
            ws_col: width,
            ws_row: height,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(self.master.get_ref(), size)?)
    }
}

fn nonblocking() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

fn blocking(fd: &impl AsFd) -> std::io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, false)?)
}

/// Opens the three streams for a guest, or a terminal that belongs to `uid`. Within the runtime.
///
/// # Errors
/// A text that names the stream and its path.
pub fn open(paths: &Paths, terminal: bool, uid: u32) -> Result<Streams, String> {
    if terminal {
        return open_terminal(paths, uid).map_err(|e| format!("terminal: {e}"));
    }
    let mut shim = ShimStreams::default();
    let stdin = match paths.stdin.as_str() {
        "" => null()?,
        path => open_stdin(path, &mut shim).map_err(|e| format!("stdin {path}: {e}"))?,
    };
    let mut output = |name: &str, path: &str| match path {
        "" => null(),
        path => open_output(path, &mut shim).map_err(|e| format!("{name} {path}: {e}")),
    };
    let stdout = output("stdout", &paths.stdout)?;
    let stderr = output("stderr", &paths.stderr)?;
    Ok((Some([stdin, stdout, stderr]), shim))
}

fn open_terminal(paths: &Paths, uid: u32) -> std::io::Result<Streams> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    let master = Arc::new(slipway_sys::watch(master, both)?);
    let mut shim = ShimStreams::default();
    let (mut input, mut output) = (None, None);
    if !paths.stdin.is_empty() {
        // Both ends: a client that detaches must not end the program's input.
        let fifo = open_fifo(&paths.stdin)?;
        let fifo = slipway_sys::watch(fifo, Interest::READABLE)?;
        let copy = copy_to_terminal(fifo, master.clone());
        input = Some(tokio::spawn(copy).abort_handle());
    }
    if !paths.stdout.is_empty() {
        let fifo = slipway_sys::watch(open_fifo(&paths.stdout)?, Interest::WRITABLE)?;
        output = Some(tokio::spawn(copy_from_terminal(master.clone(), fifo)));
    }
    shim.terminal = Some(Terminal {
        master,
        input,
        output,
    });
    let streams = [slave.try_clone()?, slave.try_clone()?, slave];
    Ok((Some(streams), shim))
}

fn open_fifo(path: &str) -> std::io::Result<OwnedFd> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(nonblocking());
    Ok(options.open(path)?.into())
}

/// What is copied at once, in bytes; a line of typing is less.
const COPY: usize = 4096;

async fn copy_to_terminal(fifo: AsyncFd<OwnedFd>, master: Arc<AsyncFd<OwnedFd>>) {
    let mut buffer = [0; COPY];
    while let Ok(n @ 1..) = read(&fifo, &mut buffer).await {
        if write(&master, &buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// Until the last of the program's descriptors is closed (EIO) and all is copied.
async fn copy_from_terminal(master: Arc<AsyncFd<OwnedFd>>, fifo: AsyncFd<OwnedFd>) {
    let mut buffer = [0; COPY];
    while let Ok(n @ 1..) = read(&master, &mut buffer).await {
        if write(&fifo, &buffer[..n]).await.is_err() {
            return;
        }
    }
    linger(fifo.get_ref()).await;
}

async fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        match rustix::io::read(fd.get_ref(), &mut *buffer) {
            Err(rustix::io::Errno::WOULDBLOCK) => ready.clear_ready(),
            other => return Ok(other?),
        }
    }
}

async fn write(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        match rustix::io::write(fd.get_ref(), bytes) {
            Err(rustix::io::Errno::WOULDBLOCK) => ready.clear_ready(),
            other => bytes = &bytes[other?..],
        }
    }
    Ok(())
}

fn null() -> Result<OwnedFd, String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|e| format!("/dev/null: {e}"))
}

fn open_stdin(path: &str, shim: &mut ShimStreams) -> std::io::Result<OwnedFd> {
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
    shim.stdin = Some(write.into());
    Ok(read.into())
}

fn open_output(path: &str, shim: &mut ShimStreams) -> std::io::Result<OwnedFd> {
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
    shim.output.push(both.into());
    Ok(write.into())
}

impl ShimStreams {
    /// The program's stdin ends as soon as containerd's own end is closed too.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What hands over the rest of the output after [`ShimStreams::finish`].
    pub fn take_remains(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.remains)
    }

    /// The terminal, if there is one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// There is output that no reader has taken yet, of a program that has ended.
    pub fn is_unread(&self) -> bool {
        let copy = self.terminal.as_ref().and_then(|t| t.output.as_ref());
        copy.is_some_and(|copy| !copy.is_finished()) || self.output.iter().any(|f| unread(f) > 0)
    }

    /// After the program's end: lets a reader see the end of file once it has read everything.
    pub fn finish(&mut self) {
        self.stdin = None;
        // The copy of its output ends by itself, when the last of the program's descriptors is closed.
        if let Some(terminal) = self.terminal.take() {
            terminal.input.inspect(AbortHandle::abort);
            self.remains.extend(terminal.output);
        }
        for fifo in self.output.drain(..) {
            if unread(&fifo) > 0 {
                self.remains
                    .push(tokio::spawn(async move { linger(&fifo).await }));
            }
        }
    }
}

fn unread(fifo: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(fifo).unwrap_or(0)
}

/// Waits until the reader of a FIFO has taken all output, or for [`LINGER`].
async fn linger(fifo: &OwnedFd) {
    let drained = async {
        while unread(fifo) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};

    type Tested = Result<(), Box<dyn std::error::Error>>;

    #[tokio::test]
    async fn a_reader_that_reads_after_the_end_sees_the_end_of_file_at_once() -> Tested {
        let path = std::env::temp_dir().join(format!("slipway-stdio-{}", std::process::id()));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )?;
        let mut options = File::options();
        let mut reader = options.read(true).custom_flags(nonblocking()).open(&path)?;
        let paths = Paths {
            stdout: path.display().to_string(),
            ..Paths::default()
        };
        let (program, mut shim) = open(&paths, false, 0)?;
        std::fs::remove_file(&path)?;
        if let Some([_, stdout, _]) = program {
            File::from(stdout).write_all(b"late")?;
        }
        assert!(shim.is_unread());
        shim.finish();
        // It waits for the reader by now.
        tokio::time::sleep(LOOK * 5).await;
        let (mut text, mut looks) = (Vec::new(), 0);
        while let Err(e) = reader.read_to_end(&mut text) {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            looks += 1;
            tokio::time::sleep(LOOK).await;
        }
        assert_eq!(text, b"late");
        // Both look equally often, however slow the machine.
        assert!(LOOK * looks < LINGER / 5, "{looks}");
        Ok(())
    }
}
