"""The command line, without containerd."""
import contextlib
import glob
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest
from unittest import mock

from harness import BED, EXAMPLES, GUESTS, PATIENCE, ROOT, TREE, run, slipway

# A program that says a word and then sleeps.
SLEEPER = '#include <stdio.h>\n#include <unistd.h>\nint main(void) {{ puts("{}"); fflush(stdout); for (;;) sleep(1000); }}\n'


EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'

# Its function says whether it was initialised, and how often; its command ends with 7 unless it was.
REACTOR = f"""(module {EXIT} (memory (export "memory") 1) (global $g (mut i32) (i32.const 7))
  (func (export "_initialize") (global.set $g (i32.add (global.get $g) (i32.const 35))))
  (func (export "get") (result i32) (global.get $g))
  (func (export "_start") (call $exit (global.get $g))))"""

# Returns how many arguments WASI has for it.
COUNTS_ARGUMENTS = """(module (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "count") (result i32) (drop (call $sizes (i32.const 0) (i32.const 4))) (i32.load (i32.const 0))))"""


def descendants(pid):
    """The processes below one, and below these."""
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        children = [int(child) for child in f.read().split()]
    return children + [below for child in children for below in descendants(child)]


def ended(processes):
    """Whether the processes behind these descriptors end; whoever has to may reap them later."""
    return all(select.select([process], [], [], PATIENCE)[0] for process in processes)


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


