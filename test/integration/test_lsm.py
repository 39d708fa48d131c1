"""What runs under an AppArmor profile or an SELinux label, and what is said where it cannot. `make test-lsm` runs the first two classes
in kernels that have these modules."""
import os
import subprocess
import tempfile
import unittest

from harness import EXAMPLES, PATIENCE, ROOT, PodTest, run
from test_spec import RUNTIME, Spec
from test_users import HANDLER, IDS, USERS


def read(path):
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError:
        return ""


APPARMOR = read("/sys/module/apparmor/parameters/enabled") == "Y"
SELINUX = os.path.exists("/sys/fs/selinux/context")


class Unconfined(PodTest):
    config = Spec.config

    @unittest.skipIf(APPARMOR or SELINUX, "this kernel has AppArmor or SELinux")
    def test_what_the_kernel_does_not_have_is_refused_by_the_fields_name(self):
        label = "system_u:system_r:container_t:s0:c1,c2"
        for name, told, process, linux in (
            ("process.apparmorProfile", "AppArmor is not enabled on this node", {"apparmorProfile": "slipway"}, {}),
            ("process.selinuxLabel", "SELinux is not enabled on this node", {"selinuxLabel": label}, {}),
            ("linux.mountLabel", "SELinux is not enabled on this node", {}, {"mountLabel": label}),
        ):
            with self.subTest(name), tempfile.TemporaryDirectory() as d:
                path, container = self.config(d, "hello", process=process, linux=linux)
                done = self.bed.ctr("run", "--rm", "--config", path, "--runtime", RUNTIME, container, check=False)
                self.bed.ctr("containers", "rm", container, check=False)
                self.assertNotIn("Hello", done.stdout)
                for text in (name, told, [*process.values(), *linux.values()][0]):
                    self.assertIn(text, done.stderr)


def profile(name, *rules, base="#include <abstractions/base>\nfile, network, capability,"):
    """The text of a profile; unless told otherwise it denies what the rules deny."""
    return f"abi <abi/3.0>,\n#include <tunables/global>\nprofile {name} {{\n{base}\n" + "\n".join(f"{rule}," for rule in rules) + "\n}\n"


