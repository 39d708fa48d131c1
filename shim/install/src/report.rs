//! What is done, line by line: on stdout, and in a log that the installer's pod follows.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Result, file};

/// Where lines go.
#[derive(Debug, Default)]
pub struct Report {
    log: Option<File>,
}

impl Report {
    /// The log of an installation.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn log_to(&mut self, path: &Path) -> Result<()> {
        let log = File::options().create(true).append(true).open(path);
        self.log = Some(log.map_err(file(path, "open"))?);
        Ok(())
    }

    /// A line. Nobody who has stopped to listen stops the work.
    pub fn say(&mut self, line: impl AsRef<str>) {
        say(line.as_ref());
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{}", line.as_ref());
        }
    }

    /// Puts the error into the log, too, if it is one: the installer's pod sees no more.
    pub(crate) fn end(&mut self, done: Result<()>) -> Result<()> {
        if let (Err(error), Some(log)) = (&done, &mut self.log) {
            let _ = writeln!(log, "{error}");
        }
        done
    }
}

/// A line on stdout.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
