//! The figures of `etcdutl snapshot status` (etcd: etcdutl/snapshot/v3_snapshot.go).

use super::content::{Error, KeyValue, Result, Revision};
use super::read::Reader;
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;

/// A summary of a snapshot; its JSON is the output of etcdutl.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// CRC-32C of all buckets' names, keys and values.
    pub hash: u32,
    /// Revision of the last key entry; 0 if there is none.
    pub revision: i64,
    /// Number of live keys.
    pub total_key: usize,
    /// Bytes of the file without the hash.
    pub total_size: u64,
    /// Storage version; empty before etcd 3.6.
    pub version: String,
}

impl Status {
    /// Reads all of `reader`. Unlike etcdutl, does not check the list of free pages.
    pub fn read(reader: &Reader) -> Result<Self> {
        let (mut hash, mut revision, mut version) = (0, 0, String::new());
        let mut keys = HashSet::new();
        reader.each_bucket(|bucket, entries| {
            hash = crc32c::crc32c_append(hash, bucket);
            for entry in entries {
                let (key, value) = entry?;
                hash = crc32c::crc32c_append(hash, &key);
                hash = crc32c::crc32c_append(hash, &value);
                if (bucket, &key[..]) == (b"meta", b"storageVersion") {
                    version = semantic(&value).unwrap_or_default();
                }
                if bucket != b"key" {
                    continue;
                }
                let fault = |what| Error::Entry {
                    bucket: "key".to_owned(),
                    key: key.escape_ascii().to_string(),
                    what,
                };
                let at = Revision::parse(&key).map_err(fault)?;
                let kv = KeyValue::decode(Bytes::from(value)).map_err(|e| fault(e.to_string()))?;
                revision = at.main;
                if at.tombstone {
                    keys.remove(&kv.key[..]);
                } else {
                    // A copy, because a shared key would keep the value in memory.
                    keys.insert(kv.key.to_vec());
                }
            }
            Ok::<_, Error>(())
        })?;
        Ok(Self {
            hash,
            revision,
            total_key: keys.len(),
            total_size: reader.size(),
            version,
        })
    }
}

/// `version` if it has the form `major.minor.patch`, the only form that etcd writes.
fn semantic(version: &[u8]) -> Option<String> {
    let version = str::from_utf8(version).ok()?;
    let numbers = version.split('.').map(|n| n.parse().ok());
    let numbers: Vec<u64> = numbers.collect::<Option<_>>()?;
    (numbers.len() == 3).then(|| version.to_owned())
}
