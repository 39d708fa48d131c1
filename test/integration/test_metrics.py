"""What a node's shims count, and the doctor's report."""
import json
import os
import tempfile

import prometheus
from harness import KillTest

DIR = "/run/slipway"


class MetricsTest(KillTest):
    def metrics(self):
        return prometheus.values(self.bed.run("slipway", "metrics").stdout)

    def counting(self):
        """A function: what has come since, without what has not changed."""
        before = self.metrics()

        def since():
            return {name: value - before[name] for name, value in self.metrics().items() if value != before[name]}

        return since


# Seconds.
START_WAITS = 5


class Metrics(MetricsTest):
    def test_starts_are_counted_by_what_the_cache_had(self):
        with tempfile.TemporaryDirectory() as directory:
            # Whose artefact cannot be there yet.
            name = f"metrics{os.getpid()}-{self.bed.number()}-{self.bed.version}"
            with open(f"{directory}/{name}.wat", "w") as f:
                f.write(f'(module (memory (export "memory") 1) (data (i32.const 0) "{name}") (func (export "_start")))')
            image = self.bed.image(f"{directory}/{name}.wat", name)
        pod, since = self.pod(), self.counting()
        pod.start(image).ended()
        first = since()
        pod.start(image).ended()
        both = since()
        for name, (one, two) in {
            "slipway_cache_misses_total": (1, 1),
            "slipway_cache_hits_total": (0, 1),
            "slipway_compile_seconds_count{tier=full}": (1, 1),
            "slipway_create_seconds_count{cache=miss}": (1, 1),
            "slipway_create_seconds_count{cache=hit}": (0, 1),
            "slipway_start_seconds_count{cache=miss}": (1, 1),
            "slipway_start_seconds_count{cache=hit}": (0, 1),
            "slipway_ended_guests_total{reason=completed}": (1, 2),
            "slipway_start_failures_total": (0, 0),
            "slipway_running_guests": (0, 0),
        }.items():
            self.assertEqual((first.get(name, 0), both.get(name, 0)), (one, two), name)
        self.assertGreater(first["slipway_compile_seconds_sum"], 0)
        self.assertGreaterEqual(first["slipway_start_seconds_sum"], first["slipway_create_seconds_sum"])
        # A start does not wait longer than that for a compile.
        self.assertGreaterEqual(first["slipway_create_seconds_sum"], min(first["slipway_compile_seconds_sum"], START_WAITS))

    def test_ends_are_counted_by_their_reason_and_failed_starts_too(self):
        hello = self.bed.example("hello")
        pod, since = self.pod(), self.counting()
        limit = {"linux": {"resources": {"memory_limit_in_bytes": 16 << 20}, "security_context": {"namespace_options": {"pid": 1}}}}
        self.assertEqual(pod.start(hello, ["alloc", "50"], **limit).ended()["reason"], "OOMKilled")
        pod.start(hello, ["trap"]).ended()
        pod.start(hello, ["exit", "3"]).ended()
        self.assertNotEqual(pod.create(hello, command=["/none.wasm"]).start(check=False).returncode, 0)
        found = since()
        self.assertEqual({name: count for name, count in found.items() if "ended" in name and "{" in name}, {
            "slipway_ended_guests_total{reason=out_of_memory}": 1,
            "slipway_ended_guests_total{reason=trap}": 1,
            "slipway_ended_guests_total{reason=error}": 1,
        })
        self.assertGreaterEqual(found["slipway_refused_memory_growths_total"], 1)
        self.assertEqual(found["slipway_start_failures_total"], 1)

    def test_a_killed_shim_takes_its_guests_and_nothing_else_along(self):
        hello = self.bed.example("hello")
        since = self.counting()
        pod = self.pod()
        containers = [pod.start(hello, ["spin"]) for _ in range(2)]
        self.bed.crictl("exec", containers[0].id, "/hello.wasm", "exit", "0")
        self.assertEqual(since()["slipway_running_guests"], 2)
        self.kill(*self.pids("containerd-shim-slipway-v1"))
        self.until(lambda: "slipway_running_guests" not in since())
        for container in containers:
            container.ended()
        found = since()
        self.assertEqual(found["slipway_start_seconds_count"], 2)
        self.assertEqual(found["slipway_exec_start_seconds_count"], 1)

    def test_damage_of_the_counters_stops_no_pod(self):
        hello = self.bed.example("hello")
        pod = self.pod()
        running = pod.start(hello, ["spin"])
        for damage in (f"truncate -s 0 {DIR}/counters", f"truncate -s 9999 {DIR}/counters", f"rm -r {DIR}",
                       f"rm {DIR}/counters && mkfifo {DIR}/counters", f"echo other >{DIR}/counters"):
            self.bed.run("sh", "-c", damage)
            self.assertEqual(self.metrics()["slipway_cache_hits_total"], 0, damage)
            pod.start(hello).ended()
            found = self.metrics()
            self.assertEqual((found["slipway_cache_hits_total"], found["slipway_running_guests"]), (1, 1), damage)
        # Nor does a place where none can be.
        self.bed.run("sh", "-c", f"rm -r {DIR} && touch {DIR}")
        self.assertEqual(pod.start(hello).ended()["exitCode"], 0)
        self.bed.run("rm", DIR)
        self.assertEqual(running.status()["state"], "CONTAINER_RUNNING")

    def test_only_root_reads_them_and_no_guest_has_them(self):
        self.pod().start(self.bed.example("hello"), ["spin"]).until("Hello")
        self.assertEqual(self.bed.run("stat", "-c", "%a %U", f"{DIR}/counters").stdout.strip(), "600 root")
        [guest] = self.pids("slipway-guest")
        self.assertNotIn("counters", self.bed.run("sh", "-c", f"ls -l /proc/{guest}/fd; cat /proc/{guest}/maps /proc/{guest}/mounts").stdout)


