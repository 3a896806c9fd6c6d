//! Reads the facts of one cluster. An object that the mesh cannot be judged without is an error if it cannot be read; other
//! objects are noted as unread.

use super::context::Context;
use super::facts::{self, Bundle, BundleKind, BundlePlace, CiliumNode, Facts, Release, Unread, secret};
use super::trust;
use crate::k8s::client::{describe, remedy};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service};
use kube::api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::Instant;

/// Time for reading one cluster: a large one over a slow connection takes some of it, a dead API server all of it.
const LIMIT: Duration = Duration::from_secs(60);
/// Objects in one answer to a list.
const PAGE: u32 = 500;
/// The label of a Helm release's Secret.
const HELM: &str = "owner=helm";

/// Why the facts of a cluster are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot {verb} {kind} {name} in context {context:?}: {}{}",
        describe(error),
        remedy(error, &format!("{verb} {resource}"), "")
    )]
    Api {
        verb: &'static str,
        kind: &'static str,
        /// The name in the API: `configmaps`.
        resource: &'static str,
        /// Namespace and name; empty for a list.
        name: String,
        context: String,
        error: Box<kube::Error>,
    },
    #[error(
        "no ConfigMap {namespace}/{} in context {context:?}: Cilium is not installed in this namespace{}; set --namespace",
        facts::CILIUM_CONFIG,
        found(elsewhere)
    )]
    NoCilium {
        namespace: String,
        context: String,
        /// Namespaces that have the ConfigMap.
        elsewhere: Vec<String>,
    },
    #[error(
        "the Kubernetes API of context {context:?} has not answered in {} s; is it reachable from this machine, through a VPN or \
         a proxy?", after.as_secs()
    )]
    Timeout { context: String, after: Duration },
}

fn found(elsewhere: &[String]) -> String {
    match elsewhere.is_empty() {
        true => String::new(),
        false => format!(" (it is in: {})", elsewhere.join(", ")),
    }
}

/// Reads everything, in limited time.
pub async fn facts(context: &Context) -> Result<Facts, Error> {
    facts_until(context, Instant::now() + LIMIT).await
}

/// Reads everything, in limited time and before `deadline`.
pub async fn facts_until(context: &Context, deadline: Instant) -> Result<Facts, Error> {
    // Many requests at a time make a large future.
    let end = deadline.min(Instant::now() + LIMIT);
    within(context, end, Box::pin(read(context))).await
}

/// Ends a request to an API that does not answer.
async fn within<T>(
    context: &Context,
    end: Instant,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let started = Instant::now();
    let ended = tokio::time::timeout_at(end, request).await;
    ended.unwrap_or_else(|_| {
        Err(Error::Timeout {
            context: context.name.clone(),
            after: started.elapsed(),
        })
    })
}

async fn read(context: &Context) -> Result<Facts, Error> {
    let reader = Reader { context };
    let config: Option<ConfigMap> = reader.get("ConfigMap", "configmaps", facts::CILIUM_CONFIG).await?;
    if config.is_none() {
        return Err(reader.no_cilium().await);
    }
    let (service, deployment, agents, nodes) = tokio::try_join!(
        reader.get::<Service>("Service", "services", facts::APISERVER),
        reader.get::<Deployment>("Deployment", "deployments.apps", facts::APISERVER),
        reader.get::<DaemonSet>("DaemonSet", "daemonsets.apps", facts::AGENTS),
        reader.nodes(),
    )?;
    let (users, bundle) = tokio::try_join!(
        reader.get::<ConfigMap>("ConfigMap", "configmaps", facts::USERS),
        bundle(context, deployment.as_ref(), agents.as_ref()),
    )?;
    let mut read = Facts {
        context: context.name.clone(),
        entry: context.entry.clone(),
        server: context.server.clone(),
        namespace: context.namespace.clone(),
        cilium_config: config,
        service,
        deployment,
        agents,
        nodes,
        users,
        bundle,
        ..Facts::default()
    };
    let secrets = secret::ALL.map(|name| reader.get::<Secret>("Secret", "secrets", name));
    for (name, secret) in secret::ALL
        .into_iter()
        .zip(futures::future::try_join_all(secrets).await?)
    {
        if let Some(secret) = secret {
            read.secrets.insert(name.to_owned(), secret);
        }
    }
    let (cilium_nodes, releases, certgen) =
        tokio::join!(reader.cilium_nodes(), reader.releases(), reader.has_certgen());
    let mut note = |what: &str, error: kube::Error| {
        let (what, why) = (what.to_owned(), describe(&error));
        read.unread.push(Unread { what, why });
    };
    read.cilium_nodes = cilium_nodes.unwrap_or_else(|error| {
        note("CiliumNodes", error);
        vec![]
    });
    read.releases = releases.unwrap_or_else(|error| {
        note("Helm releases", error);
        vec![]
    });
    read.has_certgen = certgen.unwrap_or_else(|error| {
        note(facts::CRON_JOBS, error);
        false
    });
    // `connect` writes the record first: a record that is read last is never older than what follows from it, and a change
    // that follows from the record meets the versions of objects that were read before.
    read.record = reader.get("ConfigMap", "configmaps", facts::RECORD).await?;
    Ok(read)
}

/// Reads the Service of the store again, in limited time.
pub async fn service(context: &Context) -> Result<Option<Service>, Error> {
    service_until(context, Instant::now() + LIMIT).await
}

/// Reads the Service of the store again, in limited time and before `deadline`.
pub async fn service_until(context: &Context, deadline: Instant) -> Result<Option<Service>, Error> {
    let reader = Reader { context };
    let request = reader.get("Service", "services", facts::APISERVER);
    within(context, deadline.min(Instant::now() + LIMIT), request).await
}

