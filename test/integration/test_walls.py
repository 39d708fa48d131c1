"""Ways out of a container, tried. docs/security.md names these tests."""
import concurrent.futures
import contextlib
import glob
import hashlib
import os
import subprocess
import tempfile

import test_spec
from harness import KillTest, PodTest, slow_module
from test_faults import ENDS_WHEN_TOLD, call, field
from system_calls import listed
from test_users import HANDLER as USERS_HANDLER, IDS, USERS

HERE = os.path.dirname(os.path.realpath(__file__))
# Attributes that a mount can have, of mountinfo's sixth field.
ATTRIBUTES = {"ro", "nosuid", "nodev", "noexec"}
CLOSED = {"ro", "nosuid", "nodev", "noexec"}


class Mounts(PodTest):
    def mounts(self, pid):
        """Attributes and file system of each mount of a process, by where it lies."""
        found = {}
        for line in self.bed.run("cat", f"/proc/{pid}/mountinfo").stdout.splitlines():
            left, right = line.split(" - ")
            found[left.split()[4]] = set(left.split()[5].split(",")) & ATTRIBUTES, right.split()[0]
        return found

    def test_every_mount_of_every_guest_has_the_attributes_it_should(self):
        for users in (False, True) if self.bed.version != "1.7" else (False,):
            for read_only in (False, True):
                with self.subTest(users=users, read_only=read_only), tempfile.TemporaryDirectory() as d:
                    self.guest_with_volumes(d, users, read_only)

    def guest_with_volumes(self, d, users, read_only):
        for name in ("rw", "ro", "nested/below", "later"):
            os.makedirs(f"{d}/{name}")
        with open(f"{d}/file", "w"):
            pass
        options = {**USERS["security_context"], "readonly_rootfs": read_only} if users else {"readonly_rootfs": read_only}
        ids = {"uidMappings": IDS, "gidMappings": IDS} if users else {}
        volume = lambda name, **fields: {"container_path": f"/v/{name}", "host_path": f"{d}/{name}", **fields, **ids}
        volumes = [volume("rw"), volume("ro", readonly=True), volume("file", readonly=True), volume("later", propagation=1)]
        # On a mapped volume nothing can lie below.
        if not users:
            self.bed.run("mount", "-t", "tmpfs", "-o", "dev,suid,exec", "tmpfs", f"{d}/nested/below")
            volumes.append(volume("nested"))
        try:
            handler, linux = (USERS_HANDLER, USERS) if users else ("slipway", {})
            container = self.pod(handler, linux=linux).start(
                self.bed.example("envfiles"), ["stdin"], stdin=True, mounts=volumes, linux={"security_context": options})
            found = self.mounts(container.info()["pid"])
            data = {"nodev", "noexec"}
            root = data | ({"ro"} if read_only else set())
            expected = {
                "/": CLOSED, "/artefact.so": CLOSED - {"noexec"}, "/etc/hosts": CLOSED, "/etc/resolv.conf": CLOSED,
                "/rootfs": root, "/rootfs/dev": {"nosuid", "noexec"}, "/rootfs/v/rw": data, "/rootfs/v/ro": data | {"ro"},
                "/rootfs/v/file": data | {"ro"}, "/rootfs/v/later": data,
            }
            if not users:
                expected |= {"/rootfs/v/nested": data, "/rootfs/v/nested/below": data}
            # What the bed's own file system has, they have too.
            inherited = self.mounts("self")["/"][0] & {"nosuid", "noexec"}
            for at, attributes in expected.items():
                with self.subTest(at):
                    self.assertEqual(found[at][0] - (inherited - attributes), attributes)
            # CRI's own files, and nothing else.
            for at in set(found) - set(expected):
                with self.subTest(at):
                    self.assertIn(at, ("/rootfs/etc/hosts", "/rootfs/etc/resolv.conf", "/rootfs/etc/hostname", "/rootfs/dev/shm"))
                    self.assertLessEqual(data, found[at][0])
            self.assertNotIn("proc", {kind for _, kind in found.values()})
            self.bed.crictl("rm", "-f", container.id)
        finally:
            if not users:
                self.bed.run("umount", f"{d}/nested/below")

    def test_a_device_node_of_an_image_cannot_be_opened_even_where_the_root_is_read_only(self):
        for read_only in (False, True):
            with self.subTest(read_only), tempfile.TemporaryDirectory() as d:
                path, container = test_spec.Spec.config(self, d, "envfiles", "cat", "/zero", root={"path": f"{d}/rootfs", "readonly": read_only})
                subprocess.run(["mknod", "-m", "666", f"{d}/rootfs/zero", "c", "1", "5"], check=True)
                # Where it can be opened it never ends.
                done = self.bed.run("timeout", "20", "ctr", "-n", "k8s.io", "run", "--rm", "--config", path, "--runtime", test_spec.RUNTIME, container, check=False)
                self.bed.ctr("tasks", "rm", "-f", container, check=False)
                self.bed.ctr("containers", "rm", container, check=False)
                self.assertEqual(done.returncode, 1, done.stderr[-400:])
                self.assertIn("ermission denied", done.stderr)

    def test_a_volume_of_procfs_is_refused_wherever_it_lies(self):
        image = self.bed.example("envfiles")
        pod = self.pod()
        with tempfile.TemporaryDirectory() as d:
            os.makedirs(f"{d}/a/b")
            self.bed.run("mount", "-t", "proc", "proc", f"{d}/a/b")
            try:
                for source, at in (("/proc", "/p"), ("/proc/self/mem", "/p"), (d, "/p/a/b"), (f"{d}/a", "/p/b")):
                    for read_only in (False, True):
                        with self.subTest(source, read_only=read_only):
                            container = pod.create(image, ["cat", "/p/self/maps"], mounts=[
                                {"container_path": "/p", "host_path": source, "readonly": read_only}])
                            said = container.start(check=False).stderr
                            self.assertIn(f"mounts: {at}: a procfs", said)
                            self.bed.crictl("rm", "-f", container.id)
            finally:
                self.bed.run("umount", f"{d}/a/b")

    def test_what_the_node_mounts_in_a_volume_later_is_neither_procfs_nor_a_device(self):
        with tempfile.TemporaryDirectory() as d:
            for name in ("processes", "devices"):
                os.mkdir(f"{d}/{name}")
            container = self.pod().start(self.bed.example("envfiles"), ["stdin"], stdin=True, mounts=[
                {"container_path": "/v", "host_path": d, "propagation": 1}])
            self.bed.run("sh", "-c", f"mount -t proc proc {d}/processes; mount -t tmpfs tmpfs {d}/devices; mknod -m 666 {d}/devices/null c 1 3; echo text >{d}/devices/file")
            try:
                read = lambda path: self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "cat", path, check=False)
                self.assertEqual(read("/v/devices/file").stdout.strip(), "text")
                for path in ("/v/processes/version", "/v/processes/self/mem", "/v/devices/null"):
                    with self.subTest(path):
                        self.assertIn("ermission denied", read(path).stderr)
            finally:
                self.bed.run("umount", f"{d}/processes", f"{d}/devices")
                self.bed.crictl("rm", "-f", container.id)


