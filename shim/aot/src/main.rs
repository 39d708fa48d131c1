//! `slipway-aot quick|full`: compiles one hostile module into one artefact, and ends.
//!
//! Descriptor 3 is the module, descriptor 4 the artefact to write, descriptor 5 a socket: on it come the [`Purpose`], and
//! back the module's [`Facts`] once it is accepted, before it is compiled. Whoever starts it gives it namespaces of its own;
//! before it reads a byte of the module it has no root file system, no network, no user and no capability.
//! Exit status 0: compiled; 3: the module is refused, the text on stdout says why; 4: the artefact cannot be written, the
//! text is the system's reason; 5: the module is good, but not for this purpose; anything else: the text is the compiler's
//! failure.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::mount::{MountFlags, MountPropagationFlags};
use slipway_engine::Optimisation;
use slipway_module::{Memory, ModuleInfo};
use slipway_protocol::{Facts, Purpose};

/// The module in, the artefact out, what is asked and said about the module.
const MODULE_FD: i32 = 3;
const ARTEFACT_FD: i32 = 4;
const CONTROL_FD: i32 = 5;
/// Nobody, by Debian's and most other numbers.
const NOBODY: u32 = 65534;
/// Where LLVM works: memory, charged to the pod. A 36 MB module takes 200 MB for object file and artefact.
const WORK: &str = "/tmp";
const WORK_OPTIONS: &std::ffi::CStr = c"size=2g,mode=1777";
/// Address space in bytes. The largest module tried (36 MB at O2) took 3.3 GB.
const ADDRESS_SPACE: u64 = 16 << 30;
/// CPU time in seconds, all threads together.
const CPU_SECONDS: u64 = 3600;

/// Status of a refused module.
const REFUSED: u8 = 3;
/// Status where the artefact cannot be written.
const UNWRITTEN: u8 = 4;
/// Status of a module that runs here, but not as it is meant to.
const UNFIT: u8 = 5;

fn main() -> ExitCode {
    // Through the bundle's loader the process would be named after it.
    let _ = rustix::thread::set_name(c"slipway-aot");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, message)) => {
            println!("{message}");
            ExitCode::from(status)
        }
    }
}

fn compile() -> Result<(), (u8, String)> {
    let failed = |message: String| (1, message);
    let optimisation = match std::env::args().nth(1).as_deref() {
        Some("quick") => Optimisation::None,
        Some("full") => Optimisation::Full,
        Some("version") => {
            println!("{}", slipway_engine::version());
            return Ok(());
        }
        other => {
            return Err(failed(format!(
                "usage: slipway-aot quick|full|version (got {other:?}); slipway starts it"
            )));
        }
    };
    enclose().map_err(failed)?;
    let module = read_module().map_err(failed)?;
    let prepared = slipway_module::prepare(&module).map_err(|e| (REFUSED, e.to_string()))?;
    drop(module);
    let names = prepared.names.iter();
    let names = slipway_protocol::encode_names(names.map(|(index, name)| (*index, name.as_str())));
    agree(&prepared.info, &names)?;
    slipway_engine::compile(&prepared.stripped, c"/artefact.so", optimisation)
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

/// An empty root, no user, bounded resources.
fn enclose() -> Result<(), String> {
    let io = |e: rustix::io::Errno| format!("compiler's sandbox: {e}");
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(io)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", WORK, "tmpfs", flags, Some(WORK_OPTIONS)).map_err(io)?;
    std::env::set_current_dir(WORK)
        .and_then(|()| slipway_sys::pivot_to_current_dir())
        .and_then(|()| {
            slipway_sys::set_rlimit(libc::RLIMIT_AS as i32, ADDRESS_SPACE, ADDRESS_SPACE)
        })
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_CPU as i32, CPU_SECONDS, CPU_SECONDS))
        .and_then(|()| slipway_sys::set_rlimit(libc::RLIMIT_CORE as i32, 0, 0))
        .map_err(|e| format!("compiler's sandbox: {e}"))?;
    slipway_sys::become_user(NOBODY, NOBODY, &[])
        .map_err(|e| format!("compiler's sandbox: {e}"))?;
    // The change of user has cleared it: a compile must not outlive the shim that waits for it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(io)
}

fn inherited(fd: i32) -> std::io::Result<OwnedFd> {
    Ok(rustix::io::dup(slipway_sys::inherited(fd))?)
}

fn read_module() -> Result<Vec<u8>, String> {
    let read = || {
        let mut file = File::from(inherited(MODULE_FD)?);
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(slipway_module::MAX_MODULE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e: std::io::Error| format!("read the module: {e}"))
}

fn write_artefact(names: &[u8]) -> std::io::Result<()> {
    let mut made = File::open("/artefact.so")?;
    let mut out = File::from(inherited(ARTEFACT_FD)?);
    std::io::copy(&mut made, &mut out)?;
    out.write_all(names)?;
    out.flush()
}
