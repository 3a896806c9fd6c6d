//! Follows the upstream: carries out what the feed decides, connects again, and loads anew where it must.

use super::OnDivergence;
use super::endpoints::{BEHIND, Candidate, Endpoints, Hashed, hash, is_other_past};
use super::error::Error;
use super::feed::{Action, Feed, Input, Load, Why};
use super::link::{Link, Seen, read_from};
use super::load::{self, Loaded};
use super::member::{Member, Purpose};
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

/// Whether other replicas are asked for their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sisters {
    /// Those that have this revision: the others are behind, too.
    From(i64),
    /// They may have the past that is left.
    Never,
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

/// Connects to the upstream for the first time, and loads its users.
pub(super) async fn meet(link: &Link) -> Result<(), Error> {
    let member = link.connect_to_any(Purpose::Calls).await?;
    load_users(link, &member).await
}

/// Loads users and roles. Nobody may read keys here before it is known who may read them there.
async fn load_users(link: &Link, member: &Member) -> Result<(), Error> {
    let users = link.people.reload(member).await;
    users.map_err(|status| Error::Users {
        endpoint: member.endpoint.clone(),
        status,
    })
}

/// Loads everything from an upstream that was never followed, while a watch from before the load is buffered.
pub(super) async fn load_first(
    link: &Link,
    scratch: Option<PathBuf>,
) -> Result<(Loaded, Feed, Option<Session>), Error> {
    let member = link.connect_to_any(Purpose::Feed).await?;
    // Proves that the member has a leader, and that its answers belong to the cluster.
    let seen = read_from(&member).await?;
    if seen.cluster_id != link.cluster_id() {
        return Err(Error::OtherCluster {
            endpoint: member.endpoint.clone(),
            found: seen.cluster_id,
            expected: link.cluster_id(),
        });
    }
    let mut feed = Feed::new(0);
    let (loaded, session) = load_beside(link, member, &mut feed, (Sisters::From(0), scratch)).await?;
    Ok((loaded, feed, session))
}

/// Opens the watch, and loads while it is buffered.
async fn load_beside(
    link: &Link,
    member: Member,
    feed: &mut Feed,
    (sisters, scratch): (Sisters, Option<PathBuf>),
) -> Result<(Loaded, Option<Session>), Error> {
    let begun = Instant::now();
    load_users(link, &member).await?;
    // The watch must not wait behind the load.
    let source = link
        .connect(&member.endpoint, Purpose::Feed, member.facts.cluster_id)
        .await?;
    let mut session = Some(Session::open(member, feed.start()).await?);
    let mut loading = Box::pin(async {
        if let Sisters::From(least) = sisters
            && let Some(loaded) = load::load_from_sister(link, &source, least, scratch.clone()).await
        {
            return Ok(loaded);
        }
        load::load(&source, scratch).await
    });
    let loaded = loop {
        let received = tokio::select! {
            loaded = &mut loading => break loaded?,
            received = next_of(session.as_mut()) => received,
        };
        match received {
            Received::Input(input) => {
                let asks = feed.input(input).contains(&Action::AskProgress);
                if let Some(session) = session.as_mut().filter(|_| asks) {
                    session.ask_progress();
                }
            }
            Received::Broken(error) => {
                tracing::info!(%error, "the watch ended during the load; it is opened again after the load");
                feed.input(Input::Broken(Why::Broken));
                session = None;
            }
        }
    };
    link.metrics.loaded(loaded.how.label(), begun.elapsed());
    Ok((loaded, session))
}

