//! All connections of a server: a bounded table. A new connection always gets a place; if the table is full, the
//! connection that is least useful gives way: the oldest unfinished handshake, or a connection without an admitted call
//! that has been idle for longer, or else the idlest connection.

mod table;

use super::budgets::Budgets;
use super::connection::{Connection, Idle, Stalled};
use super::farewell::Farewell;
use super::moves::Moves;
use super::peer::Peer;
use super::refusals::{Budget, Refusals};
use super::tls::{Identity, TlsConfig};
use crate::util::pace::Pace;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use table::{Open, Table, Unfinished};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// The most connections whose client has not finished its handshake and is waited for, whatever the number of
/// connections. Clients of a large mesh that connect together need a round trip each, during which they count.
const UNFINISHED_MIN: usize = 2048;
/// The part of all connections that may be such connections.
const UNFINISHED_PART: usize = 8;
/// Connections that are ended, up to which each may wait for its client's first bytes.
const PATIENT_MAX: usize = 32;
/// How often connections are checked.
const CHECK: Duration = Duration::from_secs(1);
/// How often the certificates of live connections are checked, in checks.
const CERTIFICATES_EVERY: u32 = 10;
/// A client that takes nothing of more than [`STALLED_BYTES`] for this long loses its connection.
const STALLED: Duration = Duration::from_secs(60);
/// Untaken bytes that are worth a closed connection.
const STALLED_BYTES: usize = 256 << 10;

/// The table of connections.
pub(super) struct Connections {
    pub(super) budgets: Budgets,
    pub(super) refusals: Arc<Refusals>,
    pub(super) moves: Moves,
    table: Mutex<Table>,
}

/// What all connections of a server hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) open: usize,
    /// Connections that have not finished their handshake.
    pub(super) handshakes: usize,
    /// Bytes of answers that clients have not taken yet.
    pub(super) answer_bytes: usize,
}

/// Why a client was trusted.
pub(super) struct Trust {
    pub(super) identity: Identity,
    pub(super) tls: Arc<TlsConfig>,
}

/// The place of a connection in the table, until it is dropped.
pub(super) struct Place {
    connections: Arc<Connections>,
    id: u64,
    address: Option<SocketAddr>,
    since: Instant,
    stage: Stage,
    /// Cancelled when an unfinished connection gives way.
    pub(super) evicted: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unfinished,
    Computing,
    Open,
}

