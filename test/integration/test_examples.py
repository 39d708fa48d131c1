"""The examples, as pods: what a newcomer copies has to run. Programs that others wrote need `examples/build-all heavy`."""
import os
import unittest

from harness import EXAMPLES, ROOT, PodTest


def heavy(path):
    return unittest.skipUnless(os.path.exists(f"{EXAMPLES}/{path}"), f"target/examples/{path} is not built: examples/build-all heavy")


class Examples(PodTest):
    def output(self, image, *args, **fields):
        """Of a program that ends well."""
        container = self.pod().start(image, args, **fields)
        self.assertEqual(container.ended()["exitCode"], 0, container.text())
        return container.text()

    def request(self, container, pod, port, data):
        container.until(str(port))
        # Within the bed's network, as another pod would.
        code = "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),10); s.sendall(sys.argv[3].encode()); s.shutdown(socket.SHUT_WR); print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
        return self.bed.run("python3", "-c", code, pod.ip(), str(port), data).stdout

    def test_hello(self):
        self.assertIn("Hello from Slipway", self.output(self.bed.example("hello")))

    def test_wat_hello(self):
        self.assertIn("ello", self.output(self.bed.example("wat-hello")))

    def test_envfiles(self):
        self.assertIn("A=b", self.output(self.bed.example("envfiles"), "env", envs=[{"key": "A", "value": "b"}]))

    def test_tcp_echo(self):
        pod = self.pod()
        container = pod.start(self.bed.example("tcp-echo"))
        self.assertEqual(self.request(container, pod, 8080, "and back\n"), "and back\n\n")

    def test_http_server(self):
        pod = self.pod()
        container = pod.start(self.bed.example("http-server"))
        self.assertIn("200 OK", self.request(container, pod, 8080, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))

    @heavy("sqlite.wasm")
    def test_sqlite(self):
        script = "create table t(a); insert into t values (1),(2),(39); select sum(a), sqlite_version() from t"
        self.assertIn("42|3.49.1", self.output(self.bed.example("sqlite"), ":memory:", script))

    @heavy("ripgrep.wasm")
    def test_ripgrep(self):
        self.assertIn("ripgrep", self.output(self.bed.example("ripgrep"), "--version"))

    @heavy("yosys")
    def test_yosys(self):
        files = ["dir:/tmp"]
        for directory, _, names in os.walk(f"{EXAMPLES}/yosys"):
            files += [f"{directory}/{name}={directory[len(EXAMPLES) + 6:]}/{name}" for name in names]
        image = self.bed.file_image("yosys", files, ["/yosys.wasm"])
        # 39 MB compile for minutes: ahead of time, as the example's page says, else the first start waits as long.
        self.bed.run("slipway", "compile", f"{EXAMPLES}/yosys/yosys.wasm", timeout=1200)
        text = self.output(image, "-q", "-s", "/work/counter.ys")
        self.assertEqual(text + "\n", open(f"{ROOT}/examples/yosys/expected/stdout.v").read())
