//! Loads everything anew, and puts it into place: as the continuation of what is here where the histories meet.

use super::super::OnDivergence;
use super::super::endpoints::{BEHIND, Candidate, is_other_past};
use super::super::error::Error;
use super::super::feed::{Feed, Input, Load, Why};
use super::super::link::{Seen, read_from};
use super::super::load::beside::{Sisters, load_beside};
use super::super::load::{How, Loaded, blocking};
use super::super::member::{Member, Purpose};
use super::super::witness::Decision;
use super::{Driver, Ended};
use crate::mvcc::{Divergence, Recovery, Seam, Store};
use crate::util::backoff::Backoff;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What was loaded, and where from.
struct Source {
    loaded: Loaded,
    seen: Seen,
    endpoint: String,
}

impl Driver {
    /// Loads everything anew. Where the histories meet, the missing revisions are adopted, and no watcher notices.
    pub(super) async fn reload(&mut self, why: Why) -> Result<(), Ended> {
        tracing::warn!(%why, revision = self.following.store.revision(), "everything is loaded from the upstream anew");
        let mut is_other = is_other_past(why);
        if is_other {
            self.doubt(why)?;
        }
        let (mut backoff, mut sisters) = (Backoff::connect(), true);
        loop {
            match self.endpoints.decide() {
                Decision::Wait { .. } => self.following.doubtful.store(true, Ordering::Relaxed),
                Decision::LoadAnew { why } if !is_other => {
                    self.doubt(why)?;
                    is_other = true;
                }
                Decision::LoadAnew { .. } | Decision::Follow => {}
            }
            // A feed that has failed once buffers no more.
            self.feed = Feed::new(0);
            match Box::pin(self.load_and_join(is_other, &mut sisters)).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => self.unreachable("", &error),
            }
            self.following.link.prefer_next();
            backoff.wait().await;
        }
        self.endpoints.begin();
        self.following.doubtful.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Answers nothing more that could mix two pasts; ends the replica where that is wanted.
    fn doubt(&self, why: Why) -> Result<(), Ended> {
        self.following.doubtful.store(true, Ordering::Relaxed);
        match self.settings.on_divergence {
            OnDivergence::Exit => Err(Ended::Diverged(why)),
            OnDivergence::Reload => Ok(()),
        }
    }

    /// Loads, and puts what was loaded into place; false if it has another past, although it should have that of this replica.
    async fn load_and_join(&mut self, is_other: bool, sisters: &mut bool) -> Result<bool, Error> {
        let Source { loaded, seen, endpoint } = self.load(is_other, *sisters).await?;
        if is_other {
            self.swap(loaded, Some(seen));
            return Ok(true);
        }
        let (how, store) = (loaded.how, Arc::clone(&self.following.store));
        // Comparing millions of keys takes a while.
        let (seam, loaded) = blocking(move || Ok((store.seam(&loaded.store), loaded))).await?;
        let Err(divergence) = seam.and_then(|seam| self.join(seam, loaded)) else {
            return Ok(true);
        };
        *sisters &= how != How::Sister;
        self.contradicted(how, &endpoint, &divergence);
        Ok(false)
    }

    /// Notes that what was loaded cannot come after what is here.
    fn contradicted(&mut self, how: How, endpoint: &str, divergence: &Divergence) {
        self.session = None;
        self.following.link.metrics.divergences.inc();
        if how == How::Sister {
            tracing::warn!(%divergence, "another replica has another past than this one; the upstream is loaded from");
            return;
        }
        tracing::warn!(
            endpoint, %divergence,
            "the keys of the endpoint are of another past than those of this replica; it is shut out"
        );
        self.following.doubtful.store(true, Ordering::Relaxed);
        self.endpoints.contradicted(endpoint, self.following.store.revision());
    }

