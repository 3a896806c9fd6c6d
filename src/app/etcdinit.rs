//! Prepares a data directory before its store is started: empty, but for users and authentication.

use super::users;
use crate::auth::{self, AuthStore};
use crate::durable::{self, EngineKind, Identity, Import};
use crate::model::cluster::ClusterName;
use crate::mvcc::Store;
use anyhow::Context;
use std::path::Path;

/// Empties `directory`, which must be there, and makes a store in it that has the users of `cluster` and asks
/// everybody who they are. Returns who the store is: another one each time. Blocks.
pub fn prepare(directory: &Path, cluster: Option<&ClusterName>) -> anyhow::Result<Identity> {
    let auth = AuthStore::new(auth::Config::default())?;
    users::init(&auth, cluster).context("cannot set up the users")?;
    let import = Import {
        store: &Store::new(),
        auth: &auth.state(),
        alarms: vec![],
    };
    Ok(durable::replace(directory, EngineKind::Log, import)?)
}
