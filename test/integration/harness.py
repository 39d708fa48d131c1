"""A bed with containerd, and what every test may ask of it."""
import collections
import concurrent.futures
import contextlib
import glob
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import unittest

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
TREE = os.path.realpath(os.environ.get("SLIPWAY_ROOT", f"{ROOT}/target/dist/opt/slipway"))
EXAMPLES = f"{ROOT}/target/examples"
GUESTS = f"{ROOT}/target/guests"
BED = os.path.realpath(os.environ.get("SLIPWAY_BED", f"{ROOT}/target/bed"))
with open("/proc/cpuinfo") as f:
    USER_MODE_LINUX = "User Mode Linux" in f.read()
# Names of the processes of the node's compile queue: the worker, and the compiler before it has taken its name.
COMPILING = ("slipway-queue", "slipway-aot")
# The driver of the bed's cgroups; cgroupfs but in one part of test/cgroup2/suite.
SYSTEMD = os.environ.get("CGROUP_DRIVER") == "systemd"
# Seconds: bound of every wait for something that happens by itself. Only a test that fails waits that long, however slow the machine.
PATIENCE = 300

# What a busy containerd says of a pod that is being taken away, and not when it is asked once more:
RACES_OF_CONTAINERD = (
    # the answer and the end of the shim's connection have both come before it looked, and it takes either: dispatch() of ttrpc 1.2;
    "ttrpc: closed",
    # the pod is stopped, and the start that has failed by that has not told so yet: setContainerRemoving() of CRI.
    "container is in starting state, can't be removed",
)


