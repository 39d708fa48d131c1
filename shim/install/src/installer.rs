//! `slipway installer`: the pod of a DaemonSet. It touches nothing of the node's but `/opt/slipway`; what changes the node
//! is `slipway install` on the host, a transient unit that systemd runs for it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use slipway_systemd::{Call, Property, Systemd};

use crate::cluster::{Cluster, ConfigMap, INSTALLED, STATE, VERSION};
use crate::journal::{Journal, Lock};
use crate::layout::{Layout, Tree};
use crate::metrics::{self, Health, Metrics};
use crate::report::say;
use crate::wish::{self, Known, State, Step, Wish};

/// The units on the host: of what changes the node, and of what only looks at it.
const UNIT: &str = "slipway-install.service";
const DOCTOR: &str = "slipway-doctor.service";
/// In the directory of an installation's state: what the doctor hands over.
const REPORT: &str = "report";
/// How often the unit and its log are looked at.
const FOLLOW: Duration = Duration::from_millis(200);
/// How often the user's wish is looked at.
const WATCH: Duration = Duration::from_secs(5);
/// How often the node's labels are looked at, while nothing is to be done.
const LABELS: Duration = Duration::from_secs(60);
/// How long after a failure it is tried again; twice as long after each further one, up to the second.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// How long the kubelet may take to tell of the handlers: it asks containerd every few seconds, and tells every 10 s.
const KUBELET: Duration = Duration::from_secs(180);
/// How long somebody else may hold the lock.
const LOCK: Duration = Duration::from_secs(300);

/// The installer of one node.
#[derive(Debug)]
pub struct Installer {
    /// The Node's name.
    pub node: String,
    /// The tree in the image.
    pub source: PathBuf,
    /// The node as this pod sees it.
    pub host: Host,
    /// The artefact cache, as this pod sees it.
    pub cache_dir: PathBuf,
    /// Where metrics and probes are served.
    pub metrics_address: String,
    /// Where the user's wish is.
    pub wish: ConfigMap,
    /// End when it is installed.
    pub once: bool,
    /// An uninstall removes files and cache, too.
    pub purge: bool,
    /// The handlers that the kubelet must tell of.
    pub handlers: Vec<String>,
    /// What `slipway install` and `slipway uninstall` are told.
    pub arguments: Vec<String>,
}

/// What an installer remembers.
#[derive(Debug, Default)]
struct Memory {
    /// It has installed, and seen it.
    done: bool,
    /// It has taken away all that could be.
    cleaned: bool,
    /// The wish that it read last.
    wish: Option<Wish>,
}

impl Installer {
    /// Brings the node to what the user wishes, and looks after it until the process is ended. One that is to end does so when it has
    /// installed.
    ///
    /// # Errors
    /// This is no pod, or the image is not whole; for one that is to end, why the node is as it was before.
    pub fn run(&self) -> Result<(), String> {
        let cluster = Cluster::of_this_pod()?;
        let tree = Tree::read(&self.source).map_err(|e| e.to_string())?;
        let health = Arc::new(Health::default());
        if !self.once {
            let metrics = Metrics {
                cache_dir: self.cache_dir.clone(),
                counters_dir: slipway_counters::DIR.into(),
            };
            metrics::serve(&self.metrics_address, metrics, health.clone())?;
        }
        let mut memory = Memory::default();
        let mut patience = AGAIN;
        loop {
            let round = self.round(&cluster, &tree, &mut memory, &health);
            match round {
                Ok(Step::Rest) if self.once && memory.done => return Ok(()),
                Ok(Step::Rest) if self.once => {
                    return Err(format!("ConfigMap {} does not ask for Slipway", self.wish));
                }
                Ok(Step::Rest) => {
                    patience = AGAIN;
                    self.watch(&cluster, memory.wish, LABELS);
                }
                Ok(_) => {}
                Err(e) if self.once => return Err(e),
                Err(e) => {
                    say(&format!("{e}\nagain in {} s", patience.as_secs()));
                    self.watch(&cluster, memory.wish, patience);
                    patience = (patience * 2).min(AGAIN_AT_MOST);
                }
            }
        }
    }

