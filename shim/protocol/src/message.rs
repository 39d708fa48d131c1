//! What host and guest say to each other.

use serde::{Deserialize, Serialize};

use crate::Timeline;

/// The longest text in a message, in bytes: the rest of it is left out. A spec's strings are longer than a packet may be.
pub(crate) const MAX_TEXT: usize = 16 << 10;

/// From the host to the guest.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToGuest {
    /// What to become: descriptors of the budget, of a [`Launch`], of the container's process for an exec, and of the module
    /// where it is no file of the container.
    Launch {
        /// Which of the budget's shares is this guest's.
        share: usize,
    },
    /// The cgroup is there: descriptors of files into which the guest writes `0` to move itself. None where it was born
    /// inside.
    Cgroup,
    /// The module is a layer of the image, not a file of its root: the packet's descriptor.
    Layer,
    /// The artefact was compiled (or the module refused): look it up again.
    Artefact,
    /// The artefact cannot be made; the text is the container's error.
    NoArtefact(#[serde(serialize_with = "cut")] String),
    /// Run the entrypoint on the three standard streams in the packet.
    Start {
        /// They are a terminal, which becomes the process's own.
        terminal: bool,
    },
}

/// From the guest to the host.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromGuest {
    /// The engine is loaded: what comes now is Launch.
    Waiting,
    /// The cache has no artefact of the module in the packet's descriptor.
    NeedArtefact {
        /// Which module.
        module: Module,
        /// What the cache said about a damaged entry, for the log.
        damaged: Option<String>,
    },
    /// The module in the packet's descriptor runs, but unoptimised: compiled in full, its next start would do better.
    Unoptimised(Module),
    /// The entrypoint is a program for Linux, not for this engine.
    NotWasm(#[serde(serialize_with = "cut")] String),
    /// The image's root file system has no such file (an artefact image has none at all).
    NoEntrypoint(#[serde(serialize_with = "cut")] String),
    /// The entrypoint is a module that this node can run, and its artefact is there. With the steps that led there.
    Resolved(Timeline),
    /// As `Resolved`, and another process goes on: born in the pid namespace that the guest was to join. Whoever is in there
    /// may trace the guest, so it comes without any power. The packet's descriptor is its pidfd.
    Replaced {
        /// Its id in the host's pid namespace; a child of the host.
        pid: i32,
        /// The steps so far.
        steps: Timeline,
    },
    /// The module is loaded, nothing of it has run. With the steps since `Resolved`.
    Ready(Timeline),
    /// Create failed; the text names file, offset or field, and the remedy.
    Failed(#[serde(serialize_with = "cut")] String),
    /// The program ended.
    Ended(End),
}

impl FromGuest {
    /// The message's name, for errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::NeedArtefact { .. } => "NeedArtefact",
            Self::Unoptimised(_) => "Unoptimised",
            Self::NotWasm(_) => "NotWasm",
            Self::NoEntrypoint(_) => "NoEntrypoint",
            Self::Resolved(_) => "Resolved",
            Self::Replaced { .. } => "Replaced",
            Self::Ready(_) => "Ready",
            Self::Failed(_) => "Failed",
            Self::Ended(_) => "Ended",
        }
    }
}

/// A module as the cache knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// sha256 of its bytes.
    pub digest: [u8; 32],
    /// Size in bytes.
    pub size: u64,
    /// Where it was found, for messages.
    #[serde(serialize_with = "cut")]
    pub path: String,
    /// The engine's part of the artefact's key.
    pub engine: String,
}

/// How a program ended.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct End {
    /// Exit status as containers report it: the program's, or 128 + signal.
    pub status: u8,
    /// What to tell a person who did not read the program's own output; empty for an ordinary end.
    #[serde(serialize_with = "cut")]
    pub reason: String,
    /// What brought it about.
    pub cause: Cause,
}

/// What ends a program.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub enum Cause {
    /// The program itself, or a signal: the status says it.
    Status,
    /// The engine could not go on with it.
    Trap,
    /// It used up its CPU time.
    CpuTime,
    /// It did not get memory that it needed, or the kernel's OOM killer took it.
    OutOfMemory,
}

impl End {
    /// An end, with what is told of it.
    pub fn new(status: u8, cause: Cause, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            cause,
        }
    }

    /// Whether it ended for memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.cause == Cause::OutOfMemory
    }
}

/// Serialises a text that a person is to read, as far as there is room.
fn cut<S: serde::Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text[..text.floor_char_boundary(MAX_TEXT)])
}
