//! Prepares the data directory of a store that is started later: no keys, users of the cluster, authentication on.

use super::users;
use crate::auth::{self, AuthStore};
use crate::durable::{self, EngineKind, Import, StoreIdentity};
use crate::model::cluster::ClusterName;
use crate::mvcc::Store;
use anyhow::{Context, anyhow};
use std::path::Path;

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
