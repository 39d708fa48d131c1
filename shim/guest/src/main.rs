//! `slipway-guest`: the process that is a Wasm container.
//!
//! It is started with nothing but a control socket (descriptor 3) and an engine; everything else arrives in a
//! [`Launch`]. The functions below are in the order in which things happen; `slipway_protocol` draws the handshake.

mod calls;
mod devices;
mod lsm;
mod mounts;
mod resolve;
mod seccomp;
mod sys;
mod user;

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use slipway_cache::{Lookup, Store};
use slipway_engine::{Call, Engine, Loaded, Outcome, Trap, Wasi};
use slipway_module::{Export, ExternKind};
use slipway_protocol::{CONTROL_FD, End, FromGuest, Launch, Tier, Timeline, ToGuest};

/// Why this guest does not become a container; told to the host in place of `Ready`.
enum Stop {
    /// A message for the host, which ends the guest.
    Tell(FromGuest),
    /// The host is gone: nobody to tell.
    Silent,
}

impl From<slipway_protocol::Error> for Stop {
    fn from(e: slipway_protocol::Error) -> Self {
        match e {
            slipway_protocol::Error::Closed => Self::Silent,
            other => Self::Tell(FromGuest::Failed(other.to_string())),
        }
    }
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Self::Tell(FromGuest::Failed(message))
    }
}

fn main() {
    // Through the bundle's loader the process would be named after it.
    let _ = rustix::thread::set_name(c"slipway-guest");
    // Early: a guest that is pid 1 of its namespace would ignore SIGTERM without a handler.
    sys::report_signals();
    sys::report_exhaustion();
    sys::give_handler_stack();
    let control = match sys::take_control() {
        Ok(control) => control,
        Err(e) => {
            sys::write_line(
                2,
                &format!("descriptor {CONTROL_FD}: {e}; a shim starts slipway-guest"),
            );
            sys::exit(1)
        }
    };
    let engine = Engine::new();
    let ended = match sys::check_interposed() {
        Ok(()) => become_container(&engine, control),
        Err(why) => Err(why.into()),
    };
    match ended {
        Ok(end) => {
            let _ = slipway_protocol::send(control, &FromGuest::Ended(end.clone()), &[]);
            sys::exit(i32::from(end.status))
        }
        Err(Stop::Tell(message)) => {
            // The host has the last word: it kills a guest that failed. This returns when the host itself is gone.
            // A seccomp profile may forbid either; then the end itself is all that can be told.
            if slipway_protocol::send(control, &message, &[]).is_ok() {
                let _ = slipway_protocol::recv::<ToGuest>(control);
            }
            sys::exit(1)
        }
        Err(Stop::Silent) => sys::exit(1),
    }
}

