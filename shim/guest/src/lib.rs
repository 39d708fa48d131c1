//! How a process becomes a Wasm container, whatever engine runs its module.
//!
//! It is started with nothing but a control socket (descriptor 3) and an engine; everything else arrives in a
//! [`slipway_protocol::Launch`]. `slipway_protocol` draws the handshake, `container` has its steps in their order. What is an
//! engine's own is behind [`Engine`]: a program for each links it, and calls [`run`].

mod artefact;
mod calls;
mod container;
mod devices;
mod engine;
mod entrypoint;
mod launch;
mod lsm;
mod mounts;
mod namespaces;
mod paths;
mod privileges;
mod seccomp;
mod sys;
mod user;

use slipway_protocol::{CONTROL_FD, FromGuest, ToGuest};

pub use engine::{Engine, Loaded, Outcome, Preopen, Run, Trap};
pub use mounts::{ARTEFACT, is_procfs};
pub use sys::{end, end_without_memory, exit};

/// The container's memory budget, which an engine asks for each growth of a memory.
pub mod budget {
    pub use crate::sys::budget::{grow, limit, refusal, shrink};
}

/// Sockets that listen, which a stop may have to shut down.
pub mod drain {
    pub use crate::sys::drain::{closed, listening};
}

/// What is said at a signal that ends the process.
pub mod signals {
    pub use crate::sys::signals::{prepare, say};
}

/// Names of the module's functions.
pub mod names {
    pub use crate::calls::name;
}

/// Why this guest does not become a container; told to the host in place of `Ready`.
enum Stop {
    /// A message for the host, which ends the guest.
    Tell(FromGuest),
    /// The host is gone: nobody to tell.
    Silent,
}

impl From<slipway_protocol::Error> for Stop {
    fn from(e: slipway_protocol::Error) -> Self {
        match e {
            slipway_protocol::Error::Closed => Self::Silent,
            other => Self::Tell(FromGuest::Failed(other.to_string())),
        }
    }
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Self::Tell(FromGuest::Failed(message))
    }
}

/// The whole life of a guest.
pub fn run<E: Engine>() -> ! {
    // Through the bundle's loader the process would be named after it.
    let _ = rustix::thread::set_name(c"slipway-guest");
    // Early: a guest that is pid 1 of its namespace would ignore SIGTERM without a handler.
    sys::signals::install();
    let control = match sys::take_control() {
        Ok(control) => control,
        Err(e) => {
            sys::write_line(
                2,
                &format!("descriptor {CONTROL_FD}: {e}; a shim starts slipway-guest"),
            );
            exit(1)
        }
    };
    // It lives until the kernel takes it: to take it apart costs time, and its memory may be what hostile code has left.
    let engine = E::start();
    let ended = match &engine {
        Ok(engine) => container::run(engine, control),
        Err(why) => Err(why.clone().into()),
    };
    match ended {
        Ok(end) => {
            let _ = slipway_protocol::send(control, &FromGuest::Ended(end.clone()), &[]);
            exit(i32::from(end.status))
        }
        Err(Stop::Tell(message)) => {
            // The host has the last word: it kills a guest that failed. This returns when the host itself is gone.
            // A seccomp profile may forbid either; then the end itself is all that can be told.
            if slipway_protocol::send(control, &message, &[]).is_ok() {
                let _ = slipway_protocol::recv::<ToGuest>(control);
            }
            exit(1)
        }
        Err(Stop::Silent) => exit(1),
    }
}
