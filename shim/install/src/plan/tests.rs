use std::fs;

use super::*;
use crate::containerd::Containerd;

const V2: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n";
const V3: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n";

/// A node with these files; the configuration is `config.toml` in its directory.
struct Fixture {
    directory: tempfile::TempDir,
    node: Node,
    major: u32,
}

impl Fixture {
    fn new(distribution: Distribution, major: u32, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let node = Node {
            distribution,
            unit: None,
            containerd: Containerd::of(Path::new("/proc/self")).unwrap(),
            config: directory.path().join("config.toml"),
            address: "/run/containerd/containerd.sock".into(),
        };
        Self {
            directory,
            node,
            major,
        }
    }

    /// The plan of an installation in a directory, where containerd says this of itself and another installation is there.
    fn plan_in(&self, root: &Path, dump: &str, elsewhere: Option<&Journal>) -> Result<Plan> {
        let handlers = Handlers {
            names: vec!["slipway".into()],
            shim: Layout::new(root).shim().display().to_string(),
            annotations: vec!["slipway.dev/*".into()],
            options: Vec::new(),
        };
        let planner = Planner {
            node: &self.node,
            major: self.major,
            handlers: &handlers,
            effective: &Effective::parse(dump).map_err(Error::Containerd)?,
            journal: None,
            elsewhere: elsewhere.into_iter().collect(),
        };
        planner.plan()
    }

    /// What is written: paths below the directory, and texts.
    fn planned(&self) -> Result<Vec<(String, String)>> {
        let dump = if self.major == 1 { V2 } else { V3 };
        let plan = self.plan_in(Path::new("/opt/slipway"), dump, None)?;
        for change in plan.changes.iter().filter(|c| c.kind == Kind::DropIn) {
            assert!(config::is_drop_in(&change.after));
        }
        // What containerd checks has the handler, one way or the other.
        let checked = plan
            .drop_in
            .map_or_else(|| plan.main.clone(), |(_, text)| text);
        assert!(checked.contains(".runtimes.slipway]"), "{checked}");
        let name = |c: &Change| {
            c.path
                .strip_prefix(self.directory.path())
                .unwrap()
                .display()
                .to_string()
        };
        Ok(plan
            .changes
            .iter()
            .map(|c| (name(c), c.after.clone()))
            .collect())
    }

    fn names(&self) -> Vec<String> {
        self.planned()
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }
}

#[test]
fn a_new_containerd_gets_a_drop_in_and_an_import_where_it_needs_one() {
    let plain = Fixture::new(Distribution::Containerd, 2, &[("config.toml", V3)]);
    assert_eq!(plain.names(), ["conf.d/slipway.toml", "config.toml"]);
    let text = format!("imports = ['own.d/*.toml']\n{V3}");
    let imports = Fixture::new(Distribution::Containerd, 2, &[("config.toml", &text)]);
    assert_eq!(imports.names(), ["own.d/slipway.toml"]);
}

#[test]
fn an_old_schema_is_edited_as_it_is() {
    for major in [1, 2] {
        let planned = Fixture::new(Distribution::Containerd, major, &[("config.toml", V2)])
            .planned()
            .unwrap();
        let [(name, text)] = planned.as_slice() else {
            panic!("{planned:?}")
        };
        assert_eq!(name, "config.toml");
        assert!(
            text.starts_with(V2) && text.contains("grpc.v1.cri\".containerd.runtimes.slipway]"),
            "{text}"
        );
    }
}

#[test]
fn a_node_without_a_configuration_gets_one_that_leaves_the_defaults() {
    for files in [&[][..], &[("config.toml", "# Nothing.\n")]] {
        let new = Fixture::new(Distribution::Containerd, 2, files)
            .planned()
            .unwrap();
        let (_, main) = &new[1];
        assert!(
            main.contains("version = 3\n")
                && main.contains("imports = [")
                && !main.contains("plugins"),
            "{main}"
        );
        let old = Fixture::new(Distribution::Containerd, 1, files)
            .planned()
            .unwrap();
        let (_, main) = &old[0];
        assert!(
            main.contains("version = 2\n") && main.contains("runtimes.runc]"),
            "{main}"
        );
    }
}

