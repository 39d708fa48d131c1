//! The smallest useful container: it greets, then ends in the way its first argument asks for.
//!
//! ```text
//! hello [ANY ARGS]    greet, print the arguments, exit 0
//! hello sleep         greet, then sleep for ever (an idle pod)
//! hello spin          greet, then use one CPU for ever
//! hello exit N        greet, then exit with status N
//! hello trap          greet, then end with an `unreachable` trap
//! hello alloc MIB     greet, allocate and touch MIB mebibytes in steps of 1 MiB, print how many it
//!                     got, exit 1 if fewer than asked for
//! ```

use std::hint;
use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("hello: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode, String> {
    greet(args).map_err(|error| format!("cannot write to standard output: {error}"))?;
    match args.first().map(String::as_str) {
        Some("sleep") => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        Some("spin") => loop {
            hint::spin_loop();
        },
        Some("exit") => Ok(ExitCode::from(number::<u8>(args)?)),
        // `abort` is the `unreachable` instruction on this target: a trap, not an exit status.
        Some("trap") => process::abort(),
        Some("alloc") => Ok(allocate(number(args)?)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn greet(args: &[String]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "Hello from Slipway")?;
    if !args.is_empty() {
        writeln!(stdout, "arguments: {}", args.join(" "))?;
    }
    stdout.flush()
}

fn number<T: FromStr>(args: &[String]) -> Result<T, String> {
    let text = args.get(1).map_or("", String::as_str);
    text.parse()
        .map_err(|_| format!("{} takes a number in range, not '{text}'", args[0]))
}

/// Allocates and writes `wanted` MiB, so that the pages are really there, and holds them all until
/// the end. A refused `memory.grow` is an ordinary error here.
fn allocate(wanted: usize) -> ExitCode {
    let mut held: Vec<Vec<u8>> = Vec::new();
    while held.len() < wanted {
        let mut block = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            break;
        }
        block.resize(MIB, 1);
        held.push(hint::black_box(block));
    }
    println!("allocated {} of {wanted} MiB", held.len());
    ExitCode::from(u8::from(held.len() < wanted))
}
