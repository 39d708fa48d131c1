// What a script sees of its world, one line each. docs/languages.md rests on it.
import * as std from "qjs:std";
import * as os from "qjs:os";

print("arguments", ...scriptArgs.slice(1));
print("environment", std.getenv("GREETING"));
print("standard input", std.in.getline());
std.err.puts("standard error\n");

const file = std.open("/scratch/note", "w");
file.puts("geschrieben: äöü\n");
file.close();
os.rename("/scratch/note", "/scratch/renamed");
print("files", os.readdir("/scratch")[0].filter((name) => name[0] !== ".").join(" "), std.loadFile("/scratch/renamed").trim());

print("clock", new Date().getUTCFullYear() >= 2024);
print("random", Math.random() !== Math.random());
let before = performance.now();
os.sleep(20);
print("sleep", performance.now() - before >= 20);
before = performance.now();
await new Promise((resolve) => os.setTimeout(resolve, 20));
print("timers", performance.now() - before >= 20);
print("big integers", 2n ** 70n);

const deep = (n) => 1 + deep(n + 1);
try {
    deep(0);
} catch (error) {
    print("endless recursion", error.name);
}
std.exit(7);
