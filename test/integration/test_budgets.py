"""Limits of a pod as budgets of the program: memory, CPU time, processes."""
import json
import os
import tempfile

from harness import TREE, Watched

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

# Eight gigabytes for the engine, not for the module's memory.
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


class BudgetTest(Watched):
    def module(self, name, text):
        with tempfile.TemporaryDirectory() as d:
            with open(f"{d}/{name}.wat", "w") as f:
                f.write(text)
            return self.bed.image(f"{d}/{name}.wat", name)

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
        self.assertGreater(row["used_bytes"], 30 * MIB)
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
        used = [self.top(container)["used_bytes"] // MIB for container in containers]
        self.assertEqual(used, [7, 23])

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

    def test_without_a_limit_there_is_none(self):
        container = self.pod().start(self.bed.example("hello"), ["sleep"])
        container.until("Hello")
        self.assertIsNone(self.top(container)["budget_bytes"])


class KernelKills(BudgetTest):
    """Several guests together, or a pod without limits of its containers, may use more than is there: the kernel chooses."""

    def test_an_exec_is_told_as_out_of_memory_once(self):
        image = self.module("fills", FILLS)
        with self.watched() as tasks:
            container = self.limited(image, 64 * MIB, ["x" * 11])
            exec = self.bed.ctr("tasks", "exec", "--exec-id", "e", container.id, "/fills.wat", "x" * 36, check=False)
            self.assertEqual(exec.returncode, 137, exec.stderr)
            self.until(lambda: any(topic == "exit" and fields.get("id") == "e" for topic, fields in tasks()))
            self.assertEqual(container.status()["state"], "CONTAINER_RUNNING")
            ends = [topic for topic, fields in tasks() if topic == "oom" or topic == "exit" and fields.get("id") == "e"]
            self.assertEqual(ends, ["oom", "exit"])

    def test_a_sidecar_is_told_as_out_of_memory_once(self):
        with self.watched() as tasks:
            # It goes on until that is told: runc's shim may come too late to see why a container ended at once.
            container = self.limited("localhost/busybox:1", 16 * MIB, ["-c", "tail /dev/zero; cat; exit 1"], stdin=True)
            self.until(lambda: "oom" in self.topics(tasks(), container.id))
            self.bed.crictl("stop", "-t", "0", container.id)
            self.assertEqual(container.ended()["reason"], "OOMKilled")
            self.until(lambda: "exit" in self.topics(tasks(), container.id))
            self.assertEqual([topic for topic in self.topics(tasks(), container.id) if topic in ("oom", "exit")], ["oom", "exit"])

    def test_the_pods_own_limit_ends_a_container_that_has_none(self):
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
            message = tempfile.NamedTemporaryFile()
            pod = self.pod(linux={"cgroup_parent": parent})
            container = pod.start(
                self.module("fills", FILLS), ["x" * 60], mounts=[{"container_path": "/dev/termination-log", "host_path": message.name}])
            status = container.ended()
            self.assertEqual((status["exitCode"], status["reason"]), (137, "OOMKilled"))
            self.assertIn("the pod's memory limit", message.read().decode())
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
