"""Hostile images, pod specs, sidecars and modules: each does what Kubernetes says or is refused by name, and the node stays as it was.
docs/security.md names these tests."""
import concurrent.futures
import gzip
import io
import json
import os
import re
import socket
import stat
import subprocess
import tarfile
import tempfile

import test_wasi
from harness import ROOT, TREE, KillTest, run
from test_faults import ENDS_WHEN_TOLD
from test_images import OCI, WASM, ImageTest, artefact, digest, ends_with

TAR = OCI + "layer.v1.tar"
HERE = os.path.dirname(os.path.realpath(__file__))
# What every module here ends with that may run.
RAN = 41
# Of WASI's functions, for each seed.
CALLS = 20_000
EXECS = 200


def entry(path, data=b"", **fields):
    """A file of a layer; `fields` are those of tarfile.TarInfo."""
    info = tarfile.TarInfo(path.lstrip("/"))
    info.size, info.mode = len(data), 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def link(path, target):
    return entry(path, type=tarfile.SYMTYPE, linkname=target)


def directory(path):
    return entry(path, type=tarfile.DIRTYPE)


def tar(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def header(name, size, **fields):
    """The header of a file, whatever follows it."""
    info, _ = entry(name, **fields)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def archive(path, name, layers, config, packed=None):
    """Writes the archive of an image with these layers and this config of a program; `packed` are the layers as they are stored, with
    gzip."""
    stored = [(TAR + "+gzip", layer, {}) for layer in packed] if packed else [(TAR, layer, {}) for layer in layers]
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}, "config": config}
    write_archive(path, name, OCI + "config.v1+json", document, stored)


def write_archive(path, name, config_type, config, layers):
    """An archive of layers as (media type, bytes, fields of the descriptor that say something else)."""
    blobs = {}

    def blob(of, data, fields=()):
        blobs[digest(data)] = data
        return {"mediaType": of, "digest": digest(data), "size": len(data), **dict(fields)}

    manifest = {
        "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": blob(config_type, json.dumps(config).encode()),
        "layers": [blob(*layer) for layer in layers]}
    named = blob(OCI + "manifest.v1+json", json.dumps(manifest).encode(), {"annotations": {"io.containerd.image.name": name}})
    index = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [named]}
    files = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", json.dumps(index).encode())]
    with open(path, "wb") as f:
        f.write(tar(*(entry(*file) for file in files), *(entry("blobs/sha256/" + name[7:], data) for name, data in blobs.items())))


class HostileTest(ImageTest):
    def add(self, tar, name):
        super().add(tar, name)
        # containerd tells CRI of it by an event.
        self.until(lambda: self.bed.crictl("inspecti", name, check=False).returncode == 0)

    def image(self, name, layers, config):
        reference = f"localhost/hostile-{name}:1"
        with tempfile.TemporaryDirectory() as d:
            archive(f"{d}/image.tar", reference, layers, config)
            self.add(f"{d}/image.tar", reference)
        return reference

    def outcome(self, pod, image, *command, **fields):
        """How its program ended, or what its user is told instead."""
        if command:
            fields["command"] = command
        try:
            container = pod.create(image, **fields)
        except AssertionError as e:
            return str(e)
        started = container.start(check=False)
        said = started.stderr if started.returncode else container.ended()["exitCode"]
        self.bed.crictl("rm", "-f", container.id)
        return said

    def expect(self, said, expected):
        """A status, or words of a refusal; it has no control character of whoever chose a name."""
        if isinstance(expected, int):
            self.assertEqual(said, expected)
            return
        self.assertIsInstance(said, str)
        # crictl escapes quotes, and a backslash that escapes one.
        self.assertIn(expected, said.replace("\\", ""))
        for character in ("\x1b", "x1b"):
            self.assertNotIn(character, said)

    def works(self, pod):
        """The shim is there, and goes on as before."""
        self.assertEqual(pod.start(self.bed.example("hello"), ["exit", "7"]).ended()["exitCode"], 7)


