use std::io::Read;

use super::*;
use rustix::event::{PollFd, PollFlags};

/// Waits for a child's end: its cgroup may go a moment before the kernel tells of it.
fn end(child: &slipway_sys::Child) -> Option<u32> {
    let mut end = [PollFd::new(&child.pidfd, PollFlags::IN)];
    rustix::event::poll(&mut end, None).unwrap();
    slipway_sys::reap(child.pid).unwrap()
}

#[test]
fn slices_nest_as_systemd_nests_them() {
    assert_eq!(
        expand_slice("kubepods-besteffort-podx.slice"),
        Path::new("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice")
    );
    assert_eq!(expand_slice("-.slice"), Path::new(""));
    let path = CgroupPath::Systemd {
        slice: "a.slice".into(),
        prefix: "cri-containerd".into(),
        name: "id".into(),
    };
    assert_eq!(
        Cgroup::new(&path).path(),
        "/a.slice/cri-containerd-id.scope"
    );
}

#[test]
fn shares_become_the_weight_that_other_runtimes_give() {
    let pairs = [
        (0, 1),
        (2, 1),
        (102, 17),
        (512, 59),
        (1024, 100),
        (262_143, 10_000),
        (u64::MAX, 10_000),
    ];
    for (shares, expected) in pairs {
        assert_eq!(v2::weight(shares), expected, "{shares}");
    }
}

#[test]
fn a_frozen_cgroup_is_removed_with_its_processes() {
    let cgroup = Cgroup::new(&CgroupPath::Cgroupfs(format!(
        "/slipway-frozen-{}",
        std::process::id()
    )));
    cgroup
        .create(&Resources::default())
        .expect("a cgroup is made: these tests run as root");
    let (program, mut runs) = sleeper();
    let child = slipway_sys::spawn(program, 0, &cgroup.entry().unwrap()).unwrap();
    runs.read_exact(&mut [0]).unwrap();
    cgroup.freeze(true).unwrap();
    cgroup.remove().unwrap();
    assert_eq!(end(&child), Some(137));
}

/// A program that sleeps, and says when it does.
fn sleeper() -> (slipway_sys::Exec, std::io::PipeReader) {
    let (runs, out) = std::io::pipe().unwrap();
    let null = || fs::File::open("/dev/null").unwrap().into();
    let program = slipway_sys::Exec {
        program: c"/bin/sh".into(),
        argv: vec![c"sh".into(), c"-c".into(), c"echo && exec sleep 100".into()],
        envp: Vec::new(),
        fds: vec![null(), out.into()],
        directory: None,
        read_only: None,
        with_parent: true,
    };
    (program, runs)
}

#[test]
fn each_limit_has_its_file_on_both_versions() {
    let resources = Resources {
        cpu_quota: Some(50_000),
        cpu_burst: Some(20_000),
        cpu_shares: Some(512),
        cpu_idle: Some(1),
        io_weight: Some(1000),
        io_device_weights: vec![("8:0".into(), 10)],
        io_throttles: vec![(Throttle::Writes, "8:0".into(), 7)],
        hugepages: vec![("2MB".into(), 4096)],
        ..Resources::default()
    };
    // Directories in the place of hierarchies: what is written stays to be read.
    let root = std::env::temp_dir().join(format!("slipway-files-{}", std::process::id()));
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("hugetlb.2MB.rsvd.max"), "").unwrap();
    let check = |layout, resources: &Resources, files: &[(&str, &str)]| {
        let path = PathBuf::new();
        Cgroup { layout, path }.apply(resources).unwrap();
        for (file, value) in files {
            assert_eq!(fs::read_to_string(root.join(file)).unwrap(), *value);
        }
    };
    let v2 = [
        ("cpu.max.burst", "20000"),
        ("cpu.idle", "1"),
        ("io.weight", "8:0 1"),
        ("io.max", "8:0 wiops=7"),
        ("hugetlb.2MB.max", "4096"),
        ("hugetlb.2MB.rsvd.max", "4096"),
    ];
    check(Layout::V2(root.clone()), &resources, &v2);
    assert!(
        !root.join("cpu.weight").exists(),
        "an idle cgroup has no weight"
    );
    let v1 = [
        ("cpu.cfs_burst_us", "20000"),
        ("cpu.idle", "1"),
        ("memory.swappiness", "7"),
        ("blkio.weight", "1000"),
        ("blkio.weight_device", "8:0 10"),
        ("blkio.throttle.write_iops_device", "8:0 7"),
        ("hugetlb.2MB.limit_in_bytes", "4096"),
    ];
    let controllers = v1::CONTROLLERS
        .iter()
        .map(|name| (*name, root.clone()))
        .collect();
    let swappiness = Some(7);
    let resources = Resources {
        swappiness,
        ..resources
    };
    check(Layout::V1(controllers), &resources, &v1);
    fs::remove_dir_all(&root).unwrap();
    assert_eq!([v2::io_weight(10), v2::io_weight(1000)], [1, 10_000]);
}

