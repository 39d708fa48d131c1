"""The examples as pods: what their pod.yaml asks for, and what their README promises."""
import contextlib
import datetime
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import unittest

try:
    import yaml
except ImportError:
    yaml = None

from harness import EXAMPLES, PATIENCE, ROOT, USER_MODE_LINUX, PodTest, run

# The number of a system call that Python has no function for.
PIDFD_GETFD = 438
# On two busy cores the compiler needs several minutes for Yosys.
COMPILE = 1800


def built(module, remedy):
    is_built = os.path.exists(f"{EXAMPLES}/{module}")
    why = "its compile would take an hour under this kernel" if is_built else f"{module} is not built: {remedy}"
    return unittest.skipUnless(is_built and not USER_MODE_LINUX, why)


def heavy(module):
    return built(module, "examples/build-all heavy")


def language(module, compiler):
    """A light one that is built where its compiler is installed."""
    return built(module, f"it needs {compiler}")


class ExampleTest(PodTest):
    def precompiled(self, module):
        """CRI does not wait for a compile of minutes."""
        self.bed.run("slipway", "compile", "--tier", "quick", module, timeout=COMPILE)


class Light(ExampleTest):
    def test_hello_greets_with_its_arguments(self):
        container = self.pod().start(self.bed.example("hello"), ["from", "a", "pod"])
        self.assertEqual(container.ended()["exitCode"], 0)
        self.assertEqual(container.log(), [("stdout", "Hello from Slipway"), ("stdout", "arguments: from a pod")])

    def test_envfiles_reads_a_file_of_a_volume_and_writes_another(self):
        pod = self.pod()
        with tempfile.TemporaryDirectory() as config, tempfile.TemporaryDirectory() as scratch:
            with open(f"{config}/greeting", "w") as f:
                f.write("Hello from a ConfigMap\n")
            mounts = [
                {"container_path": "/config", "host_path": config, "readonly": True},
                {"container_path": "/scratch", "host_path": scratch},
            ]
            image = self.bed.example("envfiles")
            reader = pod.start(image, ["cat", "/config/greeting"], mounts=mounts)
            self.assertEqual(reader.ended()["exitCode"], 0)
            self.assertEqual(reader.log(), [("stdout", "Hello from a ConfigMap")])
            self.assertEqual(pod.start(image, ["write", "/scratch/note", "some text"], mounts=mounts).ended()["exitCode"], 0)
            with open(f"{scratch}/note") as f:
                self.assertEqual(f.read(), "some text\n")
            self.assertEqual(pod.start(image, ["write", "/config/note", "no"], mounts=mounts).ended()["exitCode"], 1)

    def test_tcp_echo_answers_at_the_pods_address(self):
        pod = self.pod()
        container = pod.start(self.bed.example("tcp-echo"), envs=[{"key": "PORT", "value": "7777"}])
        container.until("7777")
        answer = self.bed.python((
            "import socket, sys\n"
            "with socket.create_connection((sys.argv[1], 7777)) as s:\n"
            "    s.sendall(b'x' * 100000)\n"
            "    s.shutdown(socket.SHUT_WR)\n"
            "    print(len(b''.join(iter(lambda: s.recv(65536), b''))))"), pod.ip())
        self.assertEqual(answer.stdout, "100000\n")

    def test_http_server_answers_at_the_pods_address(self):
        pod = self.pod()
        pod.start(self.bed.example("http-server")).until("8080")
        answer = self.bed.python((
            "import http.client, sys\n"
            "c = http.client.HTTPConnection(sys.argv[1], 8080)\n"
            "for path in ('/', '/none', '/'):\n"
            "    c.request('GET', path)\n"
            "    r = c.getresponse()\n"
            "    print(r.status, r.read())"), pod.ip())
        statuses = [line.split(" ", 1) for line in answer.stdout.splitlines()]
        self.assertEqual([status for status, _ in statuses], ["200", "404", "200"])
        self.assertEqual(statuses[0][1], r"b'Hello from Slipway\n'")

    def test_c_http_server_answers_and_its_check_says_so_by_exec(self):
        container = self.pod().start(self.bed.example("c-http-server"), envs=[{"key": "PORT", "value": "8081"}])
        container.until("8081")
        # The check is a client of the same module: it resolves a name, connects and reads.
        answer = self.bed.crictl("exec", container.id, "/c-http-server.wasm", "check", "localhost")
        self.assertEqual(answer.stdout, "HTTP/1.1 200\n")

    def test_cpp_wordcount_counts_files_of_a_volume(self):
        with tempfile.TemporaryDirectory() as texts:
            for name, text in (("first", "to be or\nnot to be\n"), ("second", "to")):
                with open(f"{texts}/{name}", "w") as f:
                    f.write(text)
            container = self.pod().start(
                self.bed.example("cpp-wordcount"), ["--top", "2", "/texts/first", "/texts/none", "/texts/second"],
                mounts=[{"container_path": "/texts", "host_path": texts, "readonly": True}])
            self.assertEqual(container.ended()["exitCode"], 1)
        said = [line for stream, line in container.log() if stream == "stdout"]
        self.assertEqual([line.split() for line in said], [
            ["2", "6", "19", "/texts/first"], ["0", "1", "2", "/texts/second"], ["3", "to"], ["2", "be"]])
        self.assertIn(("stderr", "/texts/none: No such file or directory"), container.log())

    @language("go-wordfreq.wasm", "go")
    def test_go_wordfreq_reads_a_read_only_volume_and_writes_json_to_another(self):
        self.precompiled(f"{EXAMPLES}/go-wordfreq.wasm")
        with tempfile.TemporaryDirectory() as texts, tempfile.TemporaryDirectory() as out:
            for name, text in (("first", "To be or not to be"), ("second", "that is")):
                with open(f"{texts}/{name}", "w") as f:
                    f.write(text)
            before = datetime.datetime.now(datetime.timezone.utc)
            # The working directory says where a relative path leads.
            container = self.pod(annotations={"slipway.dev/compile": "quick"}).start(
                self.bed.example("go-wordfreq"), ["-top", "2", "-out", "/out/report.json", "."], working_dir="/texts",
                envs=[{"key": "STOP_WORDS", "value": "that is or"}],
                mounts=[{"container_path": "/texts", "host_path": texts, "readonly": True},
                        {"container_path": "/out", "host_path": out}])
            self.assertEqual(container.ended()["exitCode"], 0, container.text())
            with open(f"{out}/report.json") as f:
                report = json.load(f)
        self.assertEqual(report["top"], [{"word": "be", "count": 2}, {"word": "to", "count": 2}])
        self.assertEqual((report["files"], report["words"]), (2, 5))
        written = datetime.datetime.fromisoformat(report["at"].split(".")[0] + "+00:00")
        self.assertGreaterEqual(written, before.replace(microsecond=0))
        self.assertLessEqual(written, datetime.datetime.now(datetime.timezone.utc))

    def test_plugin_returns_its_result_and_is_ended_by_its_budgets(self):
        pod = self.pod(annotations={"slipway.dev/cpu-time": "1s"})

        def call(*command):
            return pod.start(self.bed.example("plugin"), command=command, linux={
                "resources": {"memory_limit_in_bytes": 16 << 20},
                "security_context": {
                    "readonly_rootfs": True, "run_as_user": {"value": 65534}, "run_as_group": {"value": 65534},
                    "capabilities": {"drop_capabilities": ["ALL"]}, "namespace_options": {"pid": 1}},
            })

        # At once: each has its own budget.
        good, endless, hungry = call("/plugin.wasm#fib", "30"), call("/plugin.wasm#endless"), call("/plugin.wasm#hungry")
        self.assertEqual(good.ended()["exitCode"], 0)
        self.assertEqual(good.log(), [("stdout", "832040")])
        self.assertEqual(endless.ended()["exitCode"], 152)
        self.assertIn("CPU-time budget used up: the program may compute for 1 s", endless.text())
        status = hungry.ended()
        self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))
        self.assertIn("its limit is 16777216 bytes", hungry.text())

    def test_tokio_http_server_answers_others_while_requests_wait(self):
        pod = self.pod()
        pod.start(self.bed.example("tokio-http-server")).until("8080")
        # A server that does one thing after the other has answered all that came before, always. On a busy machine this one may
        # have, too: it is asked again.
        answer = self.bed.python((
            "import http.client, select, sys, time\n"
            "*later, other = (http.client.HTTPConnection(sys.argv[1], 8080) for _ in range(9))\n"
            "overtaken = False\n"
            "for _ in range(20):\n"
            "    since = time.monotonic()\n"
            "    for connection in later:\n"
            "        connection.request('GET', '/later')\n"
            "    for method, path, body in (('GET', '/', None), ('POST', '/echo', b'x' * 1000000), ('GET', '/none', None)):\n"
            "        other.request(method, path, body)\n"
            "        r = other.getresponse()\n"
            "        text = r.read()\n"
            "        print(r.status, len(text), body in (None, text))\n"
            "    overtaken = not select.select([connection.sock for connection in later], [], [], 0)[0]\n"
            "    print([connection.getresponse().read() for connection in later] == [b'Hello from Slipway\\n'] * 8, time.monotonic() - since >= 1)\n"
            "    if overtaken:\n"
            "        break\n"
            "print(overtaken)"), pod.ip())
        *rounds, overtaken = answer.stdout.splitlines()
        self.assertEqual(rounds, ["200 19 True", "200 1000000 True", "404 10 True", "True True"] * (len(rounds) // 4))
        self.assertEqual(overtaken, "True")

    def test_an_answer_in_two_writes_does_not_wait_for_the_clients_acknowledgement(self):
        pod = self.pod()
        container = pod.start(self.bed.example("tokio-http-server"))
        container.until("8080")
        # The server's sockets, and whether they have TCP_NODELAY: once a client is there, the one that is connected.
        script = (
            "import ctypes, http.client, os, sys\n"
            "connection = http.client.HTTPConnection(sys.argv[1], 8080)\n"
            "connection.request('GET', '/')\n"
            "connection.getresponse().read()\n"
            "pidfd = os.pidfd_open(int(sys.argv[2]))\n"
            "for name in os.listdir(f'/proc/{sys.argv[2]}/fd'):\n"
            "    if 'socket:' in os.readlink(f'/proc/{sys.argv[2]}/fd/{name}'):\n"
            f"        with socket.socket(fileno=ctypes.CDLL(None).syscall({PIDFD_GETFD}, pidfd, int(name), 0)) as s:\n"
            "            if s.family == socket.AF_INET and not s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):\n"
            "                print(bool(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))")
        answer = self.bed.python(script, pod.ip(), str(container.info()["pid"]))
        self.assertEqual(answer.stdout, "True\n")

    def test_wat_hello_runs_from_its_text(self):
        image = self.bed.image(f"{EXAMPLES}/wat-hello.wat", "wat-hello")
        pod = self.pod()
        container = pod.start(image)
        self.assertEqual(container.ended()["exitCode"], 0)
        self.assertEqual(container.log(), [("stdout", "Hello from Slipway, by hand")])
        complaint = pod.start(image, command=["/wat-hello.wat#complain"])
        self.assertEqual(complaint.ended()["exitCode"], 134)
        self.assertIn("stderr", [stream for stream, _ in complaint.log()])


class Heavy(ExampleTest):
    @heavy("go-http-server.wasm")
    def test_go_http_server_answers_many_clients_at_once(self):
        self.precompiled(f"{EXAMPLES}/go-http-server.wasm")
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        container = pod.start(self.bed.example("go-http-server"), envs=[{"key": "PORT", "value": "8082"}])
        container.until("8082")
        answer = self.bed.python((
            "import http.client, json, sys\n"
            "clients = [http.client.HTTPConnection(sys.argv[1], 8082) for _ in range(20)]\n"
            "for c in clients: c.request('GET', '/')\n"
            "print({c.getresponse().read() for c in clients})\n"
            "clients[0].request('GET', '/status')\n"
            "print(json.load(clients[0].getresponse())['served'])\n"
            "clients[0].request('GET', '/none')\n"
            "print(clients[0].getresponse().status)"), pod.ip())
        self.assertEqual(answer.stdout, "{b'Hello from Go\\n'}\n20\n404\n", container.text())

    @heavy("assemblyscript-stats.wasm")
    def test_assemblyscript_stats_reads_a_file_of_a_volume_and_says_what_it_does_not_understand(self):
        pod = self.pod()
        image = self.bed.example("assemblyscript-stats")
        with tempfile.TemporaryDirectory() as data:
            for name, text in (("good", "1\n2.5\n9\n"), ("bad", "1\nmany\n")):
                with open(f"{data}/{name}", "w") as f:
                    f.write(text)
            mounts = [{"container_path": "/data", "host_path": data, "readonly": True}]
            container = pod.start(image, ["/data/good"], mounts=mounts, envs=[{"key": "DIGITS", "value": "1"}])
            self.assertEqual(container.ended()["exitCode"], 0, container.text())
            self.assertEqual(container.log(), [("stdout", "3 numbers: 1.0 4.2 9.0")])
            container = pod.start(image, ["/data/bad"], mounts=mounts)
            self.assertEqual(container.ended()["exitCode"], 1)
            self.assertEqual(container.log(), [("stderr", "/data/bad: line 2: 'many' is not a number")])

    @heavy("zig-checksum.wasm")
    def test_zig_checksum_hashes_a_volume_with_symlinks_as_the_kubelet_makes_them(self):
        with tempfile.TemporaryDirectory() as data:
            os.mkdir(f"{data}/..1")
            with open(f"{data}/..1/text", "w") as f:
                f.write("some text\n")
            os.symlink("..1", f"{data}/..data")
            os.symlink("..data/text", f"{data}/text")
            container = self.pod().start(
                self.bed.example("zig-checksum"), ["/data/text", "/data/..1", "/data/none"],
                mounts=[{"container_path": "/data", "host_path": data, "readonly": True}])
            self.assertEqual(container.ended()["exitCode"], 1)
        digest = hashlib.sha256(b"some text\n").hexdigest()
        said = [line for stream, line in container.log() if stream == "stdout"]
        self.assertEqual(said, [f"{digest}  /data/text", f"{digest}  /data/..1/text"])
        self.assertIn(("stderr", "/data/none: FileNotFound"), container.log())

    @heavy("sqlite.wasm")
    def test_sqlite_keeps_a_database_on_a_volume(self):
        self.precompiled(f"{EXAMPLES}/sqlite.wasm")
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        with tempfile.TemporaryDirectory() as data:
            mounts = [{"container_path": "/data", "host_path": data}]
            script = (
                "create table if not exists n(i);"
                "with recursive c(i) as (select 1 union all select i + 1 from c where i < 1000) insert into n select i from c;"
                "select count(*), sum(i) from n;")
            for expected in ("1000|500500", "2000|1001000"):
                container = pod.start(self.bed.example("sqlite"), ["/data/app.db", script], mounts=mounts)
                self.assertEqual(container.ended()["exitCode"], 0, container.text())
                self.assertIn(("stdout", expected), container.log())

    @heavy("sqlite.wasm")
    def test_sqlites_shell_is_used_through_exec(self):
        self.precompiled(f"{EXAMPLES}/sqlite.wasm")
        container = self.pod(annotations={"slipway.dev/compile": "quick"}).start(
            self.bed.example("sqlite"), stdin=True, annotations={"slipway.dev/compile": "quick"})
        shell = self.interactive("exec", "-it", container.id, "/sqlite.wasm")
        said = ""
        for typed, answer in ((".print ready", "ready"), ("select 6 * 7 as answer;", "42")):
            shell.stdin.write(f"{typed}\n")
            shell.stdin.flush()
            # The terminal echoes what is typed.
            while answer not in said.replace(typed, ""):
                line = shell.stdout.readline()
                self.assertTrue(line, said)
                said += line
        shell.stdin.write(".quit\n")
        shell.stdin.flush()
        rest = shell.communicate(timeout=PATIENCE)[0]
        self.assertEqual(shell.returncode, 0, said + rest)

    @heavy("javascript.wasm")
    def test_javascript_of_the_image_and_of_a_config_map(self):
        self.precompiled(f"{EXAMPLES}/javascript.wasm")
        app = f"{ROOT}/examples/javascript/app"
        image = self.bed.image(f"{EXAMPLES}/javascript.wasm", "javascript", "--copy", f"{app}:/app")
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        with tempfile.TemporaryDirectory() as config, tempfile.TemporaryDirectory() as scratch:
            with open(f"{config}/poem.txt", "w") as f:
                f.write("Roses are red,\nmodules are small.\n")
            shutil.copy(f"{app}/features.js", config)
            mounts = [
                {"container_path": "/config", "host_path": config, "readonly": True},
                {"container_path": "/scratch", "host_path": scratch},
            ]
            counted = pod.start(image, ["/app/main.js", "/config/poem.txt", "/config/none"], mounts=mounts)
            self.assertEqual(counted.ended()["exitCode"], 1)
            self.assertEqual(sorted(counted.log()), [
                ("stderr", "/config/none: cannot be read"),
                ("stdout", '/config/poem.txt: 2 lines, 6 words, the longest is "modules"'),
            ])
            features = pod.start(image, ["/config/features.js", "one", "two"], mounts=mounts, envs=[{"key": "GREETING", "value": "hello"}])
            self.assertEqual(features.ended()["exitCode"], 7, features.text())
        self.assertIn(("stderr", "standard error"), features.log())
        self.assertEqual([text for stream, text in features.log() if stream == "stdout"], [
            "arguments one two", "environment hello", "standard input null", "files renamed geschrieben: äöü", "clock true",
            "random true", "sleep true", "timers true", "big integers 1180591620717411303424", "endless recursion RangeError",
        ])

    @heavy("python/python.wasm")
    def test_python_says_what_native_python_says(self):
        tree = f"{EXAMPLES}/python"
        app = f"{ROOT}/examples/python/app"
        self.precompiled(f"{tree}/python.wasm")
        image = self.bed.image(f"{tree}/python.wasm", "python", "--copy", f"{tree}/usr:/usr", "--copy", f"{app}:/app")
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        with tempfile.TemporaryDirectory() as config, tempfile.TemporaryDirectory() as scratch:
            with open(f"{config}/weather.csv", "w") as f:
                f.write("city,celsius,rain\nBergen,9.5,250.1\nCairo,22.1,1.5\nLima,19.7,0.9\n")
            shutil.copy(f"{app}/features.py", config)
            mounts = [
                {"container_path": "/config", "host_path": config, "readonly": True},
                {"container_path": "/scratch", "host_path": scratch},
            ]
            summary = pod.start(image, ["/app/main.py", "/config/weather.csv"], mounts=mounts)
            self.assertEqual(summary.ended()["exitCode"], 0, summary.text())
            self.assertEqual(f"{summary.text()}\n", run(sys.executable, f"{app}/main.py", f"{config}/weather.csv").stdout)
            missing = pod.start(image, ["/app/main.py", "/config/none"], mounts=mounts)
            self.assertEqual(missing.ended()["exitCode"], 1)
            self.assertEqual(missing.log(), [("stderr", "/config/none: No such file or directory")])
            features = pod.start(image, ["/config/features.py", "one", "two"], mounts=mounts, envs=[{"key": "GREETING", "value": "hello"}])
            self.assertEqual(features.ended()["exitCode"], 7, features.text())
        self.assertIn(("stderr", "standard error"), features.log())
        self.assertEqual([text for stream, text in features.log() if stream == "stdout"], [
            "arguments one two", "environment hello", "standard input ''", "files renamed geschrieben: äöü", "clock True",
            "random True 8", "sleep True", "big integers 1180591620717411303424", "decimal 0.1428571428571428571428571429",
            "sha256 e3b0c442", "endless recursion RecursionError",
        ])

    @heavy("awk.wasm")
    def test_awk_reports_on_a_log_as_native_mawk_does(self):
        app = f"{ROOT}/examples/awk/app"
        image = self.bed.image(f"{EXAMPLES}/awk.wasm", "awk", "--copy", f"{app}:/app")
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        with tempfile.TemporaryDirectory() as config, tempfile.TemporaryDirectory() as scratch:
            with open(f"{config}/access.log", "w") as f:
                for n in range(1000):
                    status = 404 if n % 7 == 0 else 200
                    f.write(f'10.0.0.{n % 9} - - [21/Nov/2026:10:00:00 +0000] "GET /{n % 13} HTTP/1.1" {status} {n * n}\n')
            shutil.copy(f"{app}/features.awk", config)
            mounts = [
                {"container_path": "/config", "host_path": config, "readonly": True},
                {"container_path": "/scratch", "host_path": scratch},
            ]
            report = pod.start(image, ["-f", "/app/report.awk", "/config/access.log"], mounts=mounts)
            self.assertEqual(report.ended()["exitCode"], 0, report.text())
            sizes = {"200": [n * n for n in range(1000) if n % 7], "404": [n * n for n in range(0, 1000, 7)]}
            expected = [f"{status} {len(size):6} requests {sum(size):10} bytes" for status, size in sizes.items()] + ["busiest: /0, 77 of 1000"]
            self.assertEqual(report.text().splitlines(), expected)
            if shutil.which("mawk"):
                self.assertEqual(f"{report.text()}\n", run("mawk", "-f", f"{app}/report.awk", f"{config}/access.log").stdout)
            features = pod.start(
                image, ["-f", "/config/features.awk", "one", "two"], mounts=mounts, envs=[{"key": "GREETING", "value": "hello"}])
            self.assertEqual(features.ended()["exitCode"], 7, features.text())
        self.assertIn(("stderr", "standard error"), features.log())
        self.assertEqual([text for stream, text in features.log() if stream == "stdout"], [
            "arguments one two", "environment hello", "standard input ended", "files written", "clock 1", "random 1"])

    @heavy("tools/oxipng.wasm")
    def test_tools_do_byte_for_byte_what_they_do_natively(self):
        commands = [
            ("jaq", "-c", "[.imports[] | {name, parameters: (.signature | split(\" -> \") | .[0])}] | sort_by(.name)", "input/module.json"),
            ("grass", "input/style.scss"),
            ("pulldown-cmark", "--enable-tables", "README.md"),
            ("oxipng", "--quiet", "--opt", "4", "--strip", "all", "--out", "out/small.png", "input/picture.png"),
        ]
        tools = f"{EXAMPLES}/tools"
        copies = [f"{tools}:/bin", f"{ROOT}/examples/tools/input:/input", f"{ROOT}/README.md:/README.md"]
        image = self.bed.image(f"{tools}/jaq.wasm", "tools", *(word for copy in copies for word in ("--copy", copy)))
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as out:
            shutil.copytree(f"{ROOT}/examples/tools/input", f"{here}/input")
            shutil.copy(f"{ROOT}/README.md", here)
            os.mkdir(f"{here}/out")
            for name, *args in commands:
                self.precompiled(f"{tools}/{name}.wasm")
                container = pod.start(image, args, command=[f"/bin/{name}.wasm"], mounts=[{"container_path": "/out", "host_path": out}])
                self.assertEqual(container.ended()["exitCode"], 0, container.text())
                said = run(f"{EXAMPLES}/native/{name}", *args, cwd=here).stdout
                self.assertEqual("".join(f"{text}\n" for _, text in container.log()), said)
                self.assertEqual(bool(said), name != "oxipng")
            with open(f"{here}/out/small.png", "rb") as native, open(f"{out}/small.png", "rb") as small:
                self.assertEqual(native.read(), small.read())
            self.assertLess(os.path.getsize(f"{out}/small.png"), os.path.getsize(f"{here}/input/picture.png"))

    @heavy("yosys/yosys.wasm")
    def test_yosys_synthesises_a_counter_byte_for_byte(self):
        tree = f"{EXAMPLES}/yosys"
        copies = [f"{tree}/share:/share", f"{tree}/tmp:/tmp", f"{ROOT}/examples/yosys/work:/work"]
        image = self.bed.image(f"{tree}/yosys.wasm", "yosys", *(word for copy in copies for word in ("--copy", copy)))
        self.precompiled(f"{tree}/yosys.wasm")
        expected = {}
        for name in ("stdout.v", "netlist.v"):
            with open(f"{ROOT}/examples/yosys/expected/{name}") as f:
                expected[name] = f.read()
        pod = self.pod(annotations={"slipway.dev/compile": "quick"})
        with tempfile.NamedTemporaryFile("r") as netlist:
            container = pod.start(
                image, ["-q", "-s", "/work/counter.ys"], mounts=[{"container_path": "/work/netlist.v", "host_path": netlist.name}],
                linux={"resources": {"memory_limit_in_bytes": 512 << 20}, "security_context": {"namespace_options": {"pid": 1}}})
            self.assertEqual(container.ended()["exitCode"], 0, container.text())
            self.assertEqual(netlist.read(), expected["netlist.v"])
        stdout = "".join(f"{text}\n" for stream, text in container.log() if stream == "stdout")
        self.assertEqual(stdout, expected["stdout.v"])


BUSYBOX = "localhost/busybox:1"


def objects(path):
    """The Kubernetes objects of a file in examples/."""
    with open(f"{ROOT}/examples/{path}") as f:
        return list(yaml.safe_load_all(f))


def pod_specs(value):
    """Every pod's spec in an object: a Pod's own and those in templates."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pod_specs(inner)


@unittest.skipUnless(yaml, "no PyYAML: make setup installs it")
class Manifests(ExampleTest):
    """The manifests of examples/, as the kubelet would tell CRI of them."""

    @contextlib.contextmanager
    def applied(self, manifest):
        """Runs the file's pod; yields the pod and its containers by their names."""
        config_maps, specs = {}, []
        for found in objects(manifest):
            if found["kind"] == "ConfigMap":
                config_maps[found["metadata"]["name"]] = found["data"]
            specs += pod_specs(found)
        [spec] = specs
        with contextlib.ExitStack() as stack:
            volumes = {}
            for volume in spec["volumes"]:
                path = volumes[volume["name"]] = stack.enter_context(tempfile.TemporaryDirectory())
                for name, text in config_maps[volume["configMap"]["name"]].items() if "configMap" in volume else ():
                    with open(f"{path}/{name}", "w") as f:
                        f.write(text)
            pod = self.pod(annotations={"slipway.dev/compile": "quick"})
            # Before its volumes.
            stack.callback(pod.remove)
            stack.callback(self.pods.remove, pod)

            def start(container):
                example = re.fullmatch("slipway.dev/examples/(.*):latest", container["image"])
                mounts = [
                    {"container_path": m["mountPath"], "host_path": volumes[m["name"]], "readonly": m.get("readOnly", False)}
                    for m in container["volumeMounts"]]
                return pod.start(
                    self.bed.example(example[1]) if example else BUSYBOX, container.get("args", []),
                    command=container.get("command", []), mounts=mounts)

            for container in spec.get("initContainers", []):
                self.assertEqual(start(container).ended()["exitCode"], 0)
            yield pod, {container["name"]: start(container) for container in spec["containers"]}

    def get(self, pod, path):
        """What the pod's web server answers, once it does."""
        script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode(), end='')"
        url = f"http://{pod.ip()}:8080{path}"
        return self.until(lambda: self.bed.python(script, url, check=False).stdout)

    def test_every_manifest_is_of_images_that_are_there(self):
        found = sorted(os.path.relpath(path, f"{ROOT}/examples") for path in glob.glob(f"{ROOT}/examples/*/*.yaml"))
        self.assertIn("kubernetes/job.yaml", found)
        for path in found:
            with self.subTest(path):
                for spec in [spec for found in objects(path) for spec in pod_specs(found)]:
                    self.assertEqual(spec["runtimeClassName"], "slipway")
                    for container in spec["containers"] + spec.get("initContainers", []):
                        self.assertRegex(container["image"], "^(slipway.dev/examples/.*:latest|(busybox|redis):[0-9.]+)$")
                        if container["image"].startswith("slipway.dev/"):
                            name = container["image"].removeprefix("slipway.dev/examples/").removesuffix(":latest")
                            self.assertTrue(os.path.exists(f"{ROOT}/examples/{name}/build"), name)

    @language("go-wordfreq.wasm", "go")
    def test_a_linux_server_serves_what_a_module_beside_it_writes(self):
        self.precompiled(f"{EXAMPLES}/go-wordfreq.wasm")
        with self.applied("kubernetes/sidecar.yaml") as (pod, _):
            report = json.loads(self.get(pod, "/report.json"))
        self.assertEqual([entry["word"] for entry in report["top"]], ["be", "to"])

    def test_a_module_prepares_what_a_linux_container_serves(self):
        with self.applied("kubernetes/init-wasm.yaml") as (pod, _):
            self.assertEqual(self.get(pod, "/index.html"), "Hello from Wasm\n")

    def test_a_linux_container_prepares_what_a_module_reads(self):
        with self.applied("kubernetes/init-linux.yaml") as (_, containers):
            counter = containers["cpp-wordcount"]
            self.assertEqual(counter.ended()["exitCode"], 0)
            self.assertEqual([text.split() for _, text in counter.log()], [["100", "100", "292", "/texts/numbers"]])
