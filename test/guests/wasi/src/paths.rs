//! Symlinks as container images have them. The test's image has, all below its root:
//!   /bin -> usr/bin            /usr/bin/tool, /usr/bin/alias -> /etc/alternatives/alias -> /usr/bin/tool
//!   /lib -> /usr/lib           /usr/lib/data, /usr/lib/up -> ../bin/tool
//!   /top -> /                  /escape -> /../../etc/outside   /etc/outside
//!   /up -> ../../etc/outside
//!   /gone -> /none             /round -> /trip -> /round

use crate::files::content;
use crate::wasi::*;
use crate::{Area, Check, Checks, expect, same, value};

pub const LINKS: Checks = &[
    ("relative symlinks of an image", relative),
    ("absolute symlinks of an image", absolute),
    ("absolute symlinks from an opened directory", from_below),
    ("absolute symlinks and the way back", back),
    ("absolute symlinks that lead above the root", above),
    ("relative symlinks that lead above the root", out),
    ("absolute symlinks that lead nowhere or in circles", nowhere),
    ("what an absolute symlink says", says),
    ("files made and removed through absolute symlinks", changes),
];

pub const RACE: Checks = &[("a directory that becomes a symlink meanwhile", race)];

fn relative(area: &Area) -> Check {
    same!("/bin/tool", value!(content(area.root, "bin/tool")), "tool");
    same!(
        "/usr/lib/up",
        value!(content(area.root, "usr/lib/up")),
        "tool"
    );
    Ok(())
}

fn absolute(area: &Area) -> Check {
    same!("/lib/data", value!(content(area.root, "lib/data")), "data");
    same!("/lib/up", value!(content(area.root, "lib/up")), "tool");
    same!(
        "/bin/alias",
        value!(content(area.root, "bin/alias")),
        "tool"
    );
    same!(
        "/top/bin/tool",
        value!(content(area.root, "top/bin/tool")),
        "tool"
    );
    same!(
        "/top/top/lib/data",
        value!(content(area.root, "top/top/lib/data")),
        "data"
    );
    let stat = value!(path_filestat_get(area.root, FOLLOW, "usr/bin/alias"));
    same!("size of /usr/bin/alias", stat.size, 4);
    value!(path_filestat_get(area.root, FOLLOW, "top"));
    let fd = value!(path_open(
        area.root,
        FOLLOW,
        "top",
        DIRECTORY,
        RIGHTS_FD_READ,
        0
    ));
    value!(fd_close(fd));
    Ok(())
}

fn from_below(area: &Area) -> Check {
    let bin = value!(path_open(
        area.root,
        FOLLOW,
        "bin",
        DIRECTORY,
        DIRECTORY_RIGHTS,
        0
    ));
    same!("alias in /usr/bin", value!(content(bin, "alias")), "tool");
    // The descriptor is a way to its directory alone, whatever links say.
    expect!(
        path_open(bin, FOLLOW, "../lib/data", 0, RIGHTS_FD_READ, 0),
        PERM | NOTCAPABLE
    );
    value!(fd_close(bin));
    Ok(())
}

fn back(area: &Area) -> Check {
    same!(
        "/lib/../bin/tool",
        value!(content(area.root, "lib/../bin/tool")),
        "tool"
    );
    Ok(())
}

fn above(area: &Area) -> Check {
    same!("/escape", value!(content(area.root, "escape")), "outside");
    Ok(())
}

fn out(area: &Area) -> Check {
    expect!(
        path_open(area.root, FOLLOW, "up", 0, RIGHTS_FD_READ, 0),
        PERM | NOTCAPABLE
    );
    Ok(())
}

fn nowhere(area: &Area) -> Check {
    expect!(
        path_open(area.root, FOLLOW, "gone", 0, RIGHTS_FD_READ, 0),
        NOENT
    );
    expect!(
        path_open(area.root, FOLLOW, "gone/below", 0, RIGHTS_FD_READ, 0),
        NOENT
    );
    expect!(
        path_open(area.root, FOLLOW, "round", 0, RIGHTS_FD_READ, 0),
        LOOP
    );
    Ok(())
}

fn says(area: &Area) -> Check {
    for size in [64, 4096, 16384] {
        let mut buffer = vec![0; size];
        let n = value!(path_readlink(area.root, "lib", &mut buffer));
        same!(format!("/lib with {size} bytes"), &buffer[..n], b"/usr/lib");
    }
    Ok(())
}

fn changes(area: &Area) -> Check {
    value!(path_create_directory(area.root, "lib/made"));
    value!(path_filestat_get(area.root, 0, "usr/lib/made"));
    value!(path_rename(area.root, "lib/made", "top/moved"));
    value!(path_remove_directory(area.root, "moved"));
    Ok(())
}

/// The test swaps `swap`, a directory with a file, and a symlink to a directory outside, as fast as it can, until the file
/// `stop` is there.
fn race(area: &Area) -> Check {
    let (mut inside, mut refused) = (0, 0);
    while path_filestat_get(area.fd, 0, "stop").is_err() {
        match content(area.fd, "swap/file") {
            Ok(text) if text == "inside" => inside += 1,
            Ok(text) => return Err(format!("swap/file is {text:?} after {inside}")),
            Err(Errno::PERM) => refused += 1,
            // Neither is there, or it is another than a moment ago.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL) => {}
            Err(e) => return Err(format!("swap/file: {e:?}")),
        }
    }
    same!("saw both", inside > 0 && refused > 0, true);
    Ok(())
}
