"""Limits of a pod as budgets of the program: memory, CPU time, processes."""
import concurrent.futures
import contextlib
import json
import os
import re
import tempfile

from harness import EXAMPLES, TREE, Watched

MIB = 1 << 20
POLL = '(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))'
EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
WRITE = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'

# Asks for a mebibyte every 10 ms for ever, and says `granted` or `refused` where the answer is another than before.
GROWS = rf'''(module {POLL} {WRITE}
  (memory (export "memory") 1)
  (data (i32.const 16) "\01") (data (i32.const 24) "\80\96\98\00") ;; poll_oneoff's subscription at 0: clock 1, 10 ms
  (data (i32.const 256) "granted\n") (data (i32.const 272) "refused\n")
  (func (export "_start") (local $text i32) (local $said i32)
    (loop $again
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
      (local.set $text (select (i32.const 272) (i32.const 256) (i32.eq (memory.grow (i32.const 16)) (i32.const -1))))
      (if (i32.ne (local.get $text) (local.get $said)) (then
        (local.set $said (local.get $text))
        (i32.store (i32.const 512) (local.get $text)) (i32.store (i32.const 516) (i32.const 8))
        (drop (call $write (i32.const 1) (i32.const 512) (i32.const 1) (i32.const 520)))))
      (br $again))))'''

# Is refused a gibibyte in one step, and ends well.
LIVES_WITH_IT = f'''(module {EXIT} (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.ne (memory.grow (i32.const 16384)) (i32.const -1)))))'''

# Asks the engine for so much that no limit of the cgroup is needed to refuse it: eight gigabytes, and none for the module's memory.
TABLE = f'''(module {EXIT} (memory (export "memory") 1) (table 1 funcref)
  (func (export "_start") (drop (table.grow (ref.null func) (i32.const 1000000000))) (call $exit (i32.const 1))))'''

# Touches as many mebibytes as its arguments have bytes, its name included, and waits for an hour.
FILLS = rf'''(module {POLL}
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\01") (data (i32.const 24) "\00\a0\b8\30\46\03")
  (func (export "_start")
    (drop (call $sizes (i32.const 256) (i32.const 260)))
    (drop (memory.grow (i32.mul (i32.load (i32.const 260)) (i32.const 16))))
    (memory.fill (i32.const 65536) (i32.const 1) (i32.mul (i32.load (i32.const 260)) (i32.const 1048576)))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))'''


# The bytes of 40 MiB for the engine's table, and none for the module's memory: the kernel's to end where they are too many.
BIG_TABLE = f'''(module {EXIT} (memory (export "memory") 1) (table 1 funcref)
  (func (export "_start") (call $exit (i32.ne (table.grow (ref.null func) (i32.const {40 * MIB // 16})) (i32.const 1)))))'''


def leb(number):
    """A number as WebAssembly's binary format has it, unsigned."""
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + leb(number >> 7)


def section(number, *items):
    body = leb(len(items)) + b"".join(items)
    return bytes([number]) + leb(len(body)) + body


