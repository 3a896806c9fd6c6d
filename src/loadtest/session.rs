//! The calls of an agent on one connection, in the order of Cilium's agents: the heartbeat and the cluster configuration,
//! then for each prefix a list in pages pinned to one revision, and a watch from the next revision on. All watches are on
//! one stream, and each is created after the one before is confirmed.

use super::agent::{Agent, Ended, Reads};
use super::error::Error;
use super::histogram::Measure;
use super::link::{Call, Exchange, Link};
use super::plan::Prefix;
use super::shared::Phase;
use super::stamp::Stamp;
use super::tally::{SinceAnswer, Tally, now_nanos};
use super::verify::{Findings, Follower};
use super::wire::{Event, Field, Header, KeyValue, frame, shown};
use crate::model::keys;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use bytes::Bytes;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{Instant, interval_at, sleep_until, timeout};

/// Without a heartbeat for this long, an agent gives its connection up.
const HEARTBEAT_MAX: Duration = Duration::from_secs(120);
/// Limit for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a reader that stopped reading looks whether the store has disconnected it: at the end, and in the middle of a run,
/// when others are measured afterwards.
const STALL_CHECK: Duration = Duration::from_secs(5);
const STALL_LOOK: Duration = Duration::from_secs(1);
/// Limit for the confirmation of a watch.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a message of the watch stream was, beside its events.
#[derive(Default)]
struct Received {
    header: Option<Header>,
    id: i64,
    created: bool,
    canceled: bool,
    compacted: i64,
    reason: String,
    events: u64,
    foreign: u64,
    findings: Findings,
    /// Nanoseconds since each write was sent.
    since_sent: Vec<u64>,
    /// Nanoseconds since each write was answered, or sent if the event came before the answer.
    since_commit: Vec<u64>,
    /// Events that came before the answer to their write.
    early: u64,
    beats: Vec<(i64, Option<Duration>)>,
}

impl Agent {
    /// Everything that happens on one connection.
    pub(super) async fn work(&mut self, link: Link) -> Result<Ended, Error> {
        loop {
            let ended = match self.follow(&link).await {
                Err(error) if error.is_out_of_range() => Ended::Relist,
                ended => ended?,
            };
            if ended != Ended::Relist {
                return Ok(ended);
            }
            self.shared.tally.relists.add(1);
            self.out_of_sync();
            self.forget();
        }
    }

    /// Lists and watches until something ends the watches.
    async fn follow(&mut self, link: &Link) -> Result<Ended, Error> {
        let resumes = self.is_listed;
        self.watches.iter_mut().for_each(|watch| watch.id = None);
        if !resumes {
            self.list(link, 0).await?;
            self.configuration(link).await?;
        }
        let mut stream = link.begin(Call::Watch)?;
        self.create(&stream, 0);
        let begun = timeout(CREATE_TIMEOUT, stream.begun()).await;
        begun.map_err(|_| Error::Timeout("watch"))??;
        for at in 0..self.watched.len() {
            if at > 0 {
                if !resumes {
                    self.list(link, at).await?;
                }
                self.create(&stream, at);
            }
            let until = Instant::now() + CREATE_TIMEOUT;
            while self.watches[at].id.is_none() {
                tokio::select! {
                    more = stream.more() => more?,
                    () = sleep_until(until) => return Err(Error::Timeout("watch")),
                }
                if let Some(ended) = self.receive(&mut stream, Some(at)).await? {
                    return Ok(ended);
                }
            }
        }
        self.in_sync();
        if self.reads == Reads::UntilInSync {
            return self.stall(&mut stream).await;
        }
        if let Some(ended) = self.led() {
            return Ok(ended);
        }
        self.watch(&mut stream, link).await
    }

    /// Does not read until the end of the test, and then looks whether the store has closed the connection.
    async fn stall(&mut self, stream: &mut Exchange) -> Result<Ended, Error> {
        self.out_of_sync();
        self.shared.tally.stalled.add(1);
        self.has_stalled = true;
        self.is_paused.store(true, Relaxed);
        while !matches!(*self.phase.borrow_and_update(), Phase::Verify(_) | Phase::End) {
            if self.phase.changed().await.is_err() {
                return Ok(Ended::Done);
            }
        }
        self.is_paused.store(false, Relaxed);
        let limit = match *self.phase.borrow() {
            Phase::End => STALL_LOOK,
            _ => STALL_CHECK,
        };
        // The end of what has piled up is the store's farewell, if there was one.
        match timeout(limit, stream.discard()).await {
            Ok(closed) => closed.and(Err(Error::Closed)),
            Err(_) => Ok(Ended::Done),
        }
    }

