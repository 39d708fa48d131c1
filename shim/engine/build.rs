//! Finds libwasmedge: `$WASMEDGE_DIR/lib`, else where `make engine` has put it: `$SLIPWAY_ENGINE_DIR`, or `target/engine`.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=WASMEDGE_DIR");
    println!("cargo:rerun-if-env-changed=SLIPWAY_ENGINE_DIR");
    if std::env::var_os("CARGO_FEATURE_BUNDLED").is_some() {
        return;
    }
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    // An empty variable is none, as for engine/fetch; a relative one is joined, since cargo starts this in another directory.
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let engine = workspace.join(
        named("WASMEDGE_DIR")
            .or_else(|| named("SLIPWAY_ENGINE_DIR"))
            .map_or_else(|| PathBuf::from("target/engine"), PathBuf::from),
    );
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
