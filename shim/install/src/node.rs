//! The node as it is: which containerd serves the kubelet, who runs it, and how it is configured.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use slipway_systemd::Systemd;

use crate::Options;
use crate::containerd::Containerd;
use crate::layout::processes;

/// Who has made the node, and so where containerd's configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// containerd as a service of its own, as with kubeadm, kind and managed clusters.
    Containerd,
    /// k3s: writes the configuration from a template.
    K3s,
    /// RKE2: as k3s.
    Rke2,
    /// k0s: reads a directory of drop-ins.
    K0s,
    /// MicroK8s: writes the configuration from a template.
    Microk8s,
}

impl Distribution {
    /// By the unit that runs containerd.
    fn of(unit: &str) -> Self {
        let named = [
            ("k3s", Self::K3s),
            ("rke2", Self::Rke2),
            ("k0s", Self::K0s),
            ("snap.microk8s.", Self::Microk8s),
        ];
        let found = named.into_iter().find(|(start, _)| unit.starts_with(start));
        found.map_or(Self::Containerd, |(_, distribution)| distribution)
    }

    /// Whether it is itself the unit's main process, and containerd a child.
    fn runs_containerd(self) -> bool {
        matches!(self, Self::K3s | Self::Rke2 | Self::K0s)
    }
}

/// The containerd of a node.
#[derive(Debug)]
pub struct Node {
    /// Who has made the node.
    pub distribution: Distribution,
    /// The systemd unit; `None` where containerd is no service.
    pub unit: Option<String>,
    /// How to call containerd's program.
    pub containerd: Containerd,
    /// The configuration that containerd reads.
    pub config: PathBuf,
    /// Its socket.
    pub address: PathBuf,
}

/// What a process was started with.
#[derive(Debug, Default, PartialEq, Eq)]
struct CommandLine {
    config: Option<PathBuf>,
    address: Option<PathBuf>,
}

impl CommandLine {
    /// containerd's flags, in Go's and in GNU's forms.
    fn parse(words: &[&str]) -> Self {
        let mut found = Self::default();
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (word, None),
            };
            let place = match flag.trim_start_matches('-') {
                "c" | "config" => &mut found.config,
                "a" | "address" => &mut found.address,
                _ => continue,
            };
            *place = value.or_else(|| words.next()).map(PathBuf::from);
        }
        found
    }
}

/// A process of containerd.
#[derive(Debug)]
struct Found {
    directory: PathBuf,
    line: CommandLine,
    unit: Option<String>,
}

impl Node {
    /// Finds the node's containerd.
    ///
    /// # Errors
    /// None runs, or more than one: says how to name it.
    pub fn find(options: &Options) -> Result<Self, String> {
        let mut found: Vec<Found> = processes().filter_map(Found::read).collect();
        if let Some(unit) = &options.containerd_unit {
            found.retain(|f| f.unit.as_ref() == Some(unit));
        }
        if let Some(address) = &options.containerd_address {
            found.retain(|f| f.address() == *address);
        }
        let one = match found.as_slice() {
            [one] => one,
            [] => {
                return Err(
                    "no containerd runs on this node that fits: start it, or see --containerd-unit and --containerd-address".into(),
                );
            }
            many => {
                let units: Vec<_> = many
                    .iter()
                    .map(|f| {
                        f.unit
                            .clone()
                            .unwrap_or_else(|| f.address().display().to_string())
                    })
                    .collect();
                return Err(format!(
                    "more than one containerd runs on this node ({}): choose with --containerd-unit or --containerd-address",
                    units.join(", ")
                ));
            }
        };
        let unit = options.containerd_unit.clone().or_else(|| one.unit.clone());
        let distribution = options
            .distribution
            .unwrap_or_else(|| Distribution::of(unit.as_deref().unwrap_or_default()));
        let config = options.containerd_config.clone();
        Ok(Self {
            distribution,
            unit,
            containerd: Containerd::of(&one.directory)
                .map_err(|e| format!("containerd's program: {e}"))?,
            config: config.unwrap_or_else(|| one.config().to_owned()),
            address: one.address(),
        })
    }

    /// Directory of the configuration.
    pub fn directory(&self) -> &Path {
        self.config.parent().unwrap_or(Path::new("/"))
    }
}

