//! `slipway-aot quick|full DIGEST MEMORY SECONDS`: compiles one hostile module into one artefact, and ends.
//!
//! Descriptor 3 is the module, descriptor 4 the artefact to write, descriptor 5 a socket: on it come the [`Purpose`], and
//! back the module's [`Facts`] once it is accepted, before it is compiled. Whoever starts it gives it namespaces of its own;
//! before it reads a byte of the module it has no root file system, no network, no user and no capability, MEMORY
//! bytes at most, and SECONDS of CPU time. It reads the module once, and compiles it only if its sha256 is DIGEST: the file may be on a volume that
//! others write to.
//! Its exit statuses are those of [`slipway_protocol::aot_status`]; on stdout it says why.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use rustix::mount::{MountFlags, MountPropagationFlags};
use slipway_engine::Optimisation;
use slipway_module::{Digest, MAX_MODULE_BYTES, Memory, ModuleInfo};
use slipway_protocol::aot_status::{CHANGED, REFUSED, UNFIT, UNWRITTEN};
use slipway_protocol::{Facts, Purpose};
use slipway_sys::TrappedCall;

/// The module in, the artefact out, what is asked and said about the module.
const MODULE_FD: i32 = 3;
const ARTEFACT_FD: i32 = 4;
const CONTROL_FD: i32 = 5;
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

fn main() -> ExitCode {
    // Through the bundle's loader the process would be named after it.
    let _ = rustix::thread::set_name(c"slipway-aot");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, message)) => {
            // The status says it without the text.
            let _ = writeln!(std::io::stdout(), "{message}");
            ExitCode::from(status)
        }
    }
}

fn compile() -> Result<(), (u8, String)> {
    let failed = |message: String| (1, message);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["version"] {
        println!("{}", slipway_engine::version());
        return Ok(());
    }
    let order = Order::read(&arguments).ok_or_else(|| {
        failed(format!(
            "usage: slipway-aot version | quick|full DIGEST MEMORY SECONDS (got {arguments:?}); slipway starts it"
        ))
    })?;
    let inherit = |fd, what| {
        slipway_sys::inherit(fd).map_err(|e| failed(format!("descriptor {fd}, {what}: {e}")))
    };
    let file = inherit(MODULE_FD, "the module")?;
    let artefact = inherit(ARTEFACT_FD, "the artefact")?;
    let control = inherit(CONTROL_FD, "the host")?;
    enclose(order.memory, order.seconds).map_err(|e| failed(format!("compiler's sandbox: {e}")))?;
    let module = read_module(file.into(), &order.digest)?;
    let prepared = slipway_module::prepare(&module).map_err(|e| (REFUSED, e.to_string()))?;
    drop(module);
    let names = prepared.names.iter();
    let names = slipway_protocol::encode_names(names.map(|(index, name)| (*index, name.as_str())));
    agree(control.as_fd(), &prepared.info, &names)?;
    slipway_engine::compile(&prepared.stripped, c"/artefact.so", order.optimisation)
        .map_err(|e| failed(format!("the compiler failed: {e}")))?;
    write_artefact(artefact.into(), &names).map_err(|e| (UNWRITTEN, e.to_string()))
}

/// Sees to it that the module suits its purpose, and says what it is.
fn agree(control: BorrowedFd<'_>, module: &ModuleInfo, names: &[u8]) -> Result<(), (u8, String)> {
    let failed = |e: slipway_protocol::Error| (1, e.to_string());
    let (purpose, _) = slipway_protocol::recv::<Purpose>(control).map_err(failed)?;
    let facts = Facts {
        memories: module.memories.iter().map(Memory::min_bytes).collect(),
        names: names.len() as u64,
    };
    if let Some(call) = &purpose.call {
        module
            .check_entry(&call.function, Some(call.arguments))
            .map_err(|e| (UNFIT, e.to_string()))?;
    }
    facts.fit(purpose.memory_limit).map_err(|e| (UNFIT, e))?;
    slipway_protocol::send(control, &facts, &[]).map_err(failed)
}

/// What is to be done, from the command line.
struct Order {
    optimisation: Optimisation,
    /// Of the module.
    digest: Digest,
    /// Bytes that may be used.
    memory: u64,
    /// CPU time that may be used, all threads together.
    seconds: u64,
}

impl Order {
    fn read(arguments: &[String]) -> Option<Self> {
        let [tier, digest, memory, seconds] = arguments else {
            return None;
        };
        Some(Self {
            optimisation: match tier.as_str() {
                "quick" => Optimisation::None,
                "full" => Optimisation::Full,
                _ => return None,
            },
            digest: digest.parse().ok()?,
            memory: memory.parse().ok()?,
            seconds: seconds.parse().ok()?,
        })
    }
}

/// An empty root, no user, bounded resources.
fn enclose(memory: u64, seconds: u64) -> Result<(), String> {
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

/// The module of that digest. The descriptor is shared with whoever reads the file, too, so its position is not used.
fn read_module(file: File, digest: &Digest) -> Result<Vec<u8>, (u8, String)> {
    let failed = |e: std::io::Error| (1, format!("read the module: {e}"));
    let changed = || (CHANGED, format!("not the file of sha256:{digest}"));
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_MODULE_BYTES {
        // No refusal, which would be kept under the digest.
        let text = format!("the module has {size} bytes, more than the {MAX_MODULE_BYTES} allowed");
        return Err((1, text));
    }
    let mut bytes = vec![0; size as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(changed()),
        read => read.map_err(failed)?,
    }
    match Digest::of(&bytes) == *digest {
        true => Ok(bytes),
        false => Err(changed()),
    }
}

fn write_artefact(mut out: File, names: &[u8]) -> std::io::Result<()> {
    let mut made = File::open("/artefact.so")?;
    std::io::copy(&mut made, &mut out)?;
    out.write_all(names)?;
    out.flush()
}
