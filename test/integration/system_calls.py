"""System calls of processes that have an allow-list (shim/seccomp): what it has, and what strace has seen."""
import re

from harness import ROOT

# strace's options for a log that `called` reads.
LOGGED = ("-f", "-s", "0", "--decode-pids=pidns")

# What a list has, and no test brings about.
SELDOM = {
    "dup3": "aarch64's dup2", "ppoll": "aarch64's poll", "renameat2": "aarch64's renameat", "renameat": "aarch64's rename",
    "faccessat": "aarch64's access", "unlinkat": "aarch64's unlink",
    "clock_gettime": "on machines whose clock the kernel's own library cannot read", "getrandom": "that library's random numbers, now and then",
    "mremap": "realloc(3) of much", "sched_yield": "threads in each other's way", "restart_syscall": "a wait that was stopped",
}


def listed(program):
    """The system calls of an allow-list: "guest", "compiler" or "layers"."""
    with open(f"{ROOT}/shim/seccomp/src/{program}.rs") as f:
        rules = re.findall(r"(?:allow|refuse)\(\s*&\[([^\]]*)\]", f.read())
    return {name for calls in rules for name in re.findall(r'"(\w+)"', calls)}


def walls(log):
    """Of the walls that are no filter, those that a process has put up for itself."""
    calls = {"keyring": r"keyctl\(KEYCTL_JOIN_SESSION_KEYRING", "Landlock": r"landlock_restrict_self\("}
    return {wall for wall, call in calls.items() if re.search(call + r".*\) += \d", log)}


def called(log):
    """The system calls of processes from the moment when they have a filter."""
    filtered, calls = set(), {}
    for line in log.splitlines():
        process, _, rest = line.partition(" ")
        if begun := re.match(r" *(\w+)\((.*)", rest):
            call, arguments = begun.groups()
            if call == "seccomp" and arguments.startswith("SECCOMP_SET_MODE_FILTER"):
                filtered.add(process)
            else:
                seen = calls.setdefault(process, (set(), set()))
                seen[process in filtered].add(call)
        # A thread has its process's filter, and may run before the call that makes it is over.
        if thread := re.search(r"\bclone\b.* = (\d+)(?: /\* (\d+) in strace's PID NS \*/)?$", rest):
            if process in filtered:
                filtered.add(new := thread[2] or thread[1])
                before, after = calls.setdefault(new, (set(), set()))
                after |= before
                before.clear()
    return {call for _, after in calls.values() for call in after}
