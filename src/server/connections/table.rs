//! The table itself: who has a place, who gives way. Finding the connection that gives way must not take time that grows
//! with their number, since it is done for each newcomer while the table is full, also for strangers.

use super::super::connection::Idle;
use super::super::farewell::Farewell;
use super::super::peer::Peer;
use super::Trust;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Idle connections that one search remembers.
const REMEMBERED: usize = 256;
/// A search that found too few is repeated after this many times its duration.
const REST: u32 = 20;
/// A search that took less may be repeated at once.
const CHEAP: Duration = Duration::from_micros(200);

#[derive(Default)]
pub(super) struct Table {
    pub(super) next: u64,
    /// Connections whose client is waited for during the handshake, oldest first.
    pub(super) unfinished: BTreeMap<u64, Unfinished>,
    /// Connections that were just accepted, or whose handshake is being computed.
    pub(super) computing: usize,
    pub(super) open: BTreeMap<u64, Open>,
    /// Users, with their open connections.
    owners: HashMap<Arc<str>, Owned>,
    all: Waiting,
    /// Connections that were ended and are still open.
    ending: BTreeSet<u64>,
}

pub(super) struct Unfinished {
    pub(super) address: Option<SocketAddr>,
    pub(super) since: Instant,
    pub(super) evict: CancellationToken,
}

pub(super) struct Open {
    pub(super) peer: Peer,
    pub(super) owner: Arc<str>,
    /// The verified certificate, with the configuration that verified it.
    pub(super) trust: Option<Arc<Trust>>,
}

/// The connections of one user.
#[derive(Default)]
struct Owned {
    count: usize,
    waiting: Waiting,
}

/// The connections that give way first.
#[derive(Default)]
struct Waiting {
    /// Connections that had no admitted call when they were looked at last, oldest first.
    strangers: BTreeSet<u64>,
    /// What the last search found, the idlest first: since when, and which.
    found: VecDeque<(Instant, u64)>,
    /// When the next search may be made.
    search_at: Option<Instant>,
}

/// An idle connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdleConnection {
    pub(super) id: u64,
    pub(super) since: Instant,
    /// Whether a call of the client was ever admitted.
    pub(super) admitted: bool,
}

impl Open {
    /// Since when the connection has been idle, and whether a call was ever admitted; `None` if it is busy or ends.
    fn idle(&self) -> Option<(Instant, bool)> {
        match self.peer.connection.idle() {
            Idle::Since { since, admitted, .. } if !self.peer.connection.is_killed() => Some((since, admitted)),
            Idle::Busy | Idle::Since { .. } => None,
        }
    }
}

// === impl Table ===

impl Table {
    pub(super) fn len(&self) -> usize {
        self.unfinished.len() + self.computing + self.open.len()
    }

    /// Connections that are about to end.
    pub(super) fn ending(&self) -> usize {
        self.ending.len()
    }

    /// The connection that has been idle for longest: among those that never made a call that was admitted, if there
    /// are any, so that strangers do not drive out clients that pause.
    pub(super) fn idlest(&mut self) -> Option<IdleConnection> {
        self.all.idlest(&self.open, |_| true)
    }

    /// A connection is open. Returns the connection of the same user that must give way if the user has more than `most`.
    pub(super) fn open(&mut self, id: u64, peer: Peer, trust: Option<Arc<Trust>>, most: usize) -> Option<u64> {
        let owner = peer.owner();
        let owned = self.owners.entry(Arc::clone(&owner)).or_default();
        owned.count += 1;
        let gives_way = (owned.count > most).then(|| {
            let idlest = owned.waiting.idlest(&self.open, |open| open.owner == owner);
            idlest.map_or(id, |idle| idle.id)
        });
        owned.waiting.strangers.insert(id);
        self.all.strangers.insert(id);
        self.open.insert(id, Open { peer, owner, trust });
        gives_way
    }

    /// Ends an open connection at once. Returns the client, unless it is gone or ends already.
    pub(super) fn end(&mut self, id: u64, why: Farewell) -> Option<&Peer> {
        let open = self.open.get(&id)?;
        if !self.ending.insert(id) {
            return None;
        }
        open.peer.connection.kill(why);
        self.all.strangers.remove(&id);
        if let Some(owned) = self.owners.get_mut(&open.owner) {
            owned.waiting.strangers.remove(&id);
        }
        Some(&open.peer)
    }

