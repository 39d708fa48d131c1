//! The handshake between whoever starts a guest (shim, command line) and the guest process.
//!
//! One `SOCK_SEQPACKET` pair; every packet is one postcard-encoded message, with descriptors where the table says so.
//!
//! ```text
//! host                                   guest
//!   ◀─ Waiting                             │  engine loaded
//!   Launch + [budget, body, process?, module?] ▶│  no privileges dropped, nothing hostile seen
//!   (makes the cgroup meanwhile)           │  joins namespaces, mounts
//!   Cgroup + [tasks…] ────────────────────▶│  moves itself there, resolves the entrypoint
//!   ◀─ NoEntrypoint                        │  only where the image has no such file, and no module was given
//!   Layer + [module] ─────────────────────▶│  the image is a Wasm artefact
//!   ◀─ NeedArtefact + [module]             │  only on a cache miss
//!   Artefact ─────────────────────────────▶│  look again
//!   ◀─ Unoptimised + [module]             │  only where the cache has a quick artefact in place of a full one
//!   ◀─ Resolved                            │  Create answers, where it has not done so during a long compile; the guest pivots,
//!                                          │  drops privileges, loads the artefact
//!   ◀─ Replaced + [pidfd]                  │  in place of Resolved, where the guest joins a pid namespace: it has pivoted and
//!                                          │  dropped its privileges, and goes on as a new process that was born there
//!   ◀─ Ready                               │
//!   Start + [stdin, stdout, stderr] ──────▶│  runs the entrypoint
//!   ◀─ Ended                               │  then exits
//! ```
//! The streams come last: to open containerd's FIFOs and close them again would end them for the runtime that a Linux
//! program is handed to.
//!
//! In place of any of its messages the guest may send `NotWasm`, `NoEntrypoint` or `Failed`; it waits for its end then,
//! so that an error of loading is Start's answer and not an exit of a container that never ran. An end without a message
//! means that it was killed: by SIGKILL, by the kernel's OOM killer, or by a fault that no handler could report.

mod beside;
mod budget;
mod facts;
mod launch;
mod message;
mod names;
mod printable;
mod seccomp;
mod socket;
mod timeline;

pub use beside::{beside, discard};
pub use budget::{
    Budget, BudgetPage, GuestShare, HostShare, MAX_SHARES, PAGE_BYTES, Refusal, Usage,
};
pub use facts::{Call, Facts, Purpose, aot_status};
pub use launch::{
    CA_CERTIFICATES, CompileMode, FULL_TIER_BYTES, Launch, MAX_LAUNCH, Mount, Program,
    RESOLVER_FILES, UserNamespace, read_launch, write_launch,
};
pub use message::{Cause, End, FromGuest, Module, ToGuest};
pub use names::{encode_names, find_name};
pub use printable::printable;
pub use seccomp::{FORBIDDEN_CALL, Instruction, KILLED_CALL, Seccomp};
pub use socket::{
    CONTROL_FD, Error, MAX_PACKET, Packet, borrow, encode, pair, recv, recv_packet, send,
};
pub use timeline::Timeline;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MAX_TEXT;
    use std::os::fd::AsFd;

    use rustix::net::SendFlags;

    #[test]
    fn a_message_travels_with_its_descriptors() {
        let (host, guest) = pair().unwrap();
        let launch = Launch {
            program: Program {
                args: vec!["/a.wasm".into(); 20_000],
                ..Program::default()
            },
            ..Launch::default()
        };
        let body = write_launch(&launch).unwrap();
        send(host.as_fd(), &ToGuest::Launch { share: 0 }, &[body.as_fd()]).unwrap();
        let (message, mut fds) = recv::<ToGuest>(guest.as_fd()).unwrap();
        assert!(matches!(message, ToGuest::Launch { share: 0 }));
        let launch = read_launch(fds.pop().unwrap()).unwrap();
        assert_eq!(launch.program.args.len(), 20_000);
    }

    #[test]
    fn a_text_that_is_longer_than_a_packet_arrives_as_far_as_there_is_room() {
        let (host, guest) = pair().unwrap();
        let long = format!("{}é", "x".repeat(MAX_TEXT - 1)).repeat(64);
        send(guest.as_fd(), &FromGuest::Failed(long.clone()), &[]).unwrap();
        let (FromGuest::Failed(text), _) = recv(host.as_fd()).unwrap() else {
            panic!("another message");
        };
        assert_eq!(text, "x".repeat(MAX_TEXT - 1));
        let end = End::new(1, Cause::Status, long.clone());
        send(guest.as_fd(), &FromGuest::Ended(end), &[]).unwrap();
        assert!(recv::<FromGuest>(host.as_fd()).is_ok());
        send(host.as_fd(), &ToGuest::NoArtefact(long), &[]).unwrap();
    }

    #[test]
    fn a_closed_peer_is_an_error_and_not_a_signal() {
        let (host, guest) = pair().unwrap();
        drop(guest);
        assert!(matches!(
            send(host.as_fd(), &ToGuest::Start { terminal: false }, &[]),
            Err(Error::Closed)
        ));
        assert!(matches!(
            recv::<FromGuest>(host.as_fd()),
            Err(Error::Closed)
        ));
    }

    #[test]
    fn the_host_is_told_who_speaks() {
        let (host, guest) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(guest.as_fd(), &FromGuest::Waiting, &[null.as_fd()]).unwrap();
        let packet = recv_packet(host.as_fd()).unwrap();
        assert_eq!(packet.sender, i32::try_from(std::process::id()).ok());
        assert_eq!(packet.fds.len(), 1);
        assert!(matches!(packet.message(), Ok(FromGuest::Waiting)));
    }

    #[test]
    fn another_version_is_named() {
        let (host, guest) = pair().unwrap();
        rustix::net::send(&host, &[0xff; 9], SendFlags::empty()).unwrap();
        let error = recv::<FromGuest>(guest.as_fd()).unwrap_err().to_string();
        assert!(error.contains("one installation"), "{error}");
    }
}
