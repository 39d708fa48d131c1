//! Which files are changed and how, for each kind of node. Nothing is written here.
//!
//! | node | what is written |
//! |---|---|
//! | containerd, `version = 3` and later | a drop-in, and an import of it unless a pattern already does |
//! | containerd, `version = 2` | the handlers, into the file |
//! | containerd without a file | for 2 a file with an import, and the drop-in; for 1.7 one with the handlers and the default runtimes |
//! | k3s, RKE2 | a drop-in where what they render imports it, else the template |
//! | k0s | a drop-in; where the administrator has taken over the file, as containerd |
//! | MicroK8s | the template |

use std::path::{Path, PathBuf};

use crate::config::{self, Effective, Handlers, Ours, Schema};
use crate::error::{Error, Result};
use crate::files;
use crate::journal::{self, Change, Journal, Kind, Phase};
use crate::layout::Layout;
use crate::node::{Distribution, Node};

#[cfg(test)]
mod tests;

/// Name of our own file.
const DROP_IN: &str = "slipway.toml";
/// Directory of drop-ins beside containerd's configuration, where that imports none.
const DROP_INS: &str = "conf.d";
/// By this line k0s knows a file that it has written.
const K0S_MANAGED: &str = "k0s_managed=true";

/// What is to be done with the configuration.
#[derive(Debug)]
pub struct Plan {
    /// The files, in the order in which they are written: what is imported before what imports it.
    pub changes: Vec<Change>,
    /// What containerd will read, for containerd to check: the main file's text and the drop-in's.
    pub main: String,
    /// The text of the drop-in, with its path.
    pub drop_in: Option<(PathBuf, String)>,
    /// The node sees the change by itself.
    pub noticed: bool,
}

/// A file as it is and as it would be without Slipway.
struct Found {
    path: PathBuf,
    kind: Kind,
    before: Option<String>,
    pristine: Option<String>,
}

impl Found {
    fn to(self, after: String) -> Change {
        Change {
            path: self.path,
            kind: self.kind,
            pristine: self.pristine,
            before: self.before,
            after,
        }
    }
}

/// What is asked for, and what is there.
pub struct Planner<'a> {
    /// The node.
    pub node: &'a Node,
    /// containerd's major version.
    pub major: u32,
    /// What it is to be told.
    pub handlers: &'a Handlers,
    /// What it knows now.
    pub effective: &'a Effective,
    /// What an earlier run has done.
    pub journal: Option<&'a Journal>,
    /// What installations in other directories have done, whose place this one takes.
    pub elsewhere: Vec<&'a Journal>,
}

