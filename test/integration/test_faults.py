"""Bad input and disturbances: each has an answer that names the cause, and leaves nothing behind."""
import concurrent.futures
import contextlib
import glob
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import unittest

from harness import EXAMPLES, PATIENCE, ROOT, TREE, USER_MODE_LINUX, KillTest, PodTest, Watched, slow_module

RUNTIME = "io.containerd.slipway.v1"
MAX_CONFIG = 16 << 20


def field(number, data):
    """A protobuf field of bytes."""
    length, out = len(data), bytearray([number << 3 | 2])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes(out) + bytes([length]) + data


def call(path, method, payload):
    """One call of ttrpc to a shim; the answer's bytes."""
    request = field(1, b"containerd.task.v3.Task") + field(2, method.encode()) + field(3, payload)
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(PATIENCE)
        s.connect(path)
        s.sendall(struct.pack(">IIBB", len(request), 1, 1, 0) + request)
        answer = s.makefile("rb")
        return answer.read(struct.unpack(">IIBB", answer.read(10))[0])


# An answer of ttrpc with an empty status and no payload.
DONE = b"\n\x00"


class BadConfig(PodTest):
    def spec(self, directory, **fields):
        os.makedirs(f"{directory}/rootfs", exist_ok=True)
        shutil.copy(f"{EXAMPLES}/hello.wasm", f"{directory}/rootfs/hello.wasm")
        return {
            "ociVersion": "1.1.0", "process": {"args": ["/hello.wasm", "exit", "3"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": f"{directory}/rootfs"}, "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}, **fields,
        }

    def ctr_run(self, directory, spec):
        """A container without CRI, of a spec as it is."""
        path = f"{directory}/config.json"
        with open(path, "w") as f:
            json.dump(spec, f)
        return self.bed.ctr("run", "--rm", "--config", path, "--runtime", RUNTIME, f"x{self.bed.number()}", check=False)

    def test_a_spec_of_ones_own_runs(self):
        with tempfile.TemporaryDirectory() as d:
            done = self.ctr_run(d, self.spec(d))
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertIn("Hello", done.stdout)

    def test_anyone_may_write_to_dev_shm_though_nothing_is_mounted_there(self):
        with tempfile.TemporaryDirectory() as d:
            spec = self.spec(d)
            shutil.copy(f"{EXAMPLES}/envfiles.wasm", f"{d}/rootfs")
            spec["process"] = {"args": ["/envfiles.wasm", "write", "/dev/shm/note", "text"], "cwd": "/", "user": {"uid": 1000, "gid": 1000}}
            done = self.ctr_run(d, spec)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_spec_that_lacks_something_is_refused_by_the_fields_name(self):
        with tempfile.TemporaryDirectory() as d:
            for name, change in [
                ("process.args", {"process": None}),
                ("root.path", {"root": {"path": f"{d}/nowhere"}}),
                ("hooks", {"hooks": {"prestart": [{"path": "/bin/true"}]}}),
                ("mounts[0]", {"mounts": [{"destination": "", "type": "bind", "source": "/tmp", "options": ["rbind"]}]}),
            ]:
                with self.subTest(name):
                    done = self.ctr_run(d, self.spec(d, **change))
                    self.assertEqual(done.returncode, 1, done.stdout)
                    self.assertIn(name if name != "root.path" else f"{d}/nowhere", done.stderr)
            # Containers that came to nothing have left no name behind.
            self.assertEqual(self.bed.ctr("containers", "ls", "-q").stdout, "")

    def test_an_error_about_a_field_of_a_megabyte_arrives(self):
        with tempfile.TemporaryDirectory() as d:
            spec = self.spec(d, hostname="h" * (1 << 20))
            spec["linux"]["namespaces"].append({"type": "uts"})
            self.assertIn('hostname "hhh', self.ctr_run(d, spec).stderr)
            spec = self.spec(d)
            spec["process"]["args"] = ["/" + "a" * 100_000]
            self.assertIn("/aaa", self.ctr_run(d, spec).stderr)

    def test_a_config_that_cannot_be_read_is_named(self):
        """containerd itself writes no such file: the shim is asked as containerd would ask it."""
        def broken(path):
            with open(path, "w") as f:
                f.write('{"process": {"args": ["/a.wasm"\n')

        def wrong_type(path):
            with open(path, "w") as f:
                f.write('{"process": {"args": 7}}')

        def large(path):
            with open(path, "w") as f:
                f.write('{"a": "%s"}' % ("x" * MAX_CONFIG))

        for make, words in [
            (broken, ["line 2", "EOF"]), (wrong_type, ["line 1 column 22", "expected a sequence"]),
            (large, [str(MAX_CONFIG), "ConfigMap"]), (os.mkdir, ["directory"]), (lambda path: None, ["No such file"]),
        ]:
            with self.subTest(words), tempfile.TemporaryDirectory() as d:
                make(f"{d}/config.json")
                name = f"x{self.bed.number()}"
                started = json.loads(self.bed.run(
                    "sh", "-c", 'cd "$1" && TTRPC_ADDRESS=$CONTAINERD_ADDRESS.ttrpc exec "$2" -namespace k8s.io -id "$3" '
                    '-address $CONTAINERD_ADDRESS -bundle "$1" start </dev/null',
                    "sh", d, f"{TREE}/bin/containerd-shim-slipway-v1", name).stdout)
                # The socket is in the bed's own /run.
                with open(f"{self.bed.root}/init.pid") as f:
                    path = f"/proc/{f.read().strip()}/root{started['address'].removeprefix('unix://')}"
                answer = call(path, "Create", field(1, name.encode()) + field(2, d.encode())).decode(errors="replace")
                for word in [f"{d}/config.json", *words]:
                    self.assertIn(word, answer)
                # No container: the shim ends when it is asked to.
                call(path, "Shutdown", field(1, name.encode()))


class BadImage(PodTest):
    def test_a_mount_point_that_leads_out_of_the_image_stays_inside(self):
        links = ["link:../../../../etc=/data", "dir:/etc", f"{EXAMPLES}/envfiles.wasm=/envfiles.wasm"]
        image = self.bed.file_image("leads-out", links, ["/envfiles.wasm"])
        name = f"inside{os.getpid()}"
        with tempfile.TemporaryDirectory() as d:
            mounts = [{"container_path": "/data", "host_path": d}]
            pod = self.pod()
            # The link leads to the image's own /etc: that is where the volume lies.
            container = pod.start(image, ["write", f"/etc/{name}", "volume"], mounts=mounts)
            self.assertEqual(container.ended()["exitCode"], 0, container.text())
            self.assertTrue(os.path.exists(f"{d}/{name}"))
            # A path that climbs above the root is none for WASI, even where there is nothing to climb to.
            container = pod.start(image, ["write", "/data/outside", "volume"], mounts=mounts)
            self.assertEqual(container.ended()["exitCode"], 1, container.text())
            self.assertFalse(os.path.exists(f"{d}/outside"))
        self.assertFalse(os.path.exists(f"/etc/{name}"))


class BadCache(PodTest):
    """The directory of artefacts is not one; with the start that fails, and the one that works once it is mended."""

    @contextlib.contextmanager
    def instead_of_the_cache(self):
        """The cache's path, free for something else."""
        cache = f"{self.bed.root}/cache"
        os.makedirs(cache, mode=0o700, exist_ok=True)
        os.rename(cache, f"{cache}.aside")
        try:
            yield cache
        finally:
            self.bed.run("umount", cache, check=False)
            with contextlib.suppress(FileNotFoundError):
                os.remove(cache) if os.path.islink(cache) or os.path.isfile(cache) else shutil.rmtree(cache)
            os.rename(f"{cache}.aside", cache)

    def refused(self, *words):
        container = self.pod().create(self.bed.example("hello"), ["exit", "4"])
        failed = container.start(check=False)
        self.assertNotEqual(failed.returncode, 0)
        status = container.status()
        self.assertEqual((status["state"], status["reason"]), ("CONTAINER_EXITED", "StartError"))
        for word in words:
            self.assertIn(word, failed.stderr)
            self.assertIn(word, status["message"])

    def mended(self):
        self.assertEqual(self.pod().start(self.bed.example("hello"), ["exit", "4"]).ended()["exitCode"], 4)

    def test_a_file(self):
        with self.instead_of_the_cache() as cache:
            open(cache, "w").close()
            self.refused(cache, "not a directory", "name another path")
        self.mended()

    def test_a_symbolic_link(self):
        with self.instead_of_the_cache() as cache, tempfile.TemporaryDirectory() as d:
            os.symlink(d, cache)
            self.refused(cache, "symbolic link", "name the directory")
            self.assertEqual(os.listdir(d), [])

    def test_others_may_write_to_it(self):
        with self.instead_of_the_cache() as cache:
            os.mkdir(cache)
            os.chmod(cache, 0o777)
            self.refused(cache, "0777", f"chmod 700 {cache}")

    def test_it_cannot_be_made(self):
        with self.instead_of_the_cache() as cache:
            # Root passes over modes, not over a file system that is read only.
            os.mkdir(cache, 0o700)
            self.bed.run("mount", "-t", "tmpfs", "-o", "ro,mode=700", "tmpfs", cache)
            self.refused(cache, "Read-only file system")

    def test_its_file_system_is_full(self):
        with self.instead_of_the_cache() as cache:
            os.mkdir(cache, 0o700)
            self.bed.run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", cache)
            self.bed.run("dd", "if=/dev/zero", f"of={cache}/filler", "bs=64k", check=False)
            self.refused(cache, "No space left", "free space on that file system")
            self.assertEqual([n for n in self.bed.run("ls", "-A", cache).stdout.split() if n.endswith(".so")], [])
            self.bed.run("rm", f"{cache}/filler")
            self.mended()


class Events(Watched):
    """Who watches containerd hears of each step of each container once, and in order."""

    LIFE = ["create", "start", "exit", "delete"]

    def test_twenty_pods_that_end_at_once_and_an_exec_among_them(self):
        image = self.bed.example("hello")
        with self.watched() as tasks, concurrent.futures.ThreadPoolExecutor(8) as pool:
            long = self.pod().start(image, ["sleep"])
            pods = [self.pod() for _ in range(20)]
            containers = [pod.create(image, ["exit", "3"]) for pod in pods]
            starts = [pool.submit(container.start) for container in containers]
            exec = pool.submit(self.bed.crictl, "exec", long.id, "/hello.wasm", "exit", "5", check=False)
            for start in starts:
                start.result()
            self.assertIn("exit code 5", exec.result().stderr)
            for container in containers:
                self.assertEqual(container.ended()["exitCode"], 3)
            long.stop()
            for pod in self.pods:
                pod.remove()
            ids = [c.id for c in [long, *containers]] + [pod.sandbox for pod in self.pods]
            self.pods.clear()
            self.until(lambda: all("delete" in self.topics(tasks(), id) for id in ids))
            seen = tasks()
        for id in ids:
            # After the shim's own four, containerd may tell the end again by itself, when the shim of a removed pod is gone
            # before containerd has taken it off its list.
            topics = self.topics(seen, id)
            self.assertIn(topics, [self.LIFE, self.LIFE + ["exit", "delete"]], id)
        exits = {}
        for topic, fields in seen:
            if topic == "exit":
                exits.setdefault(fields["container_id"], fields.get("exit_status", 0))
        self.assertEqual([exits[c.id] for c in containers], [3] * 20)
        execs = [(topic, fields) for topic, fields in seen if fields["container_id"] == long.id and (
            topic.startswith("exec") or fields.get("id", long.id) != long.id)]
        self.assertEqual([topic for topic, _ in execs], ["exec-added", "exec-started", "exit"])
        self.assertEqual(execs[2][1]["exit_status"], 5)

    def test_out_of_memory_is_told_before_the_end(self):
        with self.watched() as tasks:
            container = self.pod().start(self.bed.example("hello"), ["alloc", "100"], linux={
                "resources": {"memory_limit_in_bytes": 16 << 20}, "security_context": {"namespace_options": {"pid": 1}}})
            self.assertEqual(container.ended()["reason"], "OOMKilled")
            self.until(lambda: "delete" in self.topics(tasks(), container.id))
            self.assertEqual(self.topics(tasks(), container.id), ["create", "start", "oom", "exit", "delete"])


# Ends with status 9 when there is a file /v/end; looks every 20 ms (poll_oneoff with one subscription at 0: clock 1, 2e7 ns).
ENDS_WHEN_TOLD = r'''(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $stat (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\01")
  (data (i32.const 24) "\00\2d\31\01")
  (data (i32.const 256) "v/end")
  (func (export "_start")
    (loop $again
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (br_if $again (call $stat (i32.const 3) (i32.const 0) (i32.const 256) (i32.const 5) (i32.const 512))))
    (call $exit (i32.const 9))))'''


class Kills(KillTest):
    """kill -9, of each process, at the moments that hurt."""

    def test_containerd_while_a_module_runs(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        self.kill_containerd()
        self.restart()
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
        container.stop()
        self.assertEqual(container.status()["exitCode"], 143)
        self.works()

    def test_containerd_and_a_module_ends_before_it_is_back(self):
        with self.ends_when_told() as (start, end):
            container = start(self.pod())
            self.kill_containerd()
            end()
            self.disappears("slipway-guest")
        self.restart()
        self.assertEqual(container.ended()["exitCode"], 9)
        self.works()

    @contextlib.contextmanager
    def ends_when_told(self):
        """Two functions: one starts a container in a pod, the other makes all of these end."""
        with tempfile.TemporaryDirectory() as d, tempfile.TemporaryDirectory() as volume:
            with open(f"{d}/told.wat", "w") as f:
                f.write(ENDS_WHEN_TOLD)
            image = self.bed.image(f"{d}/told.wat", "told")
            yield (lambda pod: pod.start(image, mounts=[{"container_path": "/v", "host_path": volume}])), (lambda: open(f"{volume}/end", "w").close())

    def test_containerd_and_many_containers_end_before_it_is_back_while_execs_run(self):
        long = self.pod().start(self.bed.example("hello"), ["sleep"])
        pods = [self.pod() for _ in range(8)]
        with self.ends_when_told() as (start, end), concurrent.futures.ThreadPoolExecutor(12) as pool:
            for _ in range(4):
                pool.submit(self.bed.crictl, "exec", "-s", "--timeout", str(PATIENCE), long.id, "/hello.wasm", "sleep", check=False)
            # The container, its execs, and the pods' spares.
            self.until(lambda: len(self.pids("slipway-guest")) == 1 + 4 + 8)
            ending = list(pool.map(start, pods))
            self.kill_containerd()
            end()
            self.until(lambda: len(self.pids("slipway-guest")) == 1 + 4)
        self.restart()
        self.assertEqual([container.ended()["exitCode"] for container in ending], [9] * 8)
        self.assertEqual(long.status()["state"], "CONTAINER_RUNNING")
        self.assertIn("exit code 5", self.bed.crictl("exec", long.id, "/hello.wasm", "exit", "5", check=False).stderr)
        long.stop()
        self.assertEqual(long.status()["exitCode"], 143)
        self.works()

    def test_containerd_while_a_module_compiles(self):
        with self.compiling() as (container, started):
            self.kill_containerd()
            self.assertNotEqual(started.result().returncode, 0)
        self.restart()
        self.bed.crictl("rm", "-f", container.id)
        self.works()

    def test_the_holder(self):
        pod = self.pod()
        container = pod.start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        self.kill(*self.appears("slipway-holder"))
        # CRI has no call that waits for the end of a sandbox.
        self.until(lambda: json.loads(self.bed.crictl("inspectp", pod.sandbox).stdout)["status"]["state"] == "SANDBOX_NOTREADY")
        self.works()
        # As the kubelet does: stop, see the end, remove.
        self.bed.stop_pod(pod.sandbox)
        container.ended()

    def test_a_compile_goes_on_when_the_start_that_waits_for_it_is_given_up(self):
        # By its deadline, as the kubelet's, which the shim is told of. No machine compiles this module in a second.
        container = self.slow()
        given_up = self.bed.crictl("--timeout", "1s", "start", container.id, check=False)
        self.assertIn("DeadlineExceeded", given_up.stderr)
        self.was_compiled_once(container.status()["image"]["image"])

    def cached(self):
        """The cache's files, complete or not; locks are none of its contents, nor is the queue."""
        names = os.listdir(f"{self.bed.root}/cache") if os.path.exists(f"{self.bed.root}/cache") else []
        return sorted(name for name in names if not name.endswith(".lock") and not name.startswith("queue-"))

    def test_the_compiler(self):
        with self.compiling() as (container, started):
            cached = self.cached()
            self.kill(*self.pids("slipway-aot"))
            self.assertIn("the compiler ended with status 137", started.result().stderr)
        self.assertIn("the compiler ended with status 137", container.status()["message"])
        self.assertEqual(self.cached(), cached)
        self.works()

    def test_the_guest_while_its_module_compiles(self):
        with self.compiling() as (container, started):
            self.kill(*self.pids("slipway-guest"))
            self.assertNotEqual(started.result().returncode, 0)
        self.assertEqual(container.status()["state"], "CONTAINER_EXITED")
        self.works()

    def test_the_shim_while_a_module_compiles(self):
        with self.compiling() as (container, started), self.standing_still("slipway-aot"):
            compilers = self.pids("slipway-aot")
            self.kill(*self.pids("containerd-shim-slipway-v1"))
            self.assertNotEqual(started.result().returncode, 0)
            for name in ("slipway-guest", "slipway-holder"):
                self.disappears(name)
            self.assertEqual(self.pids("slipway-aot"), compilers)
        self.assertEqual(container.status()["state"], "CONTAINER_EXITED")
        # The compile goes on for the next start.
        self.until(lambda: self.artefacts(container.status()["image"]["image"]) == ["full"])
        self.works()


class Calls(KillTest):
    """Calls in an order that containerd does not make, or at once: asked of the shim itself."""

    def exec(self, shim, container, id, *args):
        spec = json.dumps({"args": args, "cwd": "/"}).encode()
        asked = field(1, container.id.encode()) + field(2, id.encode())
        self.assertEqual(call(shim, "Exec", asked + field(7, field(1, b"json") + field(2, spec))), DONE)
        return asked

    def test_an_exec_has_one_start(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        shim = self.shim_address()
        asked = self.exec(shim, container, "twice", "/hello.wasm", "sleep")
        call(shim, "Start", asked)
        guests = self.pids("slipway-guest")
        self.assertIn(b"process twice has been started already", call(shim, "Start", asked))
        self.assertEqual(self.pids("slipway-guest"), guests)
        self.assertIn(b"exec twice is running: kill it first", call(shim, "Delete", asked))
        call(shim, "Kill", asked + bytes([3 << 3, signal.SIGKILL]))
        call(shim, "Wait", asked)
        call(shim, "Delete", asked)
        self.assertIn(b"not found", call(shim, "State", asked))

    def test_an_exec_that_is_killed_while_it_is_started_does_not_run(self):
        name = f"late{self.bed.number()}"
        with tempfile.TemporaryDirectory() as d:
            image = self.bed.image(f"{EXAMPLES}/hello.wasm", name, "--copy", f"{slow_module(d, name)}:/slow.wat")
        container = self.pod().start(image, ["sleep"], annotations={"slipway.dev/compile": "full"})
        container.until("Hello")
        shim, main = self.shim_address(), self.pids("slipway-guest")
        asked = self.exec(shim, container, "late", "/slow.wat")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            started = pool.submit(call, shim, "Start", asked)
            self.appears("slipway-aot")
            with self.standing_still("slipway-aot"):
                self.assertIn(b"exec late is being started: kill it first", call(shim, "Delete", asked))
                call(shim, "Kill", asked + bytes([3 << 3, signal.SIGTERM]))
                self.assertIn(b"was killed while it was started", started.result())
        # The shim answers before the kernel has taken it away.
        self.until(lambda: self.pids("slipway-guest") == main)
        call(shim, "Delete", asked)
        self.assertIn(b"not found", call(shim, "State", asked))

    def test_an_id_has_one_create_at_a_time(self):
        with self.compiling() as (container, started):
            bundle = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container.id}"
            with self.standing_still("slipway-aot"):
                again = call(self.shim_address(), "Create", field(1, container.id.encode()) + field(2, bundle.encode()))
            self.assertIn(b"already exists", again)
            self.assertEqual(started.result().returncode, 0)
        self.assertEqual(container.ended()["exitCode"], 0)

    def test_a_create_names_a_bundle(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        shim = self.shim_address()
        for bundle in (b"", b"other"):
            self.assertIn(b"must be an absolute path", call(shim, "Create", field(1, b"x") + field(2, bundle)))
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")


class Answers(KillTest):
    """The shim answers whatever the kernel and others take their time for: strace takes it in their place."""

    def is_answered_before(self, shim, asked, other):
        """State comes back while a call that is hindered goes on."""
        answer = call(shim, "State", asked)
        if other.done():
            self.fail(f"the other call is done: {other.exception() or other.result()}")
        self.assertTrue(answer.startswith(DONE), answer)

    def is_answered_meanwhile(self, shim, asked, once_more):
        """State comes back between two calls that are hindered."""
        once_more()
        self.assertTrue(call(shim, "State", asked).startswith(DONE))
        once_more()

    def two_containers(self):
        pod = self.pod()
        one, other = (pod.start(self.bed.example("hello"), ["sleep"]) for _ in range(2))
        other.until("Hello")
        return one, field(1, one.id.encode()), field(1, other.id.encode())

    def test_while_a_cgroup_cannot_be_removed(self):
        one, asked, others = self.two_containers()
        shim = self.shim_address()
        # containerd deletes, too, when it hears of the end.
        with self.standing_still("containerd"):
            call(shim, "Kill", asked + bytes([3 << 3, signal.SIGKILL]))
            call(shim, "Wait", asked)
            with self.hindered("-e", "trace=rmdir", "-e", "inject=rmdir:error=EBUSY") as once_more, concurrent.futures.ThreadPoolExecutor(1) as pool:
                deleted = pool.submit(call, shim, "Delete", asked)
                once_more()
                self.is_answered_before(shim, others, deleted)
                self.assertIn(b"remove", deleted.result())
            self.assertTrue(call(shim, "Delete", asked).startswith(DONE))

    def test_while_the_cgroup_of_what_is_no_module_cannot_be_removed(self):
        """A Linux program is found to be one when its cgroup is made, which is runc's to make."""
        _, asked, _ = self.two_containers()
        shim = self.shim_address()
        sidecar = self.pods[0].create("localhost/busybox:1", ["-c", "exit 3"])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            with self.hindered("-e", "trace=rmdir", "-e", "inject=rmdir:error=EBUSY") as once_more:
                started = pool.submit(sidecar.start)
                self.is_answered_meanwhile(shim, asked, once_more)
            started.result()
        self.assertEqual(sidecar.ended()["exitCode"], 3)

    def test_while_the_cgroup_of_a_start_that_was_given_up_cannot_be_removed(self):
        slow = self.slow()
        running = self.pods[0].start(self.bed.example("hello"), ["sleep"])
        self.queue_is_empty()
        shim = self.shim_address()
        with self.hindered("-e", "trace=rmdir", "-e", "inject=rmdir:error=EBUSY") as once_more:
            # No machine compiles this module in a second.
            self.assertIn("DeadlineExceeded", self.bed.crictl("--timeout", "1s", "start", slow.id, check=False).stderr)
            self.is_answered_meanwhile(shim, field(1, running.id.encode()), once_more)

    @unittest.skipIf(USER_MODE_LINUX, "strace's injection is not tried under this kernel")
    def test_while_processes_do_not_freeze_and_a_kill_ends_them_all_the_same(self):
        one, asked, others = self.two_containers()
        shim = self.shim_address()
        freezer = self.bed.run("sh", "-c", f"find /sys/fs/cgroup -path '*{one.id}*' -name freezer.state -o -path '*{one.id}*' -name cgroup.freeze", check=False).stdout.split()
        paths = [argument for path in freezer for argument in ("-P", path)]
        with self.hindered(*paths, "-e", "trace=write", "-e", "inject=write:retval=6") as once_more, concurrent.futures.ThreadPoolExecutor(1) as pool:
            paused = pool.submit(call, shim, "Pause", asked)
            once_more()
            self.is_answered_before(shim, others, paused)
            call(shim, "Kill", asked + bytes([3 << 3, signal.SIGKILL]))
            self.assertFalse(paused.done())
            paused.result()
        self.assertEqual(one.ended()["exitCode"], 137)

    @contextlib.contextmanager
    def runc_that_waits(self):
        """In the place of runc one that stands still where it is to create a container."""
        runc = self.bed.run("sh", "-c", "command -v runc").stdout.strip()
        waits, real = f"{self.bed.root}/waits", f"{self.bed.root}/real"
        with open(waits, "w") as f:
            f.write(f'#!/bin/sh\ncase " $* " in *" create "*) kill -STOP $$;; esac\nexec {real} "$@"\n')
        os.chmod(waits, 0o755)
        shutil.copy(runc, real)
        self.bed.run("mount", "--bind", waits, runc)
        try:
            yield
        finally:
            # Who runs has it open.
            self.bed.run("umount", "-l", runc)
            os.unlink(waits)
            os.unlink(real)

    def test_a_linux_container_is_created_to_its_end_though_another_goes_and_nobody_waits(self):
        pod = self.pod()
        first = pod.start("localhost/busybox:1", ["-c", "sleep 1000"])
        delegates = lambda: self.bed.run("pgrep", "-f", "^containerd-shim-runc-v2 ").stdout.split()
        [delegate] = delegates()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            with self.runc_that_waits():
                second = pool.submit(pod.start, "localhost/busybox:1", ["-c", "echo second; sleep 1000"])
                waits = lambda: self.bed.run("pgrep", "-x", "-r", "T", "runc", check=False).stdout.split()
                [runc] = self.until(waits)
                # CRI deletes it from the shim when it has ended.
                stopped = pool.submit(self.bed.crictl, "stop", "-t", "0", first.id)
                self.bed.run("kill", "-CONT", runc)
                stopped.result()
            second.result().until("second")
        self.assertEqual(delegates(), [delegate])


class LongCompiles(KillTest):
    """A compile that takes longer than a start waits for it: the container is Running, and its program runs later."""

    @contextlib.contextmanager
    def held(self, **fields):
        """A container whose start has answered, for its compiler stands still until the end of the block, or until it is let go."""
        with self.compiling(**fields) as (container, started), self.standing_still("slipway-aot") as go_on:
            self.assertEqual(started.result().returncode, 0, started.result().stderr)
            self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
            yield container, go_on

    def test_the_program_runs_when_its_module_is_compiled(self):
        with self.held() as (container, go_on):
            go_on()
            self.assertEqual(container.ended()["exitCode"], 0)
        self.works()

    def test_an_exec_waits_for_it_unless_its_client_has_a_deadline(self):
        """A probe that is told at once does not count, one that takes too long does; a postStart hook waits."""
        with self.held(start="(loop (br 0))") as (container, go_on), concurrent.futures.ThreadPoolExecutor(1) as pool:
            probe = self.bed.crictl("exec", "-s", "--timeout", str(PATIENCE), container.id, "/hello.wasm", check=False)
            self.assertIn("its module is still being compiled", probe.stderr)
            hook = pool.submit(self.bed.crictl, "exec", "-s", container.id, "/hello.wasm")
            go_on()
            self.assertIn("Hello from Slipway", hook.result().stdout)
            container.stop()
            self.assertEqual(container.status()["exitCode"], 143)

    def test_nobody_shares_its_processes_before_it_runs(self):
        """Its guest has the node's root until its module is loaded: kubectl debug --target."""
        with self.held(start="(loop (br 0))") as (container, go_on):
            target = {"security_context": {"namespace_options": {"pid": 3, "target_id": container.id}, "capabilities": {"add_capabilities": ["SYS_PTRACE"]}}}
            for image in ("localhost/busybox:1", self.bed.example("hello")):
                beside = self.pods[0].create(image, linux=target)
                self.assertIn("is still being compiled: share its processes when it runs", beside.start(check=False).stderr)
            go_on()
            # Its first exec waits until it runs.
            self.bed.crictl("exec", "-s", container.id, "/hello.wasm")
            beside = self.pods[0].start("localhost/busybox:1", ["-c", "ls /proc/1/root/"], linux=target)
            self.assertEqual(beside.ended()["exitCode"], 0)
            self.assertLessEqual(set(beside.text().split()), {"artefact.so", "rootfs", "etc"})
            container.stop()

    def test_a_compile_that_failed_does_not_begin_again_for_those_who_have_waited(self):
        with self.held() as (container, _):
            image = container.status()["image"]["image"]
            second = self.pods[0].create(image, annotations={"slipway.dev/compile": "full"})
            self.bed.crictl("--timeout", "1s", "start", second.id, check=False)
            self.kill(*self.pids("slipway-aot"))
            self.assertEqual(container.ended()["exitCode"], 128)
            self.works()
            self.assertEqual(self.pids("slipway-aot"), [])

    def test_it_does_so_although_containerd_was_started_again_meanwhile(self):
        with self.held() as (container, go_on):
            self.kill_containerd()
            self.restart()
            self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
            go_on()
            self.assertEqual(container.ended()["exitCode"], 0)

    def test_it_can_be_stopped_and_the_compile_goes_on_for_the_next(self):
        with self.held() as (container, go_on):
            container.stop()
            self.assertEqual(container.status()["exitCode"], 143)
            image = container.status()["image"]["image"]
            self.bed.crictl("rm", container.id)
            go_on()
            self.was_compiled_once(image)

    def test_its_pod_can_be_removed_and_the_compile_goes_on(self):
        with self.held() as (container, go_on):
            image = container.status()["image"]["image"]
            self.pods.pop().remove()
            for name in ("slipway-guest", "slipway-holder", "containerd-shim-slipway-v1"):
                self.disappears(name)
            go_on()
            self.until(lambda: self.artefacts(image) == ["full"])

    def test_what_is_found_out_late_ends_it_with_its_reason(self):
        with tempfile.NamedTemporaryFile() as message:
            with self.held(mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}]) as (container, _):
                self.kill(*self.pids("slipway-aot"))
                self.assertEqual(container.ended()["exitCode"], 128)
            with open(message.name) as f:
                self.assertIn("the compiler ended with status 137", f.read())
        self.works()

    def test_in_a_shared_pid_namespace_the_start_waits_to_the_end(self):
        """Its process is another one once the module is compiled, and a start has answered with a process."""
        with self.compiling(linux={"security_context": {"namespace_options": {"pid": 0}}}) as (container, started):
            with self.standing_still("slipway-aot"):
                # Longer than the starts of others wait.
                answered = concurrent.futures.wait([started], timeout=8).done
            self.assertEqual(answered, set())
            self.assertEqual(started.result().returncode, 0, started.result().stderr)
        self.assertEqual(container.ended()["exitCode"], 0)


# Writes a line for each number, of seven digits, when there is a file /v/go; looks every 20 ms.
COUNT = 300000
COUNTS_WHEN_TOLD = rf'''(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_filestat_get" (func $stat (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\01") (data (i32.const 24) "\00\2d\31\01") ;; poll_oneoff's subscription at 0: clock 1, 20 ms
  (data (i32.const 256) "0000000\n") (data (i32.const 272) "v/go")
  (data (i32.const 280) "\00\01\00\00\08") ;; what is written: 8 bytes at 256
  (func $next (local $digit i32)
    (local.set $digit (i32.const 262))
    (loop $carry
      (i32.store8 (local.get $digit) (i32.add (i32.load8_u (local.get $digit)) (i32.const 1)))
      (if (i32.gt_u (i32.load8_u (local.get $digit)) (i32.const 0x39)) (then
        (i32.store8 (local.get $digit) (i32.const 0x30))
        (local.set $digit (i32.sub (local.get $digit) (i32.const 1)))
        (br $carry)))))
  (func (export "_start") (local $left i32)
    (loop $wait
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (br_if $wait (call $stat (i32.const 3) (i32.const 0) (i32.const 272) (i32.const 4) (i32.const 512))))
    (local.set $left (i32.const {COUNT}))
    (loop $again
      (call $next)
      (drop (call $write (i32.const 1) (i32.const 280) (i32.const 1) (i32.const 288)))
      (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))'''
# Prints how much of a container's output waits to be read.
UNREAD = """
import fcntl, glob, os, struct, sys, termios
[path] = glob.glob(f"/run/containerd/*.cri/containers/{sys.argv[1]}/io/*/{sys.argv[1]}-stdout")
print(struct.unpack("i", fcntl.ioctl(os.open(path, os.O_RDONLY | os.O_NONBLOCK), termios.FIONREAD, b"    "))[0])
"""


class Streams(KillTest):
    def lines(self, container):
        return [int(text) for stream, text in container.log()]

    def test_the_last_of_many_lines_arrive_although_the_program_has_ended(self):
        container = self.pod().start(self.bed.example("envfiles"), ["lines", "200000"])
        self.assertEqual(container.ended()["exitCode"], 0)
        container.until("\n200000")
        self.assertEqual(self.lines(container), list(range(1, 200001)))

    def test_a_line_of_a_megabyte(self):
        text = "".join(f"{n:07} " for n in range(1 << 17))
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/line", "w") as f:
                f.write(text + "end\n")
            container = self.pod().start(
                self.bed.example("envfiles"), ["cat", "/v/line"], mounts=[{"container_path": "/v", "host_path": d}])
            self.assertEqual(container.ended()["exitCode"], 0)
        container.until("end")
        # CRI's log has it in parts.
        self.assertEqual("".join(part for _, part in container.log()), text + "end")

    def test_nothing_is_lost_while_containerd_stands_still(self):
        containerd = self.bed.containerd_pid()
        with tempfile.TemporaryDirectory() as d, tempfile.TemporaryDirectory() as volume:
            with open(f"{d}/counts.wat", "w") as f:
                f.write(COUNTS_WHEN_TOLD)
            image = self.bed.image(f"{d}/counts.wat", "counts")
            container = self.pod().start(image, mounts=[{"container_path": "/v", "host_path": volume}])
            self.bed.run("kill", "-STOP", containerd)
            try:
                open(f"{volume}/go", "w").close()
                # The pipe is full, but for what is no whole line.
                self.until(lambda: int(self.bed.python(UNREAD, container.id).stdout) > (60 << 10))
                self.assertEqual(container.log(), [])
            finally:
                self.bed.run("kill", "-CONT", containerd)
            self.assertEqual(container.ended()["exitCode"], 0)
        container.until(f"\n{COUNT:07}")
        self.assertEqual(self.lines(container), list(range(1, COUNT + 1)))

    @unittest.skipIf(USER_MODE_LINUX, "strace's injection is not tried under this kernel")
    def test_an_exec_that_says_nothing_ends_though_containerd_comes_late_for_its_output(self):
        """CRI waits for the end of its output, and opens that beside all else that it does."""
        container = self.pod().start(self.bed.example("envfiles"), ["stdin"], stdin=True)
        containerd = self.bed.containerd_pid()
        # Half a second for each file that it opens: a whole exec takes less.
        with self.hindered("-e", "trace=openat", "-e", "inject=openat:delay_enter=500000", of=containerd):
            done = self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "write", "/file", "x", check=False, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)


