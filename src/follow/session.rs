//! One connection of the feed: a watch over all keys, whose messages become inputs of the state machine.

use super::error::Error;
use super::feed::{FeedMessage, Input};
use super::member::{Member, WatchStream};
use super::wire::WatchResponse;
use crate::mvcc::Followed;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Silence after which the member is asked for its progress.
const SILENCE: Duration = Duration::from_secs(5);

/// Time between requests for progress until something comes: etcd drops such a request now and then (etcd#20221).
const AGAIN: Duration = Duration::from_secs(1);

/// A connection of the feed.
pub(super) struct Session {
    pub(super) member: Arc<Member>,
    stream: WatchStream,
    cluster_id: u64,
    /// The term of the last message.
    pub(super) term: u64,
    /// The time of the last message, or of the last report of silence.
    heard: Instant,
    /// Whether progress was asked for, and nothing came since.
    asking: bool,
}

/// What a session yields.
pub(super) enum Received {
    Input(Input),
    /// The stream has ended, or its messages are of no use.
    Broken(Error),
}

impl Session {
    /// Watches everything from revision `start` on; 0 begins with the next revision.
    pub(super) async fn open(member: Member, start: i64) -> Result<Self, Error> {
        Ok(Self {
            cluster_id: member.facts.cluster_id,
            term: member.facts.term,
            stream: member.watch(start).await?,
            member: Arc::new(member),
            heard: Instant::now(),
            asking: false,
        })
    }

    /// Asks for progress, and again until something comes.
    pub(super) fn ask_progress(&mut self) {
        self.asking = true;
        self.stream.ask_progress();
    }

    /// The next input. Cancellation safe.
    pub(super) async fn next(&mut self) -> Received {
        loop {
            let silent = self.heard + SILENCE;
            let until = match self.asking {
                true => silent.min(Instant::now() + AGAIN),
                false => silent,
            };
            match timeout_at(until, self.stream.next()).await {
                Err(_) if Instant::now() < silent => self.stream.ask_progress(),
                Err(_) => {
                    self.heard = Instant::now();
                    return Received::Input(Input::Silence);
                }
                Ok(Err(error)) => return Received::Broken(error),
                Ok(Ok(response)) => {
                    (self.heard, self.asking) = (Instant::now(), false);
                    return match self.input(response) {
                        Ok(input) => Received::Input(input),
                        Err(error) => Received::Broken(error),
                    };
                }
            }
        }
    }

    fn input(&mut self, response: WatchResponse) -> Result<Input, Error> {
        let header = response.header.unwrap_or_default();
        if header.cluster_id != self.cluster_id {
            return Err(Error::OtherCluster {
                endpoint: self.member.endpoint.clone(),
                found: header.cluster_id,
                expected: self.cluster_id,
            });
        }
        self.term = header.raft_term;
        let revision = header.revision;
        if response.canceled {
            return Ok(Input::Cancelled {
                compact_revision: response.compact_revision,
                reason: response.cancel_reason,
            });
        }
        if response.created {
            return Ok(Input::Created { revision });
        }
        if response.events.is_empty() && !response.fragment {
            return Ok(Input::Progress { revision });
        }
        let events = response.events.iter().map(|event| {
            let (kind, kv) = event.checked()?;
            Some(Followed { kind, kv })
        });
        let events: Option<Vec<_>> = events.collect();
        Ok(Input::Message(FeedMessage {
            header_revision: revision,
            fragment: response.fragment,
            events: events.ok_or_else(|| self.member.invalid("an event that no etcd sends"))?,
        }))
    }
}
