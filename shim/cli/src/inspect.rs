//! `slipway inspect`: what is this module, and would it run here?

use std::process::ExitCode;

use slipway_module::{Entrypoint, ModuleInfo, PAGE_BYTES};
use slipway_protocol::printable;

use crate::args::Inspect;
use crate::source;
use crate::terminal::{Level, bytes};

/// Most lines of each kind that are shown as text; JSON has them all.
const MAX_LINES: usize = 40;

pub fn inspect(args: &Inspect) -> Result<ExitCode, String> {
    let source = source::open(&args.file)?;
    let (path, module) = source.module_bytes()?;
    let mut info = slipway_module::inspect(&module);
    if info.problems.is_empty() {
        let entrypoint = Entrypoint::parse(source.args.first().map_or("", String::as_str));
        let function = args.invoke.as_deref().unwrap_or(entrypoint.func());
        info.problems.extend(info.check_entry(function, None).err());
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&info).map_err(|e| e.to_string())?
        );
    } else {
        print(&path, &info);
    }
    Ok(if info.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(path: &str, info: &ModuleInfo) {
    println!(
        "{path}: {}, {}, {} functions",
        info.kind,
        bytes(info.size),
        info.functions
    );
    for memory in &info.memories {
        let max = memory.max.map_or("no maximum".into(), |pages| {
            format!("at most {}", bytes(pages.saturating_mul(PAGE_BYTES)))
        });
        println!(
            "memory: at least {}, {max}",
            bytes(memory.min.saturating_mul(PAGE_BYTES))
        );
    }
    let signature = |s: &Option<String>| s.as_ref().map_or(String::new(), |s| format!(" {s}"));
    lines(
        "imports",
        info.imports
            .iter()
            .map(|i| format!("{}::{}{}", i.module, i.name, signature(&i.signature))),
    );
    lines(
        "exports",
        info.exports
            .iter()
            .map(|e| format!("{}{}", e.name, signature(&e.signature))),
    );
    lines(
        "custom sections",
        info.custom_sections
            .iter()
            .map(|c| format!("{} ({})", c.name, bytes(c.size))),
    );
    if info.problems.is_empty() {
        println!("runs here: {}", Level::Ok.word());
    }
    for problem in &info.problems {
        println!(
            "{}: {}",
            Level::Error.word(),
            one_line(&problem.to_string())
        );
    }
}

/// The module's names are anybody's: none is a command to a terminal, or a line of its own.
fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\u{fffd}")
}

fn lines(title: &str, list: impl ExactSizeIterator<Item = String>) {
    let n = list.len();
    if n == 0 {
        return;
    }
    println!("{title}: {n}");
    for line in list.take(MAX_LINES) {
        println!("  {}", one_line(&line));
    }
    if n > MAX_LINES {
        println!("  … {} more (--json has all)", n - MAX_LINES);
    }
}
