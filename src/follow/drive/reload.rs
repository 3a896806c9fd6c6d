//! Loads everything anew, and puts it into place: as the continuation of what is here where the histories meet.

use super::super::OnDivergence;
use super::super::endpoints::{BEHIND, is_other_past};
use super::super::error::Error;
use super::super::feed::{Feed, Input, Load, Why};
use super::super::link::{Seen, read_from};
use super::super::load::Loaded;
use super::super::load::beside::{Sisters, load_beside};
use super::super::member::Purpose;
use super::{Driver, Ended};
use crate::util::backoff::Backoff;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Driver {
    /// Loads everything anew. Where the histories meet, the missing revisions are adopted, and no watcher notices.
    pub(super) async fn reload(&mut self, why: Why) -> Result<(), Ended> {
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
