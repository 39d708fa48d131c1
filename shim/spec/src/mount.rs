//! Mount options by name, as mount(8) and runc know them.

use slipway_protocol::Mount;

/// (name, flag to set, flag to clear)
const FLAGS: &[(&str, u64, u64)] = &[
    ("async", 0, libc::MS_SYNCHRONOUS),
    ("atime", 0, libc::MS_NOATIME),
    ("bind", libc::MS_BIND, 0),
    ("defaults", 0, 0),
    ("dev", 0, libc::MS_NODEV),
    ("diratime", 0, libc::MS_NODIRATIME),
    ("dirsync", libc::MS_DIRSYNC, 0),
    ("exec", 0, libc::MS_NOEXEC),
    ("mand", libc::MS_MANDLOCK, 0),
    ("noatime", libc::MS_NOATIME, 0),
    ("nodev", libc::MS_NODEV, 0),
    ("nodiratime", libc::MS_NODIRATIME, 0),
    ("noexec", libc::MS_NOEXEC, 0),
    ("nomand", 0, libc::MS_MANDLOCK),
    ("norelatime", 0, libc::MS_RELATIME),
    ("nostrictatime", 0, libc::MS_STRICTATIME),
    ("nosuid", libc::MS_NOSUID, 0),
    ("rbind", libc::MS_BIND | libc::MS_REC, 0),
    ("relatime", libc::MS_RELATIME, 0),
    ("ro", libc::MS_RDONLY, 0),
    ("rw", 0, libc::MS_RDONLY),
    ("strictatime", libc::MS_STRICTATIME, 0),
    ("suid", 0, libc::MS_NOSUID),
    ("sync", libc::MS_SYNCHRONOUS, 0),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// A mount from its textual options; names that are no flags are the file system's own options.
pub fn parse_options(kind: &str, source: &str, destination: &str, options: &[String]) -> Mount {
    let mut mount = Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        ..Mount::default()
    };
    let mut data = Vec::new();
    for option in options {
        if let Some((_, set, clear)) = FLAGS.iter().find(|(name, ..)| name == option) {
            mount.flags = (mount.flags | set) & !clear;
        } else if let Some((_, flags)) = PROPAGATION.iter().find(|(name, _)| name == option) {
            mount.propagation |= flags;
        } else if option == "rro" {
            mount.flags |= libc::MS_RDONLY;
            mount.recursive_readonly = true;
        } else {
            data.push(option.as_str());
        }
    }
    if kind == "bind" {
        mount.flags |= libc::MS_BIND;
    }
    mount.data = data.join(",");
    mount
}

/// The first option that would be lost: a bind mount has no options of a file system, and some that look like one are
/// other runtimes' own.
pub(crate) fn unknown(mount: &Mount) -> Option<&str> {
    let bind = mount.flags & libc::MS_BIND != 0;
    let lost = |option: &&str| !option.is_empty() && (bind || *option == "tmpcopyup");
    mount.data.split(',').find(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_later_option_takes_an_earlier_one_back() {
        assert_eq!(
            parse_options("bind", "/a", "/b", &options(&["rbind", "ro", "rw"])).flags,
            libc::MS_BIND | libc::MS_REC
        );
    }

    #[test]
    fn rro_is_for_submounts_too() {
        let m = parse_options("bind", "/a", "/b", &options(&["rbind", "rro"]));
        assert!(m.recursive_readonly && m.flags & libc::MS_RDONLY != 0);
    }

    #[test]
    fn unknown_names_are_the_file_systems_own() {
        let m = parse_options(
            "tmpfs",
            "tmpfs",
            "/t",
            &options(&["nosuid", "size=64k", "mode=755", "rprivate"]),
        );
        assert_eq!(
            (m.data.as_str(), m.flags),
            ("size=64k,mode=755", libc::MS_NOSUID)
        );
        assert_eq!(m.propagation, libc::MS_PRIVATE | libc::MS_REC);
    }
}
