//! The host's part of the handshake until the guest has its place: the launch, and the container's cgroup.

use std::os::fd::{BorrowedFd, OwnedFd};

use slipway_protocol::{Launch, ToGuest};

use crate::sys::budget;
use crate::{Stop, namespaces, paths};

/// The host has not said yet what to become.
pub fn is_late(control: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(control, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(0)
}

/// What the host has opened for this guest.
pub struct Given {
    /// The directory in `/proc` of the container's process, for an exec.
    pub container: Option<OwnedFd>,
    /// The module, where it is no file of the container.
    pub module: Option<OwnedFd>,
}

/// Takes the launch, the budget, and what else the host has opened.
pub fn receive(control: BorrowedFd<'_>) -> Result<(Launch, Given), Stop> {
    let (message, fds) = slipway_protocol::recv::<ToGuest>(control)?;
    let mut fds = fds.into_iter();
    let (ToGuest::Launch { share }, Some(budget), Some(body)) = (message, fds.next(), fds.next())
    else {
        return Err("expected Launch with two descriptors".to_string().into());
    };
    budget::obey(&budget, share).map_err(|e| format!("memory budget: {e}"))?;
    let launch = slipway_protocol::read_launch(body)?;
    let given = Given {
        container: launch.is_exec.then(|| fds.next()).flatten(),
        module: fds.next(),
    };
    if launch.is_exec && given.container.is_none() {
        return Err("expected Launch with the container's process"
            .to_string()
            .into());
    }
    Ok((launch, given))
}

/// Moves this process into the container's cgroup, which the host has made meanwhile.
pub fn join_cgroup(control: BorrowedFd<'_>, launch: &Launch) -> Result<(), Stop> {
    let (ToGuest::Cgroup, tasks) = slipway_protocol::recv::<ToGuest>(control)? else {
        return Err("expected Cgroup".to_string().into());
    };
    for file in tasks {
        rustix::io::write(&file, b"0").map_err(|e| {
            let name = std::fs::read_link(paths::proc_path(&file)).unwrap_or_default();
            format!("linux.cgroupsPath: join {}: {e}", name.display())
        })?;
    }
    // The root of a cgroup namespace is the cgroup that the process is in when it is made.
    namespaces::unshare(launch.unshare & libc::CLONE_NEWCGROUP)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use slipway_protocol::FromGuest;

    /// What becomes of a guest to which the host says this, and then no more.
    fn told(message: &ToGuest, fds: &[BorrowedFd<'_>]) -> String {
        let (host, control) = slipway_protocol::pair().unwrap();
        slipway_protocol::send(host.as_fd(), message, fds).unwrap();
        drop(host);
        match receive(control.as_fd()) {
            Ok(_) => "launched".into(),
            Err(Stop::Tell(FromGuest::Failed(text))) => text,
            Err(Stop::Tell(other)) => other.name().into(),
            Err(Stop::Silent) => "silent".into(),
        }
    }

    #[test]
    fn a_launch_comes_first_and_with_its_descriptors() {
        let body = slipway_protocol::write_launch(&Launch::default()).unwrap();
        assert_eq!(
            told(&ToGuest::Cgroup, &[]),
            "expected Launch with two descriptors"
        );
        let launch = ToGuest::Launch { share: 0 };
        assert_eq!(told(&launch, &[]), "expected Launch with two descriptors");
        assert_eq!(
            told(&launch, &[body.as_fd()]),
            "expected Launch with two descriptors"
        );
    }

    #[test]
    fn a_host_that_is_gone_is_told_nothing() {
        let (host, control) = slipway_protocol::pair().unwrap();
        drop(host);
        assert!(matches!(receive(control.as_fd()), Err(Stop::Silent)));
    }

    #[test]
    fn a_launch_that_is_there_is_not_late() {
        let (host, control) = slipway_protocol::pair().unwrap();
        assert!(is_late(control.as_fd()));
        slipway_protocol::send(host.as_fd(), &ToGuest::Cgroup, &[]).unwrap();
        assert!(!is_late(control.as_fd()));
    }
}
