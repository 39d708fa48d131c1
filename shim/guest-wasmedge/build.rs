//! Link flags of the guest.

fn main() {
    // The engine looks `mmap` up in the executable first: that is how the memory budget sees every growth.
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=mmap");
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=mmap64");
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=munmap");
    // And these, so that an exhausted call stack is told, and the calls at a trap are the module's.
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=_Unwind_Backtrace");
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=sigaction");
    // libwasmedge may want a newer libc than the build host has; the guest is started through the bundle's loader.
    println!("cargo:rustc-link-arg-bins=-Wl,--allow-shlib-undefined");
}
