//! Flags of a replica, shared by `etcd` and `serve`.

use super::data::one_of;
use super::variables::Variables;
use crate::follow::{Config, CutOff, OnDivergence};
use clap::Args;
use std::path::{Path, PathBuf};

pub const VARIABLES: &[Variables] = &[
    Variables {
        flag: "follow",
        etcd: "ETCD_FOLLOW",
        serve: "CILIUM_FOLLOW",
    },
    Variables {
        flag: "peers",
        etcd: "ETCD_PEERS",
        serve: "CILIUM_PEERS",
    },
    Variables {
        flag: "on_divergence",
        etcd: "ETCD_ON_DIVERGENCE",
        serve: "CILIUM_ON_DIVERGENCE",
    },
    Variables {
        flag: "reads_when_cut_off",
        etcd: "ETCD_READS_WHEN_CUT_OFF",
        serve: "CILIUM_READS_WHEN_CUT_OFF",
    },
    Variables {
        flag: "impossible_watches",
        etcd: "ETCD_IMPOSSIBLE_WATCHES",
        serve: "CILIUM_IMPOSSIBLE_WATCHES",
    },
];

const ON_DIVERGENCE: &[(&str, OnDivergence)] = &[("reload", OnDivergence::Reload), ("exit", OnDivergence::Exit)];
const CUT_OFF: &[(&str, CutOff)] = &[("refuse", CutOff::Refuse), ("serve", CutOff::Serve)];

/// What happens to watches that begin after everything that the upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImpossibleWatches {
    Wait,
    Cancel,
}

const IMPOSSIBLE_WATCHES: &[(&str, ImpossibleWatches)] =
    &[("wait", ImpossibleWatches::Wait), ("cancel", ImpossibleWatches::Cancel)];

/// Whom a replica follows, and what it does when it cannot.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Replica")]
pub struct FollowArgs {
    /// File of an etcd client (endpoints, TLS files, user) that names an etcd, 3.5.13 or later, or another Isthmus to follow:
    /// its keys, revisions, leases and cluster id are served as this process's own, and writes are passed on to it. The file
    /// and its TLS files are read again for each connection.
    #[arg(long, value_name = "FILE")]
    follow: Option<PathBuf>,
    /// File of an etcd client that names other replicas of the same etcd, for example by the name of a headless Service. A
    /// replica that starts without a copy takes everything over from one of them, which costs the etcd nothing and brings the
    /// longer history.
    #[arg(long, value_name = "FILE", requires = "follow")]
    peers: Option<PathBuf>,
    /// Reaction when the followed etcd turns out to have another past, as after a restored backup: reload takes its keys over
    /// and ends all watches as compacted, so that clients list again; exit ends the process with an error.
    #[arg(long, default_value = "reload", value_parser = one_of(ON_DIVERGENCE), value_name = "REACTION")]
    on_divergence: OnDivergence,
    /// Linearizable reads while the followed etcd does not answer: refuse fails them after two seconds, so that clients ask
    /// another replica; serve answers from the last known state, which may be old.
    #[arg(long, default_value = "refuse", value_parser = one_of(CUT_OFF), value_name = "ANSWER")]
    reads_when_cut_off: CutOff,
    /// Watches that begin after everything that the followed etcd has, because it was restored from a backup: wait keeps them
    /// until it has that revision, as an etcd does, and their clients miss what happened until then; cancel ends them as
    /// compacted, so that clients list again. `etcd` waits by default, and `serve` cancels.
    #[arg(long, value_parser = one_of(IMPOSSIBLE_WATCHES), value_name = "REACTION")]
    impossible_watches: Option<ImpossibleWatches>,
}

impl FollowArgs {
    /// Whether this process is a replica.
    pub fn is_replica(&self) -> bool {
        self.follow.is_some()
    }

    /// Whether watches are cancelled that begin after everything that the upstream has; `by_default` if no flag says so.
    pub fn cancels_impossible_watches(&self, by_default: bool) -> bool {
        self.impossible_watches
            .map_or(by_default, |reaction| reaction == ImpossibleWatches::Cancel)
    }

    /// The file that names the upstream.
    pub fn file(&self) -> Option<&Path> {
        self.follow.as_deref()
    }

    /// The configuration of the replica; `None` without `--follow`.
    pub fn config(&self) -> Option<Config> {
        Some(Config {
            file: self.follow.clone()?,
            peers: self.peers.clone(),
            on_divergence: self.on_divergence,
            cut_off: self.reads_when_cut_off,
        })
    }
}