class HostileImage(HostileTest):
    """What an image may have in the place of a module, of directories and of its documents."""

    def test_an_entrypoint_is_a_file_of_the_image_whatever_lies_on_the_way(self):
        module = ends_with(RAN).encode()
        long, deep = "n" * 250 + ".wasm", "/".join(["d" * 254] * 15)
        node = f"{self.bed.root}/config.toml"
        targets = {
            "absolute": "/app.wat", "relative": "../app.wat", "climbing": "../../../../app.wat", "root": "/", "node": node, "executable": "/proc/self/exe",
            "descriptor": "/proc/self/fd/3", "process": "/proc/1/root", "loop": "loop", "there": "back", "back": "there"}
        layers = [
            tar(entry("/app.wat", module), entry("/gone.wat", module), entry("/emptied/app.wat", module), entry("/replaced/app.wat", module),
                entry("/suid.wat", module, mode=0o6755), entry("/empty.wat"), entry("/\x1b[31mred.wat"), entry("/" + long, module),
                entry(f"/{deep}/app.wat", module), entry("/directory.wat", type=tarfile.DIRTYPE), entry("/fifo", type=tarfile.FIFOTYPE),
                entry("/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), entry("/disk", type=tarfile.BLKTYPE, devmajor=254, devminor=0),
                *(link(f"/links/{name}", target) for name, target in targets.items()),
                *(link(f"/chain/{n}", f"{n + 1}") for n in range(60)), entry("/chain/60", module),
                entry("/hard.wat", type=tarfile.LNKTYPE, linkname="app.wat"), entry("/hard-link.wat", type=tarfile.LNKTYPE, linkname="links/node")),
            tar(entry("/.wh.gone.wat"), entry("/emptied/.wh..wh..opq"), link("/replaced", "/links")),
        ]
        special, nothing = "neither file nor directory, so no module", "a symlink to nothing inside the image"
        missing, circle = "no such file in the image", "symlinks lead in a circle"
        expected = {
            "/app.wat": RAN, "//app.wat": RAN, "../../app.wat": RAN, "/../../app.wat": RAN, "/links/../app.wat": RAN, "/links/absolute": RAN,
            "/links/relative": RAN, "/links/climbing": RAN, "/links/root/app.wat": RAN, "/replaced/absolute": RAN, "/chain/30": RAN,
            "/hard.wat": RAN, "/suid.wat": RAN, f"/{long}": RAN, f"/{deep}/app.wat": RAN, "/v/module": RAN,
            "/links/node": nothing, "/links/executable": nothing, "/links/descriptor": nothing, "/hard-link.wat": nothing, "/v/node": nothing,
            "/links/process/etc/passwd": missing, f"../../../..{node}": missing, "/gone.wat": missing, "/emptied/app.wat": missing, "/replaced/app.wat": missing,
            "/app.wat/": missing, "/app.wat/below": missing, "/fifo/below": missing, f"/{deep}/../app.wat": missing, "/\x1b[31m.wat": missing,
            "/links/loop": circle, "/links/there": circle, "/chain/0": circle,
            "/fifo": special, "/null": special, "/disk": special, "/v/fifo": special, "/v/socket": special,
            "/directory.wat": "a directory, not a module", "/directory.wat/.": "a directory, not a module",
            "/empty.wat": "empty file, not a module", "/\x1b[31mred.wat": "red.wat: empty file, not a module",
            "/v/giant.wasm": f"{8 << 30} bytes, the limit for a module is {256 << 20}",
            "/" + "n" * 256: "File name too long", "/n" * 3000: "File name too long",
            "#": "names no file", "/app.wat#" + "f" * 5000: "the function's name has 5000 bytes",
        }
        image = self.image("files", layers, {"Entrypoint": ["/app.wat"]})
        pod = self.pod()
        with tempfile.TemporaryDirectory() as d, socket.socket(socket.AF_UNIX) as s:
            s.bind(f"{d}/socket")
            os.mkfifo(f"{d}/fifo")
            os.symlink(node, f"{d}/node")
            os.symlink("/app.wat", f"{d}/module")
            # Takes no room on the disk.
            with open(f"{d}/giant.wasm", "w") as f:
                f.truncate(8 << 30)
            for command, what in expected.items():
                with self.subTest(command[:80]):
                    said = self.outcome(pod, image, command, mounts=[{"container_path": "/v", "host_path": d}])
                    self.expect(said, what)
        self.works(pod)

    def test_an_answer_is_the_same_whatever_the_node_has_where_a_link_would_lead(self):
        module = ends_with(RAN).encode()
        image = self.image("asks", [tar(entry("/app.wat", module), link("/node", self.bed.root), link("/self", "/proc/self"))], {"Entrypoint": ["/app.wat"]})
        pod = self.pod()
        for there, nowhere in (("/node/config.toml", "/node/config.none"), ("/node/cache", "/node/ehcac"),
                                        ("/self/exe", "/self/xex"), ("../..//self/root", "../..//self/toor")):
            with self.subTest(there):
                answers = [self.outcome(pod, image, path).rpartition("shim task: ")[2].replace(path, "PATH") for path in (there, nowhere)]
                self.assertIn("no such file in the image", answers[0])
                self.assertEqual(*answers)

    def test_what_a_config_says_is_done_or_refused_by_its_field(self):
        app = {"Entrypoint": ["/app.wat"]}
        strings, directory = "process.args and process.env: ", 'process.cwd "'
        configs = [
            ({}, "no command specified"), ({"Entrypoint": ["/app.wat\0/x"]}, strings), ({**app, "Cmd": ["a\0b"]}, strings), ({**app, "Env": ["A=\0"]}, strings),
            ({**app, "Env": ["A=" + "x" * (3 << 20)]}, "move large values into a ConfigMap volume"), ({**app, "Env": ["A", "", "=", "=x"]}, RAN),
            ({**app, "Env": [f"N{n}=x" for n in range(20_000)], "Cmd": ["x" * (1 << 20)]}, RAN),
            ({"Entrypoint": ["app.wat"], "Env": ["PATH=" + ":".join(["/none"] * 5000)]}, RAN),
            ({"Entrypoint": ["app.wat"], "Env": ["PATH=../../..:/proc/self/root:"]}, RAN),
            ({**app, "WorkingDir": "x"}, "process.cwd: "), ({**app, "WorkingDir": "/x\0y"}, directory), ({**app, "WorkingDir": "/app.wat"}, directory),
            ({**app, "WorkingDir": "/" + "w" * 256}, directory), ({**app, "WorkingDir": "/w" * 4000}, directory),
            ({**app, "WorkingDir": "/proc/self/root/../../.."}, RAN),
            ({**app, "User": "4294967296"}, "USER value"), ({**app, "User": "-1"}, "USER value"), ({**app, "User": "\x07:x:y"}, "USER value"),
            ({**app, "StopSignal": "SIGNOTHING"}, RAN), ({**app, "Volumes": {"/": {}, "../../../x": {}, "/dev": {}, "/proc": {}, "/sys": {}}}, RAN),
            ({**app, "ExposedPorts": {"99999999/none": {}}}, RAN),
            ({**app, "Labels": {"\x1b[31m": "\0" * 1000, "io.kubernetes.cri.container-type": "sandbox", "slipway.dev/compile": "rubbish"}}, RAN),
        ]
        layer = tar(entry("/app.wat", ends_with(RAN).encode()))
        pod = self.pod()
        for n, (config, expected) in enumerate(configs):
            with self.subTest(str(config)[:120]):
                self.expect(self.outcome(pod, self.image(f"config-{n}", [layer], config)), expected)
        self.works(pod)

    def test_an_archive_that_lies_is_refused_by_the_command_line_and_leaves_nothing(self):
        module = ends_with(RAN).encode()
        app = entry("/app.wat", module)
        whole = tar(app)
        hard = lambda target: tar(app, entry("/hard", type=tarfile.LNKTYPE, linkname=target))
        cases = {
            "a file that declares an exbibyte": (header("more", 1 << 60) + bytes(512), None, "takes more than there is room for"),
            "a file that declares a little more": (header("app.wat", len(module) + 5000) + module, None, "unexpected EOF"),
            "a name that declares a gigabyte": (header("././@LongLink", 1 << 30, type=tarfile.GNUTYPE_LONGNAME) + bytes(512), None, "reading its tar file"),
            "gzip that was cut off": (whole, gzip.compress(whole)[:-20], "incomplete deflate stream"),
            "gzip that was cut off at its checksum": (whole, gzip.compress(whole)[:-6], "unexpected end of file"),
            "gzip that is none": (whole, whole, "invalid gzip header"),
            "a hard link out of it": (hard("../../../../etc/passwd"), None, "contains `..`"),
            "a hard link to the node": (hard("/etc/passwd"), None, "which is no file"),
            "a hard link to a whiteout": (hard("/.wh.app.wat"), None, "hard link"), "a name that leaves it": (tar(app, entry("../../x")), None, "contains `..`"),
            "a name for a terminal": (tar(app, entry("/\x1b[31m" + "n" * 256)), None, "ilename too long"),
            "a deep path": (tar(app, entry("/" + "/".join(["d" * 200] * 30))), None, "ilename too long"),
            "thousands of files": (tar(app, *(entry(f"/{n}") for n in range(5000))), None, RAN),
        }
        for name, (layer, packed, expected) in cases.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as d:
                archive(f"{d}/app.tar", "localhost/lies:1", [layer], {"Entrypoint": ["/app.wat"]}, [packed] if packed else None)
                before = set(os.listdir(self.bed.temporary))
                # Who unpacks does with little; a compiler takes more.
                little = [] if expected == RAN else ["prlimit", f"--data={64 << 20}"]
                ran = run(*little, f"{TREE}/bin/slipway", "run", f"{d}/app.tar", check=False)
                self.assertEqual(ran.returncode, RAN if expected == RAN else 125, ran.stderr)
                self.assertIn("" if expected == RAN else expected, ran.stderr)
                self.assertNotIn("\x1b", ran.stderr)
                self.assertEqual(set(os.listdir(self.bed.temporary)), before)


    def test_an_artefact_that_lies_is_refused_by_what_is_wrong_with_it(self):
        module = ends_with(RAN).encode()
        size = lambda bytes: [(WASM, module, {"size": bytes})]
        damaged, wrong = "is damaged: it has", "cannot be unpacked: "
        cases = {
            "whole": ([(WASM, module, {})], RAN), "beside-files": ([(TAR, tar(entry("/app.wasm", module)), {}), (WASM, module, {})], RAN),
            "too-small": (size(7), f"{damaged} more than 7 bytes"), "too-large": (size(1000), f"{damaged} 169 bytes instead of 1000"),
            "negative": (size(-1), "is not valid: invalid value: integer `-1`"), "exbibytes": (size(1 << 62), f"more than the {256 << 20} allowed"),
            "files": ([(WASM, tar(entry("/app.wasm", module)), {})], "not a WebAssembly module"),
            "program": ([(WASM, b"\x7fELF" + bytes(99), {})], "it is an ELF program"),
            "script": ([(WASM, b"#!/bin/sh\n", {})], "it is a script"), "nothing": ([(WASM, b"", {})], "empty file"),
            "cut-off": ([(WASM, gzip.compress(module)[:-6], {})], f"{wrong}unexpected end of file"),
            # A frame of Zstandard that says it needs 2 GiB.
            "window": ([(WASM, b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(20), {})], f"{wrong}Specified window_size is too big"),
            "title": ([(WASM, module, {"annotations": {"org.opencontainers.image.title": "\x1b[31m" * 20_000}}), (WASM, module + b" ", {})], "[31m [31m"),
            "many": ([(WASM, module + b" " * n, {}) for n in range(300)], "is not the org.opencontainers.image.title of one"),
            "type": ([("text/\x1b[31m", module, {})], "only text/ [31m; push the module as application/wasm"),
        }
        pod = self.pod()
        for name, (layers, expected) in cases.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as d:
                reference = f"localhost/hostile-artefact-{name}:1"
                config = {"rootfs": {"type": "layers", "diff_ids": []}, "author": name}
                write_archive(f"{d}/app.tar", reference, "application/vnd.wasm.config.v0+json", config, layers)
                self.add(f"{d}/app.tar", reference)
                self.expect(self.outcome(pod, reference, "/app.wasm"), expected)
        self.works(pod)


class HostileSpec(HostileTest):
    """What the API server lets through: it is done as Kubernetes says, behind the same walls, or refused by its field."""

    def setUp(self):
        super().setUp()
        self.app = self.bed.example("envfiles")
        # It is compiled then: a container that waits for that is not behind its walls yet.
        self.ready = self.pod()
        self.assertEqual(self.ready.start(self.app, ["env"]).ended()["exitCode"], 0)

    def running(self, pod, **fields):
        """A container of these fields, whatever it may see and do is as for any other."""
        container = pod.start(self.app, stdin=True, **{"args": ["stdin"], **fields})
        process = f"/proc/{container.info()['pid']}"
        status = dict(line.split(":\t", 1) for line in self.bed.run("cat", f"{process}/status").stdout.splitlines())
        self.assertEqual({int(status[name], 16) for name in status if name.startswith("Cap")}, {0})
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
        for line in self.bed.run("cat", f"{process}/mountinfo").stdout.splitlines():
            left, kind = line.split(" - ")[0].split(" "), line.split(" - ")[1].split(" ")[0]
            self.assertNotEqual(kind, "proc")
            self.assertTrue("nodev" in left[5].split(",") or (left[4] == "/rootfs/dev" and kind == "tmpfs"), line)
        # The node's root is not below its own.
        self.bed.run("test", "!", "-e", f"{process}/root{self.bed.root}", "-a", "!", "-e", f"{process}/root/rootfs{self.bed.root}")
        return container, status

    def security(self, **fields):
        return {"linux": {"security_context": {"namespace_options": {"pid": 1}, **fields}}}

    def limits(self, **fields):
        return {"linux": {"security_context": {"namespace_options": {"pid": 1}}, "resources": fields}}

    def test_what_it_asks_for_is_done_behind_the_same_walls(self):
        every = list(range(1, 65_536))
        cases = {
            "a user at the end of the range": (self.security(run_as_user={"value": (1 << 31) - 1}, run_as_group={"value": (1 << 31) - 1}), "Uid", (1 << 31) - 1),
            "all groups": (self.security(supplemental_groups=every), "Groups", 0),
            "all capabilities": (self.security(capabilities={"add_capabilities": ["ALL"]}), "CapEff", 0),
            "privileges": (self.security(no_new_privs=False), "NoNewPrivs", 1),
            "an annotation of CRI's": ({"annotations": {"io.kubernetes.cri.container-type": "sandbox", "slipway.dev/none": "x" * 100_000}}, "Uid", 0),
            "all the time there is": ({"annotations": {"slipway.dev/cpu-time": str((1 << 64) - 1)}}, "Uid", 0),
            "no limit": (self.limits(memory_limit_in_bytes=0, cpu_quota=-1, cpu_period=100_000, cpu_shares=0), "Uid", 0),
            "limits that are none": (self.limits(memory_limit_in_bytes=1 << 62, cpu_shares=1 << 40), "Uid", 0),
            "the least of the processor": (self.limits(cpu_quota=1000, cpu_period=100_000, cpu_shares=1), "Uid", 0),
        }
        for name, (fields, field, expected) in cases.items():
            with self.subTest(name):
                container, status = self.running(self.ready, **fields)
                self.assertEqual(int(status[field].split()[0]), expected)
                self.bed.crictl("rm", "-f", container.id)
        for namespace in ("network", "pid", "ipc"):
            with self.subTest(namespace):
                options = {"linux": {"security_context": {"namespace_options": {"pid": 1, namespace: 2}}}}
                self.running(self.pod(**options), **options)

    def test_arguments_and_environment_arrive_as_they_are(self):
        values = ["", " ", "=", "a=b", "\x1b[31m", "\r\tx", "\u202eé", "$(A) ${B}", "'\"\\", "x" * 5000]
        envs = [{"key": f"N{n}", "value": value} for n, value in enumerate(values)]
        # Each is a line of the log, in order.
        container = self.ready.start(self.app, ["env"], envs=envs)
        self.assertEqual(container.ended()["exitCode"], 0)
        with open(container.log_path, newline="\n") as f:
            lines = [line.rstrip("\n").split(" ", 3)[3] for line in f]
        self.assertEqual([line for line in lines if line.startswith("N")], [f"N{n}={value}" for n, value in enumerate(values)])
        self.assertEqual(self.ready.start(self.app, ["write", "/x", "x" * 1_000_000]).ended()["exitCode"], 0)
        # More than the program takes: its own answer.
        self.assertEqual(self.ready.start(self.app, ["stdin"] * 100_000).ended()["exitCode"], 2)

    def test_a_volume_lies_where_the_runtime_has_something_of_its_own(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/note", "w") as f:
                f.write("of the volume")
            for at in ("/dev", "/dev/.", "/dev/shm", "/proc", "/sys", "/rootfs", "/artefact.so", "/etc", "/run/../../../x", "/\x1b[31m"):
                with self.subTest(at):
                    container, _ = self.running(self.ready, mounts=[{"container_path": at, "host_path": d}])
                    # WASI has no path that climbs above its root.
                    said = self.bed.crictl("exec", "-s", container.id, "/envfiles.wasm", "cat", os.path.normpath(at) + "/note")
                    self.assertEqual(said.stdout.strip(), "of the volume")
                    self.bed.crictl("rm", "-f", container.id)
            self.assertLessEqual(set(os.listdir(d)), {"note", "shm", "hosts", "hostname", "resolv.conf"})

    def test_very_many_volumes_are_mounted(self):
        with tempfile.TemporaryDirectory() as d:
            many = [{"container_path": f"/many/{n}", "host_path": d} for n in range(1000)]
            deep = [{"container_path": "/deep" * (n + 1), "host_path": d} for n in range(100)]
            self.running(self.ready, mounts=many + deep)

    def test_a_termination_message_that_is_no_file_holds_nobody_up(self):
        traps = b'(module (memory (export "memory") 1) (func (export "_start") unreachable))'
        image = self.image("traps", [tar(entry("/app.wat", traps))], {"Entrypoint": ["/app.wat"]})
        with tempfile.TemporaryDirectory() as d, socket.socket(socket.AF_UNIX) as s:
            os.mkfifo(f"{d}/fifo")
            os.mkdir(f"{d}/directory")
            s.bind(f"{d}/socket")
            os.mknod(f"{d}/device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            for name in ("directory", "socket", "device", "fifo"):
                with self.subTest(name):
                    container = self.ready.start(image, mounts=[{"container_path": "/dev/termination-log", "host_path": f"{d}/{name}"}])
                    self.assertEqual(container.ended()["exitCode"], 134)

    def test_what_it_cannot_have_is_refused_by_its_field(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/file", "w"):
                pass
            at = lambda path, host=d: {"mounts": [{"container_path": path, "host_path": host}]}
            annotation = lambda name, value: {"annotations": {f"slipway.dev/{name}": value}}
            time = "is no duration of whole seconds"
            cases = [
                (at("/"), "no such file in the image"), (at("x"), "destination: "), (at(""), "destination: "), (at("/a\0b"), "destination: contains a NUL byte"),
                (at("/" + "l" * 256), "File name too long"), (at("/envfiles.wasm"), "it is a directory, and the container has a file there"),
                (at("/dev", f"{d}/file"), "it is a file, and the container has a directory there"),
                (at("/envfiles.wasm", f"{d}/file"), "/envfiles.wasm: empty file"),
                (at("/node", "/proc"), "a procfs"),
                ({"args": ["x" * (3 << 20)]}, "process.args and process.env: "), ({"args": ["a\0b"]}, "process.args and process.env: "),
                ({"envs": [{"key": "A", "value": "\0"}]}, "process.args and process.env: "),
                (self.security(run_as_user={"value": 1 << 32}), "uid"), (self.security(run_as_user={"value": -1}), "uid"),
                (self.security(supplemental_groups=list(range(1, 70_000))), "process.user: 70000 supplementary groups, the kernel takes 65536"),
                (self.security(supplemental_groups=[-1]), "process.user: supplementary groups [0, 4294967295]"),
                (self.security(seccomp={"profile_type": 2, "localhost_ref": f"{d}/none"}), "seccomp"),
                (self.security(seccomp={"profile_type": 2, "localhost_ref": d}), "seccomp"),
                (self.security(masked_paths=["/etc"]), "linux.maskedPaths: /etc"),
                *((annotation("cpu-time", text), "annotations[slipway.dev/cpu-time]: ")
                  for text in ("0", "-1", "9" * 30, "1e9", "\u0663s", "", "s", "x" * 200_000)),
                (annotation("cpu-time", "5 m"), time),
                (annotation("compile", "FULL"), "annotations[slipway.dev/compile]: "), (annotation("compile", "\0"), "annotations[slipway.dev/compile]: "),
                (annotation("stop", "drain "), "annotations[slipway.dev/stop]: "),
                (annotation("ca-certificates", "/etc/shadow"), "annotations[slipway.dev/ca-certificates]: "),
                (self.limits(memory_limit_in_bytes=4096), "memory limit of 4096 bytes"),
                (self.limits(memory_limit_in_bytes=1 << 20), "the container's limit is 1048576 bytes"),
                (self.limits(cpu_quota=1, cpu_period=100_000), "cpu."), (self.limits(cpu_quota=100_000, cpu_period=1), "cpu."),
                (self.limits(cpuset_cpus="0-99999"), "cpuset.cpus"), (self.limits(unified={"../../x": "1"}), "linux.resources.unified"),
            ]
            for fields, expected in cases:
                with self.subTest(str(fields)[:100]):
                    self.expect(self.outcome(self.ready, self.app, **{"args": ["env"], **fields}), expected)
        self.works(self.ready)

    def test_a_sysctl_is_one_of_the_pods_by_whatever_name(self):
        for name in ("kernel.core_pattern", "net/../kernel/core_pattern", "net.ipv4.conf.all/../../../../kernel.core_pattern", "net//x", "", "/", "net.ipv4\x1b.x"):
            with self.subTest(name):
                config = self.pod_config(linux={"sysctls": {name: "x"}})
                said = self.bed.crictl("runp", "--runtime", "slipway", config, check=False)
                self.assertNotEqual(said.returncode, 0)
                self.expect(said.stderr, "sysctl")
        # CRI keeps the name of a sandbox that came to nothing until it is removed.
        self.bed.crictl("rmp", "-fa")
        self.pods.clear()


# What the kubelet says of a pod with shareProcessNamespace.
SHARED = {"namespace_options": {"pid": 0}}
# All that a container may have on each level of Pod Security: https://kubernetes.io/docs/concepts/security/pod-security-standards
RESTRICTED = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 1000}, "seccomp": {"profile_type": 0}, "no_new_privs": True,
              "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_BIND_SERVICE"]}}
