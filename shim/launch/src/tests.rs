//! A guest that is led to its module, and one that is waited for, with a script in its place: a shell's process that stays or ends, and
//! what this process says at the guest's end of the socket. The kernel's word for who has sent a packet is not asked for, but
//! where that is the matter.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use slipway_compile::{Direct, Install};
use slipway_counters::{Counter, Counters, Snapshot};
use slipway_protocol::{
    Budget, Cause, End, FromGuest, Launch, MAX_PACKET, Module, Timeline, ToGuest,
};
use slipway_sys::{CgroupEntry, Child, Exec};
use tempfile::TempDir;
use tokio::io::Interest;

use crate::{Compiler, Guest, Helpers, Resolved, StartError, resolve};

/// It stays until somebody ends it.
const STAYS: &str = "exec sleep 1000";

fn shell(script: &str) -> Child {
    let text = |text: &str| CString::new(text).unwrap();
    let exec = Exec {
        program: text("/bin/sh"),
        argv: ["sh", "-c", script].map(text).into(),
        envp: Vec::new(),
        fds: vec![null(), null(), null()],
        directory: None,
        read_only: None,
        with_parent: false,
    };
    slipway_sys::spawn(exec, 0, &CgroupEntry::default()).unwrap()
}

fn null() -> OwnedFd {
    slipway_sys::open_null().unwrap()
}

/// Waits until there is something to read: of a pidfd, that its process has ended.
async fn readable(fd: OwnedFd) {
    let watched = slipway_sys::async_fd(fd, Interest::READABLE).unwrap();
    let _ = watched.readable().await.unwrap();
}

/// The guest as the host has it, and its end of the socket.
struct Script {
    guest: Guest,
    end: OwnedFd,
}

impl Script {
    fn new() -> Self {
        Self::of(STAYS, false)
    }

    fn of(script: &str, joins_pids: bool) -> Self {
        let kind = SocketType::SEQPACKET;
        let (host, end) =
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let guest = Guest::new(shell(script), host, joins_pids).unwrap();
        Self { guest, end }
    }

    fn says(self, message: &FromGuest) -> Self {
        self.says_with(message, &[])
    }

    fn says_with(self, message: &FromGuest, fds: &[OwnedFd]) -> Self {
        let fds = slipway_protocol::borrow(fds);
        slipway_protocol::send(self.end.as_fd(), message, &fds).unwrap();
        self
    }

    fn writes(self, bytes: &[u8]) -> Self {
        assert_eq!(rustix::io::write(&self.end, bytes), Ok(bytes.len()));
        self
    }

    /// Its process ends, and its end of the socket with it.
    async fn ends(self) -> Guest {
        let pid = Pid::from_raw(self.guest.pid()).unwrap();
        readable(pidfd_open(pid, PidfdFlags::empty()).unwrap()).await;
        self.guest
    }

    fn hears(&self) -> ToGuest {
        slipway_protocol::recv(self.end.as_fd()).unwrap().0
    }

    /// Leads it to its module, on a node that has nothing.
    async fn is_resolved(&self) -> (Result<Resolved, StartError>, Node) {
        self.is_resolved_within(None).await
    }

    async fn is_resolved_within(
        &self,
        patience: Option<Duration>,
    ) -> (Result<Resolved, StartError>, Node) {
        let node = Node::new();
        let budget = Budget::new(None).unwrap().share().unwrap();
        let helpers = Helpers {
            budget: &budget,
            process: None,
            module: None,
            enter: || Ok(vec![null()]),
            layer: None,
            compiler: &node.compiler(),
            counters: &Counters::new(node.0.path()),
            patience,
        };
        (
            resolve(&self.guest, &Launch::default(), helpers).await,
            node,
        )
    }

    async fn is_refused(&self) -> String {
        self.is_resolved().await.0.unwrap_err().to_string()
    }
}

