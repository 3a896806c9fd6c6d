//! Why the watch is opened anew, or the state is loaded anew.

use std::fmt;

/// Why the watch is opened anew, or the state is loaded anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// A revision was left out.
    Gap,
    /// Progress was reported beyond the last event.
    Lost,
    /// Messages that no etcd sends.
    Disorder,
    /// The watch did not begin with the events of the applied revision.
    Unproven,
    /// Upstream has other events than this store.
    Diverged,
    /// Upstream is at a revision below that of this store.
    Rewound,
    /// Upstream has compacted revisions that are missing here.
    Compacted,
    /// Upstream has ended the watch.
    Cancelled,
    /// Nothing came, not even progress that was asked for.
    Silent,
    /// The stream ended.
    Broken,
    /// The member has no leader.
    NoLeader,
    /// More revisions are missing than a watch should read.
    Behind,
    /// The watch that was buffered during a load cannot be continued.
    Buffer,
    /// Upstream is another cluster.
    OtherCluster,
    /// Endpoints have another past.
    OtherPast,
}

// === impl Why ===

impl Why {
    /// The word for metrics and logs.
    pub const ALL: [Self; 15] = [
        Self::Gap,
        Self::Lost,
        Self::Disorder,
        Self::Unproven,
        Self::Diverged,
        Self::Rewound,
        Self::Compacted,
        Self::Cancelled,
        Self::Silent,
        Self::Broken,
        Self::NoLeader,
        Self::Behind,
        Self::Buffer,
        Self::OtherCluster,
        Self::OtherPast,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Lost => "lost",
            Self::Disorder => "disorder",
            Self::Unproven => "unproven",
            Self::Diverged => "diverged",
            Self::Rewound => "rewound",
            Self::Compacted => "compacted",
            Self::Cancelled => "cancelled",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::NoLeader => "no_leader",
            Self::Behind => "behind",
            Self::Buffer => "buffer",
            Self::OtherCluster => "other_cluster",
            Self::OtherPast => "other_past",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gap => "a revision was left out",
            Self::Lost => "progress was reported beyond the last event",
            Self::Disorder => "the messages of the watch are out of order",
            Self::Unproven => "the watch did not begin with the last revision that was applied",
            Self::Diverged => "upstream has other events than this replica",
            Self::Rewound => "upstream is at a revision before that of this replica",
            Self::Compacted => "upstream has compacted revisions that are missing here",
            Self::Cancelled => "upstream has ended the watch",
            Self::Silent => "upstream sent nothing, not even progress",
            Self::Broken => "the stream ended",
            Self::NoLeader => "the member has no leader",
            Self::Behind => "too many revisions are missing for a watch",
            Self::Buffer => "the watch that ran during the load cannot be continued",
            Self::OtherCluster => "upstream is another cluster",
            Self::OtherPast => "upstream has another past",
        })
    }
}
