//! What an installer does next, from the user's wish and the node's state. No clocks, no sockets.
//!
//! The wish is one object of the cluster, a ConfigMap of the release's ([`Wish::read`]). What is wanted of all nodes changes there and
//! nowhere else: helm and kubectl write it, and the uninstaller. An installer that comes late, or comes again, reads the wish of now.
//!
//! The uninstaller writes its wish, then waits until no node has a state. So that no installation escapes it, an installer marks its
//! node first, reads the wish after that, and installs only where the mark was there before: one of the two sees the other.

use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// Keys of the ConfigMap. Helm's manifest has the first and no word of the second, so that a rollback or an upgrade puts the
/// first back, whatever became of the second. Taking a key away makes nobody its owner: a server-side apply conflicts with nothing.
pub const INSTALL: &str = "install";
pub const UNINSTALL: &str = "uninstall";
/// Value of [`UNINSTALL`]: even while pods run.
pub const FORCE: &str = "force";

/// What the user wants of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wish {
    /// Slipway is on them.
    Install,
    /// It is not.
    Uninstall {
        /// Even while pods run.
        force: bool,
    },
    /// Nobody says: the release is gone or is being removed without its hook. Nodes stay as they are.
    Nothing,
}

impl Wish {
    /// Reads the ConfigMap's data; `None` where there is no ConfigMap.
    pub fn read(data: Option<&BTreeMap<String, String>>) -> Self {
        let value = |key| data.and_then(|data| data.get(key));
        match (value(INSTALL), value(UNINSTALL)) {
            (Some(_), _) => Self::Install,
            (None, Some(how)) => Self::Uninstall {
                force: how == FORCE,
            },
            (None, None) => Self::Nothing,
        }
    }
}

/// A node's state, as its label `slipway.dev/state` has it. A node without one has nothing of Slipway's.
///
/// ```text
///              wish: install               the kubelet lists the handlers
///  (no label) ───────────────▶ installing ───────────────────────────────▶ installed
///      ▲                        │  ▲   ▲                                     │   │
///      │        wish: uninstall │  │   └──── a new installer, other values ──┘   │
///      │                        ▼  │ wish: install                               │
///      └──────────────────── uninstalling ◀──────────────────────────────────────┘
///        all is taken away                             wish: uninstall
/// ```
///
/// What fails stays in its state and is tried again. Without a wish nothing moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Something may be there.
    Installing,
    /// An installer has seen all of it.
    Installed,
    /// Something may be left.
    Uninstalling,
}

impl State {
    /// The label's value.
    pub fn word(self) -> &'static str {
        match self {
            Self::Installing => "installing",
            Self::Installed => "installed",
            Self::Uninstalling => "uninstalling",
        }
    }

    /// Reads the label's value. A word of another version's says at least that something may be there.
    pub fn read(word: &str) -> Self {
        [Self::Installed, Self::Uninstalling]
            .into_iter()
            .find(|state| state.word() == word)
            .unwrap_or(Self::Installing)
    }
}

/// What an installer knows when it decides. The labels were read *before* the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known {
    /// The node's state.
    pub state: Option<State>,
    /// Pods of the RuntimeClass may come to it: `slipway.dev/installed=true`.
    pub open: bool,
    /// This installer has installed, with its own values, and seen it.
    pub done: bool,
    /// Files of Slipway's are on the node.
    pub traces: bool,
}

/// What an installer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Sets the node's state; `Uninstalling` also closes it for new pods.
    Mark(State),
    /// Installs, and opens the node when the kubelet lists the handlers.
    Install,
    /// Takes Slipway away, and then the labels.
    Remove {
        /// Even while pods run.
        force: bool,
    },
}

/// The step from here towards the wish.
pub fn next(wish: Wish, known: Known) -> Step {
    match (wish, known.state) {
        (Wish::Nothing, _) => Step::Rest,
        (Wish::Install, Some(State::Installed)) if known.done && known.open => Step::Rest,
        (Wish::Install, Some(State::Installing)) => Step::Install,
        (Wish::Install, _) => Step::Mark(State::Installing),
        (Wish::Uninstall { .. }, None) if !known.traces => Step::Rest,
        (Wish::Uninstall { force }, Some(State::Uninstalling)) => Step::Remove { force },
        (Wish::Uninstall { .. }, _) => Step::Mark(State::Uninstalling),
    }
}
