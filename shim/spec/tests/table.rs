//! docs/oci.md has a row for every field of a spec, each row's word is what the code does, and each row's test exists.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use slipway_spec::Plan;

/// One field, or all below one, with its words and its test.
struct Row {
    field: String,
    words: Vec<String>,
    test: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of a chapter.
fn rows(chapter: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("docs/oci.md")).unwrap();
    let chapter = text
        .split("\n## ")
        .find(|c| c.starts_with(chapter))
        .unwrap();
    let row = |line: &str| {
        let cells: Vec<String> = line.split('|').map(|c| c.trim().to_string()).collect();
        let field = cells[1].strip_prefix('`')?.strip_suffix('`')?.to_string();
        let words = cells[2..4].to_vec();
        let test = cells[5].clone();
        Some(Row { field, words, test })
    };
    chapter
        .lines()
        .filter(|l| l.starts_with("| `"))
        .filter_map(row)
        .collect()
}

fn fields(file: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fields")
        .join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let fields = text.lines().filter(|l| !l.starts_with('#'));
    fields.map(str::to_string).collect()
}

/// What is wrong between the fields of a file and the rows of a chapter.
fn gaps(fields: &[String], rows: &[Row]) -> Vec<String> {
    let of = |row: &str, field: &str| match row.strip_suffix('*') {
        Some(start) => field.starts_with(start),
        None => field == row,
    };
    let mut wrong = Vec::new();
    for field in fields {
        let n = rows.iter().filter(|row| of(&row.field, field)).count();
        if n != 1 {
            wrong.push(format!("{field}: {n} rows"));
        }
    }
    for row in rows {
        if !fields.iter().any(|field| of(&row.field, field)) {
            wrong.push(format!("{}: no such field", row.field));
        }
        if let Err(e) = exists(&row.test) {
            wrong.push(format!("{}: {e}", row.field));
        }
    }
    wrong
}

/// `file::function` is a test.
fn exists(test: &str) -> Result<(), String> {
    let (file, name) = test
        .split_once("::")
        .ok_or(format!("{test:?} is no file::function"))?;
    let directories = [
        "test/integration",
        "shim/spec/src",
        "shim/spec/tests",
        "shim",
    ];
    let text = directories
        .iter()
        .find_map(|d| std::fs::read_to_string(root().join(d).join(file)).ok())
        .ok_or(format!("{file} is not there"))?;
    let found = match file.ends_with(".py") {
        true => name.starts_with("test_") && text.contains(&format!("    def {name}(")),
        false => ["\n", "\n    "]
            .iter()
            .any(|indent| text.contains(&format!("#[test]{indent}fn {name}("))),
    };
    found.then_some(()).ok_or(format!("{file} has no {name}"))
}

#[test]
fn every_field_has_one_row_and_every_row_a_test() {
    for (file, chapter) in [("oci.txt", "The OCI runtime spec"), ("cri.txt", "CRI")] {
        let wrong = gaps(&fields(file), &rows(chapter));
        assert!(wrong.is_empty(), "docs/oci.md, {chapter}: {wrong:#?}");
    }
    let oci = rows("The OCI runtime spec");
    for row in rows("CRI") {
        let known = [
            "honoured",
            "always",
            "refused",
            "not applicable",
            "containerd's",
        ];
        assert!(known.contains(&row.words[0].as_str()), "{}", row.field);
        let becomes = row.words[1].trim_matches('`');
        assert!(
            becomes.is_empty() || oci.iter().any(|o| o.field == becomes),
            "{}: {becomes}",
            row.field
        );
    }
}

fn spec(role: &str) -> Value {
    json!({
        "process": {"args": ["/app.wasm"], "cwd": "/"},
        "annotations": {"io.kubernetes.cri.container-type": role},
        "linux": {"namespaces": [{"type": "mount"}]},
    })
}

/// Puts a field into a spec; other fields of its objects stay.
fn put(spec: &mut Value, change: &Value) {
    match (spec, change) {
        (Value::Object(spec), Value::Object(change)) => {
            for (key, value) in change {
                put(spec.entry(key).or_insert(Value::Null), value);
            }
        }
        (spec, change) => *spec = change.clone(),
    }
}

fn plan(spec: &Value) -> Plan {
    slipway_spec::parse(spec.to_string().as_bytes()).unwrap()
}