    /// One step towards the wish.
    fn round(
        &self,
        cluster: &Cluster,
        tree: &Tree,
        memory: &mut Memory,
        health: &Health,
    ) -> Result<Step, String> {
        let _alone = self.host.alone()?;
        // In this order: `wish` says why.
        let node = cluster.node(&self.node)?;
        let wish = cluster.wish(&self.wish)?;
        if memory.wish.replace(wish) != Some(wish) {
            say(&format!("node {}: wish: {wish:?}", self.node));
        }
        let known = Known {
            state: node.state(),
            open: node.open(),
            done: memory.done,
            traces: !memory.cleaned && (node.was_installed() || self.traces()),
        };
        let step = wish::next(wish, known);
        health.installed.store(known.open, Ordering::Relaxed);
        let ready = step == Step::Rest && memory.done;
        health.ready.store(ready, Ordering::Relaxed);
        match step {
            Step::Rest => {}
            Step::Mark(state) => {
                memory.cleaned = false;
                let mut labels = vec![(STATE, Some(state.word()))];
                if state == State::Uninstalling {
                    memory.done = false;
                    labels.push((INSTALLED, Some("false")));
                }
                cluster.label(&self.node, &labels)?;
            }
            Step::Install => {
                self.install(cluster, tree)?;
                memory.done = true;
                say(&format!("node {}: installed", self.node));
            }
            Step::Remove { force } => {
                self.remove(tree, node.was_installed(), force)?;
                let labels = [(INSTALLED, None), (VERSION, None), (STATE, None)];
                cluster.label(&self.node, &labels)?;
                memory.cleaned = true;
                say(&format!("node {}: clean", self.node));
            }
        }
        Ok(step)
    }

    /// Waits, unless the user's wish becomes another one.
    fn watch(&self, cluster: &Cluster, wish: Option<Wish>, patience: Duration) {
        let started = Instant::now();
        while let Some(left) = patience.checked_sub(started.elapsed()) {
            std::thread::sleep(WATCH.min(left));
            // What cannot be read now is read in the next round.
            if cluster.wish(&self.wish).is_ok_and(|now| Some(now) != wish) {
                return;
            }
        }
    }

    /// Whether something is on the node that an uninstallation would take away.
    fn traces(&self) -> bool {
        let layout = Layout::new(&self.host.dir);
        let in_force = layout.current().is_some() || Journal::path(&layout).exists();
        in_force || (self.purge && layout.has_traces())
    }

    fn add(&self, layout: &Layout, tree: &Tree) -> Result<(), String> {
        let _lock = self.lock(layout)?;
        layout.add(tree).map_err(|e| e.to_string())
    }

    fn install(&self, cluster: &Cluster, tree: &Tree) -> Result<(), String> {
        let installed = self
            .add(&Layout::new(&self.host.dir), tree)
            .and_then(|()| {
                let program = self.host.program(&tree.name);
                self.host.run(UNIT, &program, "install", &self.arguments)
            })
            .and_then(|()| self.seen_by_the_kubelet(cluster));
        if let Err(why) = installed {
            self.close_if_broken(cluster)?;
            return Err(why);
        }
        let labels = [
            (INSTALLED, Some("true")),
            (VERSION, Some(env!("CARGO_PKG_VERSION"))),
            (STATE, Some(State::Installed.word())),
        ];
        cluster.label(&self.node, &labels)
    }

    /// An installation that failed may have left an earlier one that works: only a node that was seen without the handler
    /// gets no more pods.
    fn close_if_broken(&self, cluster: &Cluster) -> Result<(), String> {
        let node = cluster.node(&self.node)?;
        let told = !node.handlers.is_empty();
        if node.open() && told && !node.handlers.iter().any(|h| h == crate::HANDLER) {
            say(&format!("node {}: its handler is gone", self.node));
            cluster.label(&self.node, &[(INSTALLED, Some("false"))])?;
        }
        Ok(())
    }

    fn remove(&self, tree: &Tree, was_installed: bool, force: bool) -> Result<(), String> {
        // What an installer has begun that was killed.
        self.host.settle(UNIT)?;
        let layout = Layout::new(&self.host.dir);
        if !was_installed && !layout.has_traces() {
            return Ok(());
        }
        let name = match layout.any_tree(&tree.name) {
            Some(name) => name,
            // As where this directory is new, and the node's installation is in another.
            None => {
                self.add(&layout, tree)?;
                tree.name.clone()
            }
        };
        let mut arguments = self.arguments.clone();
        arguments.extend(force.then(|| "--force".to_owned()));
        arguments.extend(self.purge.then(|| "--purge".to_owned()));
        let program = self.host.program(&name);
        self.host.run(UNIT, &program, "uninstall", &arguments)
    }

