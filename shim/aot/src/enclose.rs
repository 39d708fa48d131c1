//! What the compiler gives up before it reads the first byte of the module.

use std::ffi::CString;

use rustix::mount::{MountFlags, MountPropagationFlags};
use slipway_sys::TrappedCall;

/// Nobody, by Debian's and most other numbers.
const NOBODY: u32 = 65534;
/// Where LLVM works, and its size in bytes: memory, a quarter of MEMORY at most. A 36 MB module takes 200 MB for object file
/// and artefact.
const WORK: &str = "/tmp";
const WORK_BYTES: u64 = 2 << 30;
/// The largest file in bytes: the most that the cache takes.
const FILE_BYTES: u64 = 1 << 30;
/// The kernel's highest: killed first when the node runs out of memory (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ: &str = "1000";

/// An empty root, no user, bounded resources.
pub fn enclose(memory: u64, seconds: u64) -> Result<(), String> {
    let io = |e: rustix::io::Errno| e.to_string();
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)
        .map_err(|e| format!("oom_score_adj: {e}"))?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(io)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A size of 0 would be no bound.
    let size = WORK_BYTES.min(memory / 4).max(1);
    let options = CString::new(format!("size={size},mode=1777")).unwrap_or_default();
    rustix::mount::mount("tmpfs", WORK, "tmpfs", flags, Some(options.as_c_str())).map_err(io)?;
    std::env::set_current_dir(WORK)
        .and_then(|()| slipway_sys::pivot_to_current_dir())
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_DATA as i32, memory, memory))
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_FSIZE as i32, FILE_BYTES, FILE_BYTES))
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_CPU as i32, seconds, seconds))
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_CORE as i32, 0, 0))
        .map_err(|e| e.to_string())?;
    slipway_confine::leave_session_keyring().map_err(|e| e.to_string())?;
    slipway_sys::become_user(NOBODY, NOBODY, &[])?;
    slipway_sys::set_no_new_privs()?;
    // The change of user has cleared it: a compile must not outlive the shim that waits for it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(io)?;
    slipway_confine::files("/", "/")?;
    let list = slipway_seccomp::allow_list(&slipway_seccomp::compiler(std::process::id()));
    slipway_confine::calls(list, None, end_at_trapped_call).map_err(|e| format!("seccomp: {e}"))
}

/// Says which system call it was that no compile makes.
fn end_at_trapped_call(call: TrappedCall) -> ! {
    let name = slipway_seccomp::name(call.number);
    println!(
        "the compiler made a system call that no compile makes, {name} (number {}), and was ended",
        call.number
    );
    slipway_sys::exit_now(1)
}
