//! A Kubernetes API as the source of objects: one watch per kind, which lists again when it must.

use super::events::Event;
use super::types::{self, Kind, Object, ObjectKey};
use futures::{StreamExt, TryStreamExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::fmt::Debug;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Where the API is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiConfig {
    /// kubeconfig file; wins.
    pub kubeconfig: Option<PathBuf>,
    /// API servers' URLs; without both, the configuration of the pod we run in.
    pub urls: Vec<String>,
    /// Which services there are (`--k8s-service-proxy-name`); empty: those without such a label.
    pub service_proxy_name: String,
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
}

impl ApiConfig {
    /// A client for this API. Nothing is sent yet.
    pub async fn client(&self) -> Result<Client, Error> {
        let config = match (&self.kubeconfig, self.urls.first()) {
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
            (None, Some(url)) => {
                let full = if url.contains("://") {
                    url.clone()
                } else {
                    format!("https://{url}")
                };
                Config::new(full.parse().map_err(|_| Error::Url { url: url.clone() })?)
            }
            (None, None) => Config::infer().await?,
        };
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

    /// Follows one kind, for ever.
    pub async fn follow(self, client: Client, kind: Kind, events: mpsc::Sender<Event>) {
        let selector = self.selector(kind);
        match kind {
            Kind::Namespace => follow::<types::Namespace>(client, kind, selector, events).await,
            Kind::Node => follow::<types::CiliumNode>(client, kind, selector, events).await,
            Kind::Identity => follow::<types::CiliumIdentity>(client, kind, selector, events).await,
            Kind::Endpoint => follow::<types::CiliumEndpoint>(client, kind, selector, events).await,
            Kind::CiliumEndpointSlice => {
                follow::<types::CiliumEndpointSlice>(client, kind, selector, events).await;
            }
            Kind::Service => follow::<types::Service>(client, kind, selector, events).await,
            Kind::EndpointSlice => follow::<types::EndpointSlice>(client, kind, selector, events).await,
            Kind::ServiceExport => follow::<types::ServiceExport>(client, kind, selector, events).await,
        }
    }
}

async fn follow<K>(client: Client, kind: Kind, selector: Option<String>, events: mpsc::Sender<Event>)
where
    K: kube::Resource<DynamicType = ()> + Into<Object> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = watcher::Config::default();
    if let Some(selector) = selector {
        config = config.labels(&selector);
    }
    let stream = watcher(Api::<K>::all(client), config).default_backoff();
    let mut stream = stream
        .map_err(|error| tracing::warn!(kind = kind.name(), %error, "watching failed, trying again"))
        .boxed();
    let mut known = Known::new(kind);
    while let Some(event) = stream.next().await {
        let Ok(event) = event else { continue };
        let event = match event {
            watcher::Event::Init => Step::Begin,
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => Step::Apply(object.into()),
            watcher::Event::Delete(object) => Step::Delete(object.into()),
            watcher::Event::InitDone => Step::End,
        };
        for event in known.step(event) {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

enum Step {
    Begin,
    Apply(Object),
    Delete(Object),
    End,
}

/// The objects of a kind that are known, to find out after a new list which have gone.
struct Known {
    kind: Kind,
    keys: HashSet<ObjectKey>,
    /// Named by the list that goes on, if one does.
    listed: Option<HashSet<ObjectKey>>,
    first: bool,
}

impl Known {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            keys: HashSet::new(),
            listed: None,
            first: true,
        }
    }

    fn step(&mut self, step: Step) -> Vec<Event> {
        match step {
            Step::Begin => {
                self.listed = Some(HashSet::new());
                vec![]
            }
            Step::Apply(object) => {
                let key = object.key();
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                self.keys.insert(key);
                vec![Event::Apply(Box::new(object))]
            }
            Step::Delete(object) => {
                let key = object.key();
                self.keys.remove(&key);
                vec![Event::Delete(key)]
            }
            Step::End => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> = self.keys.extract_if(|key| !listed.contains(key)).collect();
                let mut events: Vec<_> = gone.into_iter().map(Event::Delete).collect();
                if std::mem::take(&mut self.first) {
                    events.push(Event::Listed(self.kind));
                }
                events
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_list_does_not_name_is_gone() {
        let object = |name: &str| {
            Kind::Node
                .parse(serde_json::json!({"metadata": {"name": name}}))
                .unwrap()
        };
        let mut known = Known::new(Kind::Node);
        known.step(Step::Begin);
        known.step(Step::Apply(object("a")));
        known.step(Step::Apply(object("b")));
        assert!(matches!(known.step(Step::End)[..], [Event::Listed(Kind::Node)]));
        known.step(Step::Begin);
        known.step(Step::Apply(object("b")));
        let events = known.step(Step::End);
        let [Event::Delete(key)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(key.name, "a");
    }
}
