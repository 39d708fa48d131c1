"""NRI: what a plugin of the node adjusts arrives in a Wasm container and in a Linux container of its pod as it does under runc."""
import contextlib
import glob
import json
import os
import subprocess
import tempfile

from harness import ROOT, PodTest

MEGABYTE = 1 << 20
VERSION_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
BUSYBOX = "localhost/busybox:1"


def memory(limit):
    return {"resources": {"memory": {"limit": {"value": limit}, "swap": {"value": limit}}}}


class Nri(PodTest):
    @contextlib.contextmanager
    def plugin(self, adjustment):
        """A plugin that adjusts each new container so. Yields a function that has it ask for an update, and returns the answer."""
        plugin = subprocess.Popen(
            [f"{ROOT}/test/bed/bed", "run", self.bed.root, "nri-adjust", json.dumps(adjustment)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def update(wish):
            plugin.stdin.write(json.dumps(wish) + "\n")
            plugin.stdin.flush()
            return plugin.stdout.readline().strip()

        try:
            self.assertEqual(plugin.stdout.readline().strip(), "ready")
            yield update
        finally:
            plugin.stdin.close()
            plugin.wait()
            plugin.stdout.close()

    def containers(self):
        """Each kind of container, with the command of an exec that prints its environment, and of one that prints a file."""
        pod, of_runc = self.pod(), self.pod("runc")
        env, cat = ["/envfiles.wasm", "env"], ["/envfiles.wasm", "cat"]
        yield "wasm", pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True), env, cat
        for name, where in ("linux", pod), ("runc", of_runc):
            yield name, where.start(BUSYBOX, ["-c", "sleep 1000"]), ["env"], ["cat"]

    def read(self, path):
        return self.bed.run("cat", path).stdout

    def memory_limit(self, container):
        controller, file = ("", "memory.max") if VERSION_2 else ("memory", "memory.limit_in_bytes")
        path, = glob.glob(f"/sys/fs/cgroup/{controller}{self.bed.cgroup_parent}/*{container.id}*/{file}")
        return int(self.read(path))

    def test_what_a_plugin_adjusts_arrives_in_every_kind_of_container(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/file", "w") as f:
                f.write("of the node")
            adjustment = {
                "env": [{"key": "ADJUSTED", "value": "yes"}],
                "mounts": [{"destination": "/given", "type": "bind", "source": d, "options": ["rbind", "ro"]}],
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 700, "hard": 800}],
                "linux": memory(64 * MEGABYTE),
            }
            with self.plugin(adjustment) as update:
                for name, container, env, cat in self.containers():
                    with self.subTest(name):
                        pid = container.info()["pid"]
                        execute = lambda *command: self.bed.crictl("exec", "-s", container.id, *command).stdout
                        self.assertIn("ADJUSTED=yes\n", execute(*env))
                        self.assertEqual(execute(*cat, "/given/file").strip(), "of the node")
                        self.assertRegex(self.read(f"/proc/{pid}/limits"), r"Max open files +700 +800 ")
                        self.assertEqual(self.memory_limit(container), 64 * MEGABYTE)
                        self.assertEqual(update({"containerId": container.id, "linux": memory(96 * MEGABYTE)}), "updated")
                        self.assertEqual(self.memory_limit(container), 96 * MEGABYTE)

    def test_what_cannot_be_for_a_module_is_refused_by_the_fields_name_and_goes_to_a_linux_container(self):
        with tempfile.TemporaryDirectory() as d:
            hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat >/dev/null; echo called >>{d}/hooks"]}
            device = {"path": "/dev/given", "type": "c", "major": 1, "minor": 5}
            for field, adjustment in (
                    ("hooks", {"hooks": {"createRuntime": [hook]}}),
                    ("linux.devices", {"linux": {"devices": [device]}})):
                with self.subTest(field), self.plugin(adjustment):
                    pod = self.pod()
                    with self.assertRaisesRegex(AssertionError, field):
                        pod.start(self.bed.example("hello"), ["sleep"])
                    linux = pod.start(BUSYBOX, ["-c", "ls -d /dev/given; echo end; sleep 1000"])
                    linux.until("end")
                    if field == "hooks":
                        with open(f"{d}/hooks") as f:
                            self.assertEqual(f.read(), "called\n")
                    else:
                        self.assertIn("/dev/given\nend", linux.text())
