//! The few calls of the Kubernetes API that the installer makes, with its pod's service account.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::report::say;
use crate::wish::{FORCE, INSTALL, State, UNINSTALL, Wish};

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

/// `true` where Slipway was seen to work: by it the RuntimeClass chooses nodes. `false` while it is taken away, and where it was seen
/// not to work.
pub const INSTALLED: &str = "slipway.dev/installed";
/// The version that is installed.
pub const VERSION: &str = "slipway.dev/version";
/// The node's [`State`].
pub const STATE: &str = "slipway.dev/state";

/// The ConfigMap that has the user's [`Wish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMap {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for ConfigMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not of the form NAMESPACE/NAME");
        let (namespace, name) = text.split_once('/').ok_or_else(wrong)?;
        // They become part of a path.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        let good = |part: &str| !part.is_empty() && part.bytes().all(plain);
        match good(namespace) && good(name) {
            true => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for ConfigMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ConfigMap {
    fn path(&self) -> String {
        format!(
            "/api/v1/namespaces/{}/configmaps/{}",
            self.namespace, self.name
        )
    }
}

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

/// A map of texts.
fn texts(object: Option<&Json>) -> BTreeMap<String, String> {
    let pairs = object.and_then(Json::as_object).into_iter().flatten();
    pairs
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
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
        Self {
            name: text(object.pointer("/metadata/name")),
            labels: texts(object.pointer("/metadata/labels")),
            ready: list("/status/conditions")
                .any(|c| c["type"] == "Ready" && c["status"] == "True"),
            handlers: list("/status/runtimeHandlers")
                .map(|h| text(h.get("name")))
                .collect(),
        }
    }

    /// Its state; `None` where it has nothing of Slipway's.
    pub fn state(&self) -> Option<State> {
        self.labels.get(STATE).map(|word| State::read(word))
    }

    /// Pods of the RuntimeClass may come to it.
    pub fn open(&self) -> bool {
        self.labels
            .get(INSTALLED)
            .is_some_and(|value| value == "true")
    }

    /// Slipway was installed on it once.
    pub fn was_installed(&self) -> bool {
        self.labels.contains_key(INSTALLED) || self.labels.contains_key(VERSION)
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
        Err(Failure {
            text: format!("{path}: {status}: {said}"),
            passing: status.is_server_error() || status.as_u16() == 429,
            status: Some(status.as_u16()),
        })
    }

    /// A call, again until the API server is there.
    fn call(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Json, String> {
        self.answered(method, path, body)
            .map_err(|failure| failure.to_string())
    }

    fn answered(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Json, Failure> {
        let started = Instant::now();
        let mut told = false;
        loop {
            match self.once(method, path, body) {
                Err(failure) if failure.passing && started.elapsed() < AWAY => {
                    if !std::mem::replace(&mut told, true) {
                        say(&format!("{failure}; trying again"));
                    }
                    std::thread::sleep(INTERVAL);
                }
                answer => return answer,
            }
        }
    }

    /// What the user wants of the nodes now.
    ///
    /// # Errors
    /// The API server's word.
    pub fn wish(&self, object: &ConfigMap) -> Result<Wish, String> {
        match self.answered("GET", &object.path(), None) {
            Ok(answer) => Ok(Wish::read(Some(&texts(answer.get("data"))))),
            Err(failure) if failure.status == Some(NOT_FOUND) => Ok(Wish::read(None)),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Says that Slipway shall be taken away from the nodes, in one change; `false` where the ConfigMap is missing.
    ///
    /// # Errors
    /// The API server's word.
    pub fn wish_uninstall(&self, object: &ConfigMap, force: bool) -> Result<bool, String> {
        let how = if force { FORCE } else { "" };
        let patch = json!({"data": {INSTALL: null, UNINSTALL: how}});
        match self.answered("PATCH", &object.path(), Some(&patch)) {
            Ok(_) => Ok(true),
            Err(failure) if failure.status == Some(NOT_FOUND) => Ok(false),
            Err(failure) => Err(failure.to_string()),
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
            "/api/v1/nodes?labelSelector={}&",
            label.replace('/', "%2F")
        ))?;
        Ok(objects.iter().map(KubeNode::read).collect())
    }

    /// The pods by these handlers that have not ended, as `namespace/name`.
    ///
    /// # Errors
    /// The API server's word.
    pub fn pods(&self, handlers: &[String]) -> Result<Vec<String>, String> {
        let classes = self.list("/apis/node.k8s.io/v1/runtimeclasses?")?;
        let pods = self.list(
            "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed&",
        )?;
        Ok(pods_by(handlers, &classes, &pods))
    }

    /// All objects of a list, page by page.
    fn list(&self, path: &str) -> Result<Vec<Json>, String> {
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let page = match next.is_empty() {
                true => format!("{path}limit={PAGE}"),
                // The server's own, made of characters that need no escape.
                false => format!("{path}limit={PAGE}&continue={next}"),
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

/// The names of the pods of RuntimeClasses with these handlers, whatever the classes are called. Of a class that is gone its name is
/// all there is.
fn pods_by(handlers: &[String], classes: &[Json], pods: &[Json]) -> Vec<String> {
    let text = |object: &Json, path: &str| {
        let text = object.pointer(path).and_then(Json::as_str);
        text.unwrap_or_default().to_owned()
    };
    let classes: BTreeMap<String, String> = classes
        .iter()
        .map(|class| (text(class, "/metadata/name"), text(class, "/handler")))
        .collect();
    let ours = pods.iter().filter(|pod| {
        let class = text(pod, "/spec/runtimeClassName");
        handlers.contains(classes.get(&class).unwrap_or(&class))
    });
    let name = |pod| {
        format!(
            "{}/{}",
            text(pod, "/metadata/namespace"),
            text(pod, "/metadata/name")
        )
    };
    ours.map(name).collect()
}

/// The status of an object that is not there.
const NOT_FOUND: u16 = 404;

/// Why a call failed.
struct Failure {
    text: String,
    /// It may go well another time.
    passing: bool,
    /// The API server's, where it has answered.
    status: Option<u16>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubernetes API: {}", self.text)
    }
}

impl Failure {
    fn passing(text: String) -> Self {
        Self {
            text,
            passing: true,
            status: None,
        }
    }

    fn last(text: String) -> Self {
        Self {
            text,
            passing: false,
            status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_with_what_may_be_missing() {
        let node = KubeNode::read(&json!({
            "metadata": {"name": "a", "labels": {STATE: "uninstalling", INSTALLED: "true"}},
            "status": {
                "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                "runtimeHandlers": [{"name": ""}, {"name": "slipway", "features": {}}]}}));
        assert!(node.ready);
        assert_eq!(
            (node.state(), node.open()),
            (Some(State::Uninstalling), true)
        );
        assert_eq!(node.handlers, ["", "slipway"]);
        let node = KubeNode::read(&json!({}));
        assert!(!node.ready && node.handlers.is_empty());
        assert_eq!((node.state(), node.open()), (None, false));
    }

    #[test]
    fn pods_are_found_by_the_handler_of_their_class_whatever_it_is_called() {
        let class =
            |name: &str, handler: &str| json!({"metadata": {"name": name}, "handler": handler});
        let pod = |name: &str, class: Option<&str>| json!({"metadata": {"namespace": "n", "name": name}, "spec": {"runtimeClassName": class}});
        let classes = [
            class("wasm", "slipway"),
            class("own", "slipway"),
            class("slipway", "runc"),
        ];
        let pods = [
            pod("a", Some("wasm")),
            pod("b", Some("own")),
            pod("c", None),
            // Called as ours, and somebody else's.
            pod("d", Some("slipway")),
            pod("e", Some("wasmedge")),
            pod("f", Some("gone")),
        ];
        let handlers = ["slipway", "wasmedge"].map(String::from);
        assert_eq!(pods_by(&handlers, &classes, &pods), ["n/a", "n/b", "n/e"]);
    }

    #[test]
    fn a_config_map_is_named_with_its_namespace() {
        let object: ConfigMap = "a/b".parse().unwrap();
        assert_eq!(object.path(), "/api/v1/namespaces/a/configmaps/b");
        for bad in ["", "a", "/b", "a/", "a/b/c", "a/../b", "a/b?c"] {
            assert!(bad.parse::<ConfigMap>().is_err(), "{bad}");
        }
    }
}
