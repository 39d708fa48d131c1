"""What becomes of the fields of a spec in a real pod. docs/oci.md names these tests."""
import json
import os
import shutil
import subprocess
import tempfile

from harness import EXAMPLES, PodTest

RUNTIME = "io.containerd.slipway.v1"
VERSION_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
SHARED_PID = {"namespace_options": {"pid": 1}}


def disk():
    """A block device of this machine, as major:minor."""
    for name in sorted(os.listdir("/sys/block")):
        with open(f"/sys/block/{name}/dev") as f:
            return f.read().strip()


class Spec(PodTest):
    """Containers without CRI, of a spec as it is: it has what CRI cannot ask for."""

    def config(self, directory, module, *args, **fields):
        os.makedirs(f"{directory}/rootfs", exist_ok=True)
        shutil.copy(f"{EXAMPLES}/{module}.wasm", f"{directory}/rootfs/{module}.wasm")
        linux = {"namespaces": [{"type": "mount"}, {"type": "pid"}], **fields.pop("linux", {})}
        process = {"args": [f"/{module}.wasm", *args], "cwd": "/", "user": {"uid": 0, "gid": 0}, **fields.pop("process", {})}
        with open(f"{directory}/config.json", "w") as f:
            json.dump({"ociVersion": "1.2.0", "process": process, "root": {"path": f"{directory}/rootfs"}, "linux": linux, **fields}, f)
        return f"{directory}/config.json", f"s{self.bed.number()}"

    def test_a_memory_that_the_kernel_refuses_ends_the_program_and_is_never_one_at_address_0(self):
        # What a machine with less memory does, by a filter: what the memory begins with is refused, or the engine's reservation.
        for size in (2 << 30, 12 << 30):
            rule = {"names": ["mmap"], "action": "SCMP_ACT_ERRNO", "errnoRet": 12, "args": [{"index": 1, "value": size, "op": "SCMP_CMP_EQ"}]}
            with self.subTest(size), tempfile.TemporaryDirectory() as d:
                seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
                path, container = self.config(d, "hello", process={"args": ["/memory.wat"]}, linux={"seccomp": seccomp})
                with open(f"{d}/rootfs/memory.wat", "w") as f:
                    f.write('(module (memory 32768) (func (export "_start") (i32.store8 (i32.const 9) (i32.const 1))))')
                done = self.bed.ctr("run", "--rm", "--config", path, "--runtime", RUNTIME, container, check=False)
                self.assertEqual(done.returncode, 137, done.stderr)
                self.assertIn(f"the kernel refuses {size} bytes for a memory of the module", done.stderr)

    def test_limits_umask_and_rlimits_arrive_in_the_kernel(self):
        cgroup = f"{self.bed.cgroup_parent}/spec"
        device, megabyte = disk(), 1 << 20
        files = {  # name: (field of linux.resources, version 1, version 2)
            "reservation": ({"memory": {"reservation": megabyte}}, f"memory/memory.soft_limit_in_bytes={megabyte}", f"memory.low={megabyte}"),
            "shares": ({"cpu": {"shares": 512}}, "cpu/cpu.shares=512", "cpu.weight=59"),
            "processors": ({"cpu": {"cpus": "0"}}, "cpuset/cpuset.cpus=0", "cpuset.cpus=0"),
            "pids": ({"pids": {"limit": 9}}, "pids/pids.max=9", "pids.max=9"),
            "burst": ({"cpu": {"quota": 50000, "period": 100000, "burst": 20000}}, "cpu/cpu.cfs_burst_us=20000", "cpu.max.burst=20000"),
            "idle": ({"cpu": {"shares": 512, "idle": 1}}, "cpu/cpu.idle=1", "cpu.idle=1"),
            "swappiness": ({"memory": {"swappiness": 7}}, "memory/memory.swappiness=7", None),
            "read bytes": ({"blockIO": {"throttleReadBpsDevice": [self.throttle(device, megabyte)]}},
                           f"blkio/blkio.throttle.read_bps_device={device} {megabyte}", f"io.max={device} rbps={megabyte} wbps=max riops=max wiops=max"),
            "write bytes": ({"blockIO": {"throttleWriteBpsDevice": [self.throttle(device, megabyte)]}},
                            f"blkio/blkio.throttle.write_bps_device={device} {megabyte}", f"io.max={device} rbps=max wbps={megabyte} riops=max wiops=max"),
            "reads": ({"blockIO": {"throttleReadIOPSDevice": [self.throttle(device, 100)]}},
                      f"blkio/blkio.throttle.read_iops_device={device} 100", f"io.max={device} rbps=max wbps=max riops=100 wiops=max"),
            "writes": ({"blockIO": {"throttleWriteIOPSDevice": [self.throttle(device, 100)]}},
                       f"blkio/blkio.throttle.write_iops_device={device} 100", f"io.max={device} rbps=max wbps=max riops=max wiops=100"),
            "weight": ({"blockIO": {"weight": 500}}, "blkio/blkio.bfq.weight=500", "io.bfq.weight=default 500"),
            "unified": ({"unified": {"memory.high": str(48 * megabyte)}}, None, f"memory.high={48 * megabyte}"),
        }
        lacking = set()
        for name, (resources, *expected) in files.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as d:
                path, container = self.config(d, "hello", "sleep", linux={"cgroupsPath": cgroup, "resources": resources},
                                              process={
                    "user": {"uid": 0, "gid": 0, "umask": 0o027}, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]})
                started = self.bed.ctr("run", "-d", "--config", path, "--runtime", RUNTIME, container, check=False)
                try:
                    if expected[VERSION_2] is None:
                        self.assertNotEqual(started.returncode, 0)
                        self.assertIn(next(iter(resources)), started.stderr)
                        continue
                    file, value = expected[VERSION_2].split("=", 1)
                    if self.lacks(file):
                        lacking.add(file)
                        continue
                    self.assertEqual(started.returncode, 0, started.stderr)
                    controller, _, file = file.rpartition("/")
                    with open(f"/sys/fs/cgroup/{controller}{cgroup}/{file}") as f:
                        self.assertEqual(f.read().strip(), value)
                    pid = self.bed.ctr("tasks", "ps", container).stdout.split()[2]
                    self.assertIn("Umask:\t0027", self.bed.run("cat", f"/proc/{pid}/status").stdout)
                    self.assertRegex(self.bed.run("cat", f"/proc/{pid}/limits").stdout, r"Max open files +100 +200 ")
                finally:
                    self.bed.ctr("tasks", "rm", "-f", container, check=False)
                    self.bed.ctr("containers", "rm", container, check=False)

        if lacking:
            self.skipTest(f"the rest is as it should be, but this machine has no {', '.join(sorted(lacking))}")

    def throttle(self, device, rate):
        major, minor = device.split(":")
        return {"major": int(major), "minor": int(minor), "rate": rate}

    def lacks(self, file):
        """A file that a cgroup on this machine would not have. Those of the bed's parent stand for the container's."""
        controller, _, name = file.rpartition("/")
        return not os.path.exists(f"/sys/fs/cgroup/{controller}{self.bed.cgroup_parent}/{name}")

    def test_no_device_can_be_opened_but_those_of_dev(self):
        with tempfile.TemporaryDirectory() as d:
            os.makedirs(f"{d}/rootfs")
            os.mkdir(f"{d}/volume")
            for node in (f"{d}/rootfs/null", f"{d}/volume/null"):
                subprocess.run(["mknod", "-m", "666", node, "c", "1", "3"], check=True)
            mounts = [{"destination": "/volume", "type": "bind", "source": f"{d}/volume", "options": ["rbind", "dev"]}]
            for file, status in (("/dev/null", 0), ("/null", 1), ("/volume/null", 1)):
                with self.subTest(file):
                    path, container = self.config(d, "envfiles", "write", file, "x", mounts=mounts)
                    done = self.bed.ctr("run", "--rm", "--config", path, "--runtime", RUNTIME, container, check=False)
                    self.assertEqual(done.returncode, status, done.stderr)


