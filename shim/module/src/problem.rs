use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a module does not run here, what to do about it, and where in the file it was found.
///
/// Displays as one sentence that is fit for a pod's status: what, where, remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Problem {
    /// The category, for programs.
    pub reason: Reason,
    /// What is wrong, for people.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
    /// Offset in bytes from the start of the binary module; `None` where no one place is to blame, and for text.
    pub offset: Option<u64>,
}

/// The categories of [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// A bound of this crate is exceeded.
    TooLarge,
    /// Not a Wasm module at all.
    NotWasm,
    /// A component, for which there is no engine.
    Component,
    /// The text format does not parse.
    Text,
    /// Truncated, damaged, or invalid by the Wasm specification.
    Invalid,
    /// Valid Wasm that uses a proposal which is off here.
    Proposal,
    /// Needs something from its host that the engine does not provide.
    Import,
    /// The function to run does not exist or cannot be run.
    Entry,
}

impl Problem {
    pub(crate) fn new(
        reason: Reason,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem {
            reason,
            text: text.into(),
            remedy: remedy.into(),
            offset: None,
        }
    }

    pub(crate) fn at(mut self, offset: u64) -> Problem {
        self.offset = Some(offset);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some(offset) = self.offset {
            write!(f, " (at offset {offset:#x})")?;
        }
        write!(f, "; {}", self.remedy)
    }
}
