//! Standard streams: containerd's FIFOs go to the guest as they are, nothing is copied on the way. A terminal is a pty of
//! which the shim keeps the master, and copies between that and the FIFOs.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinHandle};

/// How often output that nobody has read yet is looked at: a pipe tells its writers of a read only where it was full before
/// (`pipe_read`, fs/pipe.c), and of a reader that opens it never (`fifo_open`).
pub const LOOK: Duration = Duration::from_millis(2);
/// How often, if no reader has come for [`SELDOM_AFTER`].
const SELDOM: Duration = Duration::from_secs(1);
const SELDOM_AFTER: Duration = Duration::from_secs(2);

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
    output: Vec<Output>,
    terminal: Option<Terminal>,
    remains: Vec<Remains>,
}

/// The shim's ends of a FIFO that a program writes to.
#[derive(Debug)]
struct Output {
    /// Read and write end: a log reader may come late, or go away and come back.
    both: OwnedFd,
    /// Write end alone: all readers are others.
    write: Arc<OwnedFd>,
}

/// What still hands output over after the program's end: a write end, held until a reader has come and taken all. It is let go when this is
/// dropped.
#[derive(Debug)]
pub struct Remains {
    held: JoinHandle<()>,
    write: Weak<OwnedFd>,
    /// Copies a terminal's output. It goes on to its end, whatever becomes of this.
    copy: Option<AbortHandle>,
}

impl Remains {
    fn of(write: Arc<OwnedFd>, copy: Option<JoinHandle<()>>) -> Self {
        Self {
            write: Arc::downgrade(&write),
            copy: copy.as_ref().map(JoinHandle::abort_handle),
            held: tokio::spawn(async move {
                if let Some(copy) = copy {
                    let _ = copy.await;
                }
                hand_over(&write).await;
            }),
        }
    }

    /// Waits until no output is left. Whoever asks needs no end of file any more.
    pub async fn taken(&self) {
        let is_left = || {
            let copies = self.copy.as_ref().is_some_and(|copy| !copy.is_finished());
            copies || self.write.upgrade().is_some_and(|write| unread(&write) > 0)
        };
        while is_left() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.held.abort();
    }
}

/// The master's side of a pty.
#[derive(Debug)]
pub struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    /// Copies from stdin's FIFO.
    input: Option<AbortHandle>,
    /// Copies to stdout's FIFO, of which this is a write end.
    output: Option<(JoinHandle<()>, Arc<OwnedFd>)>,
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
    let master = Arc::new(slipway_sys::async_fd(master, both)?);
    let mut shim = ShimStreams::default();
    let (mut input, mut output) = (None, None);
    if !paths.stdin.is_empty() {
        // Both ends: a client that detaches must not end the program's input.
        let fifo = open_fifo(&paths.stdin)?;
        let fifo = slipway_sys::async_fd(fifo, Interest::READABLE)?;
        let copy = copy_to_terminal(fifo, master.clone());
        input = Some(tokio::spawn(copy).abort_handle());
    }
    if !paths.stdout.is_empty() {
        let fifo = open_fifo(&paths.stdout)?;
        let write = Arc::new(write_end(&fifo)?);
        let fifo = slipway_sys::async_fd(fifo, Interest::WRITABLE)?;
        let copy = copy_from_terminal(master.clone(), fifo);
        output = Some((tokio::spawn(copy), write));
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
    slipway_sys::open_null().map_err(|e| format!("/dev/null: {e}"))
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
    let both = both.into();
    let write = write_end(&both)?;
    shim.output.push(Output {
        write: Arc::new(write.try_clone()?),
        both,
    });
    Ok(write)
}

impl ShimStreams {
    /// The program's stdin ends as soon as containerd's own end is closed too.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What hands over the rest of the output after [`ShimStreams::finish`].
    pub fn take_remains(&mut self) -> Vec<Remains> {
        std::mem::take(&mut self.remains)
    }

    /// The terminal, if there is one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// There is output that no reader has taken yet, of a program that has ended.
    pub fn is_unread(&self) -> bool {
        let copy = self.terminal.as_ref().and_then(|t| t.output.as_ref());
        copy.is_some_and(|(copy, write)| !copy.is_finished() || unread(write) > 0)
            || self.output.iter().any(|o| unread(&o.both) > 0)
    }

