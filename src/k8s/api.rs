//! A Kubernetes API as the source of objects: the connection, its probe, and one watch per kind.

use super::client::{self, ProxyVariables, Settings, Source, describe};
use super::definitions;
use super::events::Received;
use super::status::Status;
use super::types::{self, Kind};
use super::watch::{Connection, KindWatch, ListMode};
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use kube::Client;
use rand::RngExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Longest time between two probes during an outage.
const PROBE_IN_OUTAGE: Duration = Duration::from_secs(5);
/// From this version on, an API server answers a request for a list as a stream, if only with a refusal.
const STREAMED_LISTS: ServerVersion = ServerVersion { major: 1, minor: 27 };
/// The API group of Cilium's own resources.
const CILIUM_GROUP: &str = "cilium.io";

/// The address and credentials of the API, and limits for connecting to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// The kubeconfig file, which takes precedence over `urls`.
    pub kubeconfig: Option<PathBuf>,
    /// URLs of API servers; one is used at a time. Without a kubeconfig and URLs, the pod's service account is used.
    pub urls: Vec<String>,
    /// Publishes only services with this value of the label `service.kubernetes.io/service-proxy-name`
    /// (`--k8s-service-proxy-name`); if empty, only services without the label.
    pub service_proxy_name: String,
    /// The proxies for requests to the API, unless the kubeconfig names one.
    pub proxies: ProxyVariables,
    /// Limit for establishing a connection; zero selects the client library's limit.
    pub connect_timeout: Duration,
    /// Time between two probes of the API, and limit for the answer to a probe; zero disables probes.
    pub heartbeat: Duration,
    /// Limit for waiting for the definitions of Cilium's resources.
    pub crd_wait: Duration,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            urls: vec![],
            service_proxy_name: String::new(),
            proxies: ProxyVariables::default(),
            connect_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(30),
            crd_wait: Duration::from_secs(300),
        }
    }
}

/// Why the API cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    /// Cilium is not installed.
    #[error("the definition of {names} did not appear in {} s (--crd-wait-timeout)", wait.as_secs())]
    Definitions { names: String, wait: Duration },
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ServerVersion {
    major: u32,
    minor: u32,
}

/// The outcome of a probe.
#[derive(PartialEq, Eq)]
enum Probe {
    /// The connection stays.
    Keep,
    /// The connection is replaced.
    Reconnect,
}

impl ApiConfig {
    /// A client for this API. If there are several URLs, attempt `n` uses the URL at `n` modulo their number. Sends
    /// nothing yet.
    pub async fn client(&self, attempt: usize) -> Result<Client, Error> {
        let source = match (&self.kubeconfig, self.urls.len()) {
            (Some(path), _) => Source::Kubeconfig(path.clone()),
            (None, 0) => Source::Inferred,
            (None, urls) => Source::Url(self.urls[attempt % urls].clone()),
        };
        let settings = Settings {
            source,
            proxies: self.proxies.clone(),
            connect_timeout: self.connect_timeout,
        };
        Ok(settings.client().await?)
    }

    /// The label selector for a kind. Parity: the same as of Cilium's informers.
    fn selector(&self, kind: Kind) -> Option<String> {
        match kind {
            Kind::Service if self.service_proxy_name.is_empty() => {
                Some("!service.kubernetes.io/service-proxy-name".to_owned())
            }
            Kind::Service => Some(format!(
                "service.kubernetes.io/service-proxy-name=={}",
                self.service_proxy_name
            )),
            Kind::EndpointSlice => {
                Some("endpointslice.kubernetes.io/managed-by!=endpointslice-mesh-controller.cilium.io".to_owned())
            }
            _ => None,
        }
    }