    /// Reads a prefix page by page, all pages at the revision of the first.
    async fn list(&mut self, link: &Link, at: usize) -> Result<(), Error> {
        let (shared, run) = (&self.shared, self.shared.plan.run);
        let prefix = self.watched[at].text();
        let end = Bytes::from(prefix_end(prefix.as_bytes()));
        let follower = &mut self.watches[at].follower;
        follower.begin_list();
        let (mut from, mut revision) = (Bytes::from(prefix.to_owned()), 0);
        loop {
            let request = RangeRequest {
                key: from,
                range_end: end.clone(),
                limit: shared.plan.page,
                revision,
                ..RangeRequest::default()
            };
            let (mut more, mut last, mut count) = (false, vec![], 0);
            let began = Instant::now();
            let page = |tag, field: Field<'_>| {
                match tag {
                    2 => {
                        let kv = KeyValue::read(field.bytes())?;
                        count += 1;
                        last.clear();
                        last.extend_from_slice(kv.key);
                        if let Some(stamp) = Stamp::read(kv.value).filter(|stamp| stamp.run == run) {
                            follower.listed(&stamp);
                        }
                    }
                    3 => more = field.flag(),
                    _ => {}
                }
                Ok(())
            };
            let header = link.call(Call::Range, &request, page).await?;
            shared.tally.record(self.number, Measure::Page, began.elapsed());
            shared.tally.listed.add(count);
            self.cluster_id = header.cluster_id;
            if revision == 0 {
                revision = header.revision;
            }
            if !more || count == 0 {
                break;
            }
            last.push(0);
            from = last.into();
        }
        self.watches[at].follower.end_list(revision);
        Ok(())
    }

    /// Reads the configuration of the cluster, which may be missing.
    async fn configuration(&mut self, link: &Link) -> Result<(), Error> {
        let Some(Prefix::Canaries { prefix }) = self.watched.get(1) else {
            return Ok(());
        };
        let cluster = prefix.trim_start_matches(keys::SYNCED).trim_end_matches('/');
        let request = RangeRequest {
            key: format!("{}{cluster}", keys::CLUSTER_CONFIGS).into(),
            ..RangeRequest::default()
        };
        link.call(Call::Range, &request, |_, _| Ok(())).await.map(drop)
    }

    /// Asks for a watch from where its follower is.
    fn create(&self, stream: &Exchange, at: usize) {
        let prefix = self.watched[at].text();
        let request = WatchCreateRequest {
            key: prefix.to_owned().into(),
            range_end: prefix_end(prefix.as_bytes()).into(),
            start_revision: self.watches[at].follower.revision() + 1,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(request)),
        };
        stream.send(frame(&request), false);
    }

    /// Receives events until something ends the watches.
    async fn watch(&mut self, stream: &mut Exchange, link: &Link) -> Result<Ended, Error> {
        let plan = &self.shared.plan;
        let (keepalive, answers_with_pings) = (plan.keepalive, plan.bdp_pings);
        let mut ticks = interval_at(Instant::now() + keepalive, keepalive);
        let mut was_active = false;
        self.last_beat = Some(Instant::now());
        loop {
            let deadline = self.verify.as_ref().map(|written| written.deadline);
            tokio::select! {
                biased;
                more = stream.more() => {
                    more?;
                    was_active = true;
                    if let Some(ended) = self.receive(stream, None).await? {
                        return Ok(ended);
                    }
                    if answers_with_pings {
                        self.ping(link);
                    }
                    if let Some(ended) = self.verified(false) {
                        return Ok(ended);
                    }
                }
                () = link.pong(), if self.last_ping.is_some() => {
                    self.shared.tally.pings.add(1);
                    if let Some(sent) = self.last_ping.take() {
                        self.shared.tally.record(self.number, Measure::Ping, sent.elapsed());
                    }
                }
                changed = self.phase.changed() => {
                    if changed.is_err() {
                        return Ok(Ended::Done);
                    }
                    if let Some(ended) = self.led() {
                        return Ok(ended);
                    }
                }
                _ = ticks.tick() => {
                    if !std::mem::take(&mut was_active) {
                        self.ping(link);
                    }
                    self.check_times()?;
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if let Some(ended) = self.verified(true) {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Sends a ping, unless one is under way.
    fn ping(&mut self, link: &Link) {
        if self.last_ping.is_none() {
            link.ping();
            self.last_ping = Some(Instant::now());
        }
    }

    /// Fails if a ping was not answered in time, or if heartbeats have ended.
    fn check_times(&mut self) -> Result<(), Error> {
        if self.last_ping.is_some_and(|sent| sent.elapsed() > PING_TIMEOUT) {
            return Err(Error::Timeout("keepalive ping"));
        }
        let has_beaten = self.shared.tally.heartbeats.get() > 0;
        let late = self.last_beat.is_some_and(|beat| beat.elapsed() > HEARTBEAT_MAX);
        if has_beaten && late {
            return Err(Error::Heartbeat(HEARTBEAT_MAX.as_secs()));
        }
        Ok(())
    }

    /// Reads one message of the watch stream. `creating` is the watch whose confirmation is waited for.
    async fn receive(&mut self, stream: &mut Exchange, creating: Option<usize>) -> Result<Option<Ended>, Error> {
        let (tally, plan) = (&self.shared.tally, &self.shared.plan);
        let (run, lanes) = (plan.run, plan.lanes());
        let mut received = Received::default();
        let mut now = 0;
        let found = stream.message(|tag, field| {
            match tag {
                1 => received.header = Some(Header::read(field.bytes())?),
                2 => received.id = field.signed(),
                3 => received.created = field.flag(),
                4 => received.canceled = field.flag(),
                5 => received.compacted = field.signed(),
                6 => received.reason = shown(field.bytes()),
                // Events come after the id, since fields are encoded in the order of their tags.
                11 => {
                    if now == 0 {
                        now = now_nanos();
                    }
                    let Some(at) = self.watches.iter().position(|watch| watch.id == Some(received.id)) else {
                        return Err(Error::Watch(format!(
                            "an event of watch {}, which does not exist",
                            received.id
                        )));
                    };
                    let event = Event::read(field.bytes())?;
                    let follower = &mut self.watches[at].follower;
                    match &self.watched[at] {
                        Prefix::Heartbeat => received.beat(follower, &event, now),
                        Prefix::Canaries { .. } => received.other(follower, &event),
                        Prefix::Scope { number, .. } => {
                            received.event(follower, &event, run, now, number * lanes, tally);
                        }
                    }
                }
                _ => {}
            }
            Ok(())
        });
        if !found.await? {
            stream.end().await?;
            return Err(Error::Closed);
        }
        tally.received_bytes.add(std::mem::take(&mut stream.received));
        self.conclude(received, creating)
    }

    /// What follows from a message of the watch stream.
    fn conclude(&mut self, received: Received, creating: Option<usize>) -> Result<Option<Ended>, Error> {
        let tally = &self.shared.tally;
        tally.messages.add(1);
        let header = received.header.ok_or(Error::NoHeader)?;
        if header.cluster_id != self.cluster_id {
            return Ok(Some(Ended::Relist));
        }
        if received.canceled {
            return match received.compacted {
                0 => Err(Error::Watch(received.reason)),
                _ => Ok(Some(Ended::Relist)),
            };
        }
        if received.created
            && let Some(at) = creating
        {
            self.watches[at].id = Some(received.id);
        }
        tally.delivered.add(received.events);
        tally.foreign.add(received.foreign);
        tally.early.add(received.early);
        tally.find(received.findings);
        for (measure, nanos) in [
            (Measure::SendToDelivery, received.since_sent),
            (Measure::CommitToDelivery, received.since_commit),
        ] {
            if !nanos.is_empty() {
                tally.record_all(self.number, measure, nanos);
            }
        }
        for (revision, age) in received.beats {
            tally.heartbeats.add(1);
            tally.record(self.number, Measure::HeartbeatSpread, tally.beat(revision));
            if let Some(age) = age {
                tally.record(self.number, Measure::HeartbeatAge, age);
            }
            self.last_beat = Some(Instant::now());
        }
        Ok(None)
    }
}

impl Received {
    /// Takes an event of a prefix that this run writes.
    fn event(&mut self, follower: &mut Follower, event: &Event<'_>, run: u32, now: u64, lane: usize, tally: &Tally) {
        let kv = &event.kv;
        if event.deleted {
            self.events += 1;
            self.findings += follower.deleted(kv.mod_revision);
            return;
        }
        let Some(stamp) = Stamp::read(kv.value).filter(|stamp| stamp.run == run) else {
            self.other(follower, event);
            return;
        };
        self.events += 1;
        self.findings += follower.put(&stamp, kv.mod_revision, kv.create_revision == kv.mod_revision);
        let since_sent = now.saturating_sub(stamp.sent_nanos);
        self.since_sent.push(since_sent);
        let lane = lane + usize::from(stamp.lane);
        match tally.since_answer(lane, stamp.sequence, now) {
            SinceAnswer::Nanos(since) => self.since_commit.push(since),
            // The commit was after the request, so that this is no less than the latency.
            SinceAnswer::NotAnswered => {
                self.early += 1;
                self.since_commit.push(since_sent);
            }
            SinceAnswer::Forgotten => {}
        }
    }

    /// Takes an event of somebody else's key: nothing but its order can be verified.
    fn other(&mut self, follower: &mut Follower, event: &Event<'_>) {
        self.foreign += 1;
        self.findings.reordered += u64::from(event.kv.mod_revision < follower.revision());
        follower.reached(event.kv.mod_revision);
    }

    fn beat(&mut self, follower: &mut Follower, event: &Event<'_>, now: u64) {
        self.other(follower, event);
        self.foreign -= 1;
        let text = std::str::from_utf8(event.kv.value).ok();
        let time = text.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let nanos = time.and_then(|time| u64::try_from(time.as_nanosecond()).ok());
        let age = nanos.map(|nanos| Duration::from_nanos(now.saturating_sub(nanos)));
        if !event.deleted {
            self.beats.push((event.kv.mod_revision, age));
        }
    }
}

/// The end of the range of all keys with this prefix.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
