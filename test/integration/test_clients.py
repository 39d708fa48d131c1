"""Examples that call others: servers of this machine's own that listen on the bed's bridge."""
import contextlib
import os
import signal
import subprocess
import tempfile
import unittest

from harness import BED, EXAMPLES, ROOT, PodTest, run

# The bed's bridge, where every pod reaches the node.
NODE = "10.88.0.1"


class Clients(PodTest):
    @contextlib.contextmanager
    def server(self, *command, ready=""):
        """A program in the bed; yields the first line of its output that says that it is ready."""
        server = subprocess.Popen(
            [f"{ROOT}/test/bed/bed", "run", self.bed.root, *command], stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            line = next((line for line in server.stdout if ready in line), None)
            self.assertIsNotNone(line, f"{command[0]} did not start")
            yield line.strip()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()

    def certificates(self, directory):
        """A CA, and a server's certificate of it."""

        def openssl(*words):
            run("openssl", *words, cwd=directory)

        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *key, "-subj", "/CN=Test", "-days", "1", "-keyout", "ca.key", "-out", "ca.pem")
        openssl("req", *key, "-subj", "/CN=tls.test", "-addext", "subjectAltName=DNS:tls.test", "-keyout", "server.key", "-out", "server.csr")
        openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy", "-days", "1", "-out", "server.pem")

    def test_https_is_trusted_by_the_ca_certificates_that_a_volume_brings(self):
        image = self.bed.example("https-client")
        with tempfile.TemporaryDirectory() as directory:
            self.certificates(directory)
            with open(f"{directory}/hosts", "w") as hosts:
                hosts.write(f"{NODE} tls.test other.test\n")
            serve = (
                "import http.server, ssl, sys\n"
                "class Handler(http.server.BaseHTTPRequestHandler):\n"
                "    log_message = lambda *_: None\n"
                "    def do_GET(self):\n"
                "        self.send_response(200)\n"
                "        self.send_header('Content-Length', '7')\n"
                "        self.end_headers()\n"
                "        self.wfile.write(b'secret\\n')\n"
                "server = http.server.ThreadingHTTPServer((sys.argv[1], 0), Handler)\n"
                "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
                "context.load_cert_chain(f'{sys.argv[2]}/server.pem', f'{sys.argv[2]}/server.key')\n"
                "server.socket = context.wrap_socket(server.socket, server_side=True)\n"
                "print(server.server_address[1], flush=True)\n"
                "server.serve_forever()\n")
            volume = lambda path, source: {"container_path": path, "host_path": source, "readonly": True}
            hosts = volume("/etc/hosts", f"{directory}/hosts")
            bundle = "/etc/ssl/certs/ca-certificates.crt"
            pod = self.pod()
            with self.server("python3", "-c", serve, NODE, directory) as port:

                def get(host, *mounts, envs=()):
                    container = pod.start(image, [f"https://{host}:{port}/"], mounts=[hosts, *mounts], envs=list(envs))
                    return container.ended()["exitCode"], container.text()

                ours, nodes = volume(bundle, f"{directory}/ca.pem"), volume(bundle, bundle)
                elsewhere = get("tls.test", nodes, volume("/ca", directory), envs=[{"key": "SSL_CERT_FILE", "value": "/ca/ca.pem"}])
                self.assertEqual([get("tls.test", ours), elsewhere], [(0, "secret")] * 2)
                for reason, (status, text) in (
                    ("invalid peer certificate: UnknownIssuer", get("tls.test", nodes)),
                    ("not valid for name \"other.test\"", get("other.test", ours)),
                    (f"CA certificates: {bundle}: ", get("tls.test")),
                ):
                    self.assertEqual(status, 1, text)
                    self.assertIn(reason, text)
                    self.assertNotIn("secret", text)

    def test_the_nodes_ca_certificates_come_by_an_annotation(self):
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        pod = self.pod(annotations={"slipway.dev/ca-certificates": "node"})
        image = self.bed.example("envfiles")

        def said(*words, image=image, **fields):
            container = pod.start(image, list(words), **fields)
            return container.ended()["exitCode"], container.text()

        with open(bundle) as file:
            self.assertEqual(said("cat", bundle), (0, file.read().strip()))
        self.assertIn(f"SSL_CERT_FILE={bundle}", said("env")[1].splitlines())
        named = said("env", envs=[{"key": "SSL_CERT_FILE", "value": "/mine"}])[1]
        self.assertEqual([line for line in named.splitlines() if line.startswith("SSL_CERT_FILE")], ["SSL_CERT_FILE=/mine"])
        self.assertEqual(said("write", bundle, "no")[0], 1)
        with tempfile.TemporaryDirectory() as directory:
            # A volume that hides the place keeps it, also where it lacks the file, and gets none.
            self.assertEqual(said("ls", "/etc/ssl/certs", mounts=[{"container_path": "/etc/ssl", "host_path": directory}])[0], 1)
            self.assertEqual(os.listdir(directory), [])
            with open(f"{directory}/own.crt", "w") as file:
                file.write("of the image\n")
            own = self.bed.image(f"{EXAMPLES}/envfiles.wasm", "own-certificates", "--copy", f"{directory}/own.crt:{bundle}")
            self.assertEqual(said("cat", bundle, image=own), (0, "of the image"))
        self.assertEqual(self.pod().start(image, ["cat", bundle]).ended()["exitCode"], 1, "nobody asked for it")
        with self.assertRaises(AssertionError) as refused:
            self.pod(annotations={"slipway.dev/ca-certificates": "mine"})
        self.assertIn("annotations[slipway.dev/ca-certificates]", str(refused.exception))

    @unittest.skipUnless(os.access(f"{BED}/bin/redis-server", os.X_OK), "redis-server is not in the bed: test/bed/fetch")
    def test_a_client_keeps_values_in_redis(self):
        image = self.bed.example("redis-client")
        pod = self.pod()
        server = ["redis-server", "--bind", NODE, "--port", "6379", "--save", "", "--protected-mode", "no"]
        with self.server(*server, ready="Ready to accept connections"):

            def client(*words):
                container = pod.start(image, list(words), envs=[{"key": "REDIS", "value": f"{NODE}:6379"}])
                return container.ended()["exitCode"], container.log()

            said = lambda *lines: [("stdout", line) for line in lines]
            self.assertEqual(client("SET", "greeting", "hello from wasm", ";", "INCR", "visits", ";", "GET", "none"), (0, said("OK", "1", "(nil)")))
            # Another container, and 4 MiB that come in many pieces.
            script = "return {{1, {false, 'nested'}}, string.len(KEYS[1]), string.rep('x', 4194304)}"
            status, log = client("INCR", "visits", ";", "GET", "greeting", ";", "EVAL", script, "1", "abc")
            self.assertEqual((status, log[:6]), (0, said("2", "hello from wasm", "1", "(nil)", "nested", "3")))
            self.assertEqual("".join(text for _, text in log[6:]), "x" * 4194304)
            status, log = client("INCR", "greeting")
            self.assertEqual((status, [stream for stream, _ in log]), (1, ["stderr"]))
            self.assertIn("not an integer", log[0][1])
        status, log = client("PING")
        self.assertEqual((status, log[0][0]), (1, "stderr"))
        self.assertIn("Connection refused", log[0][1])
