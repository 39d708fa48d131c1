//! Each seed is answered as its target says, without a fuzzer.

use std::fs;
use std::path::Path;

#[test]
fn seeds_are_answered() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, target) in slipway_fuzz::TARGETS {
        let files =
            fs::read_dir(seeds.join(name)).unwrap_or_else(|e| panic!("seeds of {name}: {e}"));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            eprintln!("{}", path.display());
            target(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no seed");
    }
}

#[test]
fn the_seed_that_is_an_entry_of_the_cache_is_found_on_any_processor() {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/cache_entry/entry");
    assert!(slipway_fuzz::is_found(&fs::read(seed).unwrap()));
}