/// A value for the field of each row, in the place where a spec has it.
fn samples() -> Vec<(&'static str, Value)> {
    let process = |value: Value| json!({"process": value});
    let linux = |value: Value| json!({"linux": value});
    let resources = |value: Value| json!({"linux": {"resources": value}});
    let memory = |value: Value| json!({"linux": {"resources": {"memory": value}}});
    let cpu = |value: Value| json!({"linux": {"resources": {"cpu": value}}});
    let io = |value: Value| json!({"linux": {"resources": {"blockIO": value}}});
    let mount = |name: &str, value: Value| {
        let mut mount = json!({"destination": "/d", "type": "bind", "source": "/s"});
        mount[name] = value;
        json!({"mounts": [mount]})
    };
    let ids = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    // One is of no use without the other.
    let user = linux(json!({
        "namespaces": [{"type": "user", "path": "/proc/1/ns/user"}], "uidMappings": ids, "gidMappings": ids
    }));
    let mut mapped = mount("uidMappings", ids.clone());
    mapped["mounts"][0]["gidMappings"] = ids;
    put(&mut mapped, &user);
    let throttle = json!([{"major": 8, "minor": 0, "rate": 1}]);
    let rlimit = json!({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]});
    let weights = json!({"weightDevice": [{"major": 8, "minor": 1, "weight": 10}]});
    vec![
        ("ociVersion", json!({"ociVersion": "1.2.0"})),
        ("process.terminal", process(json!({"terminal": true}))),
        (
            "process.consoleSize.*",
            process(json!({"consoleSize": {"height": 1, "width": 1}})),
        ),
        ("process.user.uid", process(json!({"user": {"uid": 1}}))),
        ("process.user.gid", process(json!({"user": {"gid": 1}}))),
        ("process.user.umask", process(json!({"user": {"umask": 7}}))),
        (
            "process.user.additionalGids",
            process(json!({"user": {"additionalGids": [1]}})),
        ),
        ("process.args", process(json!({"args": ["/b"]}))),
        ("process.env", process(json!({"env": ["A=1"]}))),
        ("process.cwd", process(json!({"cwd": "/d"}))),
        (
            "process.capabilities.*",
            process(json!({"capabilities": {"ambient": ["CAP_CHOWN"], "bounding": ["CAP_CHOWN"]}})),
        ),
        ("process.rlimits[].type", process(rlimit.clone())),
        ("process.rlimits[].hard", process(rlimit.clone())),
        ("process.rlimits[].soft", process(rlimit)),
        (
            "process.noNewPrivileges",
            process(json!({"noNewPrivileges": true})),
        ),
        (
            "process.apparmorProfile",
            process(json!({"apparmorProfile": "p"})),
        ),
        ("process.oomScoreAdj", process(json!({"oomScoreAdj": 5}))),
        (
            "process.scheduler.*",
            process(json!({"scheduler": {"policy": "SCHED_BATCH"}})),
        ),
        (
            "process.selinuxLabel",
            process(json!({"selinuxLabel": "l"})),
        ),
        (
            "process.ioPriority.*",
            process(json!({"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 1}})),
        ),
        (
            "process.execCPUAffinity.*",
            process(json!({"execCPUAffinity": {"initial": "0"}})),
        ),
        ("root.path", json!({"root": {"path": "r"}})),
        ("root.readonly", json!({"root": {"readonly": true}})),
        ("hostname", json!({"hostname": "h"})),
        ("domainname", json!({"domainname": "d"})),
        ("mounts[].destination", mount("destination", json!("/e"))),
        ("mounts[].type", mount("type", json!("bind"))),
        ("mounts[].source", mount("source", json!("/t"))),
        ("mounts[].options", mount("options", json!(["ro"]))),
        ("mounts[].uidMappings[].*", mapped.clone()),
        ("mounts[].gidMappings[].*", mapped.clone()),
        ("hooks.*", json!({"hooks": {"poststop": [{"path": "/h"}]}})),
        (
            "annotations",
            json!({"annotations": {"slipway.dev/compile": "full"}}),
        ),
        ("linux.uidMappings[].*", user.clone()),
        ("linux.gidMappings[].*", user),
        (
            "linux.sysctl",
            linux(json!({"sysctl": {"net.a": "1"}, "namespaces": [{"type": "network"}]})),
        ),
        (
            "linux.resources.devices[].*",
            resources(
                json!({"devices": [{"allow": true, "type": "c", "major": 1, "minor": 1, "access": "r"}]}),
            ),
        ),
        ("linux.resources.memory.limit", memory(json!({"limit": 1}))),
        (
            "linux.resources.memory.reservation",
            memory(json!({"reservation": 1})),
        ),
        ("linux.resources.memory.swap", memory(json!({"swap": 1}))),
        (
            "linux.resources.memory.kernel",
            memory(json!({"kernel": 1})),
        ),
        (
            "linux.resources.memory.kernelTCP",
            memory(json!({"kernelTCP": 1})),
        ),
        (
            "linux.resources.memory.swappiness",
            memory(json!({"swappiness": 0})),
        ),
        (
            "linux.resources.memory.disableOOMKiller",
            memory(json!({"disableOOMKiller": true})),
        ),
        (
            "linux.resources.memory.useHierarchy",
            memory(json!({"useHierarchy": true})),
        ),
        (
            "linux.resources.memory.checkBeforeUpdate",
            memory(json!({"checkBeforeUpdate": true})),
        ),
        ("linux.resources.cpu.shares", cpu(json!({"shares": 2}))),
        ("linux.resources.cpu.quota", cpu(json!({"quota": 1}))),
        ("linux.resources.cpu.burst", cpu(json!({"burst": 1}))),
        ("linux.resources.cpu.period", cpu(json!({"period": 1}))),
        (
            "linux.resources.cpu.realtimeRuntime",
            cpu(json!({"realtimeRuntime": 1})),
        ),
        (
            "linux.resources.cpu.realtimePeriod",
            cpu(json!({"realtimePeriod": 1})),
        ),
        ("linux.resources.cpu.cpus", cpu(json!({"cpus": "0"}))),
        ("linux.resources.cpu.mems", cpu(json!({"mems": "0"}))),
        ("linux.resources.cpu.idle", cpu(json!({"idle": 1}))),
        (
            "linux.resources.pids.limit",
            resources(json!({"pids": {"limit": 1}})),
        ),
        ("linux.resources.blockIO.weight", io(json!({"weight": 10}))),
        (
            "linux.resources.blockIO.leafWeight",
            io(json!({"leafWeight": 10})),
        ),
        (
            "linux.resources.blockIO.weightDevice[].major",
            io(weights.clone()),
        ),
        (
            "linux.resources.blockIO.weightDevice[].minor",
            io(weights.clone()),
        ),
        ("linux.resources.blockIO.weightDevice[].weight", io(weights)),
        (
            "linux.resources.blockIO.weightDevice[].leafWeight",
            io(json!({"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]})),
        ),
        (
            "linux.resources.blockIO.throttleReadBpsDevice[].*",
            io(json!({"throttleReadBpsDevice": throttle})),
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice[].*",
            io(json!({"throttleWriteBpsDevice": throttle})),
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice[].*",
            io(json!({"throttleReadIOPSDevice": throttle})),
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice[].*",
            io(json!({"throttleWriteIOPSDevice": throttle})),
        ),
        (
            "linux.resources.hugepageLimits[].*",
            resources(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]})),
        ),
        (
            "linux.resources.network.*",
            resources(json!({"network": {"classID": 1}})),
        ),
        (
            "linux.resources.rdma{}.*",
            resources(json!({"rdma": {"mlx": {"hcaHandles": 1}}})),
        ),
        (
            "linux.resources.unified",
            resources(json!({"unified": {"memory.high": "1"}})),
        ),
        ("linux.cgroupsPath", linux(json!({"cgroupsPath": "/c"}))),
        (
            "linux.namespaces[].type",
            linux(json!({"namespaces": [{"type": "pid"}]})),
        ),
        (
            "linux.namespaces[].path",
            linux(json!({"namespaces": [{"type": "ipc", "path": "/n"}]})),
        ),
        (
            "linux.devices[].*",
            linux(json!({"devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]})),
        ),
        (
            "linux.netDevices{}.*",
            linux(json!({"netDevices": {"eth7": {"name": "e"}}})),
        ),
        (
            "linux.seccomp.defaultAction",
            linux(json!({"seccomp": {"defaultAction": "SCMP_ACT_KILL"}})),
        ),
        (
            "linux.seccomp.defaultErrnoRet",
            linux(json!({"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13}})),
        ),
        (
            "linux.seccomp.architectures",
            linux(json!({"seccomp": {"architectures": ["SCMP_ARCH_X86"]}})),
        ),
        (
            "linux.seccomp.flags",
            linux(
                json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}}),
            ),
        ),
        (
            "linux.seccomp.listenerPath",
            linux(json!({"seccomp": {"listenerPath": "/l"}})),
        ),
        (
            "linux.seccomp.listenerMetadata",
            linux(json!({"seccomp": {"listenerMetadata": "m"}})),
        ),
        (
            "linux.seccomp.syscalls[].*",
            linux(
                json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}]}}),
            ),
        ),
        (
            "linux.rootfsPropagation",
            linux(json!({"rootfsPropagation": "rshared"})),
        ),
        (
            "linux.maskedPaths",
            linux(json!({"maskedPaths": ["/proc/kcore", "/sys"]})),
        ),
        (
            "linux.readonlyPaths",
            linux(json!({"readonlyPaths": ["/proc/sys"]})),
        ),
        ("linux.mountLabel", linux(json!({"mountLabel": "l"}))),
        (
            "linux.intelRdt.*",
            linux(json!({"intelRdt": {"closID": "c"}})),
        ),
        (
            "linux.memoryPolicy.*",
            linux(json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}})),
        ),
        (
            "linux.personality.*",
            linux(json!({"personality": {"domain": "LINUX32"}})),
        ),
        (
            "linux.timeOffsets{}.*",
            linux(json!({"timeOffsets": {"monotonic": {"secs": 1}}})),
        ),
    ]
}