class Substitutes(KillTest):
    """Paths and numbers that mean something else a moment later, and names of what is the node's."""

    def test_a_sysctl_of_the_nodes_is_refused_by_its_name(self):
        for name, network in (("kernel.core_pattern", 0), ("vm.overcommit_memory", 0), ("net.ipv4.ip_forward", 2)):
            with self.subTest(name):
                # As it is: a shim that writes it changes nothing on this machine.
                value = self.bed.run("cat", f"/proc/sys/{name.replace('.', '/')}").stdout.strip()
                config = self.pod_config(linux={"sysctls": {name: value}, "security_context": {"namespace_options": {"network": network}}})
                said = self.bed.crictl("runp", "--runtime", "slipway", config, check=False)
                self.assertIn(f"linux.sysctl[{name}]: is the", said.stderr)
        # CRI keeps the name of a sandbox that came to nothing until it is removed.
        self.bed.crictl("rmp", "-fa")

    def test_a_termination_message_goes_to_the_file_that_was_mounted(self):
        with tempfile.TemporaryDirectory() as d, tempfile.TemporaryDirectory() as volume:
            with open(f"{d}/traps.wat", "w") as f:
                f.write(ENDS_WHEN_TOLD.replace("(call $exit (i32.const 9))", "unreachable"))
            image = self.bed.image(f"{d}/traps.wat", "traps")
            for name in ("message", "other"):
                open(f"{d}/{name}", "w").close()
            container = self.pod().start(image, mounts=[
                {"container_path": "/v", "host_path": volume}, {"container_path": "/dev/termination-log", "host_path": f"{d}/message"}])
            os.rename(f"{d}/message", f"{d}/mounted")
            os.symlink("other", f"{d}/message")
            open(f"{volume}/end", "w").close()
            self.assertEqual(container.ended()["exitCode"], 134)
            with open(f"{d}/mounted") as mounted, open(f"{d}/other") as other:
                self.assertIn("unreachable", mounted.read())
                self.assertEqual(other.read(), "")

    def test_an_exec_does_not_follow_the_number_of_a_program_that_has_ended(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        pid = container.info()["pid"]
        shim = self.shim_address()
        # It would take the container away when that has ended.
        self.kill_containerd()
        spec = field(1, b"json") + field(2, b'{"args": ["/hello.wasm"], "cwd": "/"}')
        asked = field(1, container.id.encode()) + field(2, b"late")
        call(shim, "Exec", asked + field(7, spec))
        self.kill(str(pid))
        self.until(lambda: str(pid) not in self.bed.run("ps", "-eo", "pid=").stdout.split())
        successor = f"echo {pid - 1} >/proc/sys/kernel/ns_last_pid; sleep 1000 >/dev/null 2>&1 & echo $!"
        self.assertEqual(self.bed.run("sh", "-c", successor).stdout.strip(), str(pid))
        self.assertIn(b"exec needs a running one", call(shim, "Start", asked))
        self.kill(str(pid))
        self.restart()


# What the kubelet says of a pod with shareProcessNamespace.
SHARED = {"security_context": {"namespace_options": {"pid": 0}}}


class Neighbours(KillTest):
    """A pod whose processes see each other (shareProcessNamespace), with a sidecar that may trace them."""

    def sidecar(self, pod, linux):
        with tempfile.TemporaryDirectory() as d:
            subprocess.run(["gcc", "-static", "-O2", "-o", f"{d}/neighbour", f"{HERE}/neighbour.c"], check=True)
            image = self.bed.file_image("neighbour", [f"{d}/neighbour=/neighbour"], ["/neighbour"])
        # In the bed's own root alone.
        options = {**linux["security_context"], "capabilities": {"add_capabilities": ["SYS_PTRACE", "CHECKPOINT_RESTORE"]}}
        sidecar = pod.start(image, [f"{self.bed.root}/config.toml"], linux={"security_context": options})
        sidecar.until("looking")
        return sidecar

    def test_a_sidecar_that_may_trace_finds_no_power_and_no_root_but_its_own_at_any_moment(self):
        self.neighbours("slipway", SHARED)

    def test_nor_in_a_pod_of_its_own_user_namespace(self):
        if self.bed.version == "1.7":
            self.skipTest("containerd 2.0 and later make user namespaces for pods")
        self.neighbours(USERS_HANDLER, USERS)

    def neighbours(self, handler, linux):
        pod = self.pod(handler, linux=linux)
        sidecar = self.sidecar(pod, linux)
        sidecar.until("seen of slipway-holder")
        name = f"seen{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            image = self.bed.image(slow_module(d, name), name)
        # The slow one is seen, or not, for as long as its module is compiled.
        slow = pod.create(image, annotations={"slipway.dev/compile": "full"}, linux=linux)
        self.bed.crictl("--timeout", "300s", "start", slow.id)
        self.assertEqual(slow.ended()["exitCode"], 0)
        container = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, linux=linux)
        sidecar.until("seen of slipway-guest")
        for _ in range(5):
            self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "cat", "/etc/hosts")
        # A fork of the shim has the shim's program, which can be opened for writing where no pod runs: by who may trace, for the
        # holder is nobody's.
        known = {"looking", "seen of slipway-holder", "seen of slipway-guest", "exe of slipway-holder"}
        known |= {line for line in sidecar.text().splitlines() if line.startswith("map /") and line.endswith(" of slipway-holder")}
        # Its container's: what it says bounds nobody else, and the cgroup stands behind it.
        known.add("map /memfd:budget (deleted) of slipway-guest")
        self.assertLessEqual(set(sidecar.text().splitlines()), known)
        # Root can change mode and owner of what is behind a descriptor: the node's null device is not.
        node = self.bed.run("stat", "-c", "%d", "/dev/null").stdout
        streams = [f"/proc/{container.info()['pid']}/fd/{n}" for n in (0, 1, 2)]
        self.assertNotIn(node.strip(), self.bed.run("stat", "-L", "-c", "%d", *streams).stdout.split())

    def test_a_start_that_is_given_up_leaves_a_pod_that_can_be_stopped(self):
        pod = self.pod(linux=SHARED)
        pod.start("localhost/busybox:1", ["-c", "sleep 1000"], linux=SHARED)
        for n in range(3):
            name = f"given{os.getpid()}-{n}-{self.bed.number()}-{self.bed.version}"
            with tempfile.TemporaryDirectory() as d:
                image = self.bed.image(slow_module(d, name), name)
            container = pod.create(image, annotations={"slipway.dev/compile": "full"}, linux=SHARED)
            given_up = self.bed.crictl("--timeout", "1s", "start", container.id, check=False)
            self.assertIn("DeadlineExceeded", given_up.stderr)
        self.bed.stop_pod(pod.sandbox)

    def test_a_guest_among_others_is_killed_paused_and_told_of_as_any(self):
        pod = self.pod(linux=SHARED)
        container = pod.start(self.bed.example("hello"), ["sleep"], linux=SHARED)
        container.until("Hello")
        self.bed.crictl("stop", "-t", "10", container.id)
        self.assertEqual(container.status()["exitCode"], 143)
        self.assertEqual(pod.start(self.bed.example("hello"), ["exit", "7"], linux=SHARED).ended()["exitCode"], 7)
        refused = pod.create(self.bed.example("hello"), command=["/hello.wasm#no_such_function"], linux=SHARED).start(check=False)
        self.assertIn("no_such_function", refused.stderr)


