// Says how many numbers the files hold, one on each line, with their minimum, mean and maximum; without
// a file it reads standard input. DIGITS names the digits behind the point, default 2. Ends with 1 at a
// line that is no number and at a file that cannot be read.
import { open, readAll } from "./file";

class Stats {
  count: i32 = 0;
  sum: f64 = 0;
  min: f64 = Infinity;
  max: f64 = -Infinity;

  add(text: string, name: string): void {
    const lines = text.split("\n");
    for (let i = 0; i < lines.length; i++) {
      const line = lines[i].trim();
      if (line.length == 0) continue;
      const value = parseFloat(line);
      if (isNaN(value)) fail(`${name}: line ${i + 1}: '${line}' is not a number`);
      this.count++;
      this.sum += value;
      this.min = Math.min(this.min, value);
      this.max = Math.max(this.max, value);
    }
  }
}

function fail(message: string): void {
  // The shim's console.error writes to standard output.
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

// AssemblyScript's numbers have no toFixed.
function fixed(value: f64, digits: i32): string {
  const scale = Math.pow(10, digits);
  return (Math.round(value * scale) / scale).toString();
}

const STDIN: u32 = 0;
const digits = process.env.has("DIGITS") ? <i32>parseInt(process.env.get("DIGITS")) : 2;
const files = process.argv.slice(1);
const stats = new Stats();
if (files.length == 0) stats.add(readAll(STDIN), "standard input");
for (let i = 0; i < files.length; i++) {
  const fd = open(files[i]);
  if (fd < 0) fail(`${files[i]}: cannot be opened`);
  stats.add(readAll(fd), files[i]);
}
if (stats.count == 0) fail("there are no numbers");
const mean = stats.sum / stats.count;
console.log(`${stats.count} numbers: ${fixed(stats.min, digits)} ${fixed(mean, digits)} ${fixed(stats.max, digits)}`);
