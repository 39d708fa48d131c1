//! From a launch to a program that runs, in the order in which things happen. The order is safety: what is opened before a mount hides
//! it, what is asked before a privilege goes, what is given up before hostile bytes are loaded.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use slipway_cache::{Artefact, Store};
use slipway_protocol::{Cause, End, FromGuest, Launch, Timeline, ToGuest};

use crate::engine::{Engine, Loaded, Outcome, Preopen, Run, Trap};
use crate::launch::Given;
use crate::lsm::Confinement;
use crate::seccomp::{self, AllowList};
use crate::sys::{self, budget, drain};
use crate::user::User;
use crate::{
    Stop, artefact, calls, devices, entrypoint, launch, mounts, namespaces, paths, privileges,
};

/// Makes a container of this process, and runs its program to the end.
pub fn run<E: Engine>(engine: &E, control: BorrowedFd<'_>) -> Result<End, Stop> {
    // Where the launch is not there yet: a pod's first container then finds it made.
    let prepared = launch::is_late(control).then(Prepared::make::<E>);
    slipway_protocol::send(control, &FromGuest::Waiting, &[])?;
    let (launch, given) = launch::receive(control)?;
    let mut steps = Timeline::default();
    steps.mark("launch");
    let (skeleton, allow_list) = prepared.map(|p| (p.skeleton, p.allow_list)).unzip();
    let found = Found::look(control, &launch, given, skeleton, &E::version(), &mut steps)?;
    engine.expect(found.artefact.facts());
    calls::note_names(&found.artefact);
    let inside = found.enter(control, &launch, allow_list, &mut steps)?;
    let module = &inside.module;
    let loaded = engine
        .load(mounts::ARTEFACT)
        .map_err(|e| format!("{module}: {e}{}", launch.program.loading_cause()))?;
    seccomp::end_of_loading()?;
    let (env, preopens) = surroundings(&launch);
    let run = Run {
        function: inside.function.as_deref(),
        args: &launch.program.args,
        env: &env,
        preopens: &preopens,
    };
    let program = loaded.prepare(&run).map_err(|e| format!("{module}: {e}"))?;
    steps.mark("load");
    slipway_protocol::send(control, &FromGuest::Ready(steps), &[])?;
    let (ToGuest::Start { terminal }, streams) = slipway_protocol::recv::<ToGuest>(control)? else {
        return Err("expected Start".to_string().into());
    };
    take_streams(streams, terminal, inside.null)?;
    budget::note_heap();
    if launch.program.drain {
        drain::on_sigterm().map_err(|e| format!("slipway.dev/stop: drain: {e}"))?;
    }
    Ok(end_of(program()))
}

/// What does not depend on the launch.
struct Prepared {
    /// An exec has no use for one.
    skeleton: Result<mounts::Skeleton, String>,
    allow_list: AllowList,
}

