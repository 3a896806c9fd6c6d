//! Follows the upstream: carries out what the feed decides, and connects again. `reload` loads everything anew where that must be.

mod reload;

use super::OnDivergence;
use super::endpoints::{Candidate, Endpoints, Hashed, hash, is_other_past};
use super::error::Error;
use super::feed::{Action, Feed, Input, Load, Why};
use super::session::{Received, Session};
use super::upstream::{Following, Rewound};
use super::witness::{Decision, Verdict};
use crate::mvcc::{Compared, Divergence};
use crate::util::backoff::Backoff;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A session that lasted so long was a success.
const STEADY: Duration = Duration::from_secs(2);
/// Messages that are taken before other tasks get a turn.
const TURN: usize = 64;

/// Why the replica ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(
        "the upstream has another past than this replica ({0}), and --on-divergence=exit is set: a restart loads everything anew"
    )]
    Diverged(Why),
}

/// What comes after a session.
enum Next {
    Reconnect(Why),
    Reload(Why),
}

/// What an operator has chosen.
pub(super) struct Settings {
    pub(super) on_divergence: OnDivergence,
    /// A directory for temporary files if the system's directory for them takes none.
    pub(super) scratch: Option<PathBuf>,
}

/// What can happen while a session is followed.
enum Event {
    Report(Rewound),
    Hashed(Result<Hashed, Error>),
    Received(Received),
}

/// The task that keeps the store equal to the upstream.
pub(super) struct Driver {
    following: Arc<Following>,
    settings: Settings,
    /// Linearizable answers that show less than this replica has.
    reports: mpsc::Receiver<Rewound>,
    feed: Feed,
    /// The present session.
    session: Option<Session>,
    /// What is still to be done.
    first: Vec<Input>,
    endpoints: Endpoints,
    /// Whether the present session has shown the last revision that is here.
    is_proven: bool,
    /// The hash of all keys that the upstream was asked for.
    hashing: Option<BoxFuture<'static, Result<Hashed, Error>>>,
    /// When the last session ended.
    left: Instant,
}