fn become_container(engine: &Engine, control: BorrowedFd<'_>) -> Result<End, Stop> {
    // Where the launch is not there yet: a pod's first container then finds it made.
    let prepared = launch_is_late(control).then(Prepared::make);
    slipway_protocol::send(control, &FromGuest::Waiting, &[])?;
    let (launch, given) = receive_launch(control)?;
    let container = given.container.as_ref().map(AsFd::as_fd);
    let mut steps = Timeline::default();
    steps.mark("launch");
    // What lies in the host's tree is opened before the skeleton covers a part of it.
    let store = Store::open(
        &launch.cache_dir,
        slipway_cache::Options {
            max_bytes: launch.cache_bytes,
        },
    )
    .map_err(|e| e.to_string())?;
    let user = user::User::open(&launch, container)?;
    let confinement = lsm::Confinement::open(&launch)?;
    mounts::enter_namespaces(&launch, container)?;
    steps.mark("namespaces");
    let (skeleton, allow_list) = prepared.map(|p| (p.skeleton, p.allow_list)).unzip();
    let mut files = match (given.container, skeleton) {
        (Some(container), _) => Files::Shared(mounts::Shared::of(container)?),
        // One that was made before the launch has no label.
        (None, made) => Files::Own(match made.filter(|_| launch.mount_label.is_empty()) {
            Some(made) => made?,
            None => mounts::Skeleton::make(&launch.mount_label)?,
        }),
    };
    let rootfs = match &mut files {
        Files::Shared(shared) => shared.rootfs()?,
        Files::Own(skeleton) => skeleton.mount_rootfs(&launch, user.as_ref())?,
    };
    steps.mark("mounts");
    join_cgroup(control, &launch)?;
    steps.mark("cgroup");
    let (mut module, entry) = find_module(control, &launch, given.module, rootfs.as_fd())?;
    let directory = working_directory(&launch, rootfs.as_fd())?;
    steps.mark("module");
    let artefact = find_artefact(control, &store, &launch, &module)?;
    steps.mark("artefact");
    let joins_pids = launch
        .join
        .iter()
        .any(|(_, kind)| *kind == libc::CLONE_NEWPID);
    if !joins_pids {
        slipway_protocol::send(control, &FromGuest::Resolved(steps.hand_over()), &[])?;
    }
    drop((store, rootfs));
    // A layer's file is memory of the pod.
    let path = std::mem::take(&mut module.path);
    drop(module);
    match files {
        Files::Shared(shared) => shared.enter(&artefact)?,
        Files::Own(skeleton) => skeleton.enter(&launch, &artefact)?,
    }
    // Its descriptor leads to the node's cache; what is mounted cannot be written.
    let _in_use = artefact
        .through(Path::new(OsStr::from_bytes(mounts::ARTEFACT.to_bytes())))
        .map_err(|e| e.to_string())?;
    if let Some(directory) = directory {
        // As runc does it: before the privileges go, so that the program may start where only root can look in.
        rustix::process::fchdir(&directory).map_err(|e| format!("process.cwd: {e}"))?;
    }
    let null = mounts::own_null();
    if let Some(null) = &null {
        sys::give_up_nodes_null(null).map_err(|e| format!("standard streams: {e}"))?;
    }
    steps.mark("skeleton");
    drop_privileges(&launch, user, confinement)?;
    steps.mark("privileges");
    if joins_pids {
        go_on_among_others(control, steps.hand_over())?;
    }
    if launch.program.with_parent {
        // Another user's process loses it (prctl(2)), and a new one does not have it, so not before.
        let kill = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(kill)
            .map_err(|e| format!("prctl(PR_SET_PDEATHSIG): {e}"))?;
    }
    slipway_confine::files("/", mounts::ROOTFS)?;
    steps.mark("landlock");
    allow_list
        .filter(seccomp::AllowList::is_own)
        .unwrap_or_else(seccomp::AllowList::make)
        .enter(launch.program.seccomp.as_ref())?;
    steps.mark("seccomp");
    let loaded = engine
        .load(mounts::ARTEFACT)
        .map_err(|e| format!("{path}: {e}{}", launch.program.loading_cause()))?;
    let call = entry_call(&loaded, &launch, &path, entry.as_deref())?;
    let wasi = wasi(&launch)?;
    sys::watch_stack(mounts::ARTEFACT);
    steps.mark("load");
    slipway_protocol::send(control, &FromGuest::Ready(steps), &[])?;
    match slipway_protocol::recv::<ToGuest>(control)? {
        (ToGuest::Start { terminal }, streams) => {
            take_streams(streams, terminal, null)?;
            sys::note_heap();
            if launch.program.drain {
                sys::drain::on_sigterm().map_err(|e| format!("slipway.dev/stop: drain: {e}"))?;
            }
            Ok(run(loaded, &wasi, &call))
        }
        _ => Err(Stop::from("expected Start".to_string())),
    }
}

/// What does not depend on the launch.
struct Prepared {
    /// An exec has no use for one.
    skeleton: Result<mounts::Skeleton, String>,
    allow_list: seccomp::AllowList,
}

impl Prepared {
    fn make() -> Self {
        Engine::warm_up();
        Self {
            skeleton: mounts::Skeleton::make(""),
            allow_list: seccomp::AllowList::make(),
        }
    }
}

/// The file systems that the program is to see.
enum Files {
    /// Of its container.
    Own(mounts::Skeleton),
    /// An exec's: those of the container that runs.
    Shared(mounts::Shared),
}

