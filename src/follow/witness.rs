//! Whether the endpoints of upstream have the same past as this replica.
//!
//! A restored cluster may have the ids of the cluster that it replaces, and a name may lead to a clone. So everything
//! that upstream says is compared with what is here. An endpoint that differs while another one agrees is shut out. If
//! none agrees for a while, the state is loaded anew. There is no IO and no clock here: times are arguments, since any
//! fixed moment.

use super::feed::Why;
use crate::mvcc::{Compared, EventKind, Kv, Store};
use std::fmt;
use std::time::Duration;

/// How long no endpoint may agree before the state is loaded anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// An absence from upstream after which the hash is compared.
const AWAY: Duration = Duration::from_secs(60);
/// Shortest time between two comparisons of the hash that nobody asked for.
const HASH_PAUSE: Duration = Duration::from_secs(600);
/// Older key-values that are read from upstream after each connection.
pub const SAMPLES: usize = 8;

/// What the header of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub cluster_id: u64,
    pub revision: i64,
    pub raft_term: u64,
}

/// How an answer was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// By a member alone, which may be behind the others.
    Local,
    /// After a round with the leader. `applied` is the revision of this store when the request was sent.
    Linearizable { applied: i64 },
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against the same past.
    Fits,
    /// The member is behind, or time went back: a linearizable read tells.
    Ask,
    Differs(Finding),
}

/// A proof that an endpoint has another past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Cluster { found: u64, pinned: u64 },
    Term { found: u64, seen: u64 },
    Revision { found: i64, applied: i64 },
    Events { revision: i64 },
    Sample { revision: i64 },
    Hash { revision: i64 },
    Keys { revision: i64 },
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opinion {
    /// Not asked since the last change of the past, or not reached.
    Unknown,
    Agrees,
    Differs(Finding),
}

/// What to do about the endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// An endpoint agrees: follow endpoints that are not shut out.
    Follow,
    /// No endpoint agrees so far: ask every endpoint, at least until this time.
    Wait { until: Duration },
    /// Endpoints agree with each other, and not with this replica.
    LoadAnew { why: Why },
}

/// What the endpoints of upstream have shown. Endpoints are known by their place in the configuration.
#[derive(Debug)]
pub struct Witness {
    cluster_id: u64,
    /// The highest term that an agreeing endpoint has shown.
    term: u64,
    opinions: Vec<Opinion>,
    /// Since when no endpoint agrees although one was reached.
    doubted: Option<Duration>,
    /// When the hash was compared last, and the term then.
    hashed: Option<(Duration, u64)>,
}

/// A key-value at an older revision, to be read from upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub key: Vec<u8>,
    pub revision: i64,
    /// `None` for a key that the revision has deleted.
    expected: Option<Kv>,
}

// === impl Witness ===

impl Witness {
    /// A replica of the cluster `cluster_id`, with this many endpoints.
    pub fn new(cluster_id: u64, endpoints: usize) -> Self {
        Self {
            cluster_id,
            term: 0,
            opinions: vec![Opinion::Unknown; endpoints],
            doubted: None,
            hashed: None,
        }
    }

    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The highest term that upstream has shown.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Judges a header of an endpoint; of every answer, because it costs nothing.
    pub fn header(&mut self, endpoint: usize, header: &Header, read: Read, now: Duration) -> Verdict {
        let Header {
            cluster_id,
            revision,
            raft_term,
        } = *header;
        let verdict = match read {
            _ if cluster_id != self.cluster_id => Verdict::Differs(Finding::Cluster {
                found: cluster_id,
                pinned: self.cluster_id,
            }),
            // A member that was cut off knows nothing of later elections.
            Read::Local if raft_term < self.term => Verdict::Ask,
            Read::Local => Verdict::Fits,
            Read::Linearizable { .. } if raft_term < self.term => Verdict::Differs(Finding::Term {
                found: raft_term,
                seen: self.term,
            }),
            Read::Linearizable { applied } if revision < applied => Verdict::Differs(Finding::Revision {
                found: revision,
                applied,
            }),
            Read::Linearizable { .. } => Verdict::Fits,
        };
        match verdict {
            Verdict::Differs(finding) => self.differs(endpoint, finding, now),
            Verdict::Fits if !matches!(self.opinion(endpoint), Opinion::Differs(_)) => {
                self.term = self.term.max(raft_term);
            }
            Verdict::Fits | Verdict::Ask => {}
        }
        verdict
    }

    /// Judges the replay of a revision that is here. The replay of the applied revision proves most.
    pub fn replayed(&mut self, endpoint: usize, revision: i64, compared: Compared, now: Duration) -> Verdict {
        match compared {
            Compared::Different => {
                let finding = Finding::Events { revision };
                self.differs(endpoint, finding, now);
                Verdict::Differs(finding)
            }
            Compared::Same => {
                self.agrees(endpoint);
                Verdict::Fits
            }
            Compared::Part | Compared::Unknown => Verdict::Fits,
        }
    }

