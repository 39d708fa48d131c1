"""Pods come and go while the processes that carry them are killed at random. At the end nothing is left of them, and what was not killed runs.

`make test-soak` says how long; the seed that is printed gives the same victims in the same order again. Which processes of that kind
are there at that moment is the machine's.
"""
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import os
import random
import re
import tempfile
import threading
import time
import unittest

from harness import COMPILING, PATIENCE, SYSTEMD, KillTest, Pod, slow_module

SECONDS = int(os.environ.get("SLIPWAY_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SLIPWAY_SOAK_SEED", random.SystemRandom().randrange(1 << 32)))
AT_ONCE = int(os.environ.get("SLIPWAY_SOAK_PODS_AT_ONCE", "50"))
HANDLER = os.environ.get("SLIPWAY_SOAK_HANDLER", "slipway")
# Pods that only stand there, and of which nobody kills anything: they run at the end.
STANDING = 4
# Each is compiled when it is first started.
MODULES = 400
# Seconds from one kill to the next, at most.
PAUSE = 3
# How often each is chosen. A killed containerd keeps everybody waiting.
VICTIMS = {
    "containerd": 1, "containerd-shim-slipway-v1": 4, "slipway-holder": 4, "slipway-guest": 4, "slipway-aot": 3, "slipway-queue": 1,
    "containerd-shim-runc-v2": 2,
}
# As containerd names them.
NETWORK_NAMESPACE = re.compile(r"/run/netns/(cni-[0-9a-f-]+)")
COLD = "a cold module"
# From so many seconds on, each kind must have been killed.
LONG = 600


@dataclasses.dataclass
class Victim:
    program: str
    # Its arguments and cgroup, and its parent's.
    text: str
    # When what it did can be done again.
    restored: float = math.inf


