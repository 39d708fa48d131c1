//! What a process gives up for good before it touches hostile bytes, the same for guest and compiler: further walls for one that
//! has no root, no user and no capability any more.

use std::io;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use slipway_protocol::{Instruction, Seccomp};
use slipway_sys::TrappedCall;

/// The newest version of Landlock that is made use of; an older kernel is asked for what it has, from the second on.
const LANDLOCK: ABI = ABI::V6;

/// Leaves the keys of the session that this process was born in to that session: root's, with containerd's. A kernel without keys
/// has none to leave.
///
/// # Errors
/// keyctl's.
pub fn leave_session_keyring() -> Result<(), String> {
    slipway_sys::join_new_session_keyring()
        .or_else(|e| match e.raw_os_error() {
            Some(libc::ENOSYS) => Ok(()),
            _ => Err(e),
        })
        .map_err(|e| format!("session keyring: {e}"))
}

/// Where a process may go from now on (Landlock). It executes no file and makes no device, whatever its user is; it reaches no
/// abstract socket and no process by a signal that is not confined with it.
///
/// # Errors
/// A directory that cannot be opened; the kernel's.
pub fn files(read: &str, write: &str) -> Result<(), String> {
    restrict(read, write).map_err(|e| format!("Landlock: {e}"))
}

/// Likewise, and no file at all: only what is open already.
///
/// # Errors
/// The kernel's.
pub fn no_files() -> Result<(), String> {
    let restrict = || -> Result<_, Box<dyn std::error::Error>> { Ok(ruleset()?.restrict_self()?) };
    restrict().map(drop).map_err(|e| format!("Landlock: {e}"))
}

fn restrict(read: &str, write: &str) -> Result<(), Box<dyn std::error::Error>> {
    let reading = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let writing = AccessFs::from_all(LANDLOCK)
        & !make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | IoctlDev});
    let ruleset = beneath(ruleset()?, read, reading)?;
    beneath(ruleset, write, writing)?.restrict_self()?;
    Ok(())
}

/// All that Landlock can forbid, with no exception yet.
fn ruleset() -> Result<RulesetCreated, Box<dyn std::error::Error>> {
    let ruleset = Ruleset::default()
        // Of all or nothing: a Landlock that does not know this right (before Linux 5.19) forbids each move between directories.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    Ok(ruleset)
}

fn beneath(
    ruleset: RulesetCreated,
    directory: &str,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Box<dyn std::error::Error>> {
    let rule = PathBeneath::new(PathFd::new(directory)?, access);
    Ok(ruleset.add_rule(rule)?)
}

/// Which calls of the kernel a process may make from now on: those of an allow-list's program, and of them those that the pod's own profile
/// lets through. `tell` is called at the first that the kernel does not let through where the filter asks for it, and ends the
/// process.
///
/// # Errors
/// The kernel does not take the filter.
pub fn calls(
    list: Vec<Instruction>,
    profile: Option<&Seccomp>,
    tell: fn(TrappedCall) -> !,
) -> io::Result<()> {
    slipway_sys::on_trapped_call(tell)?;
    let program = slipway_seccomp::chain(list, profile.map_or(&[][..], |p| &p.program));
    filter(
        &program,
        profile.map_or(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, |p| p.flags),
    )
}

/// Fewer of those calls from now on, by the program of further rules.
///
/// # Errors
/// The kernel does not take the filter.
pub fn fewer_calls(further: &[Instruction]) -> io::Result<()> {
    filter(further, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW)
}

fn filter(program: &[Instruction], flags: u64) -> io::Result<()> {
    let sock_filter = |i: &Instruction| libc::sock_filter {
        code: i.code,
        jt: i.jt,
        jf: i.jf,
        k: i.k,
    };
    let mut program: Vec<_> = program.iter().map(sock_filter).collect();
    slipway_sys::set_seccomp_filter(flags, &mut program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    /// Runs something in a thread, which alone is confined then.
    fn confined<T: Send>(what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(what).join().unwrap())
    }

    fn has_landlock() -> bool {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1));
        ruleset.is_ok_and(|ruleset| ruleset.create().is_ok())
    }

    #[test]
    fn what_is_not_named_is_neither_read_nor_written_and_nothing_is_executed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["read", "write", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "x").unwrap();
        }
        fs::copy("/bin/true", path("write").join("program")).unwrap();
        let reached = confined(|| {
            let named = |name: &str| path(name).display().to_string();
            files(&named("read"), &named("write")).unwrap();
            let read = ["read", "write", "other"].map(|at| fs::read(path(at).join("file")).is_ok());
            let written =
                ["read", "write", "other"].map(|at| fs::write(path(at).join("new"), "x").is_ok());
            let executed = Command::new(path("write").join("program")).status().is_ok();
            (read, written, executed)
        });
        let expected = match has_landlock() {
            true => ([true, true, false], [false, true, false], false),
            // A kernel without it is no reason to fail.
            false => ([true; 3], [true; 3], true),
        };
        assert_eq!(reached, expected);
    }
}