/// The next of a session; nothing without one.
async fn next_of(session: Option<&mut Session>) -> Received {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
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
            self.joined();
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

    /// The watch from before a load goes on behind it: both have the same past.
    fn joined(&mut self) {
        if self.session.is_some() {
            self.connected();
            self.endpoints.agrees(&self.endpoint());
            self.is_proven = true;
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
                    Ok(Candidate::Ahead) => return self.reload(Why::Behind).await,
                    Ok(Candidate::Differs(why)) => {
                        tracing::warn!(
                            endpoint,
                            why,
                            "the endpoint has another past than this replica; it is shut out"
                        );
                        self.following.link.metrics.disconnected(format!("{endpoint}: {why}"));
                    }
                    Err(error) => self.unreachable(&endpoint, &error),
                }
            }
            self.following.link.prefer_next();
            backoff.wait().await;
        }
    }

    fn unreachable(&mut self, endpoint: &str, error: &Error) {
        tracing::warn!(%error, revision = self.feed.applied(), "an endpoint of the upstream cannot be followed; another one is tried");
        self.following.link.metrics.disconnected(error.to_string());
        self.endpoints.unreachable(endpoint);
    }

    /// Loads everything anew. Where the histories meet, the missing revisions are adopted, and no watcher notices.
    async fn reload(&mut self, why: Why) -> Result<(), Ended> {
        tracing::warn!(%why, revision = self.following.store.revision(), "everything is loaded from the upstream anew");
        let is_other = is_other_past(why);
        if is_other {
            self.following.doubtful.store(true, Ordering::Relaxed);
            if self.settings.on_divergence == OnDivergence::Exit {
                return Err(Ended::Diverged(why));
            }
        }
        let mut backoff = Backoff::connect();
        let (loaded, pin) = loop {
            // A feed that has failed once buffers no more.
            self.feed = Feed::new(0);
            match Box::pin(self.load(is_other)).await {
                Ok((loaded, seen)) => break (loaded, is_other.then_some(seen)),
                Err(error) => {
                    self.unreachable("", &error);
                    self.following.link.prefer_next();
                    backoff.wait().await;
                }
            }
        };
        self.replace(loaded, pin);
        self.endpoints.begin();
        self.following.doubtful.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Loads from an endpoint of the followed cluster, or of any cluster.
    async fn load(&mut self, any: bool) -> Result<(Loaded, Seen), Error> {
        let link = Arc::clone(&self.following.link);
        let member = match any {
            false => link.connect_to_any(Purpose::Feed).await?,
            true => link.connect_to_any_cluster(Purpose::Feed).await?,
        };
        let seen = read_from(&member).await?;
        let sisters = match any {
            true => Sisters::Never,
            // A watch reads the rest.
            false => Sisters::From((seen.revision - BEHIND / 2).max(self.following.store.revision() + 1)),
        };
        let scratch = self.settings.scratch.clone();
        let (loaded, session) = load_beside(&link, member, &mut self.feed, (sisters, scratch)).await?;
        self.session = session;
        Ok((loaded, seen))
    }

    /// Puts a loaded state into place: as the continuation of the present one if it is that, or else instead of it. `pin` is
    /// the cluster, or the past of a cluster, that is followed from now on.
    fn replace(&mut self, loaded: Loaded, pin: Option<Seen>) {
        let Loaded { how, store: newer, .. } = loaded;
        let store = &self.following.store;
        let (before, floor) = (store.revision(), newer.floor());
        let continued = match pin {
            // Watchers of another past must not go on, even if both agree at the present revision.
            Some(_) => false,
            None => match store.adopt_from(&newer) {
                Ok(()) => true,
                Err(divergence) => {
                    tracing::info!(%divergence, before, floor, "the histories do not meet");
                    false
                }
            },
        };
        let how = if continued {
            tracing::info!(
                before,
                revision = store.revision(),
                "the missing revisions were taken over in order"
            );
            Load::Exact
        } else {
            // Revisions are missing, and those that are left are of the same past.
            let skips = pin.is_none() && floor > before;
            let cancelled = match skips {
                true => "watches that need a missing revision",
                false => "all watches",
            };
            tracing::warn!(
                before,
                revision = newer.revision(),
                floor,
                "the state of the upstream replaces that of this replica: {cancelled} are cancelled as compacted, and their clients list again"
            );
            if let Some(seen) = pin {
                self.following.link.pin(seen);
            }
            let is_exact = how.knows() == Load::Exact;
            // Another replica must not be given a state whose order is not known.
            self.following.exact.fetch_and(is_exact, Ordering::SeqCst);
            match skips {
                true => store.skip_to(newer),
                false => store.swap(newer),
            }
            self.following.exact.store(is_exact, Ordering::SeqCst);
            how.knows()
        };
        let revision = store.revision();
        self.following.link.metrics.revision.set(revision);
        self.first = vec![Input::Loaded { revision, how }];
    }
}
