//! `slipway-aot quick|full DIGEST MEMORY`: compiles one hostile module into one artefact, and ends.
//!
//! Descriptor 3 is the module, descriptor 4 the artefact to write, descriptor 5 a socket: on it come the [`Purpose`], and
//! back the module's [`Facts`] once it is accepted, before it is compiled. Whoever starts it gives it namespaces of its own;
//! before it reads a byte of the module it has no root file system, no network, no user and no capability, and MEMORY
//! bytes at most. It reads the module once, and compiles it only if its sha256 is DIGEST: the file may be on a volume that
//! others write to.
//! Exit status 0: compiled; 3: the module is refused, the text on stdout says why; 4: the artefact cannot be written, the
//! text is the system's reason; 5: the module is good, but not for this purpose; 6: the file is not the module of that
//! digest; anything else: the text is the compiler's
//! failure.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use rustix::mount::{MountFlags, MountPropagationFlags};
use slipway_engine::Optimisation;
use slipway_module::{Digest, MAX_MODULE_BYTES, Memory, ModuleInfo};
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
/// CPU time in seconds, all threads together.
const CPU_SECONDS: u64 = 3600;

/// Status of a refused module.
const REFUSED: u8 = 3;
/// Status where the artefact cannot be written.
const UNWRITTEN: u8 = 4;
/// Status where the file is not the module that was asked for.
const CHANGED: u8 = 6;
/// Status of a module that runs here, but not as it is meant to.
const UNFIT: u8 = 5;

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
            "usage: slipway-aot version | quick|full DIGEST MEMORY (got {arguments:?}); slipway starts it"
        ))
    })?;
    enclose(order.memory).map_err(failed)?;
    let module = read_module(&order.digest)?;
    let prepared = slipway_module::prepare(&module).map_err(|e| (REFUSED, e.to_string()))?;
    drop(module);
    let names = prepared.names.iter();
    let names = slipway_protocol::encode_names(names.map(|(index, name)| (*index, name.as_str())));
    agree(&prepared.info, &names)?;
    slipway_engine::compile(&prepared.stripped, c"/artefact.so", order.optimisation)
        .map_err(|e| failed(format!("the compiler failed: {e}")))?;
    write_artefact(&names).map_err(|e| (UNWRITTEN, e.to_string()))
}

/// Sees to it that the module suits its purpose, and says what it is.
fn agree(module: &ModuleInfo, names: &[u8]) -> Result<(), (u8, String)> {
    let failed = |e: slipway_protocol::Error| (1, e.to_string());
    let control = slipway_sys::inherited(CONTROL_FD);
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
}

impl Order {
    fn read(arguments: &[String]) -> Option<Self> {
        let [tier, digest, memory] = arguments else {
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
        })
    }
}

/// An empty root, no user, bounded resources.
fn enclose(memory: u64) -> Result<(), String> {
    let io = |e: rustix::io::Errno| format!("compiler's sandbox: {e}");
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ)
        .map_err(|e| format!("compiler's sandbox: oom_score_adj: {e}"))?;
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
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_CPU as i32, CPU_SECONDS, CPU_SECONDS))
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_CORE as i32, 0, 0))
        .map_err(|e| format!("compiler's sandbox: {e}"))?;
    slipway_confine::leave_session_keyring().map_err(|e| format!("compiler's sandbox: {e}"))?;
    slipway_sys::become_user(NOBODY, NOBODY, &[])
        .and_then(|()| slipway_sys::set_no_new_privs())
        .map_err(|e| format!("compiler's sandbox: {e}"))?;
    // The change of user has cleared it: a compile must not outlive the shim that waits for it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(io)?;
    slipway_confine::files("/", "/").map_err(|e| format!("compiler's sandbox: {e}"))?;
    let rules = slipway_seccomp::compiler(std::process::id());
    slipway_confine::calls(&rules, None, end_at_trapped_call)
        .map_err(|e| format!("compiler's sandbox: seccomp: {e}"))
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

fn inherited(fd: i32) -> std::io::Result<OwnedFd> {
    Ok(rustix::io::dup(slipway_sys::inherited(fd))?)
}

/// The module of that digest. The descriptor is shared with whoever reads the file, too, so its position is not used.
fn read_module(digest: &Digest) -> Result<Vec<u8>, (u8, String)> {
    let failed = |e: std::io::Error| (1, format!("read the module: {e}"));
    let changed = || (CHANGED, format!("not the file of sha256:{digest}"));
    let file = File::from(inherited(MODULE_FD).map_err(failed)?);
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

fn write_artefact(names: &[u8]) -> std::io::Result<()> {
    let mut made = File::open("/artefact.so")?;
    let mut out = File::from(inherited(ARTEFACT_FD)?);
    std::io::copy(&mut made, &mut out)?;
    out.write_all(names)?;
    out.flush()
}
