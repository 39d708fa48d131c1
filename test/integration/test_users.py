"""User namespaces: a pod whose users are others outside (hostUsers: false)."""
import os
import tempfile

from harness import PodTest

OUTSIDE = 100000
IDS = [{"host_id": OUTSIDE, "container_id": 0, "length": 65536}]
# What the kubelet says of such a pod whose containers see each other's processes.
USERS = {"security_context": {"namespace_options": {"pid": 0, "userns_options": {"mode": 0, "uids": IDS, "gids": IDS}}}}
# Of the kind that containerd asks for its features, with crun: Debian's runc maps no ids of mounts.
HANDLER = "slipway-users"


class UserNamespace(PodTest):
    def setUp(self):
        super().setUp()
        if self.bed.version == "1.7":
            self.skipTest("containerd 2.0 and later make user namespaces for pods")

    def volume(self, path, at, **fields):
        return {"container_path": at, "host_path": path, **fields}

    def mapped(self, path, at):
        return self.volume(path, at, uidMappings=IDS, gidMappings=IDS)

    def pid(self, container):
        return str(container.info()["pid"])

    def inside(self, *command):
        return self.bed.run(*command).stdout.split()

    def test_root_of_a_pod_is_nobody_outside_in_all_of_its_containers(self):
        with tempfile.TemporaryDirectory() as shared, tempfile.TemporaryDirectory() as node:
            os.chmod(node, 0o755)
            pod = self.pod(HANDLER, linux=USERS)
            mounts = [self.mapped(shared, "/shared"), self.volume(node, "/node")]
            wasm = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, linux=USERS, mounts=mounts)
            guest = self.pid(wasm)

            with self.subTest("the process"):
                self.assertEqual(self.inside("cat", f"/proc/{guest}/uid_map", f"/proc/{guest}/gid_map"), ["0", str(OUTSIDE), "65536"] * 2)
                self.assertEqual(self.inside("sh", "-c", f"grep -E '^(Uid|Gid)' /proc/{guest}/status")[1::5], [str(OUTSIDE)] * 2)
            with self.subTest("its files"):
                files = [f"/proc/{guest}/root/rootfs{f}" for f in ("", "/envfiles.wasm", "/dev", "/dev/null", "/etc", "/etc/hosts", "/shared")]
                self.assertEqual(self.inside("stat", "-c", "%u:%g", *files), [f"{OUTSIDE}:{OUTSIDE}"] * len(files))
            with self.subTest("exec"):
                for path in ("/shared/file", "/file"):
                    self.bed.crictl("exec", "-s", wasm.id, "/envfiles.wasm", "write", path, "text")
                self.assertEqual(os.stat(f"{shared}/file").st_uid, 0)
                self.assertEqual(self.inside("stat", "-c", "%u", f"/proc/{guest}/root/rootfs/file"), [str(OUTSIDE)])
                refused = self.bed.crictl("exec", "-s", wasm.id, "/envfiles.wasm", "write", "/node/file", "text", check=False)
                self.assertIn("ermission denied", refused.stderr)
                self.assertEqual(os.listdir(node), [])
            with self.subTest("a Linux container"):
                linux = pod.create("localhost/busybox:1", command=["sh", "-c", "stat -c %u /shared/file; readlink /proc/self/ns/user; echo end; sleep 1000"], linux=USERS, mounts=mounts)
                linux.start()
                linux.until("end")
                self.assertEqual(linux.text().split(), ["0", *self.inside("readlink", f"/proc/{guest}/ns/user"), "end"])

    def test_users_and_groups_are_those_inside(self):
        options = {"namespace_options": {**USERS["security_context"]["namespace_options"], "pid": 1}}
        pod = self.pod(HANDLER, linux={"security_context": options})
        container = pod.start(self.bed.example("envfiles"), ["stdin"], stdin=True, linux={"security_context": {
            **options, "run_as_user": {"value": 1000}, "run_as_group": {"value": 2000}, "supplemental_groups": [3000]}})
        status = self.inside("sh", "-c", f"grep -E '^(Uid|Gid|Groups|CapPrm|CapBnd)' /proc/{self.pid(container)}/status")
        self.assertEqual(status[1], str(OUTSIDE + 1000))
        self.assertEqual(status[6], str(OUTSIDE + 2000))
        self.assertIn(str(OUTSIDE + 3000), status)
        self.assertEqual([int(c, 16) for c in status if len(c) == 16], [0, 0])

    def test_a_volume_whose_ids_cannot_be_mapped_is_refused_by_name(self):
        container = self.pod(HANDLER, linux=USERS).create(self.bed.example("hello"), linux=USERS, mounts=[self.mapped("/sys/kernel", "/v")])
        said = container.start(check=False).stderr
        self.assertRegex(said, r"mounts: /sys/kernel at /v: its ids cannot be mapped for a user namespace: Linux \S+, file system sysfs")


class NoUserNamespace(PodTest):
    def test_a_pod_that_brings_none_of_its_own_is_refused_by_name(self):
        if self.bed.version != "1.7":
            self.skipTest("containerd 2.0 and later make it")
        with self.assertRaisesRegex(AssertionError, "linux.namespaces: a user namespace without a path.* hostUsers: true"):
            self.pod(HANDLER, linux=USERS)
