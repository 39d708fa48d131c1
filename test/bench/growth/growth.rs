//! Grows its memory by one page of 64 KiB, 4,000 times, touches none of them, and prints the nanoseconds of one growth.

use std::arch::wasm32::memory_grow;
use std::time::Instant;

const GROWTHS: u32 = 4000;

fn main() {
    let begin = Instant::now();
    for done in 0..GROWTHS {
        assert_ne!(
            memory_grow::<0>(1),
            usize::MAX,
            "refused after {done} pages"
        );
    }
    println!("{}", begin.elapsed().as_nanos() / u128::from(GROWTHS));
}
