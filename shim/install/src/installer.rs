//! `slipway installer`: the pod of a DaemonSet. It touches nothing of the node's but `/opt/slipway`; what changes the node
//! is `slipway install` on the host, a transient unit that systemd runs for it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, ConfigMap, INSTALLED, STATE, VERSION};
use crate::host::{FOLLOW, Host, UNIT};
use crate::journal::{Journal, Lock};
use crate::layout::{Layout, Tree};
use crate::metrics::{self, Health, Metrics};
use crate::report::say;
use crate::wish::{self, Known, State, Step, Wish};

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
