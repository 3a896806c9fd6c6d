//! A Kubernetes API as the source of objects: who it is, whether it is there, and one watch per kind.

use super::events::Received;
use super::follow::{Connection, Feed};
use super::status::Status;
use super::types::{self, Kind};
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rand::RngExt;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How often an API in trouble is asked whether it is there.
const PROBE_IN_TROUBLE: Duration = Duration::from_secs(5);
/// From this version on, an API server knows about lists as streams, if only to refuse them.
const STREAMED_LISTS: (u32, u32) = (1, 27);

/// Where the API is, and how to talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// kubeconfig file; wins.
    pub kubeconfig: Option<PathBuf>,
    /// API servers' URLs, of which one is used at a time; without both, the configuration of the pod we run in.
    pub urls: Vec<String>,
    /// Which services there are (`--k8s-service-proxy-name`); empty: those without such a label.
    pub service_proxy_name: String,
    /// For a connection to come up; zero: the library's own limit.
    pub connect_timeout: Duration,
    /// How often the API is asked whether it is there, and how long for the answer; zero: never.
    pub heartbeat: Duration,
    /// How long to wait for the definitions of Cilium's resources.
    pub crd_wait: Duration,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            urls: vec![],
            service_proxy_name: String::new(),
            connect_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(30),
            crd_wait: Duration::from_secs(300),
        }
    }
}

