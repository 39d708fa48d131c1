"""Writes OCI images of Linux files, as a layout directory and as an archive, without a container engine.

Nothing but what is given goes into an image: the same files and options make the same digests.
"""
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile

OCI = "application/vnd.oci.image."
# Of containerd, by which `ctr images import` names an image.
NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"


class Hashing:
    """A file that is written, and the digest and size of what was."""

    def __init__(self, file):
        self.file, self.sum, self.size = file, hashlib.sha256(), 0

    def write(self, data):
        self.sum.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    @property
    def digest(self):
        return "sha256:" + self.sum.hexdigest()


def entry(name, mtime, mode=0o644, **fields):
    """A tar header of root's."""
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = mtime, mode
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tree(source, prefix):
    """The files below a directory, by their path in the image."""
    found = {}
    for directory, names, files in os.walk(source):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.join(prefix, os.path.relpath(path, source))] = path
    return found


def write_layer(tar, contents, mtime):
    """Adds files to a tar: by their path in the image, the path of a file here, or bytes."""
    parents = {path.rsplit("/", n)[0] for path in contents for n in range(1, path.count("/") + 1)}
    for path in sorted(contents.keys() | parents):
        source = contents.get(path)
        if isinstance(source, bytes):
            tar.addfile(entry(path, mtime, size=len(source)), io.BytesIO(source))
        elif source is None or (os.path.isdir(source) and not os.path.islink(source)):
            mode = os.stat(source).st_mode & 0o7777 if source else 0o755
            tar.addfile(entry(path, mtime, mode, type=tarfile.DIRTYPE))
        elif os.path.islink(source):
            tar.addfile(entry(path, mtime, 0o777, type=tarfile.SYMTYPE, linkname=os.readlink(source)))
        else:
            status = os.stat(source)
            with open(source, "rb") as file:
                tar.addfile(entry(path, mtime, status.st_mode & 0o7777, size=status.st_size), file)


class Layout:
    """An OCI layout being made in a directory, which must not exist."""

    def __init__(self, directory):
        self.directory = directory
        os.makedirs(f"{directory}/blobs/sha256")

    def path(self, digest):
        return f"{self.directory}/blobs/{digest.replace(':', '/')}"

    def json(self, kind, value):
        """Keeps a document and describes it."""
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with open(self.path(digest), "wb") as file:
            file.write(data)
        return {"mediaType": f"{OCI}{kind}.v1+json", "digest": digest, "size": len(data)}

    def layer(self, contents, mtime):
        """Keeps a layer of files, compressed; describes it, and says which digest it has uncompressed."""
        with tempfile.NamedTemporaryFile(dir=self.directory, delete=False) as file:
            stored = Hashing(file)
            # The header of gzip has a time and a name, too.
            with gzip.GzipFile(filename="", fileobj=stored, mode="wb", compresslevel=6, mtime=0) as compressed:
                plain = Hashing(compressed)
                with tarfile.open(fileobj=plain, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                    write_layer(tar, contents, mtime)
        os.chmod(file.name, 0o644)
        os.rename(file.name, self.path(stored.digest))
        return {"mediaType": f"{OCI}layer.v1.tar+gzip", "digest": stored.digest, "size": stored.size}, plain.digest

    def finish(self, manifest, name):
        """Writes what is read first: the manifest under its name."""
        manifest = {**manifest, "annotations": {NAME: name, REF: name.rpartition(":")[2]}}
        index = {"schemaVersion": 2, "mediaType": f"{OCI}index.v1+json", "manifests": [manifest]}
        for path, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            with open(f"{self.directory}/{path}", "w") as file:
                json.dump(value, file, sort_keys=True, separators=(",", ":"))


def build(directory, name, contents, process, annotations, mtime, created):
    """Makes the layout of a linux/amd64 image of one layer in `directory`, and returns the manifest's digest."""
    layout = Layout(directory)
    layer, plain = layout.layer(contents, mtime)
    config = layout.json("config", {
        "created": created, "architecture": "amd64", "os": "linux", "config": {**process, "Labels": annotations},
        "rootfs": {"type": "layers", "diff_ids": [plain]},
    })
    manifest = layout.json("manifest", {
        "schemaVersion": 2, "mediaType": f"{OCI}manifest.v1+json", "config": config, "layers": [layer], "annotations": annotations,
    })
    layout.finish({**manifest, "platform": {"architecture": "amd64", "os": "linux"}}, name)
    return manifest["digest"]


def archive(directory, path):
    """Packs a layout into the one file that `ctr images import`, `skopeo` and `docker load` take."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(os.path.abspath(path)), delete=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                write_layer(tar, tree(directory, ""), 0)
            os.chmod(file.name, 0o644)
            os.rename(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def replace(new, old):
    """Puts a finished directory where another may be."""
    if os.path.exists(old):
        shutil.rmtree(old)
    os.rename(new, old)
