//! `slipway run`: the plan that a pod's spec would give, then the same launch as in the shim.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Poll;

use slipway_cgroup::{Cgroup, OomWatch};
use slipway_counters::Counters;
use slipway_launch::{Compiler, Direct, Helpers, Install, LaunchOptions};
use slipway_protocol::{Budget, End, Program, RESOLVER_FILES};
use slipway_spec::{CgroupPath, Namespace, Plan, Resources};
use slipway_sys::CgroupEntry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{self, Run};
use crate::project::{Built, Project};
use crate::source::{self, Source};
use crate::terminal::{self, Progress};
use crate::watch;

pub fn run(args: &Run) -> Result<ExitCode, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("run needs root: it makes namespaces, mounts and cgroups, as a pod's runtime does. Try sudo".into());
    }
    let (path, arguments) = args
        .command
        .split_first()
        .ok_or("neither a file nor a folder to run")?;
    let path = Path::new(path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        match (path.is_dir(), args.watch) {
            (true, true) => watch::watch(args, arguments, path).await,
            (true, false) => {
                let found = Project::recognise(path)?;
                let mut signals = Signals::new()?;
                let mut signal = async || signals.next().await;
                let status = project(args, arguments, &found, &mut signal).await?;
                Ok(ExitCode::from(status))
            }
            (false, true) => Err(format!(
                "--watch builds a project folder again and again: {} is none",
                path.display()
            )),
            (false, false) => {
                let source = source::open(path)?;
                let plan = plan(args, arguments, &source)?;
                let mut signals = Signals::new()?;
                let mut signal = async || signals.next().await;
                let end = run_plan(args, &source, &plan, &mut signal).await?;
                Ok(ExitCode::from(end.status))
            }
        }
    })
}

/// Builds a project and runs its program; the status. `signal` waits for a signal to either.
pub async fn project(
    args: &Run,
    arguments: &[String],
    project: &Project,
    signal: &mut impl AsyncFnMut() -> i32,
) -> Result<u8, String> {
    match project.build(signal).await? {
        Built::Stopped(number) => Ok(ended_by(number)),
        Built::Module(module) => {
            let source = source::open(&module)?;
            let plan = plan(args, arguments, &source)?;
            Ok(run_plan(args, &source, &plan, signal).await?.status)
        }
    }
}

/// The status of what a signal ended, as shells have it.
pub fn ended_by(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// What the flags mean, in the words of a spec.
fn plan(args: &Run, arguments: &[String], source: &Source) -> Result<Plan, String> {
    let mut argv = source.args.clone();
    if !arguments.is_empty() {
        argv.truncate(1);
        argv.extend(arguments.iter().cloned());
    }
    if let (Some(function), Some(entry)) = (&args.invoke, argv.first_mut()) {
        let path = entry.split('#').next().unwrap_or_default();
        *entry = format!("{path}#{function}");
    }
    let mut env = source.env.clone();
    for variable in &args.env {
        match variable.contains('=') {
            true => env.push(variable.clone()),
            false => env.extend(
                std::env::var(variable)
                    .ok()
                    .map(|value| format!("{variable}={value}")),
            ),
        }
    }
    let (uid, gid) = user(args.user.as_deref().unwrap_or(&source.user))?;
    Ok(Plan {
        program: Program {
            args: argv,
            env,
            cwd: args
                .workdir
                .clone()
                .unwrap_or_else(|| source.workdir.clone()),
            uid,
            gid,
            cpu_time: args.cpu_time,
            with_parent: true,
            compile_mode: compile_mode(args.tier),
            ..Program::default()
        },
        root_path: source.root.path().display().to_string(),
        mounts: mounts(&args.dirs)?,
        pid: Namespace::New,
        ipc: Namespace::New,
        cgroup: args
            .memory
            .map(|_| CgroupPath::Cgroupfs(format!("/slipway-run-{}", std::process::id()))),
        resources: Resources {
            memory_limit: args.memory.map(|m| i64::try_from(m).unwrap_or(i64::MAX)),
            ..Resources::default()
        },
        ..Plan::default()
    })
}

pub fn compile_mode(tier: args::Tier) -> slipway_protocol::CompileMode {
    match tier {
        args::Tier::Auto => slipway_protocol::CompileMode::Auto,
        args::Tier::Quick => slipway_protocol::CompileMode::Quick,
        args::Tier::Full => slipway_protocol::CompileMode::Full,
    }
}

fn user(text: &str) -> Result<(u32, u32), String> {
    if text.is_empty() {
        return Ok((0, 0));
    }
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |s: &str| {
        s.parse()
            .map_err(|_| format!("user {text:?}: only numbers are possible: --user UID[:GID]"))
    };
    Ok((number(uid)?, number(gid)?))
}

/// The directories, outer ones first, and this machine's resolver files, for the program is in its network: as CRI gives
/// them to a pod. No mount point is made in a directory of the user's.
fn mounts(dirs: &[String]) -> Result<Vec<slipway_protocol::Mount>, String> {
    let options = ["rbind", "rprivate", "ro"].map(String::from);
    let mut all: Vec<_> = dirs.iter().map(|d| volume(d)).collect::<Result<_, _>>()?;
    all.sort_by_key(|m| Path::new(&m.destination).components().count());
    let covered = |file: &&str| {
        all.iter()
            .any(|m| Path::new(file).starts_with(&m.destination))
    };
    let resolver: Vec<_> = RESOLVER_FILES
        .into_iter()
        .filter(|file| !covered(file))
        .filter_map(|file| {
            // Often a symlink to what a daemon writes.
            let source = std::fs::canonicalize(file).ok()?.display().to_string();
            Some(slipway_spec::parse_options("bind", &source, file, &options))
        })
        .collect();
    all.extend(resolver);
    Ok(all)
}

/// HOST[:GUEST[:ro]]
fn volume(text: &str) -> Result<slipway_protocol::Mount, String> {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let source = std::path::absolute(host).map_err(|e| format!("--dir {text}: {e}"))?;
    let source = source.display().to_string();
    let guest = parts.next().unwrap_or(&source);
    if !guest.starts_with('/') {
        return Err(format!("--dir {text}: the program's path must be absolute"));
    }
    let mut options = vec!["rbind".to_string(), "rprivate".to_string()];
    match (parts.next(), parts.next()) {
        (None, _) => {}
        (Some("ro"), None) => options.push("ro".into()),
        _ => return Err(format!("--dir {text}: expected HOST[:GUEST[:ro]]")),
    }
    Ok(slipway_spec::parse_options(
        "bind", &source, guest, &options,
    ))
}

/// A cgroup that goes with this value.
struct Owned(Option<Cgroup>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.0 {
            let _ = cgroup.remove();
        }
    }
}

