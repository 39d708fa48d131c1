use libc::{EAFNOSUPPORT, ENOTTY, SECCOMP_RET_KILL_PROCESS, c_int};

use super::*;
use simulate::call;

const ALLOW: u32 = SECCOMP_RET_ALLOW;
const OWN: u32 = 7;

fn lists() -> [(&'static str, Vec<Rule>); 3] {
    [
        ("guest", guest(OWN)),
        ("compiler", compiler(OWN)),
        ("layers", layers()),
    ]
}

fn with(arguments: &[u64]) -> [u64; 6] {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    all
}

#[test]
fn every_rule_has_a_reason_and_every_call_one_rule() {
    for (name, rules) in lists() {
        let mut seen = std::collections::BTreeSet::new();
        for rule in &rules {
            assert!(!rule.why.is_empty(), "{name}: {:?}", rule.calls);
            for call in rule.calls {
                assert!(seen.insert(*call), "{name}: {call} twice");
                if cfg!(target_arch = "x86_64") {
                    assert!(number(call).is_some(), "{name}: no call {call}");
                }
            }
        }
    }
}

#[test]
fn a_list_leaves_room_for_the_profile_of_a_pod() {
    for (name, rules) in lists() {
        let length = allow_list(&rules).len();
        assert!(length <= MAX_ALLOW_LIST, "{name}: {length} instructions");
    }
}

#[test]
fn what_a_list_does_not_name_is_trapped() {
    let others = [
        "ptrace",
        "mount",
        "unshare",
        "setns",
        "execve",
        "execveat",
        "fork",
        "vfork",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "userfaultfd",
        "memfd_secret",
        "modify_ldt",
        "pidfd_getfd",
        "process_vm_readv",
        "perf_event_open",
        "open_by_handle_at",
        "chroot",
        "pivot_root",
        "kill",
        "tkill",
        "rt_sigqueueinfo",
        "setuid",
        "capset",
        "personality",
        "move_mount",
        "mknodat",
        "shmget",
        "msgget",
        "semget",
        "setxattr",
        "fchmod",
        "fchown",
        "inotify_init1",
        "fanotify_init",
        "open_tree",
        "fsopen",
    ];
    for (name, rules) in lists() {
        let program = allow_list(&rules);
        for other in others.iter().filter(|other| number(other).is_some()) {
            let verdict = call(&program, other, [0; 6]);
            assert!([FORBID, MISSING].contains(&verdict), "{name}: {other}");
        }
    }
}

#[test]
fn a_call_newer_than_a_list_is_missing_and_one_of_another_abi_ends_the_process() {
    for (name, rules) in lists() {
        let program = allow_list(&rules);
        assert_eq!(simulate::number(&program, 2000, [0; 6]), MISSING, "{name}");
        assert_eq!(
            simulate::run(&program, 0, 0x4000_0003, [0; 6]),
            SECCOMP_RET_KILL_PROCESS
        );
    }
}

#[test]
fn no_list_lets_a_process_execute_what_it_has_written() {
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let (anonymous, file) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::MAP_PRIVATE);
    for (name, rules) in lists() {
        let program = allow_list(&rules);
        let mmap = |protection: c_int, flags: c_int| {
            let arguments = with(&[0, 4096, protection as u64, flags as u64, 3, 0]);
            call(&program, "mmap", arguments)
        };
        let mprotect = |protection: c_int| {
            let arguments = with(&[0, 4096, protection as u64]);
            call(&program, "mprotect", arguments)
        };
        assert_eq!(mmap(read | write, anonymous), ALLOW, "{name}");
        assert_eq!(mmap(read, file), ALLOW, "{name}");
        assert_eq!(mprotect(read | write), ALLOW, "{name}");
        for protection in [execute, read | execute, read | write | execute] {
            assert_eq!(mmap(protection, anonymous), FORBID, "{name}");
            assert_eq!(mprotect(protection), FORBID, "{name}");
        }
        assert_eq!(mmap(read | write | execute, file), FORBID, "{name}");
        // The guest's loader maps the artefact.
        let loads = if name == "guest" { ALLOW } else { FORBID };
        assert_eq!(mmap(read | execute, file), loads, "{name}");
    }
}

#[test]
fn a_guest_that_has_loaded_its_artefact_loads_nothing_and_takes_no_further_filter() {
    let filter = with(&[1, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW]);
    let asks = with(&[1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER]);
    let strict = with(&[0, 0]);
    let code = with(&[0, 4096, (libc::PROT_READ | libc::PROT_EXEC) as u64, 2, 3, 0]);
    let memory = with(&[0, 4096, (libc::PROT_READ | libc::PROT_WRITE) as u64, 0x22]);
    let refuses = vec![Verdict::from(SECCOMP_RET_KILL_PROCESS); 1000];
    let profile = program(refuses, SECCOMP_RET_KILL_PROCESS);
    let loading = chain(allow_list(&guest(OWN)), &profile);
    // The pod's profile does not keep the guest from what it does for itself.
    assert_eq!(
        call(&loading, "seccomp", filter) & libc::SECCOMP_RET_ACTION_FULL,
        ALLOW
    );
    assert_eq!(call(&loading, "read", [0; 6]), SECCOMP_RET_KILL_PROCESS);
    for arguments in [asks, strict] {
        assert_eq!(call(&loading, "seccomp", arguments), FORBID);
    }
    let loaded = further(&guest_once_loaded());
    for (name, arguments, verdict) in [
        ("mmap", code, FORBID),
        ("mmap", memory, ALLOW),
        ("mremap", [0; 6], errno(libc::ENOMEM)),
        ("seccomp", filter, FORBID),
        ("read", [0; 6], ALLOW),
    ] {
        assert_eq!(call(&loaded, name, arguments), verdict, "{name}");
    }
    assert_eq!(simulate::number(&loaded, 2000, [0; 6]), ALLOW);
}