/// The answer to the question for a hash; nothing while there is no question.
async fn answer(hashing: &mut Option<BoxFuture<'static, Result<Hashed, Error>>>) -> Result<Hashed, Error> {
    match hashing {
        Some(hashing) => hashing.await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// The task of a state that was just loaded, with the watch that was buffered meanwhile, or of a state from before.
    pub(super) fn new(
        following: Arc<Following>,
        settings: Settings,
        reports: mpsc::Receiver<Rewound>,
        loaded: Option<(Load, Feed, Option<Session>)>,
    ) -> Self {
        let revision = following.store.revision();
        let (first, feed, session) = match loaded {
            Some((how, feed, session)) => (vec![Input::Loaded { revision, how }], feed, session),
            None => (vec![], Feed::new(revision), None),
        };
        let endpoints = Endpoints::new(Arc::clone(&following.link), Arc::clone(&following.store));
        Self {
            following,
            settings,
            reports,
            feed,
            session,
            first,
            endpoints,
            is_proven: false,
            hashing: None,
            left: Instant::now(),
        }
    }

    /// Follows for ever.
    pub(super) async fn run(mut self) -> Result<Infallible, Ended> {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        loop {
            let begun = Instant::now();
            let next = self.follow().await;
            let (Next::Reconnect(why) | Next::Reload(why)) = next;
            self.following.link.metrics.reconnected(why.as_str());
            if why == Why::Gap {
                self.following.link.metrics.gaps.inc();
            }
            (self.session, self.hashing) = (None, None);
            (self.is_proven, self.left) = (false, Instant::now());
            match begun.elapsed() < STEADY {
                true => backoff.wait().await,
                false => backoff.reset(),
            }
            match next {
                // Another endpoint may have the past of this replica.
                Next::Reload(why) if is_other_past(why) => {
                    self.feed = Feed::new(self.following.store.revision());
                    self.reconnect(why).await?;
                }
                Next::Reload(why) => self.reload(why).await?,
                Next::Reconnect(why) => self.reconnect(why).await?,
            }
        }
    }

    /// Takes what the session brings, until it ends.
    async fn follow(&mut self) -> Next {
        for input in std::mem::take(&mut self.first) {
            if let Some(next) = self.take(input) {
                return next;
            }
            if let Some(next) = self.joined().await {
                return next;
            }
        }
        let mut taken = 0;
        loop {
            let Some(session) = &mut self.session else {
                return Next::Reconnect(Why::Broken);
            };
            let event = tokio::select! {
                biased;
                Some(report) = self.reports.recv() => Event::Report(report),
                hashed = answer(&mut self.hashing) => Event::Hashed(hashed),
                received = session.next() => Event::Received(received),
            };
            if let Some(next) = self.event(event) {
                return next;
            }
            taken += 1;
            if taken % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn event(&mut self, event: Event) -> Option<Next> {
        let input = match event {
            Event::Report(report) => {
                let differs = self.endpoints.rewound(&report);
                return (differs && self.endpoint() == report.endpoint).then_some(Next::Reconnect(Why::Rewound));
            }
            Event::Hashed(hashed) => {
                self.hashing = None;
                return self.judge(hashed);
            }
            Event::Received(Received::Broken(error)) => self.broken(&error),
            Event::Received(Received::Input(input)) => input,
        };
        let is_created = matches!(input, Input::Created { .. });
        if is_created {
            self.connected();
        }
        let next = self.take(input);
        if is_created && next.is_none() && self.feed.applied() <= 1 {
            // Revision 1 is that of an empty store: nothing can be compared.
            self.endpoints.agrees(&self.endpoint());
            self.proven();
        }
        if let Some(session) = self.session.as_ref().filter(|_| self.is_proven) {
            self.following.link.note_term(session.term);
        }
        next
    }

    /// The endpoint of the present session.
    fn endpoint(&self) -> String {
        self.session
            .as_ref()
            .map_or_else(String::new, |session| session.member.endpoint.clone())
    }

    fn connected(&self) {
        tracing::info!(
            endpoint = self.endpoint(),
            revision = self.feed.applied(),
            "following the upstream"
        );
        self.following.link.metrics.connected();
    }

    /// The watch from before a load goes on behind it. The name of an endpoint may have led the load to another store than the
    /// watch, so that the endpoint of the watch is judged like every other one.
    async fn joined(&mut self) -> Option<Next> {
        let member = Arc::clone(&self.session.as_ref()?.member);
        self.connected();
        match Box::pin(self.endpoints.judge(&member, self.feed.applied())).await {
            Ok(None) => {
                self.endpoints.agrees(&member.endpoint);
                self.is_proven = true;
                None
            }
            Ok(Some(why)) => {
                self.following.link.metrics.divergences.inc();
                self.differs(&member.endpoint, &why);
                Some(Next::Reload(Why::OtherPast))
            }
            Err(error) => {
                self.unreachable(&member.endpoint, &error);
                Some(Next::Reconnect(Why::Broken))
            }
        }
    }

    /// Notes why a session ended.
    fn broken(&self, error: &Error) -> Input {
        let link = &self.following.link;
        tracing::warn!(endpoint = self.endpoint(), %error, revision = self.feed.applied(), "the watch of the upstream broke; connecting again");
        link.metrics.disconnected(error.to_string());
        link.prefer_next();
        Input::Broken(match error {
            Error::OtherCluster { .. } => Why::OtherCluster,
            error if error.is_without_leader() => Why::NoLeader,
            Error::Invalid { .. } => Why::Disorder,
            _ => Why::Broken,
        })
    }

    /// Tells the feed what happened, and carries out its actions.
    fn take(&mut self, input: Input) -> Option<Next> {
        let mut actions = VecDeque::from(self.feed.input(input));
        let store = Arc::clone(&self.following.store);
        while let Some(action) = actions.pop_front() {
            let done = match action {
                Action::Adopt { revision, events } => {
                    let adopted = store.adopt(revision, events);
                    self.following.link.metrics.revision.set(store.revision());
                    adopted
                }
                Action::Complete { revision, events } => store.complete(revision, &events).map(|()| self.proven()),
                Action::Compare { revision, events } => {
                    self.following.link.metrics.compared.inc();
                    self.compared(revision, store.compare(revision, &events))
                }
                Action::AskProgress => {
                    if let Some(session) = &mut self.session {
                        session.ask_progress();
                    }
                    Ok(())
                }
                // The next connection asks before it watches.
                Action::AskIndex => return Some(Next::Reconnect(Why::Rewound)),
                Action::Reconnect { why, .. } => return Some(Next::Reconnect(why)),
                Action::Reload { why } => return Some(Next::Reload(why)),
            };
            if let Err(divergence) = done {
                self.following.link.metrics.divergences.inc();
                tracing::warn!(endpoint = self.endpoint(), %divergence, "the upstream sent what cannot follow the state of this replica");
                let applied = store.revision();
                actions = self.feed.input(Input::Refused { applied }).into();
            }
        }
        None
    }

    /// Notes how a revision that was sent again compares with the one here.
    fn compared(&mut self, revision: i64, compared: Compared) -> Result<(), Divergence> {
        let Some(session) = &self.session else { return Ok(()) };
        let verdict = self.endpoints.replayed(&session.member.endpoint, revision, compared);
        if compared == Compared::Different || matches!(verdict, Verdict::Differs(_)) {
            return Err(Divergence::Different { revision });
        }
        if revision == self.following.store.revision() {
            self.proven();
        }
        Ok(())
    }

    /// The endpoint has shown the last revision that is here.
    fn proven(&mut self) {
        self.is_proven = true;
        self.following.doubtful.store(false, Ordering::Relaxed);
        let Some(session) = &self.session else { return };
        if self.hashing.is_none() && self.endpoints.is_hash_due(self.left.elapsed()) {
            let (member, store) = (Arc::clone(&session.member), Arc::clone(&self.following.store));
            self.hashing = Some(hash(member, store).boxed());
        }
    }

    /// Judges the upstream's hash of all keys.
    fn judge(&mut self, hashed: Result<Hashed, Error>) -> Option<Next> {
        let hashed = match hashed {
            Ok(hashed) => hashed,
            Err(error) => {
                tracing::debug!(%error, "the hash of the upstream's keys cannot be compared");
                return None;
            }
        };
        let why = self.endpoints.hashed(&hashed)?;
        self.following.link.metrics.divergences.inc();
        tracing::warn!(why, "the upstream has other keys than this replica");
        Some(Next::Reload(Why::OtherPast))
    }

    /// Connects to an endpoint that has the past of this replica. Loads anew if there is none for a while.
    async fn reconnect(&mut self, why: Why) -> Result<(), Ended> {
        tracing::info!(%why, revision = self.feed.applied(), "connecting to the upstream again");
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            match self.endpoints.decide() {
                Decision::Follow => {}
                // Reads of two pasts must not be mixed.
                Decision::Wait { .. } => self.following.doubtful.store(true, Ordering::Relaxed),
                Decision::LoadAnew { why } => return self.reload(why).await,
            }
            for endpoint in self.endpoints.order() {
                let applied = self.feed.applied();
                match Box::pin(self.endpoints.candidate(&endpoint, applied)).await {
                    Ok(Candidate::Fits(member)) => match Session::open(*member, self.feed.start()).await {
                        Ok(session) => {
                            self.session = Some(session);
                            return Ok(());
                        }
                        Err(error) => self.unreachable(&endpoint, &error),
                    },
                    Ok(Candidate::Ahead(_)) => return self.reload(Why::Behind).await,
                    Ok(Candidate::Differs(why)) => self.differs(&endpoint, &why),
                    Err(error) => self.unreachable(&endpoint, &error),
                }
            }
            self.following.link.prefer_next();
            backoff.wait().await;
        }
    }

    fn differs(&self, endpoint: &str, why: &str) {
        tracing::warn!(
            endpoint,
            why,
            "the endpoint has another past than this replica; it is shut out"
        );
        self.following.link.metrics.disconnected(format!("{endpoint}: {why}"));
    }

    fn unreachable(&mut self, endpoint: &str, error: &Error) {
        tracing::warn!(%error, revision = self.feed.applied(), "an endpoint of the upstream cannot be followed; another one is tried");
        self.following.link.metrics.disconnected(error.to_string());
        self.endpoints.unreachable(endpoint);
    }
}
