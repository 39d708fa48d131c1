//! Arguments, clocks, random numbers, polling, and the standard streams.

use crate::files::RIGHTS;
use crate::wasi::*;
use crate::{Area, Check, Checks, expect, same, value};

pub const CHECKS: Checks = &[
    ("args_get and environ_get", arguments),
    ("clock_time_get and clock_res_get", clocks),
    ("random_get", random),
    ("sched_yield", yields),
    ("poll_oneoff waits for clocks", poll_clock),
    ("poll_oneoff of an absolute time", poll_absolute),
    ("poll_oneoff with many subscriptions", poll_many),
    ("poll_oneoff of a regular file", poll_file),
    ("poll_oneoff of a descriptor that is closed", poll_closed),
    ("poll_oneoff without subscriptions", poll_nothing),
    ("sock_* on what is no socket", no_socket),
    ("calls on descriptors that are not open", not_open),
];

const MILLISECOND: u64 = 1_000_000;

fn arguments(_: &Area) -> Check {
    let [(count, bytes), (variables, environment)] = value!(sizes());
    let all: Vec<String> = std::env::args().collect();
    same!("arguments", count, all.len());
    same!(
        "bytes of arguments",
        bytes,
        all.iter().map(|a| a.len() + 1).sum()
    );
    let all: Vec<(String, String)> = std::env::vars().collect();
    same!("variables", variables, all.len());
    let length = all.iter().map(|(n, v)| n.len() + v.len() + 2).sum();
    same!("bytes of variables", environment, length);
    Ok(())
}

fn clocks(_: &Area) -> Check {
    const CLOCKS: [wasip1::Clockid; 4] = [
        CLOCKID_REALTIME,
        CLOCKID_MONOTONIC,
        CLOCKID_PROCESS_CPUTIME_ID,
        CLOCKID_THREAD_CPUTIME_ID,
    ];
    for clock in CLOCKS {
        let resolution = value!(clock_res_get(clock.raw()));
        same!(
            format!("resolution of {clock:?}"),
            (1..=10 * MILLISECOND).contains(&resolution),
            true
        );
        let (one, two) = (
            value!(clock_time_get(clock.raw())),
            value!(clock_time_get(clock.raw())),
        );
        same!(format!("{clock:?} goes on"), two >= one, true);
    }
    // 2026-01-01 in seconds.
    same!(
        "a time of day",
        value!(clock_time_get(0)) > 1_767_225_600 * 1000 * MILLISECOND,
        true
    );
    expect!(clock_time_get(99), INVAL);
    expect!(clock_res_get(99), INVAL);
    Ok(())
}

fn random(_: &Area) -> Check {
    let (mut one, mut two) = ([0; 4096], [0; 4096]);
    value!(random_get(&mut one));
    value!(random_get(&mut two));
    same!("twice the same", one == two, false);
    let zeros = one.iter().filter(|b| **b == 0).count();
    same!("a fair share of zeros", zeros < 100, true);
    // More than getrandom(2) gives at a time.
    let mut much = vec![0; 40 << 20];
    value!(random_get(&mut much));
    let end = &much[much.len() - 4096..];
    same!(
        "filled to its end",
        end.iter().filter(|b| **b == 0).count() < 100,
        true
    );
    value!(random_get(&mut []));
    Ok(())
}

fn yields(_: &Area) -> Check {
    value!(sched_yield());
    Ok(())
}

fn clock(userdata: u64, timeout: u64, absolute: bool) -> Subscription {
    let clock = SubscriptionClock {
        id: CLOCKID_MONOTONIC,
        timeout,
        precision: 0,
        flags: absolute.into(),
    };
    Subscription {
        userdata,
        u: SubscriptionU {
            tag: 0,
            u: SubscriptionUU { clock },
        },
    }
}

fn reading(userdata: u64, fd: Fd) -> Subscription {
    of_descriptor(userdata, 1, fd)
}

fn writing(userdata: u64, fd: Fd) -> Subscription {
    of_descriptor(userdata, 2, fd)
}

/// For both directions the same, but for the tag.
fn of_descriptor(userdata: u64, tag: u8, fd: Fd) -> Subscription {
    let fd_read = SubscriptionFdReadwrite {
        file_descriptor: fd,
    };
    Subscription {
        userdata,
        u: SubscriptionU {
            tag,
            u: SubscriptionUU { fd_read },
        },
    }
}

fn now() -> Result<u64> {
    clock_time_get(CLOCKID_MONOTONIC.raw())
}

fn poll_clock(_: &Area) -> Check {
    let (begin, mut events) = (value!(now()), Vec::new());
    value!(poll_oneoff(
        &[
            clock(7, 20 * MILLISECOND, false),
            clock(8, 3_600_000 * MILLISECOND, false)
        ],
        &mut events
    ));
    same!("waited", value!(now()) - begin >= 20 * MILLISECOND, true);
    same!("events", events.len(), 1);
    same!("userdata", events[0].userdata, 7);
    same!("type", events[0].type_.raw(), 0);
    // No time at all.
    value!(poll_oneoff(&[clock(9, 0, false)], &mut events));
    same!("at once", events.len(), 1);
    // Less than a millisecond.
    let begin = value!(now());
    value!(poll_oneoff(
        &[clock(9, MILLISECOND / 2, false)],
        &mut events
    ));
    same!(
        "half a millisecond",
        value!(now()) - begin >= MILLISECOND / 2,
        true
    );
    Ok(())
}

