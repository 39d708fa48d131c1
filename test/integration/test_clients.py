"""Examples that call others: servers of this machine's own that listen on the bed's bridge."""
import contextlib
import os
import signal
import subprocess
import tempfile

from harness import ROOT, PodTest, run

# The bed's bridge, where every pod reaches the node.
NODE = "10.88.0.1"


class Clients(PodTest):
    @contextlib.contextmanager
    def server(self, *command):
        """A program in the bed that prints the port it listens on; yields the port."""
        server = subprocess.Popen(
            [f"{ROOT}/test/bed/bed", "run", self.bed.root, *command], stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            yield int(server.stdout.readline())
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
