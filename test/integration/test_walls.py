"""Ways out of a container, tried. docs/security.md names these tests."""
import os
import subprocess
import tempfile

from harness import PodTest
from test_spec import RUNTIME, Spec
from test_users import HANDLER as USERS_HANDLER, IDS, USERS

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
            root = {"nodev"} | ({"ro"} if read_only else set())
            expected = {
                "/": CLOSED, "/artefact.so": CLOSED - {"noexec"}, "/etc/hosts": CLOSED, "/etc/resolv.conf": CLOSED,
                "/rootfs": root, "/rootfs/dev": {"nosuid", "noexec"}, "/rootfs/v/rw": {"nodev"}, "/rootfs/v/ro": {"nodev", "ro"},
                "/rootfs/v/file": {"nodev", "ro"}, "/rootfs/v/later": {"nodev"},
            }
            if not users:
                expected |= {"/rootfs/v/nested": {"nodev"}, "/rootfs/v/nested/below": {"nodev"}}
            # What the bed's own file system has, they have too.
            inherited = self.mounts("self")["/"][0] & {"nosuid", "noexec"}
            for at, attributes in expected.items():
                with self.subTest(at):
                    self.assertEqual(found[at][0] - (inherited - attributes), attributes)
            # CRI's own files, and nothing else.
            for at in set(found) - set(expected):
                with self.subTest(at):
                    self.assertIn(at, ("/rootfs/etc/hosts", "/rootfs/etc/resolv.conf", "/rootfs/etc/hostname", "/rootfs/dev/shm"))
                    self.assertLessEqual({"nodev"}, found[at][0])
            self.assertNotIn("proc", {kind for _, kind in found.values()})
            self.bed.crictl("rm", "-f", container.id)
        finally:
            if not users:
                self.bed.run("umount", f"{d}/nested/below")

    def test_a_device_node_of_an_image_cannot_be_opened_even_where_the_root_is_read_only(self):
        for read_only in (False, True):
            with self.subTest(read_only), tempfile.TemporaryDirectory() as d:
                path, container = Spec.config(self, d, "envfiles", "cat", "/zero", root={"path": f"{d}/rootfs", "readonly": read_only})
                subprocess.run(["mknod", "-m", "666", f"{d}/rootfs/zero", "c", "1", "5"], check=True)
                # Where it can be opened it never ends.
                done = self.bed.run("timeout", "20", "ctr", "-n", "k8s.io", "run", "--rm", "--config", path, "--runtime", RUNTIME, container, check=False)
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
