"""The examples as pods: what their pod.yaml asks for, and what their README promises."""
import os
import shutil
import sys
import tempfile
import unittest

from harness import EXAMPLES, PATIENCE, ROOT, USER_MODE_LINUX, PodTest, run

# On two busy cores the compiler needs several minutes for Yosys.
COMPILE = 1800


def heavy(module):
    built = os.path.exists(f"{EXAMPLES}/{module}")
    why = f"{module} is not built: examples/build-all heavy" if not built else "its compile would take an hour under this kernel"
    return unittest.skipUnless(built and not USER_MODE_LINUX, why)


class Light(PodTest):
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
        answer = self.bed.run("python3", "-c", (
            "import socket, sys\n"
            "with socket.create_connection((sys.argv[1], 7777), 10) as s:\n"
            "    s.sendall(b'x' * 100000)\n"
            "    s.shutdown(socket.SHUT_WR)\n"
            "    print(len(b''.join(iter(lambda: s.recv(65536), b''))))"), pod.ip())
        self.assertEqual(answer.stdout, "100000\n")

    def test_http_server_answers_at_the_pods_address(self):
        pod = self.pod()
        pod.start(self.bed.example("http-server")).until("8080")
        answer = self.bed.run("python3", "-c", (
            "import http.client, sys\n"
            "c = http.client.HTTPConnection(sys.argv[1], 8080, timeout=10)\n"
            "for path in ('/', '/none', '/'):\n"
            "    c.request('GET', path)\n"
            "    r = c.getresponse()\n"
            "    print(r.status, r.read())"), pod.ip())
        statuses = [line.split(" ", 1) for line in answer.stdout.splitlines()]
        self.assertEqual([status for status, _ in statuses], ["200", "404", "200"])
        self.assertEqual(statuses[0][1], r"b'Hello from Slipway\n'")

    def test_wat_hello_runs_from_its_text(self):
        image = self.bed.image(f"{EXAMPLES}/wat-hello.wat", "wat-hello")
        pod = self.pod()
        container = pod.start(image)
        self.assertEqual(container.ended()["exitCode"], 0)
        self.assertEqual(container.log(), [("stdout", "Hello from Slipway, by hand")])
        complaint = pod.start(image, command=["/wat-hello.wat#complain"])
        self.assertEqual(complaint.ended()["exitCode"], 134)
        self.assertIn("stderr", [stream for stream, _ in complaint.log()])


class Heavy(PodTest):
    def precompiled(self, module):
        """CRI does not wait for a compile of minutes."""
        self.bed.run("slipway", "compile", "--tier", "quick", module, timeout=COMPILE)

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