class Kubelet(PodTest):
    def process(self, container):
        pid = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"]
        status = dict(line.split(":\t", 1) for line in self.bed.run("cat", f"/proc/{pid}/status").stdout.splitlines())
        return pid, status

    def test_what_the_kubelet_says_of_every_pod_is_taken(self):
        defaults = {
            "seccomp": {"profile_type": 0}, "apparmor": {"profile_type": 1}, "selinux_options": {},
            "masked_paths": ["/proc/acpi", "/proc/kcore", "/sys/firmware"], "readonly_paths": ["/proc/sys", "/proc/bus"],
        }
        pod = self.pod(dns_config={"servers": ["192.0.2.53"]}, linux={
            "security_context": {"seccomp": {"profile_type": 0}, "run_as_user": {"value": 65535}, "readonly_rootfs": True, **SHARED_PID},
            "overhead": {}, "resources": {"cpu_shares": 102, "cpu_period": 100000, "memory_limit_in_bytes": 64 << 20}})
        info = json.loads(self.bed.crictl("inspectp", pod.sandbox).stdout)["info"]
        self.assertEqual(
            self.bed.run("cat", f"/proc/{info['pid']}/oom_score_adj").stdout.strip(), str(info["runtimeSpec"]["process"]["oomScoreAdj"]))
        container = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, labels={"a": "b"}, linux={
            "resources": {"cpu_shares": 102, "cpu_period": 100000, "memory_limit_in_bytes": 64 << 20, "oom_score_adj": 985,
                          "hugepage_limits": [{"page_size": "2MB", "limit": 0}, {"page_size": "1GB", "limit": 0}]},
            "security_context": {
                "capabilities": {"add_capabilities": ["NET_BIND_SERVICE"], "drop_capabilities": ["ALL"]}, "no_new_privs": False,
                "run_as_user": {"value": 1000}, "run_as_group": {"value": 2000}, "supplemental_groups": [3000], "readonly_rootfs": True,
                **defaults, **SHARED_PID}})
        pid, status = self.process(container)
        self.assertEqual(self.bed.run("cat", f"/proc/{pid}/oom_score_adj").stdout.strip(), "985")
        self.assertEqual((status["Uid"].split()[0], status["Gid"].split()[0]), ("1000", "2000"))
        self.assertIn("3000", status["Groups"].split())
        self.assertEqual((status["Umask"], status["NoNewPrivs"], int(status["CapBnd"], 16)), ("0022", "1", 0))
        self.assertEqual(self.bed.run("nsenter", "-t", str(pid), "-u", "hostname").stdout.strip(), f"p{self.bed.count - 1}")
        self.assertIn("192.0.2.53", self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "cat", "/etc/resolv.conf").stdout)
        written = self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "write", "/file", "x", check=False)
        self.assertIn("Read-only file system", written.stderr)

    def test_devices_are_refused_by_name(self):
        device = [{"container_path": "/dev/slow", "host_path": "/dev/zero", "permissions": "r"}]
        container = self.pod().create(self.bed.example("hello"), devices=device)
        self.assertIn("linux.devices: /dev/slow", container.start(check=False).stderr)
        privileged = {"security_context": {"privileged": True, **SHARED_PID}}
        container = self.pod(linux=privileged).create(self.bed.example("hello"), linux=privileged)
        self.assertIn("linux.devices: /dev/", container.start(check=False).stderr)

    def test_a_volume_gets_the_nodes_later_mounts_where_it_asks_for_them(self):
        pod = self.pod()
        for propagation, seen in ((0, 1), (1, 0), (2, 0)):
            with self.subTest(propagation), tempfile.TemporaryDirectory() as d:
                os.mkdir(f"{d}/later")
                container = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, mounts=[
                    {"container_path": "/v", "host_path": d, "propagation": propagation}])
                self.bed.run("sh", "-c", f"mount -t tmpfs tmpfs {d}/later && echo here >{d}/later/file")
                try:
                    found = self.bed.ctr("tasks", "exec", "--exec-id", f"e{propagation}", container.id, "/envfiles.wasm", "cat", "/v/later/file", check=False)
                    self.assertEqual(found.returncode, seen, found.stderr)
                finally:
                    self.bed.run("umount", f"{d}/later")
                    self.bed.crictl("rm", "-f", container.id)
