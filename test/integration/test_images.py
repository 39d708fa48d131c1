"""What a container's image is to containerd, by whatever name a pod gives: the module that is its layer."""
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tempfile

from harness import PodTest, slipway

# Under which a kubelet's containerd keeps what pods name shortly.
LONG = {
    "team/app:1": "docker.io/team/app:1",
    "team/app": "docker.io/team/app:latest",
    "app": "docker.io/library/app:latest",
    "docker.io/team/app:1": "docker.io/team/app:1",
    "localhost/app": "localhost/app:latest",
}
OCI = "application/vnd.oci.image."
WASM = "application/wasm"


def ends_with(status):
    """The text of a module that ends with a status."""
    return f'''(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const {status}))))'''


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def artefact(path, name, layer, config, media_type=WASM):
    """Writes the archive of an artefact with just this config, as tools make it that know nothing of containerd; returns the digest
    of its manifest."""
    blobs = []

    def blob(media_type, data, **more):
        blobs.append(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    manifest = blob(OCI + "manifest.v1+json", json.dumps({
        "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
        "config": blob("application/vnd.wasm.config.v0+json", json.dumps(config).encode()),
        "layers": [blob(media_type, layer)],
    }).encode(), annotations={"io.containerd.image.name": name})
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [manifest]}).encode()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index, **{"blobs/sha256/" + digest(b)[7:]: b for b in blobs}}
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return manifest["digest"]


class ImageTest(PodTest):
    def setUp(self):
        super().setUp()
        self.imported = contextlib.ExitStack()
        self.addCleanup(self.imported.close)

    def add(self, tar, name):
        self.bed.ctr("images", "import", tar)
        self.imported.callback(self.bed.crictl, "rmi", name, check=False)

    def build(self, name, status, *flags):
        """An image of a module that ends with a status."""
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/app.wat", "w") as f:
                f.write(ends_with(status))
            slipway("image", "build", f"{d}/app.wat", "-t", name, "-o", f"{d}/app.tar", *flags)
            self.add(f"{d}/app.tar", name)

    def image_id(self, name):
        return json.loads(self.bed.crictl("inspecti", name).stdout)["status"]["id"]


def zstd(data):
    """A frame of one block that is stored as it is."""
    return b"\x28\xb5\x2f\xfd\xa0" + len(data).to_bytes(4, "little") + (len(data) << 3 | 1).to_bytes(3, "little") + data


class CompressedLayers(ImageTest):
    def test_a_module_that_is_compressed_runs_whatever_its_media_type_says(self):
        config = {"rootfs": {"type": "layers", "diff_ids": []}}
        for status, (name, compress, media_type) in enumerate([
            ("gzip", gzip.compress, WASM), ("zstd", zstd, WASM), ("gzip-named", gzip.compress, WASM + "+gzip"), ("zstd-named", zstd, WASM + "+zstd"),
        ], 40):
            with self.subTest(name), tempfile.TemporaryDirectory() as d:
                reference = f"localhost/{name}:1"
                artefact(f"{d}/app.tar", reference, compress(ends_with(status).encode()), {**config, "author": name}, media_type)
                self.add(f"{d}/app.tar", reference)
                container = self.pod().start(reference, command=["/app.wasm"])
                self.assertEqual(container.ended()["exitCode"], status)
                self.assertEqual(slipway("run", f"{d}/app.tar", check=False).returncode, status)

    def test_one_that_unpacks_to_too_much_is_refused_with_the_bound(self):
        bomb = gzip.compress(bytes(1 << 20)) * 257
        with tempfile.TemporaryDirectory() as d:
            artefact(f"{d}/app.tar", "localhost/bomb:1", bomb, {"rootfs": {"type": "layers", "diff_ids": []}, "author": "bomb"})
            self.add(f"{d}/app.tar", "localhost/bomb:1")
            ran = slipway("run", f"{d}/app.tar", check=False)
        failed = self.pod().create("localhost/bomb:1", command=["/app.wasm"]).start(check=False)
        for said in (failed.stderr, ran.stderr):
            self.assertIn("compressed with gzip", said)
            self.assertIn(f"more than the {256 << 20} bytes allowed", said)




def opens(name):
    """The text of a module that opens a file of its working directory, the first that is preopened, and ends with WASI's number for
    how that went."""
    return f'''(module (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1) (data (i32.const 0) "{name}")
        (func (export "_start") (call $exit (call $open (i32.const 3) (i32.const 1) (i32.const 0) (i32.const {len(name)}) (i32.const 0)
            (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 64)))))'''


