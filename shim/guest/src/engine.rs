//! What differs between engines: loading compiled code, and running it.

use std::ffi::CStr;

use slipway_protocol::Facts;

/// An engine, in the process of one guest.
///
/// Walls and limits hang on what it does while a module runs:
/// - each growth of a memory asks [`crate::budget::grow`], and what is given back goes to [`crate::budget::shrink`]; a memory that
///   cannot have what it begins with ends the program ([`crate::end_without_memory`]);
/// - a file that a module opens is no procfs's, and no device but those of the container's own `/dev`: the node may mount something below
///   a volume when all was checked;
/// - sockets that listen are told to [`crate::drain`].
pub trait Engine: Sized {
    /// A module that it has loaded.
    type Loaded<'engine>: Loaded
    where
        Self: 'engine;

    /// Name and version, by which artefacts are known: `wasmedge-0.17.1`.
    fn version() -> String;

    /// Starts it, and sets up for this process what it needs: nothing of anybody's module has been seen yet, and there is one thread.
    ///
    /// # Errors
    /// This program is not put together such that budgets and walls hold.
    fn start() -> Result<Self, String>;

    /// Brings into this process's memory what loading an artefact takes, before it is known what the guest becomes. No memory of a module
    /// is made: there is no budget yet.
    fn warm_up();

    /// Takes down what is known of the module that is about to be loaded.
    fn expect(&self, facts: &Facts);

    /// Loads an artefact. All privileges are dropped: it is as hostile as the module that it was compiled from.
    ///
    /// # Errors
    /// The engine's.
    fn load(&self, artefact: &CStr) -> Result<Self::Loaded<'_>, String>;
}

/// A module of which nothing has run.
pub trait Loaded {
    /// Takes down what it is to do; the result does it, instantiates the module first, and may be called once.
    ///
    /// # Errors
    /// Why it cannot: the function is missing or of another type, an argument is none of its type.
    fn prepare(self, run: &Run<'_>) -> Result<impl FnOnce() -> Outcome, String>;
}

/// What a module is to do, and what it finds.
pub struct Run<'a> {
    /// The function to call, where it is not the default.
    pub function: Option<&'a str>,
    /// The command, `argv[0]` first. A function with parameters gets what follows that.
    pub args: &'a [String],
    /// `NAME=value`.
    pub env: &'a [String],
    /// Directories that are open from the start.
    pub preopens: &'a [Preopen],
}

/// A directory that a module finds open.
pub struct Preopen {
    /// As the module names it.
    pub name: &'static str,
    /// As this process does.
    pub path: String,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The function returned these values, as text.
    Returned(Vec<String>),
    /// The module has asked for its end, with this status.
    Exited(u32),
    /// A trap, or a failed instantiation.
    Trapped(Trap),
}

/// Why and where a program could not go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Trap {
    /// In the engine's words.
    pub reason: String,
    /// Indices of the functions that were being called, innermost first.
    pub stack: Vec<u32>,
}