/// Why the API cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: kube::config::KubeconfigError,
    },
    /// There is no configuration at all.
    #[error("Kubernetes client not configured, cannot continue: {0}")]
    NotConfigured(#[from] kube::config::InferConfigError),
    /// A URL is none.
    #[error("{url:?} is not a URL of a Kubernetes API server")]
    Url {
        /// As given.
        url: String,
    },
    /// The client could not be made.
    #[error("cannot make a Kubernetes client: {0}")]
    Client(#[from] kube::Error),
    /// Cilium is not installed.
    #[error("the definition of {names} did not appear in {} s (--crd-wait-timeout)", wait.as_secs())]
    Definitions {
        /// What is missing.
        names: String,
        /// How long was waited.
        wait: Duration,
    },
}

/// What a custom resource definition says of its versions.
#[derive(Deserialize)]
struct Definition {
    #[serde(default)]
    spec: DefinitionSpec,
}

#[derive(Default, Deserialize)]
struct DefinitionSpec {
    #[serde(default)]
    versions: Vec<DefinitionVersion>,
}

#[derive(Deserialize)]
struct DefinitionVersion {
    name: String,
    #[serde(default)]
    served: bool,
}

/// The versions that the API serves of a custom resource; none: it is not defined.
pub(super) async fn definition(client: &Client, kind: Kind) -> Result<Option<Vec<String>>, kube::Error> {
    let (group, _, plural) = kind.resource();
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{group}");
    match client.request::<Definition>(get(&path)).await {
        Ok(found) => {
            let served = found.spec.versions.into_iter().filter(|v| v.served);
            Ok(Some(served.map(|v| v.name).collect()))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

fn get(path: &str) -> http::Request<Vec<u8>> {
    let request = http::Request::get(path).body(vec![]);
    request.expect("the path is made of constants")
}

impl ApiConfig {
    /// A client for this API: `turn` picks one of its URLs. Nothing is sent yet.
    pub async fn client(&self, turn: usize) -> Result<Client, Error> {
        let mut config = match (&self.kubeconfig, self.urls.len()) {
            (Some(path), _) => {
                let wrap = |source| Error::Kubeconfig {
                    path: path.clone(),
                    source,
                };
                let file = Kubeconfig::read_from(path).map_err(wrap)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(wrap)?
            }
            (None, 0) => Config::infer().await?,
            (None, urls) => {
                let url = &self.urls[turn % urls];
                let full = match url.contains("://") {
                    true => url.clone(),
                    false => format!("https://{url}"),
                };
                let url = full.parse().map_err(|_| Error::Url { url: url.clone() })?;
                // The pod's own account and CA, if we run in one.
                match Config::incluster() {
                    Ok(mut config) => {
                        config.cluster_url = url;
                        config
                    }
                    Err(_) => Config::new(url),
                }
            }
        };
        if !self.connect_timeout.is_zero() {
            config.connect_timeout = Some(self.connect_timeout);
        }
        Ok(Client::try_from(config)?)
    }

    /// The label selector for a kind, as the original's informers have it.
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

    /// Follows `kinds` until asked to stop. Fails where waiting will not help.
    pub async fn run(
        self,
        kinds: Vec<Kind>,
        events: mpsc::Sender<Received>,
        status: Status,
        life: Lifecycle,
    ) -> Result<(), Error> {
        status.wanted(&kinds);
        let mut turn = rand::rng().random_range(0..self.urls.len().max(1));
        let mut connection = self.reach(&mut turn, &status).await?;
        // Of the kinds that Kubernetes itself has, none need be waited for.
        let (cilium, others): (Vec<_>, _) = kinds.into_iter().partition(|k| k.resource().0 == "cilium.io");
        let (sender, connections) = watch::channel(connection.clone());
        let feed = |kind: Kind| Feed {
            kind,
            selector: self.selector(kind),
            connections: connections.clone(),
            events: events.clone(),
            status: status.clone(),
        };
        others.into_iter().for_each(|kind| follow(feed(kind), &life));
        self.wait_for_definitions(&connection.client, &cilium).await?;
        cilium.into_iter().for_each(|kind| follow(feed(kind), &life));
        drop(connections);
        if self.heartbeat.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let pause = match status.has_outage() {
                true => PROBE_IN_TROUBLE.min(self.heartbeat),
                false => self.heartbeat,
            };
            tokio::time::sleep(pause).await;
            if self.probe(&connection.client, &status).await == Probe::Dead {
                turn += 1;
                match self.client(turn).await {
                    Ok(client) => connection.client = client,
                    Err(error) => {
                        tracing::warn!(%error, "going on with the old connection to the Kubernetes API");
                        continue;
                    }
                }
                sender.send_replace(connection.clone());
            }
        }
    }

    /// The first answer of the API, waited for for ever.
    async fn reach(&self, turn: &mut usize, status: &Status) -> Result<Connection, Error> {
        let mut backoff = Backoff::connect();
        loop {
            let client = self.client(*turn).await?;
            match client.apiserver_version().await {
                Ok(version) => {
                    status.probed(Ok(()));
                    tracing::info!(version = version.git_version, "connected to the Kubernetes API");
                    let number = |text: &str| {
                        text.trim_end_matches(|c: char| !c.is_ascii_digit())
                            .parse()
                            .unwrap_or(0)
                    };
                    let version = (number(&version.major), number(&version.minor));
                    return Ok(Connection {
                        client,
                        streams_lists: version >= STREAMED_LISTS,
                    });
                }
                Err(error) => {
                    if backoff.attempts().is_multiple_of(5) {
                        tracing::warn!(%error, "cannot reach the Kubernetes API, trying again");
                    }
                    status.probed(Err(error.to_string()));
                    *turn += 1;
                }
            }
            backoff.wait().await;
        }
    }

    async fn wait_for_definitions(&self, client: &Client, kinds: &[Kind]) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let mut missing = vec![];
            for kind in kinds {
                if let Ok(None) = definition(client, *kind).await {
                    let (group, _, plural) = kind.resource();
                    missing.push(format!("{plural}.{group}"));
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            let names = missing.join(", ");
            if begun.elapsed() >= self.crd_wait {
                let wait = self.crd_wait;
                return Err(Error::Definitions { names, wait });
            }
            tracing::info!(missing = names, "waiting for the definitions of Cilium's resources");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Asks the API whether it is there.
    async fn probe(&self, client: &Client, status: &Status) -> Probe {
        let answer = tokio::time::timeout(self.heartbeat, client.request_text(get("/readyz"))).await;
        let (answer, found) = match answer {
            Ok(Ok(_)) => (Ok(()), Probe::Alive),
            // It is there, and says no.
            Ok(Err(kube::Error::Api(refusal))) => (Err(refusal.to_string()), Probe::Alive),
            // Another may be there. The watches on a connection that is closed find out by themselves.
            Ok(Err(error)) if self.urls.len() > 1 => (Err(error.to_string()), Probe::Dead),
            Ok(Err(error)) => (Err(error.to_string()), Probe::Alive),
            // Nothing tells the watches on a connection that swallows everything.
            Err(_) => (Err(format!("no answer in {} s", self.heartbeat.as_secs())), Probe::Dead),
        };
        if let Err(error) = &answer
            && !status.has_outage()
        {
            tracing::warn!(error, "the Kubernetes API does not answer");
        }
        status.probed(answer);
        found
    }
}

#[derive(PartialEq, Eq)]
enum Probe {
    Alive,
    /// The connection is of no use.
    Dead,
}

fn follow(feed: Feed, life: &Lifecycle) {
    let name = format!("watch of {}", feed.kind.name());
    match feed.kind {
        Kind::Namespace => life.spawn_forever(name, feed.follow::<types::Namespace>()),
        Kind::Node => life.spawn_forever(name, feed.follow::<types::CiliumNode>()),
        Kind::Identity => life.spawn_forever(name, feed.follow::<types::CiliumIdentity>()),
        Kind::Endpoint => life.spawn_forever(name, feed.follow::<types::CiliumEndpoint>()),
        Kind::CiliumEndpointSlice => life.spawn_forever(name, feed.follow::<types::CiliumEndpointSlice>()),
        Kind::Service => life.spawn_forever(name, feed.follow::<types::Service>()),
        Kind::EndpointSlice => life.spawn_forever(name, feed.follow::<types::EndpointSlice>()),
        Kind::ServiceExport => life.spawn_forever(name, feed.follow::<types::ServiceExport>()),
    }
}
