//! The definitions of custom resources (CRDs), which may be installed late or never.

use super::types::{ApiName, Kind};
use kube::Client;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two requests for definitions that are missing.
const RETRY: Duration = Duration::from_secs(1);

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

/// Some definitions did not appear in time.
pub(super) struct Missing {
    /// Their names, separated by commas.
    pub(super) names: String,
}

/// The versions of a custom resource that the API serves; `None` if the resource is not defined.
pub(super) async fn served_versions(client: &Client, kind: Kind) -> Result<Option<Vec<String>>, kube::Error> {
    let path = format!(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}",
        definition_name(kind)
    );
    let request = http::Request::get(path).body(vec![]);
    let request = request.expect("the path is made of constants");
    match client.request::<Definition>(request).await {
        Ok(found) => {
            let served = found.spec.versions.into_iter().filter(|v| v.served);
            Ok(Some(served.map(|v| v.name).collect()))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until all `kinds` are defined. A definition that cannot be requested counts as present: the watch of the kind
/// reports the error.
pub(super) async fn wait(client: &Client, kinds: &[Kind], timeout: Duration) -> Result<(), Missing> {
    let begun = Instant::now();
    loop {
        let mut missing = vec![];
        for kind in kinds {
            if let Ok(None) = served_versions(client, *kind).await {
                missing.push(definition_name(*kind));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.join(", ");
        if begun.elapsed() >= timeout {
            return Err(Missing { names });
        }
        tracing::info!(missing = names, "waiting for the definitions of Cilium's resources");
        tokio::time::sleep(RETRY).await;
    }
}

fn definition_name(kind: Kind) -> String {
    let ApiName { group, plural, .. } = kind.api_name();
    format!("{plural}.{group}")
}
