//! `slipway init`: a new project. The files are the examples' own, so that what is tested as a pod is what one begins with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::args::{Init, Language};

/// Names in the project, and what is in the files.
type Files = &'static [(&'static str, &'static str)];

macro_rules! example {
    ($path:literal) => {
        include_str!(concat!("../../../examples/", $path))
    };
}

/// What every project has: what not to keep in version control.
const ALL: Files = &[(".gitignore", include_str!("templates/gitignore"))];

fn files(language: Language) -> Files {
    match language {
        Language::Rust => &[
            // The example's own belongs to a workspace.
            ("Cargo.toml", include_str!("templates/rust.toml")),
            ("src/main.rs", example!("hello/src/main.rs")),
        ],
        Language::C => &[
            ("c-http-server.c", example!("c-http-server/c-http-server.c")),
            ("wasi_socket.h", example!("wasi_socket.h")),
        ],
        Language::Cpp => &[(
            "cpp-wordcount.cpp",
            example!("cpp-wordcount/cpp-wordcount.cpp"),
        )],
        Language::Go => &[
            ("go.mod", example!("go-wordfreq/go.mod")),
            ("main.go", example!("go-wordfreq/main.go")),
        ],
        Language::Assemblyscript => &[
            (
                "package.json",
                example!("assemblyscript-stats/package.json"),
            ),
            (
                "package-lock.json",
                example!("assemblyscript-stats/package-lock.json"),
            ),
            ("stats.ts", example!("assemblyscript-stats/stats.ts")),
            ("file.ts", example!("assemblyscript-stats/file.ts")),
        ],
        Language::Zig => &[("checksum.zig", example!("zig-checksum/checksum.zig"))],
        Language::Wat => &[("wat-hello.wat", example!("wat-hello/wat-hello.wat"))],
    }
}

pub fn init(args: &Init) -> Result<ExitCode, String> {
    let files: Vec<_> = files(args.language).iter().chain(ALL).collect();
    // All of them before the first is written: a refusal leaves the folder as it was.
    for (name, _) in &files {
        let path = args.dir.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(format!(
                "{} is there already: nothing is overwritten; name another folder",
                path.display()
            ));
        }
    }
    for (name, text) in &files {
        let path = args.dir.join(name);
        write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{}", path.display());
    }
    println!("build and run it: slipway run {}", args.dir.display());
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Project;
    use clap::ValueEnum;

    /// The lines of a table of a TOML file, of which `examples/Cargo.toml` has the same under another name.
    fn table<'a>(toml: &'a str, name: &str) -> Vec<&'a str> {
        let lines: Vec<_> = toml
            .lines()
            .skip_while(|line| *line != format!("[{name}]"))
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        assert!(!lines.is_empty(), "{name}");
        lines
    }

    #[test]
    fn the_rust_template_has_what_the_examples_workspace_has() {
        let template = include_str!("templates/rust.toml");
        let workspace = example!("Cargo.toml");
        for (ours, theirs) in [
            ("profile.release", "profile.release"),
            ("lints.rust", "workspace.lints.rust"),
            ("lints.clippy", "workspace.lints.clippy"),
        ] {
            assert_eq!(table(template, ours), table(workspace, theirs), "{ours}");
        }
        let package = table(template, "package");
        assert_eq!(package[1..], table(workspace, "workspace.package"));
        assert_eq!(
            package[0],
            table(example!("hello/Cargo.toml"), "package")[0]
        );
    }

    #[test]
    fn every_language_makes_a_project_that_run_recognises() {
        for language in Language::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            let args = Init {
                language: *language,
                dir: dir.path().join("new/project"),
            };
            init(&args).unwrap();
            Project::recognise(&args.dir).unwrap();
            let error = init(&args).unwrap_err();
            assert!(error.contains("is there already"), "{error}");
        }
    }
}
