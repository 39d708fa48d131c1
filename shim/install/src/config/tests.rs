use super::*;

const SHIM: &str = "/opt/slipway/current/bin/containerd-shim-slipway-v1";

fn handlers(names: &[&str]) -> Handlers {
    Handlers {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        shim: SHIM.into(),
        annotations: vec!["slipway.dev/*".into()],
        options: vec![
            ("BinaryName".into(), "/usr/bin/runc".into()),
            ("SystemdCgroup".into(), true.into()),
        ],
    }
}

fn ours(names: &[String], imports: &[&Path]) -> Ours {
    Ours {
        shims: vec![SHIM.into()],
        names: names.to_vec(),
        imports: imports.iter().map(|i| (*i).to_owned()).collect(),
    }
}

fn nothing() -> Effective {
    Effective::parse("").unwrap()
}

/// Files as they are found on nodes.
const FOUND: [&str; 5] = [
    "version = 2\n",
    "# Ours.\nversion = 2\nroot = \"/data\" # a disk\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"p:1\"\n    [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n      default_runtime_name = \"runc\"\n      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes]\n        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n          runtime_type = \"io.containerd.runc.v2\"\n          [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n            SystemdCgroup = true\n  # The end.\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    path = \"/opt/containerd\"\n# Bye.\n",
    "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n",
    "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".sandbox_image = \"p:1\"\n",
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes]\nrunc = { runtime_type = \"io.containerd.runc.v2\" }\n",
];

#[test]
fn adding_twice_is_adding_once_and_removing_gives_the_bytes_back() {
    for found in FOUND {
        let handlers = handlers(&["slipway", "wasmedge"]);
        let added = handlers.add(found, &nothing(), &Ours::default()).unwrap();
        assert_eq!(
            handlers.add(&added, &nothing(), &Ours::default()).unwrap(),
            added
        );
        let effective = Effective::parse(&added).unwrap();
        assert_eq!(effective.program("slipway"), Some(SHIM), "{added}");
        assert_eq!(effective.program("wasmedge"), Some(SHIM), "{added}");
        for line in found.lines() {
            assert!(added.contains(line), "{line:?} is not in {added}");
        }
        assert_eq!(remove(&added, &ours(&handlers.names, &[])).unwrap(), found);
    }
}

#[test]
fn imports_come_and_go() {
    let import = Path::new("/etc/containerd/conf.d/slipway.toml");
    for found in FOUND {
        let added = add_import(found, import).unwrap();
        assert_eq!(add_import(&added, import).unwrap(), added);
        assert!(added.contains("/etc/containerd/conf.d/slipway.toml\""));
        assert_eq!(remove(&added, &ours(&[], &[import])).unwrap(), found);
    }
}

#[test]
fn secrets_are_left_out_and_what_runs_pods_is_not() {
    let text = r#"
version = 2 # hush-1
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example.com".auth]
username = "hush-2"
password = "hush-3"
auth = "hush-4"
pin = 31337
[plugins."io.containerd.grpc.v1.cri".registry.configs."hush-5:x@r.example.com".tls]
insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.headers]
Authorization = ["Bearer hush-6"]
Root = ["hush-9"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://u:hush-7@r.example.com"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway]
runtime_type = "/shim"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway.options]
SystemdCgroup = true
[proxy_plugins.x]
address = "hush-8"
"#;
    let shown = without_secrets(text);
    assert!(
        !shown.contains("hush") && !shown.contains("31337"),
        "{shown}"
    );
    for line in [
        "version = 2",
        r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway.runtime_type = "/shim""#,
        r#"plugins."io.containerd.grpc.v1.cri".containerd.runtimes.slipway.options.SystemdCgroup = true"#,
        r#"plugins."io.containerd.grpc.v1.cri".registry.configs."r.example.com".auth.password = (left out)"#,
    ] {
        assert!(shown.lines().any(|l| l == line), "{line} is not in {shown}");
    }
    assert!(!without_secrets("password = hush").contains("hush"));
}

#[test]
fn directories_are_known_that_are_imported_whole() {
    let text = "version = 3\nimports = ['/a/*.toml', 'conf.d/*.toml', '/b/c.toml', '/d*/*.toml']\n";
    let found = imported_directories(text, Path::new("/etc/containerd"));
    assert_eq!(
        found,
        [Path::new("/a"), Path::new("/etc/containerd/conf.d")]
    );
}

#[test]
fn default_runtimes_are_kept_where_the_file_has_none() {
    let dump = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nIoGid = 0\n";
    let effective = Effective::parse(dump).unwrap();
    let added = handlers(&["slipway"])
        .add("version = 2\n", &effective, &Ours::default())
        .unwrap();
    let after = Effective::parse(&added).unwrap();
    assert_eq!(after.program("runc"), Some("io.containerd.runc.v2"));
    assert!(!added.contains("IoGid"), "{added}");
}

#[test]
fn an_alias_that_is_wanted_no_more_is_no_default_runtime() {
    let handlers = handlers(&["slipway", "wasmedge"]);
    let added = handlers
        .add("version = 2\n", &nothing(), &Ours::default())
        .unwrap();
    let effective = Effective::parse(&added).unwrap();
    let wanted = Handlers {
        names: vec!["slipway".into()],
        ..handlers
    };
    let again = wanted
        .add("version = 2\n", &effective, &ours(&[], &[]))
        .unwrap();
    assert!(!again.contains("wasmedge"), "{again}");
}

