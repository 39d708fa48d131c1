//! What `slipway-aot` calls once it has no power any more: to read one module, to compile it with LLVM's threads, to write one file.

use libc::{CLONE_THREAD, ENOSYS, ENOTTY};

use crate::{Rule, TERMINAL, allow, has, is, no_code, refuse};

/// The rules for a compiler whose process id, as it sees it itself, is `process`.
pub fn rules(process: u32) -> Vec<Rule> {
    let own = u64::from(process);
    let thread = CLONE_THREAD as u64;
    #[rustfmt::skip]
    let rules = vec![
        // Memory.
        no_code(allow(&["mmap", "mprotect"], "malloc, stacks of threads, files as memory")),
        allow(&["munmap", "mremap", "madvise", "brk"], "malloc, stacks of threads, files as memory"),
        // Files.
        allow(&["openat", "close"], "the working directory's files"),
        allow(&["pread64"], "the module"),
        allow(&["write", "writev"], "the object file; what is said"),
        allow(&["copy_file_range", "sendfile", "lseek"], "the artefact goes to the cache's file"),
        allow(&["fstat", "newfstatat", "statx", "access"], "which files there are, and their sizes"),
        allow(&["rename", "unlink", "ftruncate"], "LLVM writes to a temporary file and renames it"),
        allow(&["faccessat", "renameat", "unlinkat"], "the same on aarch64"),
        allow(&["ioctl"], "whether a descriptor is a terminal").one_of(1, &TERMINAL).or(ENOTTY),
        // The host.
        allow(&["sendmsg", "recvmsg", "recvfrom"], "what the module is for, what it is"),
        // Threads.
        refuse(&["clone3"], ENOSYS, "its flags lie in memory, where no filter sees them; the C library takes clone then"),
        allow(&["clone"], "LLVM's threads; no process").only([has(0, thread, thread)]),
        allow(&["set_robust_list", "rseq", "exit"], "the C library's threads"),
        allow(&["futex", "sched_getaffinity", "sched_yield"], "threads that wait for each other, and how many there are"),
        // The process itself.
        allow(&["clock_gettime"], "LLVM's clocks, where the kernel's own library has none"),
        allow(&["getrandom"], "names of temporary files; malloc"),
        allow(&["rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"], "LLVM's handlers of crashes"),
        allow(&["getpid", "gettid"], "abort(3)"),
        allow(&["tgkill"], "abort(3): to itself").only([is(0, own)]),
        allow(&["restart_syscall"], "a wait goes on after SIGSTOP and SIGCONT"),
        allow(&["exit_group"], "the end"),
    ];
    rules
}