@unittest.skipIf(SYSTEMD, "in a bed without a pid namespace the processes of others would be killed")
class Soak(KillTest):
    def setUp(self):
        super().setUp()
        self.ends = time.monotonic() + SECONDS
        self.over = threading.Event()
        self.killed = []
        self.done = dict.fromkeys(self.programs(), 0)
        self.problems = []
        self.excused = 0
        # Of pods that stand there, and of all pods.
        self.spared, self.known = set(), set()
        self.modules = itertools.cycle(range(MODULES))

    def tearDown(self):
        """The test has looked for what is left behind itself."""

    def test_pods_come_and_go_while_their_processes_are_killed(self):
        print(f"    SLIPWAY_SOAK_SEED={SEED}, {SECONDS} s, {AT_ONCE} pods at once", flush=True)
        self.prepare()
        before = self.before = self.bed.state()
        standing = [self.standing_pod() for _ in range(STANDING)]
        self.spared.update(id for pod, container in standing for id in (pod.sandbox, container.id))
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE + 1) as pool:
            killer = pool.submit(self.kill_at_random, random.Random(SEED))
            kubelets = [pool.submit(self.come_and_go, random.Random(SEED + n)) for n in range(1, AT_ONCE + 1)]
            try:
                for kubelet in kubelets:
                    kubelet.result()
            finally:
                self.ends = 0
                self.over.set()
            killer.result()
        counts = collections.Counter(victim.program for victim in self.killed)
        print(
            f"    ended as they should: {json.dumps(self.done)}\n    otherwise, for something of theirs was killed: {self.excused}\n"
            f"    killed: {json.dumps(counts)}", flush=True)
        for _, container in standing:
            self.assertEqual(container.status()["state"], "CONTAINER_RUNNING", f"nothing of {container.id} was killed")
        self.assertEqual(self.problems, [])
        self.assertTrue(all(self.done.values()), self.done)
        if SECONDS >= LONG:
            self.assertEqual(set(counts), {name for name in VICTIMS if HANDLER == "slipway" or name in ("containerd", "containerd-shim-runc-v2")})
        # What is one pod's touches one pod.
        self.assertLessEqual(self.excused, sum(AT_ONCE if victim.program in ("containerd", *COMPILING) else 1 for victim in self.killed))
        self.remove_all_pods()
        # containerd tells nobody of the end of a shim that it does not know yet.
        self.age_sockets()
        self.works()
        self.remove_all_pods()
        # The queue works itself off.
        self.until(lambda: not self.jobs(), "the compile queue does not empty")
        self.disappears("slipway-aot")
        self.before = before
        self.leaves_nothing_but_namespaces()

    def leaves_nothing_but_namespaces(self):
        """A containerd that is killed between making a pod's network namespace and noting it down does not know it any more, whatever the
        handler."""
        left, namespaces = {}, set()

        def is_clean():
            left.clear()
            for kind, lines in self.bed.left_since(self.before).items():
                namespaces.update(NETWORK_NAMESPACE.findall("\n".join(lines)))
                if others := [line for line in lines if not NETWORK_NAMESPACE.search(line)]:
                    left[kind] = others
            return not left

        self.until(is_clean, lambda: f"left behind: {json.dumps(left, indent=2)}")
        kills = sum(victim.program == "containerd" for victim in self.killed)
        print(f"    network namespaces that a killed containerd has left: {len(namespaces)}", flush=True)
        self.assertLessEqual(len(namespaces), kills * AT_ONCE)

    def prepare(self):
        """All images are there before anybody is killed."""
        self.hello = self.bed.example("hello")
        with tempfile.TemporaryDirectory() as d:
            files = [slow_module(d, f"soak{n}", functions=30) for n in range(MODULES)]
            copies = (flag for path in files[1:] for flag in ("--copy", f"{path}:/{os.path.basename(path)}"))
            self.slow_image = self.bed.image(files[0], "soak", *copies)
        self.works()
        self.remove_all_pods()

    def standing_pod(self):
        pod = self.pod(HANDLER)
        self.pods.clear()
        container = pod.start(*(("localhost/busybox:1", ["-c", "sleep 100000"]) if HANDLER != "slipway" else (self.hello, ["sleep"])))
        return pod, container

    # What is done with a pod. Each returns whether it has seen what it should.

    def programs(self):
        linux = {"a Linux container": self.linux, "a Linux container that is stopped": self.linux_stopped}
        if HANDLER != "slipway":
            return linux
        return {"a program that ends": self.ends_by_itself, "a program that is stopped": self.stopped, "an exec": self.executed,
                COLD: self.compiled, **linux}

    def ends_by_itself(self, pod, number):
        return self.ended(pod.start(self.hello, ["exit", str(number)])) == number

    def stopped(self, pod, number):
        container = pod.start(self.hello, ["sleep"])
        patience, status = ((0, 137), (PATIENCE, 143))[number % 2]
        self.bed.crictl("stop", "-t", str(patience), container.id)
        return self.ended(container) == status

    def executed(self, pod, number):
        container = pod.start(self.hello, ["sleep"])
        said = self.bed.crictl("exec", "-s", container.id, "/hello.wasm", str(number)).stdout
        # crictl ends what both streams have said with a line of its own.
        return said.split("\n", 2)[:2] == ["Hello from Slipway", f"arguments: {number}"]

    def compiled(self, pod, number):
        name = f"/soak{next(self.modules)}.wat"
        return self.ended(pod.start(self.slow_image, command=[name], annotations={"slipway.dev/compile": ("full", "auto")[number % 2]})) == 0

    def linux(self, pod, number):
        return self.ended(pod.start("localhost/busybox:1", ["-c", f"exit {number}"])) == number

    def linux_stopped(self, pod, number):
        container = pod.start("localhost/busybox:1", ["-c", "sleep 1000"])
        self.bed.crictl("stop", "-t", "0", container.id)
        return self.ended(container) == 137

    def ended(self, container):
        """Its exit status, asked for again where containerd is away."""

        def status():
            with contextlib.suppress(AssertionError):
                now = container.status()
                return (now["exitCode"],) if now["state"] == "CONTAINER_EXITED" else ()

        [code] = self.until(status, f"{container.id} does not end")
        return code

    # What a kubelet does.

    def come_and_go(self, dice):
        while time.monotonic() < self.ends:
            what, act = dice.choice(list(self.programs().items()))
            self.one_pod(what, act, dice.randrange(1, 100))

    def one_pod(self, what, act, number):
        since = time.monotonic()
        config = self.pod_config()
        sandbox = None
        try:
            sandbox = self.bed.crictl("runp", "--runtime", HANDLER, config).stdout.strip()
            self.known.add(sandbox)
            if act(Pod(self.bed, sandbox, config), number):
                self.done[what] += 1
                return
            problem = "another end than it should"
        except AssertionError as e:
            problem = str(e)
        finally:
            self.remove(os.path.basename(config).removesuffix(".json"))
        if self.touched(what, sandbox, since):
            self.excused += 1
        else:
            self.problems.append(f"{what} {sandbox}: {problem}")

    def remove(self, name):
        """As the kubelet takes a pod away: by what CRI knows of it, until it is gone."""

        def is_gone():
            with contextlib.suppress(AssertionError):
                sandboxes = self.bed.crictl("pods", "-q", "--no-trunc", "--name", f"^{name}$").stdout.split()
                for sandbox in sandboxes:
                    self.bed.remove_pod(sandbox)
                return not sandboxes

        try:
            self.until(is_gone, f"{name} is not removed")
        except AssertionError as e:
            self.problems.append(str(e))

    # Who is killed.

    def touched(self, what, sandbox, since):
        """Whether something that this pod needed was killed: of its own processes, which of a pod that has got no id are those of no pod that
        has one; containerd; for a cold module what compiles."""
        of_all = ("containerd", *(COMPILING if what == COLD else ()))

        def touches(victim):
            if victim.program in of_all:
                return victim.restored > since
            if sandbox:
                return sandbox in victim.text
            return victim.restored > since and victim.program not in COMPILING and not any(id in victim.text for id in list(self.known))

        return any(touches(victim) for victim in list(self.killed))

    def kill_at_random(self, dice):
        try:
            self.kill_until_it_is_over(dice)
        finally:
            self.ends = 0

    def kill_until_it_is_over(self, dice):
        while not self.over.wait(dice.uniform(0, PAUSE)):
            [program], lot = dice.choices(list(VICTIMS), VICTIMS.values()), dice.random()
            if candidates := self.candidates(program):
                pid, text = candidates[int(lot * len(candidates))]
                # Noted beforehand, for whoever asks meanwhile.
                victim = Victim(program, text)
                self.killed.append(victim)
                if program == "containerd":
                    self.kill_containerd()
                    self.restart()
                else:
                    self.bed.run("kill", "-9", pid, check=False)
                victim.restored = time.monotonic()

    def candidates(self, program):
        """Processes of a program: pid, and all that tells whose it is, its own and its parent's."""
        lines = self.bed.run("ps", "-ww", "-eo", "pid=,ppid=,cgroup:400=,args=").stdout.splitlines()
        processes = {pid: (parent, text) for pid, parent, text in (line.split(None, 2) for line in lines)}
        found = []
        for pid in self.pids(program):
            parent, text = processes.get(pid, ("", ""))
            # The kernel has one name for the shims of both runtimes.
            if program.startswith("containerd-shim-") and f"{program} " not in text:
                continue
            if program not in COMPILING:
                text += processes.get(parent, ("", ""))[1]
            if text and not any(id in text for id in self.spared):
                found.append((pid, text))
        return found
