use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::*;

fn data(keys: &[(&str, &str)]) -> BTreeMap<String, String> {
    keys.iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn the_wish_to_install_wins_over_what_an_uninstallation_has_left() {
    for (keys, wish) in [
        (&[(INSTALL, "")][..], Wish::Install),
        (&[(INSTALL, ""), (UNINSTALL, FORCE)], Wish::Install),
        (&[(UNINSTALL, "refuse")], Wish::Uninstall { force: false }),
        (&[(UNINSTALL, FORCE)], Wish::Uninstall { force: true }),
        (&[], Wish::Nothing),
    ] {
        assert_eq!(Wish::read(Some(&data(keys))), wish, "{keys:?}");
    }
    assert_eq!(Wish::read(None), Wish::Nothing);
}

#[test]
fn an_unknown_state_is_one_in_which_something_may_be_there() {
    for state in [State::Installing, State::Installed, State::Uninstalling] {
        assert_eq!(State::read(state.word()), state);
    }
    assert_eq!(State::read("uninstalling-by-force"), State::Installing);
}

// The model: one node, its installers, helm and the hook, and everything that can happen to them in any order.

/// What is on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Disk {
    Clean,
    /// An interrupted command has left something.
    Half,
    /// The handler works, with the values of this number.
    Full(u8),
}

/// A command on the host, which outlives the installer that has started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Install(u8),
    Remove { force: bool },
}

