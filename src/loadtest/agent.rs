//! A simulated agent's connection to one remote cluster: it connects, lists, watches, and comes back after every loss.
//!
//! Lost connections are made again as grpc-go does, after a second and then ever later, and at the next endpoint, if there are
//! several: a Service leads elsewhere when a pod is gone. As in etcd's client, watches resume where they ended; a storm, a compacted revision and another cluster id make the agent list everything again.

use super::error::Error;
use super::histogram::Measure;
use super::plan::Prefix;
use super::shared::{Phase, Shared, Written};
use super::verify::{Follower, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The first wait after a lost connection, its factor and its limit, as in grpc-go.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_FACTOR: f64 = 1.6;
const BACKOFF_MAX: Duration = Duration::from_secs(120);

/// For how long an agent reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    Always,
    /// The agent stops reading once it is in sync.
    UntilInSync,
}

/// One connection of an agent.
pub struct Agent {
    pub(super) shared: Arc<Shared>,
    pub(super) number: usize,
    /// Connections that were lost or failed: the next one goes to the next endpoint.
    moves: usize,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) watched: Arc<[Prefix]>,
    pub(super) watches: Vec<Watching>,
    /// The cluster id of the first answer; 0 before.
    pub(super) cluster_id: u64,
    /// Whether the lists are complete, so that watches can resume.
    pub(super) is_listed: bool,
    /// Whether the present connection was made.
    is_connected: bool,
    is_live: bool,
    pub(super) reads: Reads,
    pub(super) has_stalled: bool,
    /// Whether the connection neither reads nor writes.
    pub(super) is_paused: Arc<AtomicBool>,
    /// When the present attempt to be in sync began.
    pub(super) began: Instant,
    /// When the agent was in sync last, if it is not now.
    lost: Option<Instant>,
    pub(super) last_beat: Option<Instant>,
    pub(super) last_ping: Option<Instant>,
    pub(super) verify: Option<Arc<Written>>,
    storm: u32,
}

/// A watch, and what it has received.
#[derive(Default)]
pub struct Watching {
    /// The id that the store has given; `None` before.
    pub id: Option<i64>,
    pub follower: Follower,
}

/// Why a session ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The run is over for this agent.
    Done,
    /// All connections are lost at once.
    Storm,
    /// Watches cannot continue: everything is listed again.
    Relist,
}

impl Agent {
    /// Connection `number`, to the cluster whose prefixes are `watched`.
    pub fn new(
        shared: &Arc<Shared>,
        number: usize,
        watched: Arc<[Prefix]>,
        phase: watch::Receiver<Phase>,
        reads: Reads,
    ) -> Self {
        let lanes = shared.plan.lanes();
        let watching = |prefix: &Prefix| Watching {
            id: None,
            follower: Follower::new(if matches!(prefix, Prefix::Scope { .. }) {
                lanes
            } else {
                0
            }),
        };
        Self {
            shared: Arc::clone(shared),
            number,
            moves: 0,
            phase,
            watches: watched.iter().map(watching).collect(),
            watched,
            cluster_id: 0,
            is_listed: false,
            is_connected: false,
            is_live: false,
            reads,
            has_stalled: false,
            is_paused: Arc::default(),
            began: Instant::now(),
            lost: None,
            last_beat: None,
            last_ping: None,
            verify: None,
            storm: 0,
        }
    }

