//! A writer: it owns some lanes, writes all their keys once, and then changes them at its share of the rate. It has one
//! connection and one request at a time, so that the store commits the writes of a lane in their order.

use super::dial::Who;
use super::error::Error;
use super::histogram::Measure;
use super::lane::{Lane, Write};
use super::link::{Call, Link, NEVER_PAUSED};
use super::plan::Plan;
use super::shared::{Phase, Shared};
use super::tally::now_nanos;
use super::wire::Header;
use crate::model::keys;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RequestOp, TxnRequest,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};

/// The wait after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Attempts to end the last write.
const LAST_TRIES: u32 = 20;
/// How often the heartbeat is written, as in Cilium.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// What a writer does next.
enum Due {
    Nothing,
    /// A change, which was planned for this moment.
    Change(Instant),
    Burst,
    Bulk,
    Lease,
    Heartbeat,
}

/// One writer.
pub struct Writer {
    shared: Arc<Shared>,
    number: usize,
    /// Connections that were lost or failed: the next one goes to the next endpoint.
    moves: usize,
    phase: watch::Receiver<Phase>,
    lanes: Vec<Arc<Mutex<Lane>>>,
    /// The prefix of each lane.
    prefixes: Vec<String>,
    /// Leases of all writers, which the end of the run revokes.
    leases: Arc<Mutex<Vec<i64>>>,
    /// The lease of this writer's keys; 0 before it has one.
    lease: i64,
    /// The cluster id of the first answer; 0 before.
    cluster_id: u64,
    /// The lane that is written next.
    at: usize,
    /// The write whose answer is awaited. Without an answer exactly the same is written again.
    pending: Option<Pending>,
    /// Attempts at that write beyond the first.
    attempt: u16,
    renewed: Instant,
    changes: u32,
    is_filled: Arc<watch::Sender<usize>>,
    has_reported: bool,
    /// The moments at which this writer writes. They do not depend on connections, so that an outage is seen.
    times: Option<Times>,
    /// Whether changes have begun.
    has_begun: bool,
}

/// A write without an answer.
struct Pending {
    /// Its lane.
    at: usize,
    writes: Vec<Write>,
    /// When it was sent first.
    since: Instant,
}

/// The moments at which a writer writes.
struct Times {
    change: Option<Interval>,
    burst: Option<Interval>,
    bulk: Option<Interval>,
    lease: Interval,
    heartbeat: Option<Interval>,
}

impl Writer {
    /// Writer `number`, of the lanes whose numbers leave that rest. `is_filled` counts the writers whose keys are all written.
    pub fn new(
        shared: &Arc<Shared>,
        number: usize,
        lanes: &[Arc<Mutex<Lane>>],
        leases: &Arc<Mutex<Vec<i64>>>,
        phase: watch::Receiver<Phase>,
        is_filled: &Arc<watch::Sender<usize>>,
    ) -> Self {
        let plan = &shared.plan;
        let own = lanes.iter().skip(number).step_by(plan.writers).cloned();
        let lanes: Vec<_> = own.collect();
        let prefix = |lane: &Arc<Mutex<Lane>>| {
            let prefix = lane.lock().prefix;
            plan.prefix(prefix / plan.scopes(), prefix % plan.scopes())
        };
        Self {
            prefixes: lanes.iter().map(prefix).collect(),
            shared: Arc::clone(shared),
            number,
            moves: 0,
            phase,
            lanes,
            leases: Arc::clone(leases),
            lease: 0,
            cluster_id: 0,
            at: 0,
            pending: None,
            attempt: 0,
            renewed: Instant::now(),
            changes: 0,
            is_filled: Arc::clone(is_filled),
            has_reported: false,
            times: None,
            has_begun: false,
        }
    }

