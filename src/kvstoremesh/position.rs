//! The revision that the mirror of one prefix has reached, so that a new connection can resume its watch.

use super::witness::Witness;
use crate::kvstore::client::{Changes, Event};

/// The state of the remote's prefix that the mirror holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The etcd cluster id of the store that was read.
    pub(super) store_id: u64,
    /// The prefix that was read.
    pub(super) prefix: String,
    /// The mirror holds every change up to this revision.
    pub(super) revision: i64,
    /// A key-value that the store has at that revision; `None` if no key of the prefix is known to exist then.
    pub(super) witness: Option<Witness>,
}

/// The point at which a watch can resume, if the store still has the witness at this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    pub(super) revision: i64,
    pub(super) witness: Witness,
}

// === impl Position ===

impl Position {
    /// The point at which to resume on this store and prefix. A position without a witness cannot be verified, so its
    /// prefix is listed; the list is short, because the prefix has few keys or none.
    pub(super) fn resume_point(&self, store_id: u64, prefix: &str) -> Option<ResumePoint> {
        let is_same = self.store_id == store_id && self.prefix == prefix;
        Some(ResumePoint {
            revision: self.revision,
            witness: self.witness.clone().filter(|_| is_same)?,
        })
    }

    /// Advances past the changes of one watch message, which the mirror holds now.
    pub(super) fn advance(&mut self, changes: &Changes) {
        for event in &changes.events {
            match event {
                Event::Put(kv) => self.witness = Some(Witness::of(kv)),
                Event::Delete { key, .. } => {
                    self.witness.take_if(|witness| witness.key() == key);
                }
            }
        }
        // The revision of a message may be higher than the revisions of its events.
        let seen = changes.events.iter().map(Event::mod_revision).max();
        self.revision = self.revision.max(seen.unwrap_or(changes.revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvstore::client::KeyValue;

    fn put(key: &str, mod_revision: i64) -> KeyValue {
        KeyValue {
            key: key.as_bytes().to_vec(),
            mod_revision,
            ..KeyValue::default()
        }
    }

    fn changes(events: Vec<Event>, revision: i64) -> Changes {
        Changes { events, revision }
    }

    #[test]
    fn a_position_counts_only_for_the_store_and_the_prefix_it_was_read_from() {
        let position = Position {
            store_id: 7,
            prefix: "p/".to_owned(),
            revision: 5,
            witness: Some(Witness::of(&put("p/a", 3))),
        };
        let resume = |id, prefix| position.resume_point(id, prefix).map(|at| at.revision);
        assert_eq!(resume(7, "p/"), Some(5));
        assert_eq!((resume(8, "p/"), resume(7, "q/")), (None, None));
    }

    #[test]
    fn a_position_advances_to_its_events_and_without_events_to_the_revision_of_the_message() {
        let mut position = Position {
            store_id: 7,
            prefix: "p/".to_owned(),
            revision: 5,
            witness: None,
        };
        position.advance(&changes(vec![], 9));
        position.advance(&changes(vec![], 8));
        assert_eq!(position.revision, 9);
        position.advance(&changes(
            vec![Event::Put(put("p/a", 11)), Event::Put(put("p/b", 12))],
            20,
        ));
        assert_eq!(
            (position.revision, position.witness.clone()),
            (12, Some(Witness::of(&put("p/b", 12))))
        );
    }

    #[test]
    fn a_deleted_key_is_no_witness() {
        let mut position = Position {
            store_id: 7,
            prefix: "p/".to_owned(),
            revision: 5,
            witness: Some(Witness::of(&put("p/a", 3))),
        };
        let delete = |key: &str, mod_revision| Event::Delete {
            key: key.as_bytes().to_vec(),
            mod_revision,
        };
        position.advance(&changes(vec![delete("p/other", 6)], 6));
        assert!(position.witness.is_some());
        position.advance(&changes(vec![delete("p/a", 7)], 7));
        assert_eq!(position.resume_point(7, "p/"), None);
    }
}
