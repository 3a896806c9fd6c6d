//! The upstream as a whole: which of its members is talked to, and what all of them must have in common.
//!
//! Calls share one connection, and the feed has another one: a long answer must not delay events (etcd#15402). Calls that
//! last as long as their clients want share a third one, since clients could use up its streams; what a client reads at its
//! own pace has a connection of its own. A member that does not answer is left for the next one. The file and the TLS files that
//! it names are read anew for each connection.

use super::error::Error;
use super::member::{Facts, Member, Purpose, path};
use super::metrics::Metrics;
use super::people::People;
use super::wire::RangeResponse;
use crate::kvstore::config::ClientConfig;
use crate::pb::etcdserverpb as pb;
use crate::server::upstream::Credentials;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Limit for connecting to one endpoint, with its first answers.
const CONNECT: Duration = Duration::from_secs(3);
/// Calls that find no member fail for so long before it is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// Time between questions for leader, term and version.
const FACTS: Duration = Duration::from_secs(10);
/// Limit for one read of the upstream's revision.
const READ: Duration = Duration::from_secs(2);

/// The connections to the upstream.
pub struct Link {
    file: PathBuf,
    /// The etcd client file that names other replicas of the same cluster.
    peers: Option<PathBuf>,
    /// What was read last from the file.
    config: Mutex<ClientConfig>,
    /// The cluster that is followed; 0 before the first member was admitted.
    cluster_id: AtomicU64,
    /// The highest term in answers of endpoints that have the past of this replica.
    term: AtomicU64,
    /// The member that leads, as far as is known; 0 without a leader.
    leader: AtomicU64,
    /// The version of the member that was asked last.
    version: Mutex<[u16; 3]>,
    /// The index of the endpoint that is tried first.
    first: AtomicUsize,
    /// Endpoints with another past than this replica, which calls must not go to.
    shut_out: Mutex<BTreeSet<String>>,
    /// The connection for short calls.
    calls: Slot,
    /// The connection for calls that last as long as their clients want.
    waits: Slot,
    pub(super) people: Arc<People>,
    pub(super) metrics: Arc<Metrics>,
}

/// A connection that many calls share.
#[derive(Default)]
struct Slot {
    member: ArcSwapOption<Member>,
    looking: Mutex<Looking>,
}

/// The search for a member.
#[derive(Default)]
enum Looking {
    #[default]
    No,
    /// All who wait poll it: it goes on where it was when one of them gives up.
    Now(Shared<BoxFuture<'static, Found>>),
    /// The time and the reason of the last failure.
    Failed(Instant, Arc<Error>),
}

type Found = Result<Arc<Member>, Arc<Error>>;

/// What the upstream says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) cluster_id: u64,
    pub(super) revision: i64,
    pub(super) term: u64,
}

impl Link {
    /// Reads the file. Nothing is connected to.
    pub fn new(file: &Path, peers: Option<PathBuf>, people: Arc<People>, metrics: Arc<Metrics>) -> Result<Self, Error> {
        Ok(Self {
            file: file.to_owned(),
            peers,
            config: Mutex::new(ClientConfig::read(file)?),
            cluster_id: AtomicU64::new(0),
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            version: Mutex::default(),
            // Replicas begin with different members.
            first: AtomicUsize::new(rand::random_range(0..usize::from(u16::MAX))),
            shut_out: Mutex::default(),
            calls: Slot::default(),
            waits: Slot::default(),
            people,
            metrics,
        })
    }

    /// The configuration, read anew. A file that cannot be read at the moment is reported, and changes nothing.
    fn config(&self) -> ClientConfig {
        match ClientConfig::read(&self.file) {
            Ok(config) => config.clone_into(&mut self.config.lock()),
            Err(error) => {
                tracing::warn!(%error, "the file of the upstream cannot be read; its former content stays in use")
            }
        }
        self.config.lock().clone()
    }

    /// Whether this replica has a password.
    pub(super) fn has_password(&self) -> bool {
        self.config.lock().password.is_some()
    }

