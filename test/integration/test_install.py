"""slipway install, uninstall and installer: what they do to a node, and that they can be killed at any step."""
import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import unittest
import urllib.request

from harness import BED, PATIENCE, ROOT, TREE, USER_MODE_LINUX, PodTest, run, wait_for

SYSTEMD = USER_MODE_LINUX and os.path.isdir("/run/systemd/system")
# System calls before each of which the command is killed once: what is before the nth is done, what is after is not.
STEPS = ("rename", "symlink", "unlink", "fsync")


def small_tree(directory, text="1"):
    """A tree of the programs that installing needs, quick to copy."""
    for part in ("libexec", "lib", "share"):
        os.makedirs(f"{directory}/{part}")
    shutil.copytree(f"{TREE}/bin", f"{directory}/bin")
    # By it a program knows that it lies in a tree.
    shutil.copy(f"{TREE}/libexec/slipway-guest", f"{directory}/libexec")
    with open(f"{directory}/share/text", "w") as f:
        f.write(text)
    return directory


def contents(*directories):
    """All files with what is in them."""
    found = {}
    for directory in directories:
        for path, _, files in os.walk(directory):
            found[path] = None
            for name in files:
                with open(f"{path}/{name}", "rb") as f:
                    found[f"{path}/{name}"] = f.read()
    return found