/// A field's name in an error: without signs for lists and maps, and without an element's number.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut inside = 0;
    for c in text.chars() {
        match c {
            '[' | '{' => inside += 1,
            ']' | '}' => inside -= 1,
            _ if inside == 0 => out.push(c),
            _ => {}
        }
    }
    out.trim_end_matches(".*").into()
}

#[test]
fn every_field_does_what_its_row_says() {
    let samples = samples();
    let rows = rows("The OCI runtime spec");
    assert_eq!(samples.len(), rows.len());
    for row in rows {
        let field = &row.field;
        let sample = samples.iter().find(|(name, _)| name == field);
        let (_, sample) = sample.unwrap_or_else(|| panic!("{field}: no sample"));
        for (role, word) in ["container", "sandbox"].iter().zip(&row.words) {
            let mut changed = spec(role);
            put(&mut changed, sample);
            let (before, after) = (plan(&spec(role)), plan(&changed));
            let same = format!("{before:?}") == format!("{after:?}");
            let error = after.unsupported.map(|e| plain(&e));
            let holds = match word.as_str() {
                "honoured" => error.is_none() && !same,
                "always" | "not applicable" => error.is_none() && same,
                "refused" => error.as_ref().is_some_and(|e| e.contains(&plain(field))),
                // The sandbox's plan may have it; its holder has no use for it.
                "unused" => *role == "sandbox" && error.is_none(),
                _ => false,
            };
            assert!(
                holds,
                "docs/oci.md: {field}, {role}: {word}; but: {error:?}, same: {same}"
            );
        }
    }
}