BASELINE = {"seccomp": {"profile_type": 0}, "capabilities": {"add_capabilities": [
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"]}}
PRIVILEGED = {"seccomp": {"profile_type": 1}, "capabilities": {"add_capabilities": ["ALL"]}}
# What it can do then to a module of the same user, and to the holder of the pod's namespaces. None of it is the node's.
MAY = {
    "restricted": (RESTRICTED, "signal limits processors", ""),
    "baseline": (BASELINE, "signal limits processors oom", "signal oom"),
    "privileged": (PRIVILEGED, "signal limits processors oom memory trace descriptor namespaces", "signal limits processors oom memory trace descriptor namespaces"),
}


class HostileSidecar(HostileTest):
    """A Linux container in the pod of a module, with all that a level of Pod Security lets it have."""

    def sidecar(self, pod, *arguments, mounts=(), **options):
        if not hasattr(self.bed, "hostile_sidecar"):
            with tempfile.TemporaryDirectory() as d:
                subprocess.run(["gcc", "-static", "-O2", "-o", f"{d}/sidecar", f"{HERE}/hostile_sidecar.c"], check=True)
                self.bed.hostile_sidecar = self.bed.file_image("hostile-sidecar", [f"{d}/sidecar=/sidecar"], ["/sidecar"])
        return pod.start(self.bed.hostile_sidecar, arguments, mounts=list(mounts), linux={"security_context": {**SHARED, **options}})

    def module(self, pod, **options):
        module = pod.start(self.bed.example("hello"), ["sleep"], linux={"security_context": {**SHARED, **options}})
        module.until("Hello")
        return module

    def test_a_sidecar_of_each_level_gets_what_kubernetes_says_and_nothing_of_the_node(self):
        for level, (options, to_guest, to_holder) in MAY.items():
            with self.subTest(level):
                pod = self.pod(linux={"security_context": SHARED})
                module = self.module(pod, **{name: value for name, value in options.items() if name.startswith("run_as")})
                sidecar = self.sidecar(pod, "look", f"{self.bed.root}/config.toml", **options)
                self.assertEqual(sidecar.ended()["exitCode"], 0)
                found = sidecar.text().splitlines()
                for name, allowed in (("slipway-guest", to_guest), ("slipway-holder", to_holder)):
                    with self.subTest(name):
                        self.assertIn(f"seen {name}", found)
                        self.assertLessEqual({line for line in found if line.endswith(name)}, {f"{what} {name}" for what in f"seen {allowed}".split()})
                # No socket with an abstract name, and nobody else.
                self.assertEqual({line.split()[1] for line in found}, {"slipway-guest", "slipway-holder"})
                # A module that was traced and looked through goes on as before.
                self.assertIn("exit code 5", self.bed.crictl("exec", module.id, "/hello.wasm", "exit", "5", check=False).stderr)

    def test_a_sidecar_that_swaps_what_lies_in_a_volume_leads_a_module_nowhere(self):
        pod = self.pod(linux={"security_context": SHARED})
        with tempfile.TemporaryDirectory() as volume, tempfile.TemporaryDirectory() as node:
            below = f"{volume}/below"
            for directory, text in ((f"{below}/swap", "inside"), (f"{volume}/outside", "outside"), (node, "of the node")):
                os.makedirs(directory, exist_ok=True)
                with open(f"{directory}/file", "w") as f:
                    f.write(text)
            os.symlink("../outside", f"{below}/link")
            os.symlink(node, f"{below}/node")
            os.symlink(f"{node}/file", f"{below}/swap/node")
            mounts = [{"container_path": "/data", "host_path": volume}]
            sidecar = self.sidecar(pod, "swap", "/data/below", mounts=mounts)
            looks = test_wasi.WasiTest.image(self)
            container = pod.start(looks, ["race", "/data/below"], mounts=mounts, linux={"security_context": SHARED})
            # Two seconds of the program's own time, whatever else the machine does.
            seconds = test_wasi.Wasi.processor_seconds
            try:
                self.until(lambda: container.status()["state"] == "CONTAINER_EXITED" or seconds(self, container) > 2)
                open(f"{below}/stop", "w").close()
                self.assertEqual(container.ended()["exitCode"], 0)
                self.assertEqual([line for line in container.text().splitlines() if line.startswith("deviates ")], [])
                self.assertEqual(sidecar.status()["state"], "CONTAINER_RUNNING")
            finally:
                # Before the directories go.
                self.bed.crictl("rm", "-f", sidecar.id)

    def test_a_sidecar_that_stops_and_kills_its_neighbours_ends_them_and_nothing_else(self):
        pod = self.pod(linux={"security_context": SHARED})
        shell = pod.start("localhost/busybox:1", ["-c", "sleep 1000"], linux={"security_context": {**SHARED, **BASELINE}})
        send = lambda signal, name: self.bed.crictl("exec", "-s", shell.id, "/bin/killall", f"-{signal}", name)
        stopped = self.module(pod)
        send("STOP", "slipway-guest")
        self.bed.crictl("stop", "-t", "1", stopped.id)
        self.assertEqual(stopped.status()["exitCode"], 137)
        killed = self.module(pod)
        send("KILL", "slipway-guest")
        self.assertEqual(killed.ended()["exitCode"], 137)
        self.works(pod)
        # The first process of its namespace takes neither from inside.
        for signal in ("STOP", "KILL"):
            send(signal, "slipway-holder")
        self.works(pod)


# Numbers at which lengths, addresses and offsets turn into something else, in a memory of four pages.
EDGES = (0, 1, 2, 64, 256, 4096, 0xfff8, 0xffff, 0x10000, 0x3ffff, 0x40000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xfffffffe, 0xffffffff)
# Paths, 16 bytes each.
PATHS = ("f", "f/", "d", "d/f", "d/../f", "..", "../..", "../../etc/host", "/", "/proc/self/mem", ".", "", "l", "l/..", "\\00", "d/d/d/d/d/d/d/d")
# The program ends by them.
NEVER = {"proc_exit", "proc_raise"}
# They would wait for what never comes, where there are sockets.
WAITS = {"sock_open", "sock_open_v2"}, {"fd_read", "fd_pread", "sock_accept", "sock_accept_v2", "sock_recv", "sock_recv_v2", "sock_recv_from", "sock_recv_from_v2"}
# The engine makes room for so many answers before it looks for one: more than a memory limit leaves end the program by it.
ROOM = ("sock_getaddrinfo", 6)


def functions():
    """The engine's, with their parameters."""
    with open(f"{ROOT}/shim/module/src/wasi.rs") as f:
        table = f.read().partition("const FUNCTIONS")[2].partition("];")[0]
    return re.findall(r'\("(\w+)", "([iI]*)"\)', table)


def caller(without, calls):
    """The text of a module that calls functions of WASI with arguments of which its command line decides, and then ends."""
    called = [(name, parameters) for name, parameters in functions() if name not in NEVER | without]
    wide = {"i": "i32", "I": "i64"}
    imports = "".join(
        f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {" ".join(wide[p] for p in parameters)}) (result i32)))' for name, parameters in called)
    # What a poll reads is a clock that is over at once.
    ready = lambda name: "(memory.fill (i32.const 0) (i32.const 0) (i32.const 262144))" if name in ("poll_oneoff", "epoll_oneoff") else ""
    argument = lambda name, n, kind: f"(i32.and (call $i32) (i32.const 255))" if (name, n) == ROOM else f"(call ${wide[kind]})"
    arguments = lambda name, parameters: " ".join(argument(name, n, kind) for n, kind in enumerate(parameters))
    bodies = "".join(f"(func $call_{name} {ready(name)} (drop (call ${name} {arguments(name, parameters)})))" for name, parameters in called)
    edges = "".join(f"\\{byte:02x}" for edge in EDGES for byte in edge.to_bytes(4, "little"))
    paths = "".join(path + "\\00" * (16 - len(path.replace("\\00", "0"))) for path in PATHS)
    return f"""(module {imports}
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 4)
      (data $edges "{edges}") (data $paths "{paths}")
      (table funcref (elem {" ".join(f"$call_{name}" for name, _ in called)}))
      (type $none (func))
      (global $state (mut i64) (i64.const 88172645463325252))
      (func $next (result i64)
        (global.set $state (i64.xor (global.get $state) (i64.shl (global.get $state) (i64.const 13))))
        (global.set $state (i64.xor (global.get $state) (i64.shr_u (global.get $state) (i64.const 7))))
        (global.set $state (i64.xor (global.get $state) (i64.shl (global.get $state) (i64.const 17))))
        (global.get $state))
      (func $below (param i32) (result i32) (i32.rem_u (i32.wrap_i64 (i64.shr_u (call $next) (i64.const 20))) (local.get 0)))
      (func $i32 (result i32) (local $kind i32)
        (local.set $kind (call $below (i32.const 8)))
        (if (i32.lt_u (local.get $kind) (i32.const 4)) (then (return (call $below (i32.const 16)))))
        (if (i32.eq (local.get $kind) (i32.const 4)) (then
          (memory.init $edges (i32.const 512) (i32.const 0) (i32.const 64))
          (return (i32.load (i32.add (i32.const 512) (i32.shl (call $below (i32.const 16)) (i32.const 2)))))))
        (if (i32.eq (local.get $kind) (i32.const 7)) (then (return (i32.wrap_i64 (call $next)))))
        (memory.init $paths (i32.const 1024) (i32.const 0) (i32.const 256))
        (i32.add (i32.const 1024) (i32.shl (call $below (i32.const 16)) (i32.const 4))))
      (func $i64 (result i64)
        (if (call $below (i32.const 4)) (then (return (i64.extend_i32_s (call $i32)))))
        (call $next))
      {bodies}
      (func (export "_start") (local $n i32)
        (drop (call $args_get (i32.const 0) (i32.const 64)))
        (local.set $n (i32.const 64))
        (loop $seed
          (global.set $state (i64.mul (i64.xor (global.get $state) (i64.load8_u (local.get $n))) (i64.const 1099511628211)))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $seed (i32.lt_u (local.get $n) (i32.const 96))))
        (local.set $n (i32.const {calls}))
        (loop $again
          (call_indirect (type $none) (call $below (i32.const {len(called)})))
          (local.set $n (i32.sub (local.get $n) (i32.const 1)))
          (br_if $again (local.get $n)))
        (call $exit (i32.const {RAN}))))"""


# Opens its own file as often as it can, says so, and looks every 20 ms whether it shall end.
OPENS_ALL = ENDS_WHEN_TOLD.replace("(memory", '''(import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32))) (memory''', 1).replace(
    "(loop $again", '''(loop $more (br_if $more (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 7) (i32.const 0)
        (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 768)))))
    (i32.store (i32.const 1100) (i32.const 1040)) (i32.store (i32.const 1104) (i32.const 5))
    (drop (call $write (i32.const 1) (i32.const 1100) (i32.const 1) (i32.const 768)))
    (loop $again''', 1).replace("(func (export", '(data (i32.const 1024) "app.wat") (data (i32.const 1040) "full\\n") (func (export', 1)


class HostileModule(HostileTest, KillTest):
    """A module that does all that WASI has, as often as it can, and one whose files are changed under it."""

    def test_calls_of_every_function_with_any_arguments_are_answered(self):
        seeds = os.environ.get("SLIPWAY_SEEDS", "1 2 3").split()
        with tempfile.TemporaryDirectory() as d:
            self.bed.run("mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=1000", "tmpfs", d)
            try:
                linux = {"security_context": {"namespace_options": {"pid": 1}, "readonly_rootfs": True}, "resources": {"memory_limit_in_bytes": 128 << 20}}
                pod = self.pod(dns_config={"servers": ["127.0.0.1"]})
                for n, without in enumerate(WAITS):
                    image = self.image(f"calls-{n}", [tar(entry("/app.wat", caller(without, CALLS).encode()))], {"Entrypoint": ["/app.wat"]})
                    for seed in seeds:
                        with self.subTest(f"seed {seed} without {sorted(without)}: SLIPWAY_SEEDS={seed}"):
                            container = pod.start(
                                image, [seed], working_dir="/w", mounts=[{"container_path": "/w", "host_path": d}], linux=linux,
                                annotations={"slipway.dev/compile": "quick"})
                            status = container.ended()
                            self.assertEqual(status["exitCode"], RAN, status)
                            self.bed.crictl("rm", container.id)
                self.works(pod)
            finally:
                for pod in self.pods:
                    self.bed.stop_pod(pod.sandbox)
                self.bed.run("umount", d)

    def test_room_for_more_answers_than_the_memory_limit_has_ends_the_program_by_it(self):
        asks = """(module (import "wasi_snapshot_preview1" "sock_getaddrinfo" (func $ask (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1) (data (i32.const 16) "localhost")
          (func (export "_start") (drop (call $ask (i32.const 16) (i32.const 9) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 128)
            (i32.const -1) (i32.const 512)))))"""
        image = self.image("asks-for-all", [tar(entry("/app.wat", asks.encode()))], {"Entrypoint": ["/app.wat"]})
        linux = {"security_context": {"namespace_options": {"pid": 1}}, "resources": {"memory_limit_in_bytes": 64 << 20}}
        status = self.pod().start(image, linux=linux).ended()
        self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))

    def test_a_module_that_has_opened_all_it_can_is_exec_d_into_and_stopped(self):
        image = self.image("opens", [tar(entry("/app.wat", OPENS_ALL.encode()), entry("/ends.wat", ends_with(RAN).encode()))], {"Entrypoint": ["/app.wat"]})
        pod = self.pod()
        container = pod.start(image)
        container.until("full")
        self.assertIn(f"exit code {RAN}", self.bed.crictl("exec", container.id, "/ends.wat", check=False).stderr)
        self.works(pod)
        container.stop()
        self.assertEqual(container.status()["exitCode"], 143)

    def test_hundreds_of_execs_leave_nothing(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        run = lambda n: self.bed.crictl("exec", container.id, "/hello.wasm", "exit", str(n % 100 + 1), check=False).stderr
        # The first ones fill caches.
        run(0)
        [shim] = self.pids("containerd-shim-slipway-v1")
        held = lambda: len(self.bed.run("ls", f"/proc/{shim}/fd").stdout.split())
        before, state = held(), self.bed.state()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for n, said in enumerate(pool.map(run, range(EXECS))):
                self.assertIn(f"exit code {n % 100 + 1}", said)
        self.until(lambda: held() <= before, lambda: f"the shim has {held()} descriptors, {before} before")
        self.until(lambda: not self.bed.left_since(state), lambda: f"left: {self.bed.left_since(state)}")
