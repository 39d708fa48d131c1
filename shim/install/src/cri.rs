//! CRI's view of containerd: its version and the handlers that it takes pods for. The numbers of the fields are those of
//! `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`, which promises to keep them.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// containerd answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Message)]
struct VersionRequest {}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
    #[prost(message, repeated, tag = "3")]
    runtime_handlers: Vec<RuntimeHandler>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeHandler {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxRequest {}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandbox {
    /// 0 while it runs.
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(string, tag = "7")]
    runtime_handler: String,
}

/// What containerd says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cri {
    /// Its version, as it writes it.
    pub version: String,
    /// The handlers.
    pub handlers: BTreeSet<String>,
}

impl Cri {
    /// Asks containerd.
    ///
    /// # Errors
    /// It does not answer, or its CRI plugin does not run: in its own words.
    pub fn ask(address: &Path) -> Result<Self, String> {
        within_patience(address, ask(address))
    }

    /// The handlers of the pods that run.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn handlers_in_use(address: &Path) -> Result<BTreeSet<String>, String> {
        let listed = async {
            let path = "/runtime.v1.RuntimeService/ListPodSandbox";
            let request = ListPodSandboxRequest {};
            let pods: ListPodSandboxResponse =
                call(&mut connect(address).await?, path, request).await?;
            let running = pods.items.into_iter().filter(|pod| pod.state == 0);
            Ok(running.map(|pod| pod.runtime_handler).collect())
        };
        within_patience(address, listed)
    }
}

fn within_patience<T>(
    address: &Path,
    answer: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, answer).await })
        .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
        .map_err(|e| format!("{}: {e}", address.display()))
}

async fn connect(address: &Path) -> Result<Grpc<Channel>, String> {
    let channel = Endpoint::from_shared(format!("unix://{}", address.display()))
        .map_err(|e| e.to_string())?
        .connect()
        .await
        .map_err(|e| root_cause(&e))?;
    Ok(Grpc::new(channel))
}

async fn ask(address: &Path) -> Result<Cri, String> {
    let mut grpc = connect(address).await?;
    let version: VersionResponse = call(
        &mut grpc,
        "/runtime.v1.RuntimeService/Version",
        VersionRequest {},
    )
    .await?;
    if version.runtime_name != "containerd" {
        return Err(format!("this is {}, not containerd", version.runtime_name));
    }
    let request = StatusRequest { verbose: true };
    let status: StatusResponse =
        call(&mut grpc, "/runtime.v1.RuntimeService/Status", request).await?;
    let listed: BTreeSet<_> = status
        .runtime_handlers
        .into_iter()
        .map(|h| h.name)
        .collect();
    Ok(Cri {
        version: version.runtime_version,
        handlers: match listed.is_empty() {
            // containerd 1.7 has them in its configuration only.
            true => configured(status.info.get("config").map_or("", String::as_str)),
            false => listed,
        },
    })
}

/// The handlers of the CRI plugin's configuration in JSON.
fn configured(config: &str) -> BTreeSet<String> {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let runtimes = config.pointer("/containerd/runtimes");
    let runtimes = runtimes.and_then(serde_json::Value::as_object);
    runtimes
        .into_iter()
        .flat_map(|r| r.keys().cloned())
        .collect()
}

async fn call<Q, R>(grpc: &mut Grpc<Channel>, method: &'static str, request: Q) -> Result<R, String>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    grpc.ready().await.map_err(|e| root_cause(&e))?;
    let method = PathAndQuery::from_static(method);
    let answer = grpc
        .unary(Request::new(request), method, ProstCodec::default())
        .await;
    Ok(answer
        .map_err(|status| status.message().to_owned())?
        .into_inner())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_containerd_tells_its_handlers_by_its_configuration() {
        let config = r#"{"containerd":{"runtimes":{"runc":{},"slipway":{}}}}"#;
        assert_eq!(
            configured(config),
            ["runc", "slipway"].map(String::from).into()
        );
        assert!(configured("").is_empty());
    }

    #[test]
    fn nobody_there_is_an_error_with_the_address() {
        let error = Cri::ask(Path::new("/nowhere/containerd.sock")).unwrap_err();
        assert!(error.starts_with("/nowhere/containerd.sock: "), "{error}");
    }
}
