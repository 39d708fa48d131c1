//! Text for people that has names in it which others have chosen: files of an image, functions of a module.

/// The text without what a terminal takes for a command: control characters but line feed and tabulator, each replaced.
pub fn printable(text: &str) -> String {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.replace(is_command, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_name_is_a_command_to_a_terminal() {
        for (text, expected) in [
            ("a\x1b[31mb", "a\u{fffd}[31mb"),
            ("\r\x08\x7f\u{9b}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("two\n\tlines é", "two\n\tlines é"),
        ] {
            assert_eq!(super::printable(text), expected);
        }
    }
}
