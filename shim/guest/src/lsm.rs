//! The AppArmor profile and the SELinux label that the program runs under.
//!
//! Other runtimes have the kernel change both when it executes the program. A guest executes nothing, so it changes its own, by
//! the files of proc_pid_attr(5). They are opened while it has a procfs; the kernel is asked then, too, whether the change is
//! possible, so that Create is refused and not Start.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};

use slipway_protocol::Launch;

/// Says whether AppArmor is on.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
/// A process's own profile. Linux has had this file since 5.8.
const PROFILE: &str = "/proc/self/attr/apparmor/current";
/// Takes labels, and refuses those that the policy does not have. It is there where SELinux is on.
const CONTEXTS: &str = "/sys/fs/selinux/context";
/// A process's own label, where SELinux is on.
const LABEL: &str = "/proc/self/attr/current";

/// A field that has a value.
#[derive(Clone, Copy)]
struct Given<'a> {
    field: &'static str,
    value: &'a str,
}

impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.field, self.value)
    }
}

fn given<'a>(field: &'static str, value: &'a str) -> Option<Given<'a>> {
    (!value.is_empty()).then_some(Given { field, value })
}

/// What is to be written at the right moment, and what for.
struct Change<'a> {
    file: File,
    text: String,
    of: Given<'a>,
}

/// What the launch asks for: it is possible here.
pub struct Confinement<'a> {
    profile: Option<Change<'a>>,
    label: Option<Change<'a>>,
}

impl<'a> Confinement<'a> {
    /// Looks at the node's kernel and its policy, where the launch asks for something.
    pub fn open(launch: &'a Launch) -> Result<Self, String> {
        let program = &launch.program;
        given("linux.mountLabel", &launch.mount_label).map_or(Ok(()), check_label)?;
        Ok(Self {
            profile: given("process.apparmorProfile", &program.apparmor_profile)
                .map(profile)
                .transpose()?,
            label: given("process.selinuxLabel", &program.selinux_label)
                .map(label)
                .transpose()?,
        })
    }

    /// From now on the process is under both, and whatever it starts.
    pub fn enter(self) -> Result<(), String> {
        let changes = [self.profile, self.label];
        changes.into_iter().flatten().try_for_each(|mut change| {
            let written = change.file.write_all(change.text.as_bytes());
            written.map_err(|e| format!("{}: the kernel refuses the change: {e}", change.of))
        })
    }
}

fn profile(of: Given<'_>) -> Result<Change<'_>, String> {
    if !fs::read(APPARMOR).is_ok_and(|on| on.starts_with(b"Y")) {
        return Err(format!(
            "{of}: AppArmor is not enabled on this node: boot it with apparmor=1 security=apparmor, or leave securityContext.appArmorProfile out"
        ));
    }
    let mut file = open(PROFILE).map_err(|e| format!("{of}: {PROFILE}: {e}"))?;
    // Asks, and changes nothing.
    let asked = file.write_all(format!("permprofile {}", of.value).as_bytes());
    asked.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!(
            "{of}: no such profile is loaded on this node: load it with apparmor_parser, or choose one of /sys/kernel/security/apparmor/profiles"
        ),
        _ => format!("{of}: a guest may not change to this profile: {e}"),
    })?;
    let text = format!("changeprofile {}", of.value);
    Ok(Change { file, text, of })
}

fn label(of: Given<'_>) -> Result<Change<'_>, String> {
    check_label(of)?;
    let file = open(LABEL).map_err(|e| format!("{of}: {LABEL}: {e}"))?;
    let text = of.value.to_string();
    Ok(Change { file, text, of })
}

fn check_label(of: Given<'_>) -> Result<(), String> {
    let contexts = open(CONTEXTS).map_err(|e| {
        format!("{of}: SELinux is not enabled on this node ({CONTEXTS}: {e}): enable it, or leave securityContext.seLinuxOptions out, and enable_selinux of containerd's configuration")
    });
    let checked = contexts?.write_all(of.value.as_bytes());
    checked.map_err(|e| format!("{of}: the node's policy does not know this label: {e}"))
}

fn open(path: &str) -> io::Result<File> {
    File::options().write(true).open(path)
}