/// Where an installer is in its round. Between two of these anything may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Outside,
    /// Holds the node's lock.
    Locked,
    /// Has read the labels.
    Labels(Known),
    /// Has read the wish.
    Decided(Step),
    /// Waits for its command.
    Waits(Unit),
    /// Its command went well, or not.
    Ended(Unit, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Installer {
    values: u8,
    done: bool,
    at: At,
    /// Deleted by force: the DaemonSet has made another one, but this one still runs.
    orphan: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hook {
    Absent,
    Started,
    Waiting,
    Succeeded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// The ConfigMap: whether it has each of the two keys.
    record: Option<(bool, bool)>,
    /// The DaemonSet's values, where it is there.
    release: Option<u8>,
    hook: Hook,
    joined: bool,
    state: Option<State>,
    open: Option<bool>,
    disk: Disk,
    unit: Option<Unit>,
    /// The last command's result.
    result: Option<bool>,
    installers: [Option<Installer>; 2],
    lock: Option<usize>,
    /// Pods run on the node.
    used: bool,
    /// The checks of an installation fail.
    broken: bool,
    /// The Node object was lost with its labels.
    forgotten: bool,
    events: u8,
}

/// What may happen beside the installers' and the hook's own steps.
const EVENTS: u8 = 4;

impl World {
    fn new(joined: bool) -> Self {
        Self {
            record: Some((true, false)),
            release: Some(0),
            hook: Hook::Absent,
            joined,
            state: None,
            open: None,
            disk: Disk::Clean,
            unit: None,
            result: None,
            installers: [None; 2],
            lock: None,
            used: false,
            broken: false,
            forgotten: false,
            events: EVENTS,
        }
    }

    fn wish(&self) -> Wish {
        let keys = self.record.map(|(install, uninstall)| {
            let mut keys = Vec::new();
            keys.extend(install.then_some((INSTALL, "")));
            keys.extend(uninstall.then_some((UNINSTALL, "refuse")));
            data(&keys)
        });
        Wish::read(keys.as_ref())
    }

    /// The steps that those who work here can take now, by name.
    fn steps(&self) -> Vec<(String, World)> {
        let mut all = Vec::new();
        let mut step = |name: String, change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            all.push((name, world));
        };
        if let Some(unit) = self.unit {
            step(format!("{unit:?} ends"), &|w| w.end(unit));
        }
        for i in 0..2 {
            if let Some(installer) = self.installers[i] {
                if self.can_go_on(i, installer) {
                    step(format!("installer {i} after {:?}", installer.at), &|w| {
                        w.go_on(i, installer);
                    });
                }
            } else if let Some(values) = self.release
                && self.joined
                && self.installers.iter().flatten().all(|i| i.orphan)
            {
                step(format!("installer {i} starts"), &|w| {
                    w.installers[i] = Some(Installer {
                        values,
                        done: false,
                        at: At::Outside,
                        orphan: false,
                    });
                });
            }
        }
        match self.hook {
            // Refuses while there are pods, with nothing touched.
            Hook::Started if self.used => step("hook refuses".into(), &|w| w.hook = Hook::Absent),
            Hook::Started => step("hook writes its wish".into(), &|w| {
                w.record = w.record.map(|_| (false, true));
                w.hook = Hook::Waiting;
            }),
            Hook::Waiting if !self.joined || self.state.is_none() => {
                step("hook sees no state".into(), &|w| w.hook = Hook::Succeeded)
            }
            // Then helm removes the DaemonSet, and last the ConfigMap.
            Hook::Succeeded if self.release.is_some() => {
                step("helm removes the DaemonSet".into(), &|w| w.release = None)
            }
            Hook::Succeeded if self.record.is_some() => {
                step("helm removes the ConfigMap".into(), &|w| w.record = None)
            }
            _ => {}
        }
        for i in 0..2 {
            // What has no DaemonSet any more, and what was deleted by force, ends some time.
            if self.installers[i].is_some_and(|i| i.orphan || self.release.is_none()) {
                step(format!("installer {i} is killed at last"), &|w| w.kill(i));
            }
        }
        all
    }

    /// What others may do to them.
    fn events(&self) -> Vec<(String, World)> {
        let mut all = Vec::new();
        let mut event = |name: &str, change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            world.events -= 1;
            change(&mut world);
            all.push((name.to_owned(), world));
        };
        if self.events == 0 {
            return all;
        }
        if !self.joined {
            event("the node joins", &|w| w.joined = true);
        }
        for i in 0..2 {
            if let Some(installer) = self.installers[i] {
                event("an installer is killed", &|w| w.kill(i));
                if !installer.orphan && self.installers[1 - i].is_none() {
                    event("an installer is deleted by force", &|w| {
                        if let Some(installer) = &mut w.installers[i] {
                            installer.orphan = true;
                        }
                    });
                }
            }
        }
        match self.hook {
            Hook::Absent if self.release.is_some() => {
                event("helm uninstall", &|w| w.hook = Hook::Started)
            }
            Hook::Started | Hook::Waiting => {
                event("the hook gives up or is killed", &|w| {
                    w.hook = Hook::Absent;
                });
            }
            _ => {}
        }
        if self.release.is_some() && self.hook == Hook::Absent {
            // Either puts the manifest's keys back, and leaves those that it does not know.
            let apply = |w: &mut World, values: u8| {
                w.record = Some((true, w.record.is_some_and(|r| r.1)));
                if w.release != Some(values) {
                    w.release = Some(values);
                    // The DaemonSet replaces its pods.
                    for i in 0..2 {
                        w.kill(i);
                    }
                }
            };
            event("helm rollback", &|w| apply(w, w.release.unwrap_or(0)));
            event("helm upgrade with other values", &|w| {
                apply(w, 1 - w.release.unwrap_or(0));
            });
            event("helm uninstall --no-hooks", &|w| w.release = None);
        }
        if self.release.is_none() && self.hook == Hook::Absent && self.record.is_some() {
            event("and the ConfigMap goes", &|w| w.record = None);
        }
        event("checks fail, or no more", &|w| w.broken = !w.broken);
        if matches!(self.disk, Disk::Full(_)) || self.used {
            event("pods come or go", &|w| w.used = !w.used);
        }
        if self.joined {
            event("the node starts again", &|w| {
                for i in 0..2 {
                    w.kill(i);
                }
                match (w.unit.take(), w.disk) {
                    (Some(Unit::Install(_)), Disk::Clean)
                    | (Some(Unit::Remove { .. }), Disk::Full(_)) => w.disk = Disk::Half,
                    _ => {}
                }
            });
            event("the Node object is made anew", &|w| {
                (w.state, w.open, w.forgotten) = (None, None, true);
            });
        }
        all
    }

    fn kill(&mut self, i: usize) {
        self.installers[i] = None;
        if self.lock == Some(i) {
            self.lock = None;
        }
    }

    /// A command comes to its end.
    fn end(&mut self, unit: Unit) {
        let (disk, good) = match unit {
            // Refused, with nothing touched.
            Unit::Install(_) if self.broken => (self.disk, false),
            Unit::Install(values) => (Disk::Full(values), true),
            Unit::Remove { force } if self.used && !force => (self.disk, false),
            Unit::Remove { .. } => (Disk::Clean, true),
        };
        (self.disk, self.result, self.unit) = (disk, Some(good), None);
    }

    fn can_go_on(&self, i: usize, installer: Installer) -> bool {
        match installer.at {
            At::Outside => self.lock.is_none(),
            // A command of an installer that was killed comes to its end first.
            At::Decided(Step::Install | Step::Remove { .. }) => self.unit.is_none(),
            At::Waits(_) => self.unit.is_none(),
            _ => self.lock == Some(i),
        }
    }

    /// One step of `Installer::round`.
    fn go_on(&mut self, i: usize, mut installer: Installer) {
        installer.at = match installer.at {
            At::Outside => {
                self.lock = Some(i);
                At::Locked
            }
            At::Locked => At::Labels(Known {
                state: self.state,
                open: self.open == Some(true),
                done: installer.done,
                traces: self.disk != Disk::Clean,
            }),
            At::Labels(known) => At::Decided(next(self.wish(), known)),
            At::Decided(step) => match step {
                Step::Rest => At::Outside,
                Step::Mark(state) => {
                    self.state = Some(state);
                    if state == State::Uninstalling {
                        self.open = Some(false);
                        installer.done = false;
                    }
                    At::Outside
                }
                Step::Install => {
                    self.unit = Some(Unit::Install(installer.values));
                    At::Waits(Unit::Install(installer.values))
                }
                Step::Remove { force } => {
                    self.unit = Some(Unit::Remove { force });
                    At::Waits(Unit::Remove { force })
                }
            },
            At::Waits(unit) => At::Ended(unit, self.result == Some(true)),
            At::Ended(Unit::Install(_), good) => {
                if good {
                    (self.state, self.open) = (Some(State::Installed), Some(true));
                    installer.done = true;
                }
                At::Outside
            }
            At::Ended(Unit::Remove { .. }, good) => {
                if good {
                    (self.state, self.open) = (None, None);
                }
                At::Outside
            }
        };
        if installer.at == At::Outside {
            self.lock = None;
        }
        self.installers[i] = Some(installer);
    }

    /// Nobody is in the middle of anything.
    fn quiet(&self) -> bool {
        let outside = |i: &Installer| i.at == At::Outside;
        self.unit.is_none() && self.installers.iter().flatten().all(outside)
    }

    /// What must hold at every moment.
    fn holds(&self) -> Result<(), &'static str> {
        if self.open == Some(true) && !matches!(self.disk, Disk::Full(_)) {
            return Err("pods are sent to a node on which the handler does not work");
        }
        // Of a Node that has lost its labels nobody can know.
        if self.hook == Hook::Succeeded && !self.forgotten && self.joined {
            if self.disk != Disk::Clean || matches!(self.unit, Some(Unit::Install(_))) {
                return Err("uninstalled, but not from the node");
            }
            if self.open == Some(true) || self.state == Some(State::Installed) {
                return Err("uninstalled, but the node is open");
            }
        }
        Ok(())
    }

    /// What must hold once everybody has done what they can, from here on.
    fn settles(&self) -> Result<(), &'static str> {
        let mut world = self.clone();
        // Each in turn; some turns change nothing but who holds the lock.
        for turn in 0..200 {
            let steps = world.steps();
            let Some((_, step)) = steps.get(turn % steps.len().max(1)) else {
                break;
            };
            world = step.clone();
            world.holds()?;
        }
        while !world.quiet() {
            let steps = world.steps();
            let Some((_, step)) = steps.into_iter().find(|(name, _)| !name.contains("starts"))
            else {
                break;
            };
            world = step;
        }
        match world.wish() {
            Wish::Install if world.joined && world.release.is_some() && !world.broken => {
                let installed = world.state == Some(State::Installed)
                    && world.open == Some(true)
                    && world.disk == world.release.map_or(Disk::Clean, Disk::Full);
                installed.then_some(()).ok_or("not installed")
            }
            // A failing check takes nothing away.
            Wish::Install if world.joined && world.broken && self.quiet() => {
                let same = self.open != Some(true) || world.open == Some(true);
                same.then_some(())
                    .ok_or("a failing check has closed the node")
            }
            Wish::Uninstall { .. } if world.joined && world.release.is_some() && !world.used => {
                let clean = (world.state, world.open, world.disk) == (None, None, Disk::Clean);
                clean.then_some(()).ok_or("not clean")
            }
            Wish::Nothing if self.quiet() && self.wish() == Wish::Nothing => {
                let same = (world.disk, world.open) == (self.disk, self.open);
                same.then_some(()).ok_or("changed without a wish")
            }
            _ => Ok(()),
        }
    }
}

