//! Compiles one hostile module into one artefact, whatever engine it is for, and ends: `slipway-aot quick|full DIGEST MEMORY SECONDS`.
//!
//! Descriptor 3 is the module, descriptor 4 the artefact to write, descriptor 5 a socket: on it come the [`Purpose`], and
//! back the module's [`Facts`] once it is accepted, before it is compiled. Whoever starts it gives it namespaces of its own;
//! before it reads a byte of the module it has no root file system, no network, no user and no capability, MEMORY
//! bytes at most, and SECONDS of CPU time. It reads the module once, and compiles it only if its sha256 is DIGEST: the file may be on a volume that
//! others write to.
//! Its exit statuses are those of [`slipway_protocol::aot_status`]; on stdout it says why.

mod enclose;
mod order;

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

pub use slipway_cache::Tier;
use slipway_module::{Digest, MAX_MODULE_BYTES, Memory, ModuleInfo};
use slipway_protocol::aot_status::{CHANGED, REFUSED, UNFIT, UNWRITTEN};
use slipway_protocol::{Facts, Purpose};

use enclose::enclose;
use order::Order;

/// The module in, the artefact out, what is asked and said about the module.
const MODULE_FD: i32 = 3;
const ARTEFACT_FD: i32 = 4;
const CONTROL_FD: i32 = 5;

/// What differs between engines.
pub trait Compiler {
    /// Name and version of the engine, by which artefacts are known: `wasmedge-0.17.1`.
    fn version() -> String;

    /// Compiles a module that was accepted into a file.
    ///
    /// # Errors
    /// The compiler's.
    fn compile(module: &[u8], out: &CStr, tier: Tier) -> Result<(), String>;
}

/// The whole life of a compiler.
pub fn run<C: Compiler>() -> ExitCode {
    // Through the bundle's loader the process would be named after it.
    let _ = rustix::thread::set_name(c"slipway-aot");
    match compile::<C>() {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, message)) => {
            // The status says it without the text.
            let _ = writeln!(std::io::stdout(), "{message}");
            ExitCode::from(status)
        }
    }
}

fn compile<C: Compiler>() -> Result<(), (u8, String)> {
    let failed = |message: String| (1, message);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["version"] {
        println!("{}", C::version());
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
    C::compile(&prepared.stripped, c"/artefact.so", order.tier)
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

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_protocol::Call;

    #[test]
    fn only_the_bytes_of_that_digest_are_compiled() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"module").unwrap();
        let digest = Digest::of(b"module");
        // Wherever others who share the descriptor have read to.
        assert_eq!(
            read_module(file.try_clone().unwrap(), &digest).unwrap(),
            b"module"
        );
        file.write_all(b" and more").unwrap();
        let (status, text) = read_module(file, &digest).unwrap_err();
        assert_eq!(
            (status, text),
            (CHANGED, format!("not the file of sha256:{digest}"))
        );
    }

    #[test]
    fn a_file_that_grew_beyond_the_bound_is_no_verdict_on_its_digest() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX_MODULE_BYTES + 1).unwrap();
        let (status, text) = read_module(file, &Digest::of(b"")).unwrap_err();
        assert_eq!(status, 1);
        assert_eq!(
            text,
            "the module has 268435457 bytes, more than the 268435456 allowed"
        );
    }

    /// What the host hears of a module for a purpose, and the status where it does not suit.
    fn agreed(wat: &str, purpose: &Purpose) -> (Option<Facts>, Option<u8>) {
        let (host, compiler) = slipway_protocol::pair().unwrap();
        slipway_protocol::send(host.as_fd(), purpose, &[]).unwrap();
        let module = slipway_module::prepare(wat.as_bytes()).unwrap().info;
        let status = agree(compiler.as_fd(), &module, b"names")
            .err()
            .map(|(status, _)| status);
        drop(compiler);
        let told = slipway_protocol::recv::<Facts>(host.as_fd());
        (told.ok().map(|(facts, _)| facts), status)
    }

    #[test]
    fn a_module_that_suits_its_purpose_is_described_before_it_is_compiled() {
        let wat = r#"(module (memory 2) (func (export "_start")))"#;
        let purpose = |function: &str, memory_limit| Purpose {
            call: Some(Call {
                function: function.into(),
                arguments: 0,
            }),
            memory_limit,
        };
        let (facts, status) = agreed(wat, &purpose("_start", Some(2 << 16)));
        let facts = facts.unwrap();
        assert_eq!(
            (facts.memories, facts.names, status),
            (vec![2 << 16], 5, None)
        );
        // The function is missing; the memory has no room.
        assert_eq!(agreed(wat, &purpose("run", None)), (None, Some(UNFIT)));
        assert_eq!(
            agreed(wat, &purpose("_start", Some(1 << 16))),
            (None, Some(UNFIT))
        );
    }
}
