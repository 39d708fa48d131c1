"""What a module sees of WASI in a pod: test/guests/wasi and test/guests/files.c, in several places, as several users."""
import os
import re
import tempfile
import threading

from harness import GUESTS, ROOT, PodTest


def known_deviations():
    """The names in the table of docs/wasi.md."""
    with open(f"{ROOT}/docs/wasi.md") as f:
        table = f.read().partition("## Known deviations of files and polls")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `?([^|`]+)`? \|", table, re.MULTILINE)) - {"check", "---"}


class WasiTest(PodTest):
    def image(self):
        items = [
            f"{GUESTS}/wasi-conformance.wasm=/wasi.wasm", "dir:/usr", "dir:/usr/bin", "dir:/usr/lib", "dir:/etc", "dir:/etc/alternatives",
            "dir:/data", "text:tool=/usr/bin/tool", "text:data=/usr/lib/data", "text:outside=/etc/outside", "link:usr/bin=/bin",
            "link:/usr/lib=/lib", "link:/=/top", "link:/etc/alternatives/alias=/usr/bin/alias", "link:/usr/bin/tool=/etc/alternatives/alias",
            "link:../bin/tool=/usr/lib/up", "link:/../../etc/outside=/escape", "link:../../etc/outside=/up", "link:/none=/gone", "link:/trip=/round", "link:/round=/trip"]
        if not hasattr(self.bed, "wasi_image"):
            self.bed.wasi_image = self.bed.file_image("wasi-conformance", items, ["/wasi.wasm"])
        return self.bed.wasi_image

    def checks(self, pod, *arguments, **fields):
        """Runs an area's checks; fails on a deviation that is not expected, and on an expected one that is none any more."""
        self.check(pod.start(self.image(), arguments, **fields), *arguments)

    def check(self, container, *arguments):
        container.ended()
        lines = [text for _, text in container.log()]
        found = {line.removeprefix("deviates ").partition(": ")[0]: line for line in lines if line.startswith("deviates ")}
        self.assertTrue([line for line in lines if line.startswith("ok ")] or found, lines)
        known = known_deviations()
        self.assertEqual([line for name, line in found.items() if name not in known], [], arguments)
        mended = [line.removeprefix("ok ") for line in lines if line.startswith("ok ") and line.removeprefix("ok ") in known]
        self.assertEqual(mended, [], "listed in docs/wasi.md and not seen")

    def security(self, **fields):
        return {"security_context": {"namespace_options": {"pid": 1}, **fields}}


class Wasi(WasiTest):
    def test_files_and_directories(self):
        pod = self.pod()
        for user in (0, 1000):
            linux = self.security(run_as_user={"value": user}, run_as_group={"value": user})
            with tempfile.TemporaryDirectory() as volume:
                os.chmod(volume, 0o777)
                self.checks(pod, "files", "/data", linux=linux, mounts=[{"container_path": "/data", "host_path": volume}])
                self.assertEqual(os.listdir(volume), [])
        self.checks(pod, "files", "/data")
        self.checks(pod, "files", "/")

    def test_read_only_file_systems(self):
        pod = self.pod()
        with tempfile.TemporaryDirectory() as volume:
            os.mkdir(f"{volume}/directory")
            with open(f"{volume}/file", "w") as f:
                f.write("x")
            mounts = [{"container_path": "/data", "host_path": volume, "readonly": True}]
            self.checks(pod, "read-only", "/data", mounts=mounts)
        # A volume below a root that is read-only is not.
        with tempfile.TemporaryDirectory() as volume:
            writable = [{"container_path": "/data", "host_path": volume}]
            self.checks(pod, "files", "/data", mounts=writable, linux=self.security(readonly_rootfs=True))

    def test_symlinks_of_images(self):
        pod = self.pod()
        self.checks(pod, "links")
        # From a preopened working directory, too.
        self.checks(pod, "links", working_dir="/usr/bin")

    def test_a_rename_race_leads_nowhere(self):
        pod = self.pod()
        with tempfile.TemporaryDirectory() as volume:
            for name in ("inside", "outside"):
                directory = f"{volume}/{name}" if name == "outside" else f"{volume}/below/directory"
                os.makedirs(directory)
                with open(f"{directory}/file", "w") as f:
                    f.write(name)
            below = f"{volume}/below"
            os.symlink("../outside", f"{below}/link")
            ended = threading.Event()

            def swap():
                # Each is `swap` for a moment, again and again.
                while not ended.is_set():
                    for name in ("directory", "link"):
                        os.rename(f"{below}/{name}", f"{below}/swap")
                        os.rename(f"{below}/swap", f"{below}/{name}")

            swapping = threading.Thread(target=swap)
            swapping.start()
            try:
                arguments = "race", "/data/below"
                container = pod.start(self.image(), arguments, mounts=[{"container_path": "/data", "host_path": volume}])
                # Two seconds of the program's own time, whatever else the machine does.
                self.until(lambda: self.has_ended(container) or self.processor_seconds(container) > 2)
                open(f"{below}/stop", "w").close()
                self.check(container, *arguments)
            finally:
                ended.set()
                swapping.join()

    def has_ended(self, container):
        return container.status()["state"] == "CONTAINER_EXITED"

    def processor_seconds(self, container):
        used = self.bed.run("cut", "-d", " ", "-f14,15", f"/proc/{container.info()['pid']}/stat", check=False).stdout
        return sum(map(int, used.split())) / os.sysconf("SC_CLK_TCK")

    def test_clocks_random_numbers_and_polling(self):
        self.checks(self.pod(), "process", "/data", envs=[{"key": "NAME", "value": "value"}])

    def test_large_files_and_directories(self):
        with tempfile.TemporaryDirectory() as volume:
            os.mkdir(f"{volume}/many")
            for number in range(100_000):
                os.close(os.open(f"{volume}/many/{number}", os.O_CREAT | os.O_WRONLY))
            self.checks(self.pod(), "large", "/data", mounts=[{"container_path": "/data", "host_path": volume}])

    def test_standard_streams_are_what_they_are(self):
        pod = self.pod()
        container = pod.start(self.image(), ["streams"])
        container.ended()
        # CRI gives no stdin: the end of it, at once.
        self.assertEqual(container.text(), 'character device, unknown, unknown; read Ok("")')

    def test_a_program_that_raises_a_signal_ends_by_it(self):
        self.assertEqual(self.pod().start(self.image(), ["terminate"]).ended()["exitCode"], 134)

    def test_a_socket_option_has_no_less_room_than_its_value(self):
        option = """(i32.store (i32.const 8) (i32.const {room}))
            (if (i32.ne (call $get (i32.load (i32.const 0)) (i32.const 0) (i32.const {option}) (i32.const 16) (i32.const 8)) (i32.const {errno}))
              (then (call $exit (i32.const {status}))))"""
        inval, cases = 28, [(room, kind) for kind in (1, 2) for room in (0, 2, 3, 4, 64)]
        checks = "".join(
            option.format(room=room, option=kind, errno=inval if room < 4 else 0, status=status)
            for status, (room, kind) in enumerate(cases, 1))
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/option.wat", "w") as f:
                f.write(f"""(module
                    (import "wasi_snapshot_preview1" "sock_open" (func $open (param i32 i32 i32) (result i32)))
                    (import "wasi_snapshot_preview1" "sock_getsockopt" (func $get (param i32 i32 i32 i32 i32) (result i32)))
                    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                    (memory (export "memory") 1)
                    (func (export "_start")
                        (if (call $open (i32.const 1) (i32.const 2) (i32.const 0)) (then (call $exit (i32.const 99))))
                        {checks}))""")
            image = self.bed.image(f"{d}/option.wat", "option")
        self.assertEqual(self.pod().start(image).ended()["exitCode"], 0)

    def test_c_programs_find_their_library_working(self):
        image = self.bed.guest("files")
        pod = self.pod()
        with tempfile.TemporaryDirectory() as volume:
            container = pod.start(image, ["/data"], mounts=[{"container_path": "/data", "host_path": volume}])
            self.assertEqual(container.ended()["exitCode"], 0, container.text())
            self.assertEqual(os.listdir(volume), [])
