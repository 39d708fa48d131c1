// Files: the shim has the standard streams alone, and WASI's functions to build on. Copy this file.
import {
  errno,
  errnoToString,
  fd_close,
  fd_prestat_dir_name,
  fd_prestat_get,
  fd_read,
  lookupflags,
  path_open,
  prestat,
  rights,
} from "bindings/wasi_snapshot_preview1";

const FIRST_DIRECTORY: u32 = 3;

// Where the functions put what they return: two words.
const result = memory.data(8);

// The directory "/" among those that the program starts with; a working directory is another.
function root(): i32 {
  const name = memory.data(1);
  for (let fd = FIRST_DIRECTORY; fd_prestat_get(fd, changetype<prestat>(result)) == errno.SUCCESS; fd++) {
    const length = load<u32>(result, 4);
    if (length == 1 && fd_prestat_dir_name(fd, name, 1) == errno.SUCCESS && load<u8>(name) == 0x2f) return fd;
  }
  return -1;
}

// Opens a file for reading by its absolute path; -1 where that fails.
export function open(path: string): i32 {
  const directory = root();
  if (directory < 0 || !path.startsWith("/")) return -1;
  const relative = String.UTF8.encode(path.slice(1));
  const error = path_open(
    directory, lookupflags.SYMLINK_FOLLOW, changetype<usize>(relative), relative.byteLength,
    0, rights.FD_READ, 0, 0, result,
  );
  return error == errno.SUCCESS ? load<u32>(result) : -1;
}

// All that is left to read, as UTF-8; closes the descriptor.
export function readAll(fd: u32): string {
  let bytes = new Uint8Array(65536);
  let length = 0;
  for (;;) {
    if (length == bytes.length) {
      const larger = new Uint8Array(2 * length);
      larger.set(bytes);
      bytes = larger;
    }
    store<usize>(result, bytes.dataStart + length);
    store<usize>(result, bytes.length - length, 4);
    const error = fd_read(fd, result, 1, result);
    if (error != errno.SUCCESS) throw new Error(errnoToString(error));
    const count = load<i32>(result);
    if (count == 0) break;
    length += count;
  }
  fd_close(fd);
  return String.UTF8.decodeUnsafe(bytes.dataStart, length);
}
