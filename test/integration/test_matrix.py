"""kill -9 of every process at every step of a container's life: a test per step, a cell of the matrix per victim.

No process has fault points in it: a step is held from outside. Something that the next step needs stands still (SIGSTOP),
either since it is known beforehand, or since it has made a system call that only this step makes (strace's injection). What
stands still goes on after the kill, if it was not the victim.

Left out, because the process does not exist at that step: the compiler but while it compiles, the guest and the holder before
they are started and when they have ended. CRI's create is containerd's alone; the shim's Create and Start follow one another in
CRI's start, so *created, not started* is the moment when Create has answered and Start waits for the module to be loaded.
"""
import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import unittest

from harness import PATIENCE, ROOT, USER_MODE_LINUX, KillTest

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
CREATED, RUNNING, EXITED, UNKNOWN = (f"CONTAINER_{state}" for state in ("CREATED", "RUNNING", "EXITED", "UNKNOWN"))
PROGRAMS = {
    "shim": "containerd-shim-slipway-v1", "guest": "slipway-guest", "holder": "slipway-holder", "containerd": "containerd", "compiler": "slipway-aot"}


@unittest.skipIf(USER_MODE_LINUX, "strace's injection is not tried under this kernel")
class Matrix(KillTest):
    def setUp(self):
        super().setUp()
        self.held = None

    def tearDown(self):
        """Each cell has looked for what is left behind itself."""

    def cells(self, step, truths, restart=False, before_next=lambda: None):
        """For each victim: the sandbox's state, the container's state and exit status that are the truth afterwards."""
        for victim, truth in truths.items():
            with self.subTest(step=step.__name__, victim=victim):
                # One cell's failure is not the next one's.
                self.before = self.bed.state()
                try:
                    with step() as (container, victims):
                        self.kill(*victims.get(victim) or self.pids(PROGRAMS[victim]))
                        if victim == "containerd":
                            # What stood still goes on without it.
                            self.disappears("containerd")
                        self.go_on()
                        if victim == "containerd":
                            self.restart()
                    self.becomes(truth, container)
                    before_next()
                    self.works()
                finally:
                    self.clear(restart)

    def becomes(self, truth, container):
        now = []

        def is_true():
            sandboxes = json.loads(self.bed.crictl("pods", "-o", "json").stdout)["items"]
            now[:] = [sandbox["state"] for sandbox in sandboxes]
            if container:
                status = container.status()
                now.extend([status["state"], status["exitCode"]])
            return now == truth

        # CRI has no call that waits for a state.
        self.until(is_true, lambda: f"{now} did not become {truth}")

    def clear(self, restart):
        """Removes all pods, and finds nothing left."""
        self.go_on()
        if not self.pids("containerd"):
            self.restart()
        self.remove_all_pods()
        if restart:
            self.restart()
        self.queue_is_empty()
        self.leave_nothing()

    # How a step is held.

    def stand_still(self, pid):
        self.held = pid
        self.bed.run("kill", "-STOP", pid)

    def go_on(self):
        if self.held:
            self.bed.run("kill", "-CONT", self.held, check=False)
            self.held = None

    @contextlib.contextmanager
    def background(self, *command):
        """A call of CRI that does not return while the step is held."""
        thread = threading.Thread(target=self.bed.crictl, args=command, kwargs={"check": False})
        thread.start()
        try:
            yield
        finally:
            self.go_on()
            thread.join()

    @contextlib.contextmanager
    def held_after(self, call, pid, *command):
        """Runs a command of crictl; the first process of a family that makes a system call stands still after it."""
        with tempfile.NamedTemporaryFile() as out:
            tracer = subprocess.Popen(
                [f"{ROOT}/test/bed/bed", "run", self.bed.root, "strace", "-f", "-qq", "-o", out.name, "-e", f"trace={call}",
                 "-e", f"inject={call}:signal=SIGSTOP:when=1", "-p", pid], start_new_session=True)
            try:
                self.until(lambda: "TracerPid:\t0" not in self.bed.run("cat", f"/proc/{pid}/status").stdout)
                with self.background(*command):
                    stopped = self.until(lambda: re.search(rb"^(\d+) +--- stopped by SIGSTOP", open(out.name, "rb").read(), re.M))
                    self.held = stopped[1].decode()
                    os.killpg(tracer.pid, signal.SIGTERM)
                    tracer.wait()
                    yield self.held
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(tracer.pid, signal.SIGKILL)
                tracer.wait()

    def running_container(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        return container

    def main_pid(self, container):
        return str(json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"])

    # The steps: each yields the container and the victims that are not known by their names alone.

    @contextlib.contextmanager
    def shim_started(self):
        """It has left containerd's session and does not serve yet."""
        config = self.pod_config()
        with self.held_after("setsid", *self.pids("containerd"), "runp", "--runtime", "slipway", config) as shim:
            yield None, {"shim": [shim]}

    def test_the_shim_has_started(self):
        self.cells(self.shim_started, {"containerd": [NOT_READY]})

    def test_the_shim_ends_before_it_serves(self):
        """containerd calls no `delete` then: the next shim that ends takes the socket away, once it is some seconds old."""
        self.cells(self.shim_started, {"shim": []}, before_next=self.age_sockets)

    @contextlib.contextmanager
    def sandbox_being_created(self):
        """The holder of its namespaces is not ready yet."""
        config = self.pod_config()
        with self.held_after("sethostname", *self.pids("containerd"), "runp", "--runtime", "slipway", config) as holder:
            # A holder has its shim's name until it is ready.
            shim = [pid for pid in self.pids(PROGRAMS["shim"]) if pid != holder]
            yield None, {"holder": [holder], "shim": shim}

    def test_the_sandbox_is_being_created(self):
        self.cells(self.sandbox_being_created, {"shim": [], "holder": [], "containerd": [NOT_READY]})

    @contextlib.contextmanager
    def sandbox_ready(self):
        yield self.pod().create(self.bed.example("hello"), ["sleep"]), {}

    def test_the_sandbox_is_ready(self):
        self.cells(self.sandbox_ready, {
            "shim": [NOT_READY, CREATED, 0], "holder": [NOT_READY, CREATED, 0], "guest": [READY, CREATED, 0], "containerd": [READY, CREATED, 0]})

    @contextlib.contextmanager
    def container_being_created(self):
        """The guest does not answer."""
        pod = self.pod()
        container = pod.create(self.bed.example("hello"), ["sleep"])
        self.stand_still(*self.pids("slipway-guest"))
        members = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{pod.sandbox}/slipway-members"
        with self.background("start", container.id):
            self.until(lambda: container.id in self.bed.run("cat", members).stdout)
            yield container, {}

    def test_a_container_is_being_created(self):
        self.cells(self.container_being_created, {
            "shim": [NOT_READY, EXITED, 128], "guest": [READY, EXITED, 128], "holder": [NOT_READY, EXITED, 128], "containerd": [READY, CREATED, 0]})

    @contextlib.contextmanager
    def module_being_compiled(self):
        container = self.slow()
        with self.background("start", container.id):
            self.appears("slipway-aot")
            yield container, {}

    def test_a_module_is_being_compiled(self):
        self.cells(self.module_being_compiled, {
            "shim": [NOT_READY, EXITED, 128], "guest": [READY, EXITED, 128], "holder": [NOT_READY, EXITED, 128],
            "containerd": [READY, CREATED, 0], "compiler": [READY, EXITED, 128]})

    def test_a_module_on_a_volume_is_rewritten_before_the_compiler_reads_it(self):
        """Nothing is stored under the digest of what it was: whoever has that module gets his own."""
        program = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {}))))"""
        for content in (program.format(66), "#!/bin/sh"):
            self.before = self.bed.state()
            with self.subTest(content), tempfile.TemporaryDirectory() as volume:
                victims = program.format(7) + f";; {self.bed.number()}"
                fields = {"command": ["/volume/app.wat"], "mounts": [{"container_path": "/volume", "host_path": volume}]}
                self.write(volume, victims)
                container = self.pod().create(self.bed.example("hello"), **fields)
                # The compile queue's worker, which the shim starts: it has not copied the module yet.
                self.disappears("slipway-queue")
                with self.held_after("listen", *self.pids(PROGRAMS["shim"]), "start", container.id):
                    self.write(volume, content)
                self.assertIn("/volume/app.wat: compile: the file changed while it was compiled", container.status()["message"])
                self.write(volume, victims)
                self.assertEqual(self.pod().start(self.bed.example("hello"), **fields).ended()["exitCode"], 7)
            self.clear(restart=False)

    def write(self, volume, content):
        with open(f"{volume}/app.wat", "w") as f:
            f.write(content)

    @contextlib.contextmanager
    def module_being_loaded(self):
        """Create has answered; Start waits."""
        container = self.pod().create(self.bed.example("hello"), ["sleep"])
        with self.held_after("pivot_root", *self.pids("slipway-guest"), "start", container.id):
            yield container, {}

    def test_a_module_is_being_loaded(self):
        self.cells(self.module_being_loaded, {
            "guest": [READY, EXITED, 128], "holder": [NOT_READY, RUNNING, 0], "containerd": [READY, CREATED, 0]})
        # containerd keeps the bundle then, until it is started again itself.
        self.cells(self.module_being_loaded, {"shim": [NOT_READY, EXITED, 128]}, restart=True)

    @contextlib.contextmanager
    def running(self):
        yield self.running_container(), {}

    def test_a_module_runs(self):
        self.cells(self.running, {
            "shim": [NOT_READY, EXITED, 255], "guest": [READY, EXITED, 137], "holder": [NOT_READY, RUNNING, 0], "containerd": [READY, RUNNING, 0]})

    @contextlib.contextmanager
    def exec_being_loaded(self):
        container = self.running_container()
        guest = self.main_pid(container)
        with self.held_after("setresuid", *self.pids(PROGRAMS["shim"]), *self.exec_command(container)) as exec:
            with self.execs_end_afterwards(guest):
                yield container, {"guest": [guest], "exec": [exec]}

    @contextlib.contextmanager
    def exec_running(self):
        container = self.running_container()
        guest = self.main_pid(container)
        with self.background(*self.exec_command(container)):
            [exec] = self.until(lambda: self.confined(self.execs(guest)))
            with self.execs_end_afterwards(guest):
                yield container, {"guest": [guest], "exec": [exec]}

    def exec_command(self, container):
        return ["exec", "-s", "--timeout", str(PATIENCE), container.id, "/hello.wasm", "sleep"]

    def execs(self, guest):
        """Those of the one container that runs."""
        return [pid for pid in self.pids("slipway-guest") if pid != guest]

    def confined(self, pids):
        """Of these processes, those that have their filter: from then on each is what it is, and no other goes on in its place."""
        status = lambda pid: self.bed.run("cat", f"/proc/{pid}/status", check=False).stdout
        return [pid for pid in pids if "Seccomp:\t2" in status(pid)]

    @contextlib.contextmanager
    def execs_end_afterwards(self, guest):
        """Nobody waits for the end of an exec that survives; while it is loaded it goes on in a child of its first process."""
        def none_is_left():
            left = self.execs(guest)
            if left:
                self.bed.run("kill", "-9", *left, check=False)
            return not left

        try:
            yield
        finally:
            self.go_on()
            self.until(none_is_left, "an exec does not end")

    def test_an_exec_is_being_loaded_and_runs(self):
        truths = {
            "guest": [READY, EXITED, 137], "exec": [READY, RUNNING, 0], "holder": [NOT_READY, RUNNING, 0], "containerd": [READY, RUNNING, 0]}
        for step in (self.exec_being_loaded, self.exec_running):
            self.cells(step, {"shim": [NOT_READY, EXITED, 255], **truths})

    @contextlib.contextmanager
    def paused(self):
        container = self.running_container()
        self.bed.ctr("tasks", "pause", container.id)
        yield container, {}

    def test_a_container_is_paused(self):
        self.cells(self.paused, {
            "shim": [NOT_READY, EXITED, 255], "holder": [NOT_READY, RUNNING, 0], "guest": [READY, RUNNING, 0],
            # CRI has no pause: containerd takes no paused task back.
            "containerd": [READY, UNKNOWN, 0]})

    @contextlib.contextmanager
    def stopped(self):
        """The module has ended, and containerd, which would delete the container, stands still."""
        container = self.running_container()
        guest = self.main_pid(container)
        self.stand_still(*self.pids("containerd"))
        self.bed.run("kill", "-TERM", guest)
        self.disappears("slipway-guest")
        try:
            yield container, {}
        finally:
            self.go_on()

    def test_a_container_has_stopped(self):
        self.cells(self.stopped, {
            "shim": [NOT_READY, EXITED, 143], "holder": [NOT_READY, EXITED, 143], "containerd": [READY, EXITED, 143]})

    @contextlib.contextmanager
    def being_deleted(self):
        """The first of its cgroups is gone."""
        container = self.running_container()
        with self.held_after("rmdir", *self.pids(PROGRAMS["shim"]), "stop", "-t", str(PATIENCE), container.id):
            yield container, {}

    def test_a_container_is_being_deleted(self):
        self.cells(self.being_deleted, {
            # Who asked for it is gone, so the container is still there, and its status with it.
            "shim": [NOT_READY, EXITED, 143], "holder": [NOT_READY, EXITED, 143], "containerd": [READY, EXITED, 143]})

    @contextlib.contextmanager
    def sandbox_being_deleted(self):
        container = self.running_container()
        container.stop()
        with self.held_after("rmdir", *self.pids(PROGRAMS["shim"]), "stopp", *self.bed.crictl("pods", "-q").stdout.split()):
            yield container, {}

    def test_a_sandbox_is_being_deleted(self):
        self.cells(self.sandbox_being_deleted, {"shim": [NOT_READY, EXITED, 143], "containerd": [NOT_READY, EXITED, 143]})