    /// The endpoints in the order in which they are tried.
    fn endpoints(&self, config: &ClientConfig) -> Vec<String> {
        let mut endpoints = config.endpoints.clone();
        let first = self.first.load(Ordering::Relaxed) % endpoints.len().max(1);
        endpoints.rotate_left(first);
        endpoints
    }

    /// All endpoints, in the order in which they are tried.
    pub(super) fn all_endpoints(&self) -> Vec<String> {
        self.endpoints(&self.config.lock())
    }

    /// The followed cluster; 0 before the first member was admitted.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id.load(Ordering::Relaxed)
    }

    /// The highest term in answers of endpoints that have the past of this replica.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    /// The member that calls go to, if any.
    pub(super) fn current(&self) -> Option<Arc<Member>> {
        self.calls.member.load_full()
    }

    /// Keeps calls away from an endpoint, or lets them go there again.
    pub(super) fn shut_out(&self, endpoint: &str, is_shut_out: bool) {
        let mut shut_out = self.shut_out.lock();
        match is_shut_out {
            true => drop(shut_out.insert(endpoint.to_owned())),
            false => drop(shut_out.remove(endpoint)),
        }
        drop(shut_out);
        for slot in [&self.calls, &self.waits].into_iter().filter(|_| is_shut_out) {
            if let Some(member) = slot.member.load_full().filter(|member| member.endpoint == endpoint) {
                self.leave(&member, "the endpoint has another past than this replica");
            }
        }
    }

    /// Follows another cluster, or another past of the same cluster, from now on.
    pub(super) fn pin(&self, seen: Seen) {
        self.shut_out.lock().clear();
        self.cluster_id.store(seen.cluster_id, Ordering::Relaxed);
        self.term.store(seen.term, Ordering::Relaxed);
        for slot in [&self.calls, &self.waits] {
            slot.member.store(None);
            *slot.looking.lock() = Looking::No;
        }
    }

    /// The member that leads, as far as is known; 0 without a leader.
    pub(super) fn leader(&self) -> u64 {
        self.leader.load(Ordering::Relaxed)
    }

    /// The version of the member that was asked last.
    pub(super) fn version(&self) -> [u16; 3] {
        *self.version.lock()
    }

    /// Notes what a member of the followed cluster says of itself.
    fn note(&self, facts: &Facts) {
        self.leader.store(facts.leader, Ordering::Relaxed);
        *self.version.lock() = facts.version();
    }

    /// Asks the member that calls go to for leader and version, again and again.
    pub(super) async fn keep_facts(&self) {
        loop {
            tokio::time::sleep(FACTS).await;
            if let Some(member) = self.current()
                && let Ok(facts) = member.ask_facts().await
                && facts.cluster_id == self.cluster_id()
            {
                self.note(&facts);
            }
        }
    }

    /// Notes the term of an answer of an endpoint that has the past of this replica.
    pub(super) fn note_term(&self, term: u64) {
        self.term.fetch_max(term, Ordering::Relaxed);
    }

    /// Connects to an endpoint and admits its member, of the followed cluster or of any.
    pub(super) async fn connect(&self, endpoint: &str, purpose: Purpose, expected: u64) -> Result<Member, Error> {
        self.connect_with(&self.config(), endpoint, purpose, expected).await
    }

    /// The endpoints of other replicas of the same cluster, in any order.
    pub(super) fn sisters(&self) -> Vec<String> {
        let Some(file) = &self.peers else { return vec![] };
        match ClientConfig::read(file) {
            Ok(mut config) => {
                config.endpoints.shuffle(&mut rand::rng());
                config.endpoints
            }
            Err(error) => {
                tracing::warn!(%error, "the file of the other replicas (--peers) cannot be read; the upstream is loaded from");
                vec![]
            }
        }
    }

    /// Connects to another replica of the followed cluster.
    pub(super) async fn connect_to_sister(&self, endpoint: &str) -> Result<Member, Error> {
        let config = match &self.peers {
            Some(file) => ClientConfig::read(file)?,
            None => self.config(),
        };
        self.connect_with(&config, endpoint, Purpose::Feed, self.cluster_id())
            .await
    }

    async fn connect_with(
        &self,
        config: &ClientConfig,
        endpoint: &str,
        purpose: Purpose,
        expected: u64,
    ) -> Result<Member, Error> {
        let connected = Box::pin(Member::connect(config, Arc::clone(&self.people), endpoint, purpose));
        let connected = timeout(CONNECT, connected).await;
        let member = connected.unwrap_or_else(|_| {
            Err(Error::Timeout {
                endpoint: endpoint.to_owned(),
                limit: CONNECT,
            })
        })?;
        member.facts.admit(endpoint, expected)?;
        Ok(member)
    }

    /// Connects to the first endpoint whose member can be followed, and pins its cluster if no cluster is pinned.
    pub(super) async fn connect_to_any(&self, purpose: Purpose) -> Result<Member, Error> {
        let member = self.connect_to_first(purpose, self.cluster_id()).await?;
        // Fails if a cluster is pinned: then it is the one of this member.
        let found = member.facts.cluster_id;
        let pinned = self
            .cluster_id
            .compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed);
        if pinned.is_ok() {
            self.note_term(member.facts.term);
        }
        self.note(&member.facts);
        Ok(member)
    }

    /// Connects to the first endpoint whose member can be followed, of whatever cluster.
    pub(super) async fn connect_to_any_cluster(&self, purpose: Purpose) -> Result<Member, Error> {
        self.connect_to_first(purpose, 0).await
    }

    async fn connect_to_first(&self, purpose: Purpose, expected: u64) -> Result<Member, Error> {
        let config = self.config();
        let mut errors = vec![];
        for endpoint in self.endpoints(&config) {
            if expected != 0 && self.shut_out.lock().contains(&endpoint) {
                errors.push(Error::OtherPast(endpoint));
                continue;
            }
            match self.connect(&endpoint, purpose, expected).await {
                Ok(member) => return Ok(member),
                Err(error) => errors.push(error),
            }
        }
        Err(match errors.len() {
            1 => errors.remove(0),
            _ => Error::Nobody(errors),
        })
    }

    /// Tries another endpoint first from now on.
    pub(super) fn prefer_next(&self) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    /// The member that calls go to. Whoever comes while it is looked for waits, and shares the outcome.
    pub(super) async fn member(self: &Arc<Self>) -> Found {
        self.member_of(Purpose::Calls, |link| &link.calls).await
    }

    /// The member for calls that last as long as their clients want.
    pub(super) async fn member_that_waits(self: &Arc<Self>) -> Found {
        self.member_of(Purpose::Waits, |link| &link.waits).await
    }

    async fn member_of(self: &Arc<Self>, purpose: Purpose, slot: fn(&Self) -> &Slot) -> Found {
        if let Some(member) = slot(self).member.load_full() {
            return Ok(member);
        }
        let found = {
            let mut looking = slot(self).looking.lock();
            if let Some(member) = slot(self).member.load_full() {
                return Ok(member);
            }
            match &*looking {
                Looking::Failed(at, error) if at.elapsed() < PAUSE => return Err(Arc::clone(error)),
                Looking::Now(found) => found.clone(),
                Looking::No | Looking::Failed(..) => {
                    let found = Arc::clone(self).look(purpose, slot).boxed().shared();
                    *looking = Looking::Now(found.clone());
                    found
                }
            }
        };
        found.await
    }

    /// Looks for a member, and keeps the outcome.
    async fn look(self: Arc<Self>, purpose: Purpose, slot: fn(&Self) -> &Slot) -> Found {
        let expected = self.cluster_id();
        let found = Box::pin(self.connect_to_any(purpose)).await;
        let found = found.map(Arc::new).map_err(Arc::new);
        let mut looking = slot(&self).looking.lock();
        // Another cluster may be followed since.
        if expected == 0 || expected == self.cluster_id() {
            *looking = match &found {
                Ok(member) => {
                    slot(&self).member.store(Some(Arc::clone(member)));
                    Looking::No
                }
                Err(error) => Looking::Failed(Instant::now(), Arc::clone(error)),
            };
        }
        drop(looking);
        found
    }

    /// Leaves a member that did not answer, or whose connection has broken, for another one.
    pub(super) fn leave(&self, member: &Arc<Member>, why: &str) {
        let is_current = |slot: &&Slot| {
            slot.member
                .load()
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, member))
        };
        let Some(slot) = [&self.calls, &self.waits].into_iter().find(is_current) else {
            return;
        };
        if member.is_broken_by(why) {
            tracing::warn!(
                endpoint = member.endpoint,
                error = why,
                secs = member.age().as_secs(),
                "the connection for calls to the upstream is given up; another endpoint is tried"
            );
            self.prefer_next();
            slot.member.store(None);
        }
    }

    /// Reads what the upstream has, linearizably: everything that was committed before is in it. Returns the endpoint, too.
    pub(super) async fn read(self: &Arc<Self>) -> Result<(Seen, Arc<Member>), Arc<Error>> {
        let member = self.member().await?;
        let begun = Instant::now();
        match read(&member, false, &self.people.reader()).await {
            Ok(seen) => {
                self.metrics.index(begun.elapsed(), seen.revision);
                let expected = self.cluster_id();
                if seen.cluster_id != expected {
                    let error = Error::OtherCluster {
                        endpoint: member.endpoint.clone(),
                        found: seen.cluster_id,
                        expected,
                    };
                    self.leave(&member, &error.to_string());
                    return Err(Arc::new(error));
                }
                // A read with the token of another version fails.
                self.people.proven();
                Ok((seen, member))
            }
            Err(error) => {
                self.leave(&member, &error.to_string());
                Err(Arc::new(error))
            }
        }
    }
}

