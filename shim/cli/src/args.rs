//! The command line. Shell completions and man pages are made from these definitions.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use slipway_image::Copied;

#[cfg(test)]
mod tests;

/// WebAssembly containers: run, compile and inspect modules, build images, look after the node
#[derive(Parser)]
#[command(name = "slipway", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a module, an image or a project in the sandbox and under the budgets of a pod, without containerd
    Run(Run),
    /// Make a new project
    Init(Init),
    /// Compile a module into the artefact cache, so that its first pod starts at once
    Compile(Compile),
    /// Tell what a module is, and whether it would run here
    Inspect(Inspect),
    /// Make images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Look into the artefact cache
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Show the Wasm containers of this node with their memory budgets
    Top(Top),
    /// Print the metrics of this node for Prometheus, as for node-exporter's textfile collector
    Metrics(Metrics),
    /// Check this node, and tell how to mend what is wrong
    Doctor(Doctor),
    /// Install Slipway on this node: its files, and the handler in containerd's configuration
    Install(Install),
    /// Take Slipway away from this node, and give containerd's configuration back as it was
    Uninstall(Uninstall),
    /// Install Slipway on the nodes of a cluster: what the pods of the Helm chart run
    Installer(Installer),
    /// Write a completion script for a shell to stdout
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    Man {
        /// The directory
        dir: PathBuf,
    },
}

#[derive(Args)]
pub struct Store {
    /// The artefact cache
    #[arg(
        long,
        env = "SLIPWAY_CACHE_DIR",
        default_value = "/var/lib/slipway/cache",
        value_name = "DIR"
    )]
    pub cache_dir: String,
    /// Bound of the artefact cache, for example 10Gi
    #[arg(long, env = "SLIPWAY_CACHE_BYTES", default_value = "10Gi", value_name = "SIZE", value_parser = size)]
    pub cache_bytes: u64,
}

#[derive(Args)]
pub struct Run {
    /// A module (.wasm, .wat), an image archive (.tar) or a project folder, which is built first, and the arguments of the program
    // One list, so that everything after the file is the program's own, whatever it looks like.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["FILE|DIR", "ARGS"], num_args = 1..)]
    pub command: Vec<String>,
    /// Environment variable of the program; without =VALUE this shell's own
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Directory of this machine for the program
    #[arg(short, long = "dir", value_name = "HOST[:GUEST[:ro]]")]
    pub dirs: Vec<String>,
    /// Memory budget, for example 64Mi
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// CPU time after which the program is ended (status 152)
    #[arg(long, value_name = "SECONDS")]
    pub cpu_time: Option<u64>,
    /// Call this exported function with the arguments, and print what it returns
    #[arg(long, value_name = "FUNCTION")]
    pub invoke: Option<String>,
    /// Working directory of the program
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group of the program
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Build and run a project folder again whenever its files change
    #[arg(long)]
    pub watch: bool,
    /// Optimisation of the artefact
    #[arg(long, value_enum, default_value_t)]
    pub tier: Tier,
    #[command(flatten)]
    pub store: Store,
}

#[derive(Args)]
pub struct Init {
    /// What the program is written in
    #[arg(value_enum)]
    pub language: Language,
    /// The folder, which is made; no file in it is overwritten
    pub dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Language {
    /// A greeting that ends as its argument says
    Rust,
    /// An HTTP server
    C,
    /// Counts words with iostreams
    Cpp,
    /// Counts words, and reports as JSON
    Go,
    /// Statistics of numbers
    Assemblyscript,
    /// Checksums of files
    Zig,
    /// A greeting by hand, without a toolchain
    Wat,
}

#[derive(Args)]
pub struct Compile {
    /// A module (.wasm, .wat) or an image archive (.tar)
    pub file: PathBuf,
    /// Optimisation of the artefact
    #[arg(long, value_enum, default_value_t)]
    pub tier: Tier,
    #[command(flatten)]
    pub store: Store,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Tier {
    /// Full for small modules, quick for big ones
    #[default]
    Auto,
    /// Compiled in a moment, runs slower
    Quick,
    /// Fully optimised; minutes for a module of many megabytes
    Full,
}

#[derive(Args)]
pub struct Inspect {
    /// A module (.wasm, .wat) or an image archive (.tar)
    pub file: PathBuf,
    /// The function that is to run, in the place of the image's or `_start`
    #[arg(long, value_name = "FUNCTION")]
    pub invoke: Option<String>,
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Make an OCI archive of a module, for `ctr images import`, `docker load`, skopeo
    Build(Build),
}

#[derive(Args)]
pub struct Build {
    /// The module
    pub file: PathBuf,
    /// Name of the image
    #[arg(short, long, value_name = "NAME")]
    pub tag: String,
    /// The archive to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// A Wasm artefact (CNCF's format) instead of an ordinary image for linux/amd64 and linux/arm64
    #[arg(long)]
    pub artifact: bool,
    /// Path of the module in the image, #FUNCTION allowed; the file's name in / by default
    #[arg(long, value_name = "PATH")]
    pub entrypoint: Option<String>,
    /// Default argument of the program
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// Default environment variable
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Default working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// File or directory of this machine that becomes part of the image, at this path
    #[arg(long = "copy", value_name = "HOST:/PATH", value_parser = copied)]
    pub copies: Vec<Copied>,
}

#[derive(Subcommand)]
pub enum CacheCommand {
    /// List the artefacts
    Ls {
        /// JSON instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: Store,
    },
    /// Remove artefacts that no guest runs, and take modules out of the compile queue that no start waits for
    Rm {
        /// Beginnings of artefact or module digests
        #[arg(required_unless_present = "all", value_name = "DIGEST")]
        digests: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "digests")]
        all: bool,
        #[command(flatten)]
        store: Store,
    },
}

