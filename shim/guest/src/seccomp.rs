//! Which system calls the guest may make: those that its engine makes (`slipway_seccomp::guest`), and of them those that the
//! profile of the pod lets through.
//!
//! The filter is entered when all is done that a program under runc would not do itself (mounts, namespaces, users), and before
//! the first byte of the artefact is loaded.

use slipway_protocol::Seccomp;

use crate::sys;

/// Every system call from here on is the filter's to decide about.
pub fn enter(profile: Option<&Seccomp>) -> Result<(), String> {
    let rules = slipway_seccomp::guest(std::process::id());
    slipway_confine::calls(&rules, profile, sys::end_at_trapped_call)
        .map_err(|e| format!("linux.seccomp: the kernel does not take the filter: {e}"))
}
