//! The upstream as the server's services see it.

use super::error::{Error, describe, is_of_nobody, is_of_transport, is_stale_token, is_unsent};
use super::index::{self, Index};
use super::link::{Link, Seen};
use super::load::How;
use super::member::{Failed, Member, Purpose, path};
use super::people::Asked;
use crate::mvcc::Store;
use crate::server::upstream::{Credentials, Judge, Upstream, UpstreamIdentity, cut_off, lost, not_sent};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

/// The longest time for a call of this replica, and for finding a connection for a call without a deadline.
const PATIENCE: Duration = Duration::from_secs(7);
/// Connections that a call may find broken before it was sent.
const TRIES: usize = 4;

/// What linearizable reads get while the upstream does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutOff {
    /// An error, after which clients ask another replica.
    Refuse,
    /// The last known state, which may be old.
    Serve,
}

/// A linearizable answer that shows less than this replica has.
#[derive(Debug)]
pub(super) struct Rewound {
    pub(super) endpoint: String,
    pub(super) seen: Seen,
    /// What was here when the answer was asked for.
    pub(super) applied: i64,
}

/// The upstream of a replica.
pub(super) struct Following {
    pub(super) link: Arc<Link>,
    pub(super) index: Arc<Index>,
    pub(super) store: Arc<Store>,
    pub(super) cut_off: CutOff,
    /// Hears of linearizable answers that show less than this replica has.
    pub(super) rewound: mpsc::Sender<Rewound>,
    /// Whether the state here has the order of the upstream, also inside revisions.
    pub(super) exact: AtomicBool,
    /// Set while it is not known whether the upstream has the same past: reads would mix both.
    pub(super) doubtful: AtomicBool,
}

impl Following {
    /// Reads the upstream's revision for all who wait for it.
    pub(super) async fn read_index(&self) {
        let read = || self.read_once().boxed();
        self.index.run(read).await;
    }

    async fn read_once(&self) -> Result<i64, String> {
        // Everything that is here was committed before the upstream is asked.
        let here = self.store.revision();
        let (seen, member) = self.link.read().await.map_err(|error| error.to_string())?;
        if seen.revision < here || seen.term < self.link.term() {
            let endpoint = member.endpoint.clone();
            let why = format!(
                "{endpoint} is at revision {} of term {}, and revision {here} of term {} is here",
                seen.revision,
                seen.term,
                self.link.term()
            );
            // A report that waits says the same.
            let _ = self.rewound.try_send(Rewound {
                endpoint,
                seen,
                applied: here,
            });
            return Err(why);
        }
        Ok(seen.revision)
    }

    /// A call of this replica.
    async fn own_call(&self, path: &str, who: &Credentials, request: Bytes) -> Result<Bytes, Status> {
        let limit = Some(Instant::now() + PATIENCE);
        self.call(path, who, &MetadataMap::new(), request, limit).await
    }

    /// The connection for a stream.
    async fn member_for(&self, path: &str) -> Result<Arc<Member>, Arc<Error>> {
        match path {
            // Its answers are read at once.
            path::LEASE_KEEP_ALIVE => self.link.member().await,
            path::RANGE_STREAM | path::SNAPSHOT => {
                let member = Box::pin(self.link.connect_to_any(Purpose::Stream)).await;
                member.map(Arc::new).map_err(Arc::new)
            }
            _ => self.link.member_that_waits().await,
        }
    }

    /// The metadata of a call on behalf of `who`.
    fn metadata(&self, member: &Member, who: &Credentials, given: &MetadataMap) -> Result<MetadataMap, Status> {
        let mut metadata = given.clone();
        metadata.remove("token");
        metadata.remove("authorization");
        match who {
            Credentials::Replica => {
                if let Some(token) = member.metadata().get("token") {
                    metadata.insert("token", token.clone());
                }
            }
            Credentials::Token(_) | Credentials::User(_) | Credentials::Nobody => {
                // Never without a token, which would be the rights of this replica.
                let invalid = || Status::from(crate::auth::Error::InvalidAuthToken);
                let token = self.link.people.token(who)?.ok_or_else(invalid)?;
                metadata.insert("token", MetadataValue::try_from(&*token).map_err(|_| invalid())?);
            }
        }
        Ok(metadata)
    }

