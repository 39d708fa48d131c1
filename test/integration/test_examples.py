"""The examples as pods: what their pod.yaml asks for, and what their README promises."""
import os
import tempfile
import unittest

from harness import EXAMPLES, PATIENCE, ROOT, USER_MODE_LINUX, PodTest

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

    def test_tokio_http_server_answers_others_while_requests_wait(self):
        pod = self.pod()
        pod.start(self.bed.example("tokio-http-server")).until("8080")
        # One after the other, those that wait would take 8 seconds.
        answer = self.bed.run("python3", "-c", (
            "import http.client, sys, time\n"
            "*later, other = (http.client.HTTPConnection(sys.argv[1], 8080, timeout=20) for _ in range(9))\n"
            "since = time.monotonic()\n"
            "for connection in later:\n"
            "    connection.request('GET', '/later')\n"
            "for method, path, body in (('GET', '/', None), ('POST', '/echo', b'x' * 1000000), ('GET', '/none', None)):\n"
            "    other.request(method, path, body)\n"
            "    r = other.getresponse()\n"
            "    text = r.read()\n"
            "    print(r.status, len(text), body in (None, text))\n"
            "print([connection.getresponse().read() for connection in later] == [b'Hello from Slipway\\n'] * 8)\n"
            "print(1 <= time.monotonic() - since < 8)"), pod.ip())
        self.assertEqual(answer.stdout.splitlines(), ["200 19 True", "200 1000000 True", "404 10 True", "True", "True"])

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
