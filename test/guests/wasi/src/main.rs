//! What a module sees of `wasi_snapshot_preview1`: `wasi-conformance AREA [DIRECTORY]` runs an area's checks and prints
//! one line for each: `ok NAME` or `deviates NAME: what was called, what came, what should have`.

mod files;
mod paths;
mod process;
mod wasi;

use wasi::{Errno, Fd};

/// What a check finds: nothing, or how the call deviates.
type Check = std::result::Result<(), String>;

/// Where an area's checks are made.
struct Area {
    /// The directory, opened.
    fd: Fd,
    /// The container's root.
    root: Fd,
}

/// The call's error, or SUCCESS.
fn code<T>(result: wasi::Result<T>) -> Errno {
    result.err().unwrap_or(Errno::SUCCESS)
}

/// Fails unless the call ends as it should: with success or one of the errors.
#[macro_export]
macro_rules! expect {
    ($call:expr, $($errno:ident)|+) => {{
        let came = $crate::code($call);
        if ![$($crate::wasi::Errno::$errno),+].contains(&came) {
            let call = stringify!($call).split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(format!("{call}: {came:?} instead of {}", stringify!($($errno)|+)));
        }
    }};
}

/// The value of a call that has to succeed.
#[macro_export]
macro_rules! value {
    ($call:expr) => {
        match $call {
            Ok(value) => value,
            Err(e) => {
                let call = stringify!($call)
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ");
                return Err(format!("{call}: {e:?}"));
            }
        }
    };
}

/// Fails unless both are equal.
#[macro_export]
macro_rules! same {
    ($what:expr, $came:expr, $should:expr) => {{
        let (came, should) = ($came, $should);
        if came != should {
            return Err(format!("{}: {came:?} instead of {should:?}", $what));
        }
    }};
}

type Checks = &'static [(&'static str, fn(&Area) -> Check)];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let area = arguments.next().unwrap_or_default();
    let directory = arguments.next().unwrap_or_else(|| "/".to_string());
    let checks: Checks = match area.as_str() {
        "files" => files::WRITABLE,
        "read-only" => files::READ_ONLY,
        "large" => files::LARGE,
        "links" => paths::LINKS,
        "race" => paths::RACE,
        "process" => process::CHECKS,
        "streams" => return process::streams(),
        "terminate" => return process::raise(),
        other => {
            eprintln!("no area is named {other:?}");
            std::process::exit(2);
        }
    };
    let opened = root().and_then(|root| {
        let path = directory.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        let fd = wasi::path_open(
            root,
            wasi::FOLLOW,
            path,
            wasi::DIRECTORY,
            wasi::DIRECTORY_RIGHTS,
            0,
        )?;
        Ok(Area { fd, root })
    });
    let area = match opened {
        Ok(area) => area,
        Err(e) => {
            println!("deviates open: {directory}: {e:?}");
            return;
        }
    };
    for (name, check) in checks {
        match check(&area) {
            Ok(()) => println!("ok {name}"),
            Err(how) => println!("deviates {name}: {how}"),
        }
    }
}

/// The descriptor of the preopened root.
fn root() -> wasi::Result<Fd> {
    (3..)
        .map(|fd| wasi::preopen(fd).map(|name| (fd, name)))
        .find_map(|found| match found {
            Ok((fd, name)) => (name == b"/").then_some(Ok(fd)),
            Err(e) => Some(Err(e)),
        })
        .unwrap_or(Err(Errno::BADF))
}
