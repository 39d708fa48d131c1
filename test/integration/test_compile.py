"""The compiler: what it is given is what it compiles, and a node survives it. Without containerd."""
import contextlib
import os
import subprocess
import tempfile
import time
import unittest
from unittest import mock

from harness import EXAMPLES, GUESTS, PATIENCE, ROOT, TREE, run, slipway, slow_module
from system_calls import LOGGED, SELDOM, called, listed, missing_walls, walls

# A program that ends with a status of its own.
PROGRAM = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const {}))))"""


def write(path, content):
    with open(path, "wb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())


def tree_with_loader(directory, script):
    """The installation with a loader, of which all its programs are arguments, that runs a script first. It is a program itself: a
    guest is started by descriptor, and the kernel has no name for a script's interpreter then."""
    os.makedirs(f"{directory}/lib/runtime")
    names = [name for name in os.listdir(TREE) if name != "lib"]
    names += [f"lib/{name}" for name in os.listdir(f"{TREE}/lib") if name != "runtime"]
    names += [f"lib/runtime/{name}" for name in os.listdir(f"{TREE}/lib/runtime")]
    for name in names:
        os.symlink(f"{TREE}/{name}", f"{directory}/{name}")
    [loader] = (name for name in names if name.startswith("lib/runtime/ld-linux-"))
    os.unlink(f"{directory}/{loader}")
    write(f"{directory}/before", f"#!/bin/sh\n{script}\n")
    os.chmod(f"{directory}/before", 0o755)
    write(f"{directory}/loader.c", """#include <sys/wait.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
          pid_t pid = fork();
          if (!pid) _exit((execv(BEFORE, argv), 127));
          waitpid(pid, 0, 0);
          return execv(LOADER, argv), 127;
        }""")
    run("gcc", "-O1", f'-DBEFORE="{directory}/before"', f'-DLOADER="{TREE}/{loader}"', "-o", f"{directory}/{loader}", f"{directory}/loader.c")


# The binary format, as far as modules are made here whose text would be long.

def number(n):
    low, rest = n & 0x7f, n >> 7
    return bytes([low | 0x80]) + number(rest) if rest else bytes([low])


def vector(items):
    return number(len(items)) + b"".join(items)


def module(bodies, wide=0):
    """A program with further functions of these bodies; type 1 has so many parameters and results."""
    values = vector([b"\x7e"] * wide)
    types = vector([b"\x60\0\0", b"\x60" + values + values])
    functions = vector([b"\0"] * (len(bodies) + 1))
    exports = vector([b"\x06_start\0\0"])
    code = vector([number(len(body)) + body for body in [b"\0\x0b", *bodies]])
    sections = ((1, types), (3, functions), (7, exports), (10, code))
    return b"\0asm\1\0\0\0" + b"".join(bytes([kind]) + number(len(content)) + content for kind, content in sections)


