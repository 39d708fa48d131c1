//! The program without a containerd: its exit status and its one line on stderr.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows only the tests themselves, not what they share, as tests"
)]

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::time::Duration;

fn slipway_layers(args: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_slipway-layers"))
        .args(args)
        .output()
        .unwrap();
    assert!(stdout.is_empty());
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(message.matches('\n').count(), 1, "{message}");
    (status.code(), message)
}

#[test]
fn senseless_arguments_are_status_2_and_the_usage() {
    for (args, problem) in [
        (&["-x"][..], "unknown argument \"-x\""),
        (&["-address"], "-address needs a value"),
        (
            &["-namespace", "n", "-container", "c"],
            "-address is missing",
        ),
        (
            &["-address", "a", "-namespace", "n"],
            "-container is missing",
        ),
    ] {
        let (status, message) = slipway_layers(args);
        assert_eq!(status, Some(2));
        assert!(
            message.starts_with(problem) && message.contains("usage: "),
            "{message}"
        );
    }
}

#[test]
fn an_address_where_nobody_listens_is_status_4_with_the_systems_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let address = scratch.path().join("none.sock");
    let address = address.to_str().unwrap();
    let (status, message) = slipway_layers(&[
        "-address",
        address,
        "-namespace",
        "k8s.io",
        "-container",
        "c",
    ]);
    assert_eq!(status, Some(4));
    assert!(
        message.contains(address) && message.contains("No such file"),
        "{message}"
    );
}

/// Returns once the peer of this connection waits for what is said on it.
fn waits(connection: &UnixStream) {
    let peer = rustix::net::sockopt::socket_peercred(connection).unwrap();
    let stat = format!("/proc/{}/stat", peer.pid.as_raw_nonzero());
    // Its state follows its name. That somebody sleeps has no event.
    while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_server_that_hangs_up_is_status_4_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let address = scratch.path().join("containerd.sock");
    let listener = UnixListener::bind(&address).unwrap();
    let server = std::thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        waits(&connection);
    });
    let (status, message) = slipway_layers(&[
        "-address",
        address.to_str().unwrap(),
        "-namespace",
        "k8s.io",
        "-container",
        "c",
    ]);
    assert_eq!(status, Some(4), "{message}");
    server.join().unwrap();
}