/// Reads what a member has, linearizably.
pub(super) async fn read_from(member: &Member) -> Result<Seen, Error> {
    read(member, false, &Credentials::Replica).await
}

/// Reads the revision up to which a member has everything itself.
pub(super) async fn local_revision(member: &Member) -> Result<i64, Error> {
    Ok(read(member, true, &Credentials::Replica).await?.revision)
}

async fn read(member: &Member, serializable: bool, who: &Credentials) -> Result<Seen, Error> {
    let request = pb::RangeRequest {
        key: Bytes::from_static(&[0]),
        count_only: true,
        serializable,
        ..pb::RangeRequest::default()
    };
    let answer: RangeResponse = member.ask_as(who, path::RANGE, &request, READ).await?;
    let header = answer
        .header
        .ok_or_else(|| member.invalid("an answer without a header"))?;
    Ok(Seen {
        cluster_id: header.cluster_id,
        revision: header.revision,
        term: header.raft_term,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{self, AuthStore};
    use tokio::net::TcpListener;

    /// Callers that give up before all endpoints were tried leave the search where it is.
    #[tokio::test(start_paused = true)]
    async fn impatient_callers_get_to_the_last_endpoint() {
        let silent = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let last = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = silent.iter().map(|listener| listener.local_addr().unwrap());
        let endpoints: Vec<_> = addresses
            .chain([last.local_addr().unwrap()])
            .map(|address| format!("\"http://{address}\""))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("endpoints: [{}]\n", endpoints.join(", "))).unwrap();
        let auth = Arc::new(AuthStore::new(auth::Config::default()).unwrap());
        let people = Arc::new(People::new(auth));
        let link = Arc::new(Link::new(file.path(), None, people, Arc::default()).unwrap());
        link.first.store(0, Ordering::Relaxed);
        let callers = async {
            for _ in 0..5 {
                let found = timeout(CONNECT - Duration::from_secs(1), link.member()).await;
                assert!(found.is_err(), "nobody has answered");
            }
        };
        tokio::select! {
            accepted = last.accept() => drop(accepted.unwrap()),
            () = callers => panic!("the last endpoint was never tried"),
        }
    }
}