class Compile(unittest.TestCase):
    def setUp(self):
        self.directory = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(mock.patch.dict(os.environ, SLIPWAY_CACHE_DIR=f"{self.directory}/cache"))

    def entries(self):
        """What the cache holds: artefacts, refusals, and what is being written."""
        names = os.listdir(f"{self.directory}/cache")
        return [name for name in names if name.endswith((".so", ".refused")) or name.startswith("tmp-")]

    def test_the_module_that_warms_the_loader_up_is_one_that_the_engine_takes(self):
        slipway("compile", "--tier", "quick", f"{ROOT}/shim/engine/src/small.wasm")

    def test_a_file_that_changes_while_it_is_compiled_is_stored_under_no_digest(self):
        file, other = f"{self.directory}/app.wat", f"{self.directory}/other"
        # It is rewritten when it has been hashed and the compiler has not read it yet.
        tree_with_loader(f"{self.directory}/tree", f'case "$*" in *"/slipway-aot "*) cat {other} > {file} ;; esac')
        changes = {"another program": PROGRAM.format(66), "no module": "#!/bin/sh", "the beginning of it": PROGRAM.format(7)[:20],
            "nothing": "", "more": PROGRAM.format(7) + " "}
        for what, content in changes.items():
            with self.subTest(what):
                write(file, PROGRAM.format(7))
                write(other, content)
                with mock.patch.dict(os.environ, SLIPWAY_ROOT=f"{self.directory}/tree"):
                    done = slipway("run", file, check=False)
                self.assertEqual((done.returncode, self.entries()), (125, []), done.stderr)
                self.assertIn("app.wat: compile: the file changed while it was compiled", done.stderr)
        write(file, PROGRAM.format(7))
        self.assertEqual(slipway("run", file, check=False).returncode, 7)

    def test_a_file_that_grows_while_it_is_compiled_is_compiled_as_it_was_or_not_at_all(self):
        file = f"{self.directory}/app.wat"
        write(file, PROGRAM.format(7))
        tree_with_loader(f"{self.directory}/tree", f'case "$*" in *"/slipway-aot "*) truncate -s 300M {file} ;; esac')
        with mock.patch.dict(os.environ, SLIPWAY_ROOT=f"{self.directory}/tree"):
            done = slipway("run", file, check=False)
        self.assertEqual((done.returncode, self.entries()), (125, []), done.stderr)
        self.assertIn("314572800 bytes, more than the 268435456 allowed", done.stderr)

    def test_a_compile_beyond_the_nodes_memory_says_so_and_is_no_refusal(self):
        meminfo = f"{self.directory}/meminfo"
        for available, tier in ((80, "full"), (80, "quick"), (40, "full"), (8, "quick"), (0, "quick")):
            with self.subTest(available=available, tier=tier):
                write(meminfo, f"MemTotal: 16777216 kB\nMemAvailable: {available << 10} kB\n")
                with_meminfo = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/meminfo && exec "$@"', meminfo)
                done = run(*with_meminfo, f"{TREE}/bin/slipway", "compile", "--tier", tier, f"{EXAMPLES}/https-client.wasm", check=False)
                self.assertEqual((done.returncode, self.entries()), (125, []), done.stderr)
                self.assertIn(f"compiling needs more than {available * 3 << 18} bytes of memory, the bound of this node", done.stderr)
        slipway("compile", "--tier", "quick", f"{EXAMPLES}/https-client.wasm")

    def test_the_compiler_needs_each_system_call_of_its_list_and_no_other(self):
        log, broken = (f"{self.directory}/{name}" for name in ("log", "broken.wasm"))
        write(broken, "\0asm\1\0\0\0rubbish")
        for tier, module, status in (("quick", f"{GUESTS}/network.wasm", 0), ("full", f"{GUESTS}/network.wasm", 0), ("full", broken, 125)):
            done = run("strace", *LOGGED, "-A", "-o", log, f"{TREE}/bin/slipway", "compile", "--tier", tier, module, check=False)
            self.assertEqual(done.returncode, status, done.stderr)
        # abort(3), where there is no memory. It is the first process of its namespace, and such a one does not end under strace.
        seldom = {*SELDOM, "getpid", "gettid", "rt_sigprocmask", "rt_sigreturn", "tgkill"}
        with open(log) as f:
            text = f.read()
        self.assertEqual(walls(text) | set(missing := missing_walls()), {"keyring", "Landlock"})
        self.assertEqual(listed("compiler") - seldom, called(text) - seldom)
        if missing:
            self.skipTest(f"the rest is as it should be; {', '.join(missing.values())}")

    def test_the_compiler_is_what_the_kernel_kills_first_and_has_bounds(self):
        command = [f"{TREE}/bin/slipway", "compile", "--tier", "full", slow_module(self.directory, "slow")]
        # Killed, it leaves its directory behind.
        environment = os.environ | {"TMPDIR": self.directory}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
            try:
                compiler, limits = self.compiler_of(process)
                with open(f"/proc/{compiler}/oom_score_adj") as f:
                    self.assertEqual(int(f.read()), 1000)
            finally:
                process.kill()
        with open("/proc/meminfo") as f:
            total = int(f.readline().split()[1]) << 10
        self.assertLessEqual(int(limits["Max data size"]), min(total * 3 // 4, 16 << 30))
        self.assertEqual(limits["Max file size"], str(1 << 30))

    def compiler_of(self, process):
        """The compiler that a command has started, in its sandbox, and its limits."""
        for _ in range(PATIENCE * 20):
            for pid in self.children(process.pid):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/limits") as f:
                    limits = dict(line[:60].rsplit(None, 2)[:2] for line in f.readlines()[1:])
                    # One of the last that it sets.
                    if limits.get("Max cpu time") == "3600":
                        return pid, limits
            time.sleep(0.05)  # a process of somebody else's has no event
        raise AssertionError("no compiler")

    def children(self, pid):
        children = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{task}/children") as f:
                children += f.read().split()
        return children

    def test_kilobytes_that_would_take_gigabytes_are_refused_with_the_function_and_the_limit(self):
        locals_of = lambda kind: b"\1" + number(50_000) + kind + b"\x0b"
        # Constants for as many loops of 900 parameters and results, one behind the other.
        loops = b"\0" + b"\x42\0" * 900 + b"\x03\1\x0b" * 10_000 + b"\x1a" * 900 + b"\x0b"
        for name, content in (
            ("i64 locals", module([locals_of(b"\x7e")] * 300)),
            ("v128 locals", module([locals_of(b"\x7b")] * 2000)),
            ("wide loops", module([loops], wide=900)),
        ):
            for tier in ("quick", "full"):
                with self.subTest(name, tier=tier):
                    write(f"{self.directory}/bomb.wasm", content)
                    done = slipway("compile", "--tier", tier, f"{self.directory}/bomb.wasm", check=False)
                    self.assertEqual(done.returncode, 125, done.stderr)
                    self.assertRegex(done.stderr, r"bomb.wasm: function [12] declares \d+ values .*, more than the \d+ allowed with \d+ bytes of code")


if __name__ == "__main__":
    unittest.main()
