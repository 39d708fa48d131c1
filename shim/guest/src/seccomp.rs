//! Which system calls the guest may make: those that its engine makes (`slipway_seccomp::guest`), and of them those that the
//! profile of the pod lets through.
//!
//! The filter is entered when all is done that a program under runc would not do itself (mounts, namespaces, users), and before
//! the first byte of the artefact is loaded.

use slipway_protocol::{Instruction, Seccomp};

use crate::sys;

/// The guest's own part, as a program for the kernel.
pub struct AllowList {
    /// A guest may send signals to itself.
    process: u32,
    program: Vec<Instruction>,
}

impl AllowList {
    /// That of this process.
    pub fn make() -> Self {
        let process = std::process::id();
        let program = slipway_seccomp::allow_list(&slipway_seccomp::guest(process));
        Self { process, program }
    }

    /// Every system call from here on is the filter's to decide about.
    pub fn enter(self, profile: Option<&Seccomp>) -> Result<(), String> {
        slipway_confine::calls(self.program, profile, sys::end_at_trapped_call)
            .map_err(|e| format!("linux.seccomp: the kernel does not take the filter: {e}"))
    }

    /// Whether it is this process's, which may have become another one since, in another pid namespace.
    pub fn is_own(&self) -> bool {
        self.process == std::process::id()
    }
}