#[test]
fn a_missing_row_and_a_missing_test_are_found() {
    let row = |field: &str, test: &str| Row {
        field: field.into(),
        words: Vec::new(),
        test: test.into(),
    };
    let here = "table.rs::a_missing_row_and_a_missing_test_are_found";
    let fields = ["a.b".to_string(), "c".to_string()];
    let wrong = |rows: &[Row]| gaps(&fields, rows).len();
    assert_eq!(wrong(&[row("a.*", here), row("c", here)]), 0);
    assert_eq!(wrong(&[row("a.*", here)]), 1);
    assert_eq!(
        wrong(&[row("a.*", here), row("a.b", here), row("c", here)]),
        1
    );
    assert_eq!(
        wrong(&[row("a.*", here), row("c", here), row("d", here)]),
        1
    );
    assert_eq!(wrong(&[row("a.*", here), row("c", "table.rs::none")]), 1);
    assert_eq!(wrong(&[row("a.*", here), row("c", "none.rs::none")]), 1);
}

#[test]
fn what_asks_for_nothing_is_not_refused() {
    for change in [
        json!({"linux": {"devices": [{"path": "/dev/null"}], "timeOffsets": {}, "intelRdt": null, "resources": {"network": {}}}}),
        json!({"linux": {"resources": {"memory": {"disableOOMKiller": false, "checkBeforeUpdate": false}}}}),
        json!({"hooks": {}, "process": {"scheduler": null}}),
    ] {
        let mut changed = spec("container");
        put(&mut changed, &change);
        assert_eq!(plan(&changed).unsupported, None, "{change}");
    }
    for masked in ["/etc/secret", "/process"] {
        let mut changed = spec("container");
        put(&mut changed, &json!({"linux": {"maskedPaths": [masked]}}));
        let error = plan(&changed).unsupported.unwrap();
        assert!(error.contains("linux.maskedPaths") && error.contains(masked));
    }
}
