//! Link flags of the compiler.

fn main() {
    // libwasmedge may want a newer libc than the build host has; the compiler is started through the bundle's loader.
    println!("cargo:rustc-link-arg-bins=-Wl,--allow-shlib-undefined");
}