class Cli(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = cls.enterClassContext(tempfile.TemporaryDirectory())
        # Without a Go of the system's, the bed has one.
        path = f"{os.environ['PATH']}:{BED}/bin"
        cls.enterClassContext(mock.patch.dict(os.environ, SLIPWAY_CACHE_DIR=f"{directory}/cache", PATH=path))

    def hello(self, *args, **options):
        return slipway("run", f"{EXAMPLES}/hello.wasm", *args, check=False, **options)

    def test_run_gives_output_and_status(self):
        done = self.hello("exit", "7")
        self.assertEqual((done.returncode, done.stdout.splitlines()[0]), (7, "Hello from Slipway"))

    def test_run_reports_traps_on_stderr(self):
        done = self.hello("trap")
        self.assertEqual(done.returncode, 134)
        self.assertIn("unreachable", done.stderr)
        self.assertNotIn("unreachable", done.stdout)

    def test_run_holds_the_memory_budget(self):
        done = slipway("run", "--memory", "8Mi", f"{EXAMPLES}/hello.wasm", "alloc", "50", check=False)
        self.assertEqual(done.returncode, 137)
        self.assertIn("8388608", done.stderr)

    def test_run_holds_the_cpu_time(self):
        self.assertEqual(slipway("run", "--cpu-time", "1", f"{EXAMPLES}/hello.wasm", "spin", check=False).returncode, 152)

    def test_compiled_code_runs_not_the_interpreter(self):
        # Interpreted, a million lines take 4.5 s of CPU time; compiled 0.2 s.
        done = slipway("run", "--cpu-time", "2", f"{EXAMPLES}/envfiles.wasm", "lines", "1000000", check=False)
        self.assertEqual((done.returncode, done.stdout.count("\n")), (0, 1000000))

    def test_run_ends_with_a_signal(self):
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = subprocess.Popen([f"{TREE}/bin/slipway", "run", f"{EXAMPLES}/hello.wasm", "spin"], stdout=subprocess.PIPE, text=True)
            process.stdout.readline()
            process.send_signal(number)
            process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, status)

    def test_a_program_ends_with_its_run(self):
        for user in ("0", "1000"):
            command = (f"{TREE}/bin/slipway", "run", "-u", user, f"{EXAMPLES}/hello.wasm", "sleep")
            # Killed, it leaves its directory behind.
            with tempfile.TemporaryDirectory() as d:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": d})
                process.stdout.readline()
                process.kill()
                # The guest has the pipe's other end: it is closed when the guest has ended, too.
                process.communicate(timeout=PATIENCE)

    def test_the_tree_runs_on_a_host_without_its_libc(self):
        # A root with nothing but a static busybox: neither glibc nor any library of the host is in sight.
        with tempfile.TemporaryDirectory() as root:
            for d in ("bin", "dev", "proc", "sys", "tmp", "old", "var"):
                os.mkdir(f"{root}/{d}")
            subprocess.run(["tar", "-xf", *glob.glob(f"{ROOT}/target/dist/slipway-*.tar"), "-C", root], check=True)
            shutil.copy(f"{BED}/bin/busybox", f"{root}/bin/busybox")
            shutil.copy(f"{EXAMPLES}/hello.wasm", root)
            enter = '''cd "$0" && mount --bind . . && cd "$0" && mount -t proc proc proc && mount --rbind /dev dev && mount --rbind /sys sys &&
                pivot_root . old && exec bin/busybox chroot . /bin/busybox sh -c "busybox umount -l /old && opt/slipway/bin/slipway run /hello.wasm exit 7"'''
            done = subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, root],
                env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual((done.returncode, done.stdout.splitlines()[:1]), (7, ["Hello from Slipway"]), done.stderr)

    def test_run_gives_directories_and_stdin(self):
        with tempfile.TemporaryDirectory() as d:
            done = slipway("run", "--dir", f"{d}:/v:ro", f"{EXAMPLES}/envfiles.wasm", "write", "/v/x", "y", check=False)
            self.assertEqual(done.returncode, 1)
            slipway("run", "--dir", f"{d}:/v", f"{EXAMPLES}/envfiles.wasm", "write", "/v/x", "y")
            self.assertEqual(os.listdir(d), ["x"])
        done = slipway("run", f"{EXAMPLES}/envfiles.wasm", "stdin", input="through\n")
        self.assertEqual(done.stdout, "through\n")

    def test_run_knows_the_names_of_this_machine(self):
        done = slipway("run", f"{GUESTS}/network.wasm", "names", "localhost", check=False)
        self.assertIn("127.0.0.1", done.stdout)

    def test_standard_streams_are_what_they_are(self):
        command = [f"{TREE}/bin/slipway", "run", f"{GUESTS}/wasi-conformance.wasm", "streams"]
        with tempfile.TemporaryFile("w+") as file:
            file.write("text")
            file.seek(0)
            done = subprocess.run(command, stdin=file, capture_output=True, text=True)
            self.assertEqual(done.stdout, 'regular file, unknown, unknown; read Ok("text")\n')
            done = subprocess.run(command, input="text", stdout=file, stderr=subprocess.PIPE, text=True)
            file.seek(0)
            self.assertIn('unknown, regular file, unknown; read Ok("text")\n', file.read())
        # Closed ones read and write nothing.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=lambda: os.close(0))
        self.assertEqual(done.stdout, 'character device, unknown, unknown; read Ok("")\n')
        done = subprocess.run(["script", "-qec", " ".join(command), "/dev/null"], input="text\n", capture_output=True, text=True)
        self.assertIn("character device, character device, character device", done.stdout)

    def test_a_directory_may_be_the_root_and_others_lie_in_it(self):
        with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as inner:
            os.mkdir(f"{root}/inner")
            open(f"{inner}/seen", "w").close()
            done = slipway("run", "--dir", f"{inner}:/inner", "--dir", f"{root}:/", f"{EXAMPLES}/envfiles.wasm", "ls", "/inner")
            self.assertIn("seen", done.stdout)
            self.assertNotIn("etc", os.listdir(root))

    def test_both_kinds_of_image_run(self):
        for flags in ([], ["--artifact"]):
            with tempfile.TemporaryDirectory() as d:
                slipway("image", "build", f"{EXAMPLES}/hello.wasm", "-t", "localhost/x:1", "-o", f"{d}/x.tar", *flags)
                self.assertEqual(slipway("run", f"{d}/x.tar", "exit", "4", check=False).returncode, 4)

    def test_an_image_that_unpacks_to_much_does_not_fill_the_disk(self):
        with tempfile.TemporaryDirectory() as d, tempfile.TemporaryDirectory() as disk:
            with open(f"{d}/zeros", "wb") as f:
                f.truncate(6 << 20)
            slipway("image", "build", f"{EXAMPLES}/hello.wasm", "-t", "localhost/x:1", "-o", f"{d}/x.tar", "--copy", f"{d}/zeros:/zeros")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
            try:
                with mock.patch.dict(os.environ, TMPDIR=disk):
                    done = slipway("run", f"{d}/x.tar", check=False)
                self.assertEqual(done.returncode, 125)
                self.assertRegex(done.stderr, f"more than there is room for, 4[0-9]{{6}} bytes, half of what is free in {disk}: .* set TMPDIR")
                self.assertEqual(os.listdir(disk), [])
            finally:
                subprocess.run(["umount", disk], check=True)
            self.assertEqual(slipway("run", f"{d}/x.tar", "exit", "4", check=False).returncode, 4)

    def test_copied_files_are_in_the_image(self):
        with tempfile.TemporaryDirectory() as d:
            os.makedirs(f"{d}/share/deep")
            with open(f"{d}/share/deep/note", "w") as f:
                f.write("copied\n")
            os.symlink("deep/note", f"{d}/share/link")
            build = lambda out, *flags: slipway("image", "build", f"{EXAMPLES}/envfiles.wasm", "-t", "localhost/x:1", "-o", f"{d}/{out}", *flags, check=False)
            copy = ["--copy", f"{d}/share:/usr/share", "--copy", f"{d}/share/link:/etc/note"]
            for out in ("a.tar", "b.tar"):
                self.assertEqual(build(out, *copy).returncode, 0)
            with open(f"{d}/a.tar", "rb") as a, open(f"{d}/b.tar", "rb") as b:
                self.assertEqual(a.read(), b.read())
            for path in ("/usr/share/link", "/etc/note"):
                self.assertEqual(slipway("run", f"{d}/a.tar", "cat", path).stdout, "copied\n")
            self.assertRegex(slipway("run", f"{d}/a.tar", "ls", "/usr/share").stdout, "(?m)^l +9 link$")
            for flags, word in [
                (["--copy", f"{d}/share"], "HOST:/PATH"), (["--copy", f"{d}/none:/x"], f"{d}/none: No such file"),
                (["--copy", f"{d}/share/link:/envfiles.wasm"], "the module"), ([*copy, "--artifact"], "artefact"),
                (["--copy", f"{d}:/x"], "write it elsewhere"),
            ]:
                bad = build("bad.tar", *flags)
                self.assertNotEqual(bad.returncode, 0)
                self.assertIn(word, bad.stderr)
            self.assertNotIn("bad.tar", os.listdir(d))

    def test_invoke_prints_what_the_function_returns(self):
        with tempfile.NamedTemporaryFile("w", suffix=".wat") as f:
            f.write('(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))')
            f.flush()
            self.assertEqual(slipway("run", "--invoke", "add", f.name, "40", "2").stdout, "42\n")
            bad = slipway("run", "--invoke", "add", f.name, "40", check=False)
            self.assertEqual(bad.returncode, 125)
            self.assertIn("takes 2 arguments", bad.stderr)

    def text(self, text):
        """A module in text form, in a file that goes with the test."""
        file = self.enterContext(tempfile.NamedTemporaryFile("w", suffix=".wat"))
        file.write(text)
        file.flush()
        return file.name

    def test_a_reactor_is_initialised_before_its_function_is_called(self):
        reactor = self.text(REACTOR)
        self.assertEqual(slipway("run", "--invoke", "get", reactor).stdout, "42\n")
        # By itself it is a function as any other: once.
        self.assertEqual(slipway("run", "--invoke", "_initialize", reactor).returncode, 0)
        # A command initialises itself.
        self.assertEqual(slipway("run", reactor, check=False).returncode, 7)

    def test_a_reactor_that_cannot_be_initialised_ends_as_its_initialiser_does(self):
        exits = f"""(module {EXIT} (memory (export "memory") 1)
            (func (export "_initialize") (call $exit (i32.const 9))) (func (export "get") (result i32) (i32.const 1)))"""
        done = slipway("run", "--invoke", "get", self.text(exits), check=False)
        self.assertEqual((done.returncode, done.stdout), (9, ""))
        traps = '(module (func (export "_initialize") unreachable) (func (export "get") (result i32) (i32.const 1)))'
        done = slipway("run", "--invoke", "get", self.text(traps), check=False)
        self.assertEqual((done.returncode, done.stdout), (134, ""))
        self.assertIn("unreachable", done.stderr)
        # What takes arguments is nobody's initialiser.
        other = '(module (func (export "_initialize") (param i32) unreachable) (func (export "get") (result i32) (i32.const 1)))'
        self.assertEqual(slipway("run", "--invoke", "get", self.text(other)).stdout, "1\n")

    def test_a_function_without_parameters_has_the_arguments_of_a_command(self):
        done = slipway("run", "--invoke", "count", self.text(COUNTS_ARGUMENTS), "a", "b")
        self.assertEqual(done.stdout, "3\n")

    def test_a_memory_that_cannot_be_had_is_never_one_at_address_0(self):
        for memories in ("(memory 65536)", "(memory 1000) (memory 1000)", '(memory (export "memory") 2000)'):
            module = self.text(f'(module {memories} (func (export "_start") (i32.store8 (i32.const 9) (i32.const 1))))')
            for again in ("compiled", "found in the cache"):
                done = slipway("run", "--memory", "64Mi", module, check=False)
                self.assertEqual(done.returncode, 125, (again, done))
                self.assertIn("the container's limit is 67108864 bytes", done.stderr)
                self.assertIn(f"at least {int(memories.split()[-1].strip(')')) * 65536 * memories.count('(memory ')} bytes", done.stderr)
                # What is refused for its surroundings runs in others.
                slipway("run", module)
        seventeen = self.text(f'(module {"(memory 1)" * 17} (func (export "_start")))')
        done = slipway("run", seventeen, check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn("17 memories, more than the 16 allowed", done.stderr)
        slipway("run", self.text(f'(module {"(memory 1)" * 16} (func (export "_start") (i32.store8 15 (i32.const 9) (i32.const 1))))'))

    def test_a_limit_below_the_modules_minimum_is_refused_before_it_is_compiled(self):
        module = self.text('(module (memory (export "memory") 1025) (func (export "_start")))')
        done = slipway("run", "--memory", "64Mi", module, check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn("at least 67174400 bytes of memory, the container's limit is 67108864 bytes", done.stderr)
        self.assertNotIn("compil", done.stderr)

    def test_a_wrong_entry_function_is_found_before_compiling_and_is_no_verdict_on_the_module(self):
        library = self.text(f"""(module {EXIT} (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
            (func (export "vector") (param v128)) (func (export "run") (call $exit (i32.const 3))))""")
        wrong = [
            ([], 'exports no function "_start"; name a function that can, as in app.wasm#add: add, run'),
            (["--invoke", "none"], 'exports no function "none"; name a function that can, as in app.wasm#add: add, run'),
            (["--invoke", "vector"], "its type is (v128) -> ()"),
            (["--invoke", "add"], "takes 2 arguments, 0 given"),
        ]

        def refused():
            texts = []
            for flags, says in wrong:
                done = slipway("run", *flags, library, check=False)
                self.assertEqual((done.returncode, done.stdout), (125, ""))
                self.assertIn(says, done.stderr)
                self.assertNotIn("compil", done.stderr)
                texts.append(done.stderr)
            return texts

        before = refused()
        self.assertEqual(slipway("run", "--invoke", "add", library, "1", "2").stdout, "3\n")
        # From the cache it is told in the same words.
        self.assertEqual(refused(), before)
        self.assertEqual(slipway("run", "--invoke", "run", library, check=False).returncode, 3)
        long = slipway("run", "--invoke", "x" * 100_000, library, check=False)
        self.assertEqual(long.returncode, 125)
        self.assertIn("the function's name has 100000 bytes, the limit is 4096", long.stderr)
        for type in ("(param i32)", "(result i32)"):
            start = self.text(f'(module (func (export "_start") {type} unreachable))')
            done = slipway("run", start, check=False)
            self.assertEqual(done.returncode, 125)
            self.assertIn("cannot be run: its type is", done.stderr)
            self.assertNotIn("compil", done.stderr)

    def test_a_component_is_refused_before_anything_is_said_of_compiling(self):
        done = slipway("run", self.text("(component)"), check=False)
        self.assertEqual(done.returncode, 125)
        self.assertIn("component", done.stderr)
        self.assertNotIn("compil", done.stderr)

    def test_inspect_says_what_function_cannot_be_run(self):
        library = self.text('(module (func (export "add") (param i32)))')
        done = slipway("inspect", library, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn('exports no function "_start"; name a function that can, as in app.wasm#add: add', done.stdout)
        self.assertNotIn("runs here", done.stdout)
        self.assertEqual(slipway("inspect", "--invoke", "add", library).returncode, 0)
        start = self.text('(module (func (export "_start") (param i32)))')
        self.assertIn("its type is (i32) -> ()", slipway("inspect", start, check=False).stdout)

    def test_an_exhausted_call_stack_is_told_with_the_functions_name(self):
        recursion = "(local.set 0 (i8x16.add (call {} (i8x16.add (local.get 0) (v128.const i32x4 1 2 3 4))) (local.get 0))) (local.get 0)"
        named = f"""(module (memory (export "memory") 1) (func $deep (param v128) (result v128) {recursion.format("$deep")})
            (func (export "_start") (drop (call $deep (v128.const i32x4 1 2 3 4)))))"""
        for tier in ("quick", "full"):
            for text, name in ((named, "deep"), (named.replace("$deep", "0", 1).replace("func 0", "func").replace("$deep", "0"), "function 0")):
                done = slipway("run", "--tier", tier, self.text(text), check=False)
                self.assertEqual(done.returncode, 134, done)
                self.assertIn(f"slipway: trap: call stack exhausted in {name}\n", done.stderr, tier)
        # Where the engine works for the program, too: the function that grows the table calls itself there.
        host = self.text("""(module (memory (export "memory") 1) (table 1 funcref)
            (func $deep (param i32) (result i32) (i32.add (call $deep (memory.grow (i32.const 0))) (table.grow (ref.null func) (i32.const 0))))
            (func (export "_start") (drop (call $deep (i32.const 0)))))""")
        done = slipway("run", host, check=False)
        self.assertEqual(done.returncode, 134)
        self.assertIn("call stack exhausted", done.stderr)
        # A fault of the memory's is another thing.
        outside = self.text('(module (memory 1) (func (export "_start") (i32.store8 (i32.const -1) (i32.const 1))))')
        self.assertIn("out of bounds memory access", slipway("run", outside, check=False).stderr)

    def test_a_trap_names_functions_and_tells_repeated_calls_once(self):
        trap = """(module (memory (export "memory") 1)
            (func $even (param i32) (result i32) (call $odd (i32.sub (local.get 0) (i32.const 1))) (i32.const 1) (i32.add))
            (func $odd (param i32) (result i32)
                (if (i32.le_s (local.get 0) (i32.const 0)) (then unreachable)) (call $even (i32.sub (local.get 0) (i32.const 1))) (i32.const 1) (i32.add))
            (func $main (export "_start") (drop (call $odd (i32.const 41)))))"""
        done = slipway("run", "--tier", "quick", self.text(trap), check=False)
        self.assertEqual(done.returncode, 134)
        self.assertIn("trap: unreachable (calling stack: [odd, even] (21 times), odd, main)", done.stderr)
        # Nothing but the module's own: the engine's frames are above and below these.
        last = self.text('(module (func $main (export "_start") unreachable))')
        self.assertIn("trap: unreachable (calling stack: main)\n", slipway("run", last, check=False).stderr)

    def test_inspect_tells_what_would_not_run_and_why(self):
        info = json.loads(slipway("inspect", "--json", f"{EXAMPLES}/hello.wasm").stdout)
        self.assertEqual(info["problems"], [])
        with tempfile.NamedTemporaryFile("w", suffix=".wat") as f:
            f.write('(module (import "env" "f" (func)))')
            f.flush()
            bad = slipway("inspect", f.name, check=False)
            self.assertEqual(bad.returncode, 1)
            self.assertIn("env", bad.stdout)

    def test_a_reader_that_goes_away_is_no_panic(self):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([f"{TREE}/bin/slipway", "completions", "bash"], stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (-signal.SIGPIPE, ""))

    def project(self, language, program):
        """A new project in a directory of its own; skips where the program that builds it is missing."""
        if program and not shutil.which(program):
            self.skipTest(f"{program} is not installed")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        slipway("init", language, f"{directory.name}/new")
        return f"{directory.name}/new"

    def test_a_new_project_in_text_runs(self):
        self.assertEqual(slipway("run", ".", cwd=self.project("wat", None)).stdout, "Hello from Slipway, by hand\n")

    def test_a_new_project_in_rust_runs(self):
        done = slipway("run", self.project("rust", "cargo"), "exit", "7", check=False)
        # Nothing of the build is in the program's output.
        self.assertEqual((done.returncode, done.stdout), (7, "Hello from Slipway\narguments: exit 7\n"), done.stderr)
        self.assertIn("cargo build", done.stderr)

    def test_a_new_project_in_c_runs(self):
        project = self.project("c", "clang")
        # All ports are free in a network of its own.
        own = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
        with self.running(project, before=own) as server:
            self.assertEqual(server.stdout.readline(), "listening on port 8080\n")
            ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/').read())"
            self.assertIn("Hello", run("nsenter", "-t", str(server.pid), "-n", "python3", "-c", ask).stdout)
            server.terminate()
            self.assertEqual(server.wait(timeout=PATIENCE), 143)

    def test_a_new_project_in_cpp_runs(self):
        done = slipway("run", self.project("cpp", "clang++"), "--top", "1", input="to be or\nnot to be\n")
        self.assertEqual(done.stdout, "       2        6       19 -\n       2 be\n")

    def test_a_new_project_in_go_runs(self):
        done = slipway("run", self.project("go", "go"), "-top", "1", input="to be or not to be")
        self.assertEqual(json.loads(done.stdout)["top"], [{"word": "be", "count": 2}])

    def test_a_new_project_in_assemblyscript_runs(self):
        project = self.project("assemblyscript", "npx")
        packages = glob.glob(f"{EXAMPLES}/build/npm/*/node_modules")
        if not packages:
            self.skipTest("examples/assemblyscript-stats is not built: its packages would have to be fetched")
        shutil.copytree(packages[0], f"{project}/node_modules", symlinks=True)
        self.assertEqual(slipway("run", project, input="1\n2.5\n9\n").stdout, "3 numbers: 1.0 4.17 9.0\n")

    def test_a_new_project_in_zig_runs(self):
        done = slipway("run", self.project("zig", "zig"), input="hi\n")
        self.assertEqual(done.stdout, "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4  -\n")

    def test_init_overwrites_nothing(self):
        with tempfile.TemporaryDirectory() as d:
            write(f"{d}/wat-hello.wat", "mine")
            done = slipway("init", "wat", d, check=False)
            self.assertEqual((done.returncode, os.listdir(d)), (125, ["wat-hello.wat"]))
            self.assertIn(f"{d}/wat-hello.wat is there already", done.stderr)
            with open(f"{d}/wat-hello.wat") as f:
                self.assertEqual(f.read(), "mine")

    def test_a_folder_that_cannot_be_built_says_why(self):
        with tempfile.TemporaryDirectory() as d:
            for flags, source, words in [
                ([], None, ["Cargo.toml", "*.wat", "slipway init"]), (["--watch"], "a.wasm", ["project folder"]),
                ([], "go.mod", ["'go' is missing", "https://go.dev/dl"]),
            ]:
                if source:
                    write(f"{d}/{source}", "")
                target = f"{d}/a.wasm" if flags else d
                done = slipway("run", *flags, target, check=False, env={**os.environ, "PATH": "/nonexistent"})
                self.assertEqual((done.returncode, done.stdout), (125, ""))
                for word in words:
                    self.assertIn(word, done.stderr)

    @contextlib.contextmanager
    def running(self, *args, before=(), **options):
        """A `slipway run` in the background, which does not outlive the test."""
        command = [*before, f"{TREE}/bin/slipway", "run", *args]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
            # Who waits for a line that does not come finds the end of the stream.
            deadline = threading.Timer(PATIENCE, process.terminate)
            deadline.start()
            try:
                yield process
            finally:
                deadline.cancel()
                process.terminate()

    @contextlib.contextmanager
    def watched(self, **options):
        """A project of one file of C, and its --watch."""
        if not shutil.which("clang"):
            self.skipTest("clang is not installed")
        with tempfile.TemporaryDirectory() as d:
            write(f"{d}/a.c", SLEEPER.format("one"))
            with self.running("--watch", d, **options) as process:
                yield f"{d}/a.c", process

    def started(self, process):
        """Descriptors of the processes that it has started, which are some."""
        pids = descendants(process.pid)
        self.assertNotEqual(pids, [])
        descriptors = [os.pidfd_open(pid) for pid in pids]
        for descriptor in descriptors:
            self.addCleanup(os.close, descriptor)
        return descriptors

    def interrupt(self, process):
        """Ctrl-C ends it with 130, and all that it has started."""
        started = self.started(process)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=PATIENCE), 130)
        self.assertTrue(ended(started))

    def said(self, process, words):
        """Waits for a line on stderr that has the words."""
        while words not in (line := process.stderr.readline()):
            self.assertNotEqual(line, "", words)

    def test_watch_builds_and_runs_what_has_changed(self):
        with self.watched() as (source, process):
            self.assertEqual(process.stdout.readline(), "one\n")
            write(source, SLEEPER.format("two"))
            self.assertEqual(process.stdout.readline(), "two\n")
            write(source, "int main(")
            self.said(process, "waiting for a change")
            self.assertEqual(descendants(process.pid), [])
            write(source, SLEEPER.format("three"))
            self.assertEqual(process.stdout.readline(), "three\n")
            self.interrupt(process)

    def test_a_change_or_a_signal_ends_a_build(self):
        with tempfile.TemporaryDirectory() as path:
            # A compiler that starts another, as they do, and never ends.
            write(f"{path}/clang", "#!/bin/sh\nsleep 1000 >/dev/null 2>&1 &\necho compiling >&2\nwait\n")
            os.chmod(f"{path}/clang", 0o755)
            with self.watched(env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}) as (source, process):
                self.said(process, "compiling")
                first = self.started(process)
                write(source, SLEEPER.format("two"))
                self.said(process, "compiling")
                self.assertTrue(ended(first))
                self.interrupt(process)

    def test_compile_warms_the_cache_that_ls_and_rm_show(self):
        slipway("cache", "rm", "--all")
        slipway("compile", f"{EXAMPLES}/hello.wasm")
        rows = json.loads(slipway("cache", "ls", "--json").stdout)
        self.assertEqual(len(rows), 1)
        self.assertNotIn("compiling", self.hello("exit", "0").stderr)
        self.assertIn("removed 1", slipway("cache", "rm", rows[0]["artefact"][:12]).stdout)

    def test_doctor_names_what_is_wrong_and_the_remedy(self):
        done = slipway("doctor", "--json", "--address", "/nonexistent", "--config", "/nonexistent", check=False)
        findings = {f["check"]: f for f in json.loads(done.stdout)}
        self.assertEqual(done.returncode, 1)
        self.assertEqual((findings["containerd"]["level"], findings["engine"]["level"]), ("error", "ok"))
        self.assertIn("--address", findings["containerd"]["remedy"])

    def test_completions_and_man_pages_are_generated(self):
        self.assertIn("complete", slipway("completions", "bash").stdout)
        with tempfile.TemporaryDirectory() as d:
            slipway("man", d)
            self.assertIn("slipway-run.1", os.listdir(d))

    def test_the_shim_says_its_version_and_refuses_bad_command_lines(self):
        shim = f"{TREE}/bin/containerd-shim-slipway-v1"
        self.assertIn("Version", subprocess.run([shim, "-v"], capture_output=True, text=True, check=True).stdout)
        bad = subprocess.run([shim, "-bogus"], capture_output=True, text=True)
        self.assertEqual(bad.returncode, 1)
        self.assertIn("bogus", bad.stderr)
