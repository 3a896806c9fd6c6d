//! Applies the change to a Kubernetes cluster, once.

use super::{Domains, Plan, Version, plan, version};
use crate::k8s::client::describe;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

/// Key of the Corefile in the ConfigMap.
const COREFILE: &str = "Corefile";
/// Key of the former Corefile.
const BACKUP: &str = "Corefile.cilium.bak";
/// Annotation of the pod template: a new value restarts the pods.
const ANNOTATION: &str = "clustermesh.cilium.io/autoPatchedAt";
/// The field manager of the annotation.
const FIELD_MANAGER: &str = "mcsapi-coredns-autocfg";

/// The objects of CoreDNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Namespace of both objects.
    pub namespace: String,
    /// The ConfigMap with the Corefile.
    pub config_map: String,
    /// The Deployment that mounts it.
    pub deployment: String,
}

/// Why CoreDNS was not changed, or not restarted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {kind} {namespace}/{name}: {}", describe(source))]
    Api {
        action: &'static str,
        kind: &'static str,
        namespace: String,
        name: String,
        source: Box<kube::Error>,
    },
    #[error("CoreDNS {0} is too old: the MCS API requires CoreDNS 1.12.2 or later")]
    TooOld(String),
    #[error("ConfigMap {namespace}/{name} has no Corefile")]
    NoCorefile { namespace: String, name: String },
    #[error("Deployment {namespace}/{name} is paused, so CoreDNS would not be restarted")]
    Paused { namespace: String, name: String },
    #[error(transparent)]
    Corefile(#[from] super::Error),
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// CoreDNS is already configured for a clusterset.
    Nothing,
    /// The Corefile was changed, and CoreDNS restarts.
    Changed,
}

impl Names {
    fn failed(
        &self,
        action: &'static str,
        kind: &'static str,
        name: &str,
    ) -> impl FnOnce(kube::Error) -> Error + use<> {
        let (namespace, name) = (self.namespace.clone(), name.to_owned());
        move |source| Error::Api {
            action,
            kind,
            namespace,
            name,
            source: Box::new(source),
        }
    }
}

/// Adds the clusterset domain to the Corefile, and restarts CoreDNS. Everything that can be checked is checked before the
/// first change.
pub async fn apply(client: Client, names: &Names, domains: &Domains) -> Result<Done, Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &names.namespace);
    let deployments: Api<Deployment> = Api::namespaced(client, &names.namespace);
    let failed = |action, kind, name: &str| names.failed(action, kind, name);
    let got = maps.get(&names.config_map).await;
    let mut map = got.map_err(failed("get", "ConfigMap", &names.config_map))?;
    let got = deployments.get(&names.deployment).await;
    let deployment = got.map_err(failed("get", "Deployment", &names.deployment))?;
    let spec = deployment.spec.unwrap_or_default();
    let pod = spec.template.spec.unwrap_or_default();
    let image = pod.containers.first().and_then(|container| container.image.as_deref());
    match version(image.unwrap_or_default()) {
        Version::Supported => {}
        Version::TooOld(version) => return Err(Error::TooOld(version)),
        Version::Unknown(why) => tracing::warn!(why, "the version of CoreDNS is unknown and is not checked"),
    }
    let data = map.data.get_or_insert_default();
    let corefile = data.get(COREFILE).ok_or_else(|| Error::NoCorefile {
        namespace: names.namespace.clone(),
        name: names.config_map.clone(),
    })?;
    let changed = match plan(domains, corefile)? {
        Plan::Keep => return Ok(Done::Nothing),
        Plan::Write(changed) => changed,
    };
    if spec.paused == Some(true) {
        return Err(Error::Paused {
            namespace: names.namespace.clone(),
            name: names.deployment.clone(),
        });
    }
    if let Some(before) = data.insert(COREFILE.to_owned(), changed) {
        data.insert(BACKUP.to_owned(), before);
    }
    let put = maps.replace(&names.config_map, &PostParams::default(), &map).await;
    put.map_err(failed("update", "ConfigMap", &names.config_map))?;
    tracing::info!("the Corefile was changed");
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": names.deployment, "namespace": names.namespace},
        "spec": {"template": {"metadata": {"annotations": {ANNOTATION: now}}}},
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patched = deployments
        .patch(&names.deployment, &params, &Patch::Apply(&patch))
        .await;
    patched.map_err(failed("restart", "Deployment", &names.deployment))?;
    Ok(Done::Changed)
}
