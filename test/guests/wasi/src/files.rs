//! Files and directories: every call, its success and its errors.

use crate::wasi::*;
use crate::{Area, Check, Checks, expect, same, value};

const SET: u8 = 0;
const CURRENT: u8 = 1;
const END: u8 = 2;
const ATIM: u16 = 1;
const ATIM_NOW: u16 = 2;
const MTIM: u16 = 4;
const MTIM_NOW: u16 = 8;

pub const WRITABLE: Checks = &[
    ("path_open creates, truncates and refuses", open_creates),
    ("path_open tells directories from files", open_kinds),
    ("path_open refuses names that cannot be", open_names),
    ("path_open of a name with a NUL byte", open_nul),
    ("path_open of a name that is not UTF-8", open_bytes),
    ("path_open stays below its directory", open_escapes),
    ("fd_read and fd_write move the offset", read_write),
    ("fd_write gathers many pieces", gather),
    ("fd_pread and fd_pwrite do not move the offset", positional),
    ("fd_write appends", append),
    ("fd_seek and fd_tell", seek),
    ("fd_close", close),
    ("fd_renumber", renumber),
    ("fd_filestat_get and fd_filestat_set_size", filestat),
    ("fd_filestat_set_times and path_filestat_set_times", times),
    ("fd_allocate and fd_advise", allocate),
    ("fd_sync and fd_datasync", sync),
    ("fd_fdstat_get and fd_fdstat_set_flags", fdstat),
    ("fd_fdstat_set_rights only takes away", rights),
    ("fd_readdir with any buffer", readdir),
    (
        "path_create_directory and path_remove_directory",
        directories,
    ),
    ("path_unlink_file", unlink),
    ("path_rename", rename),
    ("path_link", link),
    ("path_symlink and path_readlink", symlink),
    ("symlinks that loop", loops),
    (
        "path_symlink to what its directory does not reach",
        symlink_out,
    ),
    ("path_symlink to an absolute path", symlink_absolute),
];

pub const READ_ONLY: Checks = &[
    ("a read-only file system is read", reads),
    ("a read-only file system is not written", refuses_writes),
    (
        "a read-only file is opened by a reader that may change its size",
        reads_with_all,
    ),
    (
        "path_open for reading and writing of what is read-only",
        both,
    ),
];

pub const LARGE: Checks = &[
    ("a sparse file of 5 GiB", sparse),
    ("a directory of 100,000 entries", many_entries),
];

fn create(area: &Area, name: &str, content: &str) -> Result<Fd> {
    let fd = path_open(area.fd, 0, name, CREAT | TRUNC, RIGHTS, 0)?;
    fd_write(fd, content)?;
    fd_seek(fd, 0, SET)?;
    Ok(fd)
}

/// What a program asks for a file that it reads and writes.
pub const RIGHTS: u64 = 0x08E0_01FF;

fn put(area: &Area, name: &str, content: &str) -> Result<()> {
    create(area, name, content).and_then(fd_close)
}

/// The first 256 bytes of a file.
pub fn content(directory: Fd, name: impl AsRef<[u8]>) -> Result<String> {
    let fd = path_open(directory, FOLLOW, name, 0, RIGHTS_FD_READ, 0)?;
    let mut buffer = [0; 256];
    let n = fd_read(fd, &mut buffer)?;
    fd_close(fd)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

fn open_creates(area: &Area) -> Check {
    expect!(path_open(area.fd, 0, "new", 0, RIGHTS_FD_READ, 0), NOENT);
    put(area, "new", "content").map_err(|e| format!("create: {e:?}"))?;
    same!("content", value!(content(area.fd, "new")), "content");
    expect!(path_open(area.fd, 0, "new", CREAT | EXCL, RIGHTS, 0), EXIST);
    expect!(path_open(area.fd, 0, "no/such", CREAT, RIGHTS, 0), NOENT);
    let fd = value!(path_open(area.fd, 0, "new", TRUNC, RIGHTS, 0));
    same!("size", value!(fd_filestat_get(fd)).size, 0);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "new"));
    Ok(())
}

