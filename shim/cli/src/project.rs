//! A project folder: what it is, the command that builds it, and where its module comes out. The build runs as whoever
//! called, before there is a sandbox.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::process::Command;

use crate::terminal;

#[cfg(test)]
mod tests;

/// What a folder's own files make it.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Cargo,
    Go,
    AssemblyScript(AssemblyScript),
    Cpp(Vec<String>),
    C(Vec<String>),
    Zig(String),
    Wat(String),
}

#[derive(Debug, PartialEq, Eq)]
struct AssemblyScript {
    /// The file that `asc` begins with.
    entry: String,
    /// Compiled with the shim's configuration.
    wasi_shim: bool,
}

/// A folder that can be built.
#[derive(Debug)]
pub struct Project {
    dir: PathBuf,
    kind: Kind,
}

/// How a build ended that did not fail.
pub enum Built {
    /// The module.
    Module(PathBuf),
    /// This signal came first.
    Stopped(i32),
}

/// One command of a build.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    env: &'static [(&'static str, &'static str)],
    argv: Vec<String>,
}

/// Directory below the project for what a build writes; cargo's own name for it.
pub const OUTPUT: &str = "target";
/// npm's.
pub const PACKAGES: &str = "node_modules";

const WASI_SHIM: &str = "node_modules/@assemblyscript/wasi-shim/asconfig.json";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    main: Option<String>,
    #[serde(default)]
    dependencies: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    dev_dependencies: BTreeMap<String, serde_json::Value>,
}

/// One line of `cargo build --message-format=json`.
#[derive(Deserialize)]
struct CargoMessage {
    target: Option<CargoTarget>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct CargoTarget {
    kind: Vec<String>,
}

impl Project {
    /// What this folder is.
    pub fn recognise(dir: &Path) -> Result<Self, String> {
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}", dir.display());
        let dir = dir.canonicalize().map_err(|e| named(&e))?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(|e| named(&e))? {
            let entry = entry.map_err(|e| named(&e))?;
            // Hidden ones are editors' own.
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
                && entry.path().is_file()
            {
                files.push(name);
            }
        }
        files.sort();
        let has = |name: &str| files.iter().any(|file| file == name);
        let with = |extensions: &[&str]| -> Vec<String> {
            let wanted = |file: &&String| {
                let extension = Path::new(file).extension().and_then(OsStr::to_str);
                extension.is_some_and(|e| extensions.contains(&e))
            };
            files.iter().filter(wanted).cloned().collect()
        };
        let only = |files: Vec<String>| -> Result<String, String> {
            let first = files.first().cloned().unwrap_or_default();
            match files.len() {
                1 => Ok(first),
                _ => Err(named(&format!(
                    "several programs, {}: leave one",
                    files.join(" and ")
                ))),
            }
        };
        let (c, cpp, zig, wat) = (
            with(&["c"]),
            with(&["cc", "cpp", "cxx"]),
            with(&["zig"]),
            with(&["wat"]),
        );
        let kind = if has("Cargo.toml") {
            Kind::Cargo
        } else if has("go.mod") {
            Kind::Go
        } else if let Some(entry) = has("package.json")
            .then(|| assemblyscript(&dir))
            .transpose()?
            .flatten()
        {
            Kind::AssemblyScript(entry)
        } else if !c.is_empty() && !cpp.is_empty() {
            return Err(named(
                &"both C and C++: one command builds one of them; build it yourself, and run its module",
            ));
        } else if !cpp.is_empty() {
            Kind::Cpp(cpp)
        } else if !c.is_empty() {
            Kind::C(c)
        } else if !zig.is_empty() {
            Kind::Zig(only(zig)?)
        } else if !wat.is_empty() {
            Kind::Wat(only(wat)?)
        } else {
            return Err(named(
                &"not a project that can be built: there is no Cargo.toml, go.mod, package.json with assemblyscript, *.c, *.cpp, *.zig or *.wat. `slipway init` makes one",
            ));
        };
        Ok(Self { dir, kind })
    }

    /// Where a build leaves the module, unless it is cargo that says so.
    fn module(&self) -> PathBuf {
        if let Kind::Wat(file) = &self.kind {
            return self.dir.join(file);
        }
        self.dir.join(self.output())
    }

