"""Wasm pods through CRI, on a real containerd."""
import json
import os
import re
import subprocess
import tempfile

from harness import EXAMPLES, PodTest


class Lifecycle(PodTest):
    def test_a_module_runs_and_its_output_and_status_arrive(self):
        container = self.pod().start(self.bed.example("hello"), ["exit", "7"])
        status = container.ended()
        self.assertEqual((status["exitCode"], status["reason"]), (7, "Error"))
        self.assertEqual(container.log()[0], ("stdout", "Hello from Slipway"))

    def test_a_module_that_returns_is_completed(self):
        status = self.pod().start(self.bed.example("hello"), ["a"]).ended()
        self.assertEqual((status["exitCode"], status["reason"]), (0, "Completed"))

    def test_stop_sends_sigterm_and_ends_with_143(self):
        for command in ("sleep", "spin"):
            container = self.pod().start(self.bed.example("hello"), [command])
            container.until("Hello")
            container.stop()
            self.assertEqual(container.status()["exitCode"], 143, command)

    def test_kill_ends_with_137(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        self.bed.crictl("stop", "-t", "0", container.id)
        self.assertEqual(container.status()["exitCode"], 137)

    def test_a_trap_ends_with_134_and_says_why(self):
        message = tempfile.NamedTemporaryFile()
        container = self.pod().start(
            self.bed.example("hello"), ["trap"], mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}])
        self.assertEqual(container.ended()["exitCode"], 134)
        # In the engine's words, and with nothing in brackets that it has said before.
        said = r"trap: unreachable \(calling stack: [^()]+\)"
        self.assertRegex(container.text(), f"(?m)^slipway: {said}$")
        self.assertRegex(message.read().decode(), f"^{said}$")

    def test_compiled_code_runs_not_the_interpreter(self):
        # Interpreted, a million lines take 4.5 s of CPU time; compiled 0.2 s.
        container = self.pod().start(
            self.bed.example("envfiles"), ["lines", "1000000"], annotations={"slipway.dev/compile": "full", "slipway.dev/cpu-time": "2s"})
        self.assertEqual(container.ended()["exitCode"], 0)

    def test_a_function_of_a_reactor_runs_initialised_and_with_arguments_in_execs_too(self):
        reactor = """(module (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (global $g (mut i32) (i32.const 7))
            (data (i32.const 16) "\\01") (data (i32.const 24) "\\00\\a0\\b8\\30\\46\\03")
            (func (export "_initialize") (global.set $g (i32.const 40)))
            (func (export "sum") (result i32)
                (drop (call $sizes (i32.const 256) (i32.const 260))) (i32.add (global.get $g) (i32.load (i32.const 256))))
            (func (export "wait") (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"""
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/reactor.wat", "w") as f:
                f.write(reactor)
            image = self.bed.image(f"{d}/reactor.wat", "reactor")
        pod = self.pod()
        container = pod.start(image, ["b"], command=["/reactor.wat#sum"])
        self.assertEqual((container.ended()["exitCode"], container.text()), (0, "42"))
        running = pod.start(image, command=["/reactor.wat#wait"])
        self.assertEqual(self.bed.crictl("exec", running.id, "/reactor.wat#sum", "b", "c").stdout, "43\n")

    def test_an_exhausted_call_stack_ends_with_134_and_is_told(self):
        message = tempfile.NamedTemporaryFile()
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/deep.wat", "w") as f:
                f.write("""(module (func $deep (param i64) (result i64) (i64.rotl (call $deep (i64.add (local.get 0) (i64.const 3))) (local.get 0)))
                    (func (export "_start") (drop (call $deep (i64.const 1)))))""")
            image = self.bed.image(f"{d}/deep.wat", "deep")
        container = self.pod().start(image, mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}])
        self.assertEqual(container.ended()["exitCode"], 134)
        for text in (container.text(), message.read().decode()):
            self.assertIn("trap: call stack exhausted in deep", text)

    def test_a_wrong_entry_function_is_an_error_of_the_start_and_no_verdict_on_the_image(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/library.wat", "w") as f:
                f.write('(module (func (export "answer") (result i32) (i32.const 42)))')
            image = self.bed.image(f"{d}/library.wat", "library")
        pod = self.pod()
        for command in ("/library.wat#none", "/library.wat"):
            with self.assertRaises(AssertionError) as refused:
                pod.start(image, command=[command])
            self.assertIn("name a function that can, as in app.wasm#answer: answer", str(refused.exception))
        log = open(f"{self.bed.root}/containerd.log").read()
        self.assertNotIn("compiling /library.wat", log)
        self.assertEqual(pod.start(image, command=["/library.wat#answer"]).ended()["exitCode"], 0)

    def test_growth_over_the_memory_limit_is_oomkilled_with_both_numbers(self):
        message = tempfile.NamedTemporaryFile()
        container = self.pod().start(
            self.bed.example("hello"), ["alloc", "100"], mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}],
            linux={"resources": {"memory_limit_in_bytes": 16 << 20}})
        status = container.ended()
        self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))
        text = message.read().decode()
        self.assertIn(str(16 << 20), text)

    def test_every_line_of_both_streams_arrives(self):
        pod = self.pod()
        container = pod.start(self.bed.example("envfiles"), ["lines", "20000"])
        container.ended()
        container.until("20000")
        self.assertEqual(len([1 for stream, _ in container.log() if stream == "stdout"]), 20000)
        container = pod.start(self.bed.example("envfiles"), ["stderr", "oops"])
        self.assertEqual(container.ended()["exitCode"], 0)
        self.assertIn(("stderr", "oops"), container.log())

    def test_stats_have_cpu_and_memory(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        self.assertIn("workingSetBytes", self.bed.crictl("stats", "-o", "json", "-a", "--id", container.id).stdout)

    def test_one_shim_serves_all_containers_of_a_pod(self):
        pod = self.pod()
        for _ in range(3):
            pod.start(self.bed.example("hello"), ["sleep"])
        shims = self.bed.run("sh", "-c", "ps -eo comm | grep -c containerd-shim").stdout.strip()
        self.assertEqual(shims, "1")

    def test_containerd_2_starts_no_program_for_further_containers(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        # The shim's `start` leaves its address in the bundle that it was called for.
        bundle = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container.id}"
        started = self.bed.run("test", "-e", f"{bundle}/address", check=False).returncode == 0
        self.assertEqual(started, self.bed.version == "1.7")

    def test_twenty_pods_of_a_new_image_compile_once(self):
        with tempfile.TemporaryDirectory() as d:
            wat = f"{d}/new.wat"
            with open(wat, "w") as f:
                f.write('(module (memory (export "memory") 1) (func (export "_start") (drop (i32.const %d))))' % os.getpid())
            image = self.bed.image(wat, f"new{os.getpid()}")
        pods = [self.pod() for _ in range(20)]
        containers = [pod.create(image) for pod in pods]
        ids = " ".join(c.id for c in containers)
        self.bed.run("sh", "-c", f"for i in {ids}; do crictl -c {self.bed.root}/crictl.yaml start $i & done; wait")
        for container in containers:
            self.assertEqual(container.ended()["exitCode"], 0)
        log = open(f"{self.bed.root}/containerd.log").read()
        self.assertEqual(log.count(f"compiling /new.wat"), 1)

    def test_a_big_module_starts_unoptimised_and_its_next_start_is_optimised(self):
        # 3 MB of data; waits an hour by poll_oneoff (one subscription at 0: clock 1, 3.6e12 ns).
        text = r'''(module
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 64)
          (data (i32.const 16) "\01")
          (data (i32.const 24) "\00\a0\b8\30\46\03")
          (data (i32.const 4096) "%s")
          (func (export "_start") (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))'''
        with tempfile.TemporaryDirectory() as d:
            wat = f"{d}/big{os.getpid()}.wat"
            with open(wat, "w") as f:
                f.write(text % (str(os.getpid()).ljust(3 << 20, "x")))
            image = self.bed.image(wat, f"big{os.getpid()}")
        pod = self.pod()
        pod.start(image)
        artefacts = lambda: [e for e in json.loads(self.bed.run("slipway", "cache", "ls", "--json").stdout) if e["kind"] == "artefact"]
        tiers = lambda: {e["tier"] for e in artefacts() if f"big{os.getpid()}" in e["origin"]}
        # The cache tells nobody what becomes of it.
        self.until(lambda: tiers() == {"quick", "full"})
        log = lambda: open(f"{self.bed.root}/containerd.log").read()
        compiling = f"compiling /big{os.getpid()}.wat"
        ours = [line for line in log().splitlines() if compiling in line]
        self.assertEqual([len(ours), sum("at low priority for the next start" in line for line in ours)], [2, 1])
        pod.start(image)
        self.assertEqual(log().count(compiling), 2)


class ImageConfig(PodTest):
    def test_a_container_has_what_its_image_says_unless_the_pod_says_otherwise(self):
        image = self.bed.file_image("configured", [
            f"{EXAMPLES}/envfiles.wasm=/envfiles.wasm", f"{EXAMPLES}/hello.wasm=/hello.wasm", "dir:/volume", "text:seeded=/volume/seed"], {
                "User": "1000:1001", "WorkingDir": "/work", "Env": ["PATH=/bin", "OF=image", "TOO=image"], "Entrypoint": ["/envfiles.wasm"],
                "Cmd": ["env"], "StopSignal": "SIGINT", "Volumes": {"/volume": {}}, "ExposedPorts": {"8080/tcp": {}}})
        pod = self.pod()
        container = pod.start(image, envs=[{"key": "OF", "value": "pod"}])
        self.assertEqual(container.ended()["exitCode"], 0)
        lines = {line for _, line in container.log()}
        self.assertLessEqual({"OF=pod", "TOO=image", "PWD=/work"}, lines)
        # Cmd is the pod's args, and the volume has what the image had there.
        container = pod.start(image, ["cat", "/volume/seed"])
        self.assertEqual(container.ended()["exitCode"], 0, container.text())
        self.assertEqual(container.log(), [("stdout", "seeded")])
        with tempfile.TemporaryDirectory() as volume:
            os.chmod(volume, 0o777)
            mounts = [{"container_path": "/data", "host_path": volume}]
            pod.start(image, ["write", "/data/by-image", "x"], mounts=mounts).ended()
            linux = {"security_context": {"namespace_options": {"pid": 1}, "run_as_user": {"value": 2000}, "run_as_group": {"value": 2001}}}
            pod.start(image, ["write", "/data/by-pod", "x"], mounts=mounts, linux=linux).ended()
            owners = {name: os.stat(f"{volume}/{name}") for name in os.listdir(volume)}
        self.assertEqual({name: (s.st_uid, s.st_gid) for name, s in owners.items()}, {"by-image": (1000, 1001), "by-pod": (2000, 2001)})
        # The entrypoint is the pod's command; the image's signal stops it.
        container = pod.start(image, command=["/hello.wasm", "sleep"])
        container.until("Hello")
        container.stop()
        self.assertEqual(container.status()["exitCode"], 130)


class Surroundings(PodTest):
    def test_environment_arguments_and_working_directory(self):
        pod = self.pod()
        container = pod.start(self.bed.example("envfiles"), ["env"], envs=[{"key": "A", "value": "b c"}], working_dir="/w")
        container.ended()
        self.assertIn("A=b c", container.text())

    def test_volumes_read_only_is_enforced_and_kubelet_style_symlinks_work(self):
        with tempfile.TemporaryDirectory() as d:
            os.mkdir(f"{d}/..2026")
            with open(f"{d}/..2026/key", "w") as f:
                f.write("value")
            os.symlink("..2026", f"{d}/..data")
            os.symlink("..data/key", f"{d}/key")
            pod = self.pod()
            mount = {"container_path": "/cfg", "host_path": d, "readonly": True}
            container = pod.start(self.bed.example("envfiles"), ["cat", "/cfg/key"], mounts=[mount])
            container.ended()
            self.assertIn("value", container.text())
            container = pod.start(self.bed.example("envfiles"), ["write", "/cfg/x", "y"], mounts=[mount])
            self.assertEqual(container.ended()["exitCode"], 1)
            self.assertFalse(os.path.exists(f"{d}/x"))
            mount["readonly"] = False
            container = pod.start(self.bed.example("envfiles"), ["write", "/cfg/x", "y"], mounts=[mount])
            self.assertEqual(container.ended()["exitCode"], 0)
            self.assertEqual(open(f"{d}/x").read(), "y\n")

    def test_a_user_without_rights_is_one(self):
        with tempfile.TemporaryDirectory() as d:
            os.chmod(d, 0o755)
            container = self.pod().start(
                self.bed.example("envfiles"), ["write", "/v/x", "y"], mounts=[{"container_path": "/v", "host_path": d}],
                linux={"security_context": {"run_as_user": {"value": 1000}, "namespace_options": {"pid": 1}}})
            self.assertEqual(container.ended()["exitCode"], 1)

    def test_the_node_is_out_of_reach(self):
        pod, image = self.pod(), self.bed.example("envfiles")
        said = lambda *words: (lambda container: (container.ended()["exitCode"], container.text()))(pod.start(image, words))
        # What the image has, and what every container has.
        self.assertEqual({line.split()[-1] for line in said("ls", "/")[1].splitlines()}, {"dev", "envfiles.wasm", "etc"})
        with open(f"{self.bed.root}/node", "w") as f:
            f.write("the node's")
        for path in (f"{self.bed.root}/node", f"{'../' * 20}{self.bed.root}/node", "/proc/self/status", "/sys/kernel/notes"):
            self.assertEqual(said("cat", path)[0], 1, path)

    def test_a_guest_has_no_privileges_and_no_llvm(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        pid = self.bed.run("sh", "-c", "ps -eo pid,comm | awk '$2 == \"slipway-guest\" {print $1}'").stdout.split()
        self.assertEqual(len(pid), 1)
        status = self.bed.run("cat", f"/proc/{pid[0]}/status").stdout
        for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
            self.assertIn(line, status)
        self.assertEqual(self.bed.run("sh", "-c", f"tr '\\0' '\\n' </proc/{pid[0]}/environ").stdout, "")
        maps = self.bed.run("cat", f"/proc/{pid[0]}/maps").stdout
        llvm = [l.split() for l in maps.splitlines() if "libLLVM" in l]
        size = sum(int(a.split("-")[1], 16) - int(a.split("-")[0], 16) for a, *_ in llvm)
        self.assertLess(size, 1 << 20, "a stand-in, not 140 MB")
        self.assertIn("artefact.so", maps)

    def test_a_server_answers_on_the_pods_address(self):
        pod = self.pod()
        pod.start(self.bed.example("tcp-echo")).until("listening")
        done = self.bed.python((
            "import socket,sys; s=socket.create_connection((sys.argv[1],8080)); s.sendall(b'ping'); print(s.recv(4))"), pod.ip())
        self.assertIn("ping", done.stdout)

    def test_host_network_and_hostname(self):
        pod = self.pod(linux={"security_context": {"namespace_options": {"network": 2, "pid": 1}}})
        container = pod.start(
            self.bed.example("tcp-echo"), linux={"security_context": {"namespace_options": {"network": 2, "pid": 1}}})
        container.until("listening")
        self.assertIn("8080", self.bed.run("sh", "-c", "ss -tln").stdout)

    def test_sysctls_are_the_pods(self):
        pod = self.pod(linux={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"}})
        container = pod.start(
            self.bed.example("tcp-echo"), envs=[{"key": "PORT", "value": "80"}],
            linux={"security_context": {"run_as_user": {"value": 1000}, "namespace_options": {"pid": 1}}})
        container.until("listening on port 80")


class Layers(PodTest):
    def test_a_start_writes_nothing_into_the_containers_layer(self):
        """Mount points lie in the lowest layer: each would be a write to the disk."""
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        pid = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"]
        mounts = self.bed.run("cat", f"/proc/{pid}/mountinfo").stdout
        upper = re.search(r" /rootfs .*upperdir=([^,]+)", mounts)[1]
        self.assertEqual(self.bed.run("find", upper, "-mindepth", "1").stdout, "")
        self.assertIn(" /rootfs/etc/hosts ", mounts)


class WithoutCri(PodTest):
    """Containers that `ctr` makes: no pod, no CNI."""

    def test_a_container_of_its_own_runs_with_its_loopback_interface_up(self):
        image = self.bed.example("hello")
        self.bed.ctr("run", "--detach", "--runtime", "io.containerd.slipway.v1", image, "alone", "/hello.wasm", "sleep")
        try:
            pid = re.search(r"alone\s+(\d+)\s+RUNNING", self.bed.ctr("tasks", "ls").stdout)[1]
            self.assertIn("LOOPBACK,UP", self.bed.run("nsenter", "-t", pid, "-n", "ip", "link", "show", "lo").stdout)
            # No mount point of CRI's, for nothing is mounted there.
            self.assertNotIn("etc", self.bed.run("ls", f"/proc/{pid}/root/rootfs").stdout.split())
        finally:
            self.bed.ctr("tasks", "rm", "--force", "alone")
            self.bed.ctr("containers", "rm", "alone")


class Sidecars(PodTest):
    def test_a_linux_container_shares_network_and_volume_with_a_module(self):
        with tempfile.TemporaryDirectory() as d:
            pod = self.pod()
            mounts = [{"container_path": "/shared", "host_path": d}]
            server = pod.start(self.bed.example("tcp-echo"))
            server.until("listening")
            side = pod.start("localhost/busybox:1", ["-c", "echo ping | nc 127.0.0.1 8080; echo done >/shared/f; exit 3"], mounts=mounts)
            self.assertEqual(side.ended()["exitCode"], 3)
            self.assertIn("ping", side.text())
            reader = pod.start(self.bed.example("envfiles"), ["cat", "/shared/f"], mounts=mounts)
            reader.ended()
            self.assertIn("done", reader.text())

    def test_exec_works_in_a_linux_container(self):
        side = self.pod().start("localhost/busybox:1", ["-c", "sleep 1000"])
        done = self.bed.crictl("exec", side.id, "sh", "-c", "echo inside; exit 4", check=False)
        self.assertIn("inside", done.stdout)
        self.assertIn("exit code 4", done.stderr)

    def test_a_linux_container_that_cannot_be_made_leaves_no_shim_of_its_own(self):
        pod = self.pod()
        wasm = pod.start(self.bed.example("hello"), ["sleep"])
        for _ in range(2):
            refused = pod.create("localhost/busybox:1", command=["/missing"])
            self.assertIn("/missing", refused.start(check=False).stderr)
            self.until(lambda: not self.bed.run("pgrep", "-f", "^containerd-shim-runc-v2 ", check=False).stdout, "its shim stays")
        self.assertEqual(pod.start("localhost/busybox:1", ["-c", "exit 5"]).ended()["exitCode"], 5)
        self.assertEqual(wasm.status()["state"], "CONTAINER_RUNNING")

    def test_a_killed_delegate_ends_its_containers_and_the_next_one_starts(self):
        pod = self.pod()
        wasm = pod.start(self.bed.example("hello"), ["sleep"])
        side = pod.start("localhost/busybox:1", ["-c", "sleep 1000"])
        self.bed.run("sh", "-c", "kill -9 $(ps -eo pid,args | awk '/containerd-shim-runc-v2 -namespace/ && !/awk/ {print $1}')")
        self.assertEqual(side.ended()["exitCode"], 137)
        again = pod.start("localhost/busybox:1", ["-c", "exit 5"])
        self.assertEqual(again.ended()["exitCode"], 5)
        self.assertEqual(wasm.status()["state"], "CONTAINER_RUNNING")


class Modules(PodTest):
    def test_an_artefact_image_runs_from_its_layer(self):
        image = self.bed.image(f"{EXAMPLES}/hello.wasm", "artefact", "--artifact")
        container = self.pod().start(image, command=["/hello.wasm"], args=["exit", "9"])
        self.assertEqual(container.ended()["exitCode"], 9)

    def test_another_export_is_called_with_its_arguments(self):
        with tempfile.TemporaryDirectory() as d:
            wat = f"{d}/add.wat"
            with open(wat, "w") as f:
                f.write('(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))')
            image = self.bed.image(wat, "add", "--entrypoint", "/add.wat#add")
        container = self.pod().start(image, ["40", "2"])
        container.ended()
        self.assertEqual(container.log(), [("stdout", "42")])

    def test_bad_entrypoints_fail_with_a_reason(self):
        with tempfile.TemporaryDirectory() as d:
            hello = open(f"{EXAMPLES}/hello.wasm", "rb").read()
            contents = {
                "elf.wasm": open("/bin/true", "rb").read(), "short.wasm": hello[:1000], "component.wasm": b"\0asm" + bytes([13, 0, 1, 0]),
                "random.wasm": b"\xff" + os.urandom(4096), "typo.wat": b"(module (fnc))", "empty.wasm": b"",
                "imports.wat": b'(module (import "env" "f" (func)) (func (export "_start")))',
                "big.wat": b'(module (memory (export "memory") 4096) (func (export "_start")))',
            }
            files = ["dir:/folder.wasm", "link:/nowhere=/dangling.wasm", "link:/../../../../etc/passwd=/escape.wasm"]
            for name, content in contents.items():
                with open(f"{d}/{name}", "wb") as f:
                    f.write(content)
                files.append(f"{d}/{name}=/{name}")
            image = self.bed.file_image("bad", files, ["/missing.wasm"])
        pod = self.pod()
        for entry, word in [
            ("/missing.wasm", "no such file"), ("/elf.wasm", "ELF"), ("/short.wasm", "offset"), ("/component.wasm", "component"),
            ("/random.wasm", "not a WebAssembly module"), ("/typo.wat", "fnc"), ("/imports.wat", "env"), ("/empty.wasm", "empty"),
            ("/folder.wasm", "directory"), ("/dangling.wasm", "symlink"), ("/escape.wasm", "escape.wasm"), ("/big.wat", str(4096 << 16)),
        ]:
            with self.subTest(entry):
                container = pod.create(image, command=[entry], linux={
                    "resources": {"memory_limit_in_bytes": 64 << 20}, "security_context": {"namespace_options": {"pid": 1}}})
                failed = container.start(check=False)
                self.assertNotEqual(failed.returncode, 0)
                self.assertIn(word, failed.stderr)
                self.assertIn(word, container.status()["message"])

    def test_a_damaged_artefact_is_compiled_again(self):
        image = self.bed.example("hello")
        pod = self.pod()
        pod.start(image).ended()
        cache = f"{self.bed.root}/cache"
        for name in os.listdir(cache):
            if name.endswith(".so"):
                path = f"{cache}/{name}"
                data = bytearray(open(path, "rb").read())
                data[len(data) // 2] ^= 1
                with open(path, "wb") as f:
                    f.write(data)
        self.assertEqual(pod.start(image, ["exit", "6"]).ended()["exitCode"], 6)


class Faults(PodTest):
    def test_a_killed_shim_leaves_nothing_and_a_new_pod_starts(self):
        pod = self.pod()
        container = pod.start(self.bed.example("hello"), ["sleep"])
        side = pod.start("localhost/busybox:1", ["-c", "sleep 1000"])
        # By its name: the holder has its arguments, too, and ends with it.
        self.bed.run("sh", "-c", "kill -9 $(ps -eo pid,comm,args | awk '$2 == \"containerd-shim\" && /shim-slipway-v1/ {print $1}')")
        # containerd's own word for an end that nobody could tell it is 255.
        self.assertIn(container.ended()["exitCode"], (137, 255))
        side.ended()
        self.until(lambda: not self.bed.run("pgrep", "slipway|runc-v2", check=False).stdout)
        self.assertEqual(self.pod().start(self.bed.example("hello"), ["exit", "2"]).ended()["exitCode"], 2)

    def test_an_end_while_containerd_is_away_is_reported(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        self.bed.run("kill", "-STOP", self.bed.containerd_pid())
        self.bed.run("sh", "-c", "kill -9 $(ps -eo pid,comm | awk '$2 == \"slipway-guest\" {print $1}')")
        self.bed.run("kill", "-CONT", self.bed.containerd_pid())
        self.assertEqual(container.ended()["exitCode"], 137)

    def test_pods_outlive_a_restart_of_containerd(self):
        pod = self.pod()
        container = pod.start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        subprocess.run([f"{os.path.dirname(__file__)}/../bed/bed", "restart", self.bed.root], check=True)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
        container.stop()
        self.assertEqual(container.status()["exitCode"], 143)