fn open_kinds(area: &Area) -> Check {
    value!(put(area, "file", "x"));
    value!(path_create_directory(area.fd, "directory"));
    expect!(
        path_open(area.fd, 0, "file", DIRECTORY, RIGHTS_FD_READ, 0),
        NOTDIR
    );
    expect!(path_open(area.fd, 0, "file/", 0, RIGHTS_FD_READ, 0), NOTDIR);
    expect!(
        path_open(area.fd, 0, "file/below", 0, RIGHTS_FD_READ, 0),
        NOTDIR
    );
    expect!(
        path_open(area.fd, 0, "directory", 0, RIGHTS_FD_WRITE, 0),
        ISDIR
    );
    let directory = value!(path_open(
        area.fd,
        0,
        "directory",
        DIRECTORY,
        DIRECTORY_RIGHTS,
        0
    ));
    expect!(fd_read(directory, &mut [0; 8]), ISDIR | BADF | NOTCAPABLE);
    expect!(fd_write(directory, "x"), ISDIR | BADF | NOTCAPABLE);
    let file = value!(path_open(area.fd, 0, "file", 0, RIGHTS_FD_READ, 0));
    expect!(
        path_open(file, 0, "below", 0, RIGHTS_FD_READ, 0),
        NOTDIR | NOTCAPABLE
    );
    expect!(fd_readdir(file, &mut [0; 64], 0), NOTDIR | NOTCAPABLE);
    expect!(path_open(9999, 0, "file", 0, RIGHTS_FD_READ, 0), BADF);
    value!(fd_close(file));
    value!(fd_close(directory));
    value!(path_remove_directory(area.fd, "directory"));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn open_names(area: &Area) -> Check {
    expect!(path_open(area.fd, 0, "", 0, RIGHTS_FD_READ, 0), NOENT);
    let long = "n".repeat(256);
    expect!(path_open(area.fd, 0, &long, CREAT, RIGHTS, 0), NAMETOOLONG);
    let longest = "n".repeat(255);
    value!(put(area, &longest, "x"));
    value!(path_unlink_file(area.fd, &longest));
    // Parts that say nothing.
    value!(put(area, "file", "x"));
    for path in ["./file", ".//file", "././file"] {
        same!(path, value!(content(area.fd, path)), "x");
    }
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn open_nul(area: &Area) -> Check {
    value!(put(area, "a", "x"));
    let result = path_open(area.fd, 0, "a\0b", 0, RIGHTS_FD_READ, 0);
    value!(path_unlink_file(area.fd, "a"));
    expect!(result, INVAL | ILSEQ | NOENT);
    Ok(())
}

fn open_bytes(area: &Area) -> Check {
    let name = b"\xff\xfe caf\xe9";
    let fd = value!(path_open(area.fd, 0, name, CREAT | EXCL, RIGHTS, 0));
    value!(fd_close(fd));
    let names = value!(names(area.fd, 512));
    value!(path_unlink_file(area.fd, name));
    same!("listed", names.iter().any(|n| n == name), true);
    Ok(())
}

fn open_escapes(area: &Area) -> Check {
    value!(path_create_directory(area.fd, "inside"));
    for path in [
        "..",
        "../",
        "../etc/hosts",
        "inside/../..",
        "inside/../../etc",
        "./../etc",
    ] {
        expect!(
            path_open(area.fd, FOLLOW, path, 0, RIGHTS_FD_READ, 0),
            PERM | NOTCAPABLE
        );
        expect!(path_filestat_get(area.fd, FOLLOW, path), PERM | NOTCAPABLE);
    }
    expect!(
        path_open(area.fd, FOLLOW, "/etc/hosts", 0, RIGHTS_FD_READ, 0),
        PERM | NOTCAPABLE
    );
    expect!(path_create_directory(area.fd, "../made"), PERM | NOTCAPABLE);
    expect!(path_unlink_file(area.fd, "../gone"), PERM | NOTCAPABLE);
    expect!(
        path_rename(area.fd, "inside", "../outside"),
        PERM | NOTCAPABLE
    );
    expect!(
        path_symlink("target", area.fd, "../link"),
        PERM | NOTCAPABLE
    );
    // The way back is none out.
    value!(path_filestat_get(area.fd, FOLLOW, "inside/.."));
    value!(path_remove_directory(area.fd, "inside"));
    Ok(())
}

fn read_write(area: &Area) -> Check {
    let fd = value!(create(area, "file", "hello world"));
    let mut buffer = [0; 5];
    same!("read", value!(fd_read(fd, &mut buffer)), 5);
    same!("bytes", &buffer, b"hello");
    same!("written", value!(fd_write(fd, "!")), 1);
    same!("offset", value!(fd_tell(fd)), 6);
    same!("rest", value!(fd_read(fd, &mut [0; 64])), 5);
    same!("at the end", value!(fd_read(fd, &mut [0; 64])), 0);
    value!(fd_close(fd));
    same!("content", value!(content(area.fd, "file")), "hello!world");
    let reader = value!(path_open(area.fd, 0, "file", 0, RIGHTS_FD_READ, 0));
    expect!(fd_write(reader, "x"), BADF | NOTCAPABLE);
    let writer = value!(path_open(area.fd, 0, "file", 0, RIGHTS_FD_WRITE, 0));
    expect!(fd_read(writer, &mut [0; 8]), BADF | NOTCAPABLE);
    value!(fd_close(reader));
    value!(fd_close(writer));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn gather(area: &Area) -> Check {
    let fd = value!(create(area, "file", ""));
    let pieces: Vec<&[u8]> = vec![b"ab"; 1024];
    same!("1,024 pieces", value!(fd_writev(fd, &pieces)), 2048);
    let pieces: Vec<&[u8]> = vec![b"ab"; 1025];
    expect!(fd_writev(fd, &pieces), INVAL | SUCCESS);
    same!("none", value!(fd_writev(fd, &[])), 0);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn positional(area: &Area) -> Check {
    let fd = value!(create(area, "file", "0123456789"));
    let mut buffer = [0; 4];
    same!("read", value!(fd_pread(fd, &mut buffer, 3)), 4);
    same!("bytes", &buffer, b"3456");
    same!("past the end", value!(fd_pread(fd, &mut buffer, 100)), 0);
    same!("written", value!(fd_pwrite(fd, "xy", 8)), 2);
    same!("offset", value!(fd_tell(fd)), 0);
    expect!(fd_pread(fd, &mut buffer, u64::MAX), INVAL);
    value!(fd_close(fd));
    same!("content", value!(content(area.fd, "file")), "01234567xy");
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn append(area: &Area) -> Check {
    value!(put(area, "file", "one "));
    let fd = value!(path_open(area.fd, 0, "file", 0, RIGHTS, FDFLAGS_APPEND));
    same!("flags", value!(fd_fdstat_get(fd)).fs_flags, FDFLAGS_APPEND);
    let other = value!(path_open(area.fd, 0, "file", 0, RIGHTS, FDFLAGS_APPEND));
    value!(fd_write(fd, "two "));
    value!(fd_write(other, "three "));
    value!(fd_seek(fd, 0, SET));
    value!(fd_write(fd, "four"));
    value!(fd_close(fd));
    value!(fd_close(other));
    same!(
        "content",
        value!(content(area.fd, "file")),
        "one two three four"
    );
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn seek(area: &Area) -> Check {
    let fd = value!(create(area, "file", "0123456789"));
    same!("from the end", value!(fd_seek(fd, -3, END)), 7);
    same!("from here", value!(fd_seek(fd, -2, CURRENT)), 5);
    same!("past the end", value!(fd_seek(fd, 100, END)), 110);
    same!("tell", value!(fd_tell(fd)), 110);
    expect!(fd_seek(fd, -1, SET), INVAL);
    expect!(fd_seek(fd, 0, 9), INVAL);
    expect!(fd_seek(9999, 0, SET), BADF);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn close(area: &Area) -> Check {
    let fd = value!(create(area, "file", ""));
    value!(fd_close(fd));
    expect!(fd_close(fd), BADF);
    expect!(fd_read(fd, &mut [0; 8]), BADF);
    expect!(fd_fdstat_get(fd), BADF);
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn renumber(area: &Area) -> Check {
    let one = value!(create(area, "one", "1"));
    let two = value!(create(area, "two", "2"));
    value!(fd_renumber(one, two));
    expect!(fd_read(one, &mut [0; 1]), BADF);
    let mut buffer = [0; 1];
    value!(fd_read(two, &mut buffer));
    same!("bytes", &buffer, b"1");
    expect!(fd_renumber(9999, two), BADF);
    value!(fd_close(two));
    value!(path_unlink_file(area.fd, "one"));
    value!(path_unlink_file(area.fd, "two"));
    Ok(())
}

fn filestat(area: &Area) -> Check {
    const REGULAR: u8 = 4;
    let fd = value!(create(area, "file", "0123456789"));
    let stat = value!(fd_filestat_get(fd));
    same!("size", stat.size, 10);
    same!("links", stat.nlink, 1);
    same!("type", stat.filetype.raw(), REGULAR);
    let by_path = value!(path_filestat_get(area.fd, 0, "file"));
    same!("inode", (by_path.dev, by_path.ino), (stat.dev, stat.ino));
    value!(fd_filestat_set_size(fd, 4));
    same!("shorter", value!(content(area.fd, "file")), "0123");
    value!(fd_filestat_set_size(fd, 6));
    same!("longer", value!(content(area.fd, "file")), "0123\0\0");
    expect!(fd_filestat_set_size(fd, u64::MAX), INVAL | FBIG);
    expect!(path_filestat_get(area.fd, 0, "none"), NOENT);
    expect!(path_filestat_get(area.fd, 0, "file/below"), NOTDIR);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn times(area: &Area) -> Check {
    const SECOND: u64 = 1_000_000_000;
    let fd = value!(create(area, "file", ""));
    value!(fd_filestat_set_times(
        fd,
        5 * SECOND,
        7 * SECOND + 1,
        ATIM | MTIM
    ));
    let stat = value!(fd_filestat_get(fd));
    same!(
        "by descriptor",
        (stat.atim, stat.mtim),
        (5 * SECOND, 7 * SECOND + 1)
    );
    value!(path_filestat_set_times(
        area.fd,
        0,
        "file",
        (9 * SECOND, 0),
        ATIM
    ));
    let stat = value!(fd_filestat_get(fd));
    same!(
        "one alone",
        (stat.atim, stat.mtim),
        (9 * SECOND, 7 * SECOND + 1)
    );
    value!(fd_filestat_set_times(fd, 0, 0, MTIM_NOW));
    let (now, stat) = (
        value!(clock_time_get(CLOCKID_REALTIME.raw())),
        value!(fd_filestat_get(fd)),
    );
    same!("now", now.abs_diff(stat.mtim) < 60 * SECOND, true);
    expect!(fd_filestat_set_times(fd, 0, 0, ATIM | ATIM_NOW), INVAL);
    expect!(
        path_filestat_set_times(area.fd, 0, "none", (0, 0), MTIM),
        NOENT
    );
    // The link's own, and its target's.
    value!(path_symlink("file", area.fd, "link"));
    value!(path_filestat_set_times(
        area.fd,
        FOLLOW,
        "link",
        (0, 3 * SECOND),
        MTIM
    ));
    same!(
        "through a link",
        value!(fd_filestat_get(fd)).mtim,
        3 * SECOND
    );
    value!(path_unlink_file(area.fd, "link"));
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn allocate(area: &Area) -> Check {
    let fd = value!(create(area, "file", "x"));
    value!(fd_allocate(fd, 0, 4096));
    same!("size", value!(fd_filestat_get(fd)).size, 4096);
    expect!(fd_allocate(fd, 0, 0), INVAL);
    value!(fd_advise(fd, 0, 4096, 0));
    expect!(fd_advise(fd, 0, 4096, 99), INVAL);
    expect!(fd_allocate(9999, 0, 1), BADF);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn sync(area: &Area) -> Check {
    let fd = value!(create(area, "file", "x"));
    value!(fd_sync(fd));
    value!(fd_datasync(fd));
    expect!(fd_sync(9999), BADF);
    expect!(fd_datasync(9999), BADF);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn fdstat(area: &Area) -> Check {
    const REGULAR: u8 = 4;
    let fd = value!(create(area, "file", ""));
    let stat = value!(fd_fdstat_get(fd));
    same!("type", stat.fs_filetype.raw(), REGULAR);
    same!("flags", stat.fs_flags, 0);
    value!(fd_fdstat_set_flags(fd, FDFLAGS_APPEND | FDFLAGS_NONBLOCK));
    let flags = value!(fd_fdstat_get(fd)).fs_flags;
    same!("set", flags, FDFLAGS_APPEND | FDFLAGS_NONBLOCK);
    value!(fd_fdstat_set_flags(fd, 0));
    same!("cleared", value!(fd_fdstat_get(fd)).fs_flags, 0);
    value!(fd_close(fd));
    for flag in [FDFLAGS_DSYNC, FDFLAGS_SYNC, FDFLAGS_RSYNC] {
        let fd = value!(path_open(area.fd, 0, "file", 0, RIGHTS, flag));
        same!(
            "opened with",
            value!(fd_fdstat_get(fd)).fs_flags & flag,
            flag
        );
        value!(fd_close(fd));
    }
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

fn rights(area: &Area) -> Check {
    let fd = value!(create(area, "file", "x"));
    value!(fd_fdstat_set_rights(fd, RIGHTS_FD_READ, 0));
    value!(fd_read(fd, &mut [0; 1]));
    expect!(fd_write(fd, "x"), NOTCAPABLE);
    expect!(
        fd_fdstat_set_rights(fd, RIGHTS_FD_READ | RIGHTS_FD_WRITE, 0),
        NOTCAPABLE
    );
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "file"));
    Ok(())
}

/// The names in a directory, read with a buffer of `size` bytes, as libraries do it.
fn names(fd: Fd, size: usize) -> Result<Vec<Vec<u8>>> {
    const HEADER: usize = 24;
    let (mut names, mut cookie, mut buffer) = (Vec::new(), 0, vec![0; size]);
    loop {
        let n = fd_readdir(fd, &mut buffer, cookie)?;
        let mut rest = &buffer[..n];
        let mut whole = 0;
        while let Some((header, after)) = rest.split_at_checked(HEADER) {
            let number = |at: usize| {
                header[at..at + 8]
                    .iter()
                    .rev()
                    .fold(0u64, |all, b| all << 8 | u64::from(*b))
            };
            let length = (number(16) & 0xffff_ffff) as usize;
            let Some((name, after)) = after.split_at_checked(length) else {
                break;
            };
            names.push(name.to_vec());
            cookie = number(0);
            whole += 1;
            rest = after;
        }
        if n < buffer.len() {
            return Ok(names);
        }
        if whole == 0 {
            buffer.resize(buffer.len() * 2, 0);
        }
    }
}

fn readdir(area: &Area) -> Check {
    value!(path_create_directory(area.fd, "many"));
    let directory = value!(path_open(
        area.fd,
        0,
        "many",
        DIRECTORY,
        DIRECTORY_RIGHTS,
        0
    ));
    let mut expected: Vec<Vec<u8>> = (0..200)
        .map(|i| format!("entry-{i}").into_bytes())
        .collect();
    for name in &expected {
        value!(path_open(directory, 0, name, CREAT, RIGHTS, 0).and_then(fd_close));
    }
    expected.extend([b".".to_vec(), b"..".to_vec()]);
    expected.sort();
    for size in [1, 40, 100, 4096, 65536] {
        let mut found = value!(names(directory, size));
        found.sort();
        same!(
            format!("names with {size} bytes"),
            found.len(),
            expected.len()
        );
        same!(format!("all with {size} bytes"), found == expected, true);
    }
    // As a recursive removal does it.
    for name in value!(names(directory, 100)) {
        if !name.starts_with(b".") {
            value!(path_unlink_file(directory, name));
        }
    }
    same!("left", value!(names(directory, 100)).len(), 2);
    value!(fd_close(directory));
    value!(path_remove_directory(area.fd, "many"));
    Ok(())
}

fn directories(area: &Area) -> Check {
    value!(path_create_directory(area.fd, "directory"));
    expect!(path_create_directory(area.fd, "directory"), EXIST);
    expect!(path_create_directory(area.fd, "no/such"), NOENT);
    value!(path_create_directory(area.fd, "directory/below/"));
    expect!(path_remove_directory(area.fd, "directory"), NOTEMPTY);
    value!(path_remove_directory(area.fd, "directory/below"));
    expect!(path_remove_directory(area.fd, "directory/below"), NOENT);
    value!(put(area, "file", ""));
    expect!(path_remove_directory(area.fd, "file"), NOTDIR);
    expect!(path_create_directory(area.fd, "file"), EXIST);
    value!(path_unlink_file(area.fd, "file"));
    value!(path_remove_directory(area.fd, "directory"));
    Ok(())
}

fn unlink(area: &Area) -> Check {
    value!(path_create_directory(area.fd, "directory"));
    expect!(path_unlink_file(area.fd, "directory"), ISDIR | PERM);
    expect!(path_unlink_file(area.fd, "none"), NOENT);
    let fd = value!(create(area, "file", "kept"));
    value!(path_unlink_file(area.fd, "file"));
    let mut buffer = [0; 4];
    same!(
        "read after it was unlinked",
        value!(fd_read(fd, &mut buffer)),
        4
    );
    value!(put(area, "file", ""));
    expect!(path_unlink_file(area.fd, "file/"), NOTDIR);
    value!(path_unlink_file(area.fd, "file"));
    value!(fd_close(fd));
    value!(path_remove_directory(area.fd, "directory"));
    Ok(())
}

fn rename(area: &Area) -> Check {
    value!(put(area, "one", "1"));
    value!(put(area, "two", "2"));
    value!(path_rename(area.fd, "one", "two"));
    same!("over a file", value!(content(area.fd, "two")), "1");
    expect!(path_rename(area.fd, "one", "three"), NOENT);
    value!(path_create_directory(area.fd, "directory"));
    value!(path_create_directory(area.fd, "full"));
    value!(put(area, "full/file", ""));
    expect!(path_rename(area.fd, "two", "directory"), ISDIR);
    expect!(path_rename(area.fd, "directory", "two"), NOTDIR);
    expect!(path_rename(area.fd, "directory", "full"), NOTEMPTY | EXIST);
    expect!(path_rename(area.fd, "full", "full/below"), INVAL);
    value!(path_rename(area.fd, "full", "directory"));
    value!(path_unlink_file(area.fd, "directory/file"));
    value!(path_remove_directory(area.fd, "directory"));
    value!(path_unlink_file(area.fd, "two"));
    Ok(())
}

fn link(area: &Area) -> Check {
    value!(put(area, "one", "content"));
    value!(path_link(area.fd, 0, "one", "two"));
    same!(
        "links",
        value!(path_filestat_get(area.fd, 0, "two")).nlink,
        2
    );
    expect!(path_link(area.fd, 0, "one", "two"), EXIST);
    expect!(path_link(area.fd, 0, "none", "three"), NOENT);
    value!(path_create_directory(area.fd, "directory"));
    expect!(path_link(area.fd, 0, "directory", "three"), PERM | ISDIR);
    value!(path_remove_directory(area.fd, "directory"));
    value!(path_unlink_file(area.fd, "one"));
    same!("content", value!(content(area.fd, "two")), "content");
    value!(path_unlink_file(area.fd, "two"));
    Ok(())
}

fn symlink(area: &Area) -> Check {
    const SYMLINK: u8 = 7;
    value!(put(area, "file", "content"));
    value!(path_symlink("file", area.fd, "link"));
    expect!(path_symlink("file", area.fd, "link"), EXIST);
    same!("followed", value!(content(area.fd, "link")), "content");
    expect!(path_open(area.fd, 0, "link", 0, RIGHTS_FD_READ, 0), LOOP);
    let own = value!(path_filestat_get(area.fd, 0, "link"));
    same!("its own type", own.filetype.raw(), SYMLINK);
    let target = value!(path_filestat_get(area.fd, FOLLOW, "link"));
    same!("its target's size", target.size, 7);
    let mut buffer = [0; 64];
    same!(
        "readlink",
        value!(path_readlink(area.fd, "link", &mut buffer)),
        4
    );
    same!("target", &buffer[..4], b"file");
    same!(
        "cut short",
        value!(path_readlink(area.fd, "link", &mut buffer[..2])),
        2
    );
    expect!(path_readlink(area.fd, "file", &mut buffer), INVAL);
    expect!(path_readlink(area.fd, "none", &mut buffer), NOENT);
    value!(path_create_directory(area.fd, "directory"));
    value!(path_symlink("../file", area.fd, "directory/link"));
    same!(
        "to the parent",
        value!(content(area.fd, "directory/link")),
        "content"
    );
    value!(path_unlink_file(area.fd, "directory/link"));
    value!(path_remove_directory(area.fd, "directory"));
    // Where it leads nowhere, it is still a link.
    value!(path_unlink_file(area.fd, "file"));
    expect!(
        path_open(area.fd, FOLLOW, "link", 0, RIGHTS_FD_READ, 0),
        NOENT
    );
    value!(path_filestat_get(area.fd, 0, "link"));
    value!(path_unlink_file(area.fd, "link"));
    Ok(())
}

fn loops(area: &Area) -> Check {
    value!(path_symlink("b", area.fd, "a"));
    value!(path_symlink("a", area.fd, "b"));
    value!(path_symlink("self", area.fd, "self"));
    for name in ["a", "self", "a/below"] {
        expect!(path_open(area.fd, FOLLOW, name, 0, RIGHTS_FD_READ, 0), LOOP);
    }
    for name in ["a", "b", "self"] {
        value!(path_unlink_file(area.fd, name));
    }
    Ok(())
}

fn symlink_out(area: &Area) -> Check {
    value!(path_symlink("../../../../../../etc/hosts", area.fd, "up"));
    let through = path_open(area.fd, FOLLOW, "up", 0, RIGHTS_FD_READ, 0);
    value!(path_unlink_file(area.fd, "up"));
    expect!(through, PERM | NOTCAPABLE);
    Ok(())
}

fn symlink_absolute(area: &Area) -> Check {
    value!(path_symlink("/data/file", area.fd, "absolute"));
    value!(path_unlink_file(area.fd, "absolute"));
    Ok(())
}

/// The tree that the test has made: `file` and `directory/`.
fn reads(area: &Area) -> Check {
    value!(content(area.fd, "file"));
    value!(names(area.fd, 512));
    value!(path_filestat_get(area.fd, FOLLOW, "directory"));
    Ok(())
}

fn refuses_writes(area: &Area) -> Check {
    expect!(path_open(area.fd, 0, "new", CREAT, RIGHTS, 0), ROFS);
    expect!(path_open(area.fd, 0, "file", 0, RIGHTS_FD_WRITE, 0), ROFS);
    expect!(path_open(area.fd, 0, "file", TRUNC, RIGHTS, 0), ROFS);
    expect!(path_create_directory(area.fd, "new"), ROFS);
    expect!(path_remove_directory(area.fd, "directory"), ROFS);
    expect!(path_unlink_file(area.fd, "file"), ROFS);
    expect!(path_rename(area.fd, "file", "new"), ROFS);
    expect!(path_link(area.fd, 0, "file", "new"), ROFS);
    expect!(path_symlink("file", area.fd, "new"), ROFS);
    expect!(
        path_filestat_set_times(area.fd, 0, "file", (0, 0), MTIM),
        ROFS
    );
    Ok(())
}

/// As Go asks for a file that it reads.
fn reads_with_all(area: &Area) -> Check {
    const SET_SIZE: u64 = 1 << 22;
    let fd = value!(path_open(
        area.fd,
        0,
        "file",
        0,
        RIGHTS_FD_READ | SET_SIZE,
        0
    ));
    same!("read", value!(fd_read(fd, &mut [0; 1])), 1);
    value!(fd_close(fd));
    Ok(())
}

fn both(area: &Area) -> Check {
    expect!(
        path_open(area.fd, 0, "file", 0, RIGHTS_FD_READ | RIGHTS_FD_WRITE, 0),
        ROFS
    );
    Ok(())
}

fn sparse(area: &Area) -> Check {
    const GIB: u64 = 1 << 30;
    let fd = value!(create(area, "sparse", ""));
    value!(fd_filestat_set_size(fd, 5 * GIB));
    same!("size", value!(fd_filestat_get(fd)).size, 5 * GIB);
    value!(fd_pwrite(fd, "end", 5 * GIB - 3));
    same!("seek", value!(fd_seek(fd, -3, END)), 5 * GIB - 3);
    let mut buffer = [0; 8];
    same!("read", value!(fd_read(fd, &mut buffer)), 3);
    same!("bytes", &buffer[..3], b"end");
    same!("hole", value!(fd_pread(fd, &mut buffer, 3 * GIB)), 8);
    same!("zeros", buffer, [0; 8]);
    value!(fd_close(fd));
    value!(path_unlink_file(area.fd, "sparse"));
    Ok(())
}

/// The test has made them.
fn many_entries(area: &Area) -> Check {
    let directory = value!(path_open(
        area.fd,
        0,
        "many",
        DIRECTORY,
        DIRECTORY_RIGHTS,
        0
    ));
    let mut found = value!(names(directory, 4096));
    found.sort();
    found.dedup();
    same!("names", found.len(), 100_002);
    value!(fd_close(directory));
    Ok(())
}