    /// Judges the answer to a sample.
    pub fn sampled(&mut self, endpoint: usize, sample: &Sample, found: Option<&Kv>, now: Duration) -> Verdict {
        if sample.expected.as_ref() == found {
            return Verdict::Fits;
        }
        let finding = Finding::Sample {
            revision: sample.revision,
        };
        self.differs(endpoint, finding, now);
        Verdict::Differs(finding)
    }

    /// Judges upstream's HashKV of `revision` by the hash here. That is unknown after a load from lists, or if upstream
    /// keeps more history than this replica.
    pub fn hashed(
        &mut self,
        endpoint: usize,
        revision: i64,
        (ours, theirs): (Option<u32>, u32),
        now: Duration,
    ) -> Verdict {
        self.hashed = Some((now, self.term));
        match ours {
            Some(ours) if ours != theirs => {
                let finding = Finding::Hash { revision };
                self.differs(endpoint, finding, now);
                Verdict::Differs(finding)
            }
            Some(_) => {
                self.agrees(endpoint);
                Verdict::Fits
            }
            None => Verdict::Fits,
        }
    }

    /// Whether the hash should be compared after a connection: upstream had an election, or was away for long.
    pub fn is_hash_due(&self, away: Duration, now: Duration) -> bool {
        match self.hashed {
            None => true,
            Some((at, term)) => (self.term > term || away > AWAY) && now.saturating_sub(at) >= HASH_PAUSE,
        }
    }

    /// Notes that an endpoint has the same past.
    pub fn agrees(&mut self, endpoint: usize) {
        self.note(endpoint, Opinion::Agrees);
        self.doubted = None;
    }

    /// Notes that an endpoint has another past.
    pub fn differs(&mut self, endpoint: usize, finding: Finding, now: Duration) {
        self.note(endpoint, Opinion::Differs(finding));
        if !self.opinions.contains(&Opinion::Agrees) {
            self.doubted.get_or_insert(now);
        }
    }

    /// Notes that an endpoint cannot be reached: what it said before counts no more.
    pub fn unreachable(&mut self, endpoint: usize) {
        if self.opinion(endpoint) == Opinion::Agrees {
            self.note(endpoint, Opinion::Unknown);
        }
    }

    /// Whether an endpoint must not be used, because it differs. It is asked again, and may agree later.
    pub fn is_shut_out(&self, endpoint: usize) -> bool {
        matches!(self.opinion(endpoint), Opinion::Differs(_))
    }

    pub fn decide(&mut self, now: Duration) -> Decision {
        if self.opinions.contains(&Opinion::Agrees) {
            self.doubted = None;
            return Decision::Follow;
        }
        let findings: Vec<Finding> = self.opinions.iter().filter_map(Opinion::finding).collect();
        if findings.is_empty() {
            return Decision::Follow;
        }
        let since = *self.doubted.get_or_insert(now);
        // A single clone behind the name of an endpoint must not win while the others are away.
        let is_most = findings.len() * 2 >= self.opinions.len();
        if !is_most || now.saturating_sub(since) < PATIENCE {
            return Decision::Wait {
                until: since + PATIENCE,
            };
        }
        let is_other_cluster = findings
            .iter()
            .all(|finding| matches!(finding, Finding::Cluster { .. }));
        Decision::LoadAnew {
            why: match is_other_cluster {
                true => Why::OtherCluster,
                false => Why::OtherPast,
            },
        }
    }

    /// Begins anew with the past that was loaded.
    pub fn begin(&mut self, cluster_id: u64, raft_term: u64) {
        *self = Self {
            term: raft_term,
            ..Self::new(cluster_id, self.opinions.len())
        };
    }

    fn opinion(&self, endpoint: usize) -> Opinion {
        self.opinions.get(endpoint).copied().unwrap_or(Opinion::Unknown)
    }

    fn note(&mut self, endpoint: usize, opinion: Opinion) {
        if let Some(noted) = self.opinions.get_mut(endpoint) {
            *noted = opinion;
        }
    }
}

impl Opinion {
    fn finding(&self) -> Option<Finding> {
        match self {
            Self::Differs(finding) => Some(*finding),
            Self::Unknown | Self::Agrees => None,
        }
    }
}

// === samples ===