/// A directory for what a node has.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// It has no program.
    fn compiler(&self) -> Compiler {
        Compiler::Direct(Direct {
            install: Install::at(self.0.path()),
            cache_dir: self.0.path().join("cache").display().to_string(),
            cache_bytes: 1 << 20,
            progress: Arc::new(|_| ()),
        })
    }

    /// How often a module was in the cache, and how often not.
    fn counted(&self) -> (u64, u64) {
        let seen = Snapshot::read(self.0.path());
        (
            seen.counter(Counter::CacheHits),
            seen.counter(Counter::CacheMisses),
        )
    }
}

fn replaced(pid: i32) -> FromGuest {
    FromGuest::Replaced {
        pid,
        steps: steps(),
    }
}

fn steps() -> Timeline {
    Timeline::default()
}

fn module() -> Module {
    Module {
        digest: [1; 32],
        size: 8,
        path: "/app.wasm".into(),
        engine: "engine".into(),
    }
}

fn ended(status: u8, reason: &str) -> End {
    End::new(status, Cause::Status, reason)
}

#[tokio::test]
async fn a_guest_gets_its_launch_and_its_cgroup_and_goes_to_its_module() {
    let script = Script::new()
        .says(&FromGuest::Waiting)
        .says(&FromGuest::Resolved(steps()));
    let (resolved, node) = script.is_resolved().await;
    assert!(!resolved.unwrap().missed);
    assert_eq!(node.counted(), (1, 0));
    assert!(matches!(script.hears(), ToGuest::Launch { share: 0 }));
    assert!(matches!(script.hears(), ToGuest::Cgroup));
}

#[tokio::test]
async fn what_it_says_of_its_entrypoint_is_the_error() {
    for (message, expected) in [
        (
            FromGuest::NotWasm("/bin/sh is an ELF".into()),
            "/bin/sh is an ELF: not a WebAssembly module",
        ),
        (
            FromGuest::NoEntrypoint("no /app.wasm".into()),
            "no /app.wasm",
        ),
        (
            FromGuest::Failed("process.cwd: none".into()),
            "process.cwd: none",
        ),
        (
            FromGuest::Ended(ended(3, "")),
            "the guest process ended with status 3 before the module was loaded",
        ),
    ] {
        assert_eq!(Script::new().says(&message).is_refused().await, expected);
    }
}

#[tokio::test]
async fn what_comes_too_early_or_is_none_of_its_business_is_refused() {
    for (message, expected) in [
        (
            FromGuest::Ready(steps()),
            "the guest sent Ready at the wrong time",
        ),
        // It joins no pid namespace.
        (replaced(1), "the guest sent Replaced at the wrong time"),
        (
            FromGuest::NeedArtefact {
                module: module(),
                damaged: None,
            },
            "the guest sent no module",
        ),
    ] {
        assert_eq!(Script::new().says(&message).is_refused().await, expected);
    }
}

