//! The live keys of a snapshot, one after the other, so that a snapshot of millions of keys need not be held whole.

use super::content::{Error, KeyValue, Result, Revision};
use super::read::Reader;
use bytes::Bytes;
use prost::Message;
use std::collections::HashMap;

/// The keys of a snapshot that are not deleted, with the revision of their last change.
pub struct Live<'a> {
    reader: &'a Reader,
    keys: HashMap<Box<[u8]>, (i64, i64)>,
}

impl<'a> Live<'a> {
    /// Reads all keys that `wants` accepts, without their values.
    pub fn read(reader: &'a Reader, wants: impl Fn(&[u8]) -> bool) -> Result<Self> {
        let mut keys = HashMap::new();
        each(reader, |at, kv| {
            if !wants(&kv.key) {
                return;
            }
            // A copy, because a shared key would keep the value in memory.
            match at.tombstone {
                true => drop(keys.remove(&kv.key[..])),
                false => drop(keys.insert(Box::from(&kv.key[..]), (at.main, at.sub))),
            }
        })?;
        Ok(Self { reader, keys })
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The names of all keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.keys().map(|key| &**key)
    }

    /// Calls `visit` with each key and its value, in the order of their last changes.
    pub fn each(&self, mut visit: impl FnMut(&[u8], Bytes)) -> Result<()> {
        each(self.reader, |at, kv| {
            if self.keys.get(&kv.key[..]) == Some(&(at.main, at.sub)) {
                visit(&kv.key, kv.value);
            }
        })
    }
}

fn each(reader: &Reader, mut visit: impl FnMut(Revision, KeyValue)) -> Result<()> {
    let Some(entries) = reader.bucket(b"key")? else {
        return Ok(());
    };
    for entry in entries {
        let (key, value) = entry?;
        let fault = |what| Error::Entry {
            bucket: "key".to_owned(),
            key: key.escape_ascii().to_string(),
            what,
        };
        let at = Revision::parse(&key).map_err(fault)?;
        let kv = KeyValue::decode(Bytes::from(value)).map_err(|e| fault(e.to_string()))?;
        visit(at, kv);
    }
    Ok(())
}
