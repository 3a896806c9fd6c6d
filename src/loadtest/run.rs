//! Leads a run through its phases: fill, connect, live with its storms, verify, clean up.

mod slow;

use super::agent::{Agent, Reads};
use super::dial::{Dialer, Options, User};
use super::error::Error;
use super::lane::Lane;
use super::outcome::{Outcome, live};
use super::plan::{Plan, Prefix, SlowReadersAt};
use super::process::Server;
use super::removal::Removal;
use super::sampler::{Sampler, Unit};
use super::shared::{Phase, Shared, Written};
use super::survey::{refused, survey};
use super::tally::Tally;
use super::verify::State;
use super::writer::Writer;
use crate::kvstore::config::ClientConfig;
use crate::util::descriptors;
use crate::util::lifecycle::Lifecycle;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// How often the leader of the run looks whether a phase is over.
const LOOK: Duration = Duration::from_millis(50);
/// Descriptors for anything but connections.
const OTHER_FILES: u64 = 64;
/// The time after which writers that write nothing give up.
const STUCK: Duration = Duration::from_secs(30);
/// Limit for the last answers of writers and agents.
const LAST: Duration = Duration::from_secs(90);
/// The same, once the operator has stopped the run.
const HURRY: Duration = Duration::from_millis(500);

/// What a run is doing, for a progress bar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub phase: &'static str,
    pub done: u64,
    pub total: u64,
    pub detail: String,
}

/// The store to test.
pub struct Target {
    pub config: ClientConfig,
    /// The users that agents are spread over; none for the one of `config`.
    pub users: Vec<User>,
    /// The server's process; found by its port if it is not known.
    pub pid: Option<u32>,
}

/// A run under way.
struct Leader<'a> {
    shared: Arc<Shared>,
    sampler: Arc<Sampler>,
    phase: watch::Sender<Phase>,
    progress: &'a watch::Sender<Progress>,
    life: &'a Lifecycle,
    lanes: Vec<Arc<Mutex<Lane>>>,
    leases: Arc<Mutex<Vec<i64>>>,
    outcome: Outcome,
}

/// Runs a load test. Stopping `life` ends it early, but not without cleaning up.
pub async fn run(
    mut plan: Plan,
    target: &Target,
    progress: &watch::Sender<Progress>,
    life: &Lifecycle,
) -> Result<Outcome, Error> {
    plan.check()?;
    enough_files(&plan)?;
    let options = Options {
        sources: plan.source_addresses,
        aborted: plan.aborted_handshakes,
        rate: plan.connect_rate,
    };
    let first = async {
        let dialer = Dialer::new(&target.config, options, &target.users).await?;
        let store = survey(&mut plan, &dialer).await?;
        Ok::<_, Error>((dialer, store))
    };
    let (dialer, store) = tokio::select! {
        first = first => first?,
        () = life.stop_token().cancelled() => return Err(Error::Interrupted),
    };
    let server = Server::find(target.pid, dialer.addresses().collect())?;
    let lanes = if plan.read_only { vec![] } else { lanes(&plan) };
    let shared = Arc::new(Shared {
        tally: Tally::new(lanes.len()),
        dialer,
        plan,
    });
    let sampler = Sampler::new(&shared, server);
    life.spawn_part("samples", Arc::clone(&sampler).run());
    let mut outcome = Outcome::new(&shared.plan, &target.config.endpoints);
    (outcome.store, outcome.is_server_used) = (store, sampler.is_server_used());
    let leader = Leader {
        outcome,
        phase: watch::Sender::new(Phase::Fill),
        leases: Arc::default(),
        shared,
        sampler,
        progress,
        life,
        lanes,
    };
    leader.lead().await
}

/// Fails if the limit of open files is too low for the connections.
fn enough_files(plan: &Plan) -> Result<(), Error> {
    let needed = (plan.connections() + plan.slow_readers + plan.writers) as u64 + OTHER_FILES;
    let limit = descriptors::raise_limit();
    if needed <= limit {
        return Ok(());
    }
    Err(Error::Plan(format!(
        "{} connections need {needed} open files, and the limit is {limit}: raise the limit (ulimit -n {needed}), or lower \
         --agents",
        plan.connections()
    )))
}

/// The lanes of all prefixes, with all their keys to be written.
fn lanes(plan: &Plan) -> Vec<Arc<Mutex<Lane>>> {
    let each = plan.lanes() as u32;
    let of = |prefix: usize| {
        let keys = plan.keys_of(prefix % plan.scopes());
        (0..each).map(move |lane| {
            let keys = keys / each + u32::from(lane < keys % each);
            Arc::new(Mutex::new(Lane::new(prefix, lane as u16, keys)))
        })
    };
    (0..plan.prefixes()).flat_map(of).collect()
}

