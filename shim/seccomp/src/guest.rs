//! What a guest calls from the moment when it is about to load its artefact: to load it, and then what WasmEdge's WASI makes of
//! the module's calls. It is one process of one thread, and stays it.

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, EAFNOSUPPORT, ENOMEM, ENOPROTOOPT, ENOTTY, F_GETFL, F_SETFD,
    F_SETFL, IP_RECVERR, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, IPV6_RECVERR,
    MAP_ANONYMOUS, NETLINK_ROUTE, PROT_EXEC, PROT_WRITE, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    SECCOMP_SET_MODE_FILTER, SO_ACCEPTCONN, SO_BINDTODEVICE, SO_BROADCAST, SO_DONTROUTE, SO_ERROR,
    SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_RCVBUF, SO_RCVLOWAT, SO_RCVTIMEO, SO_REUSEADDR,
    SO_SNDBUF, SO_SNDTIMEO, SO_TYPE, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY,
};

use crate::{
    ALLOW_WHATEVER_THE_PROFILE, FIONREAD, FORBID, Rule, SIOCGIFINDEX, TERMINAL, TIOCSCTTY, allow,
    has, is, no_code, refuse,
};

/// Bits of a socket's type that are no flags.
const TYPE: u64 = 0xf;

/// Allows mmap(2) of a file's code that cannot be written: the artefact's, for of all that a guest can open, that alone lies on a mount without
/// `noexec`.
fn code_of_files(rule: Rule) -> Rule {
    let (code, writable) = (PROT_EXEC as u64, PROT_WRITE as u64);
    rule.only([
        has(2, code | writable, code),
        has(3, MAP_ANONYMOUS as u64, 0),
    ])
}

/// Allows TCP and UDP of IPv4 and IPv6.
fn internet(rule: Rule) -> Rule {
    let kinds = [(SOCK_STREAM, IPPROTO_TCP), (SOCK_DGRAM, IPPROTO_UDP)];
    let protocols = kinds.map(|(kind, own)| [(kind, IPPROTO_IP), (kind, own)]);
    let families = [AF_INET, AF_INET6];
    let all = families
        .iter()
        .flat_map(|family| protocols.iter().flatten().map(move |kind| (family, kind)));
    all.fold(rule, |rule, (&family, &(kind, protocol))| {
        rule.only([
            is(0, family as u64),
            has(1, TYPE, kind as u64),
            is(2, protocol as u64),
        ])
    })
}

/// The options of a socket that WASI numbers, and those of the engine and the resolver.
fn options(rule: Rule) -> Rule {
    let numbered = [
        SO_REUSEADDR,
        SO_TYPE,
        SO_ERROR,
        SO_DONTROUTE,
        SO_BROADCAST,
        SO_SNDBUF,
        SO_RCVBUF,
        SO_KEEPALIVE,
        SO_OOBINLINE,
        SO_LINGER,
        SO_RCVLOWAT,
        SO_RCVTIMEO,
        SO_SNDTIMEO,
        SO_ACCEPTCONN,
        SO_BINDTODEVICE,
    ];
    let others = [
        (IPPROTO_TCP, TCP_NODELAY),
        (IPPROTO_IP, IP_RECVERR),
        (IPPROTO_IPV6, IPV6_RECVERR),
    ];
    let all = numbered
        .map(|name| (SOL_SOCKET, name))
        .into_iter()
        .chain(others);
    all.fold(rule, |rule, (level, name)| {
        rule.only([is(1, level as u64), is(2, name as u64)])
    })
}

