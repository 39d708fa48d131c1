use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use slipway_cache::Tier;
use slipway_cgroup::Cgroup;
use slipway_protocol::Purpose;
use slipway_sys::{CgroupEntry, Child, Exec};

use super::job::{Arrival, Job, Running, State};
use super::*;
use crate::record::{Record, record};
use crate::wire::Order;

/// A worker of a queue of its own, which nobody works off but the test.
struct Queue {
    worker: Worker,
    directory: tempfile::TempDir,
}

impl Queue {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Directory::make(directory.path()).unwrap();
        let worker = Worker::new(directory.path().to_str().unwrap());
        Self {
            worker: worker.unwrap().unwrap(),
            directory,
        }
    }

    fn keeps(&self) -> Vec<Record> {
        let directory = Directory::open(self.directory.path()).unwrap();
        let jobs = directory.jobs().unwrap();
        jobs.into_iter().map(|job| job.record).collect()
    }

    /// Puts a job into the queue.
    fn has(&mut self, record: &Record, state: State) -> String {
        let name = record.key().file_name();
        let directory = &self.worker.directory;
        let copied = directory.copy(&name, 1, record, module().as_fd());
        copied.unwrap();
        directory.keep(&name, 1, record).unwrap();
        let mut job = Job::new(record.clone(), 1, state);
        job.kept = Some(record.clone());
        self.worker.jobs.insert(name.clone(), job);
        name
    }

    /// A shim asks; where it hears the worker.
    fn asks(&mut self, record: &Record, waits: bool) -> OwnedFd {
        let order = Order {
            record: record.clone(),
            damaged: None,
            purpose: waits.then(Purpose::default),
        };
        let client = self.worker.number();
        let (own, shims) = slipway_protocol::pair().unwrap();
        self.worker.clients.insert(client, own);
        self.worker.submit(client, order, module());
        shims
    }

    /// Takes what the next thread tells.
    fn is_told(&mut self) {
        let (of, event) = self.worker.events.recv().unwrap();
        self.worker.take(of, event);
    }
}

fn module() -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"a").unwrap();
    file.into()
}

/// A process in the place of a compiler that was begun a while ago, when nobody waited for it.
struct Compiler(Child);

impl Compiler {
    fn new() -> Self {
        let exec = Exec {
            program: c"/bin/sleep".into(),
            argv: vec![c"sleep".into(), c"600".into()],
            envp: Vec::new(),
            fds: Vec::new(),
            directory: None,
            read_only: None,
            with_parent: true,
        };
        let compiler = Self(slipway_sys::spawn(exec, 0, &CgroupEntry::default()).unwrap());
        slipway_compile::set_background(compiler.0.pid, true);
        compiler
    }

    fn runs(&self, since: Duration) -> State {
        let mut running = Running::new(None, false, false);
        running.since = ago(since);
        running.compiler = Some((self.0.pid, self.0.pidfd.try_clone().unwrap()));
        State::Running(running)
    }

    fn nice(&self) -> i32 {
        let pid = rustix::process::Pid::from_raw(self.0.pid);
        rustix::process::getpriority_process(pid).unwrap()
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let _ = slipway_sys::pidfd_kill(self.0.pidfd.as_fd(), libc::SIGKILL);
        let minute = Instant::now() + Duration::from_secs(60);
        let _ = slipway_sys::readable_until([self.0.pidfd.as_fd()], minute);
        let _ = slipway_sys::reap(self.0.pid);
    }
}

fn ago(time: Duration) -> Instant {
    Instant::now().checked_sub(time).unwrap()
}

#[test]
fn what_a_job_becomes_outlives_its_worker() {
    let mut queue = Queue::new();
    let first = record("a", 1, Tier::Quick);
    queue.has(&first, State::Waiting);
    let full_afterwards = Record {
        full_afterwards: true,
        ..first
    };
    queue.asks(&full_afterwards, true);
    assert_eq!(queue.keeps(), [full_afterwards]);
}

#[test]
fn who_asks_for_what_was_just_taken_out_of_the_queue_puts_it_in_again() {
    let mut queue = Queue::new();
    let compiler = Compiler::new();
    let unwanted = record("a", 1, Tier::Full);
    let name = queue.has(&unwanted, compiler.runs(Duration::ZERO));
    assert!(queue.worker.forget(&name));
    assert_eq!(queue.keeps(), []);
    queue.asks(&unwanted, true);
    assert_eq!(queue.keeps(), [unwanted]);
}

#[test]
fn a_start_that_comes_to_a_long_compile_makes_haste_for_a_while() {
    let mut queue = Queue::new();
    let compiler = Compiler::new();
    let long = record("a", 1, Tier::Full);
    let name = queue.has(&long, compiler.runs(2 * LONG));
    queue.asks(&long, false);
    assert_eq!(compiler.nice(), 19);
    queue.asks(&long, true);
    assert_eq!(compiler.nice(), 0);
    queue.worker.lower_long();
    assert_eq!(compiler.nice(), 0);
    let job = queue.worker.jobs.get_mut(&name).unwrap();
    job.running().unwrap().waited_since = Some(ago(LONG));
    queue.worker.lower_long();
    assert_eq!(compiler.nice(), 19);
    // Once: else one pod after the other would keep it there.
    queue.asks(&long, true);
    assert_eq!(compiler.nice(), 19);
}