    /// A connection is gone.
    pub(super) fn close(&mut self, id: u64) {
        let Some(closed) = self.open.remove(&id) else { return };
        self.ending.remove(&id);
        self.all.strangers.remove(&id);
        if let Some(owned) = self.owners.get_mut(&closed.owner) {
            owned.waiting.strangers.remove(&id);
            owned.count -= 1;
            if owned.count == 0 {
                self.owners.remove(&closed.owner);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.owners.len()
    }
}

// === impl Waiting ===

impl Waiting {
    fn idlest(&mut self, open: &BTreeMap<u64, Open>, wanted: impl Fn(&Open) -> bool) -> Option<IdleConnection> {
        self.stranger(open).or_else(|| {
            self.remembered(open).or_else(|| {
                self.search(open, wanted);
                self.remembered(open)
            })
        })
    }

    fn stranger(&mut self, open: &BTreeMap<u64, Open>) -> Option<IdleConnection> {
        while let Some(&id) = self.strangers.first() {
            match open.get(&id).and_then(Open::idle) {
                Some((since, false)) => {
                    let admitted = false;
                    return Some(IdleConnection { id, since, admitted });
                }
                // A client whose call was admitted is no stranger any more.
                _ => self.strangers.pop_first(),
            };
        }
        None
    }

    fn remembered(&mut self, open: &BTreeMap<u64, Open>) -> Option<IdleConnection> {
        while let Some(&(since, id)) = self.found.front() {
            if let Some((now, admitted)) = open.get(&id).and_then(Open::idle)
                && now == since
            {
                return Some(IdleConnection { id, since, admitted });
            }
            self.found.pop_front();
        }
        None
    }

    fn search(&mut self, open: &BTreeMap<u64, Open>, wanted: impl Fn(&Open) -> bool) {
        let began = Instant::now();
        if self.search_at.is_some_and(|at| began < at) {
            return;
        }
        let wanted = open.iter().filter(|(_, open)| wanted(open));
        let mut idle: Vec<_> = wanted.filter_map(|(id, open)| Some((open.idle()?.0, *id))).collect();
        if idle.len() > REMEMBERED {
            idle.select_nth_unstable(REMEMBERED);
            idle.truncate(REMEMBERED);
        }
        idle.sort_unstable();
        self.found = idle.into();
        let took: Duration = began.elapsed();
        self.search_at = (took > CHEAP).then(|| began + took * REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(table: &mut Table, id: u64, is_admitted: bool) -> Peer {
        let peer = Peer::default();
        if is_admitted {
            peer.connection.admitted();
        }
        table.open(id, peer.clone(), None, 100);
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_remembered_and_looked_at_again() {
        let mut table = Table::default();
        let mut peers = vec![];
        for id in 1..=3 {
            peers.push(opened(&mut table, id, true));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let idlest = |table: &mut Table| table.idlest().map(|idle| (idle.id, idle.admitted));
        assert_eq!(idlest(&mut table), Some((1, true)));
        let busy = peers[0].connection.begin_call();
        assert_eq!(idlest(&mut table), Some((2, true)), "the first is busy now");
        assert!(
            table.end(2, Farewell::Room).is_some() && table.end(2, Farewell::Room).is_none() && table.ending() == 1
        );
        assert_eq!(idlest(&mut table), Some((3, true)), "the second ends");
        let stranger = opened(&mut table, 4, false);
        assert_eq!(idlest(&mut table), Some((4, false)), "strangers first");
        stranger.connection.admitted();
        drop(busy);
        assert_eq!(idlest(&mut table), Some((3, true)), "idle for longer than the first");
        table.close(2);
        table.close(3);
        assert_eq!((idlest(&mut table), table.ending()), (Some((1, true)), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_connection_gives_way_if_no_other_of_its_user_is_idle() {
        let mut table = Table::default();
        let busy = opened(&mut table, 1, true);
        let _call = busy.connection.begin_call();
        assert_eq!(table.open(2, Peer::default(), None, 1), Some(2));
        assert_eq!(table.open(3, Peer::default(), None, 2), Some(2), "a stranger");
    }
}
