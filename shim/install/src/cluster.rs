//! The few calls of the Kubernetes API that the installer makes, with its pod's service account.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::report::say;

/// Where the kubelet puts a pod's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Of one call.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long an API server may be away: on a node of one, restarting containerd stops it.
const AWAY: Duration = Duration::from_secs(180);
/// Between two tries.
const INTERVAL: Duration = Duration::from_secs(1);
/// The largest answer that is read.
const MAX_ANSWER: u64 = 64 << 20;
/// How many objects are asked for at once.
const PAGE: u32 = 250;

/// `true` once Slipway can be used on the node, `false` from before the first change.
pub const INSTALLED: &str = "slipway.dev/installed";
/// The version that is installed.
pub const VERSION: &str = "slipway.dev/version";
/// What the node's installer is to do.
pub const STATE: &str = "slipway.dev/state";
/// Values of [`STATE`]: take Slipway away; also while pods run.
pub const UNINSTALLING: &str = "uninstalling";
pub const UNINSTALLING_BY_FORCE: &str = "uninstalling-by-force";

/// A node as far as the installer cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeNode {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The kubelet says that it takes pods.
    pub ready: bool,
    /// The handlers that the kubelet has heard of; empty where it does not tell.
    pub handlers: Vec<String>,
}

impl KubeNode {
    fn read(object: &Json) -> Self {
        let text =
            |value: Option<&Json>| value.and_then(Json::as_str).unwrap_or_default().to_owned();
        let list = |path: &str| {
            object
                .pointer(path)
                .and_then(Json::as_array)
                .into_iter()
                .flatten()
        };
        let labels = object.pointer("/metadata/labels").and_then(Json::as_object);
        Self {
            name: text(object.pointer("/metadata/name")),
            labels: labels
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), text(Some(value))))
                .collect(),
            ready: list("/status/conditions")
                .any(|c| c["type"] == "Ready" && c["status"] == "True"),
            handlers: list("/status/runtimeHandlers")
                .map(|h| text(h.get("name")))
                .collect(),
        }
    }

    /// The hook has asked for Slipway to be taken away, by force or not.
    pub fn uninstalling(&self) -> Option<bool> {
        match self.labels.get(STATE)?.as_str() {
            UNINSTALLING => Some(false),
            UNINSTALLING_BY_FORCE => Some(true),
            _ => None,
        }
    }
}

/// For people.
impl fmt::Display for KubeNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "Ready" } else { "not Ready" };
        writeln!(f, "node {}: {ready}", self.name)?;
        writeln!(f, "handlers: {}", self.handlers.join(" ").trim_start())?;
        let own = self
            .labels
            .iter()
            .filter(|(key, _)| key.contains("slipway.dev/"));
        own.clone()
            .try_for_each(|(key, value)| writeln!(f, "label {key}={value}"))
    }
}

/// The API server.
#[derive(Debug)]
pub struct Cluster {
    agent: Agent,
    base: String,
    token: PathBuf,
}