#[tokio::test]
async fn rubbish_is_an_error_however_long_it_is() {
    for bytes in [&[0xff; 7][..], &[0; 40_000], &vec![0x01; MAX_PACKET]] {
        let error = Script::new()
            .writes(bytes)
            .is_resolved()
            .await
            .0
            .unwrap_err();
        assert!(
            matches!(
                error,
                StartError::Protocol(slipway_protocol::Error::Encoding(_))
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_end_without_a_word_is_told_with_its_status() {
    for (script, expected) in [
        ("exit 5", "status 5 before the module was loaded"),
        ("exit 126", "it could not enter its cgroup"),
        ("kill -9 $$", "killed by SIGKILL"),
    ] {
        let guest = Script::of(script, false).ends().await;
        let error = Script { guest, end: null() }.is_refused().await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_module_that_cannot_be_compiled_is_told_to_the_guest() {
    let need = FromGuest::NeedArtefact {
        module: module(),
        damaged: None,
    };
    let script = Script::new().says_with(&need, &[null()]);
    // The guest says no more: it waits for an answer, and its start does not.
    let (resolved, node) = script.is_resolved_within(Some(Duration::ZERO)).await;
    assert!(resolved.unwrap().missed);
    assert!(script.guest.is_compiling());
    assert_eq!(node.counted(), (0, 1));
    script.hears();
    script.hears();
    readable(script.end.try_clone().unwrap()).await;
    let answer = script.hears();
    assert!(
        matches!(&answer, ToGuest::NoArtefact(why) if !why.is_empty()),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_successor_takes_its_place_once() {
    let successor = shell(STAYS);
    let pid = successor.pid;
    // The first one has ended by then.
    let script = Script::of("exit 0", true).says_with(&replaced(pid), &[successor.pidfd]);
    script.is_resolved().await.0.unwrap();
    assert_eq!(script.guest.pid(), pid);
    assert!(!script.guest.may_be_replaced());

    let script = Script::of(STAYS, true).says(&replaced(1));
    assert_eq!(script.is_refused().await, "the guest sent no process");
}

#[tokio::test]
async fn nobody_else_speaks_for_it() {
    let (host, end) = slipway_protocol::pair().unwrap();
    let guest = Guest::new(shell(STAYS), host, false).unwrap();
    // This process's own packet, not the shell's.
    let script = Script { guest, end }.says(&FromGuest::Resolved(steps()));
    let error = script.is_resolved().await.0.unwrap_err();
    let own = std::process::id() as i32;
    assert!(
        matches!(error, StartError::Protocol(slipway_protocol::Error::Stranger(pid)) if pid == own),
        "{error}"
    );
}

#[tokio::test]
async fn its_own_word_for_its_end_counts_and_then_it_is_gone() {
    let script = Script::new()
        .says(&FromGuest::Ready(steps()))
        .says(&FromGuest::Ended(ended(7, "trap: unreachable")));
    let (end, loaded) = tokio::join!(script.guest.wait(), script.guest.loaded());
    assert_eq!(end, ended(7, "trap: unreachable"));
    assert!(loaded.is_ok());
    // ESRCH
    assert!(script.guest.kill(0).is_err());
}

#[tokio::test]
async fn an_end_without_a_report_is_the_kernels_status() {
    for (script, expected) in [
        ("exit 9", ended(9, "")),
        ("kill -9 $$", ended(137, "")),
        (
            "kill -SEGV $$",
            End::new(
                134,
                Cause::Trap,
                "trap: call stack exhausted, or a fault in the engine (SIGSEGV)",
            ),
        ),
    ] {
        let guest = Script::of(script, false).ends().await;
        assert_eq!(guest.wait().await, expected, "{script}");
        let why = guest.loaded().await.unwrap_err().to_string();
        assert!(why.contains("before the module was loaded"), "{why}");
    }
}

#[tokio::test]
async fn a_guest_that_breaks_the_protocol_while_it_runs_is_killed() {
    let early = |script: Script| script.says(&FromGuest::Ready(steps()));
    type Breaks = fn(Script) -> Script;
    let cases: [(&str, Breaks); 4] = [
        ("Ready at the wrong time", |script| {
            script.says(&FromGuest::Ready(steps()))
        }),
        ("Waiting at the wrong time", |script| {
            script.says(&FromGuest::Waiting)
        }),
        ("descriptors at the wrong time", |script| {
            script.says_with(&FromGuest::Ended(ended(0, "")), &[null()])
        }),
        ("", |script| script.writes(&[0xff; 7])),
    ];
    for (expected, breaks) in cases {
        let script = breaks(early(Script::new()));
        let end = script.guest.wait().await;
        assert_eq!(end.status, 137);
        assert!(
            end.reason
                .contains("broke the protocol between guest and shim"),
            "{}",
            end.reason
        );
        assert!(end.reason.ends_with(expected), "{}", end.reason);
        assert!(script.guest.kill(0).is_err());
    }
}

#[tokio::test]
async fn a_guest_that_is_dropped_is_gone_and_so_is_a_successor_that_nobody_has_heard_of() {
    let successor = shell(STAYS);
    let (pid, pidfd) = (successor.pid, successor.pidfd.try_clone().unwrap());
    let script = Script::of(STAYS, true).says_with(&replaced(pid), &[successor.pidfd]);
    let first = script.guest.pid();
    drop(script);
    // A thread of its own takes them off the kernel's table, which has no event.
    while [first, pid]
        .iter()
        .any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists())
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(slipway_sys::pidfd_kill(pidfd.as_fd(), 0).is_err());
}
