//! Finds libwasmedge: `$WASMEDGE_DIR/lib`, else what `make engine` has put under `target/engine`.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=WASMEDGE_DIR");
    if std::env::var_os("CARGO_FEATURE_BUNDLED").is_some() {
        return;
    }
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let engine = std::env::var_os("WASMEDGE_DIR")
        .map_or_else(|| workspace.join("target/engine"), PathBuf::from);
    let library = engine.join("lib/libwasmedge.so");
    println!("cargo:rerun-if-changed={}", library.display());
    if !library.exists() {
        println!(
            "cargo:warning={} is missing: run `make engine`, or set WASMEDGE_DIR to a WasmEdge 0.17 prefix",
            library.display()
        );
    }
    println!(
        "cargo:rustc-link-search=native={}",
        engine.join("lib").display()
    );
    println!("cargo:rustc-link-lib=dylib=wasmedge");
}
