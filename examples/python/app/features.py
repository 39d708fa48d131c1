"""What a script sees of its world, one line each. docs/languages.md rests on it."""
import datetime
import decimal
import hashlib
import os
import pathlib
import random
import sys
import time

print("arguments", *sys.argv[1:])
print("environment", os.environ["GREETING"])
print("standard input", repr(sys.stdin.readline()))
print("standard error", file=sys.stderr)

note = pathlib.Path("/scratch/note")
note.write_text("geschrieben: äöü\n", "utf-8")
renamed = note.rename("/scratch/renamed")
print("files", *os.listdir("/scratch"), renamed.read_text("utf-8").strip())

print("clock", datetime.datetime.now(datetime.timezone.utc).year >= 2024)
print("random", random.random() != random.random(), len(os.urandom(8)))
before = time.monotonic()
time.sleep(0.02)
print("sleep", time.monotonic() - before >= 0.02)
print("big integers", 2**70)
print("decimal", decimal.Decimal(1) / 7)
print("sha256", hashlib.sha256(b"").hexdigest()[:8])


def deep(n):
    return 1 + deep(n + 1)


try:
    deep(0)
except RecursionError as error:
    print("endless recursion", type(error).__name__)
sys.exit(7)