    /// After the program's end: lets a reader see the end of file once it has read everything. One that has not come yet sees it, too:
    /// a client may wait for the end of file before it deletes the process (CRI's ExecSync), and its open(2) without a writer waits for
    /// ever.
    pub fn finish(&mut self) {
        self.stdin = None;
        // The copy of its output ends by itself, when the last of the program's descriptors is closed.
        if let Some(terminal) = self.terminal.take() {
            terminal.input.inspect(AbortHandle::abort);
            let rest = terminal.output;
            self.remains
                .extend(rest.map(|(copy, write)| Remains::of(write, Some(copy))));
        }
        for Output { both, write } in self.output.drain(..) {
            drop(both);
            if !is_handed_over(&write) {
                self.remains.push(Remains::of(write, None));
            }
        }
    }
}

/// A write end of a FIFO that is open for reading, too, so that this does not wait. By its path it could be another one.
fn write_end(both: &OwnedFd) -> std::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", both.as_raw_fd());
    Ok(File::options().write(true).open(path)?.into())
}

fn unread(fifo: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(fifo).unwrap_or(0)
}

/// Whether somebody reads a FIFO of which this is a write end, and has read all.
fn is_handed_over(write: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut end = [PollFd::new(write, PollFlags::OUT)];
    // A pipe without a reader is in error.
    let asked = poll(&mut end, Some(&Timespec::default()));
    let is_read = asked.is_ok() && !end[0].revents().contains(PollFlags::ERR);
    // A child that was just born has a read end, too.
    is_read && unread(write) == 0 && !slipway_sys::births_go_on()
}

/// Waits until a reader has come and taken all output.
async fn hand_over(write: &OwnedFd) {
    let since = tokio::time::Instant::now();
    while !is_handed_over(write) {
        let pause = match since.elapsed() < SELDOM_AFTER {
            true => LOOK,
            false => SELDOM,
        };
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};

    type Tested = Result<(), Box<dyn std::error::Error>>;

    /// A FIFO of its own, for stdout.
    struct Fifo(tempfile::TempDir);

    impl Fifo {
        fn new() -> Result<Self, Box<dyn std::error::Error>> {
            let fifo = Self(tempfile::tempdir()?);
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, fifo.path(), kind, mode, 0)?;
            Ok(fifo)
        }

        fn path(&self) -> std::path::PathBuf {
            self.0.path().join("stdout")
        }

        fn paths(&self) -> Paths {
            Paths {
                stdout: self.path().display().to_string(),
                ..Paths::default()
            }
        }

        /// Reads to the end of file, as a client does that comes when it likes: open(2) waits for a writer.
        fn reader(&self) -> JoinHandle<std::io::Result<Vec<u8>>> {
            let path = self.path();
            tokio::task::spawn_blocking(move || std::fs::read(path))
        }
    }

    #[tokio::test]
    async fn a_reader_that_comes_after_the_end_of_a_silent_program_sees_the_end_of_file() -> Tested
    {
        for terminal in [false, true] {
            let fifo = Fifo::new()?;
            let (program, mut shim) = open(&fifo.paths(), terminal, 0)?;
            drop(program);
            shim.finish();
            // What does not wait for a reader is done by now.
            tokio::time::sleep(LOOK * 5).await;
            let read = tokio::time::timeout(Duration::from_secs(60), fifo.reader()).await;
            // A reader that is still there would keep the runtime from its end.
            let path = fifo.path().display().to_string();
            drop((open_fifo(&path)?, shim));
            assert_eq!(read???, b"", "terminal: {terminal}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_process_that_is_deleted_waits_for_no_reader() -> Tested {
        let fifo = Fifo::new()?;
        let (program, mut shim) = open(&fifo.paths(), false, 0)?;
        drop(program);
        shim.finish();
        let remains = shim.take_remains();
        assert_eq!(remains.len(), 1);
        tokio::time::timeout(Duration::from_secs(60), remains[0].taken()).await?;
        drop(remains);
        tokio::task::yield_now().await;
        let mut writer = File::options();
        // There is no reader, this process not either.
        let opened = writer
            .write(true)
            .custom_flags(nonblocking())
            .open(fifo.path());
        assert_eq!(
            opened.err().and_then(|e| e.raw_os_error()),
            Some(libc::ENXIO)
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_reader_that_reads_after_the_end_sees_the_end_of_file_at_once() -> Tested {
        let fifo = Fifo::new()?;
        let mut options = File::options();
        options.read(true).custom_flags(nonblocking());
        let mut reader = options.open(fifo.path())?;
        let (program, mut shim) = open(&fifo.paths(), false, 0)?;
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
        assert!(LOOK * looks < Duration::from_secs(2), "{looks}");
        Ok(())
    }
}