    /// Writes until the end of the test. A write whose answer was lost is repeated even then, because what is in the store
    /// must be known.
    pub async fn run(mut self) {
        let mut last_tries = 0;
        loop {
            match self.session().await {
                Ok(()) => return,
                Err(error) => {
                    self.moves += 1;
                    if error.is_lasting() {
                        self.shared.tally.refuse(&error);
                    }
                    self.shared.tally.error(&format!("writer: {error}"));
                    self.attempt = self.attempt.saturating_add(u16::from(self.pending.is_some()));
                    if error.is_lease_lost() {
                        self.lost();
                    }
                }
            }
            last_tries += u32::from(self.is_over());
            if last_tries > LAST_TRIES || (last_tries > 0 && self.pending.is_none()) {
                return;
            }
            sleep(RETRY).await;
        }
    }

    fn is_over(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Quiet | Phase::Verify(_) | Phase::End)
    }

    async fn session(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let (link, mut connection) = shared.dialer.connect(self.number + self.moves, Who::Writer).await?;
        connection.drive(&NEVER_PAUSED, self.work(link)).await
    }

    async fn work(&mut self, link: Link) -> Result<(), Error> {
        if self.lease == 0 {
            self.grant(&link).await?;
        }
        if let Some(pending) = self.pending.take() {
            self.write(&link, pending).await?;
        }
        self.fill(&link).await?;
        // What was due earlier fell into an outage.
        let resumed = Instant::now();
        loop {
            let is_live = matches!(*self.phase.borrow_and_update(), Phase::Live | Phase::Storm { .. });
            if self.is_over() {
                return Ok(());
            }
            if is_live && !std::mem::replace(&mut self.has_begun, true) {
                // Changes begin now, and do not make up for the time before.
                self.times = None;
            }
            let mut times = match self.times.take() {
                Some(times) => times,
                None => self.new_times(),
            };
            let due = tokio::select! {
                changed = self.phase.changed() => match changed {
                    Ok(()) => Due::Nothing,
                    Err(_) => return Ok(()),
                },
                at = tick(&mut times.change), if is_live => Due::Change(at),
                _ = tick(&mut times.burst), if is_live => Due::Burst,
                _ = tick(&mut times.bulk), if is_live => Due::Bulk,
                _ = times.lease.tick() => Due::Lease,
                _ = tick(&mut times.heartbeat) => Due::Heartbeat,
            };
            self.times = Some(times);
            self.act(&link, due, resumed).await?;
        }
    }

    /// Does what is due. What was due before `resumed` fell into an outage.
    async fn act(&mut self, link: &Link, due: Due, resumed: Instant) -> Result<(), Error> {
        match due {
            Due::Nothing => Ok(()),
            Due::Change(at) => {
                let tally = &self.shared.tally;
                tally.record(self.number, Measure::WriteDelay, at.elapsed());
                if at < resumed {
                    tally.skipped.add(1);
                    return Ok(());
                }
                self.change(link).await?;
                self.shared.tally.changes.add(1);
                Ok(())
            }
            Due::Burst => {
                for _ in 0..self.share(self.shared.plan.burst) {
                    self.change(link).await?;
                }
                Ok(())
            }
            Due::Bulk => self.rewrite(link).await,
            Due::Lease => self.keep_alive(link).await,
            Due::Heartbeat => self.beat(link).await,
        }
    }

    /// Writers that have lanes.
    fn busy(&self) -> u32 {
        let plan = &self.shared.plan;
        plan.writers.min(plan.prefixes() * plan.lanes()).max(1) as u32
    }

    /// This writer's share of `n` changes.
    fn share(&self, n: u32) -> u32 {
        let writers = self.busy();
        n / writers + u32::from((self.number as u32) < n % writers)
    }

    fn new_times(&self) -> Times {
        let plan = &self.shared.plan;
        let now = Instant::now();
        let every = |period: Duration, first: Duration| {
            let mut interval = interval_at(now + first, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
            interval
        };
        // A writer without lanes would have nothing to change.
        let change = (plan.rate > 0.0 && !self.lanes.is_empty()).then(|| {
            let busy = f64::from(self.busy());
            let seconds = (busy / plan.rate).min(86_400.0);
            let first = seconds * (self.number + 1) as f64 / busy;
            let mut changes = every(Duration::from_secs_f64(seconds), Duration::from_secs_f64(first));
            // No change is left out because an earlier one was slow.
            changes.set_missed_tick_behavior(MissedTickBehavior::Burst);
            changes
        });
        let repeated = |is_wanted: bool, period: Duration| {
            (is_wanted && !period.is_zero() && !self.lanes.is_empty()).then(|| every(period, period))
        };
        let beats = plan.heartbeat && self.number == 0;
        Times {
            change,
            burst: repeated(plan.burst > 0, plan.burst_interval),
            bulk: repeated(true, plan.bulk_interval),
            lease: every(plan.lease_ttl / 3, plan.lease_ttl / 3),
            heartbeat: beats.then(|| every(HEARTBEAT, Duration::ZERO)),
        }
    }

    /// Notices that the store has lost its data: another cluster id.
    fn seen(&mut self, header: Header) -> Result<(), Error> {
        if self.cluster_id == 0 {
            self.cluster_id = header.cluster_id;
        }
        if self.cluster_id != header.cluster_id {
            self.cluster_id = header.cluster_id;
            self.lost();
            return Err(Error::OtherStore);
        }
        Ok(())
    }

    /// The store has none of the keys any more.
    fn lost(&mut self) {
        self.lanes.iter().for_each(|lane| lane.lock().lost());
        (self.pending, self.lease, self.attempt) = (None, 0, 0);
    }

    async fn grant(&mut self, link: &Link) -> Result<(), Error> {
        let request = LeaseGrantRequest {
            ttl: i64::try_from(self.shared.plan.lease_ttl.as_secs()).unwrap_or(600),
            id: 0,
        };
        let mut lease = 0;
        let granted = link.call(Call::LeaseGrant, &request, |tag, field| {
            if tag == 2 {
                lease = field.signed();
            }
            Ok(())
        });
        let header = granted.await?;
        self.leases.lock().push(lease);
        self.seen(header)?;
        (self.lease, self.renewed) = (lease, Instant::now());
        Ok(())
    }

    /// Renews the lease by a stream of one message.
    async fn keep_alive(&mut self, link: &Link) -> Result<(), Error> {
        let request = LeaseKeepAliveRequest { id: self.lease };
        let mut left = 0;
        let renewed = link.call(Call::LeaseKeepAlive, &request, |tag, field| {
            if tag == 3 {
                left = field.signed();
            }
            Ok(())
        });
        let header = renewed.await?;
        self.seen(header)?;
        if left <= 0 {
            self.lost();
            return Err(Error::LeaseExpired);
        }
        self.renewed = Instant::now();
        Ok(())
    }

    async fn beat(&mut self, link: &Link) -> Result<(), Error> {
        let request = put(keys::HEARTBEAT.to_owned(), keys::timestamp().into_bytes(), self.lease);
        let header = link.call(Call::Put, &request, |_, _| Ok(())).await?;
        self.seen(header)
    }

    /// Writes all keys that the store does not have.
    async fn fill(&mut self, link: &Link) -> Result<(), Error> {
        for at in 0..self.lanes.len() {
            loop {
                if self.is_over() {
                    return Ok(());
                }
                let writes = self.lanes[at].lock().fill(self.shared.plan.batch);
                if writes.is_empty() {
                    break;
                }
                self.write(link, Pending::now(at, writes)).await?;
            }
        }
        if !std::mem::replace(&mut self.has_reported, true) {
            self.is_filled.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Changes a key of the next lane.
    async fn change(&mut self, link: &Link) -> Result<(), Error> {
        self.at = (self.at + 1) % self.lanes.len();
        self.changes = self.changes.wrapping_add(1);
        let deletes = self.shared.plan.deletes;
        // Deletions are spread evenly: 10 % is every tenth change.
        let delete = (u64::from(self.changes) * u64::from(deletes)) % 100 < u64::from(deletes);
        let writes = self.lanes[self.at].lock().change(1, delete);
        match writes.is_empty() {
            true => Ok(()),
            false => self.write(link, Pending::now(self.at, writes)).await,
        }
    }

    /// Writes all keys of the own lanes of one cluster again.
    async fn rewrite(&mut self, link: &Link) -> Result<(), Error> {
        let (plan, first) = (&self.shared.plan, self.lanes[self.at].lock().prefix);
        let (scopes, batch) = (plan.scopes(), plan.batch);
        let own: Vec<_> = (0..self.lanes.len())
            .filter(|at| self.lanes[*at].lock().prefix / scopes == first / scopes)
            .collect();
        for at in own {
            let mut left = self.lanes[at].lock().len();
            while left > 0 && !self.is_over() {
                let writes = self.lanes[at].lock().change(batch.min(left), false);
                left -= writes.len().max(1);
                if !writes.is_empty() {
                    self.write(link, Pending::now(at, writes)).await?;
                }
            }
        }
        Ok(())
    }

    /// Writes to a lane, in one request.
    async fn write(&mut self, link: &Link, pending: Pending) -> Result<(), Error> {
        let Pending { at, since, ref writes } = pending;
        let writes = writes.clone();
        self.pending = Some(pending);
        if self.renewed.elapsed() > self.shared.plan.lease_ttl / 3 {
            self.keep_alive(link).await?;
        }
        let (plan, prefix) = (&self.shared.plan, &self.prefixes[at]);
        let mut operations = Vec::with_capacity(writes.len() + 1);
        let lane = Arc::clone(&self.lanes[at]);
        let (number, ring) = {
            let mut lane = lane.lock();
            lane.sent();
            let nanos = now_nanos();
            for write in &writes {
                let value = lane.stamp(write, plan.run, self.attempt, nanos).value(plan.value_bytes);
                let key = Plan::key(prefix, lane.number, write.key);
                operations.push(Request::RequestPut(put(key, value, self.lease)));
                if let Some((deleted, _)) = write.deletes {
                    operations.push(Request::RequestDeleteRange(DeleteRangeRequest {
                        key: Plan::key(prefix, lane.number, deleted).into(),
                        ..DeleteRangeRequest::default()
                    }));
                }
            }
            (self.number, lane.prefix * plan.lanes() + usize::from(lane.number))
        };
        let header = match operations.pop() {
            Some(Request::RequestPut(put)) if operations.is_empty() => {
                link.call(Call::Put, &put, |_, _| Ok(())).await?
            }
            last => {
                operations.extend(last);
                let request = TxnRequest {
                    success: operations
                        .into_iter()
                        .map(|request| RequestOp { request: Some(request) })
                        .collect(),
                    ..TxnRequest::default()
                };
                link.call(Call::Txn, &request, |_, _| Ok(())).await?
            }
        };
        self.seen(header)?;
        self.pending = None;
        let tally = &self.shared.tally;
        writes.iter().for_each(|write| tally.answered(ring, write.sequence));
        let measure = if writes.len() > 1 { Measure::Batch } else { Measure::Put };
        tally.record(number, measure, since.elapsed());
        tally.written.add(writes.len() as u64);
        if std::mem::take(&mut self.attempt) > 0 {
            tally.rewritten.add(1);
        }
        lane.lock().written(&writes);
        Ok(())
    }
}

impl Pending {
    /// A write that is sent now.
    fn now(at: usize, writes: Vec<Write>) -> Self {
        Self {
            at,
            writes,
            since: Instant::now(),
        }
    }
}

fn put(key: String, value: Vec<u8>, lease: i64) -> PutRequest {
    PutRequest {
        key: Bytes::from(key),
        value: Bytes::from(value),
        lease,
        ..PutRequest::default()
    }
}

/// The moment that was due, once it has come.
async fn tick(interval: &mut Option<Interval>) -> Instant {
    match interval {
        Some(interval) => interval.tick().await,
        None => std::future::pending().await,
    }
}
