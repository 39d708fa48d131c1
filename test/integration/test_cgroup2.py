"""Cgroup version 2, with both cgroup drivers."""
import json
import os
import unittest

from harness import SYSTEMD, PodTest, run

VERSION_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
SHARED_PID = {"security_context": {"namespace_options": {"pid": 1}}}
# memory.stat's counters that containerd's metrics have a field for.
MEMORY_STAT = (
    "anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp inactive_anon active_anon "
    "inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault pgmajfault pgrefill pgscan pgsteal "
    "pgactivate pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc").split()


def with_resources(**resources):
    return {"resources": resources, **SHARED_PID}


@unittest.skipUnless(VERSION_2, "this host has cgroup version 1: make test-cgroup2")
class CgroupTest(PodTest):
    def cgroup(self, container):
        """The directory that the container's process is in."""
        pid = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"]
        return "/sys/fs/cgroup" + self.bed.run("sed", "s/^0:://", f"/proc/{pid}/cgroup").stdout.strip()

    def read(self, directory, file):
        with open(f"{directory}/{file}") as f:
            return f.read().strip()

    def counters(self, directory, file):
        return {key: int(value) for key, value in (line.split() for line in self.read(directory, file).splitlines())}

    def metrics(self, container):
        """What the shim answers to Stats; fields that are 0 are not there."""
        return json.loads(self.bed.ctr("tasks", "metrics", "--format", "json", container.id).stdout)


class Cgroup2(CgroupTest):
    def test_limits_are_those_that_runc_writes(self):
        pod = self.pod()
        limits = with_resources(
            memory_limit_in_bytes=64 << 20, memory_swap_limit_in_bytes=64 << 20, cpu_period=50000, cpu_quota=20000, cpu_shares=512,
            cpuset_cpus="0", cpuset_mems="0", unified={"memory.high": str(48 << 20), "memory.oom.group": "1", "pids.max": "20"})
        wasm = self.cgroup(pod.start(self.bed.example("hello"), ["sleep"], linux=limits))
        linux = self.cgroup(pod.start("localhost/busybox:1", ["-c", "sleep 1000"], linux=limits))
        for file, value in {
            "memory.max": str(64 << 20), "memory.high": str(48 << 20), "memory.oom.group": "1", "cpu.max": "20000 50000",
            "pids.max": "20", "cpuset.cpus": "0", "cpuset.mems": "0",
            # As crun and runc 1.3.6 give it; the bed's runc is older.
            "cpu.weight": "59",
        }.items():
            self.assertEqual(self.read(wasm, file), value, file)
        for file in ("memory.max", "memory.low", "memory.high", "memory.swap.max", "cpu.max", "cpu.idle", "pids.max"):
            self.assertEqual(self.read(wasm, file), self.read(linux, file), file)

    def test_without_limits_there_are_none(self):
        directory = self.cgroup(self.pod().start(self.bed.example("hello"), ["sleep"]))
        for file, value in {"memory.max": "max", "pids.max": "max", "cpu.max": "max 100000"}.items():
            self.assertEqual(self.read(directory, file), value, file)

    def test_every_container_has_a_cgroup_of_its_own_where_the_kubelet_looks(self):
        pod = self.pod()
        # The pod's first guest was started with the sandbox, the second one is born in its cgroup.
        containers = [pod.start(self.bed.example("hello"), ["sleep"]) for _ in range(2)]
        for container in containers:
            name = f"cri-containerd-{container.id}.scope" if SYSTEMD else container.id
            directory = self.cgroup(container)
            self.assertEqual(directory, f"/sys/fs/cgroup{self.bed.cgroup_parent}/{name}")
            self.assertEqual(len(self.read(directory, "cgroup.procs").split()), 1)
            self.assertGreater(int(self.read(directory, "memory.current")), 0)
        gone = self.cgroup(containers[0])
        self.bed.crictl("stop", "-t", "0", containers[0].id)
        self.bed.crictl("rm", containers[0].id)
        self.assertFalse(os.path.exists(gone))
        self.assertTrue(os.path.exists(self.cgroup(containers[1])))

    def test_statistics_are_the_kernels(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"], linux=with_resources(memory_limit_in_bytes=64 << 20))
        container.until("Hello")
        directory = self.cgroup(container)
        metrics = self.metrics(container)
        memory = metrics["memory"]
        stat = self.counters(directory, "memory.stat")
        self.assertEqual(
            {key for key in MEMORY_STAT if memory.get(key)}, {key for key in MEMORY_STAT if stat.get(key)}, "fields that are not 0")
        for key in ("anon", "file", "pgfault"):
            self.assertEqual(memory.get(key, 0), stat[key], key)
        for key, file in (("usage", "memory.current"), ("usage_limit", "memory.max"), ("max_usage", "memory.peak")):
            self.assertEqual(memory[key], int(self.read(directory, file)), key)
        self.assertEqual(metrics["pids"]["current"], 1)
        self.assertEqual(metrics["cpu"].get("usage_usec", 0), self.counters(directory, "cpu.stat")["usage_usec"])
        self.assertIn("memory_events", metrics)
        self.assertIn("io", metrics)

    def test_throttling_is_counted(self):
        container = self.pod().start(self.bed.example("hello"), ["spin"], linux=with_resources(cpu_period=100000, cpu_quota=10000))
        container.until("Hello")
        directory = self.cgroup(container)
        self.until(lambda: self.counters(directory, "cpu.stat")["nr_throttled"] >= 3)
        cpu = self.metrics(container)["cpu"]
        self.assertGreaterEqual(cpu["nr_throttled"], 3)
        self.assertGreaterEqual(cpu["nr_periods"], cpu["nr_throttled"])
        self.assertGreater(cpu["throttled_usec"], 0)
        self.assertGreater(cpu["usage_usec"], 0)

    def test_a_guest_that_the_kernel_kills_is_oomkilled(self):
        # A limit of the kernel's that the engine's budget knows nothing of.
        limits = with_resources(memory_limit_in_bytes=256 << 20, unified={"memory.max": str(16 << 20)})
        container = self.pod().start(self.bed.example("hello"), ["alloc", "100"], linux=limits)
        status = container.ended()
        self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))

    def test_a_linux_container_that_the_kernel_kills_is_oomkilled(self):
        # Where a container ends at once, runc's shim comes too late to read memory.events: systemd has removed the cgroup.
        limits = with_resources(memory_limit_in_bytes=16 << 20)
        status = self.pod().start("localhost/busybox:1", ["-c", "tail /dev/zero; sleep 1; exit 1"], linux=limits).ended()
        self.assertEqual(status["reason"], "OOMKilled")

    def test_others_do_not_pay_for_an_oom_kill(self):
        pod = self.pod()
        neighbour = pod.start(self.bed.example("hello"), ["sleep"], linux=with_resources(memory_limit_in_bytes=16 << 20))
        limits = with_resources(memory_limit_in_bytes=256 << 20, unified={"memory.max": str(16 << 20)})
        self.assertEqual(pod.start(self.bed.example("hello"), ["alloc", "100"], linux=limits).ended()["reason"], "OOMKilled")
        self.assertEqual(self.metrics(neighbour)["memory_events"], {})
        self.bed.crictl("stop", "-t", "0", neighbour.id)
        self.assertEqual(neighbour.status()["reason"], "Error")


