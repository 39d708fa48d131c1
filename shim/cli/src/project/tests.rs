use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn kind(files: &[(&str, &str)]) -> Result<Kind, String> {
    Project::recognise(folder(files).path()).map(|project| project.kind)
}

#[test]
fn a_folder_is_what_its_files_make_it() {
    let asc = r#"{"main": "a.ts", "devDependencies": {"assemblyscript": "1"}}"#;
    let asinit = r#"{"devDependencies": {"assemblyscript": "1"}}"#;
    let assembly = |entry: &str| {
        Kind::AssemblyScript(AssemblyScript {
            entry: entry.into(),
            wasi_shim: false,
        })
    };
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (files, expected) in [
        (&[("Cargo.toml", ""), ("a.c", "")][..], Kind::Cargo),
        (&[("go.mod", ""), ("main.go", "")], Kind::Go),
        (&[("package.json", asc), ("a.ts", "")], assembly("a.ts")),
        (
            &[("package.json", asinit), ("assembly/index.ts", "")],
            assembly("assembly/index.ts"),
        ),
        (
            &[("b.c", ""), ("a.c", ""), (".#a.c", ""), ("x.h", "")],
            Kind::C(list(&["a.c", "b.c"])),
        ),
        (
            &[("a.cc", ""), ("b.cpp", "")],
            Kind::Cpp(list(&["a.cc", "b.cpp"])),
        ),
        (&[("a.zig", "")], Kind::Zig("a.zig".into())),
        (
            &[("package.json", "{}"), ("a.wat", "")],
            Kind::Wat("a.wat".into()),
        ),
    ] {
        assert_eq!(kind(files), Ok(expected), "{files:?}");
    }
}

#[test]
fn a_folder_that_cannot_be_built_says_why() {
    let asc = r#"{"dependencies": {"assemblyscript": "1"}}"#;
    for (files, words) in [
        (
            &[][..],
            &[
                "Cargo.toml",
                "go.mod",
                "assemblyscript",
                "*.c",
                "*.wat",
                "slipway init",
            ][..],
        ),
        (&[("a.wat", ""), ("b.wat", "")], &["a.wat and b.wat"]),
        (&[("a.c", ""), ("b.cpp", "")], &["both C and C++"]),
        (&[("package.json", asc)], &["assembly/index.ts", "\"main\""]),
        (&[("package.json", "{")], &["package.json"]),
    ] {
        let error = kind(files).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

#[test]
fn a_step_is_shown_as_a_shell_takes_it() {
    let dir = folder(&[("go.mod", "")]);
    let project = Project::recognise(dir.path()).unwrap();
    let line = project.steps()[0].line();
    assert!(
        line.starts_with("GOOS=wasip1 GOARCH=wasm go build -trimpath '-ldflags=-s -w' -o target/"),
        "{line}"
    );
}

#[test]
fn packages_are_installed_before_the_first_build_only() {
    let package = r#"{"main": "a.ts", "dependencies": {"assemblyscript": "1", "@assemblyscript/wasi-shim": "1"}}"#;
    let mut files = vec![("package.json", package), ("a.ts", "")];
    let programs = |files: &[(&str, &str)]| -> Vec<String> {
        let dir = folder(files);
        let steps = Project::recognise(dir.path()).unwrap().steps();
        assert!(steps.last().unwrap().line().ends_with(WASI_SHIM));
        steps.iter().map(|s| s.argv[..2].join(" ")).collect()
    };
    assert_eq!(programs(&files), ["npm install", "npx --no-install"]);
    files.push(("package-lock.json", ""));
    assert_eq!(programs(&files), ["npm ci", "npx --no-install"]);
    files.push(("node_modules/.bin/asc", ""));
    assert_eq!(programs(&files), ["npx --no-install"]);
}

#[test]
fn cargo_says_where_the_module_is() {
    let line = |kind: &str, file: &str| {
        format!(
            r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"]}},"filenames":["{file}"]}}"#
        )
    };
    let of = |lines: &[String]| cargo_module(lines.join("\n").as_bytes());
    let noise = [
        line("custom-build", "/t/build-script"),
        line("lib", "/t/x.rlib"),
        r#"{"reason":"build-finished","success":true}"#.into(),
    ];
    assert!(of(&noise).unwrap_err().contains("cdylib"));
    let library = [&noise[..], &[line("cdylib", "/t/l.wasm")]].concat();
    assert_eq!(of(&library), Ok("/t/l.wasm".into()));
    let program = [&library[..], &[line("bin", "/t/a.wasm")]].concat();
    assert_eq!(of(&program), Ok("/t/a.wasm".into()));
    let both = [&program[..], &[line("bin", "/t/b.wasm")]].concat();
    assert!(of(&both).unwrap_err().contains("/t/a.wasm, /t/b.wasm"));
}
