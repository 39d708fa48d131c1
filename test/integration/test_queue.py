"""The node's compile queue: what is begun first, what outlives whom, and what a compile may take."""
import concurrent.futures
import contextlib
import glob
import os
import tempfile

import prometheus
from harness import SLOW_FUNCTIONS, Bed, KillTest, Pod, slow_module, wait_for
from test_compile import module, number, vector

QUEUE = "queue-2"
# The worker's own linger, and what a busy machine adds to it.
LINGER = 60


class QueueTest(KillTest):
    def setUp(self):
        super().setUp()
        self.queue_is_empty()

    def tearDown(self):
        # A test that fails leaves no compiler standing still.
        self.bed.run("sh", "-c", "pkill -CONT -f '[/]slipway-aot '", check=False)
        super().tearDown()

    def module(self, functions=SLOW_FUNCTIONS):
        """The image of a module that nobody has compiled yet, and its path."""
        name = f"queue{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            return self.bed.image(slow_module(d, name, functions=functions), name), f"/{name}.wat"

    def data_module(self, megabytes):
        """The same of a module of that size, with little code."""
        name = f"data{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/{name}.wasm", "wb") as f:
                f.write(cold_module(megabytes << 20, code=10_000))
            return self.bed.image(f"{d}/{name}.wasm", name), f"/{name}.wasm"

    def log(self):
        with open(f"{self.bed.root}/containerd.log") as f:
            return f.read()

    def said(self, text):
        self.until(lambda: text in self.log(), f"nobody says {text!r}")

    def rows(self, path, *kinds):
        return [(row["kind"], row["tier"]) for row in self.cache() if row["origin"] == path and (not kinds or row["kind"] in kinds)]

    def files(self):
        return sorted(os.listdir(f"{self.bed.root}/cache/{QUEUE}"))

    def cgroups(self):
        """The compile queue's own, in all hierarchies."""
        stat = os.stat(f"{self.bed.root}/cache/{QUEUE}")
        name = f"slipway-compile-{stat.st_dev:x}-{stat.st_ino}"
        return [path for path in glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True)]

    @contextlib.contextmanager
    def turns_are_held(self):
        """All turns of compilers are taken by those that stand still; a start waits for each."""
        with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(8) as pool:
            for n in range(1, os.cpu_count() + 1):
                image, path = self.module()
                container = self.pod().create(image, annotations={"slipway.dev/compile": "full"})
                pool.submit(container.start, check=False)
                self.until(lambda: len(self.pids("slipway-aot")) == n)
                self.said(f"compiling {path}")
            go_on = stack.enter_context(self.standing_still("slipway-aot"))
            yield go_on


    def waits(self, pool, pod, megabytes):
        """A start that waits for its compile's turn: the module's path, and the container."""
        image, path = self.data_module(megabytes)
        container = pod.create(image, annotations={"slipway.dev/compile": "quick"})
        pool.submit(container.start)
        self.said(f"{path} waits to be compiled for ")
        return path, container

    def take_one_turn(self, containers):
        """Ends one of the compilers that stand still; these go through its turn one after the other."""
        self.kill(self.pids("slipway-aot")[0])
        for container in containers:
            self.assertEqual(container.ended()["exitCode"], 0)