    /// Runs until the end of the test.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            self.is_connected = false;
            let ended = self.session().await;
            let was_live = self.is_live;
            if was_live {
                self.out_of_sync();
                failures = 0;
            }
            match ended {
                Ok(Ended::Done) => return,
                Ok(Ended::Storm) => {
                    self.shared.tally.storm_closed.add(1);
                    self.forget();
                    if let Phase::Storm { began, .. } = *self.phase.borrow() {
                        self.lost = Some(began);
                    }
                    continue;
                }
                Ok(Ended::Relist) => self.forget(),
                Err(_) if self.has_stalled => {
                    self.shared.tally.stalled_closed.add(1);
                    return;
                }
                Err(error) => {
                    self.moves += 1;
                    let tally = &self.shared.tally;
                    let lost = if self.is_connected {
                        &tally.disconnects
                    } else {
                        &tally.failed_connects
                    };
                    lost.add(1);
                    tally.error(&error);
                    if error.is_lasting() {
                        self.shared.tally.refuse(&error);
                    }
                    if matches!(error, Error::Heartbeat(_)) {
                        self.forget();
                    }
                }
            }
            if self.back_off(failures).await {
                return;
            }
            failures += 1;
        }
    }

    /// Waits before the next attempt. Returns true if the test ends meanwhile.
    async fn back_off(&mut self, failures: i32) -> bool {
        let jitter = 0.8 + 0.4 * rand::random::<f64>();
        let wait = BACKOFF
            .mul_f64(BACKOFF_FACTOR.powi(failures.min(20)))
            .min(BACKOFF_MAX)
            .mul_f64(jitter);
        let until = Instant::now() + wait;
        loop {
            if self.is_over() {
                return true;
            }
            let deadline = self
                .verify
                .as_ref()
                .map_or(until, |written| written.deadline.min(until));
            tokio::select! {
                () = sleep_until(deadline) => if Instant::now() >= until { return self.is_over() },
                changed = self.phase.changed() => if changed.is_err() { return true },
            }
        }
    }

    /// Takes notice of the phase. Returns true if this agent, which is not connected, has nothing more to do.
    fn is_over(&mut self) -> bool {
        let (is_end, written) = match &*self.phase.borrow_and_update() {
            Phase::End => (true, None),
            Phase::Verify(written) => (false, Some(Arc::clone(written))),
            _ => (false, None),
        };
        self.verify = written.or(self.verify.take());
        let is_late = self
            .verify
            .as_ref()
            .is_some_and(|written| written.deadline <= Instant::now());
        if (is_end || is_late) && self.reads == Reads::Always {
            self.shared.tally.behind.add(1);
        }
        is_end || is_late
    }

    /// Forgets what was received, so that everything is listed again.
    pub(super) fn forget(&mut self) {
        (self.is_listed, self.cluster_id, self.last_beat) = (false, 0, None);
        for watch in &mut self.watches {
            watch.id = None;
            watch.follower.begin_list();
        }
    }

    /// One connection, from its first byte to its last.
    async fn session(&mut self) -> Result<Ended, Error> {
        let shared = Arc::clone(&self.shared);
        self.last_ping = None;
        let (link, mut connection, took) = shared.dialer.agent(self.number + self.moves).await?;
        self.is_connected = true;
        shared.tally.connects.add(1);
        shared.tally.record(self.number, Measure::Connect, took);
        self.began = Instant::now() - took;
        let paused = Arc::clone(&self.is_paused);
        connection.drive(&paused, self.work(link)).await
    }

    /// The agent is in sync: everything is listed and watched.
    pub(super) fn in_sync(&mut self) {
        let tally = &self.shared.tally;
        tally.synced.add(1);
        tally.record(self.number, Measure::Sync, self.began.elapsed());
        if let Some(lost) = self.lost.take() {
            tally.record(self.number, Measure::Recovery, lost.elapsed());
        }
        tally.live.fetch_add(1, Relaxed);
        (self.is_live, self.is_listed) = (true, true);
    }

    /// The connection is lost, or the watches on it.
    pub(super) fn out_of_sync(&mut self) {
        if std::mem::take(&mut self.is_live) {
            self.shared.tally.live.fetch_sub(1, Relaxed);
            self.lost = Some(Instant::now());
        }
        self.began = Instant::now();
    }

    /// Looks at a new phase; returns how the session ends, if it does.
    pub(super) fn led(&mut self) -> Option<Ended> {
        let phase = self.phase.borrow_and_update().clone();
        match phase {
            Phase::End => Some(Ended::Done),
            Phase::Storm { number, .. } if number > self.storm => {
                self.storm = number;
                Some(Ended::Storm)
            }
            Phase::Verify(written) => {
                self.verify = Some(written);
                self.verified(false)
            }
            _ => None,
        }
    }

    /// Compares with what was written, once everything has been received or time is `up`.
    pub(super) fn verified(&mut self, up: bool) -> Option<Ended> {
        let written = self.verify.clone()?;
        let scopes = self.watched.iter().zip(&mut self.watches);
        let mut pairs: Vec<(&State, &mut Follower)> = scopes
            .filter_map(|(prefix, watch)| match prefix {
                Prefix::Scope { number, .. } => Some((written.states.get(*number)?.as_ref()?, &mut watch.follower)),
                _ => None,
            })
            .collect();
        let has_all = pairs.iter().all(|(written, follower)| follower.has_all(written));
        if !has_all && !up {
            return None;
        }
        let tally = &self.shared.tally;
        pairs
            .iter_mut()
            .for_each(|(written, follower)| tally.find(follower.check(written)));
        if has_all { &tally.verified } else { &tally.behind }.add(1);
        Some(Ended::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvstore::config::ClientConfig;
    use crate::loadtest::dial::{Dialer, Options};
    use crate::loadtest::scenarios::Scenario;
    use crate::loadtest::tally::Tally;

    /// Tens of thousands of agents are simulated by one process. The limit is for builds without optimization.
    #[tokio::test]
    async fn the_task_of_an_agent_is_small() {
        let options = Options {
            sources: 0,
            aborted: true,
            rate: 0.0,
        };
        let plan = Scenario::Kvstoremesh250.plan();
        let watched: Arc<[Prefix]> = plan.watched(0).into();
        let shared = Arc::new(Shared {
            dialer: Dialer::new(&ClientConfig::address("127.0.0.1:1"), options, &[])
                .await
                .unwrap(),
            tally: Tally::new(0),
            plan,
        });
        let phase = watch::Sender::new(Phase::Live);
        let agent = Agent::new(&shared, 0, watched, phase.subscribe(), Reads::Always);
        let bytes = size_of_val(&agent.run());
        assert!((1000..9000).contains(&bytes), "{bytes} bytes");
    }
}
