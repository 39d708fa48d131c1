// Counts lines and words of the files named by the arguments, or of standard input.
import * as std from "qjs:std";
import { count } from "./count.js";

// scriptArgs[0] is this file.
const names = scriptArgs.slice(1);
let failed = false;

function report(name, text) {
    const { lines, words, longest } = count(text);
    print(`${name}: ${lines} lines, ${words} words, the longest is ${JSON.stringify(longest)}`);
}

for (const name of names) {
    const text = std.loadFile(name);
    if (text === null) {
        std.err.puts(`${name}: cannot be read\n`);
        failed = true;
    } else {
        report(name, text);
    }
}
if (names.length === 0) {
    report("standard input", std.in.readAsString());
}
std.exit(failed ? 1 : 0);
