//! What a store answers: key-values and events, and the id by which the answers of one store are known.

use super::client_error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The cluster id of a store, as its first answer says. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pinned(Arc<AtomicU64>);

/// A key with its value and revisions, as a store sends it: `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub version: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    /// The id of the lease; 0 without a lease.
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(KeyValue),
    Delete {
        key: Vec<u8>,
        /// The revision of the deletion.
        mod_revision: i64,
    },
}

/// Changes of one message of a watch, in order.
pub struct Changes {
    pub events: Vec<Event>,
    /// Without events, every change up to this revision has been seen. With events, this revision may be higher than
    /// the revisions of the events.
    pub revision: i64,
}

// === impl Pinned ===

impl Pinned {
    /// The id; 0 before the first answer.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether both are of the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Fails if an answer with this cluster id is from another store than the answers before.
    pub(super) fn check(&self, got: u64) -> Result<(), Error> {
        match self.0.compare_exchange(0, got, Ordering::Relaxed, Ordering::Relaxed) {
            Err(expected) if expected != got => Err(Error::ClusterChanged { expected, got }),
            _ => Ok(()),
        }
    }
}

// === impl KeyValue ===

impl From<etcd_client::KeyValue> for KeyValue {
    fn from(kv: etcd_client::KeyValue) -> Self {
        let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
        let (version, lease) = (kv.version(), kv.lease());
        let (key, value) = kv.into_key_value();
        Self {
            key,
            value,
            create_revision,
            mod_revision,
            version,
            lease,
        }
    }
}

// === impl Event ===

impl Event {
    /// The key-value that was put, unless this is a deletion.
    pub fn put(&self) -> Option<&KeyValue> {
        match self {
            Self::Put(kv) => Some(kv),
            Self::Delete { .. } => None,
        }
    }

    pub fn mod_revision(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}