class Report(MetricsTest):
    SECRET = "planted-e1f0"

    def test_a_report_has_what_helps_and_no_secret(self):
        pod = self.pod(annotations={"slipway.dev/x": self.SECRET, "note": self.SECRET})
        pod.start(self.bed.example("hello"), ["spin", self.SECRET], envs=[{"key": "API_KEY", "value": self.SECRET}]).until("Hello")
        with tempfile.TemporaryDirectory() as directory:
            with open(f"{self.bed.root}/config.toml") as f:
                config = f.read()
            with open(f"{directory}/auth.toml", "w") as f:
                f.write(f"""# {self.SECRET}
version = 2
[plugins."io.containerd.grpc.v1.cri".registry.configs."registry.example.com".auth]
password = "{self.SECRET}"
[plugins."io.containerd.grpc.v1.cri".registry.headers]
Authorization = ["Bearer {self.SECRET}"]
""")
            with open(f"{directory}/config.toml", "w") as f:
                f.write(f'imports = ["auth.toml"]\n{config}')
            with open(f"{self.bed.root}/containerd.log") as f, open(f"{directory}/log", "w") as log:
                log.write(f.read())
                log.write(f'time="x" level=debug msg="spec of /opt/slipway: {self.SECRET}"\n')
                log.write(f'time="x" level=error msg="slipway: pull https://user:{self.SECRET}@registry.example.com/x"\n')
                log.write('time="x" level=info msg="compiled /marked.wasm in 0.1 s" runtime=io.containerd.slipway.v1\n')
            arguments = ("slipway", "doctor", "--config", f"{directory}/config.toml", "--log", f"{directory}/log", "--report")
            report = self.bed.run(*arguments, "-").stdout
            self.bed.run(*arguments, f"{directory}/report")
            self.assertEqual(os.stat(f"{directory}/report").st_mode & 0o777, 0o600)
            with open(f"{directory}/report") as f:
                self.assertNotIn(self.SECRET, f.read())
        self.assertNotIn(self.SECRET, report)
        self.assertNotIn("API_KEY", report)
        for text in (
            "== checks", "kernel: ", "version: ", " slipway", "slipway.runtime_type = ", "auth.password = (left out)",
            "slipway_running_guests 1", "/marked.wasm", "artefacts", json.load(open(pod.config))["metadata"]["name"],
        ):
            self.assertIn(text, report)