@unittest.skipUnless(APPARMOR, "this kernel has no AppArmor: make test-lsm")
class AppArmor(PodTest):
    config = Spec.config

    def load(self, name, *rules, **fields):
        """Loads a profile; returns what a pod asks for it by."""
        run("apparmor_parser", "-r", "--skip-cache", input=profile(name, *rules, **fields))
        return {"profile_type": 2, "localhost_ref": name}

    def linux(self, apparmor, pid=1, users={}):
        """What CRI is told of a pod or a container."""
        options = users.get("security_context", {}).get("namespace_options", {})
        return {"security_context": {"namespace_options": {**options, "pid": pid}, "apparmor": apparmor}}

    def labels(self, *containers):
        """The profile of each process of these containers."""
        pids = [line.split()[0] for c in containers for line in self.bed.ctr("tasks", "ps", c.id).stdout.splitlines()[1:]]
        return [self.bed.run("cat", f"/proc/{pid}/attr/apparmor/current").stdout.strip() for pid in pids]

    def exec(self, container, *args):
        return self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", *args, check=False)

    def test_a_profile_decides_by_the_containers_paths(self):
        denying = self.load("slipway-paths", "deny /closed/** w", "deny /etc/hostname r")
        for handler, pid, more, ids in (("slipway", 1, {}, {}), ("slipway", 0, {}, {}), (HANDLER, 0, USERS, {"uidMappings": IDS, "gidMappings": IDS})):
            with self.subTest(handler, pid=pid), tempfile.TemporaryDirectory() as d:
                os.mkdir(f"{d}/open")
                os.mkdir(f"{d}/closed")
                for name in ("open", "closed"):
                    os.chmod(f"{d}/{name}", 0o777)
                unconfined, linux = (self.linux(apparmor, pid, more) for apparmor in ({"profile_type": 1}, denying))
                pod = self.pod(handler, linux=unconfined)
                volumes = [{"container_path": f"/{name}", "host_path": f"{d}/{name}", **ids} for name in ("open", "closed")]
                container = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, mounts=volumes, linux=linux)
                # It has none while its module is compiled.
                self.until(lambda: self.labels(container) == ["slipway-paths (enforce)"], lambda: self.labels(container))
                self.assertEqual(self.exec(container, "write", "/open/file", "x").returncode, 0)
                self.assertIn("Permission denied", self.exec(container, "write", "/closed/file", "x").stderr)
                self.assertIn("Permission denied", self.exec(container, "cat", "/etc/hostname").stderr)
                self.assertEqual(self.exec(container, "cat", "/open/file").stdout.strip(), "x")
                # The program itself, as its execs.
                program = pod.start(self.bed.example("envfiles"), ["write", "/closed/file", "x"], mounts=volumes, linux=linux)
                self.assertEqual(program.ended()["exitCode"], 1)
                self.assertIn("Permission denied", program.text())
                self.assertEqual(os.listdir(f"{d}/closed"), [])
                plain = pod.start(self.bed.example("envfiles"), ["write", "/closed/file", "x"], mounts=volumes, linux=unconfined)
                self.assertEqual(plain.ended()["exitCode"], 0)
                container.stop()
                self.assertEqual(container.status()["exitCode"], 143)

    def test_a_volume_may_be_the_root(self):
        denying = self.load("slipway-root", "deny /closed r")
        with tempfile.TemporaryDirectory() as d:
            for name in ("open", "closed"):
                with open(f"{d}/{name}", "w") as f:
                    f.write(name)
            pod = self.pod()
            for name, status, told in (("open", 0, "open"), ("closed", 1, "Permission denied")):
                container = pod.start(self.bed.example("envfiles"), ["cat", f"/{name}"], linux=self.linux(denying), mounts=[
                    {"container_path": "/", "host_path": d}, {"container_path": "/envfiles.wasm", "host_path": f"{EXAMPLES}/envfiles.wasm"}])
                self.assertEqual(container.ended()["exitCode"], status)
                self.assertIn(told, container.text())

    def test_containerds_own_profile_is_that_of_every_container_and_lets_it_work(self):
        pod = self.pod(linux=self.linux({"profile_type": 0}, 0))
        linux = self.linux({"profile_type": 0}, 0)
        # It is that of a container that names none, too.
        files = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, linux={"security_context": {"namespace_options": {"pid": 0}}})
        server = pod.start(self.bed.example("tcp-echo"), linux=linux)
        server.until("listening")
        # The pod's Linux container has it by runc.
        linux_program = pod.start("localhost/busybox:1", ["-c", "cat /proc/self/attr/current; exec sleep 1000"], linux=linux)
        linux_program.until("cri-containerd.apparmor.d (enforce)")
        command = [f"{ROOT}/test/bed/bed", "run", self.bed.root, "crictl", "-c", f"{self.bed.root}/crictl.yaml"]
        running = subprocess.Popen([*command, "exec", "-i", files.id, "/envfiles.wasm", "stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.stdin.write("here\n")
        running.stdin.flush()
        self.assertEqual(running.stdout.readline(), "here\n")
        self.assertEqual(self.labels(files, server, linux_program), ["cri-containerd.apparmor.d (enforce)"] * 4)
        running.communicate(timeout=PATIENCE)
        done = self.bed.python(
            "import socket,sys; s=socket.create_connection((sys.argv[1],8080)); s.sendall(b'ping'); print(s.recv(4))", pod.ip())
        self.assertIn("ping", done.stdout)
        self.assertEqual(self.exec(files, "write", "/file", "x").returncode, 0)
        server.stop()
        self.assertEqual(server.status()["exitCode"], 143)

    def test_the_network_and_all_files_can_be_denied(self):
        pod = self.pod(linux=self.linux({"profile_type": 1}))
        # What docs/oci.md says that a narrow one needs.
        narrow = self.load("slipway-narrow", "/artefact.so rm", "network unix", "signal (receive) peer=unconfined", base="")
        hello = pod.start(self.bed.example("hello"), linux=self.linux(narrow))
        self.assertEqual(hello.ended()["exitCode"], 0)
        self.assertIn("Hello", hello.text())
        sleeping = pod.start(self.bed.example("hello"), ["sleep"], linux=self.linux(narrow))
        sleeping.stop()
        self.assertEqual(sleeping.status()["exitCode"], 143)
        without = self.load("slipway-no-network", base="file, network unix, signal,")
        server = pod.start(self.bed.example("tcp-echo"), linux=self.linux(without))
        self.assertNotEqual(server.ended()["exitCode"], 0)
        self.assertIn("ermission denied", server.text())
        # The example of Kubernetes' documentation.
        closed = self.load("k8s-apparmor-example-deny-write", "deny /** w", base="#include <abstractions/base>\nfile,")
        hello = pod.start(self.bed.example("hello"), linux=self.linux(closed))
        self.assertEqual(hello.ended()["exitCode"], 0)
        self.assertIn("Hello", hello.text())
        writing = pod.start(self.bed.example("envfiles"), ["write", "/file", "x"], linux=self.linux(closed))
        self.assertEqual(writing.ended()["exitCode"], 1)

    def test_a_profile_that_is_not_there_or_forbids_loading_is_told(self):
        # Compiled before: a Start that does not wait for the compiler has succeeded.
        self.assertEqual(self.pod().start(self.bed.example("hello")).ended()["exitCode"], 0)
        self.load("slipway-without-artefact", "deny /artefact.so rm")
        for name, told in (
            ("slipway-nobody", 'process.apparmorProfile "slipway-nobody": no such profile is loaded on this node'),
            ("slipway-without-artefact", "perhaps the profile of process.apparmorProfile forbids"),
        ):
            with self.subTest(name), tempfile.TemporaryDirectory() as d:
                path, container = self.config(d, "hello", process={"apparmorProfile": name})
                done = self.bed.ctr("run", "--rm", "--config", path, "--runtime", RUNTIME, container, check=False)
                self.bed.ctr("containers", "rm", container, check=False)
                self.assertNotIn("Hello", done.stdout)
                self.assertIn(told, done.stderr.replace("\\", ""))


@unittest.skipUnless(SELINUX, "this kernel has no SELinux: make test-lsm")
class SELinux(PodTest):
    """By the policy of test/lsm/policy.cil."""

    config = Spec.config
    LABEL = "system_u:system_r:container_t:s0:c1,c2"

    def test_a_label_is_that_of_guest_and_execs(self):
        with tempfile.TemporaryDirectory() as d:
            volumes = []
            for name, kind in (("open", "node_t"), ("closed", "closed_t")):
                os.mkdir(f"{d}/{name}")
                self.bed.run("mount", "-t", "tmpfs", "-o", f"context=system_u:object_r:{kind}:s0", "tmpfs", f"{d}/{name}")
                volumes.append({"destination": f"/{name}", "type": "bind", "source": f"{d}/{name}", "options": ["rbind"]})
            volumes.append({"destination": "/new", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]})
            path, container = self.config(d, "envfiles", "stdin", mounts=volumes, process={"selinuxLabel": self.LABEL},
                                          linux={"mountLabel": "system_u:object_r:container_t:s0:c1,c2"})
            self.bed.ctr("run", "-d", "--config", path, "--runtime", RUNTIME, container)
            try:
                pid = self.bed.ctr("tasks", "ps", container).stdout.split()[2]
                label = lambda: self.bed.run("cat", f"/proc/{pid}/attr/current").stdout.strip("\0\n")
                # It has none while its module is compiled.
                self.until(lambda: label() == self.LABEL, label)
                write = lambda at: self.bed.ctr(
                    "tasks", "exec", "--exec-id", f"e{self.bed.number()}", container, "/envfiles.wasm", "write", at, "x", check=False)
                self.assertEqual(write("/open/file").returncode, 0)
                self.assertEqual(write("/new/file").returncode, 0)
                self.assertIn("Permission denied", write("/closed/file").stderr)
                for file in ("dev", "new/file"):
                    seen = self.bed.run(
                        "python3", "-c", "import os, sys; print(os.getxattr(sys.argv[1], 'security.selinux').decode().strip('\\0'))",
                        f"/proc/{pid}/root/rootfs/{file}")
                    self.assertEqual(seen.stdout.strip(), "system_u:object_r:container_t:s0:c1,c2")
            finally:
                self.bed.ctr("tasks", "rm", "-f", container, check=False)
                self.bed.ctr("containers", "rm", container, check=False)
                for name in ("open", "closed"):
                    self.bed.run("umount", f"{d}/{name}")

    def test_a_label_that_the_policy_does_not_have_or_allow_is_told(self):
        # Compiled before: a Start that does not wait for the compiler has succeeded.
        self.assertEqual(self.pod().start(self.bed.example("hello")).ended()["exitCode"], 0)
        for label, told in (
            ("system_u:system_r:nobody_t:s0", "the node's policy does not know this label"),
            ("system_u:system_r:stranger_t:s0", "the kernel refuses the change: Permission denied"),
        ):
            with self.subTest(label), tempfile.TemporaryDirectory() as d:
                path, container = self.config(d, "hello", process={"selinuxLabel": label})
                done = self.bed.ctr("run", "--rm", "--config", path, "--runtime", RUNTIME, container, check=False)
                self.bed.ctr("containers", "rm", container, check=False)
                self.assertNotIn("Hello", done.stdout)
                for text in ("process.selinuxLabel", label, told):
                    self.assertIn(text, done.stderr)