    /// The same, seen from the folder.
    fn output(&self) -> String {
        let name = self.dir.file_name().unwrap_or(OsStr::new("module"));
        format!("{OUTPUT}/{}.wasm", name.to_string_lossy())
    }

    /// The commands, in their order. Their flags are those of the examples' builds.
    fn steps(&self) -> Vec<Step> {
        let output = self.output();
        let step = |argv: &[&str], more: &[String]| Step {
            argv: argv
                .iter()
                .map(ToString::to_string)
                .chain(more.iter().cloned())
                .collect(),
            env: &[],
        };
        match &self.kind {
            // Cargo alone knows where a module comes out: workspaces and configuration files move it.
            Kind::Cargo => vec![step(
                &[
                    "cargo",
                    "build",
                    "--release",
                    "--target=wasm32-wasip1",
                    "--message-format=json-render-diagnostics",
                ],
                &[],
            )],
            Kind::Go => vec![Step {
                env: &[("GOOS", "wasip1"), ("GOARCH", "wasm")],
                ..step(
                    &[
                        "go",
                        "build",
                        "-trimpath",
                        "-ldflags=-s -w",
                        "-o",
                        &output,
                        ".",
                    ],
                    &[],
                )
            }],
            Kind::AssemblyScript(AssemblyScript { entry, wasi_shim }) => {
                let mut steps = Vec::new();
                if !self.dir.join(PACKAGES).join(".bin/asc").exists() {
                    let verb = match self.dir.join("package-lock.json").exists() {
                        true => "ci",
                        false => "install",
                    };
                    let flags = ["--ignore-scripts", "--no-audit", "--no-fund"];
                    steps.push(step(&["npm", verb], &flags.map(String::from)));
                }
                let asc = ["npx", "--no-install", "asc", entry, "-O3s", "--outFile"];
                let mut compile = step(&asc, &[output]);
                if *wasi_shim {
                    compile
                        .argv
                        .extend(["--config", WASI_SHIM].map(String::from));
                }
                steps.push(compile);
                steps
            }
            Kind::Cpp(sources) => vec![step(
                &[
                    "clang++",
                    "--target=wasm32-wasi",
                    "-O2",
                    "-Wall",
                    "-Wextra",
                    "-s",
                    "-std=c++20",
                    "-fno-exceptions",
                    "-o",
                    &output,
                ],
                sources,
            )],
            Kind::C(sources) => vec![step(
                &[
                    "clang",
                    "--target=wasm32-wasi",
                    "-O2",
                    "-Wall",
                    "-Wextra",
                    "-s",
                    "-o",
                    &output,
                ],
                sources,
            )],
            Kind::Zig(source) => vec![step(
                &[
                    "zig",
                    "build-exe",
                    source,
                    "-lc",
                    "--stack",
                    "1048576",
                    "-target",
                    "wasm32-wasi",
                    "-O",
                    "ReleaseSmall",
                    "--cache-dir",
                    "target/zig-cache",
                    &format!("-femit-bin={output}"),
                ],
                &[],
            )],
            Kind::Wat(_) => Vec::new(),
        }
    }

    /// Builds, until `signal` has one.
    pub async fn build(&self, signal: &mut impl AsyncFnMut() -> i32) -> Result<Built, String> {
        let mut module = self.module();
        let steps = self.steps();
        if !steps.is_empty() {
            let output = self.dir.join(OUTPUT);
            std::fs::create_dir_all(&output).map_err(|e| format!("{}: {e}", output.display()))?;
        }
        for step in steps {
            let said = match step.run(&self.dir, signal).await? {
                Ok(said) => said,
                Err(number) => return Ok(Built::Stopped(number)),
            };
            if self.kind == Kind::Cargo {
                module = cargo_module(&said).map_err(|e| format!("{}: {e}", self.dir.display()))?;
            }
        }
        Ok(Built::Module(module))
    }
}

impl Package {
    fn has(&self, name: &str) -> bool {
        self.dependencies.contains_key(name) || self.dev_dependencies.contains_key(name)
    }
}

