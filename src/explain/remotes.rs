//! Reads the keys of remote clusters page by page, with their client files. Nothing is written there.

use super::Sources;
use super::import::{Examination, Head, Surroundings};
use super::judged::Visitor;
use crate::clustermesh::publisher::ServiceMode;
use crate::kvstore::client::{self, EtcdClient, Options};
use crate::kvstore::config::{self, ClientConfig, is_meant_as_configuration};
use crate::kvstoremesh::trial::{self, ORDER};
use crate::model::cluster::{ClusterConfig, ClusterName};
use crate::model::keys;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keys of a page. Far stores take a round trip for each page, and nobody waits for the keys of the first one.
const PAGE: i64 = 2000;

/// The directory of client files cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the directory of client files {} (--clustermesh-config): {source}", path.display())]
pub struct DirectoryError {
    path: PathBuf,
    source: std::io::Error,
}

/// Why the keys of a remote cluster could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    File(#[from] config::Error),
    #[error("{0}; `kvstoremesh-dbg troubleshoot {1}` shows where the connection ends")]
    Client(client::Error, ClusterName),
    #[error("no answer in {} s (--timeout); `kvstoremesh-dbg troubleshoot {name}` shows where the connection ends", limit.as_secs())]
    Late { limit: Duration, name: ClusterName },
    #[error("the store has no key {key}: is {name} the name of the cluster, and does its publisher run?")]
    NoConfiguration { key: String, name: ClusterName },
    #[error("the cluster configuration {key} cannot be read: {source}")]
    BadConfiguration { key: String, source: serde_json::Error },
}

/// The client files of the remote clusters; `own` is not one of them.
pub(super) fn clusters(directory: &Path, own: &ClusterName) -> Result<BTreeMap<ClusterName, PathBuf>, DirectoryError> {
    let failed = |source| DirectoryError {
        path: directory.to_owned(),
        source,
    };
    let mut clusters = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| ClusterName::new(name).ok());
        // Directories and keys of certificates lie beside the client files.
        let (Some(name), Ok(text)) = (name, std::fs::read_to_string(&path)) else {
            continue;
        };
        if name != *own && (text.contains("endpoints:") || is_meant_as_configuration(&text)) {
            clusters.insert(name, path);
        }
    }
    Ok(clusters)
}

/// Shows every key of a remote cluster to `visitor`.
pub(super) async fn examine<V: Visitor>(
    cluster: &ClusterName,
    path: &Path,
    sources: &Sources,
    surroundings: &Surroundings<'_>,
    visitor: V,
) -> Result<(Head, V), Error> {
    let failed = |error| Error::Client(error, cluster.clone());
    let connected = tokio::time::timeout(sources.timeout, Box::pin(connect(cluster, path))).await;
    let (client, config) = connected.map_err(|_| Error::Late {
        limit: sources.timeout,
        name: cluster.clone(),
    })??;
    let mut examination = Examination::new(cluster, config.region.as_deref(), surroundings, visitor);
    let legacy_services = sources.options.service_mode != ServiceMode::OnlyEndpointSlice;
    let prefixes: BTreeMap<_, _> = trial::exported(&config, cluster, legacy_services).into_iter().collect();
    for kind in ORDER {
        if let Some(prefix) = prefixes.get(&kind) {
            let mut pages = client.pages(prefix);
            while let Some(page) = pages.next().await.map_err(failed)? {
                for kv in page {
                    if let Some(name) = kv.key.strip_prefix(prefix.as_bytes()) {
                        examination.put(kind, name, kv.value.into());
                    }
                }
            }
        }
        examination.end(kind);
    }
    Ok(examination.finish())
}

async fn connect(cluster: &ClusterName, path: &Path) -> Result<(EtcdClient, ClusterConfig), Error> {
    let failed = |error| Error::Client(error, cluster.clone());
    let options = Options {
        page: PAGE,
        ..Options::default()
    };
    let connected = EtcdClient::connect_with(&ClientConfig::read(path)?, &options).await;
    let client = connected.map_err(failed)?;
    let key = keys::cluster_config(cluster);
    let Some(kv) = client.get(&key).await.map_err(failed)? else {
        let name = cluster.clone();
        return Err(Error::NoConfiguration { key, name });
    };
    let config = serde_json::from_slice(&kv.value);
    let config = config.map_err(|source| Error::BadConfiguration { key, source })?;
    Ok((client, config))
}