/// Reads the Deployment of the store again, in limited time and before `deadline`.
pub async fn deployment_until(context: &Context, deadline: Instant) -> Result<Option<Deployment>, Error> {
    let reader = Reader { context };
    let request = reader.get("Deployment", "deployments.apps", facts::APISERVER);
    within(context, deadline.min(Instant::now() + LIMIT), request).await
}

/// Reads the CA bundle that the pods of a cluster use; `None` if they use none.
pub async fn bundle(
    context: &Context,
    deployment: Option<&Deployment>,
    agents: Option<&DaemonSet>,
) -> Result<Option<Bundle>, Error> {
    match trust::place(deployment, agents) {
        Some(place) => Ok(Some(Reader { context }.bundle(place).await?)),
        None => Ok(None),
    }
}

/// Reads objects through one context.
struct Reader<'a> {
    context: &'a Context,
}

// === impl Reader ===

impl Reader<'_> {
    /// An object in Cilium's namespace.
    async fn get<K>(&self, kind: &'static str, resource: &'static str, name: &str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api: Api<K> = Api::namespaced(self.context.client.clone(), &self.context.namespace);
        let got = api.get_opt(name).await;
        got.map_err(|error| Error::Api {
            verb: "get",
            kind,
            resource,
            name: format!("{}/{name}", self.context.namespace),
            context: self.context.name.clone(),
            error: Box::new(error),
        })
    }

    /// The CA bundle at this place.
    async fn bundle(&self, place: BundlePlace) -> Result<Bundle, Error> {
        let (metadata, pem) = match place.kind {
            BundleKind::ConfigMap => {
                let map: Option<ConfigMap> = self.get("ConfigMap", "configmaps", &place.name).await?;
                let map = map.unwrap_or_default();
                let pem = map.data.and_then(|mut data| data.remove(&place.key));
                (map.metadata, pem)
            }
            BundleKind::Secret => {
                let secret: Option<Secret> = self.get("Secret", "secrets", &place.name).await?;
                let secret = secret.unwrap_or_default();
                let pem = secret.data.and_then(|mut data| data.remove(&place.key));
                (secret.metadata, pem.and_then(|pem| String::from_utf8(pem.0).ok()))
            }
        };
        Ok(Bundle { place, metadata, pem })
    }

    /// Whether Cilium's certgen runs from time to time.
    async fn has_certgen(&self) -> Result<bool, kube::Error> {
        let api: Api<CronJob> = Api::namespaced(self.context.client.clone(), &self.context.namespace);
        Ok(api.get_metadata_opt(facts::CERTGEN).await?.is_some())
    }

    async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let api: Api<Node> = Api::all(self.context.client.clone());
        let mut nodes = vec![];
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = api.list(&page).await.map_err(|error| Error::Api {
                verb: "list",
                kind: "Nodes",
                resource: "nodes",
                name: String::new(),
                context: self.context.name.clone(),
                error: Box::new(error),
            })?;
            nodes.extend(listed.items);
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(nodes),
            }
        }
    }

    async fn cilium_nodes(&self) -> Result<Vec<CiliumNode>, kube::Error> {
        let resource = ApiResource {
            group: "cilium.io".to_owned(),
            version: "v2".to_owned(),
            api_version: "cilium.io/v2".to_owned(),
            kind: "CiliumNode".to_owned(),
            plural: "ciliumnodes".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(self.context.client.clone(), &resource);
        let listed = api.list(&ListParams::default()).await?;
        let networks = |object: &DynamicObject| {
            let networks = object.data["spec"]["ipam"]["podCIDRs"].as_array().cloned();
            let networks = networks.unwrap_or_default();
            networks.iter().filter_map(|n| n.as_str()).map(str::to_owned).collect()
        };
        let node = |object: DynamicObject| CiliumNode {
            pod_cidrs: networks(&object),
            name: object.metadata.name.unwrap_or_default(),
        };
        Ok(listed.items.into_iter().map(node).collect())
    }

    /// The Helm releases of Cilium. Asks for metadata only: a release holds a whole chart.
    async fn releases(&self) -> Result<Vec<Release>, kube::Error> {
        let all: Api<Secret> = Api::all(self.context.client.clone());
        let own: Api<Secret> = Api::namespaced(self.context.client.clone(), &self.context.namespace);
        let page = ListParams::default().labels(HELM);
        let listed = match all.list_metadata(&page).await {
            Err(kube::Error::Api(status)) if status.code == 403 => own.list_metadata(&page).await?,
            listed => listed?,
        };
        let release = |object: PartialObjectMeta<Secret>| {
            let name = object.metadata.labels?.get("name")?.clone();
            let namespace = object.metadata.namespace.unwrap_or_default();
            name.contains(facts::AGENTS).then_some(Release { namespace, name })
        };
        let mut releases: Vec<_> = listed.items.into_iter().filter_map(release).collect();
        releases.sort();
        releases.dedup();
        Ok(releases)
    }

    /// The error about a missing configuration, with the namespaces that have one.
    async fn no_cilium(&self) -> Error {
        let all: Api<ConfigMap> = Api::all(self.context.client.clone());
        let named = ListParams::default().fields(&format!("metadata.name={}", facts::CILIUM_CONFIG));
        let listed = all.list_metadata(&named).await;
        let maps = listed.map(|listed| listed.items).unwrap_or_default();
        Error::NoCilium {
            namespace: self.context.namespace.clone(),
            context: self.context.name.clone(),
            elsewhere: maps.into_iter().filter_map(|map| map.metadata.namespace).collect(),
        }
    }
}
