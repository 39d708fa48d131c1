//! What holds for all that a program can reach.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};

use super::ARTEFACT;

/// The node's procfs, which the guest loses with its old root.
pub struct Processes(OwnedFd);

impl Processes {
    pub fn open() -> Result<Self, String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(CWD, "/proc", flags, Mode::empty());
        open.map(Self).map_err(|e| format!("/proc: {e}"))
    }

    /// The mounts below this process's root, as the kernel lists them (proc_pid_mountinfo(5)).
    pub fn mountinfo(&self) -> Result<String, String> {
        let error = |e: std::io::Error| format!("/proc/self/mountinfo: {e}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, "self/mountinfo", flags, Mode::empty());
        let mut text = String::new();
        fs::File::from(file.map_err(|e| error(e.into()))?)
            .read_to_string(&mut text)
            .map_err(error)?;
        Ok(text)
    }
}

/// What holds for all that a program can reach, whatever the pod asked for and whatever lies below a volume on the node: no
/// device but those of [`DEV`], no code but the artefact, and no procfs. Through `/proc/self/mem` a module would write to its own engine.
pub fn check(mountinfo: &str) -> Result<(), String> {
    for line in mountinfo.lines() {
        // id, parent, device, root, mount point, options, optional fields, -, type, source, options
        let fields = line.split_once(" - ");
        let (Some(at), Some(options), Some(kind)) = (
            line.split(' ').nth(4),
            line.split(' ').nth(5),
            fields.and_then(|(_, right)| right.split(' ').next()),
        ) else {
            return Err(format!(
                "/proc/self/mountinfo: a line of another form: {line:?}"
            ));
        };
        let inside = at.strip_prefix("/rootfs").unwrap_or(at);
        if kind == "proc" {
            return Err(no_procfs(inside));
        }
        let has = |option| options.split(',').any(|o| o == option);
        if at != DEV && !has("nodev") {
            return Err(format!(
                "mounts: {inside}: devices could be opened there (nodev is missing)"
            ));
        }
        if at.as_bytes() != ARTEFACT.to_bytes() && !has("noexec") {
            return Err(format!(
                "mounts: {inside}: files could be mapped as code there (noexec is missing)"
            ));
        }
    }
    Ok(())
}

/// Where the guest's own devices are.
const DEV: &str = "/rootfs/dev";

/// Why nothing of a procfs is mounted there.
pub fn no_procfs(at: &str) -> String {
    format!(
        "mounts: {at}: a procfs, by which a module could write to its own engine, and see the node's processes: leave the volume out, or choose a directory of the node that has none below it"
    )
}

/// EACCES for what lies on a procfs: the node may have mounted one below a volume since the container's mounts were checked.
pub fn not_procfs(found: impl AsFd) -> rustix::io::Result<()> {
    match is_procfs(found)? {
        true => Err(rustix::io::Errno::ACCESS),
        false => Ok(()),
    }
}

/// Whether it lies on a procfs.
pub fn is_procfs(found: impl AsFd) -> rustix::io::Result<bool> {
    Ok(rustix::fs::fstatfs(found)?.f_type == libc::PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "30 1 0:26 / / ro,nosuid,nodev,noexec - tmpfs tmpfs rw\n\
                        31 30 8:1 / /rootfs ro,nodev,noexec master:1 - ext4 /dev/sda1 rw\n\
                        32 31 0:27 / /rootfs/dev rw,nosuid,noexec - tmpfs tmpfs rw\n\
                        34 30 8:1 /a /artefact.so ro,nosuid,nodev - ext4 /dev/sda1 rw\n";

    #[test]
    fn devices_can_be_opened_in_dev_alone() {
        assert_eq!(check(ROOT), Ok(()));
        for at in ["/rootfs/data", "/rootfs/dev/shm", "/rootfs/device", "/"] {
            let refused = check(&format!(
                "{ROOT}33 31 8:2 / {at} rw,nosuid,noexec - ext4 /dev/sdb1 rw\n"
            ));
            let inside = at.strip_prefix("/rootfs").unwrap_or(at);
            let said = refused.unwrap_err();
            assert!(
                said.starts_with(&format!("mounts: {inside}: devices")),
                "{said}"
            );
        }
    }

    #[test]
    fn the_artefact_alone_can_be_mapped_as_code() {
        for at in [
            "/rootfs/data",
            "/rootfs/artefact.so",
            "/etc/hosts",
            "/rootfs/dev",
        ] {
            let line = format!("{ROOT}33 31 8:2 / {at} rw,nosuid,nodev - ext4 /dev/sdb1 rw\n");
            let said = check(&line).unwrap_err();
            assert!(said.contains("mapped as code"), "{said}");
        }
    }

    #[test]
    fn no_procfs_is_reachable_whatever_its_options() {
        for at in ["/rootfs/proc", "/rootfs/dev", "/rootfs/volume/below"] {
            let line = format!("{ROOT}33 31 0:5 / {at} ro,nosuid,nodev,noexec - proc proc rw\n");
            assert!(check(&line).unwrap_err().contains("a procfs"), "{at}");
        }
    }

    #[test]
    fn a_list_of_another_form_is_an_error() {
        for line in ["", "33 31 0:5 / /rootfs rw", "x - tmpfs tmpfs rw"] {
            assert!(check(&format!("{ROOT}{line}\n")).is_err(), "{line:?}");
        }
    }

    #[test]
    fn this_process_has_mounts() {
        let list = Processes::open().unwrap().mountinfo().unwrap();
        // The machine's own has a procfs.
        assert!(check(&list).is_err());
    }
}