/// A package that is built with `asc`; the file is `main`, or what `asinit` makes.
fn assemblyscript(dir: &Path) -> Result<Option<AssemblyScript>, String> {
    let file = dir.join("package.json");
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = std::fs::read(&file).map_err(|e| named(&e))?;
    let package: Package = serde_json::from_slice(&text).map_err(|e| named(&e))?;
    if !package.has("assemblyscript") {
        return Ok(None);
    }
    let wasi_shim = package.has("@assemblyscript/wasi-shim");
    let entry = package
        .main
        .filter(|main| main.ends_with(".ts"))
        .unwrap_or_else(|| "assembly/index.ts".into());
    match dir.join(&entry).is_file() {
        true => Ok(Some(AssemblyScript { entry, wasi_shim })),
        false => Err(named(&format!(
            "there is no {entry}: name the program's file in \"main\""
        ))),
    }
}

/// The module among what cargo says that it built; a library's where there is no program.
fn cargo_module(messages: &[u8]) -> Result<PathBuf, String> {
    let of_kind = |kind: &str| -> Vec<PathBuf> {
        messages
            .split(|b| *b == b'\n')
            .filter_map(|line| serde_json::from_slice::<CargoMessage>(line).ok())
            .filter(|m| {
                m.target
                    .as_ref()
                    .is_some_and(|t| t.kind.iter().any(|k| k == kind))
            })
            .flat_map(|m| m.filenames)
            .filter(|file| file.extension() == Some(OsStr::new("wasm")))
            .collect()
    };
    let mut modules = of_kind("bin");
    if modules.is_empty() {
        modules = of_kind("cdylib");
    }
    if modules.len() > 1 {
        let names: Vec<_> = modules.iter().map(|m| m.display().to_string()).collect();
        return Err(format!(
            "several programs were built; run one of them: {}",
            names.join(", ")
        ));
    }
    modules.pop().ok_or_else(|| {
        "cargo built no module: there is neither a program nor a library of crate-type \"cdylib\""
            .into()
    })
}

/// How to install what builds.
fn remedy(program: &str) -> &'static str {
    match program {
        "cargo" => "https://rustup.rs, then rustup target add wasm32-wasip1",
        "go" => "https://go.dev/dl, 1.24 or later",
        "clang" => "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32",
        "clang++" => "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32 libc++-dev-wasm32",
        "zig" => "https://ziglang.org/download, 0.15",
        _ => "apt-get install npm, with Node.js 20 or later",
    }
}

impl Step {
    /// The command as a shell would take it.
    fn line(&self) -> String {
        let quoted = |word: &String| match word.contains(|c: char| c.is_whitespace() || c == '\'') {
            true => format!("'{}'", word.replace('\'', r"'\''")),
            false => word.clone(),
        };
        let env = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        env.chain(self.argv.iter().map(quoted))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// What the command wrote where cargo's messages come, or the signal that came first. The program's output is
    /// stdout's alone, so that of the build goes to stderr.
    async fn run(
        &self,
        dir: &Path,
        signal: &mut impl AsyncFnMut() -> i32,
    ) -> Result<Result<Vec<u8>, i32>, String> {
        let (program, args) = self.argv.split_first().ok_or("a build without a command")?;
        terminal::note(&format!("{}: {}", dir.display(), self.line()));
        let stdout = match program.as_str() {
            "cargo" => Stdio::piped(),
            _ => io::stderr().into(),
        };
        let child = Command::new(program)
            .args(args)
            .envs(self.env.iter().copied())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(stdout)
            // Compilers have compilers; a signal is for all of them.
            .process_group(0)
            .spawn()
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    let sudo = match std::env::var_os("SUDO_USER") {
                        Some(_) => ". sudo has its own PATH: sudo env \"PATH=$PATH\" slipway …",
                        None => "",
                    };
                    format!(
                        "'{program}' is missing; install it with: {}{sudo}",
                        remedy(program)
                    )
                }
                _ => format!("{program}: {e}"),
            })?;
        let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let end = child.wait_with_output();
        tokio::pin!(end);
        let done = tokio::select! {
            done = &mut end => done,
            number = signal() => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::TERM);
                }
                let _ = end.await;
                return Ok(Err(number));
            }
        };
        let done = done.map_err(|e| format!("{program}: {e}"))?;
        match done.status.success() {
            true => Ok(Ok(done.stdout)),
            false => Err(format!("the build failed: {program}: {}", done.status)),
        }
    }
}