NOENT = 44


class Commands(ImageTest):
    """What a command and a working directory mean in an image."""

    def files(self, name, text, items, config):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/app.wat", "w") as f:
                f.write(text)
            image = self.bed.file_image(name, [f"{d}/app.wat=/app.wat", *items], config)
        self.imported.callback(self.bed.crictl, "rmi", image, check=False)
        return image

    def refusal(self, image, **fields):
        failed = self.pod().create(image, **fields).start(check=False)
        self.assertNotEqual(failed.returncode, 0)
        return failed.stderr

    def test_a_working_directory_is_one_of_the_image(self):
        items = ["dir:/data", "text:x=/data/note", "link:/data=/absolute", "link:data=/relative", "link:../../..=/up", "link:/data/note=/tofile"]
        in_data = self.files("cwd-data", opens("note"), items, ["/app.wat"])
        image = self.files("cwd-root", opens("app.wat"), items, ["/app.wat"])
        pod = self.pod()
        for directory in ("/data", "/absolute", "/relative/.", "/data/../absolute"):
            with self.subTest(directory):
                self.assertEqual(pod.start(in_data, working_dir=directory).ended()["exitCode"], 0)
        for directory, expected in [("/up", 0), ("/", 0), ("/data", NOENT), ("/made/below", NOENT), ("/absolute/made", NOENT)]:
            with self.subTest(directory):
                self.assertEqual(pod.start(image, working_dir=directory).ended()["exitCode"], expected)
        for directory in ("/app.wat", "/tofile", "/data/note/below"):
            with self.subTest(directory):
                self.assertIn(f'process.cwd \\"{directory}\\": not a directory', self.refusal(image, working_dir=directory))

    def test_a_program_starts_whose_user_cannot_look_into_its_working_directory(self):
        image = self.files("closed", opens("note"), [], ["/app.wat"])
        with tempfile.TemporaryDirectory() as d:
            # Nobody's but root's: the program does without, as it has "/".
            container = self.pod().start(image, working_dir="/closed", mounts=[{"container_path": "/closed", "host_path": d}], linux={
                "security_context": {"namespace_options": {"pid": 1}, "run_as_user": {"value": 1000}}})
            self.assertEqual(container.ended()["exitCode"], NOENT)

    def test_a_command_in_shell_form_is_told_from_one_that_is_not_there(self):
        for name, cmd, proposed in [("plain", "/app.wat --port 80", "/app.wat"), ("chained", "cd /x && exec ./app.wasm", "./app.wasm"), ("other", "run", "/app.wasm")]:
            with self.subTest(name):
                said = self.refusal(self.files(f"shell-{name}", ends_with(0), [], {"Entrypoint": ["/bin/sh", "-c", cmd]}))
                self.assertIn("in shell form", said)
                self.assertIn(f'ENTRYPOINT [\\"{proposed}\\"]', said)

    def test_a_command_that_is_a_function_alone_needs_a_module_and_an_artefact_has_one(self):
        self.assertIn("names no file", self.refusal(self.files("alone", ends_with(0), [], ["#_start"])))
        self.build("docker.io/team/alone:1", 50, "--artifact")
        self.assertEqual(self.pod().start("team/alone:1", command=["#_start"]).ended()["exitCode"], 50)

    def test_a_module_that_is_a_compressed_file_is_told_by_its_compression(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/app.gz", "wb") as f:
                f.write(gzip.compress(ends_with(0).encode()))
            image = self.bed.file_image("gzipped", [f"{d}/app.gz=/app.wasm"], ["/app.wasm"])
            self.imported.callback(self.bed.crictl, "rmi", image, check=False)
            self.assertIn("compressed with gzip", self.refusal(image))
            self.assertIn("compressed with gzip", slipway("run", f"{d}/app.gz", check=False).stderr)


class ImageNames(ImageTest):
    def asked(self, name):
        """A container's image as the kubelet gives it: what it resolved to, and what the pod wrote."""
        return {"image": self.image_id(name), "user_specified_image": name}

    def test_an_artefact_starts_by_every_name_that_a_pod_may_give_it(self):
        for status, (name, full) in enumerate(LONG.items(), 20):
            with self.subTest(name):
                self.build(full, status, "--artifact")
                pod = self.pod()
                for image in ({"image": name}, {"image": name, "user_specified_image": name}, self.asked(name), {"image": self.image_id(name)}):
                    container = pod.start(image, command=["/app.wat"])
                    self.assertEqual(container.ended()["exitCode"], status, image)

    def test_an_artefact_starts_by_its_digest_with_and_without_a_tag(self):
        with tempfile.TemporaryDirectory() as d:
            manifest = artefact(f"{d}/app.tar", "docker.io/team/app:1", ends_with(30).encode(), {"rootfs": {"type": "layers", "diff_ids": []}})
            self.add(f"{d}/app.tar", "docker.io/team/app:1")
        # As a pull of it leaves it.
        self.bed.ctr("images", "tag", "docker.io/team/app:1", f"docker.io/team/app@{manifest}")
        self.until(lambda: manifest in self.bed.crictl("inspecti", "docker.io/team/app:1").stdout)
        pod = self.pod()
        for name in (f"team/app@{manifest}", f"docker.io/team/app:1@{manifest}", f"team/app:1@{manifest}"):
            with self.subTest(name):
                container = pod.start(self.asked(name), command=["/app.wasm"])
                self.assertEqual(container.ended()["exitCode"], 30)

    def test_of_two_artefacts_with_one_config_the_named_one_runs(self):
        """Tools that push an empty config give all their artefacts one image id."""
        if self.bed.version == "1.7":
            self.skipTest("containerd 1.7 tells nobody the name that the pod wrote, and takes the first of that id")
        config = {"rootfs": {"type": "layers", "diff_ids": []}}
        with tempfile.TemporaryDirectory() as d:
            for status, name in ((31, "a"), (32, "b")):
                artefact(f"{d}/{name}.tar", f"docker.io/team/{name}:1", ends_with(status).encode(), config)
                self.add(f"{d}/{name}.tar", f"docker.io/team/{name}:1")
        self.until(lambda: self.image_id("team/a:1") == self.image_id("team/b:1"))
        for status, name in ((31, "team/a:1"), (32, "team/b:1")):
            container = self.pod().start(self.asked(name), command=["/app.wasm"])
            self.assertEqual(container.ended()["exitCode"], status, name)

    def test_an_exec_runs_the_containers_own_module_when_its_tag_has_moved(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/app.wat", "w") as f:
                f.write('''(module (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
                    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                    (memory (export "memory") 1) (func (export "_start") (drop (call $sizes (i32.const 0) (i32.const 4)))
                    (if (i32.gt_u (i32.load (i32.const 0)) (i32.const 1)) (then (call $exit (i32.const 33)))) (loop $l (br $l))))''')
            slipway("image", "build", f"{d}/app.wat", "-t", "team/app:1", "-o", f"{d}/app.tar", "--artifact")
            self.add(f"{d}/app.tar", "docker.io/team/app:1")
        container = self.pod().start(self.asked("team/app:1"), command=["/app.wat"])
        self.addCleanup(self.bed.crictl, "rmi", self.image_id("team/app:1"), check=False)
        before = self.image_id("team/app:1")
        self.build("docker.io/team/app:1", 34, "--artifact")
        self.until(lambda: self.image_id("team/app:1") != before)
        done = self.bed.crictl("exec", container.id, "/app.wat", "more", check=False)
        self.assertIn("exit code 33", done.stderr)

    def test_what_an_ordinary_image_lacks_is_told_by_whatever_name_it_runs(self):
        self.build("docker.io/team/app:1", 35)
        pod = self.pod()
        for image in ({"image": "team/app:1"}, self.asked("team/app:1")):
            failed = pod.create(image, command=["/bin/sh"]).start(check=False)
            self.assertIn('entrypoint \\"/bin/sh\\": no such file in the image', failed.stderr)
            self.assertNotIn("has no image", failed.stderr)

    def test_an_exec_of_a_shell_says_that_there_is_none_even_when_the_image_is_gone(self):
        image = self.bed.example("hello")
        self.bed.ctr("images", "tag", image, "docker.io/team/hello:1")
        self.imported.callback(self.bed.crictl, "rmi", "team/hello:1", check=False)
        self.until(lambda: self.bed.crictl("inspecti", "team/hello:1", check=False).returncode == 0)
        container = self.pod().start(self.asked("team/hello:1"), ["sleep"])
        container.until("Hello")
        done = self.bed.crictl("exec", container.id, "sh", check=False)
        self.assertIn("no shell or tools", done.stderr)
        self.assertNotIn("has no image", done.stderr)
        self.bed.ctr("images", "rm", "docker.io/team/hello:1", self.image_id(image), image)
        self.bed.images.discard(image)
        done = self.bed.crictl("exec", container.id, "sh", check=False)
        self.assertIn("no shell or tools", done.stderr)
        self.assertIn("Whether it is a Wasm artefact is not known", done.stderr)
