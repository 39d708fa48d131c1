//! What `slipway-layers` calls once it is connected to containerd: to ask on that connection, and to write one module to a descriptor that
//! it has. It opens nothing, makes no socket and sends no signal.

use crate::{Rule, allow, no_code};

/// What a build for the program's own tests calls beside them: glibc's wait, and the standard library's look whether what it closes
/// is open.
const IN_TESTS: &[&str] = match cfg!(target_arch = "x86_64") {
    true => &["epoll_wait", "fcntl"],
    false => &["fcntl"],
};

/// The rules.
pub fn rules() -> Vec<Rule> {
    #[rustfmt::skip]
    let mut rules = vec![
        no_code(allow(&["mmap", "mprotect"], "malloc")),
        allow(&["munmap", "mremap", "madvise", "brk"], "malloc"),
        // containerd.
        allow(&["recvfrom", "writev", "sendto"], "the connection"),
        allow(&["epoll_pwait", "epoll_ctl"], "waiting for it"),
        allow(&["shutdown", "close"], "the end of it"),
        // What comes of it.
        allow(&["write", "ftruncate"], "the module; what is said"),
        // The process itself.
        allow(&["clock_gettime"], "deadlines, where the kernel's own library has no clock"),
        allow(&["getrandom"], "keys of hash tables"),
        allow(&["futex"], "the end of what is done once, for which nobody waits"),
        allow(&["sigaltstack"], "the end of the main thread"),
        allow(&["restart_syscall"], "a wait goes on after SIGSTOP and SIGCONT"),
        allow(&["exit_group"], "the end"),
    ];
    if cfg!(debug_assertions) {
        rules.push(allow(IN_TESTS, "the program's own tests"));
    }
    rules
}