#[test]
fn a_guest_gets_sockets_of_the_internet_and_no_others() {
    let program = allow_list(&guest(OWN));
    let socket = |family: c_int, kind: c_int, protocol: c_int| {
        let arguments = [family, kind, protocol].map(|argument| argument as u64);
        call(&program, "socket", with(&arguments))
    };
    let (stream, datagram) = (libc::SOCK_STREAM, libc::SOCK_DGRAM);
    assert_eq!(socket(libc::AF_INET, stream, 0), ALLOW);
    assert_eq!(
        socket(
            libc::AF_INET6,
            datagram | libc::SOCK_CLOEXEC,
            libc::IPPROTO_UDP
        ),
        ALLOW
    );
    assert_eq!(
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        ALLOW
    );
    let others = [
        (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        (libc::AF_UNIX, stream, 0),
        (libc::AF_VSOCK, stream, 0),
        (libc::AF_PACKET, libc::SOCK_RAW, 0),
        (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        // SOCK_PACKET.
        (libc::AF_INET, 10, 0),
        (libc::AF_INET, stream, libc::IPPROTO_MPTCP),
        (libc::AF_INET6, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
        (libc::AF_INET, datagram, libc::IPPROTO_UDPLITE),
    ];
    for (family, kind, protocol) in others {
        assert_eq!(
            socket(family, kind, protocol),
            errno(EAFNOSUPPORT),
            "{family} {kind} {protocol}"
        );
    }
}

#[test]
fn a_guest_sets_the_options_that_wasi_numbers() {
    let program = allow_list(&guest(OWN));
    let set = |level: c_int, name: c_int| {
        call(
            &program,
            "setsockopt",
            with(&[3, level as u64, name as u64]),
        )
    };
    assert_eq!(set(libc::SOL_SOCKET, libc::SO_REUSEADDR), ALLOW);
    assert_eq!(set(libc::IPPROTO_TCP, libc::TCP_NODELAY), ALLOW);
    for (level, name) in [
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
        (libc::SOL_SOCKET, libc::SO_PEERCRED),
        (libc::IPPROTO_TCP, libc::TCP_ULP),
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP),
    ] {
        assert_eq!(set(level, name), errno(libc::ENOPROTOOPT), "{level} {name}");
    }
}

#[test]
fn the_upper_half_of_an_int_is_no_argument() {
    let program = allow_list(&guest(OWN));
    let dirty = |value: c_int| 0xdead_beef_0000_0000 | value as u64;
    assert_eq!(
        call(
            &program,
            "socket",
            with(&[dirty(libc::AF_INET), dirty(1), dirty(6)])
        ),
        ALLOW
    );
    assert_eq!(
        call(&program, "socket", with(&[dirty(libc::AF_VSOCK)])),
        errno(EAFNOSUPPORT)
    );
    assert_eq!(
        call(&program, "ioctl", with(&[0, dirty(0x5412)])),
        errno(ENOTTY)
    );
}

#[test]
fn a_process_signals_itself_alone() {
    for (name, rules) in lists() {
        let program = allow_list(&rules);
        // The reader of artefacts none at all.
        let own = if name == "layers" { FORBID } else { ALLOW };
        assert_eq!(call(&program, "tgkill", with(&[7, 7, 6])), own, "{name}");
        assert_eq!(call(&program, "tgkill", with(&[1, 1, 9])), FORBID, "{name}");
    }
}

#[test]
fn the_reader_of_artefacts_opens_nothing_and_connects_to_nobody() {
    let program = allow_list(&layers());
    for name in ["openat", "socket", "connect", "clone", "dup3", "recvmsg"] {
        assert_eq!(call(&program, name, [0; 6]), FORBID, "{name}");
    }
}

#[test]
fn the_compiler_makes_threads_and_no_process() {
    let program = allow_list(&compiler(OWN));
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
    assert_eq!(call(&program, "clone", with(&[thread])), ALLOW);
    let process = (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64;
    assert_eq!(call(&program, "clone", with(&[process])), FORBID);
    assert_eq!(call(&program, "clone3", [0; 6]), errno(libc::ENOSYS));
    assert_eq!(call(&program, "socket", [0; 6]), FORBID);
}

#[test]
fn of_two_programs_the_second_decides_about_what_the_first_allows() {
    let refuse_read = {
        let mut table: Vec<Verdict> = vec![ALLOW.into(); 3];
        table[number("read").unwrap()] = errno(libc::EACCES).into();
        program(table, ALLOW)
    };
    let both = chain(allow_list(&guest(OWN)), &refuse_read);
    assert_eq!(call(&both, "read", [0; 6]), errno(libc::EACCES));
    assert_eq!(call(&both, "write", [0; 6]), ALLOW);
    assert_eq!(call(&both, "mount", [0; 6]), FORBID);
    assert_eq!(
        call(&both, "socket", with(&[libc::AF_INET as u64, 1])),
        ALLOW
    );
    let alone = chain(allow_list(&guest(OWN)), &[]);
    assert_eq!(call(&alone, "read", [0; 6]), ALLOW);
    assert_eq!(call(&alone, "mount", [0; 6]), FORBID);
}
