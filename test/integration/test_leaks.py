"""Many pods, one after the other and at once, and nothing that grows with their number."""
import concurrent.futures
import os

from harness import USER_MODE_LINUX, Pod, PodTest

# make test-soak asks for a thousand. Under a kernel where a system call takes 20 µs, fifty at once would outlast crictl.
PODS = int(os.environ.get("SLIPWAY_SOAK_PODS", "10" if USER_MODE_LINUX else "40"))
AT_ONCE = 5 if USER_MODE_LINUX else 50
# containerd opens connections as it needs them, and keeps some.
SPARE_FDS = 8
# What an allocator may keep, in KiB: a shim that kept one buffer of 4 KiB for each exec would be over it.
SPARE_KIB = 256


class Leaks(PodTest):
    def setUp(self):
        super().setUp()
        self.image = self.bed.example("hello")
        self.survivor = self.pod().start(self.image, ["sleep"])
        self.shim = self.bed.run("pgrep", "-f", "containerd-shim-slipway-v1").stdout.split()[0]
        # The first ones fill caches.
        for _ in range(3):
            self.one_pod(self.pod_config())
            self.exec()

    def exec(self):
        self.assertEqual(self.bed.crictl("exec", "-s", self.survivor.id, "/hello.wasm").stdout.splitlines()[0], "Hello from Slipway")

    def one_pod(self, config):
        pod = Pod(self.bed, self.bed.crictl("runp", "--runtime", "slipway", config).stdout.strip(), config)
        try:
            self.assertEqual(pod.start(self.image, ["exit", "4"]).ended()["exitCode"], 4)
        finally:
            pod.remove()

    def numbers(self):
        containerd = self.bed.containerd_pid()
        fds = lambda pid: len(self.bed.run("ls", f"/proc/{pid}/fd").stdout.split())
        return {
            "containerd's fds": fds(containerd), "a shim's fds": fds(self.shim), "its memory, KiB": self.memory(),
        }

    def memory(self):
        # What it has written. Pages of its program are private only as long as no other shim of this machine uses them.
        lines = self.bed.run("cat", f"/proc/{self.shim}/smaps_rollup").stdout.splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

    def compare(self, state, before):
        allowed = {"containerd's fds": SPARE_FDS, "its memory, KiB": SPARE_KIB}
        # containerd removes some files after its answer.
        self.until(lambda: not self.bed.left_since(state), lambda: f"left behind: {self.bed.left_since(state)}")
        self.until(lambda: self.numbers()["a shim's fds"] <= before["a shim's fds"], "a shim keeps descriptors")
        after = self.numbers()
        print("\n".join(f"    {name}: {before[name]} before, {after[name]} after" for name in before))
        for name in before:
            self.assertLessEqual(after[name], before[name] + allowed.get(name, 0), name)

    def test_one_after_the_other(self):
        before = self.bed.state(), self.numbers()
        for n in range(PODS):
            self.one_pod(self.pod_config())
            if n % 5 == 0:
                self.exec()
        self.compare(*before)

    def test_at_once(self):
        before = self.bed.state(), self.numbers()
        configs = [self.pod_config() for _ in range(AT_ONCE)]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.one_pod, configs))
        self.compare(*before)