impl Connections {
    pub(super) fn new(budgets: Budgets, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self {
            budgets,
            refusals,
            moves: Moves::default(),
            table: Mutex::default(),
        })
    }

    /// Open connections, unfinished ones included.
    pub(super) fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// What all connections hold now.
    pub(super) fn totals(&self) -> Totals {
        let table = self.table.lock();
        let held = |open: &Open| open.peer.connection.answers.held();
        Totals {
            open: table.open.len(),
            handshakes: table.unfinished.len() + table.computing,
            answer_bytes: table.open.values().map(held).sum(),
        }
    }

    /// Calls `f` for each open connection, with the name under which it is counted.
    pub(super) fn each(&self, mut f: impl FnMut(&str, &Connection)) {
        for open in self.table.lock().open.values() {
            f(&open.owner, &open.peer.connection);
        }
    }

    /// Gives a new connection a place. Another connection may have to give way.
    pub(super) fn enter(self: &Arc<Self>, address: Option<SocketAddr>) -> Place {
        let mut table = self.table.lock();
        let most = self.budgets.connections;
        let full = table.len() - table.ending() >= most;
        let (mut has_place, evicted) = (true, CancellationToken::new());
        let most_unfinished = (most / UNFINISHED_PART).max(UNFINISHED_MIN).min(most);
        if full || table.unfinished.len() >= most_unfinished {
            has_place = self.make_room(&mut table, full);
        }
        if !has_place {
            // Everybody else is busy.
            evicted.cancel();
            let peer = Peer {
                address,
                ..Peer::default()
            };
            self.refusals.note(Budget::Connections, &peer);
        }
        table.next += 1;
        let place = Place {
            connections: Arc::clone(self),
            id: table.next,
            address,
            since: Instant::now(),
            // Nobody has looked yet whether the client has said something.
            stage: if has_place { Stage::Computing } else { Stage::Unfinished },
            evicted,
        };
        table.computing += usize::from(has_place);
        place
    }

    /// Frees a place at once, for a listener that has no file descriptor left.
    pub(super) fn give_way(&self) {
        let mut table = self.table.lock();
        if table.ending() == 0 {
            self.make_room(&mut table, true);
        }
    }

    /// Ends the oldest handshake, or, if the table is `full`, the idlest connection when that never made an admitted call
    /// and is idle for longer than the oldest handshake has taken. Returns false if there is neither.
    fn make_room(&self, table: &mut Table, full: bool) -> bool {
        let oldest = table
            .unfinished
            .first_key_value()
            .map(|(_, unfinished)| unfinished.since);
        let idlest = full.then(|| table.idlest()).flatten();
        match idlest {
            Some(idle) if oldest.is_none_or(|oldest| !idle.admitted && idle.since < oldest) => {
                self.end(table, idle.id, Farewell::Room);
            }
            _ => {
                let Some((_, oldest)) = table.unfinished.pop_first() else {
                    return false;
                };
                oldest.evict.cancel();
                let peer = Peer {
                    address: oldest.address,
                    ..Peer::default()
                };
                self.refusals.note(Budget::Connections, &peer);
            }
        }
        true
    }

    /// Ends an open connection at once, because of a budget.
    fn end(&self, table: &mut Table, id: u64, why: Farewell) {
        let budget = match why {
            Farewell::Answers => Budget::Answers,
            Farewell::Certificate => Budget::Certificate,
            _ => Budget::Connections,
        };
        if let Some(peer) = table.end(id, why) {
            self.refusals.note(budget, peer);
        }
    }

    /// Whether a connection that is ended may wait for its client's first bytes, to say why. Few may: they hold descriptors
    /// that nobody counts.
    pub(super) fn has_patience(&self) -> bool {
        self.table.lock().ending() <= PATIENT_MAX
    }

    /// The number of the newest connection.
    pub(super) fn newest(&self) -> u64 {
        self.table.lock().next
    }

    /// Open connections up to the one with number `newest`.
    pub(super) fn count_until(&self, newest: u64) -> usize {
        self.table.lock().open.range(..=newest).count()
    }

    /// Asks the clients of connections up to `newest` to go on with other connections, until `keep` are left that were not
    /// asked. Returns how many were asked.
    pub(super) fn move_down_to(&self, newest: u64, keep: usize) -> usize {
        let table = self.table.lock();
        let open = table.open.range(..=newest).map(|(_, open)| &open.peer.connection);
        let staying: Vec<_> = open.filter(|connection| !connection.is_ending()).collect();
        let share = staying.len().saturating_sub(keep);
        staying
            .iter()
            .take(share)
            .for_each(|connection| connection.leave(Farewell::Stop));
        share
    }

    /// Closes all connections after their present calls.
    pub(super) fn close_all(&self) {
        for open in self.table.lock().open.values() {
            open.peer.connection.close(Farewell::Stop);
        }
    }

    /// Closes stalled connections, and connections whose certificate is no longer good. Never returns.
    pub(super) async fn watch_over(self: Arc<Self>) {
        let mut tick = tokio::time::interval(CHECK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for n in 1u32.. {
            tick.tick().await;
            self.end_stalled();
            if n.is_multiple_of(CERTIFICATES_EVERY) {
                self.end_untrusted(SystemTime::now()).await;
            }
        }
    }

    fn end_stalled(&self) {
        let mut stalled = vec![];
        let mut total = 0;
        let mut table = self.table.lock();
        for (id, open) in &table.open {
            let Stalled { held, since, slow } = open.peer.connection.answers.stalled();
            total += held;
            if held > STALLED_BYTES && !open.peer.connection.is_killed() {
                stalled.push((since, slow, *id));
            }
        }
        let pressure = total > self.budgets.long_answer_bytes / 2;
        for (since, slow, id) in stalled {
            if pressure && slow || since > STALLED {
                self.end(&mut table, id, Farewell::Answers);
            }
        }
    }

    async fn end_untrusted(&self, now: SystemTime) {
        let of = |(id, open): (&u64, &Open)| Some((Arc::clone(open.trust.as_ref()?), *id));
        let open: Vec<_> = self.table.lock().open.iter().filter_map(of).collect();
        let (mut pace, mut looked) = (Pace::default(), Instant::now());
        for (trust, id) in open {
            if !pace.step(|| trust.tls.still_trusts(&trust.identity, now)) {
                self.end(&mut self.table.lock(), id, Farewell::Certificate);
            }
            // To verify thousands of certificates again takes seconds.
            pace.rest().await;
            if looked.elapsed() > CHECK {
                self.end_stalled();
                looked = Instant::now();
            }
        }
    }
}

