//! The endpoints of the upstream, each judged before it is followed: does it have the past of this replica?

use super::error::Error;
use super::feed::Why;
use super::link::{Link, Seen, read_from};
use super::member::{HASH, Member, Purpose, path};
use super::upstream::Rewound;
use super::wire::RangeResponse;
use super::witness::{Decision, Finding, Header, Read, Sample, Verdict, Witness, samples};
use crate::mvcc::{Compared, Kv, Store};
use crate::pb::etcdserverpb as pb;
use crate::util::pace::Rests;
use bytes::Bytes;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// More missing revisions than this are not read by a watch: etcd scans them under the lock that applies writes (etcd#22264),
/// for about 20 ms.
pub(super) const BEHIND: i64 = 20_000;
/// Limit for reading a sample.
const SAMPLE: Duration = Duration::from_secs(2);

/// Whether an endpoint can be followed from here.
pub(super) enum Candidate {
    /// Its answers fit to the state here.
    Fits(Box<Member>),
    /// Its answers fit, and it has more revisions than a watch should read.
    Ahead(Box<Member>),
    /// It has another past, for this reason.
    Differs(String),
}

/// The upstream's hash of all keys up to a revision, and the hash that it must be.
pub(super) struct Hashed {
    endpoint: String,
    revision: i64,
    /// `None` if it cannot be known here.
    ours: Option<u32>,
    theirs: u32,
    /// The upstream's compact revision.
    compacted: i64,
}

/// What is known of the endpoints.
pub(super) struct Endpoints {
    link: Arc<Link>,
    store: Arc<Store>,
    witness: Witness,
    /// The endpoints, by their places in the witness.
    names: Vec<String>,
    /// The moment since which the witness counts time.
    begun: Instant,
    /// The upstream's compact revision, as far as is known.
    compacted: i64,
}

impl Endpoints {
    /// The endpoints of a state that was just loaded.
    pub(super) fn new(link: Arc<Link>, store: Arc<Store>) -> Self {
        let mut names = link.all_endpoints();
        names.sort();
        let mut endpoints = Self {
            witness: Witness::new(link.cluster_id(), names.len()),
            names,
            begun: Instant::now(),
            compacted: 0,
            link,
            store,
        };
        endpoints.begin();
        endpoints
    }