class Queue(QueueTest):
    def compiles(self):
        values = prometheus.values(self.bed.run("slipway", "metrics").stdout)
        return {tier: values[f"slipway_compile_seconds_count{{tier={tier}}}"] for tier in ("quick", "full")}

    def test_pods_that_end_soon_have_optimised_code_in_the_end(self):
        image, path = self.module()
        before = self.compiles()
        for _ in range(5):
            pod = self.pod()
            self.assertEqual(pod.start(image).ended()["exitCode"], 0)
            self.pods.remove(pod)
            pod.remove()
        self.disappears("containerd-shim-slipway-v1")
        self.until(lambda: set(self.rows(path)) == {("artefact", "quick"), ("artefact", "full")})
        self.assertEqual(self.compiles(), {tier: count + 1 for tier, count in before.items()})
        log = self.log()
        self.assertEqual(self.pod().start(image).ended()["exitCode"], 0)
        self.assertEqual(self.log().count(path), log.count(path))

    def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on(self):
        with self.compiling() as (container, started):
            [worker] = self.pids("slipway-queue")
            with self.standing_still("slipway-aot"):
                self.kill(worker)
                # Its compilers end with it.
                self.until(lambda: worker not in self.pids("slipway-queue"))
            self.assertEqual(started.result().returncode, 0, started.result().stderr)
        self.assertEqual(container.ended()["exitCode"], 0)

    def test_what_nobody_waits_for_outlives_worker_and_pods(self):
        with self.background_compile() as (_, path, _, pod):
            self.assertIn(("compiling", "full"), self.rows(path))
            self.pods.remove(pod)
            pod.remove()
            self.disappears("containerd-shim-slipway-v1")
            self.kill(*self.pids("slipway-queue"))
            self.disappears("slipway-queue")
            self.disappears("slipway-aot")
        self.assertEqual(self.rows(path, "queued", "compiling"), [("queued", "full")])
        # Any pod has it go on.
        self.pod()
        self.until(lambda: ("artefact", "full") in self.rows(path))

    def test_the_smallest_that_a_start_waits_for_comes_first(self):
        # In megabytes. They differ by more than a minute of waiting makes up for.
        sizes = {"big": 12, "small": 1, "middle": 6}
        with self.turns_are_held() as go_on, concurrent.futures.ThreadPoolExecutor(4) as pool:
            paths, containers = {}, []
            for name, megabytes in sizes.items():
                paths[name], container = self.waits(pool, self.pod(), megabytes)
                containers.append(container)
            self.assertEqual({kind for path in paths.values() for kind, _ in self.rows(path)}, {"queued"})
            top = self.bed.run("slipway", "top").stdout
            for path in paths.values():
                self.assertRegex(top, rf"queued +quick .* {path}")
            metrics = self.bed.run("slipway", "metrics").stdout
            self.assertIn(f'slipway_compile_queue{{state="waiting"}} {len(paths)}\n', metrics)
            self.assertIn(f'slipway_compile_queue{{state="compiling"}} {os.cpu_count()}\n', metrics)
            self.take_one_turn(containers)
            go_on()
        log = self.log()
        order = sorted(sizes, key=lambda name: log.index(f"compiling {paths[name]}"))
        self.assertEqual(order, ["small", "middle", "big"])

    def test_a_namespaces_first_comes_before_anothers_many(self):
        with self.turns_are_held() as go_on, concurrent.futures.ThreadPoolExecutor(4) as pool:
            small, first = self.waits(pool, self.pod(), 1)
            big, other = self.waits(pool, self.pod(metadata={"name": "p", "namespace": "other", "uid": "p"}), 12)
            self.take_one_turn([first, other])
            go_on()
        log = self.log()
        self.assertLess(log.index(f"compiling {big}"), log.index(f"compiling {small}"))

    def test_what_nobody_waits_for_gives_way(self):
        with (self.background_compile() as (_, path, background, _), concurrent.futures.ThreadPoolExecutor(8) as pool,
              contextlib.ExitStack() as still):
            self.assertIn(("compiling", "full"), self.rows(path))
            self.assertEqual(self.bed.run("ps", "-o", "ni=", "-p", background).stdout.strip(), "19")
            for n in range(1, os.cpu_count() + 1):
                pool.submit(self.pod().create(self.module()[0], annotations={"slipway.dev/compile": "full"}).start)
                if n < os.cpu_count():
                    self.until(lambda: len(self.pids("slipway-aot")) == n + 1)
                    still.enter_context(self.standing_still("slipway-aot"))
            self.until(lambda: background not in self.pids("slipway-aot"))
        # Put back, it is done after them.
        self.until(lambda: ("artefact", "full") in self.rows(path))

    def test_a_compile_is_charged_to_no_pod(self):
        with self.compiling() as (container, started), self.standing_still("slipway-aot"):
            [compiler] = self.pids("slipway-aot")
            of = lambda pid: self.bed.run("cat", f"/proc/{pid}/cgroup").stdout
            mine = of(compiler)
            self.assertNotIn(self.bed.cgroup_parent, mine)
            expected = 3 if os.path.exists("/sys/fs/cgroup/memory") else 1
            self.assertEqual(mine.count("slipway-compile-"), expected, mine)
            [worker] = self.pids("slipway-queue")
            self.assertNotIn(self.bed.cgroup_parent, of(worker))
            fds = self.bed.run("sh", "-c", f"readlink /proc/{worker}/fd/*").stdout
            self.assertNotIn("containerd", fds)
            self.assertEqual(self.bed.run("ps", "-o", "ni=", "-p", compiler).stdout.strip(), "0")

    def test_starts_at_once_have_one_worker(self):
        self.disappears_by_itself()
        pods = [self.pod() for _ in range(6)]
        containers = [pod.create(self.module(20)[0]) for pod in pods]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda container: container.start(), containers))
        self.assertEqual(len(self.pids("slipway-queue")), 1)
        for container in containers:
            self.assertEqual(container.ended()["exitCode"], 0)

    def disappears_by_itself(self):
        wait_for(lambda: not self.pids("slipway-queue"), "the worker stays", LINGER)

    def test_it_ends_and_leaves_nothing(self):
        image, path = self.module(20)
        self.assertEqual(self.pod().start(image, annotations={"slipway.dev/compile": "quick"}).ended()["exitCode"], 0)
        self.disappears_by_itself()
        self.assertEqual(self.files(), ["lock"])
        self.assertEqual(self.cgroups(), [])
        names = os.listdir(f"{self.bed.root}/cache")
        self.assertEqual([name for name in names if name.startswith("tmp-") or name.endswith(".lock") and name != "store.lock"], [])

    def test_rubbish_in_it_is_swept_away(self):
        self.works()
        self.disappears_by_itself()
        queue = f"{self.bed.root}/cache/{QUEUE}"
        name = "a" * 64
        for content in (b"", b"\xff" * 100, os.urandom(1 << 20)):
            with open(f"{queue}/{name}.job", "wb") as f:
                f.write(content)
            with open(f"{queue}/{name}.wasm", "wb") as f:
                f.write(content)
            os.chown(f"{queue}/{name}.job", 1000, 1000)
            open(f"{queue}/tmp-{name}.wasm", "w").close()
            self.assertEqual([row for row in self.cache() if row["artefact"] == name], [])
            image, path = self.module(20)
            self.assertEqual(self.pod().start(image, annotations={"slipway.dev/compile": "quick"}).ended()["exitCode"], 0)
            self.disappears_by_itself()
            self.assertEqual(self.files(), ["lock"])

    @contextlib.contextmanager
    def full_disk(self):
        """The cache lies where nothing more finds room; modules are compiled from where they are."""
        self.works()
        self.disappears_by_itself()
        cache = f"{self.bed.root}/cache"
        os.rename(cache, f"{cache}.aside")
        os.mkdir(cache, 0o700)
        try:
            self.bed.run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", cache)
            self.bed.run("dd", "if=/dev/zero", f"of={cache}/filler", "bs=64k", check=False)
            yield
            left = self.bed.run("ls", f"{cache}/{QUEUE}").stdout.split()
            self.assertEqual([name for name in left if name not in ("lock", "socket")], [])
            self.disappears_by_itself()
        finally:
            self.bed.run("umount", "-l", cache, check=False)
            os.rmdir(cache)
            os.rename(f"{cache}.aside", cache)
        self.works()

    def test_a_full_disk_fails_the_start_and_says_so(self):
        with self.full_disk():
            image, path = self.module(100)
            refused = self.pod().create(image, annotations={"slipway.dev/compile": "quick"})
            self.assertIn("No space left", refused.start(check=False).stderr)

    def test_a_file_of_a_pods_is_held_by_nobody_who_compiles_it(self):
        image, path = self.module()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            container = self.pod().create(image, annotations={"slipway.dev/compile": "full"})
            pool.submit(container.start, check=False)
            self.appears("slipway-aot")
            with self.standing_still("slipway-aot"):
                # The guest that waits has it open.
                for program, holds in (("slipway-guest", True), ("slipway-queue", False), ("slipway-aot", False)):
                    files = [self.bed.run("ls", "-l", f"/proc/{pid}/fd").stdout for pid in self.pids(program)]
                    self.assertEqual(any(f"{path}\n" in file for file in files), holds, (program, files))
        self.assertEqual(container.ended()["exitCode"], 0)

    def removed_from_queue(self, path):
        [module] = {row["module"] for row in self.cache() if row["origin"] == path}
        return self.bed.run("slipway", "cache", "rm", module, check=False)

    def test_what_is_removed_from_the_queue_is_not_compiled(self):
        with self.background_compile() as (_, path, _, _):
            self.assertEqual(self.rows(path), [("artefact", "quick"), ("compiling", "full")])
            removed = self.removed_from_queue(path)
            self.assertIn("not to be compiled any more: 1\n", removed.stdout)
            self.assertEqual((removed.returncode, self.rows(path)), (0, []))
            self.disappears("slipway-aot")

    def test_what_is_removed_from_the_queue_while_nobody_works_it_off_is_not_compiled(self):
        with self.background_compile() as (_, path, _, pod):
            self.pods.remove(pod)
            pod.remove()
            self.disappears("containerd-shim-slipway-v1")
            self.kill(*self.pids("slipway-queue"))
            self.disappears("slipway-queue")
            self.assertEqual(self.rows(path), [("artefact", "quick"), ("queued", "full")])
            removed = self.removed_from_queue(path)
            self.assertIn("not to be compiled any more: 1\n", removed.stdout)
            self.assertEqual((removed.returncode, self.rows(path)), (0, []))

    def test_what_a_start_waits_for_stays_in_the_queue(self):
        with self.compiling() as (container, started), self.standing_still("slipway-aot") as go_on:
            path = f"/{self.module_of(container.status()['image']['image'])}.wat"
            removed = self.removed_from_queue(path)
            self.assertRegex(removed.stdout, "a start waits for it, kept: [0-9a-f]{64}\n")
            self.assertEqual((removed.returncode, self.rows(path)), (1, [("compiling", "full")]))
            go_on()
            self.assertEqual(started.result().returncode, 0, started.result().stderr)

    def test_only_root_may_ask(self):
        directory = f"{self.bed.root}/cache/{QUEUE}"
        # Says what comes back for a second of silence, and for rubbish.
        ask = """
import os, socket, sys
socket_of = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
socket_of.settimeout(1)
directory = os.open(sys.argv[1], os.O_RDONLY)
socket_of.connect(f"/proc/self/fd/{directory}/socket")
for said in (None, bytes([255]) * 1000):
    try:
        if said:
            socket_of.settimeout(60)
            socket_of.send(said)
        print(socket_of.recv(100))
    except (TimeoutError, ConnectionResetError) as e:
        print(type(e).__name__)
"""
        with self.compiling():
            self.assertEqual(os.stat(directory).st_mode & 0o777, 0o700)
            silence, rubbish = self.bed.python(ask, directory).stdout.splitlines()
            self.assertEqual(silence, "TimeoutError")
            self.assertIn(rubbish, ("b''", "ConnectionResetError"))
            self.assertEqual(len(self.pids("slipway-queue")), 1)