class Demo(PodTest):
    def left(self, directory):
        """Processes, mounts, cgroups and files of a bed below a directory."""
        found = [f"{directory}/{name}" for name in os.listdir(directory)]
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for file in ("cmdline", "mountinfo"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}", errors="replace") as f:
                    if directory in f.read():
                        found.append(f"/proc/{pid}/{file}")
        return found

    def test_control_c_leaves_nothing(self):
        if self.bed.version != "2.1":
            self.skipTest("the demo has a containerd 2.1 of its own")
        for moment in ("Starting a private containerd", "An image", "Their logs"):
            with self.subTest(moment), tempfile.TemporaryDirectory(prefix="demo") as d:
                # What it needs is built: -o takes that for granted. A shell's background jobs ignore SIGINT, and so would it.
                demo = subprocess.Popen(
                    ["env", "--default-signal=INT", "make", "-s", "-o", "dist", "-o", "bed-demo", "-o", "hello", "demo"], cwd=ROOT, env={**os.environ, "TMPDIR": d},
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
                for line in demo.stdout:
                    if moment in line:
                        break
                else:
                    self.fail(f"the demo ended before {moment!r}")
                if moment.startswith("Starting"):
                    # Its bed is silent until it is up.
                    self.until(lambda: glob.glob(f"{d}/*/containerd.pid"))
                names = os.listdir(d)
                os.killpg(demo.pid, signal.SIGINT)
                out, _ = demo.communicate(timeout=PATIENCE)
                self.assertNotEqual(demo.returncode, 0, out)
                self.assertEqual(len(names), 1)
                self.assertEqual(self.left(d), [], out)
                self.assertEqual([h for h in os.listdir("/sys/fs/cgroup") if os.path.exists(f"/sys/fs/cgroup/{h}/{names[0]}")], [])
