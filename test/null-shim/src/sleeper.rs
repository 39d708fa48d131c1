//! What every container of the null shim runs: it sleeps until it is killed.
#![no_main]

/// Replaces the runtime's `main`, so that none of Rust's start-up touches a page.
// SAFETY: no other symbol of this program is called `main`.
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    loop {
        // SAFETY: takes no argument and touches no memory.
        unsafe { libc::pause() };
    }
}
