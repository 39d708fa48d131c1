//! `slipway`: Wasm containers without containerd, and everything about modules, images, the cache and this node.

mod args;
mod cache;
mod compile;
mod doctor;
mod image;
mod init;
mod inspect;
mod install;
mod metrics;
mod project;
mod report;
mod run;
mod source;
mod terminal;
mod top;
mod watch;

use std::process::ExitCode;

use args::{Cli, Command, ImageCommand};
use clap::{CommandFactory, Parser};

/// Status of a failure of Slipway itself, as docker and podman have it: a program's own are below.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    slipway_sys::end_at_closed_pipes();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(run) => run::run(&run),
        Command::Init(init) => init::init(&init),
        Command::Compile(compile) => compile::compile(&compile),
        Command::Inspect(inspect) => inspect::inspect(&inspect),
        Command::Image {
            command: ImageCommand::Build(build),
        } => image::build(&build),
        Command::Cache { command } => cache::cache(&command),
        Command::Top(top) => top::top(&top),
        Command::Metrics(metrics) => metrics::metrics(&metrics),
        Command::Doctor(doctor) => doctor::doctor(&doctor),
        Command::Install(args) => install::install(&args),
        Command::Uninstall(args) => install::uninstall(&args),
        Command::Installer(args) => install::installer(args),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "slipway",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => match clap_mangen::generate_to(Cli::command(), &dir) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(e) => Err(format!("{}: {e}", dir.display())),
        },
    };
    result.unwrap_or_else(|message| {
        terminal::error(&message);
        ExitCode::from(OWN_FAILURE)
    })
}