/// The host has not said yet what to become.
fn launch_is_late(control: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(control, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) == Ok(0)
}

/// What the host has opened for this guest.
struct Given {
    /// The directory in `/proc` of the container's process, for an exec.
    container: Option<OwnedFd>,
    /// The module, where it is no file of the container.
    module: Option<OwnedFd>,
}

/// Takes the launch, the budget, and what else the host has opened.
fn receive_launch(control: BorrowedFd<'_>) -> Result<(Launch, Given), Stop> {
    let (message, fds) = slipway_protocol::recv::<ToGuest>(control)?;
    let mut fds = fds.into_iter();
    let (ToGuest::Launch { share }, Some(budget), Some(body)) = (message, fds.next(), fds.next())
    else {
        return Err("expected Launch with two descriptors".to_string().into());
    };
    sys::obey_budget(&budget, share).map_err(|e| format!("memory budget: {e}"))?;
    let launch = slipway_protocol::read_launch(body)?;
    let given = Given {
        container: launch.is_exec.then(|| fds.next()).flatten(),
        module: fds.next(),
    };
    if launch.is_exec && given.container.is_none() {
        return Err("expected Launch with the container's process"
            .to_string()
            .into());
    }
    Ok((launch, given))
}

/// The entrypoint's module: given, or a file of the container, or, where it has no such file, the image's layer.
fn find_module(
    control: BorrowedFd<'_>,
    launch: &Launch,
    given: Option<OwnedFd>,
    rootfs: BorrowedFd<'_>,
) -> Result<(resolve::Module, Option<String>), Stop> {
    let found = match resolve::module(launch, given, rootfs) {
        Err(resolve::Refusal::Missing(what)) => {
            slipway_protocol::send(control, &FromGuest::NoEntrypoint(what), &[])?;
            match slipway_protocol::recv::<ToGuest>(control)? {
                (ToGuest::Layer, fds) => resolve::module(launch, fds.into_iter().next(), rootfs),
                _ => return Err("expected Layer".to_string().into()),
            }
        }
        found => found,
    };
    found.map_err(|refusal| Stop::Tell(refusal.into()))
}

/// The working directory, where it is not the root: found below the container's root like every path of an image.
fn working_directory(launch: &Launch, rootfs: BorrowedFd<'_>) -> Result<Option<OwnedFd>, String> {
    let cwd = launch.program.cwd.as_str();
    if cwd == "/" {
        return Ok(None);
    }
    let found = mounts::resolve_directory(rootfs, cwd);
    found.map(Some).map_err(|e| {
        let why = match e {
            rustix::io::Errno::NOTDIR => "not a directory".to_string(),
            e => e.to_string(),
        };
        format!("process.cwd {cwd:?}: {why}; set workingDir to a directory of the image, or leave it out")
    })
}

/// Moves this process into the container's cgroup, which the host has made meanwhile.
fn join_cgroup(control: BorrowedFd<'_>, launch: &Launch) -> Result<(), Stop> {
    let (ToGuest::Cgroup, tasks) = slipway_protocol::recv::<ToGuest>(control)? else {
        return Err("expected Cgroup".to_string().into());
    };
    for file in tasks {
        rustix::io::write(&file, b"0").map_err(|e| {
            let name = std::fs::read_link(mounts::magic(&file)).unwrap_or_default();
            format!("linux.cgroupsPath: join {}: {e}", name.display())
        })?;
    }
    mounts::unshare_cgroup(launch)?;
    Ok(())
}

fn take_streams(
    streams: Vec<OwnedFd>,
    terminal: bool,
    null: Option<OwnedFd>,
) -> Result<(), String> {
    let streams: [OwnedFd; 3] = streams
        .try_into()
        .map_err(|_| "expected Start with three descriptors".to_string())?;
    let failed = |e: std::io::Error| format!("standard streams: {e}");
    sys::set_standard_streams(&streams).map_err(failed)?;
    if let Some(null) = null {
        sys::give_up_nodes_null(&null).map_err(failed)?;
    }
    if terminal {
        // This process leads a session of its own since its start; so Ctrl-C reaches it.
        rustix::process::ioctl_tiocsctty(&streams[0]).map_err(|e| format!("terminal: {e}"))?;
    }
    Ok(())
}