#[test]
fn a_handler_of_somebody_elses_is_not_removed() {
    let text = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.wasmedge]\nruntime_type = 'io.containerd.wasmedge.v1'\n";
    let names = ["wasmedge".to_owned()];
    assert_eq!(remove(text, &ours(&names, &[])).unwrap(), text);
}

#[test]
fn templates_get_one_block() {
    let section = handlers(&["slipway"]).section(Schema(3));
    let fresh = add_block(None, &section).unwrap();
    assert!(fresh.starts_with("{{ template \"base\" . }}\n# slipway: begin"));
    assert!(is_base_template(&remove_block(&fresh).unwrap()));
    let found = "{{ template \"base\" . }}\n[debug]\n  level = \"debug\"\n";
    let added = add_block(Some(found), &section).unwrap();
    assert_eq!(add_block(Some(&added), &section).unwrap(), added);
    assert_eq!(remove_block(&added).unwrap(), found);
}

#[test]
fn a_block_without_its_end_takes_nothing_along() {
    let section = handlers(&["slipway"]).section(Schema(3));
    let whole = add_block(Some("[debug]\n"), &section).unwrap();
    let cut = whole.replace(template::END, "");
    for text in [format!("{cut}[plugins]\n"), cut.clone() + &whole] {
        for told in [remove_block(&text), add_block(Some(&text), &section)] {
            let told = told.unwrap_err();
            assert!(
                told.starts_with("line 2: ") && told.contains(template::END),
                "{told}"
            );
        }
    }
}

#[test]
fn options_are_those_of_runc() {
    let dump = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\noptions = { BinaryName = '/bin/runc', SystemdCgroup = false, Root = '', IoUid = 7 }\n";
    let options = Effective::parse(dump).unwrap().runc_options();
    let names: Vec<_> = options.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["BinaryName", "IoUid"]);
    assert_eq!(options[0].1.as_str(), Some("/bin/runc"));
    assert_eq!(options[1].1.as_integer(), Some(7));
}

#[test]
fn a_handler_is_of_runcs_type_unless_it_has_options_that_runc_has_not() {
    let mut handlers = handlers(&["slipway"]);
    for (kind, path) in [(Some(RUNC), Some(SHIM)), (Some(SHIM), None)] {
        let added = handlers
            .add("version = 3\n", &nothing(), &Ours::default())
            .unwrap();
        let effective = Effective::parse(&added).unwrap();
        assert_eq!(effective.program("slipway"), Some(SHIM));
        let (_, table) = effective.all_runtimes().next().unwrap();
        assert_eq!(table["runtime_type"].as_str(), kind);
        assert_eq!(table.get("runtime_path").and_then(Item::as_str), path);
        let text = remove(&added, &ours(&handlers.names, &[])).unwrap();
        assert_eq!(text, "version = 3\n");
        handlers.options.push(("CacheBytes".into(), 7.into()));
    }
}

#[test]
fn outdated_and_broken_files_are_refused_with_the_remedy() {
    for (text, word) in [
        ("", "migrate"),
        ("[plugins.cri]\n", "migrate"),
        ("version = ", "not TOML"),
    ] {
        let error = handlers(&["slipway"])
            .add(text, &nothing(), &Ours::default())
            .unwrap_err();
        assert!(error.contains(word), "{text:?}: {error}");
    }
}

#[test]
fn own_handlers_may_come_and_go_and_no_others() {
    const RUNTIMES: &str = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
    let with = |name: &str, shim: &str| {
        let text = format!("[{RUNTIMES}]\n[{RUNTIMES}.{name}]\nruntime_type = '{shim}'\n");
        Effective::parse(&text).unwrap()
    };
    let without = Effective::parse(&format!("[{RUNTIMES}]\n")).unwrap();
    let wanted = ["slipway".to_owned()];
    let ours = ours(&wanted, &[]);
    // Added, taken over from another directory, and an alias of an earlier installation.
    assert_eq!(
        without.difference(&with("slipway", SHIM), &wanted, &ours),
        None
    );
    let (elsewhere, here) = (with("slipway", "/x"), with("slipway", SHIM));
    assert_eq!(elsewhere.difference(&here, &wanted, &ours), None);
    assert_eq!(
        with("alias", SHIM).difference(&without, &wanted, &ours),
        None
    );
    let said = with("alias", "/x").difference(&without, &wanted, &ours);
    let said = said.unwrap();
    assert!(said.contains("alias"), "{said}");
}

#[test]
fn a_change_elsewhere_is_found() {
    let [before, after] = [
        "a = 1\n[plugins.x]\nb = 2\n",
        "a = 1\nimports = ['y']\n[plugins.x]\nb = 3\n",
    ]
    .map(|t| Effective::parse(t).unwrap());
    assert_eq!(
        before.difference(&after, &[], &Ours::default()).unwrap(),
        "plugins.x.b is 3 instead of 2"
    );
    assert_eq!(before.difference(&before, &[], &Ours::default()), None);
    let text = "a = 1\n[plugins.x]\nb = 2\nc = ''\nd = { e = false }\n";
    let defaults = Effective::parse(text).unwrap();
    assert_eq!(defaults.difference(&before, &[], &Ours::default()), None);
}

#[test]
fn the_socket_is_found_in_each_version() {
    for (dump, address) in [
        ("[grpc]\naddress = '/a'\n", Some("/a")),
        (
            "[grpc]\nuid = 0\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/b'\n",
            Some("/b"),
        ),
        ("version = 3\n", None),
    ] {
        assert_eq!(Effective::parse(dump).unwrap().address(), address);
    }
}
