//! The store of a process, for the page to read.

use crate::kvstore::client::KeyValue;
use crate::kvstore::etcd::EtcdBackend;
use crate::mvcc::{KeyRange, Kv, RangeOptions, Store, prefix_end};
use crate::ui::source::Unreadable;
use crate::ui::{Entry, Keys, Page};
use bytes::Bytes;
use std::sync::Arc;

/// The store of this process.
pub(super) struct OwnKeys(pub(super) Arc<Store>);

/// An etcd.
pub(super) struct EtcdKeys(pub(super) Arc<EtcdBackend>);

#[async_trait::async_trait]
impl Keys for OwnKeys {
    async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: usize) -> Result<Page, Unreadable> {
        let start = after.map_or_else(|| prefix.as_bytes().to_vec(), |after| [after, &[0]].concat());
        let end = prefix_end(prefix.as_bytes()).unwrap_or_else(|| Bytes::from_static(&[0]));
        let options = RangeOptions {
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            ..RangeOptions::new(KeyRange::new(start, end))
        };
        let found = self.0.range(&options).map_err(|error| Unreadable(error.to_string()))?;
        Ok(Page {
            more: found.more,
            entries: found.kvs.into_iter().map(of_kv).collect(),
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Unreadable> {
        Ok(self.0.get(key.as_bytes()).map(of_kv))
    }
}

#[async_trait::async_trait]
impl Keys for EtcdKeys {
    async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: usize) -> Result<Page, Unreadable> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let page = self.0.page(prefix, after, limit).await;
        let (page, more) = page.map_err(|error| Unreadable(error.to_string()))?;
        Ok(Page {
            entries: page.into_iter().map(of_key_value).collect(),
            more,
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, Unreadable> {
        // The key itself is the first one that begins with it.
        let first = self.page(key, None, 1).await?.entries.pop();
        Ok(first.filter(|entry| entry.key == key.as_bytes()))
    }
}

/// Shares the bytes of the store: a page of large values must not take their size again.
fn of_kv(kv: Kv) -> Entry {
    let bytes = Bytes::from_owner(kv.clone());
    let fields = kv.fields();
    Entry {
        key: bytes.slice_ref(fields.key),
        value: bytes.slice_ref(fields.value),
        create_revision: fields.create_revision,
        mod_revision: fields.mod_revision,
        version: fields.version,
    }
}

fn of_key_value(kv: KeyValue) -> Entry {
    Entry {
        key: kv.key.into(),
        value: kv.value.into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_of_the_own_store_follow_each_other() {
        let store = Store::new();
        for key in ["a", "b/1", "b/2", "b/3", "c"] {
            let put = crate::mvcc::Put {
                key: key.into(),
                value: "v".into(),
                ..Default::default()
            };
            store.put(put).unwrap();
        }
        let keys = OwnKeys(store);
        let page = async |after: Option<&[u8]>| {
            let page = keys.page("b/", after, 2).await.unwrap();
            let names: Vec<_> = page.entries.into_iter().map(|entry| entry.key).collect();
            (names, page.more)
        };
        assert_eq!(page(None).await, (vec!["b/1".into(), "b/2".into()], true));
        assert_eq!(page(Some(b"b/2")).await, (vec!["b/3".into()], false));
        assert_eq!(keys.page("", None, 9).await.unwrap().entries.len(), 5);
        let entry = keys.get("b/1").await.unwrap().unwrap();
        assert_eq!(
            (entry.create_revision, entry.version, keys.get("b/").await.unwrap()),
            (3, 1, None)
        );
    }
}
