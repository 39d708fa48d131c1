"""What else containerd asks of a container that runs: exec, terminals, Pause and Resume, Update."""
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import time

from harness import PATIENCE, ROOT, PodTest

LIMIT = 64 << 20


class TaskTest(PodTest):
    def running(self, *args, example="hello", **fields):
        container = self.pod().start(self.bed.example(example), args or ["sleep"], **fields)
        container.until("Hello" if example == "hello" else "")
        return container

    def exec(self, container, *command, check=False, **options):
        return self.bed.crictl("exec", "-s", container.id, *command, check=check, **options)

    def attached(self, container, *command):
        """An exec that has its own status and streams."""
        return self.bed.ctr("tasks", "exec", "--exec-id", f"e{time.monotonic_ns()}", container.id, *command, check=False)


class Exec(TaskTest):
    def test_output_and_status_are_the_programs(self):
        done = self.attached(self.running(), "/hello.wasm", "exit", "7")
        self.assertEqual((done.returncode, done.stdout.splitlines()[0]), (7, "Hello from Slipway"))

    def test_any_number_of_them_and_the_container_goes_on(self):
        container = self.running()
        for status in range(5):
            self.assertEqual(self.attached(container, "/hello.wasm", "exit", str(status)).returncode, status)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")

    def test_a_missing_program_says_why_there_is_no_shell(self):
        done = self.exec(self.running(), "sh", "-c", "ls")
        self.assertNotEqual(done.returncode, 0)
        for text in ('"sh"', "no such file", "no shell"):
            self.assertIn(text, done.stderr)

    def test_files_environment_and_working_directory_are_the_containers(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"], envs=[{"key": "A", "value": "b"}])
        image = self.bed.example("envfiles")
        other = self.pod().start(image, ["stdin"], stdin=True, envs=[{"key": "A", "value": "b c"}])
        self.attached(other, "/envfiles.wasm", "write", "/here", "text")
        self.assertEqual(self.attached(other, "/envfiles.wasm", "cat", "/here").stdout, "text\n")
        self.assertIn("A=b c", self.exec(other, "/envfiles.wasm", "env").stdout)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")

    def test_it_has_no_privileges_and_lives_in_the_containers_cgroup(self):
        container = self.running()
        exec = subprocess.Popen(
            [f"{os.path.dirname(__file__)}/../bed/bed", "run", self.bed.root, "crictl", "-c", f"{self.bed.root}/crictl.yaml", "exec", container.id, "/hello.wasm", "sleep"],
            stdout=subprocess.PIPE, text=True)
        self.assertEqual(exec.stdout.readline(), "Hello from Slipway\n")
        pids = self.bed.ctr("tasks", "ps", container.id).stdout.split()[2::2]
        main, added = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"], set(pids)
        self.assertEqual(len(added), 2, pids)
        for pid in added:
            status = self.bed.run("cat", f"/proc/{pid}/status").stdout
            self.assertIn("CapEff:\t0000000000000000", status)
            self.assertIn("NoNewPrivs:\t1", status)
            for ns in ("pid", "net", "ipc", "uts"):
                self.assertEqual(self.bed.run("readlink", f"/proc/{pid}/ns/{ns}").stdout, self.bed.run("readlink", f"/proc/{main}/ns/{ns}").stdout)
        # The end of the container is its end too.
        container.stop()
        exec.communicate(timeout=PATIENCE)

    def test_growth_over_the_limit_ends_it_with_137(self):
        container = self.running(linux={"resources": {"memory_limit_in_bytes": LIMIT}, "security_context": {"namespace_options": {"pid": 1}}})
        self.assertEqual(self.attached(container, "/hello.wasm", "alloc", "30").returncode, 0)
        self.assertEqual(self.attached(container, "/hello.wasm", "alloc", "70").returncode, 137)

    def test_an_artefact_image_has_its_one_module_under_any_name(self):
        image = self.bed.image(f"{os.path.realpath(os.path.dirname(__file__))}/../../target/examples/hello.wasm", "execartefact", "--artifact")
        container = self.pod().start(image, ["sleep"])
        container.until("Hello")
        done = self.attached(container, "anything", "exit", "9")
        self.assertEqual(done.returncode, 9, done.stderr)

    def test_an_exported_function_is_called_by_its_name(self):
        module = '(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))) (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/adds.wat", "w") as f:
                f.write(module)
            container = self.pod().start(self.bed.image(f"{d}/adds.wat", "adds"))
        done = self.attached(container, "/adds.wat#add", "2", "40")
        self.assertEqual((done.returncode, done.stdout), (0, "42\n"), done.stderr)

    def test_a_stopped_container_takes_none(self):
        container = self.pod().start(self.bed.example("hello"))
        container.ended()
        self.assertNotEqual(self.exec(container, "/hello.wasm").returncode, 0)


class Terminals(TaskTest):
    def test_an_exec_with_a_terminal_gives_its_output_and_status(self):
        exec = self.interactive("exec", "-it", self.running().id, "/hello.wasm", "a")
        # Its stdin stays open: script would pass the end on to the program's terminal.
        out = exec.stdout.read()
        exec.communicate(timeout=PATIENCE)
        self.assertIn("arguments: a\n", out)

    def test_ctrl_c_ends_the_program_behind_a_terminal(self):
        container = self.running()
        exec = self.interactive("exec", "-it", container.id, "/hello.wasm", "sleep")
        self.assertIn("Hello", exec.stdout.readline())
        exec.stdin.write("\x03")
        exec.stdin.flush()
        self.assertIn("130", exec.communicate(timeout=PATIENCE)[0])
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")

    def test_a_container_with_a_terminal_is_attached_to(self):
        container = self.pod().start(self.bed.example("envfiles"), ["stdin"], tty=True, stdin=True)
        attached = self.interactive("attach", "-it", container.id)
        attached.stdin.write("typed\n")
        attached.stdin.flush()
        # Once as the terminal's echo, once as the program's output.
        line = attached.stdout.readline() + attached.stdout.readline()
        self.assertEqual(line.count("typed"), 2, line)
        attached.stdin.write("\x04")
        attached.stdin.flush()
        self.assertEqual(container.ended()["exitCode"], 0)
        attached.communicate(timeout=PATIENCE)


class Signals(TaskTest):
    """Default actions, although a container's first process has none of its own."""

    def kill(self, container, name):
        self.bed.ctr("tasks", "kill", "-s", name, container.id)

    def test_what_ends_a_process_ends_a_module_with_128_and_its_number(self):
        pod = self.pod()
        image = self.bed.example("hello")
        names = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTERM", "SIGIO", "SIGPROF", "SIGXFSZ", "RTMIN+3", "RTMAX"]
        for name, what in zip(names, itertools.cycle(["spin", "sleep"])):
            with self.subTest(f"{name} while it does {what}"):
                container = pod.start(image, [what])
                container.until("Hello")
                number = {"RTMIN+3": 37, "RTMAX": 64}.get(name) or getattr(signal, name)
                self.kill(container, str(int(number)))
                self.assertEqual(container.ended()["exitCode"], 128 + number)

    def test_others_do_not(self):
        container = self.running("sleep")
        for name in ("SIGCHLD", "SIGURG", "SIGWINCH", "SIGPIPE", "SIGCONT"):
            self.kill(container, name)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")

    def test_stop_and_continue(self):
        container = self.running("spin")
        pid = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"]
        state = lambda: self.bed.run("cut", "-d ", "-f3", f"/proc/{pid}/stat").stdout.strip()
        self.kill(container, "SIGSTOP")
        self.until(lambda: state() == "T")
        self.kill(container, "SIGCONT")
        self.until(lambda: state() == "R")


class Drain(TaskTest):
    """Annotation slipway.dev/stop: drain. The client sends half a request, and the rest when it is told to."""
    CLIENT = (
        "import socket, sys\n"
        "s = socket.create_connection((sys.argv[1], 8080))\n"
        # A connection that the kernel has taken is the server's when it has answered.
        "s.sendall(b'HEAD / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n"
        "head = b''\n"
        "while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)\n"
        "s.sendall(b'GET / HT')\n"
        "print('half', flush=True)\n"
        "sys.stdin.readline()\n"
        "s.sendall(b'TP/1.1\\r\\nHost: a\\r\\n\\r\\n')\n"
        "print(b''.join(iter(lambda: s.recv(4096), b'')), flush=True)\n")

    def draining(self):
        """A server with one client in the middle of its request, sent SIGTERM, that takes no more clients."""
        pod = self.pod(annotations={"slipway.dev/stop": "drain"})
        container = pod.start(self.bed.example("http-server"), annotations={"slipway.dev/stop": "drain"})
        container.until("listening")
        address = pod.ip()
        client = subprocess.Popen(
            [f"{ROOT}/test/bed/bed", "run", self.bed.root, "python3", "-c", self.CLIENT, address], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(client.communicate)
        self.assertEqual(client.stdout.readline(), "half\n")
        self.bed.ctr("tasks", "kill", "-s", "SIGTERM", container.id)
        refused = f"socket.create_connection(('{address}', 8080))"
        self.until(lambda: "ConnectionRefused" in self.bed.python(refused, check=False).stderr)
        return container, client

    def test_sigterm_lets_a_server_finish_its_requests(self):
        container, client = self.draining()
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
        answer, _ = client.communicate("go on\n", timeout=PATIENCE)
        self.assertIn("200 OK", answer)
        self.assertEqual(container.ended()["exitCode"], 0)

    def test_a_second_sigterm_ends_it(self):
        container, client = self.draining()
        self.bed.ctr("tasks", "kill", "-s", "SIGTERM", container.id)
        self.assertEqual(container.ended()["exitCode"], 143)

    def test_a_program_that_listens_nowhere_ends_at_once(self):
        pod = self.pod(annotations={"slipway.dev/stop": "drain"})
        container = pod.start(self.bed.example("hello"), ["sleep"], annotations={"slipway.dev/stop": "drain"})
        container.until("Hello")
        container.stop()
        self.assertEqual(container.status()["exitCode"], 143)


class PauseAndResume(TaskTest):
    def ctr(self, *args):
        return self.bed.ctr("tasks", *args, check=False)

    def state(self, container):
        return re.search(rf"{container.id}\s+\d+\s+(\w+)", self.ctr("ls").stdout)[1]

    def test_a_paused_program_stands_still_and_goes_on(self):
        container = self.running("spin")
        pid = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"]
        ticks = lambda: self.bed.run("cut", "-d ", "-f14,15", f"/proc/{pid}/stat").stdout
        self.assertEqual(self.ctr("pause", container.id).returncode, 0)
        self.assertEqual(self.state(container), "PAUSED")
        before = ticks()
        self.assertEqual([ticks() for _ in range(20)], [before] * 20)
        self.assertEqual(self.ctr("resume", container.id).returncode, 0)
        self.assertEqual(self.state(container), "RUNNING")
        # CPU time passes without an event.
        self.until(lambda: ticks() != before)

    def test_a_sleep_is_not_disturbed(self):
        container = self.running("sleep")
        self.ctr("pause", container.id)
        self.ctr("resume", container.id)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
        container.stop()
        self.assertEqual(container.status()["exitCode"], 143)

    def test_wrong_states_are_errors_that_name_the_state(self):
        container = self.running()
        self.assertIn("not PAUSED", self.ctr("resume", container.id).stderr)
        self.ctr("pause", container.id)
        self.assertIn("not RUNNING", self.ctr("pause", container.id).stderr)

    def test_a_paused_container_is_removed(self):
        container = self.running()
        self.ctr("pause", container.id)
        self.bed.crictl("rm", "-f", container.id)

    def test_a_checkpoint_is_refused_with_a_reason(self):
        self.assertIn("cannot be checkpointed", self.ctr("checkpoint", self.running().id).stderr)


class Update(TaskTest):
    LIMITS = {"resources": {"memory_limit_in_bytes": LIMIT, "cpu_period": 100000, "cpu_quota": 50000}, "security_context": {"namespace_options": {"pid": 1}}}

    def limited(self):
        return self.running(linux=self.LIMITS)

    def test_the_memory_budget_of_a_running_container_moves_both_ways(self):
        container = self.limited()
        fits = lambda megabytes: self.attached(container, "/hello.wasm", "alloc", str(megabytes)).returncode == 0
        self.assertEqual([fits(40), fits(90)], [True, False])
        self.bed.crictl("update", "--memory", str(2 * LIMIT), container.id)
        self.assertEqual([fits(40), fits(90)], [True, True])
        self.bed.crictl("update", "--memory", str(LIMIT // 2), container.id)
        self.assertEqual([fits(10), fits(40)], [True, False])

    def test_a_limit_below_what_is_used_does_not_kill(self):
        # 32 MiB, all of them touched; then it waits.
        module = '''(module
          (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 512)
          (func (export "_start")
            (memory.fill (i32.const 4096) (i32.const 1) (i32.const 33000000))
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 3600000000000))
            (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))'''
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/holds.wat", "w") as f:
                f.write(module)
            image = self.bed.image(f"{d}/holds.wat", "holds")
        container = self.pod().start(image, linux=self.LIMITS)
        usage = lambda: int(json.loads(self.bed.crictl("stats", "-o", "json", "--id", container.id).stdout)["stats"][0]["memory"]["workingSetBytes"]["value"])
        # Memory is used without an event.
        self.until(lambda: usage() > 30 << 20)
        self.bed.crictl("update", "--memory", str(16 << 20), container.id)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
        self.assertGreater(usage(), 30 << 20)
        self.bed.crictl("update", "--memory", str(LIMIT), container.id)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")

    def test_cpu_limits_move(self):
        container = self.limited()
        self.bed.crictl("update", "--cpu-quota", "20000", "--cpu-share", "512", container.id)
        cgroup = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["runtimeSpec"]["linux"]["cgroupsPath"]
        if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            self.assertEqual(open(f"/sys/fs/cgroup{cgroup}/cpu.max").read().split()[0], "20000")
        else:
            self.assertEqual(open(f"/sys/fs/cgroup/cpu{cgroup}/cpu.cfs_quota_us").read().strip(), "20000")
            self.assertEqual(open(f"/sys/fs/cgroup/cpu{cgroup}/cpu.shares").read().strip(), "512")


class Quota(TaskTest):
    """A spinning program under 100m; `make bench` has the figure."""

    def metrics(self, container):
        """CPU time in nanoseconds, periods with a quota, and those in which it was used up."""
        cpu = json.loads(self.bed.ctr("tasks", "metrics", "--format", "json", container.id).stdout)["cpu"]
        # A zero is left out there.
        if "throttling" in cpu:
            throttling = cpu["throttling"]
            return cpu["usage"]["total"], throttling.get("periods", 0), throttling.get("throttled_periods", 0)
        return cpu["usage_usec"] * 1000, cpu.get("nr_periods", 0), cpu.get("nr_throttled", 0)

    def spinning(self):
        container = self.running("spin", linux={"resources": {"cpu_period": 100000, "cpu_quota": 10000}, "security_context": {"namespace_options": {"pid": 1}}})
        # The start has used the first periods up.
        self.after(container, periods=2)
        return container

    def after(self, container, periods):
        """The metrics once so many periods are over."""
        end = self.metrics(container)[1] + periods

        def over():
            metrics = self.metrics(container)
            return metrics[1] >= end and metrics

        # A period ends without an event.
        return self.until(over, f"{periods} periods of 100 ms are not over")

    def test_it_uses_a_tenth_of_a_cpu_and_no_more(self):
        container = self.spinning()
        used, started, _ = self.metrics(container)
        used_later, ended, _ = self.after(container, periods=40)
        # Of each period that it ran in. On a busy machine it may get less; the next period may have begun when the metrics are read.
        share = (used_later - used) / ((ended - started + 1) * 100e6)
        self.assertGreater(share, 0)
        self.assertLess(share, 0.15)

    def test_throttling_is_in_the_metrics(self):
        container = self.spinning()
        _, periods, throttled = self.metrics(container)
        _, periods_later, throttled_later = self.after(container, periods=10)
        self.assertGreater(throttled_later, throttled)
        self.assertLessEqual(throttled_later - throttled, periods_later - periods)