    /// Waits while somebody else works on the node.
    fn lock(&self, layout: &Layout) -> Result<Lock, String> {
        let started = Instant::now();
        loop {
            match Lock::take(layout, "installer") {
                Ok(lock) => return Ok(lock),
                Err(crate::Error::Locked { .. }) if started.elapsed() < LOCK => {
                    std::thread::sleep(FOLLOW)
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// Waits until the kubelet says that pods of the handlers can come. One that does not tell of handlers must be ready.
    fn seen_by_the_kubelet(&self, cluster: &Cluster) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let node = cluster.node(&self.node)?;
            let listed =
                node.handlers.is_empty() || self.handlers.iter().all(|h| node.handlers.contains(h));
            if node.ready && listed {
                return Ok(());
            }
            if started.elapsed() > KUBELET {
                let what = if node.ready {
                    "does not list the handlers"
                } else {
                    "is not Ready"
                };
                return Err(format!(
                    "node {} {what} {} s after the installation",
                    self.node,
                    KUBELET.as_secs()
                ));
            }
            std::thread::sleep(FOLLOW);
        }
    }
}

/// The host of an installer's pod.
#[derive(Debug)]
pub struct Host {
    /// Its install directory, as this pod sees it.
    pub dir: PathBuf,
    /// The install directory, as the host sees it.
    pub install_dir: PathBuf,
    /// Directory of systemd's private socket, as this pod sees it.
    pub systemd_dir: PathBuf,
}

impl Host {
    /// The program of an installed tree, as the host sees it.
    fn program(&self, tree: &str) -> PathBuf {
        Layout::new(&self.install_dir)
            .tree(tree)
            .join("bin/slipway")
    }

    /// Holds all other installers of this node up until it is dropped: two may run, where one was deleted by force. The lock is on
    /// a directory that both have and that nobody removes.
    fn alone(&self) -> Result<File, String> {
        let dir = &self.systemd_dir;
        let wrong = |e: std::io::Error| format!("{}: {e}", dir.display());
        let lock = File::open(dir).map_err(wrong)?;
        let locked = || flock(&lock, FlockOperation::LockExclusive);
        rustix::io::retry_on_intr(locked).map_err(|e| wrong(e.into()))?;
        Ok(lock)
    }

    fn systemd(&self) -> Result<Systemd, String> {
        let socket = self.systemd_dir.join("private");
        Systemd::connect_to(&socket)
            .map_err(failed)?
            .ok_or_else(|| {
                format!(
                    "{}: no systemd: mount the host's /run/systemd here",
                    socket.display()
                )
            })
    }

    /// Waits until a unit does nothing any more, and follows its log.
    fn settle(&self, unit: &str) -> Result<(), String> {
        let mut log = Log::open(Layout::new(&self.dir).log());
        settled(&mut self.systemd()?, unit, &mut log).map_err(failed)?;
        Ok(())
    }

    /// Has systemd run a command on the host, tells what it says, and waits for its end.
    fn run(
        &self,
        unit: &str,
        program: &Path,
        verb: &str,
        arguments: &[String],
    ) -> Result<(), String> {
        let mut systemd = self.systemd()?;
        // One that an earlier pod has started comes to its end first.
        let mut log = Log::open(Layout::new(&self.dir).log());
        settled(&mut systemd, unit, &mut log).map_err(failed)?;
        forget(&mut systemd, unit).map_err(failed)?;
        let mut command = vec![program.to_string_lossy().into_owned(), verb.to_owned()];
        // systemd would take it for a variable.
        command.extend(arguments.iter().map(|a| a.replace('$', "$$")));
        let description = format!("slipway {verb}");
        let properties = [
            Property::Text("Description", &description),
            Property::Text("Type", "oneshot"),
            // Its result can be asked for.
            Property::Bool("RemainAfterExit", true),
            Property::Command("ExecStart", &command),
        ];
        systemd
            .call(&Call::start_transient_unit(unit, &properties))
            .map_err(failed)?;
        let active = settled(&mut systemd, unit, &mut log).map_err(failed)?;
        let status = systemd.exit_status(unit).map_err(failed)?;
        forget(&mut systemd, unit).map_err(failed)?;
        match active.as_str() {
            "active" => Ok(()),
            _ => Err(format!(
                "slipway {verb} failed on the host with status {status}: its last lines are above, more with `journalctl -u {unit}`"
            )),
        }
    }

    /// What `slipway doctor` says on the host, and what Kubernetes says of this pod's node.
    ///
    /// # Errors
    /// Nothing is installed there, or systemd's word.
    pub fn report(&self, node: &str) -> Result<String, String> {
        let layout = Layout::new(&self.dir);
        let tree = layout.current().ok_or_else(|| {
            format!(
                "{}: nothing is installed yet: the installer's log says why",
                self.install_dir.display()
            )
        })?;
        let handed_over = |dir: &Path| Layout::new(dir).state().join(REPORT);
        let arguments = [
            "--report".to_owned(),
            handed_over(&self.install_dir).display().to_string(),
            "--install-dir".to_owned(),
            self.install_dir.display().to_string(),
        ];
        self.run(DOCTOR, &self.program(&tree), "doctor", &arguments)?;
        let path = handed_over(&self.dir);
        let report =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        // Nobody else reads it.
        let _ = std::fs::remove_file(&path);
        let known = Cluster::of_this_pod().and_then(|cluster| cluster.node(node));
        let known = known.map_or_else(|e| e, |node| node.to_string());
        Ok(format!("{report}\n== Kubernetes\n{known}\n"))
    }
}

fn failed(e: std::io::Error) -> String {
    format!("systemd: {e}")
}

/// Waits until the unit does nothing any more; its state then.
fn settled(systemd: &mut Systemd, unit: &str, log: &mut Log) -> std::io::Result<String> {
    loop {
        let state = systemd.state(unit)?;
        log.follow();
        if !state.busy && ["active", "failed", "inactive"].contains(&state.active.as_str()) {
            return Ok(state.active);
        }
        std::thread::sleep(FOLLOW);
    }
}

/// The unit's name is free again.
fn forget(systemd: &mut Systemd, unit: &str) -> std::io::Result<()> {
    loop {
        let state = systemd.state(unit)?;
        match state.active.as_str() {
            "inactive" if !state.busy => return Ok(()),
            "failed" => systemd.call(&Call::reset_failed_unit(unit)).map(drop)?,
            "active" => systemd.call(&Call::stop_unit(unit)).map(drop)?,
            _ => {}
        }
        std::thread::sleep(FOLLOW);
    }
}

/// The log on the host, from now on.
struct Log {
    path: PathBuf,
    at: u64,
}

impl Log {
    fn open(path: PathBuf) -> Self {
        let at = std::fs::metadata(&path).map_or(0, |m| m.len());
        Self { path, at }
    }

    fn follow(&mut self) {
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_string(&mut text)
        });
        if let Ok(bytes) = read {
            self.at += bytes as u64;
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
    }
}

/// The hook before the chart is deleted: writes the wish to uninstall, and waits until the installers have carried it out.
#[derive(Debug)]
pub struct Uninstaller {
    /// Where the wish is.
    pub wish: ConfigMap,
    /// The handlers by which no pods may be left.
    pub handlers: Vec<String>,
    /// How long the nodes may take.
    pub timeout: Duration,
    /// Even while pods exist.
    pub force: bool,
    /// The command that takes an uninstallation back, for whoever reads that it failed.
    pub take_back: Option<String>,
}

impl Uninstaller {
    /// Refuses while there are pods, with nothing touched; else has all nodes cleaned.
    ///
    /// # Errors
    /// Pods exist, or nodes are not clean: names them.
    pub fn run(&self) -> Result<(), String> {
        let cluster = Cluster::of_this_pod()?;
        let pods = cluster.pods(&self.handlers)?;
        if !pods.is_empty() && !self.force {
            let back = self.take_back.iter();
            let back = back.map(|command| {
                format!("\nTo go on with Slipway: `{command}`; helm hides a release until then")
            });
            return Err(format!(
                "pods of Slipway exist: delete them first ({}). Nothing was touched.{}",
                pods.join(", "),
                back.collect::<String>()
            ));
        }
        if !cluster.wish_uninstall(&self.wish, self.force)? {
            let back = self.take_back.as_deref().unwrap_or("helm rollback");
            return Err(format!(
                "ConfigMap {} is missing, by which installers are told: `{back}` puts it back. Nothing was touched.",
                self.wish
            ));
        }
        say("the installers were asked to clean their nodes");
        let started = Instant::now();
        loop {
            let left = self.not_clean(&cluster)?;
            if left.is_empty() {
                say("all nodes are clean");
                return Ok(());
            }
            if started.elapsed() > self.timeout {
                let back = self.take_back.iter();
                let back = back.map(|command| format!(" unless you take it back: `{command}`"));
                return Err(format!(
                    "not clean after {} s: {}. What hinders them is in their installers' logs. They go on{}",
                    self.timeout.as_secs(),
                    left.into_iter().collect::<Vec<_>>().join(", "),
                    back.collect::<String>()
                ));
            }
            std::thread::sleep(WATCH.min(self.timeout));
        }
    }

    /// The nodes on which something may be; those of installers that knew of no states have the other label.
    fn not_clean(&self, cluster: &Cluster) -> Result<BTreeSet<String>, String> {
        let mut names = BTreeSet::new();
        for label in [STATE, INSTALLED] {
            names.extend(cluster.nodes(label)?.into_iter().map(|node| node.name));
        }
        Ok(names)
    }
}