#[derive(Args)]
pub struct Top {
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// containerd's state directory
    #[arg(long, default_value = "/run/containerd", value_name = "DIR")]
    pub state: PathBuf,
    /// The artefact cache, where the compile queue is
    #[arg(
        long,
        env = "SLIPWAY_CACHE_DIR",
        default_value = "/var/lib/slipway/cache",
        value_name = "DIR"
    )]
    pub cache_dir: PathBuf,
}

#[derive(Args)]
pub struct Metrics {
    /// Where `slipway install` has put Slipway
    #[arg(long, default_value = slipway_install::INSTALL_DIR, value_name = "DIR")]
    pub install_dir: PathBuf,
    /// The artefact cache
    #[arg(
        long,
        env = "SLIPWAY_CACHE_DIR",
        default_value = "/var/lib/slipway/cache",
        value_name = "DIR"
    )]
    pub cache_dir: PathBuf,
}

#[derive(Args)]
pub struct Doctor {
    /// JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Write all that a maintainer would ask for into this file, without secrets; - is stdout
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "host"])]
    pub report: Option<PathBuf>,
    /// In the installer's pod: have its node make the report, and print it
    #[arg(long, conflicts_with = "json")]
    pub host: bool,
    #[command(flatten)]
    pub host_options: Host,
    /// Name of this pod's Node
    #[arg(
        long,
        env = "NODE_NAME",
        value_name = "NAME",
        default_value = "",
        hide = true
    )]
    pub node: String,
    /// For the report: containerd's log, where it is not in the journal
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// For the report: containerd's state directory
    #[arg(long, default_value = "/run/containerd", value_name = "DIR")]
    pub state: PathBuf,
    /// containerd's socket; where it is not given, that of the installation or /run/containerd/containerd.sock
    #[arg(long, env = "CONTAINERD_ADDRESS", value_name = "PATH")]
    pub address: Option<PathBuf>,
    /// Where `slipway install` has put Slipway
    #[arg(long, default_value = slipway_install::INSTALL_DIR, value_name = "DIR")]
    pub install_dir: PathBuf,
    /// containerd's configuration; where it is not given, that of the installation or /etc/containerd/config.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub store: Store,
}

#[derive(Args)]
pub struct Install {
    #[command(flatten)]
    pub node: Node,
    /// Tell what would be done, with the differences, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Leave the restart of containerd to somebody else
    #[arg(long)]
    pub no_restart: bool,
}

#[derive(Args)]
pub struct Uninstall {
    #[command(flatten)]
    pub install: Install,
    /// Even while pods of Slipway's run on this node: nobody can stop them afterwards but by their processes
    #[arg(long)]
    pub force: bool,
    /// Remove the installed files and the artefact cache, too
    #[arg(long)]
    pub purge: bool,
}