impl Leader<'_> {
    async fn lead(mut self) -> Result<Outcome, Error> {
        let done = self.phases().await;
        self.phase.send_replace(Phase::End);
        self.clean_up().await;
        done?;
        let samples = self.sampler.take();
        (self.outcome.seconds, self.outcome.histograms) = (samples.seconds, samples.histograms);
        self.outcome.marks = samples.marks;
        self.outcome.interrupted = self.is_stopped();
        self.outcome.close(&self.shared.tally);
        Ok(self.outcome)
    }

    fn is_stopped(&self) -> bool {
        self.life.stop_token().is_cancelled()
    }

    async fn phases(&mut self) -> Result<(), Error> {
        let writers = self.fill().await?;
        if self.is_stopped() {
            return Ok(());
        }
        let agents = self.connect().await?;
        if !self.is_stopped() {
            self.live().await;
        }
        self.verify(writers, agents).await;
        Ok(())
    }

    fn tell(&self, phase: &'static str, done: u64, total: u64, detail: impl FnOnce() -> String) {
        self.progress.send_if_modified(|progress| {
            let is_new = (progress.phase, progress.done, progress.total) != (phase, done, total);
            if is_new {
                *progress = Progress {
                    phase,
                    done,
                    total,
                    detail: detail(),
                };
            }
            is_new
        });
    }

    /// Fails if the store has refused the client, with what to do.
    fn refused(&self) -> Result<(), Error> {
        match self.shared.tally.refusal() {
            Some(refusal) => Err(refused(&refusal)),
            None => Ok(()),
        }
    }

    /// Starts the writers and waits until all keys are written. The answer ends with the last writer.
    async fn fill(&mut self) -> Result<mpsc::Receiver<()>, Error> {
        let (alive, ended) = mpsc::channel(1);
        if self.shared.plan.read_only {
            return Ok(ended);
        }
        self.sampler.mark("fill");
        let begun = self.sampler.begin();
        let (count, total) = (self.shared.plan.writers, self.shared.plan.total_keys());
        let filled = Arc::new(watch::Sender::new(0));
        for number in 0..count {
            let phase = self.phase.subscribe();
            let writer = Writer::new(&self.shared, number, &self.lanes, &self.leases, phase, &filled);
            let alive = alive.clone();
            self.life.spawn_part("writer", async move {
                writer.run().await;
                drop(alive);
            });
        }
        let mut last = (0, Instant::now());
        while *filled.borrow() < count && !self.is_stopped() {
            self.refused()?;
            let written = self.shared.tally.written.get();
            if written != last.0 {
                last = (written, Instant::now());
            } else if last.1.elapsed() > STUCK {
                return Err(self.stuck(written, total));
            }
            self.tell("writing keys", written.min(total), total, String::new);
            sleep(LOOK).await;
        }
        self.outcome.phases.push(self.sampler.end(&begun, "fill", Unit::Key));
        Ok(ended)
    }

    /// The error of writers that get no further.
    fn stuck(&self, written: u64, total: u64) -> Error {
        let errors = self.shared.tally.errors();
        let most = errors.iter().max_by_key(|(_, count)| **count);
        let why = most.map_or_else(String::new, |(error, count)| format!(" ({count} × {error})"));
        Error::Plan(format!(
            "{written} of {total} keys were written, and none in the last {} s{why}: read the log of the store",
            STUCK.as_secs()
        ))
    }

    /// Starts the agents and waits until all of them are in sync.
    async fn connect(&mut self) -> Result<mpsc::Receiver<()>, Error> {
        self.phase.send_replace(Phase::Connect);
        self.sampler.mark("connect");
        let begun = self.sampler.begin();
        let (alive, ended) = mpsc::channel(1);
        let plan = &self.shared.plan;
        let connections = plan.connections();
        let slow = match plan.slow_readers_at {
            SlowReadersAt::Start => plan.slow_readers,
            SlowReadersAt::Middle => 0,
        };
        self.spawn(0..connections, Reads::Always, &self.phase, &alive);
        self.spawn(connections..connections + slow, Reads::UntilInSync, &self.phase, &alive);
        drop(alive);
        self.in_sync("connecting", 0).await?;
        self.outcome
            .phases
            .push(self.sampler.end(&begun, "connect", Unit::Connection));
        Ok(ended)
    }

    /// Starts agents with these numbers, which `phase` leads. `alive` is dropped with the last of them.
    fn spawn(&self, numbers: Range<usize>, reads: Reads, phase: &watch::Sender<Phase>, alive: &mpsc::Sender<()>) {
        let plan = &self.shared.plan;
        let watched: Vec<Arc<[Prefix]>> = (0..plan.clusters).map(|c| plan.watched(c).into()).collect();
        for number in numbers {
            let watched = Arc::clone(&watched[number % watched.len()]);
            let agent = Agent::new(&self.shared, number, watched, phase.subscribe(), reads);
            let alive = alive.clone();
            self.life.spawn_part("agent", async move {
                agent.run().await;
                drop(alive);
            });
        }
    }

    /// Waits until all agents are in sync, and as many as there are have been since `synced`; gives up after a long time.
    async fn in_sync(&self, what: &'static str, synced: u64) -> Result<(), Error> {
        let (plan, tally) = (&self.shared.plan, &self.shared.tally);
        let total = plan.connections() as u64;
        let limit = plan.sync_limit();
        let began = Instant::now();
        loop {
            let now = live(tally).max(0) as u64;
            if now >= total && tally.synced.get() >= synced + total {
                return Ok(());
            }
            if now == 0 && synced == 0 {
                self.refused()?;
            }
            if self.is_stopped() {
                return Ok(());
            }
            if began.elapsed() > limit {
                tally.error(&format!(
                    "{} connections were not in sync after {} s (--sync-timeout)",
                    total - now,
                    limit.as_secs()
                ));
                return Ok(());
            }
            self.tell(what, now.min(total), total, String::new);
            sleep(LOOK).await;
        }
    }

    /// Lets writers change keys, with storms in between.
    async fn live(&mut self) {
        let begun = self.sampler.begin();
        let (duration, storms, interval) = {
            let plan = &self.shared.plan;
            (plan.duration, plan.storms, plan.storm_interval)
        };
        self.phase.send_replace(Phase::Live);
        self.sampler.mark("live");
        let began = Instant::now();
        let mut compared = self.compared();
        let mut number = 0;
        while began.elapsed() < duration && !self.is_stopped() {
            if number < storms && began.elapsed() >= interval * (number + 1) {
                number += 1;
                self.storm(number).await;
            }
            self.compare(&mut compared, began.elapsed()).await;
            let tally = &self.shared.tally;
            let detail = || format!("{} connections, {} events received", live(tally), tally.delivered.get());
            let done = began.elapsed().min(duration).as_secs();
            self.tell("watching", done, duration.as_secs(), detail);
            sleep(LOOK).await;
        }
        self.end_comparison(compared).await;
        self.outcome.planned_changes = self.shared.plan.planned_changes(began.elapsed());
        self.outcome.phases.push(self.sampler.end(&begun, "live", Unit::Event));
    }

    async fn storm(&mut self, number: u32) {
        let begun = self.sampler.begin();
        let synced = self.shared.tally.synced.get();
        let began = Instant::now();
        self.sampler.mark(format!("storm {number}"));
        self.phase.send_replace(Phase::Storm { number, began });
        // Agents need a moment to notice; whatever fails is among the errors.
        let _ = self.in_sync("reconnect storm", synced).await;
        let name = format!("storm {number}");
        self.outcome
            .phases
            .push(self.sampler.end(&begun, name, Unit::Connection));
    }

    /// Ends the writers, and lets the agents compare.
    async fn verify(&mut self, mut writers: mpsc::Receiver<()>, mut agents: mpsc::Receiver<()>) {
        self.phase.send_replace(Phase::Quiet);
        self.sampler.mark("end of changes");
        self.tell("last events", 0, 0, String::new);
        self.ended(&mut writers, LAST).await;
        let plan = &self.shared.plan;
        let mut states = vec![];
        if !plan.read_only {
            let empty = State {
                lanes: vec![0; plan.lanes()],
                ..State::default()
            };
            states = vec![Some(empty); plan.prefixes()];
            for lane in &self.lanes {
                let lane = lane.lock();
                let state = &mut states[lane.prefix];
                match lane.is_known() {
                    true => state.iter_mut().for_each(|state| lane.add_to(state)),
                    false => *state = None,
                }
            }
            let unanswered = states.iter().filter(|state| state.is_none()).count();
            self.shared.tally.unanswered.add(unanswered as u64);
        }
        let settle = if self.is_stopped() { HURRY } else { plan.settle };
        let deadline = Instant::now() + settle;
        self.phase
            .send_replace(Phase::Verify(Arc::new(Written { states, deadline })));
        self.ended(&mut agents, settle + LAST).await;
    }

    /// Waits for the end of all tasks of a kind, but not for long once the operator has stopped the run.
    async fn ended(&self, tasks: &mut mpsc::Receiver<()>, limit: Duration) {
        let hurried = async {
            self.life.stop_token().cancelled().await;
            sleep(2 * HURRY).await;
        };
        tokio::select! {
            _ = timeout(limit, tasks.recv()) => {}
            () = hurried => {}
        }
    }

    /// Removes what was written.
    async fn clean_up(&mut self) {
        let written = self.shared.plan.written();
        if written.is_empty() || self.leases.lock().is_empty() {
            return;
        }
        self.tell("cleaning up", 0, 0, String::new);
        let removal = Removal {
            dialer: &self.shared.dialer,
            written: &written,
            leases: self.leases.lock().clone(),
        };
        if let Err(error) = removal.run(self.life.stop_token()).await {
            self.shared.tally.error(&format!("cleaning up: {error}"));
            self.outcome.left_behind = written;
        }
    }
}
