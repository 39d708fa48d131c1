//! The shim's own log: containerd reads it from a FIFO named `log` in the bundle and merges it into its own.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Cheap to clone; without a FIFO it writes nowhere.
#[derive(Debug, Clone)]
pub struct Log {
    fifo: Option<Arc<File>>,
    debug: bool,
}

impl Log {
    /// Opens the bundle's FIFO. Never blocks: not now when nobody reads yet, not later when the reader is gone and
    /// the FIFO is full (lines are dropped then).
    pub fn open(bundle: &Path, debug: bool) -> Self {
        let options = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let fifo = File::options()
            .read(true)
            .write(true)
            .custom_flags(options)
            .open(bundle.join("log"));
        Self {
            fifo: fifo.ok().map(Arc::new),
            debug,
        }
    }

    /// Something that an administrator should know.
    pub fn info(&self, message: &str) {
        self.write("info", message);
    }

    /// Something failed.
    pub fn error(&self, message: &str) {
        self.write("error", message);
    }

    /// Only with containerd's debug level.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write("debug", message);
        }
    }

    fn write(&self, level: &str, message: &str) {
        if let Some(mut fifo) = self.fifo.as_deref() {
            // logrus's text form, which containerd's own shims write. {:?} escapes quotes and newlines as it does.
            let _ = fifo.write_all(
                format!("level={level} msg={message:?} runtime={}\n", crate::RUNTIME).as_bytes(),
            );
        }
    }
}