impl Found {
    /// What this process is, if it is a containerd of this node and for the kubelet.
    fn read(directory: PathBuf) -> Option<Self> {
        let line = fs::read(directory.join("cmdline")).ok()?;
        let words: Vec<_> = line
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let (program, arguments) = words.split_first()?;
        if Path::new(program).file_name()? != "containerd" {
            return None;
        }
        // One in a container, as of Docker in Docker, is not the node's.
        let namespace = |directory: &Path| fs::read_link(directory.join("ns/pid")).ok();
        if namespace(&directory)? != namespace(Path::new("/proc/self"))? {
            return None;
        }
        let line = CommandLine::parse(arguments);
        let dockers =
            |p: &PathBuf| p.starts_with("/var/run/docker") || p.starts_with("/run/docker");
        if line.config.as_ref().is_some_and(dockers) {
            return None;
        }
        let cgroups = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        let pid = directory.file_name()?.to_str()?.parse().ok()?;
        Some(Self {
            line,
            unit: unit(&cgroups).filter(|unit| runs(unit, pid)),
            directory,
        })
    }

    fn config(&self) -> &Path {
        let default = Path::new("/etc/containerd/config.toml");
        self.line.config.as_deref().unwrap_or(default)
    }

    /// As it was told on the command line, else in its configuration.
    fn address(&self) -> PathBuf {
        let configured = || {
            let effective = Containerd::of(&self.directory)
                .ok()?
                .dump(self.config())
                .ok()?;
            effective.address().map(PathBuf::from)
        };
        let given = self.line.address.clone().or_else(configured);
        given.unwrap_or_else(|| "/run/containerd/containerd.sock".into())
    }
}

/// The system service whose cgroup it is.
fn unit(cgroups: &str) -> Option<String> {
    let path = cgroups
        .lines()
        .filter_map(|line| {
            line.strip_prefix("0::")
                .or_else(|| line.split_once(":name=systemd:").map(|(_, p)| p))
        })
        .find(|path| path.ends_with(".service") && !path.contains("/user.slice/"))?;
    path.rsplit('/').next().map(str::to_owned)
}

/// Whether systemd says that it is the unit's: a cgroup may also be inherited.
fn runs(unit: &str, pid: u32) -> bool {
    if Distribution::of(unit).runs_containerd() {
        return true;
    }
    let main = Systemd::connect().and_then(|systemd| match systemd {
        Some(mut systemd) => systemd.main_pid(unit),
        None => Ok(0),
    });
    main.is_ok_and(|main| main == pid)
}

/// The environment of a process.
pub fn environment(directory: &Path) -> io::Result<Vec<(std::ffi::OsString, std::ffi::OsString)>> {
    let bytes = fs::read(directory.join("environ"))?;
    let pairs = bytes.split(|b| *b == 0).filter_map(|pair| {
        let equals = pair.iter().position(|b| *b == b'=')?;
        let [name, value] = [&pair[..equals], &pair[equals + 1..]]
            .map(|b| std::ffi::OsStr::from_bytes(b).to_owned());
        Some((name, value))
    });
    Ok(pairs.collect())
}

/// The first argument of a process.
pub fn first_argument(directory: &Path) -> io::Result<std::ffi::OsString> {
    let line = fs::read(directory.join("cmdline"))?;
    let first = line.split(|b| *b == 0).next().unwrap_or_default();
    Ok(std::ffi::OsString::from_vec(first.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_in_all_forms() {
        for words in [
            &["-c", "/a", "-a", "/s"][..],
            &["--config=/a", "--address=/s", "--root", "/r"],
            &["--config", "/a", "-a=/s", "-l", "debug"],
        ] {
            let found = CommandLine::parse(words);
            let expected = CommandLine {
                config: Some("/a".into()),
                address: Some("/s".into()),
            };
            assert_eq!(found, expected, "{words:?}");
        }
    }

    #[test]
    fn a_unit_is_told_from_its_cgroup() {
        for (cgroups, expected) in [
            (
                "0::/system.slice/containerd.service\n",
                Some("containerd.service"),
            ),
            (
                "12:pids:/system.slice/k3s.service\n1:name=systemd:/system.slice/k3s.service\n0::/\n",
                Some("k3s.service"),
            ),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            (
                "0::/user.slice/user-0.slice/user@0.service/app.slice/x.service\n",
                None,
            ),
            ("0::/\n", None),
        ] {
            assert_eq!(unit(cgroups).as_deref(), expected, "{cgroups}");
        }
    }

    #[test]
    fn a_distribution_is_told_from_its_unit() {
        for (unit, expected) in [
            ("containerd.service", Distribution::Containerd),
            ("k3s-agent.service", Distribution::K3s),
            ("rke2-server.service", Distribution::Rke2),
            ("k0scontroller.service", Distribution::K0s),
            (
                "snap.microk8s.daemon-containerd.service",
                Distribution::Microk8s,
            ),
        ] {
            assert_eq!(Distribution::of(unit), expected);
        }
    }
}