    /// Watches `kinds` until the lifecycle stops. An error means that waiting will not help.
    pub async fn run(
        self,
        kinds: Vec<Kind>,
        events: mpsc::Sender<Received>,
        status: Status,
        life: Lifecycle,
    ) -> Result<(), Error> {
        status.expect_kinds(&kinds);
        // Instances begin with different API servers.
        let mut attempt = rand::rng().random_range(0..self.urls.len().max(1));
        let mut connection = self.connect(&mut attempt, &status).await?;
        // Kubernetes' own kinds are always defined.
        let (cilium, others): (Vec<_>, _) = kinds
            .into_iter()
            .partition(|kind| kind.api_name().group == CILIUM_GROUP);
        let (sender, connections) = watch::channel(connection.clone());
        let start = |kind: Kind| {
            let watch = KindWatch {
                kind,
                selector: self.selector(kind),
                connections: connections.clone(),
                events: events.clone(),
                status: status.clone(),
            };
            spawn(watch, &life);
        };
        others.into_iter().for_each(&start);
        let defined = definitions::wait(&connection.client, &cilium, self.crd_wait).await;
        defined.map_err(|missing| Error::Definitions {
            names: missing.names,
            wait: self.crd_wait,
        })?;
        cilium.into_iter().for_each(&start);
        if self.heartbeat.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let pause = match status.has_outage() {
                true => PROBE_IN_OUTAGE.min(self.heartbeat),
                false => self.heartbeat,
            };
            tokio::time::sleep(pause).await;
            if self.probe(&connection.client, &status).await == Probe::Reconnect {
                attempt += 1;
                match self.client(attempt).await {
                    Ok(client) => connection.client = client,
                    Err(error) => {
                        tracing::warn!(%error, "cannot make a new connection to the Kubernetes API; keeping the old one");
                        continue;
                    }
                }
                sender.send_replace(connection.clone());
            }
        }
    }

    /// Connects, and waits for the first answer without a limit.
    async fn connect(&self, attempt: &mut usize, status: &Status) -> Result<Connection, Error> {
        let mut backoff = Backoff::connect();
        loop {
            let client = self.client(*attempt).await?;
            match client.apiserver_version().await {
                Ok(version) => {
                    status.probed(Ok(()));
                    tracing::info!(version = version.git_version, "connected to the Kubernetes API");
                    let lists = match ServerVersion::parse(&version.major, &version.minor) >= STREAMED_LISTS {
                        true => ListMode::Streamed,
                        false => ListMode::Paged,
                    };
                    return Ok(Connection { client, lists });
                }
                Err(error) => {
                    let error = describe(&error);
                    if backoff.attempts().is_multiple_of(5) {
                        tracing::warn!(error, "cannot reach the Kubernetes API, trying again");
                    }
                    status.probed(Err(error));
                    *attempt += 1;
                }
            }
            backoff.wait().await;
        }
    }

    /// Asks the API for its readiness, and decides whether the connection is still of use.
    async fn probe(&self, client: &Client, status: &Status) -> Probe {
        let request = http::Request::get("/readyz").body(vec![]);
        let request = request.expect("the path is constant");
        let answer = tokio::time::timeout(self.heartbeat, client.request_text(request)).await;
        let (answer, probe) = match answer {
            Ok(Ok(_)) => (Ok(()), Probe::Keep),
            // The API answers that it is not ready.
            Ok(Err(kube::Error::Api(refusal))) => (Err(refusal.to_string()), Probe::Keep),
            // Another API server may answer. With only one, the watches notice a closed connection themselves.
            Ok(Err(error)) if self.urls.len() > 1 => (Err(describe(&error)), Probe::Reconnect),
            Ok(Err(error)) => (Err(describe(&error)), Probe::Keep),
            // Watches cannot notice a connection that silently drops all packets.
            Err(_) => (
                Err(format!("no answer in {} s", self.heartbeat.as_secs())),
                Probe::Reconnect,
            ),
        };
        if let Err(error) = &answer
            && !status.has_outage()
        {
            tracing::warn!(error, "the Kubernetes API does not answer");
        }
        status.probed(answer);
        probe
    }
}

impl ServerVersion {
    /// Reads `1` and `27+`. Anything else counts as 0.
    fn parse(major: &str, minor: &str) -> Self {
        let number = |text: &str| {
            let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
            digits.parse().unwrap_or(0)
        };
        Self {
            major: number(major),
            minor: number(minor),
        }
    }
}

fn spawn(watch: KindWatch, life: &Lifecycle) {
    let name = format!("watch of {}", watch.kind.name());
    match watch.kind {
        Kind::Namespace => life.spawn_forever(name, watch.run::<types::Namespace>()),
        Kind::Node => life.spawn_forever(name, watch.run::<types::CiliumNode>()),
        Kind::Identity => life.spawn_forever(name, watch.run::<types::CiliumIdentity>()),
        Kind::Endpoint => life.spawn_forever(name, watch.run::<types::CiliumEndpoint>()),
        Kind::CiliumEndpointSlice => life.spawn_forever(name, watch.run::<types::CiliumEndpointSlice>()),
        Kind::Service => life.spawn_forever(name, watch.run::<types::Service>()),
        Kind::EndpointSlice => life.spawn_forever(name, watch.run::<types::EndpointSlice>()),
        Kind::ServiceExport => life.spawn_forever(name, watch.run::<types::ServiceExport>()),
    }
}