/// Every order of events, up to [`EVENTS`] of them, between any two steps of everybody.
#[test]
fn every_order_of_events_ends_in_what_was_wished() {
    let mut queue = VecDeque::new();
    let mut seen: HashMap<World, Option<(World, String)>> = HashMap::new();
    for start in [World::new(true), World::new(false)] {
        seen.insert(start.clone(), None);
        queue.push_back(start);
    }
    let (mut outcomes, mut settled) = (BTreeSet::new(), HashSet::new());
    while let Some(world) = queue.pop_front() {
        let new = settled.insert(World {
            events: 0,
            ..world.clone()
        });
        let good = world.holds();
        if let Err(what) = good.and_then(|()| if new { world.settles() } else { Ok(()) }) {
            let mut story = vec![format!("{world:#?}")];
            let mut at = &world;
            while let Some(Some((before, name))) = seen.get(at) {
                story.push(name.clone());
                at = before;
            }
            story.reverse();
            panic!("{what}:\n{}", story.join("\n"));
        }
        outcomes.insert(format!(
            "{:?} {:?} {:?}",
            world.hook, world.state, world.open
        ));
        for (name, next) in world.steps().into_iter().chain(world.events()) {
            if !seen.contains_key(&next) {
                seen.insert(next.clone(), Some((world.clone(), name)));
                queue.push_back(next);
            }
        }
    }
    // The model gets somewhere.
    for outcome in ["Absent Some(Installed) Some(true)", "Succeeded None None"] {
        assert!(outcomes.contains(outcome), "{outcomes:?}");
    }
    assert!(seen.len() > 10_000, "{}", seen.len());
}
