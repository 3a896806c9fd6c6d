//! Leads a run through its phases: fill, connect, live with its storms, verify, clean up.

use super::agent::Agent;
use super::dial::{Dialer, Options};
use super::error::Error;
use super::lane::Lane;
use super::link::{self, Call, Link};
use super::outcome::{Outcome, live};
use super::plan::{Plan, Prefix};
use super::process;
use super::sampler::{Sampler, Unit};
use super::session::prefix_end;
use super::shared::{Phase, Shared, Written};
use super::tally::Tally;
use super::verify::State;
use super::writer::Writer;
use crate::kvstore::config::ClientConfig;
use crate::model::keys;
use crate::pb::etcdserverpb::{DeleteRangeRequest, LeaseRevokeRequest, RangeRequest};
use crate::util::descriptors;
use crate::util::lifecycle::Lifecycle;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// How often the leader of the run looks whether a phase is over.
const LOOK: Duration = Duration::from_millis(50);
/// Descriptors for anything but connections.
const OTHER_FILES: u64 = 64;
/// The time after which writers that write nothing give up.
const STUCK: Duration = Duration::from_secs(30);
/// The least time that all agents have for being in sync.
const SYNC_MIN: Duration = Duration::from_secs(120);
/// Time of one connection, if all of them are made at once.
const SYNC_EACH: Duration = Duration::from_millis(20);
/// Limit for the last answers of writers and agents.
const LAST: Duration = Duration::from_secs(90);

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
    let dialer = Dialer::new(&target.config, options).await?;
    find_clusters(&mut plan, &dialer).await?;
    let addresses: Vec<_> = dialer.addresses().collect();
    let server = target.pid.or_else(|| process::listening(&addresses));
    let lanes = if plan.read_only { vec![] } else { lanes(&plan) };
    let shared = Arc::new(Shared {
        tally: Tally::new(lanes.len()),
        dialer,
        plan,
    });
    if life.stop_token().is_cancelled() {
        return Err(Error::Interrupted);
    }
    let sampler = Sampler::new(&shared, server);
    life.spawn_part("samples", Arc::clone(&sampler).run());
    let leader = Leader {
        outcome: Outcome::new(&shared.plan, &target.config.endpoints),
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

/// Calls the store for the first time: may this client read? For a read-only run, finds the clusters to read.
async fn find_clusters(plan: &mut Plan, dialer: &Dialer) -> Result<(), Error> {
    let (mut link, mut connection) = dialer.connect(0).await?;
    let never = AtomicBool::new(false);
    let found = link::drive(&mut connection, &never, async {
        // Every user of a mesh may read the heartbeat.
        let request = RangeRequest {
            key: keys::HEARTBEAT.into(),
            ..RangeRequest::default()
        };
        link.call(Call::Range, &request, |_, _| Ok(())).await?;
        let mut names = vec![];
        if plan.read_only && plan.existing.is_empty() {
            let request = RangeRequest {
                key: keys::CLUSTER_CONFIGS.into(),
                range_end: prefix_end(keys::CLUSTER_CONFIGS.as_bytes()).into(),
                keys_only: true,
                ..RangeRequest::default()
            };
            let listed = link.call(Call::Range, &request, |tag, field| {
                if tag == 2 {
                    let key = super::wire::KeyValue::read(field.bytes())?.key;
                    let name = String::from_utf8_lossy(key).replacen(keys::CLUSTER_CONFIGS, "", 1);
                    names.push(name);
                }
                Ok(())
            });
            listed.await?;
        }
        Ok(names)
    });
    let mut names = found.await.map_err(|error| match error.is_lasting() {
        true => refused(&error.to_string()),
        false => error,
    })?;
    if !plan.read_only {
        return Ok(());
    }
    if plan.existing.is_empty() {
        names.truncate(plan.clusters);
        plan.existing = names;
    }
    if plan.existing.is_empty() {
        let text = "the store has no cluster configurations: name the clusters to read with --cluster, or let the test write \
                    (without --read-only)";
        return Err(Error::Plan(text.to_owned()));
    }
    plan.clusters = plan.existing.len();
    plan.check()
}

/// The error of a store that refuses the client, with what to do.
fn refused(refusal: &str) -> Error {
    let remedy = match refusal.contains("database space exceeded") {
        true => "the store has reached its quota: lower --keys or --value-bytes, or raise the quota",
        false => {
            "give the certificate of a user who may read and write the prefixes of the test (`loadtest scenarios` names \
             them), or use --read-only with a user who may read"
        }
    };
    Error::Plan(format!("the store refuses the test: {refusal}; {remedy}"))
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
        (self.outcome.seconds, self.outcome.histograms) = self.sampler.take();
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
        self.live().await;
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
            "{written} of {total} keys were written, and none in the last {} s{why}: is every endpoint one of the same store, and              reachable from here?",
            STUCK.as_secs()
        ))
    }

    /// Starts the agents and waits until all of them are in sync.
    async fn connect(&mut self) -> Result<mpsc::Receiver<()>, Error> {
        self.phase.send_replace(Phase::Connect);
        let begun = self.sampler.begin();
        let (alive, ended) = mpsc::channel(1);
        let plan = &self.shared.plan;
        let watched: Vec<Arc<[Prefix]>> = (0..plan.clusters).map(|c| plan.watched(c).into()).collect();
        let connections = plan.connections();
        for number in 0..connections + plan.slow_readers {
            let watched = Arc::clone(&watched[number % watched.len()]);
            let agent = Agent::new(
                &self.shared,
                number,
                watched,
                self.phase.subscribe(),
                number >= connections,
            );
            let alive = alive.clone();
            self.life.spawn_part("agent", async move {
                agent.run().await;
                drop(alive);
            });
        }
        self.in_sync("connecting", 0).await?;
        self.outcome
            .phases
            .push(self.sampler.end(&begun, "connect", Unit::Connection));
        Ok(ended)
    }

    /// Waits until all agents are in sync, and as many as there are have been since `synced`; gives up after a long time.
    async fn in_sync(&self, what: &'static str, synced: u64) -> Result<(), Error> {
        let (plan, tally) = (&self.shared.plan, &self.shared.tally);
        let total = plan.connections() as u64;
        let mut limit = SYNC_MIN.max(SYNC_EACH * u32::try_from(total).unwrap_or(u32::MAX));
        if plan.connect_rate > 0.0 {
            limit += Duration::from_secs_f64(total as f64 / plan.connect_rate);
        }
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
                    "{} connections were not in sync after {} s",
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
        let began = Instant::now();
        let mut number = 0;
        while began.elapsed() < duration && !self.is_stopped() {
            if number < storms && began.elapsed() >= interval * (number + 1) {
                number += 1;
                self.storm(number).await;
            }
            let tally = &self.shared.tally;
            let detail = || format!("{} connections, {} events received", live(tally), tally.delivered.get());
            let done = began.elapsed().min(duration).as_secs();
            self.tell("watching", done, duration.as_secs(), detail);
            sleep(LOOK).await;
        }
        self.outcome.phases.push(self.sampler.end(&begun, "live", Unit::Event));
    }

    async fn storm(&mut self, number: u32) {
        let begun = self.sampler.begin();
        let synced = self.shared.tally.synced.get();
        let began = Instant::now();
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
        self.tell("last events", 0, 0, String::new);
        let _ = timeout(LAST, writers.recv()).await;
        let plan = &self.shared.plan;
        let mut states = vec![];
        if !plan.read_only {
            let empty = State {
                lanes: vec![0; plan.lanes()],
                ..State::default()
            };
            states = vec![empty; plan.prefixes()];
            for lane in &self.lanes {
                let lane = lane.lock();
                lane.add_to(&mut states[lane.prefix]);
            }
        }
        let deadline = Instant::now() + plan.settle;
        self.phase
            .send_replace(Phase::Verify(Arc::new(Written { states, deadline })));
        let _ = timeout(plan.settle + LAST, agents.recv()).await;
    }

    /// Removes what was written.
    async fn clean_up(&mut self) {
        let written = self.shared.plan.written();
        if written.is_empty() || self.leases.lock().is_empty() {
            return;
        }
        self.tell("cleaning up", 0, 0, String::new);
        if let Err(error) = self.remove(&written).await {
            self.shared.tally.error(&format!("cleaning up: {error}"));
            self.outcome.left_behind = written;
        }
    }

    async fn remove(&self, written: &[String]) -> Result<(), Error> {
        let (link, mut connection) = self.shared.dialer.connect(0).await?;
        let leases = self.leases.lock().clone();
        link::drive(
            &mut connection,
            &AtomicBool::new(false),
            remove_all(link, written, leases),
        )
        .await
    }
}

async fn remove_all(mut link: Link, written: &[String], leases: Vec<i64>) -> Result<(), Error> {
    for prefix in written {
        let request = DeleteRangeRequest {
            key: prefix.clone().into(),
            range_end: match prefix.ends_with('/') {
                true => prefix_end(prefix.as_bytes()).into(),
                false => bytes::Bytes::new(),
            },
            ..DeleteRangeRequest::default()
        };
        link.call(Call::DeleteRange, &request, |_, _| Ok(())).await?;
    }
    for id in leases {
        let revoked = link
            .call(Call::LeaseRevoke, &LeaseRevokeRequest { id }, |_, _| Ok(()))
            .await;
        match revoked {
            // Leases of a store that has begun anew since.
            Err(error) if !error.is_lease_lost() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