/// The artefact from the cache, or, where the cache has none, after the host has compiled it.
fn find_artefact(
    control: BorrowedFd<'_>,
    store: &Store,
    launch: &Launch,
    module: &resolve::Module,
) -> Result<slipway_cache::Artefact, Stop> {
    let lookup = || {
        module
            .lookup(store, launch.program.tier)
            .map_err(|e| format!("{}: {e}", module.path))
    };
    let found = |artefact: slipway_cache::Artefact| {
        let facts = artefact.facts();
        facts
            .fit(Some(sys::budget_limit()))
            .map_err(|e| format!("{}: {e}", module.path))?;
        sys::expect_memories(facts);
        calls::note_names(&artefact);
        Ok(artefact)
    };
    let damaged = match lookup()? {
        (Lookup::Hit(artefact), tier) => {
            let artefact = found(artefact)?;
            if tier == slipway_cache::Tier::Quick && launch.program.tier == Tier::Auto {
                let message = FromGuest::Unoptimised(module.description());
                slipway_protocol::send(control, &message, &[module.file.as_fd()])?;
            }
            return Ok(artefact);
        }
        (Lookup::Refused(reason), _) => return Err(format!("{}: {reason}", module.path).into()),
        (Lookup::Miss { damaged }, _) => damaged,
    };
    let need = FromGuest::NeedArtefact {
        module: module.description(),
        damaged,
    };
    slipway_protocol::send(control, &need, &[module.file.as_fd()])?;
    match slipway_protocol::recv::<ToGuest>(control)?.0 {
        ToGuest::Artefact => {}
        ToGuest::NoArtefact(reason) => return Err(format!("{}: {reason}", module.path).into()),
        _ => return Err("expected Artefact".to_string().into()),
    }
    match lookup()? {
        (Lookup::Hit(artefact), _) => found(artefact),
        (Lookup::Refused(reason), _) => Err(format!("{}: {reason}", module.path).into()),
        (Lookup::Miss { damaged }, _) => Err(format!(
            "{}: the artefact was compiled but is gone again ({}); is the cache in {} too small?",
            module.path,
            damaged.unwrap_or_else(|| "evicted".into()),
            launch.cache_dir
        )
        .into()),
    }
}

/// Limits, then the user: after this call the process is what the spec's user may be, without any capability.
fn drop_privileges(
    launch: &Launch,
    user: Option<user::User<'_>>,
    confinement: lsm::Confinement<'_>,
) -> Result<(), String> {
    for &(resource, soft, hard) in &launch.program.rlimits {
        slipway_sys::set_rlimit(resource, soft, hard).map_err(|e| {
            format!("process.rlimits: resource {resource}, soft {soft}, hard {hard}: {e}")
        })?;
    }
    if let Some(seconds) = launch.program.cpu_time {
        sys::report_cpu_time(seconds);
        // SIGXCPU at the soft limit; the hard one is for a program that is in the kernel.
        slipway_sys::set_rlimit(libc::RLIMIT_CPU as i32, seconds, seconds.saturating_add(1))
            .map_err(|e| format!("CPU-time budget of {seconds} s: {e}"))?;
    }
    if let Some(mask) = launch.program.umask {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
    }
    slipway_confine::leave_session_keyring()?;
    if let Some(user) = user {
        user.enter()?;
    }
    slipway_sys::become_user(
        launch.program.uid,
        launch.program.gid,
        &launch.program.groups,
    )
    .map_err(|e| format!("process.user: {e}"))?;
    // A profile is the program's, and need not allow what became of this process so far. With no_new_privs, one that has a profile
    // already could not change it.
    confinement.enter()?;
    slipway_sys::set_no_new_privs()
}