fn poll_absolute(_: &Area) -> Check {
    let mut events = Vec::new();
    let at = value!(now()) + 20 * MILLISECOND;
    value!(poll_oneoff(&[clock(1, at, true)], &mut events));
    same!("not before", value!(now()) >= at, true);
    value!(poll_oneoff(&[clock(1, 1, true)], &mut events));
    same!("what is past", events.len(), 1);
    Ok(())
}

fn poll_many(area: &Area) -> Check {
    let mut events = Vec::new();
    let timers: Vec<Subscription> = (0..1000)
        .map(|i| clock(i, (i + 1) * 60_000 * MILLISECOND, false))
        .chain([clock(5000, MILLISECOND, false)])
        .collect();
    value!(poll_oneoff(&timers, &mut events));
    same!(
        "the earliest of 1,001",
        events.iter().map(|e| e.userdata).collect::<Vec<_>>(),
        vec![5000]
    );
    // The same descriptor for both directions, beside a clock.
    let fd = value!(path_open(area.fd, 0, "polled", CREAT, RIGHTS, 0));
    value!(poll_oneoff(
        &[
            reading(1, fd),
            writing(2, fd),
            clock(3, 60_000 * MILLISECOND, false)
        ],
        &mut events
    ));
    let mut ready: Vec<u64> = events.iter().map(|e| e.userdata).collect();
    ready.sort_unstable();
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "polled"));
    same!("both directions", ready, vec![1, 2]);
    Ok(())
}

fn poll_file(area: &Area) -> Check {
    let mut events = Vec::new();
    let fd = value!(path_open(area.fd, 0, "polled", CREAT, RIGHTS, 0));
    value!(fd_write(fd, "content"));
    value!(fd_seek(fd, 0, 0));
    let result = poll_oneoff(&[reading(1, fd)], &mut events);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "polled"));
    value!(result);
    same!("events", events.len(), 1);
    same!("error", Errno(events[0].error.raw()), Errno::SUCCESS);
    same!("bytes", events[0].fd_readwrite.nbytes, 7);
    Ok(())
}

fn poll_closed(_: &Area) -> Check {
    let mut events = Vec::new();
    value!(poll_oneoff(
        &[reading(1, 9999), clock(2, 100 * MILLISECOND, false)],
        &mut events
    ));
    same!("events", events.len(), 1);
    same!("error", Errno(events[0].error.raw()), Errno::BADF);
    Ok(())
}

fn poll_nothing(_: &Area) -> Check {
    expect!(poll_oneoff(&[], &mut Vec::new()), INVAL);
    Ok(())
}

fn no_socket(area: &Area) -> Check {
    let fd = value!(path_open(
        area.fd,
        0,
        "file",
        CREAT,
        RIGHTS_FD_READ | RIGHTS_FD_WRITE,
        0
    ));
    expect!(sock_recv(fd, &mut [0; 8]), NOTSOCK | NOTCAPABLE);
    expect!(sock_send(fd, b"x"), NOTSOCK | NOTCAPABLE);
    expect!(sock_shutdown(fd, 2), NOTSOCK | NOTCAPABLE);
    expect!(sock_accept(fd), NOTSOCK | NOTCAPABLE);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn not_open(_: &Area) -> Check {
    const NONE: Fd = 9999;
    expect!(fd_advise(NONE, 0, 0, 0), BADF);
    expect!(fd_close(NONE), BADF);
    expect!(fd_fdstat_get(NONE), BADF);
    expect!(fd_fdstat_set_flags(NONE, 0), BADF);
    expect!(fd_fdstat_set_rights(NONE, 0, 0), BADF);
    expect!(fd_filestat_get(NONE), BADF);
    expect!(fd_filestat_set_size(NONE, 0), BADF);
    expect!(fd_filestat_set_times(NONE, 0, 0, 0), BADF);
    expect!(fd_pread(NONE, &mut [0; 1], 0), BADF);
    expect!(preopen(NONE), BADF);
    expect!(fd_pwrite(NONE, "x", 0), BADF);
    expect!(fd_readdir(NONE, &mut [0; 64], 0), BADF);
    expect!(fd_tell(NONE), BADF);
    expect!(path_create_directory(NONE, "x"), BADF);
    expect!(path_filestat_get(NONE, 0, "x"), BADF);
    expect!(path_link(NONE, 0, "x", "y"), BADF);
    expect!(path_readlink(NONE, "x", &mut [0; 8]), BADF);
    expect!(path_rename(NONE, "x", "y"), BADF);
    expect!(path_symlink("x", NONE, "y"), BADF);
    expect!(sock_recv(NONE, &mut [0; 8]), BADF);
    expect!(sock_accept(NONE), BADF);
    Ok(())
}

/// Says of each standard stream what it is, and what reading the first brings.
pub fn streams() {
    let kind = |fd| match fd_fdstat_get(fd) {
        Ok(stat) => match stat.fs_filetype.raw() {
            0 => "unknown".to_string(),
            2 => "character device".to_string(),
            4 => "regular file".to_string(),
            other => format!("type {other}"),
        },
        Err(e) => format!("{e:?}"),
    };
    let mut buffer = [0; 64];
    let read = fd_read(0, &mut buffer).map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned());
    println!("{}, {}, {}; read {read:?}", kind(0), kind(1), kind(2));
}

/// Ends itself by SIGABRT.
pub fn raise() {
    const ABRT: i32 = 6;
    // SAFETY: takes a number.
    let code = unsafe { wasip1::wasi_snapshot_preview1::proc_raise(ABRT) };
    println!("proc_raise: {:?}", Errno(code as u16));
}