impl Cluster {
    /// The cluster of this pod.
    ///
    /// # Errors
    /// This is no pod, or one without a service account's token.
    pub fn of_this_pod() -> Result<Self, String> {
        let env = |name: &str| {
            std::env::var(name).map_err(|_| {
                format!(
                    "{name} is not set: this command runs in a pod; on a node use `slipway install`"
                )
            })
        };
        let (host, port) = (
            env("KUBERNETES_SERVICE_HOST")?,
            env("KUBERNETES_SERVICE_PORT")?,
        );
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host,
        };
        let account = Path::new(SERVICE_ACCOUNT);
        let authority = account.join("ca.crt");
        let pem = fs::read(&authority).map_err(|e| format!("{}: {e}", authority.display()))?;
        let authorities: Vec<Certificate<'static>> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if authorities.is_empty() {
            return Err(format!("{}: no certificate", authority.display()));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(authorities)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            base: format!("https://{host}:{port}"),
            token: account.join("token"),
        })
    }

    /// One call; the token is read each time, for the kubelet renews it.
    fn once(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Json, Failure> {
        let token = fs::read_to_string(&self.token)
            .map_err(|e| Failure::last(format!("{}: {e}", self.token.display())))?;
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("Authorization", format!("Bearer {}", token.trim()))
            .header("Accept", "application/json")
            .header("Content-Type", "application/merge-patch+json")
            .body(body.map_or_else(String::new, Json::to_string))
            .map_err(|e| Failure::last(e.to_string()))?;
        let mut response = match body {
            Some(_) => self.agent.run(request),
            None => self.agent.run(request.map(|_| ())),
        }
        .map_err(|e| Failure::passing(format!("{path}: {e}")))?;
        let status = response.status();
        let text = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_to_string();
        let text = text.map_err(|e| Failure::passing(format!("{path}: {e}")))?;
        let answer: Json = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let said = answer["message"]
            .as_str()
            .unwrap_or("no message")
            .to_owned();
        let text = format!("{path}: {status}: {said}");
        Err(match status.is_server_error() || status.as_u16() == 429 {
            true => Failure::passing(text),
            false => Failure::last(text),
        })
    }

    /// A call, again until the API server is there.
    fn call(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Json, String> {
        let started = Instant::now();
        let mut told = false;
        loop {
            match self.once(method, path, body) {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.passing && started.elapsed() < AWAY => {
                    if !std::mem::replace(&mut told, true) {
                        say(&format!("Kubernetes API: {}; trying again", failure.text));
                    }
                    std::thread::sleep(INTERVAL);
                }
                Err(failure) => return Err(format!("Kubernetes API: {}", failure.text)),
            }
        }
    }

    /// A node.
    ///
    /// # Errors
    /// The API server's word.
    pub fn node(&self, name: &str) -> Result<KubeNode, String> {
        Ok(KubeNode::read(&self.call(
            "GET",
            &format!("/api/v1/nodes/{name}"),
            None,
        )?))
    }

    /// Sets labels of a node; `None` takes one away.
    ///
    /// # Errors
    /// The API server's word.
    pub fn label(&self, name: &str, labels: &[(&str, Option<&str>)]) -> Result<(), String> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let patch = json!({"metadata": {"labels": labels}});
        self.call("PATCH", &format!("/api/v1/nodes/{name}"), Some(&patch))?;
        Ok(())
    }

    /// The nodes that have this label.
    ///
    /// # Errors
    /// The API server's word.
    pub fn nodes(&self, label: &str) -> Result<Vec<KubeNode>, String> {
        let objects = self.list(&format!(
            "/api/v1/nodes?labelSelector={}",
            label.replace('/', "%2F")
        ))?;
        Ok(objects.iter().map(KubeNode::read).collect())
    }

    /// The pods of these RuntimeClasses that have not ended, as `namespace/name`.
    ///
    /// # Errors
    /// The API server's word.
    pub fn pods(&self, classes: &[String]) -> Result<Vec<String>, String> {
        let objects = self.list(
            "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed",
        )?;
        let text = |pod: &Json, path: &str| {
            pod.pointer(path)
                .and_then(Json::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let ours = objects
            .iter()
            .filter(|pod| classes.contains(&text(pod, "/spec/runtimeClassName")));
        Ok(ours
            .map(|pod| {
                format!(
                    "{}/{}",
                    text(pod, "/metadata/namespace"),
                    text(pod, "/metadata/name")
                )
            })
            .collect())
    }

    /// All objects of a list, page by page.
    fn list(&self, path: &str) -> Result<Vec<Json>, String> {
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let page = match next.is_empty() {
                true => format!("{path}&limit={PAGE}"),
                // The server's own, made of characters that need no escape.
                false => format!("{path}&limit={PAGE}&continue={next}"),
            };
            let mut answer = self.call("GET", &page, None)?;
            if let Some(Json::Array(items)) = answer.get_mut("items").map(Json::take) {
                objects.extend(items);
            }
            next = answer
                .pointer("/metadata/continue")
                .and_then(Json::as_str)
                .unwrap_or_default()
                .to_owned();
            if next.is_empty() {
                return Ok(objects);
            }
        }
    }
}

/// Why a call failed.
struct Failure {
    text: String,
    /// It may go well another time.
    passing: bool,
}

impl Failure {
    fn passing(text: String) -> Self {
        Self {
            text,
            passing: true,
        }
    }

    fn last(text: String) -> Self {
        Self {
            text,
            passing: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_with_what_may_be_missing() {
        let node = KubeNode::read(&json!({
            "metadata": {"name": "a", "labels": {STATE: UNINSTALLING}},
            "status": {
                "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                "runtimeHandlers": [{"name": ""}, {"name": "slipway", "features": {}}]}}));
        assert!(node.ready);
        assert_eq!(node.uninstalling(), Some(false));
        assert_eq!(node.handlers, ["", "slipway"]);
        let node = KubeNode::read(&json!({}));
        assert!(!node.ready && node.handlers.is_empty());
        assert_eq!(node.uninstalling(), None);
    }
}
