"""System calls of processes that have an allow-list (shim/seccomp): what it has, and what strace has seen."""
import ctypes
import errno
import os
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


def missing_walls():
    """Of those, what this machine's kernel has not; with why."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    missing = {}
    # landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION); before its second version no rename is let through.
    version = call(444, None, 0, 1)
    if version < 2:
        missing["Landlock"] = f"the kernel's Landlock has version {max(version, 0)}, 2 is needed"
    # keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING)
    if call({"x86_64": 250, "aarch64": 219}[os.uname().machine], 0, -3, 0) < 0 and ctypes.get_errno() == errno.ENOSYS:
        missing["keyring"] = "the kernel has no keyrings"
    return missing


def called(log):
    """The system calls of processes from the moment when they have a filter."""
    filtered, calls = set(), {}
    for line in log.splitlines():
        process, _, rest = line.partition(" ")
        if begun := re.match(r" *(\w+)\((.*)", rest):
            call, arguments = begun.groups()
            if call == "seccomp" and process not in filtered and arguments.startswith("SECCOMP_SET_MODE_FILTER"):
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
