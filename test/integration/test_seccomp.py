"""What processes that have hostile bytes in them may call: the allow-lists of shim/seccomp, and the profile of a pod."""
import contextlib
import gzip
import json
import os
import subprocess
import tempfile

from harness import GUESTS, PATIENCE, ROOT, TREE, PodTest, slipway
from system_calls import LOGGED, SELDOM, called, listed, missing_walls, walls
from test_images import artefact
from test_network import BED4, ECHO, SILENT, STREAMS, NetworkTest
from test_wasi import WasiTest

SHARED_PID = {"namespace_options": {"pid": 1}}
RUNTIME_DEFAULT = {"profile_type": 0}
UNCONFINED = {"profile_type": 1}
O_CREAT = 0o100
# What a write to a new file takes; loading a module makes no file.
CREATE = {"names": ["openat"], "args": [{"index": 2, "value": O_CREAT, "valueTwo": O_CREAT, "op": "SCMP_CMP_MASKED_EQ"}]}

# What docs/oci.md says that a profile has to allow, and what a program takes that writes a line.
LOADING = [
    "brk", "close", "dup2", "exit_group", "fstat", "mmap", "mprotect", "munmap", "newfstatat", "openat", "read", "recvfrom", "recvmsg",
    "rt_sigaction", "sendmsg"]
WRITING = ["writev"]


def all_but(action, **rule):
    """A profile with one rule: everything else is allowed."""
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**rule, "action": action}]}


