"""slipway install, uninstall and installer: what they do to a node, and that they can be killed at any step."""
import contextlib
import glob
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

from harness import BED, PATIENCE, ROOT, TREE, USER_MODE_LINUX, KillTest, PodTest, run, wait_for

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


class Install(KillTest):
    """Without systemd: somebody else restarts containerd."""

    def setUp(self):
        super().setUp()
        self.directory = tempfile.mkdtemp(dir=self.bed.root)
        self.config = f"{self.bed.root}/config.toml"
        self.opt, self.other = f"{self.directory}/opt", f"{self.directory}/other"
        self.found = self.node()[0]

    def tearDown(self):
        for opt in (self.opt, self.other):
            self.slipway("uninstall", "--force", "--purge", opt=opt, check=False)
        # Other tests go on with the bed as it was made.
        with open(self.config, "w") as f:
            f.write(self.found)
        self.restart()
        shutil.rmtree(self.directory)
        super().tearDown()

    def slipway(self, verb, *args, tree=TREE, before=(), opt=None, **options):
        return self.bed.run(
            "env", f"SLIPWAY_ROOT={tree}", *before, f"{tree}/bin/slipway", verb, "--install-dir", opt or self.opt, "--no-restart", *args, **options)

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
        # One by one: a program that ends meanwhile, as the exec's may, is none of those that run.
        programs = self.bed.run("sh", "-c", "for process in /proc/[0-9]*; do readlink $process/exe || :; done").stdout
        self.assertIn(f"{self.opt}/{old}/", programs)
        self.assertNotIn(f"{self.opt}/{new}/", programs)

        refused = self.slipway("uninstall", check=False)
        self.assertEqual(refused.returncode, 125)
        self.assertIn(self.pods[0].sandbox, refused.stderr)
        self.assertEqual(self.node(), installed)
        self.pods.pop().remove()
        self.slipway("uninstall", "--purge")
        self.assertEqual((self.node(), os.path.exists(self.opt)), (before, False))

    def test_nothing_is_compiled_any_more_after_uninstalling(self):
        self.slipway("install")
        self.restart()
        with self.background_compile() as (_, _, _, pod):
            self.pods.remove(pod)
            pod.remove()
            self.disappears("containerd-shim-slipway-v1")
            queue = os.stat(f"{self.bed.root}/cache/queue-2").st_ino
            mine = glob.glob(f"/sys/fs/cgroup/**/slipway-compile-*-{queue}", recursive=True)
            self.assertTrue(mine)
            self.slipway("uninstall", "--purge")
            self.assertEqual(self.pids("slipway-queue") + self.pids("slipway-aot"), [])
        self.assertEqual([path for path in mine if os.path.exists(path)], [])
        self.assertFalse(os.path.exists(f"{self.bed.root}/cache"))

    def test_an_alias_that_pods_run_by_stays_until_they_have_ended(self):
        before = self.node()
        self.slipway("install", "--alias", "wasmedge")
        self.restart()
        container = self.pod("wasmedge").start(self.bed.example("hello"), ["sleep"])
        self.assertIn("handler wasmedge stays until its pods have ended", self.slipway("install").stdout)
        self.restart()
        self.assertLessEqual({"slipway", "wasmedge"}, self.handlers())
        # As the kubelet does with one that has ended.
        self.bed.crictl("stop", "-t", "0", container.id)
        self.pods[0].start(self.bed.example("hello"), ["sleep"])
        self.pods.pop().remove()
        self.slipway("install")
        self.restart()
        self.assertNotIn("wasmedge", self.handlers())
        self.slipway("uninstall", "--purge")
        self.assertEqual(self.node(), before)

    def test_another_directory_takes_the_place_of_the_first(self):
        """And back again, as by helm upgrade and rollback; taken away from there, the node is as it was."""
        before = self.node()
        tree = small_tree(f"{self.directory}/tree")
        self.slipway("install", "--alias", "wasmedge", tree=tree)
        first = self.node()
        for opt, old, alias in ((self.other, self.opt, ()), (self.opt, self.other, ("--alias", "wasmedge"))):
            self.restart()
            self.slipway("install", *alias, tree=tree, opt=opt)
            self.assertTrue(os.path.exists(f"{old}/current"), "containerd still starts the shim from there")
            self.restart()
            self.slipway("install", *alias, tree=tree, opt=opt)
            self.assertEqual(("wasmedge" in self.handlers(), "slipway" in self.handlers()), (bool(alias), True))
            self.assertFalse(os.path.exists(old), "nothing is left where nothing looks any more")
            self.assertNotIn(old, str(self.node()))
        self.assertEqual(self.node(), first)
        self.slipway("install", tree=tree, opt=self.other)
        self.slipway("uninstall", "--purge", tree=tree, opt=self.other)
        self.assertEqual((self.node(), os.path.exists(self.opt), os.path.exists(self.other)), (before, False, False))

    def test_what_was_installed_elsewhere_is_taken_away_too(self):
        """As where an installation in a new directory has failed, and the user gives up."""
        before = self.node()
        tree = small_tree(f"{self.directory}/tree")
        self.slipway("install", tree=tree)
        self.restart()
        self.slipway("uninstall", "--purge", tree=tree, opt=self.other)
        self.assertEqual((self.node(), os.path.exists(self.opt), os.path.exists(self.other)), (before, False, False))

    def test_another_directory_when_the_first_one_was_removed_by_hand(self):
        before = self.node()
        tree = small_tree(f"{self.directory}/tree")
        self.slipway("install", tree=tree)
        shutil.rmtree(self.opt)
        self.slipway("install", tree=tree, opt=self.other)
        self.slipway("uninstall", "--purge", tree=tree, opt=self.other)
        text, drop_ins = self.node()
        self.assertNotIn(self.directory, text)
        # Who has made the directory of drop-ins, nobody knows any more; and of the bed's own handler, where 1.7's file had it.
        self.assertEqual([path for path, content in drop_ins.items() if content is not None], [])
        if self.bed.version != "1.7":
            self.assertEqual(text, before[0])

    def test_taking_away_touches_nothing_while_containerd_refuses_its_configuration(self):
        """What it runs with still works: a restart would be its end."""
        self.slipway("install", tree=small_tree(f"{self.directory}/tree"))
        self.restart()
        good = self.node()[0]
        try:
            with open(self.config, "a") as f:
                f.write("[timeouts]\n  a = 7\n")
            broken = self.node()
            refused = self.slipway("uninstall", check=False)
            self.assertEqual(refused.returncode, 125, refused.stdout)
            self.assertRegex(refused.stderr, "containerd refuses .*(.|\n)*nothing was changed")
            self.assertEqual(self.node(), broken)
            self.assertIn("slipway", self.handlers())
        finally:
            with open(self.config, "w") as f:
                f.write(good)

    def test_the_caches_bound_reaches_the_shims(self):
        """As an option of the handler, which each containerd passes in its own way."""
        self.slipway("install", "--cache-size", "1Ki", tree=TREE)
        self.restart()
        cached = lambda: [row["origin"] for row in self.cache() if row["kind"] == "artefact"]
        for name in ("hello", "tcp-echo"):
            self.pod("slipway").start(self.bed.example(name), ["sleep"])
            # A start does not wait for a long compile to its end.
            self.until(lambda: f"/{name}.wasm" in cached())
            # What is in use stays, whatever the bound.
            self.pods.pop().remove()
        self.assertEqual(cached(), ["/tcp-echo.wasm"])

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

    def test_a_move_that_is_killed_can_be_gone_on_with_or_taken_back(self):
        if self.bed.version != "2.1":
            self.skipTest("the steps are the same with each containerd")
        before = self.node()
        tree = small_tree(f"{self.directory}/tree")
        self.slipway("install", tree=tree)
        for steps, step in enumerate(self.each_step("install", tree=tree, opt=self.other)):
            with self.subTest(step):
                self.bed.run("containerd", "--config", self.config, "config", "dump")
                if steps % 2:
                    self.slipway("install", tree=tree, opt=self.other)
                    self.assertNotIn(self.opt + "/", str(self.node()))
                # containerd was not started again: whose handlers it has, the files say.
                self.slipway("uninstall", "--purge", tree=tree, opt=self.other)
                self.assertEqual((self.node(), os.path.exists(self.opt), os.path.exists(self.other)), (before, False, False))
                self.slipway("install", tree=tree)

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
    """As much of a Kubernetes API server as the installer calls: one Node, the ConfigMap with the wish, RuntimeClasses and pods."""

    WISH = "/api/v1/namespaces/ns/configmaps/slipway-wish"

    def __init__(self, directory):
        self.labels, self.history, self.pods, self.classes = {}, [], [], {"slipway": "slipway"}
        self.wish = {"install": ""}
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
                body = server.answer(self.path, patch)
                status = body.get("code", 200)
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
        def merged(into, changes):
            for name, value in changes.items():
                into.pop(name, None)
                if value is not None:
                    into[name] = value

        if path == "/api/v1/nodes/n1":
            labels = patch["metadata"]["labels"] if patch else {}
            self.history.extend(labels.items())
            merged(self.labels, labels)
            return self.node()
        if path == self.WISH and self.wish is not None:
            merged(self.wish, patch["data"] if patch else {})
            return {"metadata": {"name": "slipway-wish"}, "data": self.wish}
        if selected := re.match(r"/api/v1/nodes\?labelSelector=slipway.dev%2F(\w+)&", path):
            return {"metadata": {}, "items": [self.node()] if f"slipway.dev/{selected[1]}" in self.labels else []}
        if path.startswith("/apis/node.k8s.io/v1/runtimeclasses?"):
            return {"metadata": {}, "items": [{"metadata": {"name": name}, "handler": handler} for name, handler in self.classes.items()]}
        if path.startswith("/api/v1/pods?"):
            return {"metadata": {}, "items": self.pods}
        return {"code": 404, "message": f"unknown {path}"}

    def pod(self, runtime_class):
        return {"metadata": {"namespace": "a", "name": "b"}, "spec": {"runtimeClassName": runtime_class}}


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
        self.addCleanup(self.emptied)

    def emptied(self):
        """The next test finds a node as this one has."""
        for opt in ("/opt/slipway", "/opt/other"):
            self.slipway("uninstall", "--force", "--purge", "--no-restart", "--install-dir", opt, check=False)
            shutil.rmtree(opt, ignore_errors=True)
        shutil.rmtree("/etc/node")

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
        self.a_handler_of_the_nodes_own(unit)

        with open("/run/refuse", "w"):
            pass
        self.addCleanup(os.remove, "/run/refuse")
        failed = self.slipway("install", *unit, check=False)
        self.assertIn("the node is as it was before", failed.stderr)
        self.assertEqual(self.node(), before)
        self.assertLessEqual({"runc"}, self.handlers())
        self.assertFalse(os.path.exists("/opt/slipway/state/journal.json"))
        return unit, before

    def a_handler_of_the_nodes_own(self, unit):
        """It was there before and is there again, under the same name."""
        text = self.node()[0]
        table = re.search(r"\[(plugins.*\.runtimes)\.runc\]", text).group(1)
        with open(self.CONFIG, "a") as f:
            f.write(f'[{table}.slipway]\n  runtime_type = "io.containerd.slipway.v1"\n')
        before = self.node()
        self.slipway("install", *unit)
        self.slipway("uninstall")
        self.assertEqual(self.node(), before)
        self.assertIn("slipway", self.handlers())
        with open(self.CONFIG, "w") as f:
            f.write(text)
        run("systemctl", "restart", self.UNIT)

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

    def cluster(self):
        """A Kubernetes around the node: its API server, and the commands of an installer and of the uninstaller."""
        account = "/var/run/secrets/kubernetes.io/serviceaccount"
        os.makedirs(account, exist_ok=True)
        with open(f"{account}/token", "w") as f:
            f.write("a-token\n")
        self.api = api = ApiServer(account)
        api.handlers = self.told
        self.asked = (None, [])
        program = (
            "env", "-i", "KUBERNETES_SERVICE_HOST=127.0.0.1", f"KUBERNETES_SERVICE_PORT={api.port}", "NODE_NAME=n1",
            f"{self.tree}/bin/slipway", "installer", "--wish", "ns/slipway-wish")
        self.hook = (*program, "--uninstall-cluster", "--take-back", "helm rollback slipway 3")
        self.installer = (
            *program, "--source", self.tree, "--systemd-dir", "/run/systemd", "--metrics-address", "127.0.0.1:9464", "--purge",
            "--containerd-unit", self.UNIT)

    def told(self):
        """The handlers that the kubelet tells of: those of the containerd that it has asked last."""
        pid = self.pid()
        if pid != self.asked[0]:
            with contextlib.suppress(AssertionError):  # it is not there yet
                self.asked = (pid, sorted(self.handlers()))
        return self.asked[1]

    def page(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:9464{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def ready(self):
        return self.page("/readyz")[0] == 200

    def until(self, condition):
        # As the kubelet probes.
        wait_for(condition, self.said)

    def said(self):
        """What the installer that runs, or that ran last, has said."""
        with open(f"{self.directory}/log") as log:
            return log.read()

    @contextlib.contextmanager
    def running(self, opt="/opt/slipway"):
        with open(f"{self.directory}/log", "w") as log:
            process = subprocess.Popen((*self.installer, "--host-dir", opt, "--install-dir", opt), stdout=log, stderr=log)
        try:
            self.until(lambda: self.page("/healthz")[0] == 200)
            yield process
        finally:
            process.kill()
            process.wait()

    def installed(self):
        return self.api.labels.get("slipway.dev/installed") == "true" and "slipway" in self.handlers()

    def clean(self):
        return self.api.labels == {} and not os.path.exists("/opt/slipway")

    def test_a_pod_installs_over_systemds_socket(self):
        self.service("2.1")
        self.cluster()
        api, before, pid = self.api, self.node(), self.pid()
        with self.running() as process:
            self.until(self.ready)
            self.assertEqual(api.history, [
                ("slipway.dev/state", "installing"), ("slipway.dev/installed", "true"), ("slipway.dev/state", "installed"),
                ("slipway.dev/version", api.labels["slipway.dev/version"])])
            self.assertIn("slipway", self.handlers())
            self.assertIn(f"restart {self.UNIT}", self.said())
            self.assertRegex(self.page("/metrics")[1], '(?m)^slipway_info{version="[0-9.]+"} 1\n(.*\n)*slipway_installed 1$')
            self.assertEqual(self.page("/other")[0], 404)
            installed, restarted = self.node(), self.pid()
            self.assertNotEqual(restarted, pid)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(PATIENCE), 0)
            self.assertEqual(self.node(), installed, "the end of the pod is not that of the installation")
        with self.running():
            self.until(self.ready)
            self.assertIn("installed already", self.said())
            self.assertEqual(self.pid(), restarted)
            # Of a class of the user's own: its handler counts, not its name.
            api.classes["own"] = "slipway"
            api.pods = [api.pod("own")]
            refused = run(*self.hook, check=False)
            self.assertIn("a/b", refused.stderr)
            self.assertIn("helm rollback slipway 3", refused.stderr)
            self.assertEqual((self.node(), api.wish), (installed, {"install": ""}), "nothing was touched")
            api.pods = [api.pod(None)]
            self.assertIn("all nodes are clean", run(*self.hook).stdout)
            self.assertEqual((self.node(), api.labels, self.page("/readyz")[0], self.clean()), (before, {}, 503, True))
        self.assertIn(("slipway.dev/state", "uninstalling"), api.history)
        # Whoever comes late finds the wish, or none.
        for wish in ({"uninstall": ""}, None):
            api.wish = wish
            with self.running():
                self.until(lambda: "wish: " in self.said())
            self.assertEqual((self.node(), api.labels, self.clean()), (before, {}, True))
            self.assertIn("does not ask for Slipway", run(*self.installer, "--once", check=False).stderr)

    def test_an_uninstallation_that_is_taken_back_cleans_nothing_later(self):
        self.service("2.1")
        self.cluster()
        with self.running():
            self.until(self.ready)
            # Something hinders the node, as a pod would.
            holder = subprocess.Popen(["flock", "/opt/slipway/state/lock", "sleep", "1000"], start_new_session=True)
            try:
                self.until(lambda: "is locked by" in self.slipway("uninstall", check=False).stderr)
                failed = run(*self.hook, "--timeout", "1s", check=False)
                self.assertRegex(failed.stderr, "not clean after 1 s: n1.*helm rollback slipway 3")
                self.until(lambda: self.api.labels["slipway.dev/installed"] == "false")
                # What helm rollback and kubectl apply do.
                self.api.wish["install"] = ""
                self.until(lambda: "wish: Install\n" in self.said().split("wish: Uninstall")[-1])
            finally:
                os.killpg(holder.pid, signal.SIGKILL)
                holder.wait()
            self.until(self.ready)
            self.assertTrue(self.installed(), self.api.labels)

    def test_an_installer_that_is_killed_in_the_middle_is_followed_by_one_that_knows(self):
        self.service("2.1")
        self.cluster()
        before = self.node()
        with self.running() as process:
            self.until(lambda: "slipway.dev/state" in self.api.labels)
            self.api.wish = {"uninstall": ""}
            process.kill()
        with self.running():
            self.until(self.clean)
        self.assertEqual(self.node(), before)

    def test_a_failing_check_takes_no_working_node_out_of_service(self):
        self.service("2.1")
        self.cluster()
        with self.running():
            self.until(self.ready)
        with open(self.CONFIG) as f:
            good = f.read()
        # containerd runs with what it has read.
        with open(self.CONFIG, "a") as f:
            f.write("[broken\n")
        with self.running():
            self.until(lambda: "status 125" in self.said())
            self.assertFalse(self.ready())
            self.assertRegex(self.page("/metrics")[1], "(?m)^slipway_installed 1$")
            self.assertTrue(self.installed(), self.api.labels)
            # Neither does taking it away.
            self.api.wish = {"uninstall": ""}
            self.until(lambda: "nothing was changed" in self.said())
            self.assertIn("slipway", self.handlers())
            self.api.wish = {"install": ""}
            with open(self.CONFIG, "w") as f:
                f.write(good)
            self.until(self.ready)
            self.assertTrue(self.installed(), self.api.labels)

    def test_a_first_installation_that_fails_leaves_nothing_when_it_is_taken_away(self):
        self.service("2.1")
        self.cluster()
        with open(self.CONFIG, "a") as f:
            f.write("[broken\n")
        before = self.node()
        done = run(*self.installer, "--host-dir", "/opt/slipway", "--once", check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn("status 125", done.stderr)
        self.assertEqual(self.api.labels, {"slipway.dev/state": "installing"})
        self.assertTrue(os.path.exists("/opt/slipway/versions"))
        self.api.wish = {"uninstall": ""}
        with self.running():
            self.until(self.clean)
        self.assertEqual(self.node(), before)

    def test_another_install_directory_by_new_values_and_back(self):
        self.service("2.1")
        self.cluster()
        before = self.node()
        for opt, other in (("/opt/slipway", "/opt/other"), ("/opt/other", "/opt/slipway"), ("/opt/slipway", "/opt/other")):
            with self.running(opt):
                self.until(self.ready)
                self.assertTrue(self.installed(), self.api.labels)
                self.assertFalse(os.path.exists(f"{other}/current"))
        with self.running("/opt/other"):
            self.assertIn("all nodes are clean", run(*self.hook).stdout)
        self.assertEqual((self.node(), os.path.exists("/opt/slipway"), os.path.exists("/opt/other")), (before, False, False))