/// The rules for a guest whose process id, as it sees it itself, is `process`.
pub fn rules(process: u32) -> Vec<Rule> {
    let own = u64::from(process);
    #[rustfmt::skip]
    let rules = vec![
        // Memory.
        code_of_files(no_code(allow(&["mmap"], "load the artefact; the module's memories; malloc"))),
        no_code(allow(&["mprotect"], "what the artefact's loader has written is not written any more; the module's memories grow")),
        allow(&["munmap", "mremap", "brk"], "the module's memories; malloc"),
        // Files.
        allow(&["openat"], "load the artefact; path_open; the resolver's files in /etc"),
        allow(&["close", "dup", "dup2"], "fd_close, fd_renumber; the standard streams"),
        allow(&["dup3"], "aarch64's dup2"),
        allow(&["read", "readv", "pread64", "preadv"], "load the artefact; fd_read, fd_pread; the names of functions, at a trap"),
        allow(&["write", "writev", "pwritev"], "fd_write, fd_pwrite; the last line of a program that ends"),
        allow(&["lseek"], "fd_seek, fd_tell"),
        allow(&["fstat", "newfstatat"], "fd_filestat_get, path_filestat_get"),
        allow(&["fstatfs"], "what a volume has mounted below it since is looked at before a file there is opened"),
        allow(&["faccessat2"], "whether a path's file is there"),
        allow(&["readlinkat"], "path_readlink, and links on the way of a path"),
        allow(&["getdents64"], "fd_readdir"),
        allow(&["mkdirat"], "path_create_directory"),
        allow(&["unlinkat"], "path_unlink_file, path_remove_directory"),
        allow(&["renameat"], "path_rename"),
        allow(&["renameat2"], "aarch64's renameat"),
        allow(&["linkat"], "path_link"),
        allow(&["symlinkat"], "path_symlink"),
        allow(&["utimensat"], "fd_filestat_set_times, path_filestat_set_times"),
        allow(&["ftruncate"], "fd_filestat_set_size"),
        allow(&["fallocate", "pwrite64"], "fd_allocate; the C library writes the bytes where a file system cannot set them aside"),
        allow(&["fadvise64"], "fd_advise"),
        allow(&["fsync", "fdatasync"], "fd_sync, fd_datasync"),
        allow(&["fcntl"], "fd_fdstat_get, fd_fdstat_set_flags; descriptors that no other program shall get")
            .one_of(1, &[F_SETFD as u64, F_GETFL as u64, F_SETFL as u64]),
        allow(&["ioctl"], "how much can be read; whether a descriptor is a terminal; the program's own terminal")
            .one_of(1, &[FIONREAD, TIOCSCTTY, SIOCGIFINDEX]).one_of(1, &TERMINAL).or(ENOTTY),
        // Sockets: TCP and UDP of IPv4 and IPv6, and the kernel's list of addresses, which getaddrinfo(3) asks for. Of other protocols
        // the kernel would load the modules.
        internet(allow(&["socket"], "sock_open, sock_getaddrinfo"))
            .only([is(0, AF_NETLINK as u64), is(2, NETLINK_ROUTE as u64)])
            .or(EAFNOSUPPORT),
        allow(&["bind", "listen", "accept", "connect", "shutdown"], "sock_bind, sock_listen, sock_accept, sock_connect, sock_shutdown"),
        allow(&["sendmsg", "sendto", "sendmmsg"], "the host; sock_send, sock_send_to; questions of the resolver"),
        allow(&["recvmsg", "recvfrom"], "the host; sock_recv, sock_recv_from; answers to the resolver"),
        allow(&["getsockname", "getpeername"], "sock_getlocaladdr, sock_getpeeraddr"),
        options(allow(&["getsockopt", "setsockopt"], "sock_getsockopt, sock_setsockopt; TCP_NODELAY; errors of the resolver's questions"))
            .or(ENOPROTOOPT),
        // Time and waiting.
        allow(&["clock_gettime", "clock_getres"], "clock_time_get, clock_res_get"),
        allow(&["epoll_create1", "epoll_ctl", "epoll_pwait", "timerfd_create", "timerfd_settime"], "poll_oneoff"),
        allow(&["poll", "futex"], "the resolver waits for an answer"),
        allow(&["uname"], "the resolver's own domain, where resolv.conf names none"),
        allow(&["ppoll"], "aarch64's poll"),
        allow(&["sched_yield"], "sched_yield"),
        allow(&["getrandom"], "random_get"),
        // The process itself.
        allow(&["rt_sigaction", "rt_sigprocmask", "rt_sigreturn"], "traps of the module's code; proc_raise; the end that SIGTERM brings"),
        allow(&["getpid", "gettid"], "proc_raise, abort(3)"),
        allow(&["tgkill"], "proc_raise, abort(3): to itself").only([is(0, own)]),
        allow(&["restart_syscall"], "a wait goes on after SIGSTOP and SIGCONT"),
        allow(&["exit_group"], "the end"),
        once_loaded(allow(&["seccomp"], "the second filter, once the artefact is loaded")),
    ];
    rules
}

/// Allows seccomp(2) to take a further filter, of which nobody is told.
fn once_loaded(mut rule: Rule) -> Rule {
    rule = rule.only([
        is(0, u64::from(SECCOMP_SET_MODE_FILTER)),
        has(1, u64::MAX, SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    ]);
    for (_, action) in &mut rule.verdict.rules {
        *action = ALLOW_WHATEVER_THE_PROFILE;
    }
    rule
}

/// The rules for a guest that has loaded its artefact, beside those that it has: nothing is loaded any more, and no filter follows.
pub fn rules_once_loaded() -> Vec<Rule> {
    let none = FORBID.into();
    #[rustfmt::skip]
    let rules = vec![
        no_code(allow(&["mmap"], "the module's memories; malloc")),
        // It makes a mapping of the artefact's code longer, and so code of what follows in the file.
        refuse(&["mremap"], ENOMEM, "realloc(3), which copies then"),
        Rule { verdict: none, ..allow(&["seccomp"], "this is the last filter") },
    ];
    rules
}
