//! Who looks at the page, and what of the store that somebody may read.

use super::source::{Entry, Keys, Page, Unreadable};
use crate::model::keys;
use std::sync::Arc;

/// Who looks at the page. Attached to each request that is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    /// An operator, who may read every key.
    Operator,
    /// A user `local-<cluster>`, who may read what the role `local` may read from the store.
    Agent,
}

/// The keys that agents may read.
pub(super) struct AgentKeys(pub(super) Arc<dyn Keys>);

// === impl Reader ===

impl Reader {
    /// How much the reader's connection is worth if there are too many: agents are many, and strangers are worth less.
    pub(super) fn standing(self) -> u8 {
        match self {
            Self::Agent => 1,
            Self::Operator => 2,
        }
    }

    /// Why an answer from the store's keys may lack something; `None` if the reader may read everything.
    pub(super) fn restriction(self) -> Option<&'static str> {
        match self {
            Self::Operator => None,
            Self::Agent => {
                Some("keys that the role local may not read are left out, such as those of this cluster itself")
            }
        }
    }
}

/// The prefixes below `prefix` that agents may read, in order, without those of which `after` says that they have been read.
fn parts<'a>(prefix: &'a str, after: Option<&[u8]>) -> Vec<&'a str> {
    let mut parts = vec![];
    for readable in keys::LOCAL_READS {
        let part = match prefix.starts_with(readable) {
            true => prefix,
            false if readable.starts_with(prefix) => readable,
            false => continue,
        };
        if after.is_none_or(|after| after.starts_with(part.as_bytes()) || after < part.as_bytes()) {
            parts.push(part);
        }
    }
    parts
}

// === impl AgentKeys ===

#[async_trait::async_trait]
impl Keys for AgentKeys {
    async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: usize) -> Result<Page, Unreadable> {
        let mut parts = parts(prefix, after).into_iter().peekable();
        while let Some(part) = parts.next() {
            let after = after.filter(|after| after.starts_with(part.as_bytes()));
            let page = self.0.page(part, after, limit).await?;
            if !page.entries.is_empty() {
                let more = page.more || parts.peek().is_some();
                return Ok(Page { more, ..page });
            }
        }
        Ok(Page::default())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Unreadable> {
        match keys::LOCAL_READS.iter().any(|readable| key.starts_with(readable)) {
            true => self.0.get(key).await,
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lookup::tests::Table;
    use super::*;

    const KEYS: [&str; 8] = [
        "a",
        "cilium/.heartbeat",
        "cilium/cache/ip/v1/hk/10.2.0.1",
        "cilium/cache/nodes/v1/hk/hkg-1",
        "cilium/cluster-config/hk",
        "cilium/state/ip/v1/default/10.1.0.1",
        "cilium/synced/hk/cilium/cache/ip/v1",
        "registry/secrets/default/s",
    ];

    /// The keys below `prefix`, read in pages of `limit`.
    async fn below(prefix: &str, limit: usize) -> Vec<String> {
        let keys = AgentKeys(Arc::new(Table::of(KEYS.map(|key| (key, &b"v"[..])))));
        let (mut all, mut after) = (vec![], None::<Vec<u8>>);
        loop {
            let page = keys.page(prefix, after.as_deref(), limit).await.unwrap();
            all.extend(
                page.entries
                    .iter()
                    .map(|entry| String::from_utf8(entry.key.to_vec()).unwrap()),
            );
            match page.entries.last() {
                Some(last) if page.more => after = Some(last.key.to_vec()),
                _ => return all,
            }
        }
    }

    #[tokio::test]
    async fn an_agent_reads_what_the_role_local_reads() {
        let readable = [KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[6]];
        for limit in 1..6 {
            for prefix in ["", "c", "cilium/"] {
                assert_eq!(below(prefix, limit).await, readable, "{prefix:?} by {limit}");
            }
            assert_eq!(below("cilium/c", limit).await, readable[1..4]);
            assert_eq!(below("cilium/cache/nodes/", limit).await, [KEYS[3]]);
            for prefix in ["a", "cilium/state/", "cilium/cachex", "registry/", "\u{7f}"] {
                assert!(below(prefix, limit).await.is_empty(), "{prefix:?}");
            }
        }
        let keys = AgentKeys(Arc::new(Table::of(KEYS.map(|key| (key, &b"v"[..])))));
        for key in KEYS {
            assert_eq!(keys.get(key).await.unwrap().is_some(), readable.contains(&key), "{key}");
        }
    }
}