/// Chooses up to [`SAMPLES`] changes of revisions after `compacted`, upstream's compact revision; the first is of the last revision,
/// which two pasts hardly share.
pub fn samples(store: &Store, compacted: i64, mut random: impl FnMut() -> u64) -> Vec<Sample> {
    let (first, last) = (store.floor().max(compacted + 1).max(2), store.revision());
    let Ok(revisions @ 1..) = u64::try_from(last - first + 1) else {
        return vec![];
    };
    let mut samples: Vec<Sample> = vec![];
    for n in 0..SAMPLES {
        let older = first + i64::try_from(random() % revisions).unwrap_or(0);
        let revision = if n == 0 { last } else { older };
        let events = store.events_of(revision).unwrap_or_default();
        let Some(chosen) = usize::try_from(random())
            .ok()
            .and_then(|n| events.get(n % events.len().max(1)))
        else {
            continue;
        };
        let key = chosen.kv.key();
        // A read at the revision sees its last event for the key.
        let Some(event) = events.iter().rev().find(|event| event.kv.key() == key) else {
            continue;
        };
        let sample = Sample {
            key: key.to_vec(),
            revision,
            expected: (event.kind == EventKind::Put).then(|| event.kv.clone()),
        };
        if !samples.contains(&sample) {
            samples.push(sample);
        }
    }
    samples
}