def run(*command, check=True, timeout=2 * PATIENCE, **options):
    """Runs a command; the result has text in stdout and stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def slipway(*args, **options):
    return run(f"{TREE}/bin/slipway", *args, **options)


def wait_for(condition, problem="never came to be", patience=PATIENCE):
    """Waits for what has no event; returns what the condition has found. The problem may be a function of what was found last."""
    deadline = time.monotonic() + patience
    while True:
        # Looked at first: a machine that stood still is asked once more.
        late = time.monotonic() >= deadline
        if found := condition():
            return found
        if late:
            raise AssertionError(problem() if callable(problem) else problem)
        time.sleep(0.05)


def mounts(mountinfo, of=""):
    """Lines of a mountinfo that have this text, without what changes from outside: ids, propagation, options of the file system."""
    lines = (line.partition(" - ") for line in mountinfo.splitlines() if of in line)
    split = ((before.split(" "), after.split(" ")) for before, _, after in lines)
    return [f"{source} on {point} ({kind}, {options}, from {root})" for (_, _, _, root, point, options, *_), (kind, source, *_) in split]


class Bed:
    """A private containerd."""

    def __init__(self, version):
        self.version = version
        self.root = run(f"{ROOT}/test/bed/bed", "up", version).stdout.strip()
        # Parent of the pods' cgroups, as the kubelet of this cgroup driver would give it.
        self.cgroup_parent = self.run("sh", "-c", "echo $CGROUP_PARENT").stdout.strip()
        with open(f"{self.root}/crictl.yaml", "w") as f:
            f.write(f"timeout: {PATIENCE}\n")
        self.images = set()
        self.count = 0
        self.counting = threading.Lock()
        # What slipway puts into it is seen apart from what others do on this machine.
        self.temporary = f"{self.root}/tmp"
        os.makedirs(self.temporary, exist_ok=True)
        self.outer = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = tempfile.tempdir = self.temporary

    def number(self):
        """Another one each time, in any thread."""
        with self.counting:
            self.count += 1
            return self.count

    def down(self):
        # The next bed is made where this one was.
        os.environ.pop("TMPDIR")
        if self.outer:
            os.environ["TMPDIR"] = self.outer
        tempfile.tempdir = None
        run(f"{ROOT}/test/bed/bed", "down", self.root)

    def run(self, *command, **options):
        return run(f"{ROOT}/test/bed/bed", "run", self.root, *command, **options)

    def crictl(self, *args, **options):
        return self.run("crictl", "-c", f"{self.root}/crictl.yaml", *args, **options)

    def containerd_pid(self):
        """In the bed's own pid namespace."""
        with open(f"{self.root}/containerd.pid") as f:
            return f.read().strip()

    def stop_pod(self, sandbox):
        self.ask_again("stopp", sandbox)

    def remove_pod(self, sandbox):
        self.ask_again("rmp", "-f", sandbox)

    def ask_again(self, *command):
        """As the kubelet does, until it is done."""
        def is_done():
            try:
                self.crictl(*command)
            except AssertionError as e:
                if not any(race in str(e) for race in RACES_OF_CONTAINERD):
                    raise
                return False
            return True

        wait_for(is_done, lambda: f"{' '.join(command)} has not come to its end")

    def python(self, script, *args, **options):
        """Runs a script in the bed's network. Its sockets are as patient as all others here."""
        return self.run("python3", "-c", f"import socket\nsocket.setdefaulttimeout({PATIENCE})\n{script}", *args, **options)

    def ctr(self, *args, **options):
        return self.run("ctr", "-n", "k8s.io", *args, **options)

    def image(self, module, name, *flags):
        """Builds and imports an image of a module; returns its reference."""
        reference = f"localhost/{name}:1"
        if reference not in self.images:
            tar = f"{self.root}/{name}.tar"
            slipway("image", "build", module, "-t", reference, "-o", tar, *flags)
            self.ctr("images", "import", tar)
            self.images.add(reference)
        return reference

    def example(self, name):
        return self.image(f"{EXAMPLES}/{name}.wasm", name)

    def guest(self, name):
        """The image of a program in test/guests."""
        return self.image(f"{GUESTS}/{name}.wasm", name)

    def file_image(self, name, files, entrypoint):
        """An ordinary image of files as they are, with an entrypoint or a whole config: what `slipway image build` would
        refuse to make."""
        reference = f"localhost/{name}:1"
        tar = f"{self.root}/{name}.tar"
        run("python3", f"{ROOT}/test/bed/image.py", tar, reference, json.dumps(entrypoint), *files)
        self.ctr("images", "import", tar)
        return reference

    def state(self):
        """What pods may leave behind, by its kind. It is the bed's own alone, for others mount, start and write things on this machine too."""
        mountinfo, files, processes = self.run(
            "sh", "-c", "cat /proc/self/mountinfo; echo ==; find /run/containerd/s /run/containerd/io.containerd.runtime.v2.task "
            "/run/containerd/fifo /run/netns -mindepth 1 2>/dev/null; echo ==; ps -eo pid=,comm=,cgroup=").stdout.split("==\n")
        with open("/proc/self/mountinfo") as f:
            host = f.read()
        # With systemd's driver the bed has no pid namespace, but cgroups of its own.
        cgroups = (os.path.basename(self.root), self.cgroup_parent) if SYSTEMD else ("",)
        state = {
            "mounts in the bed": mounts(mountinfo),
            "mounts of the host": mounts(host, of=self.root) + mounts(host, of=TREE),
            "files of /run": [path for path in files.splitlines() if not path.endswith("task/k8s.io")],
            # What is compiled outlives pods, and its processes end by themselves.
            "processes": [
                " ".join(line.split()[:2]) for line in processes.splitlines()
                if re.search("slipway|shim|pause", line.split()[1]) and line.split()[1] not in COMPILING and any(name in line for name in cgroups)],
            "cgroups": [path for of in ("", "/*") for path in glob.glob(f"/sys/fs/cgroup{of}{self.cgroup_parent}/**/", recursive=True)],
            "temporary files": os.listdir(self.temporary),
        }
        if SYSTEMD:
            # It would make the cgroup of a unit that it still knows anew.
            units = run("systemctl", "show", "--property=Id,Slice", "cri-containerd-*.scope").stdout.split("\n\n")
            state["units"] = [unit for unit in units if self.cgroup_parent.strip("/").removesuffix(".slice") in unit]
        return state

    def left_since(self, before):
        """What is there now and was not there before, by its kind. What has gone is nobody's concern: who removes a mount point takes
        its mount away from the bed, too."""
        now = self.state()
        left = {kind: list((collections.Counter(now[kind]) - collections.Counter(before[kind])).elements()) for kind in now}
        return {kind: lines for kind, lines in left.items() if lines}


