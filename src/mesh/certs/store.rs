//! Reads and writes the Secrets of certificates, and nothing else of a cluster, so that a CronJob needs few rights.

use crate::k8s::client::{describe, remedy};
use crate::mesh::context::Context;
use crate::mesh::facts::{self, Bundle, Facts, MANAGED_BY, MANAGER, secret};
use crate::mesh::read;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

/// Why an object was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot {verb} {object} in context {context:?}: {}{}",
        describe(error),
        remedy(error, &format!("{verb} {object}"), "; somebody has changed the object in the meantime: run the command again")
    )]
    Api {
        verb: &'static str,
        /// Kind, namespace and name.
        object: String,
        context: String,
        error: Box<kube::Error>,
    },
    #[error(
        "no ConfigMap {namespace}/{} in context {context:?}: Cilium is not installed in this namespace; set --namespace",
        facts::CILIUM_CONFIG
    )]
    NoCilium { namespace: String, context: String },
    #[error(transparent)]
    Read(#[from] read::Error),
}

/// The Secrets of one cluster.
#[derive(Clone)]
pub struct Store<'a> {
    pub context: &'a Context,
}

// === impl Store ===

impl Store<'_> {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), &self.context.namespace)
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.context.client.clone(), &self.context.namespace)
    }

    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), &self.context.namespace)
    }

    fn failed<'a>(&'a self, verb: &'static str, kind: &str, name: &str) -> impl FnOnce(kube::Error) -> Error + 'a {
        let object = format!("{kind} {}/{name}", self.context.namespace);
        move |error| Error::Api {
            verb,
            object,
            context: self.context.name.clone(),
            error: Box::new(error),
        }
    }

    /// The facts that certificates need: the cluster's name, its Deployment and its Secrets.
    pub async fn facts(&self) -> Result<Facts, Error> {
        // Requests of several kinds make a large future.
        Box::pin(self.read()).await
    }

    async fn read(&self) -> Result<Facts, Error> {
        let deployment = async {
            let got = self.deployments().get_opt(facts::APISERVER).await;
            got.map_err(self.failed("get", "Deployment", facts::APISERVER))
        };
        let (config, deployment, users, record) = tokio::try_join!(
            self.map(facts::CILIUM_CONFIG),
            deployment,
            self.map(facts::USERS),
            self.map(facts::RECORD),
        )?;
        if config.is_none() {
            let (namespace, context) = (self.context.namespace.clone(), self.context.name.clone());
            return Err(Error::NoCilium { namespace, context });
        }
        let secrets = futures::future::try_join_all(secret::ALL.map(|name| self.secret(name))).await?;
        let found = secret::ALL.into_iter().zip(secrets);
        Ok(Facts {
            context: self.context.name.clone(),
            entry: self.context.entry.clone(),
            server: self.context.server.clone(),
            namespace: self.context.namespace.clone(),
            cilium_config: config,
            deployment,
            users,
            record,
            secrets: found
                .filter_map(|(name, secret)| Some((name.to_owned(), secret?)))
                .collect(),
            ..Facts::default()
        })
    }

    async fn map(&self, name: &str) -> Result<Option<ConfigMap>, Error> {
        let map = self.maps().get_opt(name).await;
        map.map_err(self.failed("get", "ConfigMap", name))
    }

    /// The facts with the CA bundle that the pods use, for which more rights are needed.
    pub async fn facts_with_bundle(&self) -> Result<Facts, Error> {
        let mut facts = self.facts().await?;
        facts.bundle = self.bundle(&facts).await?;
        Ok(facts)
    }

    /// The CA bundle that the pods use, if there is one.
    async fn bundle(&self, facts: &Facts) -> Result<Option<Bundle>, Error> {
        let agents: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), &self.context.namespace);
        let agents = agents.get_opt(facts::AGENTS).await;
        let agents = agents.map_err(self.failed("get", "DaemonSet", facts::AGENTS))?;
        Ok(read::bundle(self.context, facts.deployment.as_ref(), agents.as_ref()).await?)
    }

    pub async fn secret(&self, name: &str) -> Result<Option<Secret>, Error> {
        self.secrets()
            .get_opt(name)
            .await
            .map_err(self.failed("get", "Secret", name))
    }

    /// Sets some keys of a Secret that was read, and leaves all others. Fails if the Secret has changed since.
    pub async fn set(&self, read: &Facts, name: &str, values: &[(&str, &str)]) -> Result<(), Error> {
        let data: Map<String, Value> = values
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(STANDARD.encode(value))))
            .collect();
        let mut patch = json!({"data": data});
        if let Some(version) = read
            .secrets
            .get(name)
            .and_then(|secret| secret.metadata.resource_version.as_ref())
        {
            patch["metadata"] = json!({"resourceVersion": version});
        }
        self.patch(name, patch).await
    }

    /// Sets an annotation of a Secret.
    pub async fn annotate(&self, name: &str, annotation: &str, value: &str) -> Result<(), Error> {
        self.patch(name, json!({"metadata": {"annotations": {annotation: value}}}))
            .await
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<(), Error> {
        let done = self.secrets().patch(name, &params(), &Patch::Merge(patch)).await;
        done.map(drop).map_err(self.failed("patch", "Secret", name))
    }

    /// Sets a key of a ConfigMap.
    pub async fn set_map(&self, name: &str, key: &str, value: &str) -> Result<(), Error> {
        let patch = Patch::Merge(json!({"data": {key: value}}));
        let done = self.maps().patch(name, &params(), &patch).await;
        done.map(drop).map_err(self.failed("patch", "ConfigMap", name))
    }

    /// Creates a Secret of ours, of the type that follows from its keys.
    pub async fn create(&self, name: &str, values: &[(&str, &str)]) -> Result<(), Error> {
        let is_tls = values.iter().any(|(key, _)| *key == "tls.key");
        let data: Map<String, Value> = values
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(STANDARD.encode(value))))
            .collect();
        let secret = json!({
            "metadata": {"name": name, "labels": {MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "cilium"}},
            "type": if is_tls { "kubernetes.io/tls" } else { "Opaque" },
            "data": data,
        });
        let secret = serde_json::from_value(secret).expect("a Secret of strings is a Secret");
        let created = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let done = self.secrets().create(&created, &secret).await;
        done.map(drop).map_err(self.failed("create", "Secret", name))
    }

    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.secrets().delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            done => done.map(drop).map_err(self.failed("delete", "Secret", name)),
        }
    }

    /// Sets an annotation of the Deployment's pods, which replaces them one after the other.
    pub async fn annotate_pods(&self, annotation: &str, value: &str) -> Result<(), Error> {
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {annotation: value}}}}});
        let done = self
            .deployments()
            .patch(facts::APISERVER, &params(), &Patch::Merge(patch))
            .await;
        done.map(drop)
            .map_err(self.failed("patch", "Deployment", facts::APISERVER))
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}