// === impl Finding ===

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { found, pinned } => write!(f, "the cluster is {found:x}, not {pinned:x}"),
            Self::Term { found, seen } => write!(f, "the term went back from {seen} to {found}"),
            Self::Revision { found, applied } => {
                write!(
                    f,
                    "the store is at revision {found}, and revision {applied} was there before"
                )
            }
            Self::Events { revision } => write!(f, "revision {revision} has other events"),
            Self::Sample { revision } => write!(f, "a key has another value at revision {revision}"),
            Self::Hash { revision } => write!(f, "the hash of revision {revision} differs"),
            Self::Keys { revision } => write!(f, "its keys cannot come after those of revision {revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::{KeyRange, Write};

    const OTHER: Finding = Finding::Events { revision: 9 };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn header(cluster_id: u64, revision: i64, raft_term: u64) -> Header {
        Header {
            cluster_id,
            revision,
            raft_term,
        }
    }

    #[test]
    fn headers_tell_other_clusters_terms_and_revisions_that_went_back() {
        let mut witness = Witness::new(7, 3);
        let at = |applied| Read::Linearizable { applied };
        let now = secs(0);
        assert_eq!(witness.header(0, &header(7, 20, 4), Read::Local, now), Verdict::Fits);
        assert_eq!(witness.term(), 4);
        // A member that is behind proves nothing.
        assert_eq!(witness.header(1, &header(7, 3, 3), Read::Local, now), Verdict::Ask);
        assert_eq!(witness.header(1, &header(7, 20, 4), at(20), now), Verdict::Fits);
        let found = [
            (header(8, 20, 4), Finding::Cluster { found: 8, pinned: 7 }),
            (header(7, 20, 3), Finding::Term { found: 3, seen: 4 }),
            (header(7, 19, 4), Finding::Revision { found: 19, applied: 20 }),
        ];
        for (header, finding) in found {
            assert_eq!(witness.header(2, &header, at(20), now), Verdict::Differs(finding));
            assert!(witness.is_shut_out(2));
        }
        // The term of an endpoint with another past does not count.
        assert_eq!(witness.header(2, &header(7, 20, 99), at(20), now), Verdict::Fits);
        assert_eq!((witness.term(), witness.is_shut_out(2)), (4, true));
    }

    #[test]
    fn an_endpoint_that_differs_is_shut_out_while_another_one_agrees() {
        let mut witness = Witness::new(7, 3);
        assert_eq!(witness.replayed(0, 9, Compared::Same, secs(0)), Verdict::Fits);
        assert_eq!(
            witness.replayed(1, 9, Compared::Different, secs(1)),
            Verdict::Differs(OTHER)
        );
        assert_eq!(
            witness.replayed(2, 9, Compared::Different, secs(1)),
            Verdict::Differs(OTHER)
        );
        assert_eq!(witness.decide(secs(1000)), Decision::Follow);
        assert_eq!([0, 1, 2].map(|e| witness.is_shut_out(e)), [false, true, true]);
        // The clone is gone, and the name leads to a member again.
        witness.replayed(1, 9, Compared::Same, secs(1001));
        assert!(!witness.is_shut_out(1));
    }

    #[test]
    fn the_state_is_loaded_anew_once_no_endpoint_has_agreed_for_half_a_minute() {
        let mut witness = Witness::new(7, 3);
        witness.agrees(0);
        witness.differs(1, OTHER, secs(10));
        assert_eq!(witness.decide(secs(60)), Decision::Follow);
        witness.unreachable(0);
        // One of three endpoints is not enough.
        let until = secs(90);
        assert_eq!(witness.decide(secs(60)), Decision::Wait { until });
        assert_eq!(witness.decide(secs(600)), Decision::Wait { until });
        witness.differs(2, OTHER, secs(600));
        let why = Why::OtherPast;
        assert_eq!(witness.decide(secs(600)), Decision::LoadAnew { why });
        witness.begin(7, 2);
        assert_eq!(witness.decide(secs(601)), Decision::Follow);
        assert_eq!((witness.term(), witness.is_shut_out(1)), (2, false));
        for endpoint in 0..3 {
            witness.header(endpoint, &header(8, 1, 2), Read::Local, secs(700));
        }
        assert_eq!(witness.decide(secs(729)), Decision::Wait { until: secs(730) });
        let why = Why::OtherCluster;
        assert_eq!(witness.decide(secs(730)), Decision::LoadAnew { why });
    }

    #[test]
    fn the_hash_is_compared_after_elections_and_long_absences_and_not_too_often() {
        let mut witness = Witness::new(7, 1);
        let store = Store::new();
        let due = |witness: &Witness, away, now| witness.is_hash_due(secs(away), secs(now));
        assert!(due(&witness, 0, 0), "never compared");
        let versions = store.versions(0).unwrap();
        witness.header(0, &header(7, 1, 2), Read::Local, secs(0));
        let hash = versions.hash();
        witness.hashed(0, versions.revision, (Some(hash), hash), secs(0));
        assert!(!due(&witness, 61, 599));
        assert!(due(&witness, 61, 600) && !due(&witness, 60, 600));
        witness.header(0, &header(7, 1, 3), Read::Local, secs(0));
        assert!(!due(&witness, 0, 599) && due(&witness, 0, 600));
    }

    #[test]
    fn hashes_are_compared_at_upstreams_compact_revision() {
        let (upstream, replica) = (Store::new(), Store::new());
        for n in 0..40 {
            let mut writes = vec![Write::Put(format!("k{}", n % 7).into(), n.to_string().into())];
            if n % 5 == 0 {
                writes.push(Write::Delete(format!("k{}", n % 3).into()));
            }
            upstream.apply(&writes);
            replica.apply(&writes);
        }
        for compacted in [-1, 9, 10, 17, 30, 41] {
            if compacted > 0 {
                upstream.compact(compacted).unwrap();
                while upstream.purge() {}
            }
            let theirs = upstream.versions(0).unwrap().hash();
            let versions = replica.versions(0).unwrap();
            let (ours, revision) = (versions.hash_compacted(compacted), versions.revision);
            assert!(ours.is_some());
            let mut witness = Witness::new(7, 1);
            let verdict = witness.hashed(0, revision, (ours, theirs), secs(0));
            assert_eq!(verdict, Verdict::Fits, "compacted to {compacted}");
            assert!(!witness.is_shut_out(0) && witness.opinion(0) == Opinion::Agrees);
            let verdict = witness.hashed(0, revision, (ours, theirs ^ 1), secs(0));
            assert_eq!(verdict, Verdict::Differs(Finding::Hash { revision: 41 }));
        }
        // Less history is here than upstream has: nothing can be said.
        replica.compact(20).unwrap();
        assert_eq!(replica.versions(0).unwrap().hash_compacted(19), None);
        assert!(replica.versions(0).unwrap().hash_compacted(20).is_some());
    }

    #[test]
    fn samples_are_of_revisions_that_both_sides_have() {
        let store = Store::new();
        for n in 0..50 {
            store.apply(&[
                Write::Put(format!("k{n}").into(), "v".into()),
                Write::Delete(format!("k{}", n - 1).into()),
            ]);
        }
        store.compact(10).unwrap();
        let mut n = 1u64;
        let chosen = samples(&store, 30, || {
            n = n
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            n >> 33
        });
        assert!((2..=SAMPLES).contains(&chosen.len()), "{chosen:?}");
        let mut witness = Witness::new(7, 1);
        for sample in &chosen {
            assert!((31..=51).contains(&sample.revision));
            let options = crate::mvcc::RangeOptions {
                revision: sample.revision,
                ..crate::mvcc::RangeOptions::new(KeyRange::key(sample.key.clone()))
            };
            let found = store.range(&options).unwrap().kvs.pop();
            assert_eq!(witness.sampled(0, sample, found.as_ref(), secs(0)), Verdict::Fits);
        }
        assert!(chosen.iter().any(|sample| sample.expected.is_none()));
        assert_eq!(chosen[0].revision, 51);
        let there = chosen.iter().find(|sample| sample.expected.is_some()).unwrap();
        let verdict = witness.sampled(0, there, None, secs(0));
        let revision = there.revision;
        assert_eq!(verdict, Verdict::Differs(Finding::Sample { revision }));
        assert_eq!(samples(&Store::new(), -1, || 1), []);
    }
}
