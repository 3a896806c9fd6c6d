//! Where the page gets its values from.

use super::view::{Client, Overview, Remote, RemoteDetail};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;

/// Snapshots of the process. Each call looks at the present state and returns soon.
pub trait Source: Send + Sync {
    /// The name of this cluster.
    fn cluster(&self) -> String;
    /// This cluster, its process and its store.
    fn overview(&self) -> Overview;
    /// All remote clusters, by name.
    fn remotes(&self) -> Vec<Remote>;
    /// Whether there is a remote cluster of this name.
    fn has_remote(&self, name: &str) -> bool;
    /// One remote cluster; `None` if there is none of this name.
    fn remote(&self, name: &str) -> Option<RemoteDetail>;
    /// The clients of the store, by user; `None` if the store is another process, which alone knows its clients.
    fn clients(&self) -> Option<Vec<Client>>;
}

/// The store that the process writes to, for reading.
#[async_trait::async_trait]
pub trait Keys: Send + Sync {
    /// Up to `limit` keys that begin with `prefix`, in order, from the first one after `after` on. Large values make a page
    /// shorter.
    async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: usize) -> Result<Page, Unreadable>;
    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Unreadable>;
}

/// Keys that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Whether further keys follow.
    pub more: bool,
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

/// Why not all keys were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// `f` wanted no more.
    Enough,
    /// The time was up.
    Late,
}

/// Calls `f` for each key below `prefix`, until `f` returns false, the time is up or the keys end.
pub(super) async fn each(
    keys: &dyn Keys,
    prefix: &str,
    until: Instant,
    mut f: impl FnMut(&Entry) -> bool,
) -> Result<Option<Stopped>, Unreadable> {
    /// Few enough that a page of a store is read quickly.
    const PAGE: usize = 1000;
    /// A scan of a large store must not keep a thread from other tasks, however long it takes to look at a value.
    const SLICE: Duration = Duration::from_millis(2);
    let mut after: Option<Bytes> = None;
    let mut begun = Instant::now();
    loop {
        let page = keys.page(prefix, after.as_deref(), PAGE).await?;
        for entry in &page.entries {
            if !f(entry) {
                return Ok(Some(Stopped::Enough));
            }
            if begun.elapsed() > SLICE {
                tokio::task::yield_now().await;
                begun = Instant::now();
                if begun > until {
                    return Ok(Some(Stopped::Late));
                }
            }
        }
        match page.entries.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(None),
        }
        tokio::task::yield_now().await;
    }
}
