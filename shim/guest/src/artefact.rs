//! From a module to its native code: from the node's cache, or, where the cache has none, from the host, which has it compiled.

use std::os::fd::{AsFd, BorrowedFd};

use slipway_cache::{Artefact, Key, Lookup, Store, Tier};
use slipway_protocol::{CompileMode, FromGuest, Launch, ToGuest};

use crate::Stop;
use crate::entrypoint::Module;
use crate::sys::budget;

/// The artefact of a module for an engine of this version. The container's memory limit has room for what the module begins with.
pub fn find(
    control: BorrowedFd<'_>,
    store: &Store,
    launch: &Launch,
    module: &Module,
    engine: &str,
) -> Result<Artefact, Stop> {
    let wanted = launch.program.compile_mode;
    let error = |e: &dyn std::fmt::Display| Stop::from(format!("{}: {e}", module.path));
    let fitting = |artefact: Artefact| {
        let fits = artefact.facts().fit(Some(budget::limit()));
        fits.map(|()| artefact).map_err(|e| error(&e))
    };
    let looked_up = || lookup(store, module, engine, wanted).map_err(|e| error(&e));
    let described = slipway_protocol::Module {
        digest: module.digest,
        size: module.size,
        path: module.path.clone(),
        engine: engine.to_string(),
    };
    let damaged = match looked_up()? {
        (Lookup::Hit(artefact), tier) => {
            let artefact = fitting(artefact)?;
            if tier == Tier::Quick && wanted == CompileMode::Auto {
                let message = FromGuest::Unoptimised(described);
                slipway_protocol::send(control, &message, &[module.file.as_fd()])?;
            }
            return Ok(artefact);
        }
        (Lookup::Refused(reason), _) => return Err(error(&reason)),
        (Lookup::Miss { damaged }, _) => damaged,
    };
    let need = FromGuest::NeedArtefact {
        module: described,
        damaged,
    };
    slipway_protocol::send(control, &need, &[module.file.as_fd()])?;
    match slipway_protocol::recv::<ToGuest>(control)?.0 {
        ToGuest::Artefact => {}
        ToGuest::NoArtefact(reason) => return Err(error(&reason)),
        _ => return Err("expected Artefact".to_string().into()),
    }
    match looked_up()? {
        (Lookup::Hit(artefact), _) => fitting(artefact),
        (Lookup::Refused(reason), _) => Err(error(&reason)),
        (Lookup::Miss { damaged }, _) => Err(error(&format_args!(
            "the artefact was compiled but is gone again ({}); is the cache in {} too small?",
            damaged.unwrap_or_else(|| "evicted".into()),
            launch.cache_dir
        ))),
    }
}

/// Looks for the wanted tier; with no wish, the full one wins wherever it exists. Says which it was.
fn lookup(
    store: &Store,
    module: &Module,
    engine: &str,
    wanted: CompileMode,
) -> Result<(Lookup, Tier), slipway_cache::Error> {
    let key = |tier| Key::new(module.digest, engine, tier);
    let quick_is_enough = match wanted {
        CompileMode::Full => false,
        CompileMode::Quick => return Ok((store.lookup(&key(Tier::Quick))?, Tier::Quick)),
        CompileMode::Auto => !wanted.is_full(module.size),
    };
    match store.lookup(&key(Tier::Full))? {
        Lookup::Miss { damaged: None } if quick_is_enough => {
            Ok((store.lookup(&key(Tier::Quick))?, Tier::Quick))
        }
        found => Ok((found, Tier::Full)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    /// A guest that asks an empty cache, and the host's end.
    struct Guest {
        directory: tempfile::TempDir,
        host: OwnedFd,
        control: OwnedFd,
    }

    impl Guest {
        fn new() -> Self {
            let (host, control) = slipway_protocol::pair().unwrap();
            let directory = tempfile::tempdir().unwrap();
            Self {
                directory,
                host,
                control,
            }
        }

        fn answers(&self, message: &ToGuest) {
            slipway_protocol::send(self.host.as_fd(), message, &[]).unwrap();
        }

        /// What becomes of the container, and what the host was asked.
        fn asks(&self) -> (Stop, FromGuest) {
            let file = tempfile::tempfile().unwrap();
            let cache_dir = self.directory.path().join("cache");
            let options = slipway_cache::Options { max_bytes: 1 << 20 };
            let store = Store::open(&cache_dir, options).unwrap();
            let module = Module {
                path: "/app.wasm".into(),
                file,
                digest: [7; 32],
                size: 8,
            };
            let launch = Launch {
                cache_dir: cache_dir.display().to_string(),
                ..Launch::default()
            };
            let found = find(self.control.as_fd(), &store, &launch, &module, "engine-1");
            let Err(stop) = found else {
                panic!("an empty cache had an artefact")
            };
            let (asked, fds) = slipway_protocol::recv(self.host.as_fd()).unwrap();
            assert_eq!(fds.len(), 1, "the module's descriptor");
            (stop, asked)
        }
    }

    fn text(stop: Stop) -> String {
        match stop {
            Stop::Tell(FromGuest::Failed(text)) => text,
            Stop::Tell(other) => other.name().to_string(),
            Stop::Silent => "silent".to_string(),
        }
    }

    #[test]
    fn the_host_is_told_which_module_and_which_engine() {
        let guest = Guest::new();
        guest.answers(&ToGuest::NoArtefact("no room".into()));
        let (stop, asked) = guest.asks();
        assert_eq!(text(stop), "/app.wasm: no room");
        let FromGuest::NeedArtefact { module, damaged } = asked else {
            panic!("{asked:?}")
        };
        assert_eq!((module.digest, module.size), ([7; 32], 8));
        assert_eq!((module.engine.as_str(), damaged), ("engine-1", None));
    }

    #[test]
    fn an_artefact_that_is_gone_again_is_an_error_that_names_the_cache() {
        let guest = Guest::new();
        guest.answers(&ToGuest::Artefact);
        let said = text(guest.asks().0);
        assert!(said.contains("(evicted); is the cache in /"), "{said}");
    }

    #[test]
    fn another_answer_is_an_error() {
        let guest = Guest::new();
        guest.answers(&ToGuest::Cgroup);
        assert_eq!(text(guest.asks().0), "expected Artefact");
    }
}
