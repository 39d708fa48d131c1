//! `slipway install` and `slipway uninstall`.

use std::process::ExitCode;

use slipway_install::{Options, Removal, Report};
use slipway_launch::Install as Tree;

use crate::args::{Distribution, Install, Node, Uninstall};

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