class Seccomp(PodTest):
    def create(self, pod, image, args, profile, **fields):
        return pod.create(image, args, linux={"security_context": {**SHARED_PID, "seccomp": profile}}, **fields)

    def localhost(self, profile):
        """A profile of one's own: a file of the node."""
        path = f"{self.bed.root}/seccomp{self.bed.number()}.json"
        with open(path, "w") as f:
            json.dump(profile, f)
        return {"profile_type": 2, "localhost_ref": path}

    def modes(self, container):
        """Of each process of a container: 2 is a filter, 0 none."""
        pids = [line.split()[0] for line in self.bed.ctr("tasks", "ps", container.id).stdout.splitlines()[1:]]
        read = self.bed.run("grep", "-h", "Seccomp:", *[f"/proc/{pid}/status" for pid in pids])
        return [line.split()[1] for line in read.stdout.splitlines()]

    def write(self, container):
        return self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "write", "/file", "x", check=False)

    def test_the_runtimes_default_is_the_filter_of_a_guest_and_its_execs(self):
        pod = self.pod()
        server = self.create(pod, self.bed.example("tcp-echo"), [], RUNTIME_DEFAULT)
        server.start()
        server.until("listening")
        self.assertEqual(self.modes(server), ["2"])
        done = self.bed.python((
            "import socket,sys; s=socket.create_connection((sys.argv[1],8080)); s.sendall(b'ping'); print(s.recv(4))"), pod.ip())
        self.assertIn("ping", done.stdout)

        files = self.create(pod, self.bed.example("envfiles"), ["stdin"], RUNTIME_DEFAULT, stdin=True)
        files.start()
        self.assertEqual(self.write(files).returncode, 0)
        self.assertEqual(self.bed.crictl("exec", "-s", files.id, "/envfiles.wasm", "cat", "/file").stdout.strip(), "x")
        command = [f"{ROOT}/test/bed/bed", "run", self.bed.root, "crictl", "-c", f"{self.bed.root}/crictl.yaml"]
        exec = subprocess.Popen([*command, "exec", "-i", files.id, "/envfiles.wasm", "stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        exec.stdin.write("here\n")
        exec.stdin.flush()
        self.assertEqual(exec.stdout.readline(), "here\n")
        self.assertEqual(self.modes(files), ["2", "2"])
        exec.communicate(timeout=PATIENCE)

        plain = self.create(pod, self.bed.example("envfiles"), ["stdin"], UNCONFINED, stdin=True)
        plain.start()
        # Its engine's own list still holds.
        self.assertEqual(self.modes(plain), ["2"])

    def test_a_profile_of_ones_own_decides_about_each_call(self):
        pod, image = self.pod(), self.bed.example("envfiles")
        container = self.create(pod, image, ["stdin"], self.localhost(all_but("SCMP_ACT_ERRNO", errnoRet=13, **CREATE)), stdin=True)
        container.start()
        self.assertIn("Permission denied", self.write(container).stderr)
        self.assertEqual(self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "cat", "/etc/hostname").returncode, 0)
        for action, told in (("SCMP_ACT_TRAP", "slipway: linux.seccomp: the profile forbids a system call"), ("SCMP_ACT_KILL", "")):
            with self.subTest(action):
                container = self.create(pod, image, ["write", "/file", "x"], self.localhost(all_but(action, **CREATE)))
                container.start()
                self.assertEqual(container.ended()["exitCode"], 159)
                self.assertEqual(container.text()[:len(told)] if told else container.text(), told)
        little = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": [*LOADING, *WRITING], "action": "SCMP_ACT_ALLOW"}]}
        container = self.create(pod, self.bed.example("hello"), [], self.localhost(little))
        container.start()
        self.assertEqual(container.ended()["exitCode"], 0)
        self.assertIn("Hello", container.text())
        cause = "perhaps linux.seccomp forbids"
        for profile, told in (
            ({"defaultAction": "SCMP_ACT_ERRNO"}, [cause]),
            ({"defaultAction": "SCMP_ACT_KILL"}, ["status 159", cause]),
            (all_but("SCMP_ACT_ERRNO", names=["sendmsg"]), [cause]),
            (all_but("SCMP_ACT_DENY", names=["read"]), ['linux.seccomp.syscalls[0].action: "SCMP_ACT_DENY" is not']),
        ):
            with self.subTest(profile):
                said = self.create(pod, image, [], self.localhost(profile)).start(check=False).stderr
                for text in told:
                    self.assertIn(text, said.replace("\\", ""))


class AllowLists(WasiTest, NetworkTest):
    """No rule that nothing needs; that none is missing is what all other tests show, which run under them."""

    @contextlib.contextmanager
    def traced(self, out):
        """All that the pod's shim and its guests call, until the end of the block."""
        [shim] = self.bed.run("pgrep", "-x", "containerd-shim").stdout.split()
        children = self.bed.run("pgrep", "-P", shim).stdout.split()
        attach = [argument for process in (shim, *children) for argument in ("-p", process)]
        strace = subprocess.Popen(
            [f"{ROOT}/test/bed/bed", "run", self.bed.root, "strace", *LOGGED, "-o", out, *attach], stderr=subprocess.PIPE, text=True)
        try:
            for _ in (shim, *children):
                self.assertIn("attached", strace.stderr.readline())
            yield
        finally:
            self.bed.run("pkill", "-INT", "-x", "strace")
            strace.communicate(timeout=PATIENCE)

    def test_a_guest_needs_each_call_of_its_list(self):
        # Compilers have a list of their own.
        for module in ("wasi-conformance", "network"):
            slipway("compile", "--tier", "quick", "--cache-dir", f"{self.bed.root}/cache", f"{GUESTS}/{module}.wasm")
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/far.wat", "w") as f:
                f.write('(module (memory (export "memory") 1) (func $far (drop (i32.load (i32.const -8)))) (func (export "_start") (call $far)))')
            slipway("compile", "--tier", "quick", "--cache-dir", f"{self.bed.root}/cache", f"{d}/far.wat")
            traps = self.bed.image(f"{d}/far.wat", "far")
        pod = self.pod(dns_config={"servers": [BED4], "options": ["timeout:3", "attempts:1"]})
        with tempfile.NamedTemporaryFile("r") as out, tempfile.TemporaryDirectory() as volume:
            with self.traced(out.name):
                mounts = [{"container_path": "/data", "host_path": volume}]
                self.checks(pod, "files", "/data", mounts=mounts)
                # A file system that cannot set bytes aside.
                self.bed.run("mount", "-t", "ramfs", "ramfs", volume)
                self.checks(pod, "files", "/data", mounts=mounts)
                self.bed.run("umount", volume)
                self.checks(pod, "process", "/data", envs=[{"key": "NAME", "value": "value"}])
                pod.start(self.image(), ["terminate"]).ended()
                self.network(pod)
                pod.start(traps).ended()
            log = out.read()
        self.assertEqual(walls(log) | set(missing := missing_walls()), {"keyring", "Landlock"})
        needed = called(log)
        self.assertEqual(listed("guest") - set(SELDOM), needed - set(SELDOM))
        if missing:
            self.skipTest(f"the rest is as it should be; {', '.join(missing.values())}")

    def test_the_reader_of_artefacts_needs_each_call_of_its_list(self):
        with tempfile.TemporaryDirectory() as d:
            # Of megabytes, for more than one piece, and one that does not unpack.
            modules = {"read": gzip.compress(os.urandom(3 << 20)), "cut-off": gzip.compress(bytes(100))[:-6]}
            logs = []
            for name, module in modules.items():
                reference = f"localhost/reader-{name}:1"
                artefact(f"{d}/app.tar", reference, module, {"rootfs": {"type": "layers", "diff_ids": []}, "author": f"reader-{name}"})
                self.bed.ctr("images", "import", f"{d}/app.tar")
                container = self.pod().create(reference, command=["/app.wasm"])
                read = self.bed.run(
                    "sh", "-c", 'strace "$@" -address $CONTAINERD_ADDRESS', "sh", *LOGGED, "-o", f"{d}/log", f"{TREE}/libexec/slipway-layers", "-namespace", "k8s.io",
                    "-container", container.id, "-out", f"{d}/module", check=False)
                self.assertEqual(read.returncode, int(name != "read"), read.stderr)
                with open(f"{d}/log") as f:
                    logs.append(f.read())
                self.assertEqual(walls(logs[-1]) | set(missing := missing_walls()), {"keyring", "Landlock"})
                self.assertEqual(os.path.getsize(f"{d}/module"), 3 << 20 if name == "read" else 0)
                self.bed.crictl("rmi", reference)
        needed = set().union(*map(called, logs))
        seldom = {*SELDOM, *("brk", "mprotect", "madvise"), *("sendto", "shutdown")}  # malloc; a connection that ends early
        self.assertEqual(listed("layers") - seldom, needed - seldom)
        if missing:
            self.skipTest(f"the rest is as it should be; {', '.join(missing.values())}")

    def network(self, pod):
        image = self.bed.guest("network")
        server = pod.start(image, ["tcp", "[::]:8000"], annotations={"slipway.dev/stop": "drain"})
        server.until("listening")
        self.python(STREAMS, f"{pod.ip()}/8000")
        with self.peer("-c", ECHO):
            self.said(pod.start(image, ["send", "hello", f"tcp/{BED4}:9000", f"udp/{BED4}:9000"]))
        with self.peer("-c", SILENT):
            self.said(pod.start(image, ["timeouts", f"{BED4}:9001"]))
        self.said(pod.start(image, ["reuse", "127.0.0.1:9004"]))
        with self.dns():
            self.said(pod.start(image, ["names", "both.test", "4/many.test", "4/silent.test."]))
        server.stop()
