//! Names, as getaddrinfo and the crate's own look-up resolve them.

use std::time::Instant;

use wasmedge_wasi_socket::nslookup;

use crate::Outcome;
use crate::raw::{Hints, addresses};

/// The engine's names of getaddrinfo's errors, from 77 on.
const ERRORS: [&str; 11] = [
    "ADDRFAMILY",
    "AGAIN",
    "BADFLAGS",
    "FAIL",
    "FAMILY",
    "MEMORY",
    "NODATA",
    "NONAME",
    "SERVICE",
    "SOCKTYPE",
    "SYSTEM",
];
const FIRST_ERROR: i32 = 77;

/// A line per name: `NAME: ADDRESS...` or `NAME: ERROR`, and after how many seconds. A name may have a prefix, `4/` or
/// `6/` for one family, `any/` for no hints at all, and a suffix, `/SERVICE`.
pub fn print(names: &[&str]) -> Outcome {
    for asked in names {
        let (hints, rest) = match asked.split_once('/') {
            Some(("4", rest)) => (Hints::streams(1), rest),
            Some(("6", rest)) => (Hints::streams(2), rest),
            Some(("any", rest)) => (Hints::default(), rest),
            _ => (Hints::streams(0), *asked),
        };
        let (name, service) = rest.split_once('/').unwrap_or((rest, ""));
        let started = Instant::now();
        let answer = match addresses(name, service, hints) {
            Ok(found) => {
                let texts = found.iter().map(|address| match address.port() {
                    0 => address.ip().to_string(),
                    _ => address.to_string(),
                });
                texts.collect::<Vec<_>>().join(" ")
            }
            Err(error) => match ERRORS.get((error - FIRST_ERROR) as usize) {
                Some(name) => (*name).to_string(),
                None => format!("error {error}"),
            },
        };
        println!("{asked}: {answer} ({} s)", started.elapsed().as_secs());
    }
    Ok(())
}

/// The addresses that the crate finds for a name, as all its functions that take one do.
pub fn print_lookup(name: &str) -> Outcome {
    for address in nslookup(name, "http")? {
        println!("{address}");
    }
    Ok(())
}