impl Place {
    fn unfinished(&self) -> Unfinished {
        Unfinished {
            address: self.address,
            since: self.since,
            evict: self.evicted.clone(),
        }
    }

    /// Notes that the client is waited for again.
    pub(super) fn waiting(&mut self) {
        let mut table = self.connections.table.lock();
        if self.stage == Stage::Computing {
            table.computing -= 1;
            table.unfinished.insert(self.id, self.unfinished());
            drop(table);
            self.stage = Stage::Unfinished;
        }
    }

    /// Notes that the server is computing, and the client is not waited for.
    pub(super) fn computing(&mut self) {
        let mut table = self.connections.table.lock();
        if self.stage == Stage::Unfinished && table.unfinished.remove(&self.id).is_some() {
            table.computing += 1;
            self.stage = Stage::Computing;
        }
    }

    /// Notes that the handshake succeeded.
    pub(super) fn opened(&mut self, peer: Peer, trust: Option<Trust>) {
        let mut table = self.connections.table.lock();
        match self.stage {
            Stage::Unfinished => drop(table.unfinished.remove(&self.id)),
            Stage::Computing => table.computing -= 1,
            Stage::Open => {}
        }
        let most = self.connections.budgets.connections.div_ceil(4) * 3;
        let idlest = table.open(self.id, peer, trust.map(Arc::new), most);
        if let Some(id) = idlest {
            // The last quarter is for other users.
            self.connections.end(&mut table, id, Farewell::Share);
        }
        self.stage = Stage::Open;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock();
        match self.stage {
            Stage::Unfinished => drop(table.unfinished.remove(&self.id)),
            Stage::Computing => table.computing -= 1,
            Stage::Open => table.close(self.id),
        }
    }
}

