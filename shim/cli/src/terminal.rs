//! Colours and progress on a terminal, plain text elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use slipway_protocol::printable;

/// Bold red, green and yellow of ECMA-48.
const RED: &str = "\x1b[1;31m";
const GREEN: &str = "\x1b[1;32m";
const YELLOW: &str = "\x1b[1;33m";
const PLAIN: &str = "\x1b[0m";

/// How something turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Does not work.
    Error,
}

impl Level {
    /// The word, in colour where stdout is a terminal that wants colours.
    pub fn word(self) -> String {
        let (colour, word) = match self {
            Self::Ok => (GREEN, "ok"),
            Self::Warning => (YELLOW, "warning"),
            Self::Error => (RED, "error"),
        };
        match std::io::stdout().is_terminal() && colours() {
            true => format!("{colour}{word}{PLAIN}"),
            false => word.into(),
        }
    }
}

/// <https://no-color.org>
fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// The one line that says why the command failed.
pub fn error(message: &str) {
    let message = printable(message);
    match std::io::stderr().is_terminal() && colours() {
        true => eprintln!("{RED}slipway:{PLAIN} {message}"),
        false => eprintln!("slipway: {message}"),
    }
}

/// A line about what Slipway does; stdout is the program's.
pub fn note(message: &str) {
    eprintln!("slipway: {}", printable(message));
}

/// Something that takes a while: a spinner with the time on a terminal, lines elsewhere.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// Nothing is shown before the first message.
    pub fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
        Self(
            style
                .ok()
                .map(|style| ProgressBar::no_length().with_style(style)),
        )
    }

    /// Says what is going on now.
    pub fn say(&self, message: &str) {
        match &self.0 {
            Some(bar) => {
                bar.set_message(printable(message));
                bar.enable_steady_tick(Duration::from_millis(100));
            }
            None => note(message),
        }
    }

    /// Takes the spinner away.
    pub fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}
