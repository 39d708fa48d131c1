//! Which system calls the guest may make: those that its engine makes (`slipway_seccomp::guest`), and of them those that the
//! profile of the pod lets through.
//!
//! The filter is entered when all is done that a program under runc would not do itself (mounts, namespaces, users), and before
//! the first byte of the artefact is loaded. A second one follows when that is done.

use slipway_protocol::{Cause, End, FORBIDDEN_CALL, Instruction, Seccomp};
use slipway_sys::TrappedCall;

use crate::sys::end;

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
        slipway_confine::calls(self.program, profile, end_at_trapped_call)
            .map_err(|e| format!("linux.seccomp: the kernel does not take the filter: {e}"))
    }

    /// Whether it is this process's, which may have become another one since, in another pid namespace.
    pub fn is_own(&self) -> bool {
        self.process == std::process::id()
    }
}

/// From here on nothing is loaded: no file's bytes become code any more, the artefact's own included.
pub fn end_of_loading() -> Result<(), String> {
    let further = slipway_seccomp::further(&slipway_seccomp::guest_once_loaded());
    slipway_confine::fewer_calls(&further)
        .map_err(|e| format!("the kernel does not take the second filter: {e}"))
}

/// Ends the process at a system call that its filter has trapped, with a reason.
fn end_at_trapped_call(call: TrappedCall) -> ! {
    let name = slipway_seccomp::name(call.number);
    let reason = match call.data {
        // The program raised the signal itself.
        _ if call.number < 0 => String::new(),
        slipway_seccomp::UNLISTED => format!(
            "the process made a system call that no WebAssembly program makes, {name} (number {}), and was ended (SIGSYS)",
            call.number
        ),
        _ => FORBIDDEN_CALL.to_string(),
    };
    end(End::new(128 + libc::SIGSYS as u8, Cause::Status, reason))
}
