//! Where the page gets its values from.

use super::view::{Client, Overview, Remote, RemoteDetail};
use bytes::Bytes;

/// Snapshots of the process. Each call looks at the present state and returns soon.
pub trait Source: Send + Sync {
    /// The name of this cluster.
    fn cluster(&self) -> String;
    /// This cluster, its process and its store.
    fn overview(&self) -> Overview;
    /// All remote clusters, by name.
    fn remotes(&self) -> Vec<Remote>;
    /// One remote cluster; `None` if there is none of this name.
    fn remote(&self, name: &str) -> Option<RemoteDetail>;
    /// The clients of the store, by user; `None` if the store is another process, which alone knows its clients.
    fn clients(&self) -> Option<Vec<Client>>;
}

/// The store that the process writes to, for reading.
#[async_trait::async_trait]
pub trait Keys: Send + Sync {
    /// Up to `limit` keys that begin with `prefix`, in order, from the first one after `after` on.
    async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>, Unreadable>;
    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Unreadable>;
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
}

/// Why the store cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the store: {0}")]
pub struct Unreadable(pub String);

/// Calls `f` for each key below `prefix`, until `f` returns false or the keys end.
pub(super) async fn each(keys: &dyn Keys, prefix: &str, mut f: impl FnMut(&Entry) -> bool) -> Result<(), Unreadable> {
    /// Few enough that a page of a store is read quickly.
    const PAGE: usize = 1000;
    let mut after: Option<Bytes> = None;
    loop {
        let page = keys.page(prefix, after.as_deref(), PAGE).await?;
        let is_last = page.len() < PAGE;
        for entry in &page {
            if !f(entry) {
                return Ok(());
            }
        }
        match page.last() {
            Some(last) if !is_last => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
        // A scan of a large store must not keep a thread from other tasks.
        tokio::task::yield_now().await;
    }
}