    /// What to do after a call failed: the status for the caller, or `None` to send it again, because it was not executed.
    fn judged(&self, member: &Arc<Member>, who: &Credentials, failed: Failed) -> Option<Status> {
        match failed {
            Failed::Late => Some(lost()),
            Failed::Status(status) if is_unsent(&status) => {
                self.link.leave(member, &describe(&status));
                None
            }
            Failed::Status(status) if is_of_transport(&status) => {
                self.link.leave(member, &describe(&status));
                Some(lost())
            }
            // The password of this replica gets a new token with a new connection.
            Failed::Status(status) if *who == Credentials::Replica && member.has_token() && is_stale_token(&status) => {
                self.link.leave(member, &describe(&status));
                None
            }
            Failed::Status(status) => Some(status),
        }
    }
}

#[tonic::async_trait]
impl Asked for Following {
    async fn answer(&self, path: &str, who: &Credentials, request: Bytes) -> Result<Bytes, Status> {
        let answer = self.own_call(path, who, request.clone()).await;
        match (&answer, self.link.current()) {
            // Authentication was switched on since the connection was made: the password got no token then.
            (Err(status), Some(member))
                if *who == Credentials::Replica
                    && is_of_nobody(status)
                    && self.link.has_password()
                    && !member.has_token() =>
            {
                self.link.leave(&member, &describe(status));
                self.own_call(path, who, request).await
            }
            _ => answer,
        }
    }
}

#[tonic::async_trait]
impl Upstream for Following {
    async fn index(&self) -> Result<i64, Status> {
        if self.doubtful.load(Ordering::Relaxed) {
            return Err(cut_off());
        }
        let outage = self.index.outage();
        if self.cut_off == CutOff::Serve && outage.is_some_and(|lasted| lasted >= index::LIMIT) {
            // The end of the outage must be noticed, and nobody waits for it.
            self.index.ask();
            return Ok(self.store.revision());
        }
        match (self.index.get().await, self.cut_off) {
            (Ok(revision), _) => Ok(revision),
            (Err(_), CutOff::Serve) => Ok(self.store.revision()),
            (Err(error), CutOff::Refuse) => {
                tracing::debug!(%error, "a linearizable read is refused");
                Err(cut_off())
            }
        }
    }

    async fn call(
        &self,
        path: &str,
        who: &Credentials,
        metadata: &MetadataMap,
        request: Bytes,
        deadline: Option<Instant>,
    ) -> Result<Bytes, Status> {
        let begun = Instant::now();
        for _ in 0..TRIES {
            // Whoever waits for a lock waits for as long as the client does, but not for a connection.
            let patience = deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
            let found = async {
                match path {
                    path::LOCK | path::CAMPAIGN => self.link.member_that_waits().await,
                    _ => self.link.member().await,
                }
            };
            let Ok(Ok(member)) = timeout_at(patience, found).await else {
                return Err(not_sent());
            };
            let metadata = self.metadata(&member, who, metadata)?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match member.unary(path, metadata, request.clone(), left).await {
                Ok(answer) => {
                    self.link.metrics.forwarded(begun.elapsed());
                    return Ok(answer);
                }
                Err(failed) => {
                    if let Some(status) = self.judged(&member, who, failed) {
                        return Err(status);
                    }
                }
            }
        }
        Err(not_sent())
    }

    async fn stream(
        &self,
        path: &str,
        who: &Credentials,
        metadata: &MetadataMap,
        requests: BoxStream<'static, Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        let member = self.member_for(path).await.map_err(|_| not_sent())?;
        let metadata = self.metadata(&member, who, metadata)?;
        let begun = member.stream(path, metadata, requests).await;
        let stream = begun.map_err(|status| {
            // The requests are gone with the first attempt, so there is no second one here.
            let was_sent = !is_unsent(&status);
            match self.judged(&member, who, Failed::Status(status)) {
                Some(status) => status,
                None if was_sent => lost(),
                None => not_sent(),
            }
        })?;
        // The end of one stream says nothing about the connection, which may be that of this stream alone.
        let passed = move |answer: Result<Bytes, Status>| {
            let _kept = &member;
            answer.map_err(|status| match is_of_transport(&status) {
                true => lost(),
                false => status,
            })
        };
        Ok(stream.map(passed).boxed())
    }

    fn identity(&self) -> UpstreamIdentity {
        UpstreamIdentity {
            cluster_id: self.link.cluster_id(),
            raft_term: self.link.term(),
            leader: self.link.leader(),
            version: self.link.version(),
        }
    }

    fn judge(&self) -> Judge {
        self.link.people.judge()
    }

    async fn reload_users(&self) -> Result<(), Status> {
        self.link.people.reload(self).await
    }

    fn is_exact(&self) -> bool {
        self.exact.load(Ordering::Relaxed)
    }

    fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed)
    }

    fn register(&self, registry: &mut Registry) {
        let hows = How::ALL.map(How::label);
        self.link.metrics.register(&self.link.people, hows, registry);
    }
}