impl Planner<'_> {
    /// Makes the plan.
    ///
    /// # Errors
    /// A file that cannot be read or is of a kind that cannot be changed.
    pub fn plan(&self) -> Result<Plan> {
        let node = self.node;
        match node.distribution {
            Distribution::Containerd => self.file(),
            Distribution::K3s | Distribution::Rke2 => self.rancher(),
            Distribution::Microk8s => {
                self.template(&node.directory().join("containerd-template.toml"))
            }
            Distribution::K0s => {
                let text = files::read(&node.config)?.unwrap_or_default();
                match text
                    .lines()
                    .any(|l| l.trim_start_matches(['#', ' ']).starts_with(K0S_MANAGED))
                {
                    true => self.k0s(text),
                    false => self.file(),
                }
            }
        }
    }

    /// containerd's own file.
    fn file(&self) -> Result<Plan> {
        let main = self.found(&self.node.config, Kind::Config)?;
        let text = main.pristine.clone().unwrap_or_default();
        let blank = text
            .lines()
            .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
        let text = match (blank, self.major) {
            (true, 2..) => format!("{text}version = 3\n"),
            (true, _) => format!("{text}version = 2\n"),
            (false, _) => text,
        };
        let schema = Schema::of(&text).map_err(self.wrong(&main.path))?;
        if schema.0 == 2 {
            let after = self
                .handlers
                .add(&text, self.effective, &self.ours())
                .map_err(self.wrong(&main.path))?;
            return Ok(Plan {
                main: after.clone(),
                changes: vec![main.to(after)],
                drop_in: None,
                noticed: false,
            });
        }
        let directory = self.node.directory();
        let imported = config::imported_directories(&text, directory);
        let path = match imported.first() {
            Some(imported) => imported.join(DROP_IN),
            None => directory.join(DROP_INS).join(DROP_IN),
        };
        let after = match imported.is_empty() {
            true => config::add_import(&text, &path).map_err(self.wrong(&main.path))?,
            false => text,
        };
        let drop_in = self.drop_in(&path, schema)?;
        let mut plan = Plan {
            drop_in: Some((path, drop_in.after.clone())),
            changes: vec![drop_in],
            main: after.clone(),
            noticed: false,
        };
        if main.pristine.as_ref() != Some(&after) || main.before != main.pristine {
            plan.changes.push(main.to(after));
        }
        Ok(plan)
    }

    /// What k3s and RKE2 render.
    fn rancher(&self) -> Result<Plan> {
        let node = self.node;
        let directory = node.directory();
        let rendered = self.rendered()?;
        let schema = Schema::of(&rendered).map_err(self.wrong(&node.config))?;
        let (drop_ins, template) = match schema.0 {
            2 => ("config.toml.d", "config.toml.tmpl"),
            _ => ("config-v3.toml.d", "config-v3.toml.tmpl"),
        };
        let drop_ins = directory.join(drop_ins);
        // containerd 1.7 would take the drop-in's handlers for all there are.
        if schema.0 == 2 || !config::imported_directories(&rendered, directory).contains(&drop_ins)
        {
            return self.template(&directory.join(template));
        }
        let path = drop_ins.join(DROP_IN);
        let drop_in = self.drop_in(&path, schema)?;
        Ok(Plan {
            drop_in: Some((path, drop_in.after.clone())),
            changes: vec![drop_in],
            main: rendered,
            noticed: false,
        })
    }

    /// A template of what is rendered.
    fn template(&self, path: &Path) -> Result<Plan> {
        let rendered = self.rendered()?;
        let wrong = self.wrong(&self.node.config);
        let schema = Schema::of(&rendered).map_err(&wrong)?;
        let found = self.found(path, Kind::Template)?;
        if found.pristine.is_none() && self.node.distribution == Distribution::Microk8s {
            return Err(wrong_file(path, "MicroK8s' template is missing"));
        }
        let after = config::add_block(found.pristine.as_deref(), &self.handlers.section(schema))
            .map_err(self.wrong(path))?;
        // Ours may be rendered already.
        let without = config::remove(&rendered, &self.ours()).map_err(&wrong)?;
        Ok(Plan {
            main: self
                .handlers
                .add(&without, self.effective, &self.ours())
                .map_err(&wrong)?,
            changes: vec![found.to(after)],
            drop_in: None,
            noticed: false,
        })
    }

    /// k0s puts what is in the directory into its configuration.
    fn k0s(&self, text: String) -> Result<Plan> {
        let schema = Schema(if self.major >= 2 { 3 } else { 2 });
        let path = self.node.directory().join("containerd.d").join(DROP_IN);
        let drop_in = self.drop_in(&path, schema)?;
        let checked = self.handlers.add(
            &format!("version = {}\n", schema.0),
            self.effective,
            &self.ours(),
        );
        Ok(Plan {
            // k0s merges before containerd reads: what containerd checks is the drop-in by itself.
            main: checked.unwrap_or(text),
            changes: vec![drop_in],
            drop_in: None,
            noticed: true,
        })
    }

    fn drop_in(&self, path: &Path, schema: Schema) -> Result<Change> {
        Ok(self
            .found(path, Kind::DropIn)?
            .to(self.handlers.drop_in(schema)))
    }

    fn rendered(&self) -> Result<String> {
        let path = &self.node.config;
        files::read(path)?.ok_or_else(|| {
            wrong_file(
                path,
                "the node has not rendered its configuration yet: start it first",
            )
        })
    }

    fn wrong(&self, path: &Path) -> impl Fn(String) -> Error + use<> {
        let path = path.to_owned();
        move |reason| wrong_file(&path, &reason)
    }

    /// What a file has, and what it would have without Slipway.
    fn found(&self, path: &Path, kind: Kind) -> Result<Found> {
        let current = files::read(path)?;
        let found = |before, pristine| Found {
            path: path.to_owned(),
            kind,
            before,
            pristine,
        };
        for journal in self.journals() {
            let change = journal.change(path);
            if let Some(change) = change.filter(|c| current.as_ref() == Some(&c.after)) {
                // Written by a run that was interrupted: what it had found is what a rollback restores.
                let own = self.journal.is_some_and(|own| std::ptr::eq(own, journal));
                let interrupted = own && journal.phase == Phase::Installing;
                let before = match interrupted {
                    true => change.before.clone(),
                    false => current,
                };
                return Ok(found(before, change.pristine.clone()));
            }
        }
        let pristine = match &current {
            // Of an installation whose journal is lost.
            Some(text) if kind == Kind::DropIn && config::is_drop_in(text) => None,
            Some(text) => without(text, kind, &self.ours()).map_err(self.wrong(path))?,
            None => None,
        };
        Ok(found(current, pristine))
    }

    fn journals(&self) -> impl Iterator<Item = &Journal> {
        self.journal
            .into_iter()
            .chain(self.elsewhere.iter().copied())
    }

    /// By what Slipway's parts are known, of all installations.
    pub fn ours(&self) -> Ours {
        let mut ours = journal::ours(self.journals());
        ours.shims.push(self.handlers.shim.clone());
        ours.names.extend(self.handlers.names.iter().cloned());
        // Of an installation whose journal is lost: nobody else names a shim like this.
        for (name, program) in self.effective.programs() {
            if ours.names.iter().any(|n| n == name) && Layout::of_shim(Path::new(program)).is_some()
            {
                ours.shims.push(program.to_owned());
            }
        }
        let drop_in = self.node.directory().join(DROP_INS).join(DROP_IN);
        if files::read(&drop_in).is_ok_and(|text| text.is_some_and(|t| config::is_drop_in(&t))) {
            ours.imports.push(drop_in);
        }
        ours
    }
}

/// A text without what is Slipway's; `None`: nothing is left of the file.
pub fn without(text: &str, kind: Kind, ours: &Ours) -> std::result::Result<Option<String>, String> {
    if !ours.are_in(text) {
        return Ok(Some(text.to_owned()));
    }
    let left = match kind {
        Kind::Template => config::remove_block(text)?,
        // What is no TOML has nothing of ours that could be told from it.
        Kind::Config | Kind::DropIn => config::remove(text, ours)?,
    };
    Ok(match kind {
        Kind::DropIn if config::declares_nothing(&left) => None,
        Kind::Template if text != left && config::is_base_template(&left) => None,
        _ => Some(left),
    })
}

fn wrong_file(path: &Path, reason: &str) -> Error {
    Error::Config {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