class Pod:
    def __init__(self, bed, sandbox, config):
        self.bed, self.sandbox, self.config = bed, sandbox, config

    def create(self, image, args=(), command=(), **fields):
        name = f"c{self.bed.number()}"
        config = {
            "metadata": {"name": name}, "image": image if isinstance(image, dict) else {"image": image}, "args": list(args), "log_path": f"{name}.log",
            "linux": {"security_context": {"namespace_options": {"pid": 1}}}, **fields,
        }
        if command:
            config["command"] = list(command)
        path = f"{self.bed.root}/{name}.json"
        with open(path, "w") as f:
            json.dump(config, f)
        done = self.bed.crictl("create", self.sandbox, path, self.config)
        return Container(self.bed, done.stdout.strip(), f"{self.bed.root}/logs/{name}.log")

    def start(self, image, args=(), **fields):
        container = self.create(image, args, **fields)
        container.start()
        return container

    def ip(self):
        return json.loads(self.bed.crictl("inspectp", self.sandbox).stdout)["status"]["network"]["ip"]

    def remove(self):
        self.bed.remove_pod(self.sandbox)


class Container:
    def __init__(self, bed, id, log_path):
        self.bed, self.id, self.log_path = bed, id, log_path

    def start(self, check=True):
        return self.bed.crictl("start", self.id, check=check)

    def stop(self):
        """Asks it to end, and gives it all the time for that: on a busy machine too it ends by the first signal."""
        self.bed.crictl("stop", "-t", str(PATIENCE), self.id)

    def status(self):
        return json.loads(self.bed.crictl("inspect", self.id).stdout)["status"]

    def info(self):
        return json.loads(self.bed.crictl("inspect", self.id).stdout)["info"]

    def ended(self):
        """Status once it has ended."""
        # CRI has no call that waits for the end of a container.
        status = {}

        def is_over():
            status.update(self.status())
            return status["state"] == "CONTAINER_EXITED"

        wait_for(is_over, lambda: f"still running: {status}")
        return status

    def log(self):
        """Lines as (stream, text)."""
        try:
            text = open(self.log_path).read()
        except FileNotFoundError:
            return []
        return [m.groups() for m in re.finditer(r"^\S+ (stdout|stderr) [FP] (.*)$", text, re.M)]

    def text(self):
        return "\n".join(line for _, line in self.log())

    def until(self, text):
        """Waits for a text in the log."""
        # A file has no event that all file systems give.
        wait_for(lambda: text in self.text(), lambda: f"no {text!r} in {self.text()!r}")


