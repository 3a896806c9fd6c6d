//! One connection of the feed: a watch over all keys, whose messages become inputs of the state machine.

use super::error::Error;
use super::feed::{FeedMessage, Input};
use super::link::{Link, Seen, read_from};
use super::member::{Member, Purpose, WatchStream};
use super::wire::WatchResponse;
use crate::mvcc::Followed;
use std::time::Duration;
use tokio::time::timeout;

/// Silence after which the member is asked for its progress.
const SILENCE: Duration = Duration::from_secs(5);

/// A connection of the feed.
pub(super) struct Session {
    pub(super) member: Member,
    stream: WatchStream,
    cluster_id: u64,
}

/// What a session yields.
pub(super) enum Received {
    Input(Input),
    /// The stream has ended, or its answers are of no use.
    Broken(Error),
}

impl Session {
    /// Connects to a member that can be followed.
    pub(super) async fn connect(link: &Link) -> Result<Member, Error> {
        link.connect_to_any(Purpose::Feed).await
    }

    /// Watches everything from revision `start` on; 0 begins with the next revision.
    pub(super) async fn open(member: Member, start: i64) -> Result<Self, Error> {
        Ok(Self {
            cluster_id: member.facts.cluster_id,
            stream: member.watch(start).await?,
            member,
        })
    }

    /// Watches everything from another revision on.
    pub(super) async fn reopen(self, start: i64) -> Result<Self, Error> {
        Self::open(self.member, start).await
    }

    /// What the member has, linearizably.
    pub(super) async fn read(&self) -> Result<Seen, Error> {
        read_from(&self.member).await
    }

    pub(super) fn ask_progress(&self) {
        self.stream.ask_progress();
    }

    /// The next input. Cancellation safe.
    pub(super) async fn next(&mut self, link: &Link) -> Received {
        match timeout(SILENCE, self.stream.next()).await {
            Err(_) => Received::Input(Input::Silence),
            Ok(Err(error)) => Received::Broken(error),
            Ok(Ok(response)) => match self.input(response, link) {
                Ok(input) => Received::Input(input),
                Err(error) => Received::Broken(error),
            },
        }
    }

    fn input(&self, response: WatchResponse, link: &Link) -> Result<Input, Error> {
        let header = response.header.unwrap_or_default();
        if header.cluster_id != self.cluster_id {
            return Err(Error::OtherCluster {
                endpoint: self.member.endpoint.clone(),
                found: header.cluster_id,
                expected: self.cluster_id,
            });
        }
        link.note_term(header.raft_term);
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
