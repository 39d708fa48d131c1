//! `slipway metrics`: what the installer's pod serves, for nodes without it.

use std::process::ExitCode;

use slipway_install::Layout;

use crate::args::Metrics;

pub fn metrics(args: &Metrics) -> Result<ExitCode, String> {
    print!("{}", text(args)?);
    Ok(ExitCode::SUCCESS)
}

pub fn text(args: &Metrics) -> Result<String, String> {
    let status = slipway_install::status(&Layout::new(&args.install_dir));
    let installed = status
        .map_err(|e| e.to_string())?
        .is_some_and(|s| s.complete);
    let metrics = slipway_install::Metrics {
        cache_dir: args.cache_dir.clone(),
        counters_dir: slipway_counters::DIR.into(),
    };
    Ok(metrics.text(installed))
}
