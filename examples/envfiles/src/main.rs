//! What a container sees of its world: arguments, environment, files and the standard streams.
//!
//! ```text
//! envfiles                    print arguments, working directory and environment
//! envfiles env                print the environment, one NAME=VALUE a line, sorted
//! envfiles ls PATH            list a directory, sorted: type (d, f, l), size in bytes, name
//! envfiles cat PATH           copy a file to standard output
//! envfiles write PATH TEXT    write TEXT and a newline to a file, replacing it
//! envfiles stderr TEXT        print TEXT to standard error
//! envfiles lines N            print the numbers 1 to N, one a line
//! envfiles stdin              copy standard input to standard output
//! ```

use std::env;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

const USAGE: &str =
    "usage: envfiles [env | ls PATH | cat PATH | write PATH TEXT | stderr TEXT | lines N | stdin]";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match run(&args, &words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("envfiles {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String], words: &[&str]) -> io::Result<ExitCode> {
    // Standard output flushes at every newline; `lines` of a million would be a million writes.
    let mut out = BufWriter::new(io::stdout().lock());
    match *words {
        [] => {
            writeln!(out, "args: {args:?}")?;
            writeln!(out, "cwd: {}", env::current_dir()?.display())?;
            print_environment(&mut out)?;
        }
        ["env"] => print_environment(&mut out)?,
        ["ls", path] => list(&mut out, path)?,
        ["cat", path] => drop(io::copy(&mut File::open(path)?, &mut out)?),
        ["write", path, text] => fs::write(path, format!("{text}\n"))?,
        ["stderr", text] => eprintln!("{text}"),
        ["lines", count] => {
            let count: u64 = count.parse().map_err(io::Error::other)?;
            for line in 1..=count {
                writeln!(out, "{line}")?;
            }
        }
        ["stdin"] => drop(io::copy(&mut io::stdin().lock(), &mut out)?),
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn print_environment(out: &mut impl Write) -> io::Result<()> {
    let mut variables: Vec<(String, String)> = env::vars().collect();
    variables.sort();
    variables
        .iter()
        .try_for_each(|(name, value)| writeln!(out, "{name}={value}"))
}

fn list(out: &mut impl Write, path: &str) -> io::Result<()> {
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let metadata = entry.metadata()?;
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => 'd',
            kind if kind.is_symlink() => 'l',
            _ => 'f',
        };
        let name = entry.file_name();
        writeln!(out, "{kind} {:>10} {}", metadata.len(), name.display())?;
    }
    Ok(())
}