impl Prepared {
    fn make<E: Engine>() -> Self {
        E::warm_up();
        Self {
            skeleton: mounts::Skeleton::make(""),
            allow_list: AllowList::make(),
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

/// What the container is made of, found while this process is in the host's tree, as root.
struct Found<'launch> {
    files: Files,
    user: Option<User<'launch>>,
    confinement: Confinement<'launch>,
    directory: Option<OwnedFd>,
    artefact: Artefact,
    /// As the container names it.
    module: String,
    function: Option<String>,
}

impl<'launch> Found<'launch> {
    fn look(
        control: BorrowedFd<'_>,
        launch: &'launch Launch,
        given: Given,
        skeleton: Option<Result<mounts::Skeleton, String>>,
        engine: &str,
        steps: &mut Timeline,
    ) -> Result<Self, Stop> {
        let container = given.container.as_ref().map(AsFd::as_fd);
        // What lies in the host's tree is opened before the skeleton covers a part of it.
        let options = slipway_cache::Options {
            max_bytes: launch.cache_bytes,
        };
        let store = Store::open(&launch.cache_dir, options).map_err(|e| e.to_string())?;
        let user = User::open(launch, container)?;
        let confinement = Confinement::open(launch)?;
        namespaces::enter(launch, container)?;
        steps.mark("namespaces");
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
            Files::Own(skeleton) => skeleton.mount_rootfs(launch, user.as_ref())?,
        };
        steps.mark("mounts");
        launch::join_cgroup(control, launch)?;
        steps.mark("cgroup");
        let (module, function) = entrypoint::find(control, launch, given.module, rootfs.as_fd())?;
        let directory = working_directory(launch, rootfs.as_fd())?;
        steps.mark("module");
        let artefact = artefact::find(control, &store, launch, &module, engine)?;
        steps.mark("artefact");
        // They lead to the node; a layer's file is memory of the pod.
        drop((store, rootfs, module.file));
        Ok(Self {
            files,
            user,
            confinement,
            directory,
            artefact,
            module: module.path,
            function,
        })
    }

    /// Makes the container's tree this process's root, and gives up everything that its program is not to have.
    fn enter(
        self,
        control: BorrowedFd<'_>,
        launch: &Launch,
        allow_list: Option<AllowList>,
        steps: &mut Timeline,
    ) -> Result<Inside, Stop> {
        let kinds = launch.join.iter().map(|(_, kind)| *kind);
        let joins_pids = kinds.into_iter().any(|kind| kind == libc::CLONE_NEWPID);
        if !joins_pids {
            slipway_protocol::send(control, &FromGuest::Resolved(steps.hand_over()), &[])?;
        }
        match self.files {
            Files::Shared(shared) => shared.enter(&self.artefact)?,
            Files::Own(skeleton) => skeleton.enter(launch, &self.artefact)?,
        }
        // Its descriptor leads to the node's cache; what is mounted cannot be written.
        let artefact = self
            .artefact
            .through(Path::new(OsStr::from_bytes(mounts::ARTEFACT.to_bytes())))
            .map_err(|e| e.to_string())?;
        if let Some(directory) = self.directory {
            // As runc does it: before the privileges go, so that the program may start where only root can look in.
            rustix::process::fchdir(&directory).map_err(|e| format!("process.cwd: {e}"))?;
        }
        let null = devices::own_null();
        if let Some(null) = &null {
            sys::give_up_nodes_null(null).map_err(|e| format!("standard streams: {e}"))?;
        }
        steps.mark("skeleton");
        privileges::drop_all(launch, self.user, self.confinement)?;
        steps.mark("privileges");
        if joins_pids {
            privileges::go_on_among_others(control, steps.hand_over())?;
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
            .filter(AllowList::is_own)
            .unwrap_or_else(AllowList::make)
            .enter(launch.program.seccomp.as_ref())?;
        steps.mark("seccomp");
        Ok(Inside {
            module: self.module,
            function: self.function,
            null,
            _in_use: artefact,
        })
    }
}

/// What a process in its container keeps.
struct Inside {
    /// As the container names it.
    module: String,
    function: Option<String>,
    /// The container's own null device.
    null: Option<OwnedFd>,
    /// While it is open, the cache does not remove it.
    _in_use: Artefact,
}

/// The program's environment, and the directories that it finds open.
fn surroundings(launch: &Launch) -> (Vec<String>, Vec<Preopen>) {
    let mut env = launch.program.env.clone();
    let mut preopens = Vec::new();
    if launch.program.cwd != "/" {
        // WASI has no working directory. Libraries that know one take it from PWD (Go) or a preopen named ".", which is this
        // process's; "/" comes last, for wasi-libc takes the last of equal length and ignores a leading slash.
        preopens.push(Preopen {
            name: ".",
            path: ".".to_string(),
        });
        if !env.iter().any(|e| e.starts_with("PWD=")) {
            env.push(format!("PWD={}", launch.program.cwd));
        }
    }
    preopens.push(Preopen {
        name: "/",
        path: format!("{}/.", mounts::ROOTFS),
    });
    (env, preopens)
}

/// The working directory, where it is not the root: found below the container's root like every path of an image.
fn working_directory(launch: &Launch, rootfs: BorrowedFd<'_>) -> Result<Option<OwnedFd>, String> {
    let cwd = launch.program.cwd.as_str();
    if cwd == "/" {
        return Ok(None);
    }
    let found = paths::resolve_directory(rootfs, cwd);
    found.map(Some).map_err(|e| {
        let why = match e {
            rustix::io::Errno::NOTDIR => "not a directory".to_string(),
            e => e.to_string(),
        };
        format!("process.cwd {cwd:?}: {why}; set workingDir to a directory of the image, or leave it out")
    })
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

/// How the program's end is told.
fn end_of(outcome: Outcome) -> End {
    match outcome {
        Outcome::Returned(values) => {
            for value in values {
                sys::write_line(1, &value);
            }
            End::new(0, Cause::Status, "")
        }
        Outcome::Exited(status) => abnormal(status as u8, None),
        Outcome::Trapped(trap) => abnormal(134, Some(trap)),
    }
}

/// An end that was not asked for: says why on stderr, and whether the memory budget had a part in it.
fn abnormal(status: u8, trap: Option<Trap>) -> End {
    let refused = budget::refusal().filter(|_| status != 0);
    let end = match (refused, trap) {
        (Some(refusal), _) => End::new(137, Cause::OutOfMemory, refusal.to_string()),
        (None, Some(Trap { reason, stack })) => {
            let calls = match stack.is_empty() {
                true => String::new(),
                false => format!(" (calling stack: {})", calls::list(&stack)),
            };
            End::new(status, Cause::Trap, format!("trap: {reason}{calls}"))
        }
        (None, None) => End::new(status, Cause::Status, ""),
    };
    if !end.reason.is_empty() {
        sys::write_line(2, &format!("slipway: {}", end.reason));
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(cwd: &str, env: &[&str]) -> Launch {
        let mut launch = Launch::default();
        launch.program.cwd = cwd.into();
        launch.program.env = env.iter().map(ToString::to_string).collect();
        launch
    }

    #[test]
    fn a_program_learns_its_working_directory_where_it_is_not_the_root() {
        let names = |launch: &Launch| {
            let (env, preopens) = surroundings(launch);
            let names: Vec<_> = preopens.iter().map(|p| p.name).collect();
            (env.join(" "), names.join(" "))
        };
        assert_eq!(names(&launch("/", &["A=1"])), ("A=1".into(), "/".into()));
        assert_eq!(
            names(&launch("/work", &[])),
            ("PWD=/work".into(), ". /".into())
        );
        // The pod's own word counts.
        assert_eq!(
            names(&launch("/work", &["PWD=/x"])),
            ("PWD=/x".into(), ". /".into())
        );
    }

    #[test]
    fn a_working_directory_that_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let root = std::fs::File::open(directory.path()).unwrap();
        let of = |cwd| working_directory(&launch(cwd, &[]), root.as_fd());
        assert!(of("/").is_ok_and(|found| found.is_none()));
        let said = of("/file").unwrap_err();
        assert!(
            said.starts_with("process.cwd \"/file\": not a directory; set workingDir"),
            "{said}"
        );
    }

    #[test]
    fn ends_have_the_statuses_of_containers() {
        let trap = |stack: &[u32]| {
            let trap = Trap {
                reason: "unreachable".into(),
                stack: stack.to_vec(),
            };
            end_of(Outcome::Trapped(trap))
        };
        assert_eq!(trap(&[]), End::new(134, Cause::Trap, "trap: unreachable"));
        assert_eq!(
            trap(&[2]).reason,
            "trap: unreachable (calling stack: function 2)"
        );
        assert_eq!(end_of(Outcome::Exited(7)).status, 7);
        assert_eq!(end_of(Outcome::Returned(vec![])).status, 0);
    }
}
