//! `slipway install`, `slipway uninstall` and `slipway installer`.

use std::process::ExitCode;

use slipway_install::{Options, Removal, Report};
use slipway_launch::Install as Tree;

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Distribution, Install, Installer, Node, Uninstall};

impl From<Distribution> for Option<slipway_install::Distribution> {
    fn from(distribution: Distribution) -> Self {
        use slipway_install::Distribution as Known;
        match distribution {
            Distribution::Auto => None,
            Distribution::Containerd => Some(Known::Containerd),
            Distribution::K3s => Some(Known::K3s),
            Distribution::Rke2 => Some(Known::Rke2),
            Distribution::K0s => Some(Known::K0s),
            Distribution::Microk8s => Some(Known::Microk8s),
        }
    }
}

fn options(node: &Node) -> Options {
    Options {
        install_dir: node.install_dir.clone(),
        source: Tree::locate().root().to_owned(),
        distribution: node.distribution.into(),
        containerd_config: node.containerd_config.clone(),
        containerd_unit: node.containerd_unit.clone(),
        containerd_address: node.containerd_address.clone(),
        aliases: node.aliases.clone(),
        annotations: node.annotations.clone(),
        cache_size: node.cache_size,
        cache_dir: node.cache_dir.clone(),
        restart: true,
        dry_run: false,
    }
}

impl Install {
    fn options(&self) -> Options {
        Options {
            restart: !self.no_restart,
            dry_run: self.dry_run,
            ..options(&self.node)
        }
    }
}

pub fn install(args: &Install) -> Result<ExitCode, String> {
    slipway_install::install(&args.options(), &mut Report::default()).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

pub fn uninstall(args: &Uninstall) -> Result<ExitCode, String> {
    let removal = Removal {
        force: args.force,
        purge: args.purge,
    };
    slipway_install::uninstall(&args.install.options(), removal, &mut Report::default())
        .map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

pub fn installer(args: Installer) -> Result<ExitCode, String> {
    end_at_signals()?;
    let node = &args.node_options;
    let mut handlers = node.aliases.clone();
    handlers.push(slipway_install::HANDLER.into());
    if args.uninstall_cluster {
        let uninstaller = slipway_install::Uninstaller {
            wish: args.wish,
            handlers,
            timeout: args.timeout,
            force: args.force,
            take_back: args.take_back,
        };
        uninstaller.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let installer = slipway_install::Installer {
        arguments: arguments(node),
        handlers,
        host: slipway_install::Host {
            dir: args.host.host_dir,
            install_dir: node.install_dir.clone(),
            systemd_dir: args.host.systemd_dir,
        },
        cache_dir: node.cache_dir.clone(),
        node: args.node.unwrap_or_default(),
        source: args.source,
        metrics_address: args.metrics_address,
        wish: args.wish,
        once: args.once,
        purge: args.purge,
    };
    installer.run()?;
    Ok(ExitCode::SUCCESS)
}

/// The options again, for the command on the host.
fn arguments(node: &Node) -> Vec<String> {
    let mut words = Vec::new();
    let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    option("install-dir", node.install_dir.display().to_string());
    if let Some(value) = node.distribution.to_possible_value() {
        option("distribution", value.get_name().to_owned());
    }
    for (name, path) in [
        ("containerd-config", &node.containerd_config),
        ("containerd-address", &node.containerd_address),
    ] {
        if let Some(path) = path {
            option(name, path.display().to_string());
        }
    }
    if let Some(unit) = &node.containerd_unit {
        option("containerd-unit", unit.clone());
    }
    for alias in &node.aliases {
        option("alias", alias.clone());
    }
    for annotation in &node.annotations {
        option("annotation", annotation.clone());
    }
    if let Some(bytes) = node.cache_size {
        option("cache-size", bytes.to_string());
    }
    words
}

/// The first process of a container ends at a signal only if it says so. What is done on the host goes on.
fn end_at_signals() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("runtime: {e}"))?;
    let signals = {
        let _entered = runtime.enter();
        [SignalKind::terminate(), SignalKind::interrupt()].map(signal)
    };
    let [Ok(mut terminate), Ok(mut interrupt)] = signals else {
        return Err("signals cannot be handled".into());
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        std::process::exit(0);
    });
    Ok(())
}
