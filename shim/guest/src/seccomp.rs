//! The container's seccomp profile: a filter that the host has made of it.
//!
//! It is entered when all is done that a program under runc would not do itself (mounts, namespaces, users), and before
//! the first byte of the artefact is loaded.

use slipway_protocol::{Instruction, Seccomp};

use crate::sys;

/// Every system call from here on is the filter's to decide about.
pub fn enter(filter: &Seccomp) -> Result<(), String> {
    sys::report_trapped_calls();
    let sock_filter = |i: &Instruction| libc::sock_filter {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    let mut program: Vec<_> = filter.program.iter().map(sock_filter).collect();
    slipway_sys::set_seccomp_filter(filter.flags, &mut program)
        .map_err(|e| format!("linux.seccomp: the kernel does not take the filter: {e}"))
}