class SmallNode(QueueTest):
    """A node of 2 GiB, as far as the compile queue can tell: a memory cgroup above that of the shims."""

    LIMIT = 2 << 30

    @contextlib.contextmanager
    def small_bed(self):
        """A bed of its own below a cgroup with a limit, and the directory of that cgroup."""
        hierarchy = "/sys/fs/cgroup/memory"
        if not os.path.exists(hierarchy):
            self.skipTest("a cgroup that this process can be moved to and fro: version 1")
        with open("/proc/self/cgroup") as f:
            [own] = [line.strip().split(":")[2] for line in f if ":memory:" in line]
        cgroup = f"{hierarchy}/slipway-small-{os.getpid()}"
        os.makedirs(f"{cgroup}/shims")
        temporary = os.environ["TMPDIR"]

        def move(to):
            with open(f"{to}/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))

        try:
            with open(f"{cgroup}/memory.limit_in_bytes", "w") as f:
                f.write(str(self.LIMIT))
            move(f"{cgroup}/shims")
            try:
                bed = Bed(self.bed.version)
            finally:
                move(f"{hierarchy}{own}")
            try:
                yield bed, cgroup
            finally:
                bed.down()
                os.environ["TMPDIR"] = tempfile.tempdir = temporary
        finally:
            left = lambda: [path for path, _, _ in os.walk(cgroup, topdown=False)]
            wait_for(lambda: all(not open(f"{path}/cgroup.procs").read() for path in left()))
            for path in left():
                os.rmdir(path)

    def test_five_cold_modules_on_a_node_of_two_gigabytes_all_start(self):
        def text(file):
            with open(file) as f:
                return f.read()

        with self.small_bed() as (bed, cgroup):
            images = []
            for megabytes in (2, 4, 6, 8, 10):
                path = f"{bed.root}/cold{megabytes}.wasm"
                with open(path, "wb") as f:
                    f.write(cold_module(megabytes << 20))
                images.append(bed.image(path, f"cold{megabytes}"))
            pods = []
            for n, image in enumerate(images):
                config = f"{bed.root}/pod{n}.json"
                with open(self.pod_config()) as f, open(config, "w") as out:
                    out.write(f.read().replace(self.bed.root, bed.root).replace(self.bed.cgroup_parent, bed.cgroup_parent))
                pods.append(Pod(bed, bed.crictl("runp", "--runtime", "slipway", config).stdout.strip(), config))
            containers = [pod.create(image, annotations={"slipway.dev/compile": "quick"}) for pod, image in zip(pods, images)]
            with concurrent.futures.ThreadPoolExecutor(len(pods)) as pool:
                list(pool.map(lambda container: container.start(), containers))
            [compiles] = glob.glob(f"{cgroup}/slipway-compile-*")
            limit, used = (int(text(f"{compiles}/memory.{what}_in_bytes")) for what in ("limit", "max_usage"))
            self.assertLess(limit, self.LIMIT)
            for container in containers:
                self.assertEqual(container.ended()["exitCode"], 0)
            self.assertIn("oom_kill 0", text(f"{cgroup}/shims/memory.oom_control"))
            print(f"    at most {used >> 20} MiB used of {limit >> 20}")
            for pod in pods:
                pod.remove()


def section(kind, content):
    return bytes([kind]) + number(len(content)) + content


def cold_module(size, code=None):
    """A program of that many bytes: some, or a quarter, are code of straight arithmetic, the rest is data, and no two are alike."""
    step = b"\x20\0\x42" + number(77777) + b"\x7e\x42\x1d\x88\x21\0"
    body = b"\1\1\x7e" + step * 40 + b"\x0b"
    code = module([body] * ((code or size // 4) // len(body)))
    data = size - len(code)
    memory = section(5, vector([b"\0" + number(data // 65536 + 1)]))
    exports = [b"\x06_start\0\0", b"\x06memory\2\0"]
    head, _, tail = code.partition(section(7, vector(exports[:1])))
    return head + memory + section(7, vector(exports)) + tail + section(11, vector([b"\0\x41\0\x0b" + number(data) + os.urandom(data)]))
