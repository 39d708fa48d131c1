//! The functions that were being called at a program's end, as a person can read them.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use slipway_cache::Artefact;

use crate::mounts;

/// Longest cycle of functions that call each other that is folded.
const MAX_CYCLE: usize = 4;
/// Most entries of a list, and how many of them are the outermost ones.
const MAX_ENTRIES: usize = 16;
const OUTERMOST: usize = 4;

/// Where in the artefact's file the names are; unset where it has none.
static NAMES: OnceLock<u64> = OnceLock::new();

/// Takes down where the artefact that is about to be loaded has its names.
pub fn note_names(artefact: &Artefact) {
    let at = artefact.payload().checked_sub(artefact.facts().names);
    if let Some(at) = at.filter(|at| *at < artefact.payload()) {
        let _ = NAMES.set(at);
    }
}

/// A function's name, or its index.
pub fn name(function: u32) -> String {
    let find = || {
        let names = NAMES.get()?;
        let path = std::ffi::OsStr::from_bytes(mounts::ARTEFACT.to_bytes());
        let file = File::open(path).ok()?;
        slipway_protocol::find_name(
            |buffer, at| file.read_exact_at(buffer, names + at),
            function,
        )
    };
    find().unwrap_or_else(|| format!("function {function}"))
}

/// The calls, innermost first; what repeats itself is told once. Empty for none.
pub fn list(stack: &[u32]) -> String {
    let mut entries = Vec::new();
    let mut rest = stack;
    while !rest.is_empty() {
        let cycles = (1..=MAX_CYCLE.min(rest.len())).map(|length| {
            let cycle = &rest[..length];
            (
                cycle,
                rest.chunks(length)
                    .take_while(|next| *next == cycle)
                    .count(),
            )
        });
        let (cycle, times) = cycles
            .filter(|(_, times)| *times > 1)
            .max_by_key(|(cycle, times)| (cycle.len() * times, std::cmp::Reverse(cycle.len())))
            .unwrap_or((&rest[..1], 1));
        entries.push((cycle, times));
        rest = &rest[cycle.len() * times..];
    }
    let text = |(cycle, times): &(&[u32], usize)| {
        let names: Vec<_> = cycle.iter().map(|function| name(*function)).collect();
        match (names.len(), times) {
            (1, 1) => names.join(""),
            (1, times) => format!("{} ({times} times)", names.join("")),
            (_, times) => format!("[{}] ({times} times)", names.join(", ")),
        }
    };
    let mut list: Vec<_> = entries
        .iter()
        .take(MAX_ENTRIES - OUTERMOST)
        .map(text)
        .collect();
    let outermost = entries.len().saturating_sub(OUTERMOST).max(list.len());
    match outermost - list.len() {
        0 => {}
        left_out => list.push(format!("… {left_out} more …")),
    }
    list.extend(entries.iter().skip(outermost).map(text));
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_innermost_first() {
        assert_eq!(list(&[]), "");
        assert_eq!(list(&[3, 1]), "function 3, function 1");
    }

    #[test]
    fn what_repeats_itself_is_told_once() {
        assert_eq!(list(&[7, 7, 7, 1]), "function 7 (3 times), function 1");
        assert_eq!(
            list(&[1, 2, 1, 2, 1, 2, 0]),
            "[function 1, function 2] (3 times), function 0"
        );
    }

    #[test]
    fn of_a_long_list_both_ends_are_told() {
        let stack: Vec<u32> = (0..100).collect();
        let told = list(&stack);
        let entries: Vec<_> = told.split(", ").collect();
        assert_eq!(entries.len(), MAX_ENTRIES + 1);
        assert_eq!((entries[0], entries[16]), ("function 0", "function 99"));
        assert_eq!(entries[MAX_ENTRIES - OUTERMOST], "… 84 more …");
    }
}