async fn run_plan(
    args: &Run,
    source: &Source,
    plan: &Plan,
    signal: &mut impl AsyncFnMut() -> i32,
) -> Result<End, String> {
    let install = Install::locate();
    let cgroup = Owned(plan.cgroup.as_ref().map(Cgroup::new));
    let mut entry = CgroupEntry::default();
    let mut oom = None;
    if let Some(cgroup) = &cgroup.0 {
        cgroup.create(&plan.resources).map_err(|e| e.to_string())?;
        oom = Some(OomWatch::new(cgroup));
        entry = cgroup.entry().map_err(|e| e.to_string())?;
    }
    let guest = slipway_launch::spawn(&install, &plan.pid, &entry).map_err(|e| e.to_string())?;
    let progress = Arc::new(Progress::new());
    let compiler = Compiler::Direct(Direct {
        install: install.clone(),
        cache_dir: args.store.cache_dir.clone(),
        cache_bytes: args.store.cache_bytes,
        progress: {
            let progress = progress.clone();
            Arc::new(move |text: &str| progress.say(text))
        },
    });
    let launch = slipway_launch::launch(
        &install,
        plan,
        LaunchOptions {
            bundle: Path::new("/"),
            root_mounts: Vec::new(),
            cache_dir: &args.store.cache_dir,
            cache_bytes: args.store.cache_bytes,
            is_exec: false,
        },
    );
    let budget = Budget::new(args.memory).and_then(|budget| budget.share());
    let budget = budget.map_err(|e| format!("memory budget: {e}"))?;
    let module = source
        .module
        .as_ref()
        .map(|path| std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display())));
    let module = module.transpose()?;
    let helpers = Helpers {
        budget: &budget,
        process: None,
        module: module.as_ref().map(AsFd::as_fd),
        enter: || Ok(Vec::new()),
        layer: None,
        compiler: &compiler,
        // The node's metrics are about its pods.
        counters: &Counters::default(),
        patience: None,
    };
    let resolved = tokio::select! {
        resolved = slipway_launch::resolve(&guest, &launch, helpers) => resolved.map(|_| true),
        number = signal() => {
            let _ = guest.kill(number);
            Ok(false)
        }
    };
    progress.done();
    let mut next_kill = || oom.as_mut()?.next_kill();
    let mut starting = resolved.map_err(|e| e.explained(&mut next_kill).to_string())?;
    let start = async {
        guest.loaded().await.map_err(|e| e.to_string())?;
        budget
            .set_held(guest.held(cgroup.0.as_ref()))
            .map_err(|e| format!("memory budget: {e}"))?;
        guest
            .start(&streams()?, false, args.memory)
            .map_err(|e| e.to_string())
    };
    let end = guest.wait();
    tokio::pin!(start, end);
    loop {
        tokio::select! {
            started = &mut start, if starting => {
                started?;
                starting = false;
            }
            end = &mut end => {
                if let Some(kill) = next_kill() {
                    terminal::error(&kill.to_string());
                } else if starting {
                    // Nobody asked for this end: the error says what happened.
                    start.await?;
                }
                return Ok(end);
            }
            number = signal() => {
                let _ = guest.kill(number);
                starting = false;
            }
        }
    }
}

fn streams() -> Result<[OwnedFd; 3], String> {
    let own = |fd: &dyn AsFd| {
        fd.as_fd()
            .try_clone_to_owned()
            .map_err(|e| format!("standard streams: {e}"))
    };
    Ok([
        own(&std::io::stdin())?,
        own(&std::io::stdout())?,
        own(&std::io::stderr())?,
    ])
}

/// Ctrl-C and a polite end reach this process alone, for the guest has a session of its own, and a build its group.
pub struct Signals([(Signal, i32); 3]);

impl Signals {
    pub fn new() -> Result<Self, String> {
        let stream = |kind: SignalKind| {
            let stream = signal(kind).map_err(|e| format!("signals: {e}"))?;
            Ok::<_, String>((stream, kind.as_raw_value()))
        };
        Ok(Self([
            stream(SignalKind::interrupt())?,
            stream(SignalKind::terminate())?,
            stream(SignalKind::hangup())?,
        ]))
    }

    /// The next signal's number.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (stream, number) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}
