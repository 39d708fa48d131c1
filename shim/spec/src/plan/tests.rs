use crate::{CgroupPath, Namespace, Role, parse};
use serde_json::json;

fn container() -> serde_json::Value {
    json!({
        "process": {"args": ["/app.wasm"], "cwd": "/", "env": ["A=1"], "user": {"uid": 1, "gid": 2, "additionalGids": [3]}},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/v", "options": ["rbind", "ro"]},
            {"destination": "/dev/termination-log", "type": "bind", "source": "/k/t", "options": ["rbind"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
        ],
        "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "s"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}, {"type": "mount"}],
                  "cgroupsPath": "/pods/a", "resources": {"memory": {"limit": 1048576}, "devices": null}, "sysctl": null}
    })
}

fn error(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut spec = container();
    change(&mut spec);
    match parse(spec.to_string().as_bytes()) {
        Ok(plan) => plan.unsupported.unwrap(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_container_of_cri_becomes_a_plan() {
    let plan = parse(container().to_string().as_bytes()).unwrap();
    assert_eq!(
        (plan.role, plan.sandbox_id.as_deref()),
        (Role::Container, Some("s"))
    );
    assert_eq!(
        (
            plan.program.uid,
            plan.program.gid,
            plan.program.groups.as_slice()
        ),
        (1, 2, &[3][..])
    );
    assert_eq!(plan.mounts.len(), 2, "kernel file systems are left out");
    let mut spec = container();
    spec["mounts"][3] =
        json!({"destination": "/dev", "type": "bind", "source": "/v", "options": ["rbind"]});
    let plan_of_dev = parse(spec.to_string().as_bytes()).unwrap();
    assert_eq!(plan_of_dev.mounts.len(), 3, "a volume is none of them");
    assert_eq!(plan.termination_message.as_deref(), Some("/k/t"));
    assert_eq!(
        (plan.pid, plan.network),
        (Namespace::New, Namespace::Path("/n".into()))
    );
    assert_eq!(plan.resources.memory_budget(), Some(1 << 20));
    assert_eq!(plan.cgroup, Some(CgroupPath::Cgroupfs("/pods/a".into())));
}

#[test]
fn a_container_is_of_its_pods_kubernetes_namespace_and_so_are_its_execs() {
    let mut spec = container();
    assert_eq!(parse(spec.to_string().as_bytes()).unwrap().tenant, "");
    spec["annotations"]["io.kubernetes.cri.sandbox-namespace"] = json!("team");
    let plan = parse(spec.to_string().as_bytes()).unwrap();
    let exec = plan.exec(
        json!({"args": ["/x.wasm"], "cwd": "/"})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(
        (plan.tenant.as_str(), exec.unwrap().tenant),
        ("team", "team".into())
    );
}

#[test]
fn profile_and_labels_are_the_programs_and_its_execs() {
    let spec = |profile: &str| {
        let mut spec = container();
        spec["process"]["apparmorProfile"] = json!(profile);
        spec["process"]["selinuxLabel"] = json!("u:r:t:s0:c1,c2");
        spec["linux"]["mountLabel"] = json!("u:r:f:s0:c1,c2");
        let tmpfs = json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1k"]});
        spec["mounts"].as_array_mut().unwrap().push(tmpfs);
        parse(spec.to_string().as_bytes()).unwrap()
    };
    let names = |plan: &crate::Plan| {
        let program = &plan.program;
        (
            program.apparmor_profile.clone(),
            program.selinux_label.clone(),
        )
    };
    let own = ("p".to_string(), "u:r:t:s0:c1,c2".to_string());
    let plan = spec("p");
    assert_eq!(names(&plan), own);
    assert_eq!(plan.mount_label, "u:r:f:s0:c1,c2");
    let data: Vec<&str> = plan.mounts.iter().map(|m| m.data.as_str()).collect();
    assert_eq!(data, ["", "", "size=1k,context=\"u:r:f:s0:c1,c2\""]);
    let exec = |plan: &crate::Plan, process| plan.exec(process).map(|exec| names(&exec));
    assert_eq!(exec(&plan, br#"{"args": ["/a"]}"#).unwrap(), own);
    let other = br#"{"args": ["/a"], "apparmorProfile": "q", "selinuxLabel": "r"}"#;
    assert_eq!(exec(&plan, other).unwrap(), ("q".into(), "r".into()));
    let refused = exec(&spec(""), other).unwrap_err().to_string();
    assert!(refused.contains("process.apparmorProfile"), "{refused}");
    assert!(
        error(|s| s["process"]["apparmorProfile"] = json!("p\0q"))
            .contains("process.apparmorProfile")
    );
}

#[test]
fn ca_certificates_are_named_unless_the_program_names_others() {
    let environment = |annotation: &str, env: &[&str]| {
        let mut spec = container();
        spec["annotations"]["slipway.dev/ca-certificates"] = json!(annotation);
        spec["process"]["env"] = json!(env);
        parse(spec.to_string().as_bytes()).map(|plan| plan.program.env)
    };
    let named = format!("SSL_CERT_FILE={}", slipway_protocol::CA_CERTIFICATES);
    assert_eq!(environment("node", &["A=b"]).unwrap(), ["A=b", &named]);
    let own = ["SSL_CERT_FILE=/own"];
    assert_eq!(environment("node", &own).unwrap(), own);
    let plan = crate::Plan {
        ca_certificates: true,
        ..crate::Plan::default()
    };
    let exec = plan.exec(br#"{"args": ["/app.wasm"]}"#).unwrap();
    assert_eq!(exec.program.env, [named]);
    assert!(environment("other", &[]).is_err());
}

#[test]
fn refusals_name_their_field() {
    assert!(error(|s| s["process"]["args"] = json!([])).contains("process.args"));
    assert!(error(|s| s["process"]["cwd"] = json!("x")).contains("process.cwd"));
    assert!(
        error(|s| s["mounts"][1]["destination"] = json!("data")).contains("mounts[1].destination")
    );
    assert!(
        error(|s| s["mounts"][1] = json!({"destination": "/x", "type": "nfs", "source": "h"}))
            .contains("mounts[1].type")
    );
    assert!(
        error(|s| s["linux"]["namespaces"][0]["type"] = json!("time2")).contains("namespaces[0]")
    );
    assert!(error(|s| s["linux"]["sysctl"] = json!({"net..x": "1"})).contains("sysctl"));
    for path in [
        "/a/../b",
        "/a/./b",
        ".",
        "/",
        "//",
        "/tmp/x:a:b",
        "a.slice:../b:c",
        "a.slice:b:c/d",
        "a.slice:b:",
        "x:b:c",
    ] {
        assert!(
            error(|s| s["linux"]["cgroupsPath"] = json!(path)).contains("linux.cgroupsPath: "),
            "{path}"
        );
    }
    assert!(
        error(|s| s["annotations"]["slipway.dev/compile"] = json!("O9"))
            .contains("slipway.dev/compile")
    );
    assert!(
        error(|s| s["process"]["rlimits"] = json!([{"type": "RLIMIT_AS", "soft": 1, "hard": 1}]))
            .contains("rlimits[0]")
    );
    assert!(
        error(|s| s["process"]["env"] = json!(["A=".to_string() + &"x".repeat(3 << 20)]))
            .contains("limit")
    );
    assert!(error(|s| s["process"] = json!(7)).contains("line 1"));
}

#[test]
fn an_option_that_would_be_lost_is_refused() {
    for (kind, option, lost) in [
        ("bind", "idmap", true),
        ("bind", "size=64k", true),
        ("bind", "noatime", false),
        ("tmpfs", "tmpcopyup", true),
        ("tmpfs", "size=64k", false),
    ] {
        let mut spec = container();
        spec["mounts"][1] =
            json!({"destination": "/x", "type": kind, "source": "/v", "options": ["ro", option]});
        let plan = parse(spec.to_string().as_bytes()).unwrap();
        let error = plan.unsupported.unwrap_or_default();
        assert_eq!(
            error.contains("mounts[1].options"),
            lost,
            "{option}: {error}"
        );
        assert_eq!(error.contains(option), lost, "{option}: {error}");
    }
}

#[test]
fn a_stop_drains_where_the_annotation_says_so_but_not_in_execs() {
    let stop = |value: &str| {
        let mut spec = container();
        spec["annotations"]["slipway.dev/stop"] = json!(value);
        parse(spec.to_string().as_bytes()).unwrap()
    };
    let drained = stop("drain");
    assert!(drained.program.drain);
    let exec = drained.exec(br#"{"args": ["/a"], "cwd": "/"}"#).unwrap();
    assert!(!exec.program.drain);
    let refused = stop("later");
    assert!(!refused.program.drain);
    assert!(refused.unsupported.unwrap().contains("slipway.dev/stop"));
}

#[test]
fn an_exec_has_a_umask_and_refusals_of_its_own() {
    let plan = parse(container().to_string().as_bytes()).unwrap();
    let exec = |process: serde_json::Value| plan.exec(process.to_string().as_bytes());
    let umask = |user: serde_json::Value| exec(json!({"args": ["/a"], "user": user})).unwrap();
    assert_eq!(umask(json!({"umask": 63})).program.umask, Some(63));
    assert_eq!(umask(json!({})).program.umask, Some(0o022));
    let refused = exec(json!({"args": ["/a"], "execCPUAffinity": {"initial": "0"}}));
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("process.execCPUAffinity")
    );
}

#[test]
fn no_spec_makes_the_reader_panic() {
    let text = container().to_string();
    for end in 0..text.len() {
        assert!(parse(&text.as_bytes()[..end]).is_err());
    }
}

#[test]
fn both_cgroup_drivers_are_told_apart() {
    let mut spec = container();
    spec["linux"]["cgroupsPath"] = json!("kubepods.slice:cri-containerd:abc");
    assert!(matches!(
        parse(spec.to_string().as_bytes()).unwrap().cgroup,
        Some(CgroupPath::Systemd { .. })
    ));
}