    /// Loads from an endpoint that has the past of this replica as far as its answers show, or from one of any cluster.
    async fn load(&mut self, any: bool, sisters: bool) -> Result<Source, Error> {
        let link = Arc::clone(&self.following.link);
        let member = match any {
            false => self.fitting().await?,
            true => link.connect_to_any_cluster(Purpose::Feed).await?,
        };
        let (seen, endpoint) = (read_from(&member).await?, member.endpoint.clone());
        let sisters = match sisters && !any {
            true => Sisters::From((seen.revision - BEHIND / 2).max(self.following.store.revision() + 1)),
            false => Sisters::Never,
        };
        let scratch = self.settings.scratch.clone();
        let (loaded, session) = load_beside(&link, member, &mut self.feed, (sisters, scratch)).await?;
        self.session = session;
        Ok(Source { loaded, seen, endpoint })
    }

    /// Connects to the first endpoint that is not shut out, and whose answers fit to what is here.
    async fn fitting(&mut self) -> Result<Member, Error> {
        let applied = self.following.store.revision();
        let mut errors = vec![];
        for endpoint in self.endpoints.order() {
            if self.endpoints.is_shut_out(&endpoint) {
                errors.push(Error::OtherPast(endpoint));
                continue;
            }
            match Box::pin(self.endpoints.candidate(&endpoint, applied)).await {
                Ok(Candidate::Fits(member) | Candidate::Ahead(member)) => return Ok(*member),
                Ok(Candidate::Differs(why)) => {
                    self.differs(&endpoint, &why);
                    errors.push(Error::OtherPast(endpoint));
                }
                Err(error) => {
                    self.endpoints.unreachable(&endpoint);
                    errors.push(error);
                }
            }
        }
        Err(Error::Nobody(errors))
    }

    /// Puts a loaded state into place as the continuation of the present one.
    fn join(&mut self, seam: Seam, loaded: Loaded) -> Result<(), Divergence> {
        let (before, floor) = (self.following.store.revision(), loaded.store.floor());
        tracing::info!(
            before,
            floor,
            ?seam,
            "the keys of the upstream are of the past of this replica"
        );
        match seam {
            Seam::Met => {
                self.following.store.adopt_from(&loaded.store)?;
                let revision = self.following.store.revision();
                tracing::info!(before, revision, "the missing revisions were taken over in order");
                self.placed(Load::Exact);
            }
            Seam::Closed | Seam::Open => {
                let cancelled = "watches that need a missing revision";
                self.replace(loaded, cancelled, |store, newer| store.skip_to(newer));
            }
            Seam::Torn => self.swap(loaded, None),
        }
        Ok(())
    }

    /// Puts a loaded state into place, whatever is here. `pin` is the cluster, or the past of a cluster, that is followed from
    /// now on.
    fn swap(&mut self, loaded: Loaded, pin: Option<Seen>) {
        if let Some(seen) = pin {
            self.following.link.pin(seen);
        }
        self.replace(loaded, "all watches", |store, newer| store.swap(newer));
    }

    fn replace(&mut self, loaded: Loaded, cancelled: &str, place: impl FnOnce(&Store, Recovery)) {
        let Loaded { how, store: newer } = loaded;
        let following = &self.following;
        tracing::warn!(
            before = following.store.revision(),
            revision = newer.revision(),
            floor = newer.floor(),
            "the state of the upstream replaces that of this replica: {cancelled} are cancelled as compacted, and their clients list again"
        );
        let is_exact = how.knows() == Load::Exact;
        // Another replica must not be given a state whose order is not known.
        following.exact.fetch_and(is_exact, Ordering::SeqCst);
        place(&following.store, newer);
        following.exact.store(is_exact, Ordering::SeqCst);
        self.placed(how.knows());
    }

    /// Tells the feed of a state that was put into place.
    fn placed(&mut self, how: Load) {
        let revision = self.following.store.revision();
        self.following.link.metrics.revision.set(revision);
        self.first = vec![Input::Loaded { revision, how }];
    }
}