/// How long a connection may stay without calls, from its idle state.
pub(super) fn idle_deadline(budgets: &Budgets, idle: Idle) -> Option<Instant> {
    match idle {
        Idle::Busy => None,
        Idle::Since {
            since, called: true, ..
        } => Some(since + budgets.idle_timeout),
        Idle::Since {
            since, called: false, ..
        } => Some(since + budgets.first_call_timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connection::{Length, SLOW_AFTER};

    fn connections(max: usize) -> Arc<Connections> {
        let budgets = Budgets {
            connections: max,
            ..Budgets::default()
        };
        Connections::new(budgets, Arc::default())
    }

    fn open(place: &mut Place) -> Peer {
        let peer = Peer::default();
        place.opened(peer.clone(), None);
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_gives_up_the_oldest_handshake_and_then_the_idlest_connection() {
        let table = connections(3);
        let mut places: Vec<_> = (0..3).map(|_| table.enter(None)).collect();
        let peers: Vec<_> = places.iter_mut().take(2).map(open).collect();
        places[2].waiting();
        let fourth = table.enter(None);
        assert!(places[2].evicted.is_cancelled() && !fourth.evicted.is_cancelled());
        let mut fourth = fourth;
        drop(places.pop());
        let fourth_peer = open(&mut fourth);
        peers[0].connection.admitted();
        let busy = peers[0].connection.begin_call();
        tokio::time::advance(Duration::from_secs(1)).await;
        let fifth = table.enter(None);
        let killed = |peer: &Peer| peer.connection.is_killed();
        assert!(!killed(&peers[0]) && killed(&peers[1]) && !killed(&fourth_peer));
        fourth_peer.connection.answers.hold(7, Length::Usual);
        let totals = Totals {
            open: 3,
            handshakes: 1,
            answer_bytes: 7,
        };
        assert_eq!(table.totals(), totals);
        drop((busy, fifth, places, fourth));
        assert_eq!(table.len(), 0);
    }

    #[tokio::test]
    async fn connections_that_arrive_together_do_not_drive_each_other_out() {
        let table = connections(4 * UNFINISHED_MIN);
        let mut places: Vec<_> = (0..2 * UNFINISHED_MIN).map(|_| table.enter(None)).collect();
        assert!(places.iter().all(|place| !place.evicted.is_cancelled()));
        places.iter_mut().take(UNFINISHED_MIN).for_each(Place::waiting);
        drop(table.enter(None));
        let evicted = places.iter().filter(|place| place.evicted.is_cancelled()).count();
        assert_eq!(evicted, 1, "so many clients at a time may be waited for");
    }

    #[tokio::test]
    async fn one_user_cannot_have_all_connections() {
        let table = connections(8);
        let mut places: Vec<_> = (0..8).map(|_| table.enter(None)).collect();
        let mut of = |name: &str, place: usize| {
            let peer = Peer {
                common_name: Some(name.into()),
                ..Peer::default()
            };
            peer.connection.admitted();
            places[place].opened(peer.clone(), None);
            peer
        };
        let many: Vec<_> = (0..7).map(|place| of("many", place)).collect();
        let ended: Vec<_> = many.iter().map(|peer| peer.connection.is_killed()).collect();
        assert_eq!(ended, [true, false, false, false, false, false, false], "the idlest");
        assert!(!of("one", 7).connection.is_killed());
        drop(places);
        assert_eq!(table.table.lock().owners(), 0);
    }

    #[tokio::test]
    async fn a_new_connection_has_no_place_while_all_others_are_busy() {
        let table = connections(1);
        let mut first = table.enter(None);
        let peer = open(&mut first);
        peer.connection.admitted();
        let busy = peer.connection.begin_call();
        assert!(table.enter(None).evicted.is_cancelled());
        drop(busy);
        assert!(!table.enter(None).evicted.is_cancelled() && peer.connection.is_killed());
    }

    #[tokio::test(start_paused = true)]
    async fn only_clients_that_take_nothing_lose_their_connection() {
        let table = connections(10);
        let mut places = [table.enter(None), table.enter(None)];
        let [stalled, slow] = places.each_mut().map(open);
        stalled.connection.answers.hold(2 * STALLED_BYTES, Length::Usual);
        slow.connection.answers.hold(3 * STALLED_BYTES, Length::Long);
        tokio::time::advance(STALLED).await;
        slow.connection.answers.release(STALLED_BYTES, Length::Long);
        tokio::time::advance(Duration::from_secs(1)).await;
        table.end_stalled();
        assert!(stalled.connection.is_killed() && !slow.connection.is_killed());
        slow.connection
            .answers
            .hold(table.budgets.long_answer_bytes, Length::Long);
        table.end_stalled();
        assert!(!slow.connection.is_killed(), "the client had no time yet");
        tokio::time::advance(SLOW_AFTER).await;
        slow.connection.answers.release(1, Length::Long);
        table.end_stalled();
        assert!(
            slow.connection.is_killed(),
            "a byte is no progress while memory is scarce"
        );
    }
}
