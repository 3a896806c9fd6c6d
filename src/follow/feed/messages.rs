//! The messages of a watch: fragments are joined, and a message is split into revisions.

use super::why::Why;
use crate::mvcc::Followed;

/// One message of the watch with events, or a fragment of one.
#[derive(Clone, Debug)]
pub struct FeedMessage {
    /// The revision of the header, which says nothing about what was delivered.
    pub header_revision: i64,
    /// Whether further parts of the same message follow.
    pub fragment: bool,
    pub events: Vec<Followed>,
}

/// The present watch.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) is_created: bool,
    /// The events of the last revision so far, while fragments of the message are missing.
    begun: Vec<Followed>,
    pub(super) in_fragments: bool,
    pub(super) silences: u32,
}

/// All events of one revision.
#[derive(Debug)]
pub(super) struct Revision {
    pub(super) number: i64,
    pub(super) events: Vec<Followed>,
}

fn revision_of(event: &Followed) -> i64 {
    event.kv.fields().mod_revision
}

// === impl Watch ===

impl Watch {
    /// Takes a message or a part of one; returns the revisions that are whole.
    pub(super) fn joined(&mut self, message: FeedMessage) -> Result<Vec<Revision>, Why> {
        let FeedMessage {
            header_revision,
            fragment,
            events,
        } = message;
        let mut whole = vec![];
        let mut begun = std::mem::take(&mut self.begun);
        for event in events {
            let revision = revision_of(&event);
            match begun.first().map(revision_of) {
                Some(last) if revision < last => return Err(Why::Disorder),
                Some(last) if revision > last => whole.push(Revision {
                    number: last,
                    events: std::mem::take(&mut begun),
                }),
                _ => {}
            }
            if revision > header_revision {
                return Err(Why::Disorder);
            }
            begun.push(event);
        }
        self.in_fragments = fragment;
        match begun.first().map(revision_of).filter(|_| !fragment) {
            Some(number) => whole.push(Revision { number, events: begun }),
            None => self.begun = begun,
        }
        Ok(whole)
    }
}
