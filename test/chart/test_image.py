"""The installer's image: what is in it, that it runs, and that it is the same when it is made again."""
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import unittest

from test_chart import ROOT, read

TREE = os.path.realpath(os.environ.get("SLIPWAY_ROOT", f"{ROOT}/target/dist/opt/slipway"))
DOC = "opt/slipway/share/doc"
ADDED = ("slipway.cdx.json", "rust-crates", "rust-library.html", "slipway")
PROGRAMS = ("bin/slipway", "bin/containerd-shim-slipway-v1", "libexec/slipway-guest", "libexec/slipway-aot", "libexec/slipway-layers", "libexec/slipway-queue")


def build(tree, out):
    """Makes the image of a tree, and returns its manifest's digest."""
    done = subprocess.run([f"{ROOT}/images/installer/build", "--tree", tree, "--output", out],
                          capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return re.search(r"@(sha256:[0-9a-f]{64})", done.stdout).group(1)


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.out = cls.enterClassContext(tempfile.TemporaryDirectory(dir=f"{ROOT}/target"))
        cls.digest = build(TREE, cls.out)
        cls.manifest = cls.blob(cls.digest)
        cls.config = cls.blob(cls.manifest["config"]["digest"])
        cls.root = f"{cls.out}/root"
        [layer] = cls.manifest["layers"]
        with gzip.open(cls.path(layer["digest"])) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            cls.files = {}
            for item in tar:
                cls.files[item.name] = item
                tar.extract(item, cls.root, filter="fully_trusted")

    @classmethod
    def program(cls, name):
        with open(f"{cls.root}/opt/slipway/{name}", "rb") as file:
            return file.read()

    @classmethod
    def path(cls, digest):
        return f"{cls.out}/installer/blobs/{digest.replace(':', '/')}"

    @classmethod
    def blob(cls, digest):
        return json.loads(read(cls.path(digest)))

    def test_another_build_of_another_copy_is_the_same(self):
        # Other inodes, times and an other order of directories.
        with tempfile.TemporaryDirectory(dir=f"{ROOT}/target") as directory:
            shutil.copytree(TREE, f"{directory}/tree", copy_function=shutil.copy)
            self.assertEqual(build(f"{directory}/tree", f"{directory}/out"), self.digest)
            with open(f"{directory}/out/installer.tar", "rb") as one, open(f"{self.out}/installer.tar", "rb") as other:
                self.assertEqual(hashlib.file_digest(one, "sha256").digest(), hashlib.file_digest(other, "sha256").digest())

    def test_every_blob_is_what_its_name_says(self):
        for name in os.listdir(f"{self.out}/installer/blobs/sha256"):
            with open(self.path(f"sha256:{name}"), "rb") as file:
                self.assertEqual(hashlib.file_digest(file, "sha256").hexdigest(), name)
        with gzip.open(self.path(self.manifest["layers"][0]["digest"])) as plain:
            self.assertEqual(["sha256:" + hashlib.file_digest(plain, "sha256").hexdigest()], self.config["rootfs"]["diff_ids"])

    def test_archive_and_layout_are_the_same(self):
        with tarfile.open(f"{self.out}/installer.tar") as tar:
            files = {item.name: tar.extractfile(item).read() for item in tar if item.isfile() and item.size < 1 << 20}
            names = {item.name for item in tar if item.isfile()}
        for name, content in files.items():
            self.assertEqual(content, read(f"{self.out}/installer/{name}").encode(), name)
        self.assertEqual(names, {os.path.relpath(f"{at}/{name}", f"{self.out}/installer")
                                 for at, _, below in os.walk(f"{self.out}/installer") for name in below})

    def test_it_holds_the_tree_and_nothing_that_could_be_misused(self):
        programs = set()
        for name, item in self.files.items():
            self.assertTrue(name == "opt" or name.startswith("opt/"), name)
            self.assertEqual((item.uid, item.gid, item.mode & 0o7022), (0, 0, 0), name)
            self.assertTrue(item.isfile() or item.isdir(), f"{name} is neither file nor directory")
            if item.isfile() and item.mode & 0o111:
                programs.add(name.removeprefix("opt/slipway/"))
        self.assertEqual(programs, {*PROGRAMS, "lib/runtime/ld-linux-x86-64.so.2"})
        added = {f"{DOC}/{name}" for name in ADDED}
        tree = {os.path.relpath(f"{at}/{name}", os.path.dirname(os.path.dirname(TREE)))
                for at, below, files in os.walk(TREE) for name in below + files}
        self.assertEqual(self.files.keys() - {"opt", "opt/slipway"}, tree | added)

    def test_its_entrypoint_runs_where_nothing_else_is(self):
        self.assertEqual(self.config["config"]["Entrypoint"] + self.config["config"]["Cmd"], ["/opt/slipway/bin/slipway", "installer"])
        done = subprocess.run(["chroot", self.root, *self.config["config"]["Entrypoint"], "--version"], capture_output=True, text=True)
        version = self.manifest["annotations"]["org.opencontainers.image.version"]
        self.assertEqual((done.returncode, done.stdout), (0, f"slipway {version}\n"))

    def test_the_bill_of_materials_is_of_what_is_there(self):
        bill = json.loads(read(f"{self.root}/{DOC}/slipway.cdx.json"))
        files = {c["name"]: c["hashes"][0]["content"] for c in bill["components"] if c["type"] == "file"}
        added = {f"{DOC}/{name}" for name in ADDED}
        for name, item in self.files.items():
            if item.isfile() and name not in added:
                with open(f"{self.root}/{name}", "rb") as file:
                    self.assertEqual(files.pop(name.removeprefix("opt/slipway/")), hashlib.file_digest(file, "sha256").hexdigest())
        self.assertEqual(files, {})
        refs = [component["bom-ref"] for component in bill["components"]]
        self.assertEqual(len(refs), len(set(refs)))
        used = {ref for dependency in bill["dependencies"] for ref in [dependency["ref"], *dependency["dependsOn"]]}
        self.assertEqual(used - set(refs), {"slipway"})

    def test_every_crate_that_a_program_names_is_in_the_bill_with_its_checksum(self):
        bill = json.loads(read(f"{self.root}/{DOC}/slipway.cdx.json"))
        crates = {f"{c['name']}-{c['version']}" for c in bill["components"] if c["bom-ref"].startswith("pkg:cargo/") and "hashes" in c}
        for program in PROGRAMS:
            # Panics tell their place, by the path that shim/build gives to crates.
            named = set(re.findall(rb"/crates/([\w-]+-\d+\.\d+\.\d+[^/\0]*)/src/", self.program(program)))
            self.assertTrue(named, f"{program} names no crate")
            self.assertEqual({name.decode() for name in named} - crates, set(), program)

    def test_no_path_of_the_machine_that_built_it_is_in_a_program(self):
        home = os.path.realpath(os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo"))
        for program in PROGRAMS:
            for path in (f"{home}/", f"{ROOT}/"):
                self.assertEqual(self.program(program).count(path.encode()), 0, f"{program} has {path}")

    def test_every_library_has_its_package_and_every_package_its_licence(self):
        bill = json.loads(read(f"{self.root}/{DOC}/slipway.cdx.json"))
        debian = [c for c in bill["components"] if c["bom-ref"].startswith("pkg:deb/")]
        found = {place["location"] for component in debian for place in component["evidence"]["occurrences"]}
        libraries = {name.removeprefix("opt/slipway/") for name in self.files if re.search(r"/lib/(runtime|compiler)/.*\.so", name)}
        # The stand-in for LLVM is Slipway's own (engine/standin).
        self.assertEqual(libraries - found, {"lib/runtime/libLLVM.so.21.1"})
        for component in debian:
            self.assertIn(f"{DOC}/{component['name']}", self.files)
        licences = read(f"{self.root}/{DOC}/rust-crates")
        for component in bill["components"]:
            if component["bom-ref"].startswith("pkg:cargo/"):
                self.assertIn(f"{component['name']} {component['version']}: {component['licenses'][0]['expression']}\n", licences)
        self.assertEqual(read(f"{self.root}/{DOC}/slipway"), read(f"{ROOT}/LICENSE"))
