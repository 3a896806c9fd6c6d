//! Follows the upstream: carries out what the feed decides, connects again, and loads anew where it must.

use super::OnDivergence;
use super::error::Error;
use super::feed::{Action, Feed, Input, Load, Why};
use super::link::{Link, Seen, read_from};
use super::load::{self, How, Loaded};
use super::member::{Member, Purpose};
use super::session::{Received, Session};
use super::upstream::Following;
use crate::mvcc::{Compared, Divergence};
use crate::util::backoff::Backoff;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// More missing revisions than this are not read by a watch: etcd scans them under the lock that applies writes (etcd#22264),
/// for about 20 ms.
const BEHIND: i64 = 20_000;
/// How long no endpoint may have the past of this replica before the state is loaded anew.
const DOUBT: Duration = Duration::from_secs(30);
/// How long an endpoint with other events is not asked again.
const SUSPICION: Duration = Duration::from_secs(60);
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

/// Whether an endpoint can be followed from here.
enum Candidate {
    /// Its answers fit to the state here.
    Fits(Member),
    /// It has more revisions than a watch should read.
    Ahead,
    /// It has another past.
    Differs(Why, Error),
}

/// The task that keeps the store equal to the upstream.
pub(super) struct Driver {
    following: Arc<Following>,
    on_divergence: OnDivergence,
    scratch: Option<PathBuf>,
    feed: Feed,
    /// The present session.
    session: Option<Session>,
    /// What is still to be done.
    first: Vec<Input>,
    /// Endpoints that had other events than this replica, and when.
    suspects: BTreeMap<String, Instant>,
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
    let (loaded, session) = load_beside(link, member, &mut feed, scratch).await?;
    Ok((loaded, feed, session))
}

