//! `slipway top`: what each Wasm container of the node has of its memory budget, asked of the pods' shims, and what the node
//! compiles.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use containerd_shim_protos::api::{StateRequest, StatsRequest};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, UnknownFields, UnknownValueRef};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context;
use slipway_protocol::Usage;
use slipway_spec::Preview;

use crate::args::Top;
use crate::cache;
use crate::terminal::bytes;

/// Where containerd 1.7 and 2 keep the bundles, below their state directory.
const BUNDLES: &str = "io.containerd.runtime.v2.task";
/// What the shim leaves in the bundle of a pod's sandbox: its address, and a line `id cgroup` for each container.
const ADDRESS: &str = "address";
const MEMBERS: &str = "slipway-members";
/// A shim that does not answer is passed over: the others are worth seeing.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, serde::Serialize)]
struct Row {
    pod: String,
    container: String,
    id: String,
    pid: u32,
    state: String,
    cpu_seconds: f64,
    cgroup_bytes: u64,
    budget_bytes: Option<u64>,
    used_bytes: u64,
    held_bytes: u64,
    peak_bytes: u64,
    refused: u64,
}

pub fn top(args: &Top) -> Result<ExitCode, String> {
    let rows = sorted(&args.state)?;
    if args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| e.to_string())?;
        println!("{text}");
    } else {
        print!("{}{}", table(&rows), queue(&args.cache_dir));
    }
    Ok(ExitCode::SUCCESS)
}

/// The table of the containers that this containerd runs.
pub fn text(state: &Path) -> Result<String, String> {
    sorted(state).map(|rows| table(&rows))
}

fn sorted(state: &Path) -> Result<Vec<Row>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("runtime: {e}"))?;
    let mut rows = runtime.block_on(rows(&state.join(BUNDLES)))?;
    rows.sort_by(|a, b| (&a.pod, &a.container).cmp(&(&b.pod, &b.container)));
    Ok(rows)
}

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |cells: [&str; 9]| {
        let [
            pod,
            container,
            state,
            cpu,
            budget,
            used,
            held,
            peak,
            refused,
        ] = cells;
        text += &format!(
            "{pod:<32} {container:<16} {state:<8} {cpu:>9} {budget:>11} {used:>11} {held:>11} {peak:>11} {refused:>7}\n"
        );
    };
    line([
        "POD",
        "CONTAINER",
        "STATE",
        "CPU TIME",
        "BUDGET",
        "USED",
        "HELD",
        "PEAK",
        "REFUSED",
    ]);
    for row in rows {
        line([
            &row.pod,
            &row.container,
            &row.state,
            &format!("{:.2} s", row.cpu_seconds),
            &row.budget_bytes.map_or_else(|| "none".into(), bytes),
            &bytes(row.used_bytes),
            &bytes(row.held_bytes),
            &bytes(row.peak_bytes),
            &row.refused.to_string(),
        ]);
    }
    text
}

/// The compile queue, where there is something in it.
fn queue(cache_dir: &Path) -> String {
    let jobs = slipway_queue::list(cache_dir);
    if jobs.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{:<9} {:<5} {:>11} FROM\n", "COMPILES", "TIER", "MODULE");
    for job in jobs {
        let (state, tier) = (cache::state(&job), job.record.tier);
        let module = job.record.module;
        let (size, path) = (bytes(module.size), module.path);
        text += &format!("{state:<9} {tier:<5} {size:>11} {path}\n");
    }
    text
}

/// The containers of all of Slipway's pods, in all of containerd's namespaces.
async fn rows(bundles: &Path) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let namespaces = std::fs::read_dir(bundles).map_err(|e| {
        format!(
            "{}: {e}; is containerd's state directory another one? Say --state DIR",
            bundles.display()
        )
    })?;
    for namespace in namespaces.flatten() {
        for pod in std::fs::read_dir(namespace.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            rows.extend(pod_rows(&pod.path()).await.unwrap_or_default());
        }
    }
    Ok(rows)
}

/// The Wasm containers of the pod whose sandbox has this bundle; `None` for any other bundle.
async fn pod_rows(bundle: &Path) -> Option<Vec<Row>> {
    let members = std::fs::read_to_string(bundle.join(MEMBERS)).ok()?;
    let address = std::fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    let client = TaskClient::new(Client::connect(address.trim()).await.ok()?);
    let bundles = bundle.parent()?;
    let mut rows = Vec::new();
    for id in members.lines().filter_map(|line| line.split(' ').next()) {
        rows.extend(row(&client, bundles, id).await);
    }
    Some(rows)
}

/// `None` for a container that is gone, a sandbox, or a Linux container: it has no budget of Slipway's.
async fn row(client: &TaskClient, bundles: &Path, id: &str) -> Option<Row> {
    let patience = || context::with_duration(PATIENCE);
    let mut stats = StatsRequest::new();
    stats.id = id.into();
    let stats = client.stats(patience(), &stats).await.ok()?;
    let measured = Measured::of(stats.stats.as_ref()?)?;
    let mut state = StateRequest::new();
    state.id = id.into();
    let state = client.state(patience(), &state).await.ok()?;
    let Preview {
        pod_name,
        container_name,
        ..
    } = slipway_spec::preview(&bundles.join(id));
    Some(Row {
        pod: pod_name.unwrap_or_else(|| "-".into()),
        container: container_name.unwrap_or_else(|| id.into()),
        id: id.into(),
        pid: state.pid,
        state: format!("{:?}", state.status.enum_value_or_default()).to_lowercase(),
        cpu_seconds: measured.cpu.as_secs_f64(),
        cgroup_bytes: measured.bytes,
        budget_bytes: measured.memory.limit,
        used_bytes: measured.memory.used,
        held_bytes: measured.memory.held,
        peak_bytes: measured.memory.peak,
        refused: measured.memory.refused,
    })
}

struct Measured {
    cpu: Duration,
    bytes: u64,
    memory: Usage,
}

impl Measured {
    fn of(any: &Any) -> Option<Self> {
        if any.type_url.ends_with("v2.Metrics") {
            let m = v2::Metrics::parse_from_bytes(&any.value).ok()?;
            Some(Self {
                cpu: Duration::from_micros(m.cpu.usage_usec),
                bytes: m.memory.usage,
                memory: usage(m.special_fields.unknown_fields())?,
            })
        } else {
            let m = v1::Metrics::parse_from_bytes(&any.value).ok()?;
            Some(Self {
                cpu: Duration::from_nanos(m.cpu.usage.total),
                bytes: m.memory.usage.usage,
                memory: usage(m.special_fields.unknown_fields())?,
            })
        }
    }
}

fn usage(fields: &UnknownFields) -> Option<Usage> {
    let [limit, used, peak, refused, held] =
        Usage::METRICS_FIELDS.map(|number| match fields.get(number) {
            Some(UnknownValueRef::Varint(value)) => Some(value),
            _ => None,
        });
    Some(Usage {
        limit,
        used: used?,
        peak: peak?,
        refused: refused?,
        // A shim of an earlier version does not say.
        held: held.unwrap_or(0),
    })
}