def big_module(data):
    """A module with so many bytes of data that the program does not use, but the engine holds; as text it would be too large. It takes
    a mebibyte after the other until it is refused one, and ends by a trap then."""
    body = bytes.fromhex(
        "01017f"        # a local: i32
        "0340"          # loop
        "41104000"      # memory.grow (i32.const 16)
        "2200417f46"    # its result is -1
        "0440000b"      # if unreachable end
        "2000411074"    # the result as an address
        "4101418080c000"
        "fc0b00"        # memory.fill with 1, for 1048576 bytes
        "0c000b0b")     # again
    return b"\0asm\1\0\0\0" + b"".join([
        section(1, b"\x60\0\0"), section(3, b"\0"), section(5, b"\0\1"), section(7, b"\6memory\2\0", b"\6_start\0\0"),
        section(10, leb(len(body)) + body), section(11, b"\1" + leb(data) + bytes(range(256)) * (data // 256))])


class BudgetTest(Watched):
    def module(self, name, text, *flags):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/{name}.wat", "w") as f:
                f.write(text)
            return self.bed.image(f"{d}/{name}.wat", name, *flags)

    def big(self, mebibytes):
        name = f"big{mebibytes}"
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/{name}.wasm", "wb") as f:
                f.write(big_module(mebibytes * MIB))
            return self.bed.image(f"{d}/{name}.wasm", name)

    def ended_with_message(self, image, limit, args=(), pod=None):
        """The status of a limited container that has ended, and its termination message."""
        with tempfile.NamedTemporaryFile() as file:
            mounts = [{"container_path": "/dev/termination-log", "host_path": file.name}]
            return self.limited(image, limit, args, pod, mounts=mounts).ended(), file.read().decode()

    def exec(self, container, *command, id="e"):
        return self.bed.ctr("tasks", "exec", "--exec-id", id, container.id, *command, check=False)

    @contextlib.contextmanager
    def running_exec(self, container, *command):
        """An exec that does not end by itself: it is killed when the block ends."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            ended = pool.submit(self.exec, container, *command, id="runs")
            try:
                yield
            finally:
                self.bed.ctr("tasks", "kill", "--exec-id", "runs", "--signal", "SIGKILL", container.id, check=False)
                self.assertEqual(ended.result().returncode, 137)

    def limited(self, image, limit, args=(), pod=None, **fields):
        linux = {"resources": {"memory_limit_in_bytes": limit}, "security_context": {"namespace_options": {"pid": 1}}}
        return (pod or self.pod()).start(image, args, linux=linux, **fields)

    def top(self, container):
        rows = json.loads(self.bed.run(f"{TREE}/bin/slipway", "top", "--json").stdout)
        return next(row for row in rows if row["id"] == container.id)


class Memory(BudgetTest):
    def test_the_budget_of_a_running_module_moves_both_ways(self):
        container = self.limited(self.module("grows", GROWS), 16 * MIB)
        container.until("refused")
        self.bed.crictl("update", "--memory", str(32 * MIB), container.id)
        container.until("refused\ngranted\nrefused")
        row = self.top(container)
        self.assertEqual((row["budget_bytes"], row["state"]), (32 * MIB, "running"))
        self.assertGreater(row["refused"], 0)
        self.assertGreater(row["used_bytes"] + row["held_bytes"], 30 * MIB)
        self.assertLess(row["used_bytes"] + row["held_bytes"], 32 * MIB)
        self.assertGreater(row["held_bytes"], 0)
        self.bed.crictl("update", "--memory", str(8 * MIB), container.id)
        # No text tells that nothing more is granted: more refusals do.
        refused = self.top(container)["refused"]
        self.until(lambda: self.top(container)["refused"] > refused)
        after = self.top(container)
        self.assertEqual((after["budget_bytes"], after["used_bytes"], after["peak_bytes"]), (8 * MIB, row["used_bytes"], row["peak_bytes"]))
        self.assertEqual(container.text(), "granted\nrefused\ngranted\nrefused")
        container.stop()
        # What it did with the refusals, it has survived.
        self.assertEqual((container.status()["exitCode"], container.status()["reason"]), (143, "Error"))

    def test_every_container_of_a_pod_has_its_own(self):
        pod = self.pod()
        image = self.module("grows", GROWS)
        containers = [self.limited(image, limit * MIB, pod=pod) for limit in (8, 24)]
        for container in containers:
            container.until("refused")
        for container, limit in zip(containers, (8, 24)):
            row = self.top(container)
            # The next mebibyte had no room beside what the engine holds.
            self.assertLess((limit - 1.1) * MIB, row["used_bytes"] + row["held_bytes"], limit)
            self.assertLess(row["used_bytes"] + row["held_bytes"], limit * MIB)

    def test_what_the_engine_holds_for_a_big_module_comes_off_the_programs_budget(self):
        image = self.big(12)
        # The engine holds its data twice; the limit is met by the program, and by the cgroup never.
        for limit in (48, 96):
            status, message = self.ended_with_message(image, limit * MIB)
            self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"), message)
            wanted, told, held = map(int, re.match(
                r"memory budget exceeded: the program needed (\d+) bytes of memory, its limit is (\d+) bytes, "
                r"of which the engine and the container's other processes hold (\d+)", message).groups())
            self.assertEqual(told, limit * MIB)
            self.assertGreater(held, 24 * MIB)
            self.assertGreater(wanted + held, limit * MIB)
            self.assertLess(wanted + held, (limit + 2) * MIB)

    def test_a_program_that_fills_its_budget_is_refused_and_not_killed(self):
        image = self.big(0)
        for limit in (8, 32, 192):
            status, message = self.ended_with_message(image, limit * MIB)
            self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"), message)
            self.assertIn("memory budget exceeded", message)

    def test_an_exec_has_what_the_container_has_left(self):
        # What it fills is as much as its arguments are long, its name among them.
        image = self.module("fill2", FILLS, "--copy", f"{EXAMPLES}/hello.wasm:/hello.wasm")
        container = self.limited(image, 64 * MIB, ["x" * 28])
        self.until(lambda: self.top(container)["used_bytes"] > 40 * MIB)
        fits = lambda mebibytes: self.exec(container, "/hello.wasm", "alloc", str(mebibytes)).returncode == 0
        refused = self.exec(container, "/fill2.wat", "x" * 18)
        self.assertEqual(refused.returncode, 137, refused.stderr)
        self.assertIn(f"its limit is {64 * MIB} bytes, of which the engine and the container's other processes hold 4", refused.stderr)
        # Each has it again when the one before has ended, however that was.
        self.assertEqual([fits(14), fits(30), fits(14)], [True, False, True])
        with self.running_exec(container, "/fill2.wat", "x" * 3):
            self.until(lambda: self.top(container)["used_bytes"] > 54 * MIB)
            self.assertFalse(fits(14))
        self.assertTrue(fits(14))
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
        self.bed.crictl("stop", "-t", "5", container.id)
        # What execs were refused is no reason of the container's.
        self.assertEqual((container.status()["exitCode"], container.status()["reason"]), (143, "Error"))

    def test_a_program_that_lives_with_a_refusal_is_completed(self):
        status = self.limited(self.module("lives", LIVES_WITH_IT), 64 * MIB).ended()
        self.assertEqual((status["exitCode"], status["reason"]), (0, "Completed"))

    def test_a_modules_own_maximum_is_no_refusal_of_the_budgets(self):
        module = f'''(module {EXIT} (memory (export "memory") 1 2) (func (export "_start")
          (drop (memory.grow (i32.const 1))) (call $exit (select (i32.const 9) (i32.const 8) (i32.eq (memory.grow (i32.const 1)) (i32.const -1))))))'''
        status = self.limited(self.module("bounded", module), 64 * MIB).ended()
        self.assertEqual((status["exitCode"], status["reason"]), (9, "Error"))

    def test_what_the_engine_takes_for_a_program_is_bounded_too(self):
        message = tempfile.NamedTemporaryFile()
        container = self.limited(
            self.module("table", TABLE), 64 * MIB, mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}])
        status = container.ended()
        self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"), container.text())
        text = message.read().decode()
        self.assertIn("the engine has no memory left", text)
        self.assertIn(str(64 * MIB), text)

    def test_a_limit_below_the_modules_minimum_is_told_with_both_numbers_at_every_start(self):
        image = self.module("minimum", '(module (memory 600) (memory 600) (func (export "_start")))')
        pod = self.pod()
        for start in ("compiled", "found in the cache"):
            with self.assertRaises(AssertionError, msg=start) as refused:
                self.limited(image, 64 * MIB, pod=pod)
            self.assertIn(f"at least {1200 * 65536} bytes of memory, the container's limit is {64 * MIB} bytes", str(refused.exception))
            self.assertEqual(self.limited(image, 128 * MIB, pod=pod).ended()["exitCode"], 0)

    def test_without_a_limit_there_is_none(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        self.assertIsNone(self.top(container)["budget_bytes"])


class KernelKills(BudgetTest):
    """Several guests together, or a pod without limits of its containers, may use more than is there: the kernel chooses."""

    def test_an_exec_goes_first_and_its_end_is_not_the_containers(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/table.wat", "w") as f:
                f.write(BIG_TABLE)
            image = self.module("fills-table", FILLS, "--copy", f"{d}/table.wat:/table.wat")
        with self.watched() as tasks:
            container = self.limited(image, 64 * MIB, ["x" * 20])
            self.until(lambda: self.top(container)["used_bytes"] > 30 * MIB)
            exec = self.exec(container, "/table.wat")
            self.assertEqual(exec.returncode, 137, exec.stderr)
            self.until(lambda: any(topic == "exit" and fields.get("id") == "e" for topic, fields in tasks()))
            self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
            self.assertNotIn("oom", [topic for topic, _ in tasks()])
        self.bed.crictl("stop", "-t", "5", container.id)
        self.assertEqual((container.status()["exitCode"], container.status()["reason"]), (143, "Error"))

    def test_the_kernel_is_told_to_take_an_exec_before_the_program(self):
        container = self.limited(self.module("fills", FILLS), 64 * MIB, ["x"])
        # The bed's containerd starts its shims with whatever score it has itself.
        score = lambda pid: self.bed.run("cat", f"/proc/{pid}/oom_score_adj", check=False).stdout.strip()
        main = container.info()["pid"]
        others = lambda: [pid for pid in self.bed.ctr("tasks", "ps", container.id).stdout.split() if pid.isdigit() and int(pid) != main]
        with self.running_exec(container, "/fills.wat", "x"):
            # It goes on as another process when it joins the container's pid namespace.
            self.until(lambda: [score(pid) for pid in others()] == [str(min(1000, int(score(main)) + 1000))])

    def test_a_container_killed_while_it_loads_is_oomkilled_with_the_limit_at_each_start(self):
        image, pod = self.big(24), self.pod()
        for _ in range(2):
            status, message = self.ended_with_message(image, 32 * MIB, pod=pod)
            self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"), message)
            self.assertEqual(message, f"killed by the kernel: the container's memory limit of {32 * MIB} bytes was reached while its module was loaded")

    def test_an_exec_killed_while_it_loads_says_so_and_the_container_goes_on(self):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/big.wasm", "wb") as f:
                f.write(big_module(24 * MIB))
            image = self.module("fills-big", FILLS, "--copy", f"{d}/big.wasm:/big.wasm")
        container = self.limited(image, 32 * MIB, ["x"])
        exec = self.exec(container, "/big.wasm")
        self.assertIn(f"killed by the kernel: the container's memory limit of {32 * MIB} bytes was reached while its module was loaded", exec.stderr)
        self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")

    def test_the_containers_own_limit_is_named_as_its_own(self):
        status, message = self.ended_with_message(self.module("big-table", BIG_TABLE), 24 * MIB)
        self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))
        self.assertEqual(message, f"killed by the kernel: the container's memory limit of {24 * MIB} bytes was reached")

    def test_a_sidecar_is_told_as_out_of_memory_once(self):
        with self.watched() as tasks:
            # It goes on until that is told: runc's shim may come too late to see why a container ended at once.
            container = self.limited("localhost/busybox:1", 16 * MIB, ["-c", "tail /dev/zero; cat; exit 1"], stdin=True)
            self.until(lambda: "oom" in self.topics(tasks(), container.id))
            self.bed.crictl("stop", "-t", "0", container.id)
            self.assertEqual(container.ended()["reason"], "OOMKilled")
            self.until(lambda: "exit" in self.topics(tasks(), container.id))
            self.assertEqual([topic for topic in self.topics(tasks(), container.id) if topic in ("oom", "exit")], ["oom", "exit"])

    def test_the_pods_own_limit_is_named_as_the_pods(self):
        parent = f"{self.bed.cgroup_parent}/limited"
        v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        directory = f"/sys/fs/cgroup{parent}" if v2 else f"/sys/fs/cgroup/memory{parent}"
        if parent.startswith("/") and ".slice/" in parent:
            self.skipTest("systemd makes the pods' cgroups here")
        if v2:
            with open(f"/sys/fs/cgroup{self.bed.cgroup_parent}/cgroup.subtree_control", "w") as f:
                f.write("+memory")
        os.mkdir(directory)
        try:
            with open(f"{directory}/{'memory.max' if v2 else 'memory.limit_in_bytes'}", "w") as f:
                f.write(str(48 * MIB))
            pod = self.pod(linux={"cgroup_parent": parent})
            # Of one that has no limit, and of one that has more than its pod.
            for limit in (0, 100 * MIB):
                status, message = self.ended_with_message(self.module("fills", FILLS), limit, ["x" * 60], pod)
                self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))
                self.assertEqual(message, f"killed by the kernel: the pod's memory limit of {48 * MIB} bytes was reached")
            pod.remove()
            self.pods.remove(pod)
        finally:
            for hierarchy in [""] if v2 else [f"/{name}" for name in os.listdir("/sys/fs/cgroup")]:
                if os.path.isdir(f"/sys/fs/cgroup{hierarchy}{parent}"):
                    os.rmdir(f"/sys/fs/cgroup{hierarchy}{parent}")


class CpuTime(BudgetTest):
    def test_a_program_ends_when_its_budget_is_used_up(self):
        message = tempfile.NamedTemporaryFile()
        pod = self.pod(annotations={"slipway.dev/cpu-time": "1s"})
        container = pod.start(
            self.bed.example("hello"), ["spin"], annotations={"slipway.dev/cpu-time": "1s"},
            mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}])
        self.assertEqual(container.ended()["exitCode"], 152)
        for text in (container.text(), message.read().decode()):
            self.assertIn("CPU-time budget used up: the program may compute for 1 s", text)

    def test_a_budget_that_is_none_is_refused_by_name(self):
        with self.assertRaises(AssertionError) as refused:
            self.pod(annotations={"slipway.dev/cpu-time": "500ms"})
        self.assertIn("slipway.dev/cpu-time", str(refused.exception))
        self.assertIn("90s, 5m, 2h", str(refused.exception))


class Processes(BudgetTest):
    def test_a_guest_is_one_process_of_one_thread(self):
        for example, args in (("hello", ["spin"]), ("http-server", [])):
            container = self.pod().start(self.bed.example(example), args)
            pid = json.loads(self.bed.crictl("inspect", container.id).stdout)["info"]["pid"]
            threads = lambda: self.bed.run("grep", "^Threads:", f"/proc/{pid}/status").stdout.split()[1]
            self.assertEqual(threads(), "1", example)