class BadGuest(KillTest):
    """A guest whose module got out of the engine: native code in the place of an artefact, which runs where the engine loads it."""

    @contextlib.contextmanager
    def bad(self, body):
        """A container of an image whose artefact is C code: `body` runs in the guest while it loads it."""
        name = f"bad{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/{name}.wat", "w") as f:
                f.write(f'(module (memory (export "memory") 1) (data (i32.const 0) "{name}") (func (export "_start")))')
            image = self.bed.image(f"{d}/{name}.wat", name)
            pod = self.pod()
            self.assertEqual(pod.start(image).ended()["exitCode"], 0)
            entry = self.artefact_of(f"/{name}.wat")
            with open(f"{d}/bad.c", "w") as f:
                f.write("#include <string.h>\n#include <stdio.h>\n#include <unistd.h>\n#include <sys/socket.h>\n"
                        f"__attribute__((constructor)) static void run(void) {{ {body} }}\n")
            subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", f"{d}/bad.so", f"{d}/bad.c"], check=True)
            with open(f"{d}/bad.so", "rb") as f:
                self.replace(f"{self.bed.root}/cache/{entry}", f.read())
            yield pod.create(image)

    def artefact_of(self, path):
        [entry] = [row["artefact"] for row in self.cache() if row["origin"] == path]
        return f"{entry}.so"

    def replace(self, path, payload):
        """Puts another payload into a cache entry: payload, description, SHA-256 of both, length of the description, magic."""
        with open(path, "rb") as f:
            entry = f.read()
        size = int.from_bytes(entry[-12:-8], "little")
        description = entry[-44 - size:-44]
        covered = payload + description
        with open(path, "wb") as f:
            f.write(covered + hashlib.sha256(covered).digest() + entry[-12:])

    @contextlib.contextmanager
    def escaped(self, *files):
        """An image whose module got out: test/integration/bad_guest.c is in the place of its artefact."""
        name = f"escaped{os.getpid()}-{self.bed.number()}-{self.bed.version}"
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/{name}.wat", "w") as f:
                f.write(f"""(module (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
                    (memory (export "memory") 1) (data (i32.const 0) "{name}")
                    (func (export "_start") (loop $again (drop (call $yield)) (br $again))))""")
            pod = self.pod()
            pod.start(self.bed.image(f"{d}/{name}.wat", f"{name}-whole"))
            entry = self.artefact_of(f"/{name}.wat")
            path = f"{self.bed.root}/cache/{entry}"
            with open(f"{d}/module", "wb") as f:
                f.write(self.symbol(path, "wasm.code"))
            version = int.from_bytes(self.symbol(path, "version"), "little")
            numbers = ",".join(f"SYS_{call}" for call in listed("guest"))
            subprocess.run(
                ["gcc", "-shared", "-fPIC", "-O1", "-o", f"{d}/bad.so", f"{HERE}/bad_guest.c", f"-DALLOWED={numbers}", f'-DMODULE="/{name}.wat"',
                 f'-DBYTES="{d}/module"', f'-DVERSION="{version}"', f'-DMARK="{self.bed.root}/config.toml"'], check=True)
            with open(f"{d}/bad.so", "rb") as f:
                self.replace(path, f.read())
            yield pod, self.bed.file_image(name, [f"{d}/{name}.wat=/{name}.wat", *files], [f"/{name}.wat"])

    def symbol(self, path, name):
        """The bytes of one of an artefact's symbols. They lie in its first segment, which is mapped from the file's beginning."""
        table = subprocess.run(["readelf", "-W", "--dyn-syms", path], check=True, capture_output=True, text=True).stdout
        [(address, size)] = [row[1:3] for line in table.splitlines() if (row := line.split())[-1:] == [name]]
        return self.payload(path)[int(address, 16):][:int(size)]

    def payload(self, path):
        with open(path, "rb") as f:
            entry = f.read()
        return entry[:-44 - int.from_bytes(entry[-12:-8], "little")]

    def test_code_that_got_out_while_it_is_loaded_finds_nothing(self):
        with self.escaped("text:now=/now") as (pod, image):
            for user in (0, 1000):
                linux = {"security_context": {"namespace_options": {"pid": 1}, "run_as_user": {"value": user}}}
                self.assertIn(": nothing", pod.create(image, linux=linux).start(check=False).stderr)

    def test_code_that_got_out_while_it_runs_finds_nothing(self):
        with self.escaped() as (pod, image):
            for user in (0, 1000):
                linux = {"security_context": {"namespace_options": {"pid": 1}, "run_as_user": {"value": user}}}
                container = pod.start(image, linux=linux)
                self.bed.run("kill", "-USR2", str(container.info()["pid"]))
                self.assertEqual((container.ended()["exitCode"], container.text()), (0, "nothing"))

    def test_what_is_no_message_ends_the_guest_and_start_says_why(self):
        with self.bad('send(3, "\\xff\\xff\\xff\\xff\\xff\\xff\\xff", 7, 0); pause();') as container:
            said = container.start(check=False).stderr
            self.assertIn("broke the protocol between guest and shim", said)

    def test_a_flood_of_messages_ends_the_guest(self):
        # The first byte is a message's number: Waiting, which may not come now.
        with self.bad('for (;;) send(3, "\\0", 1, 0);') as container:
            said = container.start(check=False).stderr
            self.assertIn("Waiting at the wrong time", said)

    def test_an_end_that_is_told_and_does_not_come_is_none(self):
        # Ended, status 0, no reason.
        with self.bad('send(3, "\\x09\\0\\0\\0", 4, 0); pause();') as container:
            self.assertIn("ended with status 0 before the module was loaded", container.start(check=False).stderr)

    def test_who_is_not_the_guest_cannot_speak_for_it(self):
        # Ready, without steps: of another process that has taken the guest's end of the socket, as one that may trace it can.
        speak = """
import ctypes, os, socket, sys
system_call = ctypes.CDLL(None).syscall
taken = system_call(438, os.pidfd_open(int(sys.argv[1])), 3, 0)
socket.socket(fileno=taken).send(bytes([7, 0]))
"""
        with self.bad("for (;;) recv(3, 0, 0, MSG_PEEK);") as container, concurrent.futures.ThreadPoolExecutor(1) as pool:
            started = pool.submit(container.start, check=False)
            [guest] = self.until(lambda: [line.split()[0] for line in self.bed.ctr("tasks", "ps", container.id, check=False).stdout.splitlines()[1:]])
            self.bed.python(speak, guest)
            self.assertIn("which is not the guest", started.result().stderr)

    def test_a_guest_makes_no_other_process(self):
        with self.bad("fork();") as container:
            self.assertIn("the process made a system call that", container.start(check=False).stderr)

    def test_a_packet_without_a_byte_ends_the_guest(self):
        with self.bad('send(3, "", 0, 0); pause();') as container:
            self.assertIn("before the module was loaded", container.start(check=False).stderr)

    def test_a_descriptor_that_takes_long_to_close_does_not_hold_the_shim(self):
        # A connection to itself whose buffer is full, which lingers: Failed, with its descriptor.
        body = r"""
            struct { unsigned short family, port; unsigned address; char rest[8]; } at = {2, 0, 0x0100007f};
            unsigned size = 16;
            extern int listen(), bind(), getsockname(), connect(), fcntl(int, int, ...), setsockopt();
            int server = socket(2, 1, 0);
            bind(server, (void *)&at, 16), listen(server, 1), getsockname(server, (void *)&at, (void *)&size);
            int client = socket(2, 1, 0);
            connect(client, (void *)&at, 16), fcntl(client, 4, 04000);
            static char bytes[65536];
            while (write(client, bytes, sizeof bytes) > 0);
            fcntl(client, 4, 0);
            struct { int on, seconds; } linger = {1, 600};
            setsockopt(client, 1, 13, &linger, 8);
            char text[3] = {8, 1, 'x'}, control[24] = {0};
            *(long *)control = 20, *(int *)(control + 8) = 1, *(int *)(control + 12) = 1, *(int *)(control + 16) = client;
            struct { void *base; unsigned long length; } part = {text, 3};
            struct msghdr message = {0};
            message.msg_iov = (void *)&part, message.msg_iovlen = 1, message.msg_control = control, message.msg_controllen = 24;
            sendmsg(3, &message, 0), close(client), pause();"""
        with self.bad(body) as container:
            self.assertIn("descriptors at the wrong time", container.start(check=False).stderr)
            self.assertEqual(container.status()["state"], "CONTAINER_EXITED")