class Install(PodTest):
    """Without systemd: somebody else restarts containerd."""

    def setUp(self):
        super().setUp()
        self.directory = tempfile.mkdtemp(dir=self.bed.root)
        self.config = f"{self.bed.root}/config.toml"
        self.opt = f"{self.directory}/opt"
        self.found = self.node()[0]

    def tearDown(self):
        self.slipway("uninstall", "--force", "--purge", check=False)
        # Other tests go on with the bed as it was made.
        with open(self.config, "w") as f:
            f.write(self.found)
        self.restart()
        shutil.rmtree(self.directory)
        super().tearDown()

    def restart(self):
        # Its output would be a pipe of containerd's.
        subprocess.run([f"{ROOT}/test/bed/bed", "restart", self.bed.root], check=True)

    def slipway(self, verb, *args, tree=TREE, before=(), **options):
        return self.bed.run(
            "env", f"SLIPWAY_ROOT={tree}", *before, f"{tree}/bin/slipway", verb, "--install-dir", self.opt, "--no-restart", *args, **options)

    def node(self):
        """containerd's configuration as it lies on the disk."""
        with open(self.config) as f:
            return f.read(), contents(f"{self.bed.root}/conf.d")

    def handlers(self):
        return set(json.loads(self.bed.crictl("info").stdout)["config"]["containerd"]["runtimes"])

    def doctor(self):
        """What it says of the installation."""
        told = self.bed.run(f"{TREE}/bin/slipway", "doctor", "--json", "--install-dir", self.opt, "--config", self.config, check=False)
        finding = {finding["check"]: finding for finding in json.loads(told.stdout)}
        self.assertEqual(finding["config"]["level"], "ok")
        return finding["installed"]["level"], finding["installed"]["finding"]

    def test_pods_run_across_upgrades_and_uninstalling_leaves_what_was_there(self):
        before = self.node()
        told = self.slipway("install", "--alias", "wasmedge", "--cache-size", "1Gi", "--dry-run").stdout
        self.assertRegex(told, r"(?m)^\+.*runtimes\.wasmedge\]$")
        self.assertRegex(told, r"(?m)^\+ *CacheBytes = 1073741824$")
        self.assertEqual((self.node(), os.path.exists(self.opt)), (before, False), "a dry run changes nothing")

        install = ("install", "--alias", "wasmedge")
        self.assertEqual(self.doctor()[0], "warning")
        self.slipway(*install)
        self.assertEqual(self.doctor(), ("error", "containerd does not list wasmedge"))
        self.restart()
        self.assertRegex(self.doctor()[1], "^[0-9.]+-[0-9a-f]{12}: slipway, wasmedge$")
        self.assertLessEqual({"slipway", "wasmedge", "runc", "crun"}, self.handlers())
        installed = self.node()
        self.assertIn("installed already", self.slipway(*install).stdout)
        self.assertEqual(self.node(), installed)

        container = self.pod("wasmedge").start(self.bed.example("hello"), ["sleep"])
        old = os.readlink(f"{self.opt}/current")
        newer = f"{self.directory}/newer"
        shutil.copytree(TREE, newer, symlinks=True)
        with open(f"{newer}/share/doc/newer", "w"):
            pass
        self.assertIn(f"{os.path.basename(old)} stays until its pods have ended", self.slipway(*install, tree=newer).stdout)
        self.assertEqual(self.node(), installed, "the configuration names no version")
        new = os.readlink(f"{self.opt}/current")
        self.assertNotEqual(old, new)
        # An exec is a new guest: of the version that the pod was started with.
        self.assertIn("Hello", self.bed.crictl("exec", container.id, "/hello.wasm").stdout)
        programs = self.bed.run("sh", "-c", "readlink /proc/[0-9]*/exe").stdout
        self.assertIn(f"{self.opt}/{old}/", programs)
        self.assertNotIn(f"{self.opt}/{new}/", programs)

        refused = self.slipway("uninstall", check=False)
        self.assertEqual(refused.returncode, 125)
        self.assertIn(self.pods[0].sandbox, refused.stderr)
        self.assertEqual(self.node(), installed)
        self.pods.pop().remove()
        self.slipway("uninstall", "--purge")
        self.assertEqual((self.node(), os.path.exists(self.opt)), (before, False))

    def test_the_caches_bound_reaches_the_shims(self):
        """As an option of the handler, which each containerd passes in its own way."""
        self.slipway("install", "--cache-size", "1Ki", tree=TREE)
        self.restart()
        for name in ("hello", "tcp-echo"):
            self.pod("slipway").start(self.bed.example(name), ["sleep"])
            # What is in use stays, whatever the bound.
            self.pods.pop().remove()
        kept = json.loads(self.bed.run("slipway", "cache", "ls", "--json").stdout)
        self.assertEqual(len(kept), 1, kept)

    def test_what_others_write_meanwhile_stays(self):
        before = self.node()
        self.slipway("install", tree=small_tree(f"{self.directory}/tree"))
        with open(self.config, "a") as f:
            f.write("# Somebody's.\n")
        told = self.slipway("uninstall").stdout
        self.assertIn("changed by somebody else", told)
        text, drop_ins = self.node()
        self.assertEqual(drop_ins, before[1])
        self.assertIn("# Somebody's.", text)
        self.assertNotIn(self.opt, text)

    def test_a_node_that_is_not_ready_is_told_all_that_is_wrong(self):
        tree = small_tree(f"{self.directory}/tree")
        with open(self.config) as f:
            good = f.read()
        try:
            with open(self.config, "a") as f:
                f.write("[broken\n")
            before = self.node()
            refused = self.slipway("install", "--alias", "No-Label", tree=tree, check=False).stderr
            self.assertIn("containerd refuses", refused)
            self.assertIn("--alias No-Label", refused)
            self.assertEqual(self.node(), before)
        finally:
            with open(self.config, "w") as f:
                f.write(good)
        refused = self.slipway("install", "--alias", "crun", tree=tree, check=False).stderr
        self.assertIn("handler crun is io.containerd.runc.v2's already", refused)
        with open(f"{self.opt}/state/lock") as lock:
            holder = subprocess.Popen(["flock", f"{self.opt}/state/lock", "sleep", "1000"], start_new_session=True)
            try:
                self.until(lambda: "is locked by" in self.slipway("install", tree=tree, check=False).stderr)
            finally:
                os.killpg(holder.pid, signal.SIGKILL)
                holder.wait()
            del lock

    def killed(self, call, number, *command, **options):
        """Kills the command before its nth call of this kind; False where it came to its end."""
        inject = ("strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
        done = self.slipway(*command, before=inject, check=False, **options)
        self.assertIn(done.returncode, (0, -9, 137), done.stderr)
        return done.returncode != 0

    def each_step(self, *command, **options):
        """Runs the command again and again, killed at another step each time; yields after each."""
        for call in STEPS:
            number = 1
            while self.killed(call, number, *command, **options):
                yield f"{command[0]}: {call} {number}"
                number += 1
            yield f"{command[0]}: the end"

    def test_an_installation_that_is_killed_can_be_gone_on_with_or_taken_back(self):
        if self.bed.version != "2.1":
            self.skipTest("the steps are the same with each containerd")
        before = self.node()
        tree = small_tree(f"{self.directory}/tree")
        self.slipway("install", tree=tree)
        installed = self.node()
        self.slipway("uninstall", tree=tree)
        self.assertEqual(self.node(), before)
        steps = 0
        for steps, step in enumerate(self.each_step("install", tree=tree)):
            with self.subTest(step):
                # Whatever containerd would find now, it can be started with.
                self.bed.run("containerd", "--config", self.config, "config", "dump")
                if steps % 2:
                    self.slipway("install", tree=tree)
                    self.assertEqual(self.node(), installed)
                self.slipway("uninstall", "--purge", tree=tree)
                self.assertEqual((self.node(), os.path.exists(self.opt)), (before, False))
        self.assertGreater(steps, 20)

    def test_an_uninstallation_that_is_killed_can_be_gone_on_with(self):
        if self.bed.version != "2.1":
            self.skipTest("the steps are the same with each containerd")
        before = self.node()
        tree = small_tree(f"{self.directory}/tree")
        self.slipway("install", tree=tree)
        for step in self.each_step("uninstall", tree=tree):
            with self.subTest(step):
                self.bed.run("containerd", "--config", self.config, "config", "dump")
                self.slipway("uninstall", tree=tree)
                self.assertEqual(self.node(), before)
                self.slipway("install", tree=tree)


class ApiServer:
    """As much of a Kubernetes API server as the installer calls: one Node, and pods."""

    def __init__(self, directory):
        self.labels, self.history, self.pods = {}, [], []
        self.ready = True
        self.handlers = lambda: []
        make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
        run(*make, "-subj", "/CN=ca", "-keyout", f"{directory}/ca.key", "-out", f"{directory}/ca.crt")
        run(*make, "-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", f"{directory}/ca.crt", "-CAkey", f"{directory}/ca.key", "-keyout", f"{directory}/key", "-out", f"{directory}/crt")
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(None)

            def do_PATCH(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, patch):
                status, body = (200, server.answer(self.path, patch))
                if self.headers["Authorization"] != "Bearer a-token":
                    status, body = 401, {"message": "Unauthorized"}
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{directory}/crt", f"{directory}/key")
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def node(self):
        return {"metadata": {"name": "n1", "labels": dict(self.labels)}, "status": {
            "conditions": [{"type": "Ready", "status": "True" if self.ready else "False"}],
            "runtimeHandlers": [{"name": name} for name in self.handlers()]}}

    def answer(self, path, patch):
        if path == "/api/v1/nodes/n1":
            for name, value in (patch or {"metadata": {"labels": {}}})["metadata"]["labels"].items():
                self.history.append((name, value))
                self.labels.pop(name, None)
                if value is not None:
                    self.labels[name] = value
            return self.node()
        if path.startswith("/api/v1/nodes?labelSelector=slipway.dev%2Finstalled&"):
            return {"metadata": {}, "items": [self.node()] if "slipway.dev/installed" in self.labels else []}
        if path.startswith("/api/v1/pods?"):
            return {"metadata": {}, "items": self.pods}
        return {"message": f"unknown {path}"}


@unittest.skipUnless(SYSTEMD, "changes the machine's services: test/cgroup2/run -s test/integration/run 2.1 InstallSystemd")
class InstallSystemd(unittest.TestCase):
    """containerd as a service of systemd's. Nothing here outlives the kernel that it runs under."""

    UNIT = "node.service"
    CONFIG = "/etc/node/config.toml"

    def service(self, version):
        """A node with a containerd of this version."""
        self.state = tempfile.mkdtemp()
        self.address = f"/run/node-{version}/containerd.sock"
        os.makedirs("/etc/node", exist_ok=True)
        schema, cri = (2, "io.containerd.grpc.v1.cri") if version == "1.7" else (3, "io.containerd.cri.v1.runtime")
        with open(self.CONFIG, "w") as f:
            f.write(
                f'# The node\'s.\nversion = {schema}\nroot = "{self.state}"  # on a disk\nstate = "/run/node-{version}"\n'
                f'[grpc]\n  address = "{self.address}"\n[plugins."{cri}".containerd.runtimes.runc]\n'
                f'  runtime_type = "io.containerd.runc.v2"\n  options = {{ BinaryName = "{BED}/bin/runc", SystemdCgroup = true }}\n')
        with open(f"/etc/systemd/system/{self.UNIT}", "w") as f:
            f.write(
                f"[Service]\nType=notify\nDelegate=yes\nKillMode=process\nEnvironment=PATH={BED}/{version}:{BED}/bin:/usr/bin:/bin\n"
                # A node that does not come up with a changed configuration, when told so.
                f"ExecStartPre=/bin/sh -c '! test -e /run/refuse || ! grep -q -e slipway.toml -e slipway-v1 {self.CONFIG}'\n"
                f"ExecStart={BED}/{version}/containerd --config {self.CONFIG}\n")
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", self.UNIT)
        self.addCleanup(run, "systemctl", "stop", self.UNIT)

    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.tree = small_tree(f"{self.directory}/tree")
        self.addCleanup(shutil.rmtree, self.directory)

    def slipway(self, *args, before=(), **options):
        return run(*before, f"{self.tree}/bin/slipway", *args, **options)

    def node(self):
        with open(self.CONFIG) as f:
            return f.read(), sorted(os.listdir("/etc/node"))

    def pid(self):
        return run("systemctl", "show", "--value", "--property=MainPID", self.UNIT).stdout.strip()

    def handlers(self):
        info = run(f"{BED}/bin/crictl", "-r", f"unix://{self.address}", "-t", "20s", "info").stdout
        return set(json.loads(info)["config"]["containerd"]["runtimes"])

    def installs(self, version):
        self.service(version)
        unit = ("--containerd-unit", self.UNIT)
        before, pid = self.node(), self.pid()
        told = self.slipway("install", *unit, "--dry-run").stdout
        self.assertIn(f"would restart {self.UNIT}", told)
        self.assertEqual((self.node(), self.pid()), (before, pid))

        # Killed when its files are written but containerd does not know of them: whoever restarts it then is welcome.
        kill = ("strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=sendto", "-e", "inject=sendto:signal=KILL:when=1+")
        killed = self.slipway("install", *unit, before=kill, check=False)
        self.assertEqual((killed.returncode, self.pid()), (-9, pid))
        self.slipway("install", *unit)
        self.assertIn("slipway", self.handlers())
        installed, restarted = self.node(), self.pid()
        self.assertNotEqual(restarted, pid)
        self.assertIn("installed already", self.slipway("install", *unit).stdout)
        self.assertEqual((self.node(), self.pid()), (installed, restarted), "a second run restarts nothing")
        with open("/opt/slipway/state/journal.json") as f:
            self.assertRegex(f.read(), "SystemdCgroup = true")

        self.slipway("uninstall")
        self.assertEqual(self.node(), before)
        self.assertNotIn("slipway", self.handlers())

        with open("/run/refuse", "w"):
            pass
        self.addCleanup(os.remove, "/run/refuse")
        failed = self.slipway("install", *unit, check=False)
        self.assertIn("the node is as it was before", failed.stderr)
        self.assertEqual(self.node(), before)
        self.assertLessEqual({"runc"}, self.handlers())
        self.assertFalse(os.path.exists("/opt/slipway/state/journal.json"))
        return unit, before

    def test_an_old_containerd(self):
        self.installs("1.7")

    def test_a_new_containerd_and_what_goes_wrong(self):
        unit, before = self.installs("2.1")
        # A configuration that this containerd does not read: the handler cannot appear.
        shutil.copy(self.CONFIG, "/etc/node/other.toml")
        before = self.node()
        failed = self.slipway("install", *unit, "--containerd-config", "/etc/node/other.toml", check=False)
        self.assertRegex(failed.stderr, "the handlers did not appear: containerd lists .*runc(.|\n)*as it was before")
        self.assertEqual(self.node(), before)
        os.remove("/etc/node/other.toml")

    def test_a_pod_installs_over_systemds_socket(self):
        self.service("2.1")
        account = "/var/run/secrets/kubernetes.io/serviceaccount"
        os.makedirs(account)
        with open(f"{account}/token", "w") as f:
            f.write("a-token\n")
        api = ApiServer(account)
        api.handlers = lambda: ["", "runc", *(["slipway"] if os.path.exists("/opt/slipway/current") else [])]
        before, pid = self.node(), self.pid()
        environment = ("env", "-i", "KUBERNETES_SERVICE_HOST=127.0.0.1", f"KUBERNETES_SERVICE_PORT={api.port}", "NODE_NAME=n1")
        installer = (
            *environment, f"{self.tree}/bin/slipway", "installer", "--source", self.tree, "--host-dir", "/opt/slipway", "--systemd-dir",
            "/run/systemd", "--metrics-address", "127.0.0.1:9464", "--containerd-unit", self.UNIT)

        def page(path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:9464{path}", timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as e:
                return e.code, e.read().decode()
            except OSError:
                return 0, ""

        @contextlib.contextmanager
        def running():
            with open(f"{self.directory}/log", "w+") as log:
                process = subprocess.Popen(installer, stdout=log, stderr=log)
                try:
                    # As the kubelet probes.
                    wait_for(lambda: page("/readyz")[0] == 200 or process.poll() is not None)
                    log.seek(0)
                    self.said = log.read()
                    self.assertEqual(page("/readyz"), (200, "installed\n"), self.said)
                    yield process
                finally:
                    process.kill()
                    process.wait()

        with running() as process:
            self.assertEqual(api.history, [
                ("slipway.dev/installed", "false"), ("slipway.dev/installed", "true"), ("slipway.dev/version", api.labels["slipway.dev/version"])])
            self.assertIn("slipway", self.handlers())
            self.assertIn(f"restart {self.UNIT}", self.said)
            self.assertRegex(page("/metrics")[1], '(?m)^slipway_info{version="[0-9.]+"} 1\n(.*\n)*slipway_installed 1$')
            self.assertEqual(page("/other")[0], 404)
            installed, restarted = self.node(), self.pid()
            self.assertNotEqual(restarted, pid)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(PATIENCE), 0)
            self.assertEqual(self.node(), installed, "the end of the pod is not that of the installation")
        with running():
            self.assertIn("installed already", self.said)
            self.assertEqual(self.pid(), restarted)
            hook = (*environment, f"{self.tree}/bin/slipway", "installer", "--uninstall-cluster", "--runtime-class", "slipway", "--timeout", f"{PATIENCE}s")
            api.pods = [{"metadata": {"namespace": "a", "name": "b"}, "spec": {"runtimeClassName": "slipway"}}]
            self.assertIn("a/b", run(*hook, check=False).stderr)
            self.assertEqual(self.node(), installed)
            api.pods = []
            self.assertIn("all nodes are clean", run(*hook).stdout)
            self.assertEqual((self.node(), api.labels, page("/readyz")[0]), (before, {}, 503))
        self.assertIn(("slipway.dev/state", "uninstalling"), api.history)
        # A node that cannot be changed says why, and keeps its label.
        with open(self.CONFIG, "a") as f:
            f.write("[broken\n")
        done = run(*installer, "--once", check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn("status 125", done.stderr)
        self.assertEqual(api.labels, {"slipway.dev/installed": "false"})
