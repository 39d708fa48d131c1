//! containerd's own program, called as the node calls it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::Effective;
use crate::error::{Error, Result, file};
use crate::node::{environment, first_argument};

/// How to call it.
#[derive(Debug)]
pub struct Containerd {
    program: PathBuf,
    /// k3s is one program of many names.
    name: OsString,
    /// MicroK8s' finds its libraries by it.
    environment: Vec<(OsString, OsString)>,
}

impl Containerd {
    /// The program of a process.
    ///
    /// # Errors
    /// It has ended.
    pub fn of(process: &Path) -> io::Result<Self> {
        Ok(Self {
            program: fs::read_link(process.join("exe"))?,
            name: first_argument(process)?,
            environment: environment(process)?,
        })
    }

    /// Its path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What it makes of a configuration; without the file, what it does by itself.
    ///
    /// # Errors
    /// It refuses the configuration: its own words.
    pub fn dump(&self, config: &Path) -> Result<Effective> {
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.name)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("NOTIFY_SOCKET");
        match config.exists() {
            true => command.arg("--config").arg(config).args(["config", "dump"]),
            // 1.7 dumps no file that is not there.
            false => command.args(["config", "default"]),
        };
        let output = command.output().map_err(file(&self.program, "run"))?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            return Err(Error::Containerd(format!(
                "containerd refuses {}: {}",
                config.display(),
                said(&output.stderr)
            )));
        }
        Effective::parse(&said(&output.stdout))
            .map_err(|reason| Error::Containerd(format!("containerd config dump: {reason}")))
    }
}

/// The major and minor number of a version as containerd writes it: `v2.1.4-k3s1`, `1.7.24~ds1`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+', '~']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_in_all_forms() {
        for (text, expected) in [
            ("v2.1.4-k3s1", Some((2, 1))),
            ("1.7.24~ds1", Some((1, 7))),
            ("2.1.9+unknown", Some((2, 1))),
            ("v2.0", Some((2, 0))),
            ("", None),
            ("unknown", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }
}