#[derive(Args)]
pub struct Installer {
    /// Name of this pod's Node
    #[arg(
        long,
        env = "NODE_NAME",
        value_name = "NAME",
        required_unless_present = "uninstall_cluster"
    )]
    pub node: Option<String>,
    /// The tree in the image
    #[arg(long, default_value = slipway_install::INSTALL_DIR, value_name = "DIR")]
    pub source: PathBuf,
    #[command(flatten)]
    pub host: Host,
    /// Where metrics and probes are served
    #[arg(long, default_value = "0.0.0.0:9464", value_name = "HOST:PORT")]
    pub metrics_address: String,
    /// The ConfigMap with the user's wish: Slipway on the nodes, or not
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub wish: slipway_install::ConfigMap,
    /// End when it is installed, as a Job does
    #[arg(long)]
    pub once: bool,
    /// Take Slipway away from all nodes, and wait for that: the chart's hook before it is deleted
    #[arg(long)]
    pub uninstall_cluster: bool,
    /// With --uninstall-cluster: how long the nodes may take, for example 5m
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = duration)]
    pub timeout: std::time::Duration,
    /// With --uninstall-cluster: even while pods exist whose RuntimeClass has the handler or an alias
    #[arg(long)]
    pub force: bool,
    /// With --uninstall-cluster: the command that takes it back, named where it fails
    #[arg(long, value_name = "COMMAND")]
    pub take_back: Option<String>,
    /// When Slipway is taken away from this node: remove the installed files and the artefact cache, too
    #[arg(long)]
    pub purge: bool,
    #[command(flatten)]
    pub node_options: Node,
}

/// The node, as the installer's pod sees it.
#[derive(Args)]
pub struct Host {
    /// The node's install directory, as mounted here
    #[arg(long, default_value = "/host/opt/slipway", value_name = "DIR")]
    pub host_dir: PathBuf,
    /// The node's /run/systemd, as mounted here
    #[arg(long, default_value = "/host/run/systemd", value_name = "DIR")]
    pub systemd_dir: PathBuf,
}

/// What is installed, and where.
#[derive(Args)]
pub struct Node {
    /// Where the versions, the link to the current one and the journal are
    #[arg(long, default_value = slipway_install::INSTALL_DIR, value_name = "DIR")]
    pub install_dir: PathBuf,
    /// Who has made the node; told by the running containerd
    #[arg(long, value_enum, default_value_t)]
    pub distribution: Distribution,
    /// containerd's configuration, if not the one that the running containerd was started with
    #[arg(long, value_name = "PATH")]
    pub containerd_config: Option<PathBuf>,
    /// The systemd unit that runs containerd, if not the running containerd's
    #[arg(long, value_name = "NAME")]
    pub containerd_unit: Option<String>,
    /// containerd's socket, if not the running containerd's
    #[arg(long, value_name = "SOCK")]
    pub containerd_address: Option<PathBuf>,
    /// Another name of the handler `slipway`
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<String>,
    /// Annotations of pods that reach Slipway
    #[arg(long = "annotation", value_name = "PATTERN", default_value = slipway_install::ANNOTATIONS)]
    pub annotations: Vec<String>,
    /// The artefact cache, which --purge removes
    #[arg(
        long,
        env = "SLIPWAY_CACHE_DIR",
        default_value = "/var/lib/slipway/cache",
        value_name = "DIR",
        hide = true
    )]
    pub cache_dir: PathBuf,
    /// Bound of the artefact cache, for example 10Gi
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub cache_size: Option<u64>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Distribution {
    /// By the unit that runs containerd
    #[default]
    Auto,
    /// containerd as a service of its own: kubeadm, kind, managed clusters
    Containerd,
    K3s,
    Rke2,
    K0s,
    Microk8s,
}

/// The path in the image begins after the last colon, so that names on this machine may have some.
fn copied(text: &str) -> Result<Copied, String> {
    let (source, target) = text
        .rsplit_once(':')
        .filter(|(source, _)| !source.is_empty())
        .ok_or_else(|| format!("{text:?} is not of the form HOST:/PATH, as in share:/usr/share"))?;
    Ok(Copied {
        source: source.into(),
        target: target.to_owned(),
    })
}

/// A time as Kubernetes writes it: 90s, 5m, 1h.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    const UNITS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];
    UNITS
        .iter()
        .find_map(|(unit, seconds)| {
            let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
            number.checked_mul(*seconds)
        })
        .map(std::time::Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no time; examples: 90s, 5m, 1h"))
}

/// Bytes as Kubernetes writes quantities: 64Mi, 1G, 1048576.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("", 1),
    ];
    UNITS
        .iter()
        .find_map(|(unit, bytes)| {
            text.strip_suffix(unit)?
                .parse::<u64>()
                .ok()?
                .checked_mul(*bytes)
        })
        .ok_or_else(|| format!("{text:?} is no size; examples: 64Mi, 1G, 1048576"))
}
