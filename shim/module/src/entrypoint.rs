/// The function that a WASI command exports and that runs it.
pub const START: &str = "_start";

/// A process's first argument read as `path#function`: which module, and which of its exports to run.
///
/// The rules are those of the `containerd-shim-wasm` crate, so that images move between shims:
/// the *first* `#` divides, so a path cannot contain one, while the function's name can. One addition: an
/// empty function (`app.wasm#`) means the default. An empty path (`#run`, or an empty argument) names no file; for an
/// artefact image, whose module is not in the root file system, it still says which function to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrypoint {
    /// The part before the first `#`; may be empty.
    pub path: String,
    /// The part after the first `#`, unless it is empty.
    pub func: Option<String>,
}

impl Entrypoint {
    /// Splits a process's first argument.
    pub fn parse(argv0: &str) -> Entrypoint {
        let (path, func) = argv0.split_once('#').unwrap_or((argv0, ""));
        Entrypoint {
            path: path.to_owned(),
            func: (!func.is_empty()).then(|| func.to_owned()),
        }
    }

    /// The export to run: the one named, or [`START`].
    pub fn func(&self) -> &str {
        self.func.as_deref().unwrap_or(START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hash_divides_path_and_function() {
        for (argv0, path, func) in [
            ("/app.wasm", "/app.wasm", None),
            ("app.wasm#run", "app.wasm", Some("run")),
            ("app.wasm#", "app.wasm", None),
            ("#run", "", Some("run")),
            ("", "", None),
            ("#", "", None),
            ("a#b#c", "a", Some("b#c")),
        ] {
            let entrypoint = Entrypoint::parse(argv0);
            assert_eq!(
                (entrypoint.path.as_str(), entrypoint.func.as_deref()),
                (path, func),
                "{argv0}"
            );
        }
        assert_eq!(Entrypoint::parse("a#").func(), "_start");
        assert_eq!(Entrypoint::parse("a#run").func(), "run");
    }
}