#[test]
fn caches_can_be_had_back_and_a_tmpfs_cannot() {
    let d = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(d.path().join(file), text).unwrap();
    write("memory.current", "100\n");
    write("memory.usage_in_bytes", "100\n");
    write(
        "memory.stat",
        "file 60\nshmem 20\ncache 1\ntotal_cache 60\ntotal_shmem 20\n",
    );
    let root = d.path().to_path_buf();
    for layout in [
        Layout::V2(root.clone()),
        Layout::V1(vec![("memory", root.clone())]),
    ] {
        let path = PathBuf::new();
        let cgroup = Cgroup { layout, path };
        assert_eq!(cgroup.memory_usage(), 60);
        assert_eq!(cgroup.memory_limit(), None);
        let file = if cgroup.is_v2() {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        for (text, limit) in [
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("4096\n", Some(4096)),
        ] {
            write(file, text);
            assert_eq!(cgroup.memory_limit(), limit, "{text}");
        }
    }
}

#[test]
fn a_cgroup_holds_its_processes_and_goes_with_them() {
    let cgroup = Cgroup::new(&CgroupPath::Cgroupfs(format!(
        "/slipway-test-{}/c",
        std::process::id()
    )));
    let resources = Resources {
        memory_limit: Some(64 << 20),
        pids_limit: Some(10),
        cpu_shares: Some(2),
        ..Resources::default()
    };
    cgroup
        .create(&resources)
        .expect("a cgroup is made: these tests run as root");
    let (program, mut runs) = sleeper();
    let child = slipway_sys::spawn(program, 0, &cgroup.entry().unwrap()).unwrap();
    runs.read_exact(&mut [0]).unwrap();
    assert_eq!(cgroup.pids(), [child.pid]);
    for file in cgroup.join_files() {
        let inside = fs::read_to_string(&file).unwrap();
        assert_eq!(inside.trim(), child.pid.to_string(), "{}", file.display());
    }
    let metrics = cgroup.metrics();
    assert_eq!((metrics.pids_current, metrics.memory.limit), (1, 64 << 20));
    cgroup.remove().unwrap();
    assert_eq!(end(&child), Some(137));
    assert!(cgroup.directories().iter().all(|d| !d.exists()));
    cgroup.remove().unwrap();
    let parent = Cgroup {
        path: cgroup.path.parent().unwrap().into(),
        ..cgroup
    };
    parent.remove().unwrap();
}

#[test]
fn a_limit_that_cannot_be_set_is_an_error_with_its_field() {
    let quota = Resources {
        cpu_quota: Some(5),
        ..Resources::default()
    };
    let unified = Resources {
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    };
    let swappiness = Resources {
        swappiness: Some(1),
        ..Resources::default()
    };
    let d = tempfile::tempdir().unwrap();
    let root = d.path().join("gone");
    let v1 = |controller| Layout::V1(vec![(controller, root.clone())]);
    let v2 = Layout::V2(root.clone());
    for (layout, resources, told) in [
        (v1("cpu"), &quota, "cpu.quota: 5 cannot be written to "),
        (
            v1("memory"),
            &quota,
            "cpu.quota: this node's kernel has no cgroup controller cpu",
        ),
        (
            v1("memory"),
            &unified,
            "unified.memory.high: this node has cgroup version 1",
        ),
        (
            v2.clone(),
            &quota,
            "cpu.quota: 5 100000 cannot be written to ",
        ),
        (
            v2,
            &swappiness,
            "memory.swappiness: this node has cgroup version 2",
        ),
    ] {
        let path = "c".into();
        let error = Cgroup { layout, path }
            .apply(resources)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("linux.resources.{told}")),
            "{error}"
        );
    }
    // A guest has no huge page whose number would have to be bounded.
    let hugepages = Resources {
        hugepages: vec![("2MB".into(), 0)],
        ..Resources::default()
    };
    let (layout, path) = (v1("memory"), "c".into());
    Cgroup { layout, path }.apply(&hugepages).unwrap();
}
