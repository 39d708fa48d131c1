//! In the sandbox's bundle: a line for every container of the pod, with its id and its cgroup. `delete` reads it after a crash.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const FILE: &str = "slipway-members";

/// Notes one more, with the path of its cgroup below the hierarchies' roots.
pub fn note(bundle: &Path, id: &str, cgroup: &str) -> std::io::Result<()> {
    let file = File::options()
        .append(true)
        .create(true)
        .open(bundle.join(FILE));
    file?.write_all(format!("{id} {cgroup}\n").as_bytes())
}

/// All that were noted, as (id, cgroup); none where the bundle is no sandbox's.
pub fn read(bundle: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(bundle.join(FILE)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(id, cgroup)| (id.into(), cgroup.into()))
        .collect()
}

/// Whether the bundle is that of a sandbox.
pub fn are_noted(bundle: &Path) -> bool {
    bundle.join(FILE).exists()
}