#[test]
fn the_cgroup_of_a_worker_that_was_killed_elsewhere_is_removed() {
    let path = tempfile::tempdir().unwrap();
    let directory = Directory::make(path.path()).unwrap();
    let name = cgroup_name(&directory).unwrap();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    // It was started from a cgroup in one beside this process's.
    let around = format!("slipway-test-{}", std::process::id());
    let parent = Cgroup::beside(&own, &around).unwrap();
    parent.make_limited(1 << 30).unwrap();
    let elsewhere: String = own
        .lines()
        .map(|line| {
            let above = line.rsplit_once('/').unwrap().0;
            format!("{above}/{around}/worker\n")
        })
        .collect();
    let left = Cgroup::beside(&elsewhere, &name).unwrap();
    left.make_limited(1 << 30).unwrap();
    directory.keep_cgroup(&elsewhere);
    assert_eq!(directory.last_cgroup(), elsewhere);
    let worker = Worker::new(path.path().to_str().unwrap()).unwrap();
    assert!(worker.is_some());
    assert_eq!(directory.last_cgroup(), own);
    let left = named("/sys/fs/cgroup".as_ref(), &name);
    parent.remove().unwrap();
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// The directories of that name below this one.
fn named(directory: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    let found = directories.flat_map(|entry| match entry.file_name() == name {
        true => vec![entry.path()],
        false => named(&entry.path(), name),
    });
    found.collect()
}

#[test]
fn who_has_much_in_the_queue_finds_it_full_before_others_do() {
    let mut queue = Queue::new();
    let of = |tenant: &str, number: usize| Record {
        tenant: tenant.into(),
        ..record(&format!("{tenant}-{number}"), 1, Tier::Full)
    };
    let mut kept = 0;
    while queue.worker.has_place("new", &of("many", kept)) {
        let new = of("many", kept);
        let job = Job::new(new.clone(), 1, State::Waiting);
        queue.worker.jobs.insert(new.key().file_name(), job);
        kept += 1;
        assert!(queue.worker.has_place("new", &of("few", 0)), "{kept}");
    }
    assert_eq!(kept, 128);
    let large = |tenant| Record {
        module: slipway_protocol::Module {
            size: 512 << 20,
            ..of(tenant, 0).module
        },
        ..of(tenant, 0)
    };
    assert!(!queue.worker.has_place("new", &large("few")));
}

#[test]
fn a_start_for_whose_module_there_is_no_place_asks_again_and_what_nobody_waits_for_is_not_taken() {
    let mut queue = Queue::new();
    let mut kept = 0;
    let new = |number| record(&format!("new {number}"), 1, Tier::Full);
    while queue.worker.has_place("new", &new(kept)) {
        let job = Job::new(new(kept), 1, State::Waiting);
        queue.worker.jobs.insert(new(kept).key().file_name(), job);
        kept += 1;
    }
    let hears = |queue: &mut Queue, waits| {
        let shim = queue.asks(&new(1000), waits);
        queue.is_told();
        slipway_protocol::recv::<FromWorker>(shim.as_fd())
            .unwrap()
            .0
    };
    assert!(matches!(hears(&mut queue, true), FromWorker::Full));
    let refused = hears(&mut queue, false);
    assert!(matches!(
        refused,
        FromWorker::Ended(Err(CompileError::Failed(_)))
    ));
    assert_eq!(queue.worker.jobs.len(), kept);
}

#[test]
fn a_copy_that_comes_late_does_not_take_the_place_of_the_one_that_was_given_since() {
    let mut queue = Queue::new();
    let asked = record("a", 1, Tier::Full);
    let name = queue.has(&asked, State::Arriving(ago(LONG)));
    let directory = Arc::clone(&queue.worker.directory);
    let path = queue.directory.path().join(crate::directory::NAME);
    let copies = || {
        let entries = std::fs::read_dir(&path).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("tmp-")).count()
    };
    // That of a volume which did not answer until now.
    let late = queue.worker.jobs[&name].thread;
    let copied = directory.copy(&name, late, &asked, module().as_fd());
    copied.unwrap();
    let _shim = queue.asks(&asked, true);
    let (of, event) = queue.worker.events.recv().unwrap();
    assert!(matches!(event, Event::Arrived(Arrival::Copied)));
    assert_eq!(copies(), 2);
    let late = (name.clone(), late);
    queue.worker.take(late, Event::Arrived(Arrival::Copied));
    assert_eq!(copies(), 1);
    let job = &queue.worker.jobs[&name];
    assert!(matches!(job.state, State::Arriving(_)));
    assert_eq!(of, (name, job.thread));
}

#[test]
fn a_job_is_of_the_tenants_that_wait_for_it() {
    let mut queue = Queue::new();
    let first = record("a", 1, Tier::Full);
    let name = queue.has(&first, State::Waiting);
    let own = queue.worker.jobs[&name].tenants();
    let of = |tenant: &str| Record {
        tenant: tenant.into(),
        ..first.clone()
    };
    // Who only listens, and who waits no longer, does not count.
    queue.asks(&of("listens"), false);
    assert_eq!(queue.worker.jobs[&name].tenants(), own);
    for tenant in ["other", "team", "other"] {
        queue.asks(&of(tenant), true);
    }
    let tenants = queue.worker.jobs[&name].tenants();
    assert_eq!((tenants.len(), tenants.contains(&own[0])), (2, true));
    queue.worker.jobs.get_mut(&name).unwrap().listeners.clear();
    assert_eq!(queue.worker.jobs[&name].tenants(), own);
}
