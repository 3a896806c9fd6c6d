//! Stores as watchers see them, event by event.

use etcd_client::{Client, EventType, WatchOptions};
use isthmus::model::cluster::ClusterName;
use isthmus::model::keys::Scope;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// A kind of keys, and the part of a key after the prefix.
pub type Key = (Scope, String);
pub type Keys = BTreeMap<Key, Vec<u8>>;

/// Which prefixes of a store are watched.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// A cluster's own keys.
    State,
    /// The keys that are mirrored from a cluster.
    Cache,
}

/// Values of a key that messages have.
const LAST: usize = 6;

/// What the watcher of one store has seen.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub keys: Keys,
    /// Every deletion.
    pub deleted: Vec<Key>,
    /// The last values of each key, `None` for a deletion, the newest at the end.
    pub last: BTreeMap<Key, Vec<Option<Vec<u8>>>>,
}

impl View {
    /// The last values of a key, for a message.
    pub fn history(&self, key: &Key) -> Vec<String> {
        let values = self.last.get(key).into_iter().flatten();
        let text = |value: &Option<Vec<u8>>| {
            value
                .as_deref()
                .map_or("deleted".into(), String::from_utf8_lossy)
                .into_owned()
        };
        values.map(text).collect()
    }
}

/// What the watchers of all stores have seen.
#[derive(Clone, Debug, Default)]
pub struct Views {
    pub source: View,
    /// The store of the mirror without a scope.
    pub whole: View,
    /// The store of the mirror with import rules.
    pub scoped: View,
}

fn parse(side: Side, cluster: &ClusterName, key: &str) -> Option<Key> {
    let prefix = |scope: Scope| match side {
        Side::State => scope.state_prefix(cluster),
        Side::Cache => scope.cache_prefix(cluster),
    };
    let mut scopes = Scope::ALL.into_iter();
    scopes.find_map(|scope| Some((scope, key.strip_prefix(&prefix(scope))?.to_owned())))
}

/// Follows a store from its first revision on, until the store is gone.
pub async fn follow(
    mut client: Client,
    (side, cluster): (Side, ClusterName),
    views: watch::Sender<Views>,
    view: fn(&mut Views) -> &mut View,
) {
    let options = WatchOptions::new().with_prefix().with_start_revision(1);
    let mut watch = client.watch("cilium/", Some(options)).await.unwrap();
    tokio::spawn(async move {
        while let Ok(Some(message)) = watch.message().await {
            assert!(!message.canceled(), "{message:?}");
            views.send_modify(|views| {
                for event in message.events() {
                    let kv = event.kv().unwrap();
                    let Some(key) = parse(side, &cluster, kv.key_str().unwrap()) else {
                        continue;
                    };
                    let view = view(views);
                    let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
                    let last = view.last.entry(key.clone()).or_default();
                    last.drain(..last.len().saturating_sub(LAST - 1));
                    last.push(value);
                    match event.event_type() {
                        EventType::Put => {
                            view.keys.insert(key, kv.value().to_vec());
                        }
                        EventType::Delete => {
                            view.keys.remove(&key);
                            view.deleted.push(key);
                        }
                    }
                }
            });
        }
    });
}