class PodTest(unittest.TestCase):
    """Each test leaves the bed as it found it."""

    bed = None
    maxDiff = None

    def setUp(self):
        self.before = self.bed.state()
        self.pods = []
        self.cases = 0

    def tearDown(self):
        self.leave_nothing()

    def leave_nothing(self, patience=PATIENCE):
        while self.pods:
            self.pods.pop().remove()
        left = {}

        def is_clean():
            left.clear()
            left.update(self.bed.left_since(self.before))
            return not left

        # containerd removes some files after its answer.
        wait_for(is_clean, lambda: f"left behind: {json.dumps(left, indent=2)}", patience)

    def pod_config(self, **fields):
        """The file with what CRI is told of a new pod."""
        name = f"p{self.bed.number()}"
        config = {
            "metadata": {"name": name, "namespace": "test", "uid": name}, "hostname": name, "log_directory": f"{self.bed.root}/logs",
            "linux": {"cgroup_parent": self.bed.cgroup_parent, **fields.pop("linux", {})}, **fields,
        }
        path = f"{self.bed.root}/{name}.json"
        with open(path, "w") as f:
            json.dump(config, f)
        return path

    def pod(self, handler="slipway", **fields):
        path = self.pod_config(**fields)
        sandbox = self.bed.crictl("runp", "--runtime", handler, path).stdout.strip()
        pod = Pod(self.bed, sandbox, path)
        self.pods.append(pod)
        return pod

    def interactive(self, *command):
        """Runs crictl on a terminal, as a person does."""
        command = f"{ROOT}/test/bed/bed run {self.bed.root} crictl -c {self.bed.root}/crictl.yaml {' '.join(command)}"
        return subprocess.Popen(["script", "-qec", command, "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def until(self, condition, problem="never came to be"):
        return wait_for(condition, problem)


class Watched(PodTest):
    """Tests that listen to containerd's events."""

    @contextlib.contextmanager
    def watched(self):
        """Yields a function: the task events so far, as (topic, fields)."""
        image = self.bed.example("hello")
        with tempfile.TemporaryFile() as out:
            watcher = subprocess.Popen(
                [f"{ROOT}/test/bed/bed", "run", self.bed.root, "ctr", "-n", "k8s.io", "events"], stdout=out, start_new_session=True)

            def lines():
                size = os.fstat(out.fileno()).st_size
                return os.pread(out.fileno(), size, 0).decode().splitlines()

            def tasks():
                found = (line.split(" ", 6)[-3:] for line in lines() if " /tasks/" in line and line.endswith("}"))
                return [(topic.removeprefix("/tasks/"), json.loads(fields)) for _, topic, fields in found]

            try:
                def listens():
                    # It does not say when it has begun to listen: it is called until it answers.
                    self.bed.ctr("images", "label", image, f"called={time.monotonic_ns()}")
                    return lines()

                self.until(listens)
                yield tasks
            finally:
                os.killpg(watcher.pid, signal.SIGKILL)
                watcher.wait()

    def topics(self, tasks, id):
        return [topic for topic, fields in tasks if fields["container_id"] == id and not topic.startswith("exec") and fields.get("id", id) == id]


# Functions of arithmetic that take LLVM some seconds to optimise.
SLOW_FUNCTIONS = 800


def slow_module(directory, name, start="", functions=SLOW_FUNCTIONS):
    """A module that takes the compiler some seconds; what its program does."""
    body = "".join(f"(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const {k * 7919 + 3})) (i32.shr_u (local.get 0) (i32.const {k % 31}))))" for k in range(40))
    path = f"{directory}/{name}.wat"
    with open(path, "w") as f:
        f.write(f'(module (memory (export "memory") 1) (data (i32.const 0) "{name}") (func (export "_start") {start})')
        for n in range(functions):
            f.write(f'(func (export "f{n}") (param i32) (result i32) (i32.store (i32.const {n}) (local.get 0)) {body} (local.get 0))')
        f.write(")")
    return path


class KillTest(PodTest):
    """kill -9 of processes of the bed, and what is needed around it."""

    def pids(self, command):
        """Processes of that name in the bed, by their ids in there; without those that only wait to be reaped."""
        lines = (line.split(None, 3) for line in self.bed.run("ps", "-eo", "pid,stat,comm,args").stdout.splitlines())
        # The compiler is an argument of the dynamic linker, and has its name.
        compiler = lambda args: command == "slipway-aot" and "/slipway-aot " in args
        return [pid for pid, stat, name, args in lines if stat[0] != "Z" and (name == command[:15] or compiler(args))]

    def appears(self, command):
        # A process of somebody else's has no event.
        return self.until(lambda: self.pids(command), f"no {command}")

    def disappears(self, command):
        self.until(lambda: not self.pids(command), f"{command} is still there")

    @contextlib.contextmanager
    def hindered(self, *what, of=None):
        """Calls of the pod's shim, or of this process, that do not do what they should, until the end of the block; what this yields waits for
        one more of them."""
        pid = of or self.pids("containerd-shim-slipway-v1")[0]
        with tempfile.NamedTemporaryFile() as out:
            strace = subprocess.Popen(
                [f"{ROOT}/test/bed/bed", "run", self.bed.root, "strace", "-f", "-o", out.name, *what, "-p", pid], stderr=subprocess.PIPE, text=True)
            try:
                self.assertIn("attached", strace.stderr.readline())

                def count():
                    with open(out.name) as log:
                        return log.read().count("INJECTED")

                def once_more():
                    before = count()
                    self.until(lambda: count() > before, "nothing is hindered")

                yield once_more
            finally:
                self.bed.run("pkill", "-INT", "-x", "strace", check=False)
                strace.communicate(timeout=PATIENCE)

    def kill(self, *pids):
        self.bed.run("kill", "-9", *pids)

    def kill_containerd(self):
        self.kill(self.bed.containerd_pid())
        self.disappears("containerd")

    def remove_all_pods(self):
        """As the kubelet does, also those that have come to nothing."""
        for sandbox in self.bed.crictl("pods", "-q").stdout.split():
            self.bed.stop_pod(sandbox)
            self.bed.remove_pod(sandbox)
        self.pods.clear()

    def age_sockets(self):
        """Lets those of shims that have ended be old: the next shim that ends removes them then."""
        self.bed.run("find", "/run/containerd/s", "-name", "slipway-*", "-exec", "touch", "-d", "1 minute ago", "{}", "+")

    def restart(self):
        # Its output would be a pipe of containerd's.
        subprocess.run([f"{ROOT}/test/bed/bed", "restart", self.bed.root], check=True)

    def slow(self, start="", **fields):
        """A container whose module takes the compiler some seconds."""
        name = f"slow{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            image = self.bed.image(slow_module(d, name, start), name, "--copy", f"{EXAMPLES}/hello.wasm:/hello.wasm")
        return self.pod().create(image, annotations={"slipway.dev/compile": "full"}, **fields)

    @contextlib.contextmanager
    def compiling(self, **fields):
        """A container whose start waits for the compiler; its answer is looked at afterwards."""
        container = self.slow(**fields)
        self.queue_is_empty()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            started = pool.submit(container.start, check=False)
            self.appears("slipway-aot")
            yield container, started

    @contextlib.contextmanager
    def background_compile(self):
        """A module that is compiled in full though nobody waits for it; the compiler stands still from its first moment to the end of the block.
        Its image and path, the compiler's pid, and the pod whose program has ended."""
        self.queue_is_empty()
        name = f"background{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            image = self.bed.image(slow_module(d, name), name)
        with self.caught("[/]slipway-aot full ") as caught:
            pod = self.pod()
            self.assertEqual(pod.start(image, annotations={"slipway.dev/compile": "auto"}).ended()["exitCode"], 0)
            yield image, f"/{name}.wat", caught(), pod

    @contextlib.contextmanager
    def caught(self, pattern):
        """The first process to come whose command line has the pattern stands still to the end of the block; what this yields waits for it, and
        returns its pid."""
        catch = 'until pid=$(pgrep -o -f "$1") && kill -STOP $pid; do sleep 0.02; done; echo $pid'
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pid = pool.submit(self.bed.run, "sh", "-c", catch, "sh", pattern, timeout=PATIENCE)
            try:
                yield lambda: pid.result().stdout.strip()
            finally:
                if not pid.exception():
                    self.bed.run("kill", "-CONT", pid.result().stdout.strip(), check=False)

    @contextlib.contextmanager
    def standing_still(self, command):
        """Its processes stand still until the end of the block, or until what this yields is called."""
        pids = self.pids(command)
        go_on = lambda: self.bed.run("kill", "-CONT", *pids, check=False)
        self.bed.run("kill", "-STOP", *pids)
        try:
            yield go_on
        finally:
            go_on()

    def queue_is_empty(self):
        """What former tests have left to the queue is none of this one's, and is not waited for."""
        said = []

        def is_empty():
            jobs = self.jobs()
            if jobs:
                # One that a start waits for stays until that has ended.
                done = self.bed.run("slipway", "cache", "rm", *jobs, check=False)
                said[:] = [done.stdout, done.stderr]
            return not jobs

        self.until(is_empty, lambda: f"the compile queue does not empty: {''.join(said)}")
        # The compiler of one that has been taken out may be there a moment longer.
        self.disappears("slipway-aot")

    def jobs(self):
        """Those of the compile queue, by the names of their artefacts."""
        return [row["artefact"] for row in self.cache() if row["kind"] in ("queued", "compiling")]

    def cache(self):
        """What lies in the node's cache and in its compile queue."""
        return json.loads(self.bed.run("slipway", "cache", "ls", "--json").stdout)

    def artefacts(self, image):
        """The tiers in which a slow module is in the cache."""
        return [row["tier"] for row in self.cache() if row["kind"] == "artefact" and row["origin"] == f"/{self.module_of(image)}.wat"]

    def module_of(self, image):
        return image.removeprefix("localhost/").removesuffix(":1")

    def was_compiled_once(self, image):
        """Another start of a slow module finds what was begun for the first."""
        again = self.pods[0].start(image, annotations={"slipway.dev/compile": "full"})
        self.assertEqual(again.ended()["exitCode"], 0)
        with open(f"{self.bed.root}/containerd.log") as f:
            log = f.read()
        self.assertEqual([log.count(f"{word} /{self.module_of(image)}.wat") for word in ("compiling", "compiled")], [1, 1])

    def shim_address(self):
        """Where the one shim of the bed listens, as this process reaches it."""
        [shim] = self.pids("containerd-shim-slipway-v1")
        listening = self.bed.run("sh", "-c", "ss -xlpH").stdout
        [path] = {line.split()[4] for line in listening.splitlines() if f"pid={shim}," in line}
        with open(f"{self.bed.root}/init.pid") as f:
            return f"/proc/{f.read().strip()}/root{path}"

    def works(self):
        self.assertEqual(self.pod().start(self.bed.example("hello"), ["exit", "2"]).ended()["exitCode"], 2)
