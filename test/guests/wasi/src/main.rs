//! What a module sees of `wasi_snapshot_preview1`.

fn main() {}