/// Goes on in the pid namespace that the launch names, where others are: a sidecar's, a debugging container's processes. They
/// see this one, and trace it if they may, so it comes among them when it has nothing left to take: as a new process, for
/// none can change its own pid namespace.
fn go_on_among_others(control: BorrowedFd<'_>, steps: Timeline) -> Result<(), Stop> {
    let place = slipway_sys::go_on_in_child().map_err(|e| {
        format!("linux.namespaces: a process in the pod's pid namespace: {e}; a limit of processes must have room for two")
    })?;
    match place {
        slipway_sys::Place::Child => Ok(()),
        slipway_sys::Place::Parent(child, told) => {
            let pid = child.pid;
            let message = FromGuest::Replaced { pid, steps };
            slipway_protocol::send(control, &message, &[child.pidfd.as_fd()])?;
            let _ = rustix::io::write(&told, b"1");
            sys::exit(0)
        }
    }
}

/// The call that the entrypoint means: `_start`, or the named function, with the command's arguments where it has parameters.
fn entry_call(
    loaded: &Loaded<'_>,
    launch: &Launch,
    path: &str,
    function: Option<&str>,
) -> Result<Call, String> {
    let function = function.unwrap_or(slipway_module::START);
    let arguments = launch.program.args.get(1..).unwrap_or_default();
    loaded.call(function, arguments).map_err(|e| {
        // The checker's text is the one that a module has met before it was compiled.
        let exports = loaded
            .exports()
            .into_iter()
            .map(|(name, signature)| Export {
                name,
                kind: match signature {
                    Some(_) => ExternKind::Function,
                    // Whatever it is, it cannot be called.
                    None => ExternKind::Global,
                },
                signature,
            });
        let exports: Vec<_> = exports.collect();
        match slipway_module::check_entry(&exports, function, Some(arguments.len())) {
            Err(problem) => format!("{path}: {problem}"),
            Ok(()) => format!("{path}: function {function:?}: {e}"),
        }
    })
}

fn wasi(launch: &Launch) -> Result<Wasi, String> {
    let mut env = launch.program.env.clone();
    let mut preopens = Vec::new();
    if launch.program.cwd != "/" {
        // WASI has no working directory. Libraries that know one take it from PWD (Go) or a preopen named ".", which is this
        // process's; "/" comes last, for wasi-libc takes the last of equal length and ignores a leading slash.
        preopens.push(".:.".to_string());
        if !env.iter().any(|e| e.starts_with("PWD=")) {
            env.push(format!("PWD={}", launch.program.cwd));
        }
    }
    preopens.push(format!("/:{}/.", mounts::ROOTFS));
    Wasi::new(&launch.program.args, &env, &preopens).map_err(|e| e.to_string())
}

fn run(loaded: Loaded<'_>, wasi: &Wasi, call: &Call) -> End {
    match loaded.run(wasi, call) {
        Outcome::Returned(values) => {
            for value in values {
                sys::write_line(1, &value);
            }
            End {
                status: 0,
                reason: String::new(),
                out_of_memory: false,
            }
        }
        Outcome::Exited(status) => abnormal(status as u8, None),
        Outcome::Trapped(trap) => abnormal(134, Some(trap)),
    }
}

/// An end that was not asked for: says why on stderr, and whether the memory budget had a part in it.
fn abnormal(status: u8, trap: Option<Trap>) -> End {
    let refused = sys::refused_growth().filter(|_| status != 0);
    let reason = match (&refused, trap) {
        (Some(refusal), _) => refusal.to_string(),
        (None, Some(Trap { reason, stack })) if stack.is_empty() => format!("trap: {reason}"),
        (None, Some(Trap { reason, stack })) => {
            format!("trap: {reason} (calling stack: {})", calls::list(&stack))
        }
        (None, None) => String::new(),
    };
    if !reason.is_empty() {
        sys::write_line(2, &format!("slipway: {reason}"));
    }
    End {
        status: if refused.is_some() { 137 } else { status },
        reason,
        out_of_memory: refused.is_some(),
    }
}

/// Text with a NUL byte can be no path; names the field in the error.
fn path(text: &str, field: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{field}: {text:?} contains a NUL byte"))
}