    /// Begins anew with the past that was loaded.
    pub(super) fn begin(&mut self) {
        self.witness.begin(self.link.cluster_id(), self.link.term());
        self.compacted = self.store.floor();
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The place of an endpoint.
    fn place(&self, endpoint: &str) -> usize {
        // A place that is none counts for nothing.
        self.names
            .binary_search_by(|name| (**name).cmp(endpoint))
            .unwrap_or(usize::MAX)
    }

    /// The endpoints in the order in which they are tried: those with another past come last, since they may have changed.
    pub(super) fn order(&mut self) -> Vec<String> {
        let mut order = self.link.all_endpoints();
        let mut names = order.clone();
        names.sort();
        if names != self.names {
            // The file names other endpoints now.
            self.names = names;
            self.witness = Witness::new(self.link.cluster_id(), self.names.len());
            self.begin();
        }
        order.sort_by_key(|endpoint| self.witness.is_shut_out(self.place(endpoint)));
        order
    }

    pub(super) fn decide(&mut self) -> Decision {
        let now = self.now();
        self.witness.decide(now)
    }

    /// Notes that an endpoint cannot be reached.
    pub(super) fn unreachable(&mut self, endpoint: &str) {
        self.witness.unreachable(self.place(endpoint));
    }

    /// Keeps calls away from the endpoint while it differs.
    fn tell(&self, endpoint: &str) {
        self.link
            .shut_out(endpoint, self.witness.is_shut_out(self.place(endpoint)));
    }

    /// Judges a linearizable answer that shows less than is here; whether it proves another past.
    pub(super) fn rewound(&mut self, report: &Rewound) -> bool {
        let Rewound {
            endpoint,
            seen,
            applied,
        } = report;
        let (read, now) = (Read::Linearizable { applied: *applied }, self.now());
        let found = differs(self.witness.header(self.place(endpoint), &header(*seen), read, now));
        self.tell(endpoint);
        if let Some(why) = &found {
            tracing::warn!(
                endpoint,
                why,
                "the endpoint has another past than this replica; it is shut out"
            );
        }
        found.is_some()
    }

    /// Notes how a revision that the endpoint sent again compares with the one here.
    pub(super) fn replayed(&mut self, endpoint: &str, revision: i64, compared: Compared) -> Verdict {
        let (place, now) = (self.place(endpoint), self.now());
        let verdict = self.witness.replayed(place, revision, compared, now);
        self.tell(endpoint);
        verdict
    }

    /// Notes that keys that were loaded from the endpoint cannot come after those of `revision` here.
    pub(super) fn contradicted(&mut self, endpoint: &str, revision: i64) {
        let (place, now) = (self.place(endpoint), self.now());
        self.witness.differs(place, Finding::Keys { revision }, now);
        self.tell(endpoint);
    }

    pub(super) fn is_shut_out(&self, endpoint: &str) -> bool {
        self.witness.is_shut_out(self.place(endpoint))
    }

    /// Notes that the endpoint has nothing that could be compared, as an empty store.
    pub(super) fn agrees(&mut self, endpoint: &str) {
        self.witness.agrees(self.place(endpoint));
        self.tell(endpoint);
    }

    pub(super) fn is_hash_due(&self, away: Duration) -> bool {
        self.witness.is_hash_due(away, self.now())
    }

    /// Judges the upstream's hash; the reason if it proves another past.
    pub(super) fn hashed(&mut self, hashed: &Hashed) -> Option<String> {
        let (place, now) = (self.place(&hashed.endpoint), self.now());
        self.compacted = self.compacted.max(hashed.compacted);
        let hashes = (hashed.ours, hashed.theirs);
        let found = differs(self.witness.hashed(place, hashed.revision, hashes, now));
        self.tell(&hashed.endpoint);
        found
    }

    /// Whether an endpoint can be followed from revision `applied` on.
    pub(super) async fn candidate(&mut self, endpoint: &str, applied: i64) -> Result<Candidate, Error> {
        let member = self.link.connect(endpoint, Purpose::Feed, 0).await?;
        let own = Seen {
            cluster_id: member.facts.cluster_id,
            revision: 0,
            term: member.facts.term,
        };
        if let Some(why) = self.header(endpoint, own, Read::Local) {
            return Ok(Candidate::Differs(why));
        }
        let seen = read_from(&member).await?;
        if let Some(why) = self.answers_differ(&member, seen, applied).await {
            return Ok(Candidate::Differs(why));
        }
        match seen.revision - applied > BEHIND {
            true => Ok(Candidate::Ahead(Box::new(member))),
            false => Ok(Candidate::Fits(Box::new(member))),
        }
    }

    /// Judges a member of the followed cluster by what it answers now; the reason if it proves another past than that of revision
    /// `applied` here.
    pub(super) async fn judge(&mut self, member: &Member, applied: i64) -> Result<Option<String>, Error> {
        let seen = read_from(member).await?;
        Ok(self.answers_differ(member, seen, applied).await)
    }

    /// Judges a linearizable answer, and older key-values; the reason if they prove another past.
    async fn answers_differ(&mut self, member: &Member, seen: Seen, applied: i64) -> Option<String> {
        match self.header(&member.endpoint, seen, Read::Linearizable { applied }) {
            Some(why) => Some(why),
            None => self.sample(member).await,
        }
    }

    /// Judges a header; the reason if it proves another past.
    fn header(&mut self, endpoint: &str, seen: Seen, read: Read) -> Option<String> {
        let (place, now) = (self.place(endpoint), self.now());
        let found = differs(self.witness.header(place, &header(seen), read, now));
        self.tell(endpoint);
        found
    }

    /// Reads a few older key-values; the reason if one proves another past.
    async fn sample(&mut self, member: &Member) -> Option<String> {
        let place = self.place(&member.endpoint);
        let chosen = samples(&self.store, self.compacted, rand::random);
        let found = join_all(chosen.iter().map(|sample| read_sample(member, sample))).await;
        let now = self.now();
        let reason = chosen.iter().zip(found).find_map(|(sample, found)| {
            // A revision that the upstream has compacted proves nothing, and neither does an answer that does not come.
            let found = found.ok()?;
            differs(self.witness.sampled(place, sample, found.as_ref(), now))
        });
        self.tell(&member.endpoint);
        reason
    }
}

fn header(seen: Seen) -> Header {
    Header {
        cluster_id: seen.cluster_id,
        revision: seen.revision,
        raft_term: seen.term,
    }
}

fn differs(verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Differs(finding) => Some(finding.to_string()),
        Verdict::Fits | Verdict::Ask => None,
    }
}

/// A key-value as it was at the revision of a sample.
async fn read_sample(member: &Member, sample: &Sample) -> Result<Option<Kv>, Error> {
    let request = pb::RangeRequest {
        key: Bytes::from(sample.key.clone()),
        revision: sample.revision,
        serializable: true,
        ..pb::RangeRequest::default()
    };
    let answer: RangeResponse = member.ask(path::RANGE, &request, SAMPLE).await?;
    let found = answer.kvs.first().map(|kv| {
        let checked = Kv::checked(kv);
        checked.ok_or_else(|| member.invalid("a key-value that no etcd writes"))
    });
    found.transpose()
}

/// Asks a member for its hash of all keys up to the present revision here.
pub(super) async fn hash(member: Arc<Member>, store: Arc<Store>) -> Result<Hashed, Error> {
    let revision = store.revision();
    let request = pb::HashKvRequest { revision };
    let answer: pb::HashKvResponse = member.ask(path::HASH_KV, &request, HASH).await?;
    let compacted = answer.compact_revision;
    let ours = tokio::task::spawn_blocking(move || {
        let mut rests = Rests::begin();
        let versions = store.versions_by_steps(revision, &mut || rests.rest()).ok()?;
        let hash = versions.hash_compacted_by_steps(compacted, &mut || rests.rest());
        Some((versions.revision, hash))
    });
    let (revision, ours) = ours
        .await
        .ok()
        .flatten()
        .ok_or_else(|| Error::Compacted(member.endpoint.clone()))?;
    Ok(Hashed {
        endpoint: member.endpoint.clone(),
        revision,
        ours,
        theirs: answer.hash,
        compacted,
    })
}

/// Why everything is loaded anew, after no endpoint had the past of this replica.
pub(super) fn is_other_past(why: Why) -> bool {
    matches!(why, Why::OtherCluster | Why::OtherPast | Why::Rewound | Why::Diverged)
}