/// Opens the watch, and loads while it is buffered.
async fn load_beside(
    link: &Link,
    member: Member,
    feed: &mut Feed,
    scratch: Option<PathBuf>,
) -> Result<(Loaded, Option<Session>), Error> {
    let begun = Instant::now();
    // The watch must not wait behind the load.
    let source = link
        .connect(&member.endpoint, Purpose::Feed, member.facts.cluster_id)
        .await?;
    let mut session = Some(Session::open(member, feed.start()).await?);
    let loading = load::load(&source, scratch);
    let mut loading = Box::pin(loading);
    let loaded = loop {
        let received = tokio::select! {
            loaded = &mut loading => break loaded?,
            received = next_of(session.as_mut(), link) => received,
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
async fn next_of(session: Option<&mut Session>, link: &Link) -> Received {
    match session {
        Some(session) => session.next(link).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// The task of a state that was just loaded. `session` is the watch that was buffered meanwhile.
    pub(super) fn new(
        following: Arc<Following>,
        on_divergence: OnDivergence,
        scratch: Option<PathBuf>,
        feed: Feed,
        session: Option<Session>,
        how: How,
    ) -> Self {
        let revision = following.store.revision();
        let loaded = Input::Loaded {
            revision,
            how: how.knows(),
        };
        Self {
            following,
            on_divergence,
            scratch,
            feed,
            session,
            first: vec![loaded],
            suspects: BTreeMap::new(),
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
            if why == Why::Diverged {
                self.suspect();
            }
            self.session = None;
            match begun.elapsed() < STEADY {
                true => backoff.wait().await,
                false => backoff.reset(),
            }
            match next {
                Next::Reload(why) if why != Why::Diverged => self.reload(why).await?,
                // Another endpoint may have the past of this replica.
                Next::Reload(why) | Next::Reconnect(why) => self.reconnect(why).await?,
            }
        }
    }

    /// Notes that the present endpoint has other events, and begins anew with the state that is here.
    fn suspect(&mut self) {
        if let Some(session) = &self.session {
            let endpoint = session.member.endpoint.clone();
            self.suspects.insert(endpoint, Instant::now());
        }
        self.feed = Feed::new(self.following.store.revision());
    }

    /// Takes what the session brings, until it ends.
    async fn follow(&mut self) -> Next {
        for input in std::mem::take(&mut self.first) {
            if let Some(next) = self.take(input) {
                return next;
            }
        }
        let mut taken = 0;
        loop {
            let Some(session) = &mut self.session else {
                return Next::Reconnect(Why::Broken);
            };
            let link = &self.following.link;
            let received = tokio::select! {
                biased;
                () = self.following.rewound.notified() => {
                    return Next::Reconnect(Why::Rewound);
                }
                received = session.next(link) => received,
            };
            let input = match received {
                Received::Input(input) => {
                    if matches!(input, Input::Created { .. }) {
                        tracing::info!(endpoint = session.member.endpoint, revision = self.feed.applied(), "following the upstream");
                        link.metrics.connected();
                    }
                    input
                }
                Received::Broken(error) => self.broken(&error),
            };
            if let Some(next) = self.take(input) {
                return next;
            }
            taken += 1;
            if taken % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Notes why a session ended.
    fn broken(&self, error: &Error) -> Input {
        let link = &self.following.link;
        let endpoint = self.session.as_ref().map_or("", |session| &session.member.endpoint);
        tracing::warn!(endpoint, %error, revision = self.feed.applied(), "the watch of the upstream broke; connecting again");
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
                Action::Complete { revision, events } => store.complete(revision, &events),
                Action::Compare { revision, events } => {
                    self.following.link.metrics.compared.inc();
                    match store.compare(revision, &events) {
                        Compared::Different => Err(Divergence::Different { revision }),
                        Compared::Same | Compared::Part | Compared::Unknown => Ok(()),
                    }
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
                let endpoint = self.session.as_ref().map_or("", |session| &session.member.endpoint);
                tracing::warn!(endpoint, %divergence, "the upstream sent what cannot follow the state of this replica");
                let applied = store.revision();
                actions = self.feed.input(Input::Refused { applied }).into();
            }
        }
        None
    }

    /// Connects to an endpoint that has the past of this replica. Loads anew if there is none for a while.
    async fn reconnect(&mut self, why: Why) -> Result<(), Ended> {
        tracing::info!(%why, revision = self.feed.applied(), "connecting to the upstream again");
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut doubt: Option<Instant> = None;
        loop {
            let mut differs = None;
            for endpoint in self.following.link.all_endpoints() {
                match Box::pin(self.candidate(&endpoint)).await {
                    Ok(Candidate::Fits(member)) => match Session::open(member, self.feed.start()).await {
                        Ok(session) => {
                            self.session = Some(session);
                            self.following.doubtful.store(false, Ordering::Relaxed);
                            return Ok(());
                        }
                        Err(error) => self.unreachable(&error),
                    },
                    Ok(Candidate::Ahead) => return self.reload(Why::Behind).await,
                    Ok(Candidate::Differs(why, error)) => {
                        tracing::warn!(endpoint, %why, %error, "the endpoint has another past than this replica; it is shut out");
                        self.following.link.metrics.disconnected(error.to_string());
                        differs = Some(why);
                    }
                    Err(error) => self.unreachable(&error),
                }
            }
            if let Some(why) = differs {
                // Reads of two pasts must not be mixed.
                self.following.doubtful.store(true, Ordering::Relaxed);
                if doubt.get_or_insert_with(Instant::now).elapsed() >= DOUBT {
                    return self.reload(why).await;
                }
            }
            self.following.link.prefer_next();
            backoff.wait().await;
        }
    }

    fn unreachable(&self, error: &Error) {
        tracing::warn!(%error, revision = self.feed.applied(), "an endpoint of the upstream cannot be followed; another one is tried");
        self.following.link.metrics.disconnected(error.to_string());
    }

    /// Whether an endpoint can be followed from the applied revision on.
    async fn candidate(&self, endpoint: &str) -> Result<Candidate, Error> {
        let link = &self.following.link;
        if self.suspects.get(endpoint).is_some_and(|since| since.elapsed() < SUSPICION) {
            let endpoint = endpoint.to_owned();
            return Ok(Candidate::Differs(Why::Diverged, Error::OtherEvents(endpoint)));
        }
        let member = match link.connect(endpoint, Purpose::Feed, link.cluster_id()).await {
            Err(error) if error.is_other_cluster() => return Ok(Candidate::Differs(Why::OtherCluster, error)),
            connected => connected?,
        };
        let (seen, applied) = (read_from(&member).await?, self.feed.applied());
        if seen.revision < applied {
            let why = format!("it is at revision {}, and revision {applied} is here", seen.revision);
            return Ok(Candidate::Differs(Why::Rewound, member.invalid(why)));
        }
        if seen.term < link.term() {
            let why = format!("its term is {}, and term {} was seen", seen.term, link.term());
            return Ok(Candidate::Differs(Why::OtherPast, member.invalid(why)));
        }
        link.note_term(seen.term);
        match seen.revision - applied > BEHIND {
            true => Ok(Candidate::Ahead),
            false => Ok(Candidate::Fits(member)),
        }
    }

    /// Loads everything anew. Where the histories meet, the missing revisions are adopted, and no watcher notices.
    async fn reload(&mut self, why: Why) -> Result<(), Ended> {
        tracing::warn!(%why, revision = self.following.store.revision(), "everything is loaded from the upstream anew");
        let is_other = matches!(why, Why::OtherCluster | Why::OtherPast | Why::Rewound | Why::Diverged);
        self.suspects.clear();
        if is_other {
            self.following.doubtful.store(true, Ordering::Relaxed);
            if self.on_divergence == OnDivergence::Exit {
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
                    self.unreachable(&error);
                    self.following.link.prefer_next();
                    backoff.wait().await;
                }
            }
        };
        self.replace(loaded, pin);
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
        let (loaded, session) = load_beside(&link, member, &mut self.feed, self.scratch.clone()).await?;
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
            tracing::info!(before, revision = store.revision(), "the missing revisions were taken over in order");
            Load::Exact
        } else {
            tracing::warn!(
                before, revision = newer.revision(), floor,
                "the state of the upstream replaces that of this replica: all watches are cancelled as compacted, and clients list again"
            );
            if let Some(seen) = pin {
                self.following.link.pin(seen);
            }
            store.swap(newer);
            how.knows()
        };
        let revision = store.revision();
        self.following.link.metrics.revision.set(revision);
        self.first = vec![Input::Loaded { revision, how }];
    }
}
