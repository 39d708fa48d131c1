//! How a run ends.

use crate::log::Error;

/// How the engine's log begins the line of the functions that were being called, innermost first.
const STACK: &str = "calling stack:";

impl Trap {
    pub(crate) fn from(message: String, details: Vec<String>) -> Self {
        let (stacks, details): (Vec<_>, Vec<_>) = details
            .into_iter()
            .partition(|line| line.starts_with(STACK));
        let indices = stacks
            .iter()
            .flat_map(|line| line[STACK.len()..].split(','));
        Self {
            reason: match details.is_empty() {
                true => message,
                false => format!("{message} ({})", details.join("; ")),
            },
            stack: indices
                .filter_map(|index| index.trim().parse().ok())
                .collect(),
        }
    }
}

impl From<Error> for Trap {
    fn from(error: Error) -> Self {
        Self {
            reason: error.0,
            stack: Vec::new(),
        }
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The function returned these values, as text.
    Returned(Vec<String>),
    /// `proc_exit` with this status.
    Exited(u32),
    /// A trap, or a failed instantiation.
    Trapped(Trap),
}

/// Why and where a program could not go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Trap {
    /// In the engine's words.
    pub reason: String,
    /// Indices of the functions that were being called, innermost first; the engine tells 256 at most.
    pub stack: Vec<u32>,
}
