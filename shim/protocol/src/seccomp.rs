//! A seccomp filter on its way from the spec to the kernel.

use serde::{Deserialize, Serialize};

/// Why a process was ended by SIGSYS without a word of its own, for people.
pub const KILLED_CALL: &str = "linux.seccomp: the process made a system call that the profile forbids, or one that no WebAssembly program makes (SIGSYS)";

/// Why a process ended at a call that the profile traps, for people.
pub const FORBIDDEN_CALL: &str =
    "linux.seccomp: the profile forbids a system call that the process made (SIGSYS)";

/// What a failure has for its probable cause where every module loads, and this one is the first thing under a filter.
pub(crate) const LOADING_FILTERED: &str = "; perhaps linux.seccomp forbids what loading a module takes: brk, close, dup2, exit_group, fstat, mmap, mprotect, munmap, newfstatat, openat, read, recvfrom, recvmsg, rt_sigaction, sendmsg";

/// What seccomp(2) takes: made of the spec by the host, installed by the guest as it is.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, Default)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_…`.
    pub flags: u64,
    /// At most 4096 instructions.
    pub program: Vec<Instruction>,
}

/// One instruction of classic BPF: `struct sock_filter`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// Instructions to skip where a comparison holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}