@unittest.skipUnless(SYSTEMD, "the cgroup driver is not systemd: CGROUP_DRIVER=systemd test/cgroup2/run -s …")
class SystemdDriver(CgroupTest):
    """Slices as the kubelet makes them: systemd's own, one for every pod."""

    def setUp(self):
        super().setUp()
        self.slices = []

    def tearDown(self):
        for pod in self.pods:
            pod.remove()
        self.pods = []
        for name in self.slices:
            run("systemctl", "stop", name)
        super().tearDown()

    def pod_in_slice(self):
        top = self.bed.cgroup_parent.strip("/")
        name = f"{top.removesuffix('.slice')}-pod{self.bed.count}.slice"
        run("systemctl", "start", name)
        self.slices.append(name)
        self.set(name, "CPUAccounting=yes", "MemoryAccounting=yes", "IOAccounting=yes", "TasksAccounting=yes")
        return self.pod(linux={"cgroup_parent": f"/{top}/{name}"}), name

    def set(self, name, *properties):
        run("systemctl", "set-property", "--runtime", name, *properties)

    def limited(self, pod):
        """A container, and whether its limits still hold once systemd has nothing left to do."""
        container = pod.start(self.bed.example("hello"), ["sleep"], linux=with_resources(memory_limit_in_bytes=64 << 20, cpu_quota=50000))
        directory = self.cgroup(container)

        def check(after):
            run("systemctl", "is-system-running", check=False)
            self.assertEqual(self.read(directory, "memory.max"), str(64 << 20), after)
            self.assertEqual(self.read(directory, "cpu.max"), "50000 100000", after)
            self.assertGreater(self.metrics(container)["memory"]["usage"], 0)

        check("start")
        return check

    def test_scopes_lie_in_the_pods_slice(self):
        pod, name = self.pod_in_slice()
        for image, args in ((self.bed.example("hello"), ["sleep"]), ("localhost/busybox:1", ["-c", "sleep 1000"])):
            container = pod.start(image, args)
            self.assertEqual(
                self.cgroup(container), f"/sys/fs/cgroup{self.bed.cgroup_parent}/{name}/cri-containerd-{container.id}.scope")
        # systemd's word for the Linux container: the delegate was told of the driver.
        active = lambda id: run("systemctl", "is-active", f"cri-containerd-{id}.scope", check=False).stdout.strip()
        self.assertEqual(active(container.id), "active")
        # And for the sandbox, which keeps the slice's controllers for the Wasm containers.
        self.assertEqual(active(pod.sandbox), "active")
        pod.remove()
        self.pods.remove(pod)
        self.until(lambda: active(pod.sandbox) == "inactive")

    def test_a_stopped_slice_leaves_nothing(self):
        pod, name = self.pod_in_slice()
        pod.start(self.bed.example("hello"), ["sleep"])
        directory = f"/sys/fs/cgroup{self.bed.cgroup_parent}/{name}"
        self.assertTrue(os.path.exists(directory))
        pod.remove()
        self.pods.remove(pod)
        run("systemctl", "stop", name)
        self.assertFalse(os.path.exists(directory))

    def test_limits_outlive_a_reload_of_systemd(self):
        check = self.limited(self.pod_in_slice()[0])
        run("systemctl", "daemon-reload")
        check("daemon-reload")

    def test_limits_outlive_a_resize_of_the_pod(self):
        pod, name = self.pod_in_slice()
        check = self.limited(pod)
        self.set(name, "MemoryMax=500M", "CPUWeight=77")
        check("set-property")

    def test_limits_outlive_a_linux_container_of_the_pod(self):
        pod, _ = self.pod_in_slice()
        check = self.limited(pod)
        side = pod.start("localhost/busybox:1", ["-c", "exit 0"])
        side.ended()
        self.bed.crictl("rm", side.id)
        check("the Linux container is gone")