#[test]
fn k3s_and_rke2_get_a_drop_in_only_where_it_is_imported() {
    let imports = format!("imports = ['config-v3.toml.d/*.toml']\n{V3}");
    for distribution in [Distribution::K3s, Distribution::Rke2] {
        let new = Fixture::new(distribution, 2, &[("config.toml", &imports)]);
        assert_eq!(new.names(), ["config-v3.toml.d/slipway.toml"]);
        let planned = Fixture::new(distribution, 2, &[("config.toml", V3)])
            .planned()
            .unwrap();
        let [(name, text)] = planned.as_slice() else {
            panic!("{planned:?}")
        };
        assert_eq!(name, "config-v3.toml.tmpl");
        assert!(text.starts_with("{{ template \"base\" . }}\n"), "{text}");
    }
}

#[test]
fn a_template_of_the_administrators_is_added_to() {
    let old_imports = format!("imports = ['config.toml.d/*.toml']\n{V2}");
    let files = [
        ("config.toml", old_imports.as_str()),
        ("config.toml.tmpl", "{{ .NodeConfig }}\n[debug]\n"),
    ];
    let planned = Fixture::new(Distribution::K3s, 1, &files)
        .planned()
        .unwrap();
    let [(name, text)] = planned.as_slice() else {
        panic!("{planned:?}")
    };
    assert_eq!(name, "config.toml.tmpl");
    assert!(
        text.starts_with(files[1].1) && text.contains("grpc.v1.cri"),
        "{text}"
    );
    assert_eq!(config::remove_block(text).unwrap(), files[1].1);
}

#[test]
fn k0s_gets_a_drop_in_unless_the_administrator_has_taken_over() {
    let managed = Fixture::new(
        Distribution::K0s,
        2,
        &[("config.toml", "# k0s_managed=true\nversion = 3\n")],
    );
    assert_eq!(managed.names(), ["containerd.d/slipway.toml"]);
    let own = Fixture::new(Distribution::K0s, 2, &[("config.toml", V3)]);
    assert_eq!(own.names(), ["conf.d/slipway.toml", "config.toml"]);
}

#[test]
fn microk8s_template_is_added_to_and_must_be_there() {
    let template = (
        "containerd-template.toml",
        "bin_dir = \"${SNAP_DATA}/opt/cni/bin\"\n",
    );
    let planned = Fixture::new(Distribution::Microk8s, 1, &[("config.toml", V2), template])
        .planned()
        .unwrap();
    assert_eq!(planned[0].0, template.0);
    assert!(planned[0].1.starts_with(template.1));
    let error = Fixture::new(Distribution::Microk8s, 1, &[("config.toml", V2)])
        .planned()
        .unwrap_err();
    assert!(error.to_string().contains("template is missing"), "{error}");
}

#[test]
fn what_was_not_rendered_yet_and_what_is_outdated_is_refused() {
    let error = Fixture::new(Distribution::K3s, 2, &[])
        .planned()
        .unwrap_err()
        .to_string();
    assert!(error.contains("start it first"), "{error}");
    let old = [("config.toml", "[plugins.cri]\n")];
    let error = Fixture::new(Distribution::Containerd, 2, &old)
        .planned()
        .unwrap_err()
        .to_string();
    assert!(error.contains("config.toml: version 1"), "{error}");
}

#[test]
fn another_directory_takes_nothing_of_the_first_ones_for_the_users_own() {
    for (major, found, handler) in [(2, V3, "cri.v1.runtime"), (1, V2, "grpc.v1.cri")] {
        let node = Fixture::new(Distribution::Containerd, major, &[("config.toml", found)]);
        let (first, second) = (Path::new("/opt/slipway"), Path::new("/opt/other"));
        let plan = node.plan_in(first, found, None).unwrap();
        for change in &plan.changes {
            fs::create_dir_all(change.path.parent().unwrap()).unwrap();
            fs::write(&change.path, &change.after).unwrap();
        }
        let shim = Layout::new(first).shim().display().to_string();
        let dump = format!(
            "{found}[plugins.'io.containerd.{handler}'.containerd.runtimes.slipway]\nruntime_type = '{shim}'\n"
        );
        let journal = Journal {
            phase: Phase::Installed,
            tree: String::new(),
            tree_before: None,
            handlers: vec!["slipway".into()],
            shim,
            unit: None,
            address: PathBuf::new(),
            restart_pending: false,
            files: plan.changes,
            directories: Vec::new(),
            replaces: Vec::new(),
        };
        // With the first one's journal and, as where its directory was removed by hand, without.
        for known in [Some(&journal), None] {
            let plan = node.plan_in(second, &dump, known).unwrap();
            assert!(!plan.changes.is_empty());
            for change in plan.changes {
                let before = &journal.change(&change.path).unwrap().pristine;
                assert_eq!(&change.pristine, before, "{known:?}");
                assert!(!change.after.contains("/opt/slipway/"), "{}", change.after);
            }
        }
    }
}
