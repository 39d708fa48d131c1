#!/usr/bin/env python3
"""image.py OUT NAME:TAG ENTRYPOINT-JSON ITEM...: a one-layer OCI archive of Linux programs, for the bed's own images.

An object in the place of the entrypoint is the image's whole config (User, Env, Cmd, ...).
ITEM is FILE=/path, suid:FILE=/path, link:TARGET=/path, hard:/TARGET=/path, dir:/path or text:CONTENT=/path.
"""
import hashlib
import io
import json
import sys
import tarfile


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def layer(items):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for item in items:
            source, _, path = item.rpartition("=")
            if item.startswith("dir:"):
                add(tar, item[4:].strip("/") + "/", type=tarfile.DIRTYPE, mode=0o1777 if item == "dir:/tmp" else 0o755)
            elif source.startswith("link:"):
                add(tar, path.lstrip("/"), type=tarfile.SYMTYPE, linkname=source[5:], mode=0o777)
            elif source.startswith("hard:"):
                add(tar, path.lstrip("/"), type=tarfile.LNKTYPE, linkname=source[5:].lstrip("/"), mode=0o755)
            elif source.startswith("text:"):
                add(tar, path.lstrip("/"), source[5:].encode(), mode=0o644)
            else:
                mode = 0o4755 if source.startswith("suid:") else 0o755
                with open(source.removeprefix("suid:"), "rb") as file:
                    add(tar, path.lstrip("/"), file.read(), mode=mode)
    return out.getvalue()


def main(out, reference, entrypoint, items):
    data = layer(items)
    given = json.loads(entrypoint)
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(data)]},
        "config": given if isinstance(given, dict) else {"Entrypoint": given, "Env": ["PATH=/bin"], "WorkingDir": "/"},
    }).encode()
    oci = "application/vnd.oci.image."
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
        "config": {"mediaType": oci + "config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": oci + "layer.v1.tar", "digest": digest(data), "size": len(data)}],
    }).encode()
    index = json.dumps({
        "schemaVersion": 2, "mediaType": oci + "index.v1+json",
        "manifests": [{
            "mediaType": oci + "manifest.v1+json", "digest": digest(manifest), "size": len(manifest),
            "annotations": {"io.containerd.image.name": reference},
        }],
    }).encode()
    with tarfile.open(out, "w") as tar:
        add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add(tar, "index.json", index)
        for blob in (data, config, manifest):
            add(tar, "blobs/sha256/" + digest(blob)[7:], blob)


main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
