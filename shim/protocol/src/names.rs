//! The names of a module's functions, for messages: written behind the artefact by the compiler, looked up by the guest
//! when it needs one, without reading the others.
//!
//! ```text
//! count: u32 │ (function's index: u32, end of its name in the text: u32)…, in order │ text
//! ```
//! All little-endian. The compiler may be under the module's control: nothing here is trusted.

use std::io;

/// Longest name that is kept, in bytes; longer ones are cut.
const MAX_NAME: usize = 160;
/// Bound of all, in bytes: names beyond it are left out.
const MAX_NAMES: usize = 16 << 20;

/// Bytes of an entry of the table, and of the count before it.
const ENTRY: u64 = 8;
const COUNT: u64 = 4;

/// The table of these names, which come in the order of their indices; empty for none.
pub fn encode_names<'a>(names: impl Iterator<Item = (u32, &'a str)>) -> Vec<u8> {
    let (mut table, mut text, mut count) = (Vec::new(), Vec::new(), 0u32);
    for (index, name) in names {
        let name = &name[..name.floor_char_boundary(MAX_NAME)];
        if table.len() + text.len() + name.len() > MAX_NAMES {
            break;
        }
        text.extend_from_slice(name.as_bytes());
        table.extend_from_slice(&index.to_le_bytes());
        table.extend_from_slice(&(text.len() as u32).to_le_bytes());
        count += 1;
    }
    match count {
        0 => Vec::new(),
        _ => [&count.to_le_bytes()[..], &table, &text].concat(),
    }
}

/// The name of the function with this index; `read` fills a buffer from an offset in the table.
pub fn find_name(read: impl Fn(&mut [u8], u64) -> io::Result<()>, function: u32) -> Option<String> {
    let word = |at| {
        let mut bytes = [0; 4];
        read(&mut bytes, at)
            .ok()
            .map(|()| u32::from_le_bytes(bytes))
    };
    let count = u64::from(word(0)?);
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        match word(COUNT + ENTRY * middle)?.cmp(&function) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => {
                let end = |entry| word(COUNT + ENTRY * entry + 4);
                let start = middle.checked_sub(1).map_or(Some(0), end)?;
                let length = end(middle)?.checked_sub(start)? as usize;
                let mut name = vec![0; Some(length).filter(|length| *length <= MAX_NAME)?];
                read(&mut name, COUNT + ENTRY * count + u64::from(start)).ok()?;
                let name = String::from_utf8_lossy(&name);
                return Some(name.chars().filter(|c| !c.is_control()).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(table: &[u8], function: u32) -> Option<String> {
        let read = |buffer: &mut [u8], at: u64| {
            let at = usize::try_from(at).unwrap();
            let bytes = table.get(at..at.saturating_add(buffer.len()));
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        find_name(read, function)
    }

    #[test]
    fn a_function_is_found_by_its_index() {
        let long = "é".repeat(MAX_NAME);
        let names = [
            (0, "first"),
            (3, ""),
            (4, "bell\u{7}"),
            (900, long.as_str()),
        ];
        let table = encode_names(names.into_iter());
        assert_eq!(find(&table, 0).as_deref(), Some("first"));
        assert_eq!(find(&table, 3).as_deref(), Some(""));
        assert_eq!(find(&table, 4).as_deref(), Some("bell"));
        assert_eq!(find(&table, 900).map(|name| name.len()), Some(MAX_NAME));
        assert_eq!(find(&table, 5), None);
        assert!(encode_names([].into_iter()).is_empty());
    }

    #[test]
    fn a_damaged_table_has_no_names() {
        let table = encode_names([(1, "a"), (2, "b")].into_iter());
        for cut in 0..table.len() - 1 {
            assert_eq!(find(&table[..cut], 2), None, "{cut}");
        }
        let mut backwards = table.clone();
        backwards[8] = 200;
        assert_eq!(find(&backwards, 2), None);
        assert_eq!(find(&[0xff; 64], 2), None);
    }
}
