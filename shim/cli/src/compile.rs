//! `slipway compile`: an artefact before its first pod.

use std::process::ExitCode;
use std::sync::Arc;

use slipway_launch::{Direct, Install, Job};
use slipway_protocol::Module;

use crate::args::Compile;
use crate::terminal::Progress;
use crate::{run, source};

pub fn compile(args: &Compile) -> Result<ExitCode, String> {
    let source = source::open(&args.file)?;
    let (path, bytes) = source.module_bytes()?;
    let module = rustix::fs::memfd_create(c"module", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| e.to_string())?;
    std::fs::write(
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&module)),
        &bytes,
    )
    .map_err(|e| e.to_string())?;
    let install = Install::locate();
    let engine = install.engine_version().map_err(|e| e.to_string())?;
    let progress = Arc::new(Progress::new());
    let compiler = Direct {
        install,
        cache_dir: args.store.cache_dir.clone(),
        cache_bytes: args.store.cache_bytes,
        progress: {
            let progress = progress.clone();
            Arc::new(move |text: &str| progress.say(text))
        },
    };
    let what = Module {
        digest: *slipway_module::Digest::of(&bytes).as_bytes(),
        size: bytes.len() as u64,
        path: path.clone(),
        engine,
    };
    let tier = match run::compile_mode(args.tier).is_full(what.size) {
        true => slipway_cache::Tier::Full,
        false => slipway_cache::Tier::Quick,
    };
    let compiled = compiler.compile(&Job::new(module, what, tier));
    progress.done();
    compiled.map_err(|e| format!("{path}: {e}"))?;
    println!("{path}: in {}", args.store.cache_dir);
    Ok(ExitCode::SUCCESS)
}
