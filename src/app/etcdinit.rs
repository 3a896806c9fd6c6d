//! Prepares the users of a cluster: in the data directory of a store that is started later, which then has no keys, or in an
//! etcd that runs.

use super::users;
use crate::auth::{self, AuthStore};
use crate::durable::{self, EngineKind, Import, StoreIdentity};
use crate::kvstore;
use crate::kvstore::config::ConfigSource;
use crate::kvstore::users::EtcdUsers;
use crate::model::cluster::ClusterName;
use crate::mvcc::Store;
use crate::util::backoff::Backoff;
use anyhow::{Context, anyhow};
use std::path::Path;
use std::time::Duration;

/// Replaces the contents of the existing `directory` by a store with the users of `cluster` and with authentication
/// enabled. Returns the store's identity, random at each call. Blocks on IO.
pub fn prepare(directory: &Path, cluster: Option<&ClusterName>) -> anyhow::Result<StoreIdentity> {
    let auth = AuthStore::new(auth::Config::default())?;
    users::init(&auth, cluster).context("cannot set up the users")?;
    let import = Import {
        store: &Store::new(),
        auth: &auth.state(),
        alarms: vec![],
    };
    durable::replace(directory, EngineKind::Log, import).map_err(|error| match directory.exists() {
        true => error.into(),
        false => anyhow!("{error}; make the directory first"),
    })
}

/// Makes what is missing of the users of `cluster` in the etcd that the file of a client names, and turns authentication on.
/// Waits for the etcd for at most `limit`.
pub async fn prepare_running(file: &Path, cluster: Option<&ClusterName>, limit: Duration) -> anyhow::Result<()> {
    let etcd = EtcdUsers::new(ConfigSource::File(file.to_owned()));
    let (mut backoff, mut last) = (Backoff::connect(), None);
    let prepared = async {
        loop {
            match users::init_etcd(&etcd, cluster).await {
                Err(error @ kvstore::Error::Unavailable(_)) => {
                    tracing::warn!(%error, file = %file.display(), "the users of the etcd cannot be prepared yet; trying again");
                    last = Some(error);
                }
                done => return done,
            }
            backoff.wait().await;
        }
    };
    match tokio::time::timeout(limit, prepared).await {
        Ok(done) => done.context("cannot set up the users of the etcd"),
        Err(_) => Err(anyhow!(
            "the users of the etcd were not prepared in time: {}",
            last.map_or_else(|| "no answer".to_owned(), |error| error.to_string())
        )),
    }
}
