//! Moves all clients to other servers before this one stops, so slowly that the others are not overrun.

use super::connections::Connections;
use super::moves::Why;
use std::time::Duration;
use tokio::time::Instant;

/// How often clients are moved before the stop.
const TICK: Duration = Duration::from_millis(100);
/// The longest time in which load balancers may forget this server before its clients are moved: a client that is moved earlier
/// comes back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);
/// The part of the time for leaving that this takes at most.
const FORGOTTEN_PART: u32 = 6;

impl Connections {
    /// Moves the clients of all present connections within `time`, evenly, after load balancers had time to forget this server.
    /// Later clients stay until the stop.
    pub(super) async fn drain(&self, time: Duration) {
        let (newest, end) = (self.newest(), Instant::now() + time);
        let connections = self.count_until(newest);
        tracing::info!(
            connections,
            secs = time.as_secs_f64(),
            "leaving: clients are asked to connect elsewhere, one after the other"
        );
        tokio::time::sleep(FORGOTTEN_AFTER.min(time / FORGOTTEN_PART)).await;
        let (whole, all) = (end.saturating_duration_since(Instant::now()), self.count_until(newest));
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let keep = (all as f64 * left.as_secs_f64() / whole.as_secs_f64().max(f64::EPSILON)) as usize;
            self.moves.note(Why::Stop, self.move_down_to(newest, keep));
            if left.is_zero() || self.count_until(newest) == 0 {
                break;
            }
            tokio::time::sleep(TICK.min(left)).await;
        }
        tracing::info!(left = self.count_until(newest), "leaving: all clients were asked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::budgets::Budgets;
    use crate::server::peer::Peer;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn clients_are_moved_evenly_once_this_server_is_forgotten() {
        let table = Connections::new(Budgets::default(), Arc::default());
        let open = || {
            let (mut place, peer) = (table.enter(None), Peer::default());
            place.opened(peer.clone(), None);
            (place, peer)
        };
        let mut places: Vec<_> = (0..100).map(|_| open()).collect();
        let (time, begun) = (Duration::from_secs(12), Instant::now());
        let drain = table.drain(time);
        tokio::pin!(drain);
        let mut later = None;
        let mut asked = vec![];
        loop {
            tokio::select! {
                biased;
                () = &mut drain => break,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            later.get_or_insert_with(open);
            asked.push(places.iter().filter(|(_, peer)| peer.connection.is_ending()).count());
        }
        let at = |secs: f64| asked[(secs * 2.0) as usize - 1];
        assert_eq!(at(1.5), 0, "{asked:?}");
        for (secs, wanted) in [(4.5, 25), (7.0, 50), (9.5, 75)] {
            assert!(at(secs).abs_diff(wanted) <= 3, "{asked:?}");
        }
        assert!(places.iter().all(|(_, peer)| peer.connection.is_ending()));
        assert!(
            later.is_some_and(|(_, peer)| !peer.connection.is_ending()),
            "it came later"
        );
        assert_eq!((begun.elapsed(), table.moves.count(Why::Stop)), (time, 100));
        // Nobody is left: nobody is waited for.
        places.clear();
        let begun = Instant::now();
        table.drain(time).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }
}
