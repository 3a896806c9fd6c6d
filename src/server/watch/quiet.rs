//! Progress to quiet watches, so that their clients can resume after hours.
//!
//! A client resumes from the last revision that it was told. If nothing in its range changes, the revision is compacted
//! one day, and the client must list everything again. So a watch that had no message for a while is told the revision
//! up to which it has everything: a message under its own id, without events, as if the client had asked for progress
//! notifications. Clients that did not ask take it, too: Go's, jetcd and etcd-client note the revision of the header.

use super::{WatchSession, ticker};
use crate::pb::WatchHead;
use crate::server::Core;
use crate::server::commit::Cause;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Interval;

/// The time that streams get to tell their watches before history goes that these may need.
const TELLING: Duration = Duration::from_millis(200);
/// A random factor for the time between two looks at a stream's watches. Streams that were opened together should not
/// report together, and a watch is told after two looks at the latest.
const SPREAD: Range<f64> = 0.45..0.5;

/// What the client of a watch knows of its progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// The revision from which the client would resume, minus one.
    revision: i64,
    /// Whether the watch had a message since the last look.
    lately: bool,
    /// Whether the watch begins in the past, and its client was told nothing newer yet.
    resumed: bool,
}

impl Told {
    /// A watch that was created at revision `created` and begins at `start`; 0 stands for the revision after.
    pub(super) fn new(start: i64, created: i64) -> Self {
        Self {
            revision: if start == 0 { created } else { start - 1 },
            lately: true,
            resumed: start > 0 && start <= created,
        }
    }

    /// Notes a message with this revision in its header.
    pub(super) fn note(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
        (self.lately, self.resumed) = (true, false);
    }
}

/// The looks at the quiet watches of a stream; `None` if quiet watches are told nothing.
pub(super) fn looks(core: &Core) -> Option<Interval> {
    core.config.quiet_watch_time.map(|time| ticker(time, SPREAD))
}

impl WatchSession {
    /// Tells progress to the watches that had no message since the last look.
    pub(super) fn look_at_quiet(&mut self) {
        let quiet = |(id, entry): (&i64, &mut super::Entry)| (!std::mem::take(&mut entry.told.lately)).then_some(*id);
        let ids: Vec<i64> = self.watchers.iter_mut().filter_map(quiet).collect();
        for id in ids {
            self.tell(id);
        }
    }

    /// Tells progress to a watch that was woken and has no events: because its history is about to go, or because it was resumed. A
    /// client that moves often would otherwise keep the revision from which it resumed first.
    pub(super) fn tell_without_events(&mut self, id: i64) {
        let goes = self.core.history_goes.load(Ordering::Relaxed);
        let Some(entry) = self.watchers.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut entry.told.resumed) || entry.told.revision < goes {
            self.tell(id);
        }
    }

    /// Tells a watch the revision up to which it has everything, if that is news.
    fn tell(&mut self, id: i64) {
        let Some(entry) = self.watchers.get_mut(&id) else {
            return;
        };
        // A watch that begins in the future must not be told less than it asked for: Go's client would go back.
        let Some(revision) = self.core.store.synced([&entry.watcher]) else {
            return;
        };
        if revision <= entry.told.revision {
            return;
        }
        entry.told.note(revision);
        let head = WatchHead {
            watch_id: id,
            ..WatchHead::default()
        };
        self.answer(revision, head, Cause::Published);
    }
}

impl Core {
    /// Lets the quiet watches be told of their progress that would need revisions before `revision` to resume.
    pub(in crate::server) async fn history_goes(&self, revision: i64) {
        if self.config.quiet_watch_time.is_none() {
            return;
        }
        self.history_goes.store(revision, Ordering::Relaxed);
        self.store.wake_every_watcher();
        tokio::time::sleep(TELLING).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{self, AuthStore};
    use crate::lease::Lessor;
    use crate::mvcc::{Store, Write};
    use crate::pb::WatchResponse;
    use crate::pb::etcdserverpb as pb;
    use crate::server::admission::Caller;
    use crate::server::{Config, MemberIdentity, Parts, Wakers};
    use crate::util::lifecycle::Lifecycle;
    use std::sync::Arc;

    const TIME: Duration = Duration::from_secs(100);

    struct Bench {
        core: Arc<Core>,
        session: WatchSession,
        _life: Lifecycle,
    }

    fn bench() -> Bench {
        let (wakers, life) = (Wakers::default(), Lifecycle::default());
        let store = Store::with_hooks(wakers.hooks());
        let lessor = Arc::new(Lessor::new(Arc::clone(&store), 2));
        let auth = Arc::new(AuthStore::new(auth::Config::default()).unwrap());
        let config = Config {
            quiet_watch_time: Some(TIME),
            ..Config::new(MemberIdentity::random())
        };
        let parts = Parts {
            store,
            lessor,
            auth,
            durable: None,
            upstream: None,
            wakers,
        };
        let core = Core::start(parts, config, &life);
        Bench {
            session: WatchSession::new(Arc::clone(&core), Caller::default(), None),
            core,
            _life: life,
        }
    }

    fn create(session: &mut WatchSession, key: &'static str, start_revision: i64) {
        session.create(pb::WatchCreateRequest {
            key: key.into(),
            start_revision,
            ..Default::default()
        });
    }

    fn write(core: &Core, key: &'static str) -> i64 {
        core.store.apply(&[Write::Put(key.into(), "v".into())])
    }

    /// The next message, if one comes within a time.
    async fn within(session: &mut WatchSession, time: Duration) -> Option<WatchResponse> {
        let message = tokio::time::timeout(time, session.next()).await.ok()?;
        Some(message.unwrap().unwrap())
    }

    fn revision(message: &WatchResponse) -> i64 {
        message.head.header.as_ref().unwrap().revision
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_watch_is_told_the_revision_it_has_and_never_less_than_it_asked_for() {
        let Bench { core, mut session, .. } = bench();
        for (key, start) in [("quiet", 0), ("busy", 0), ("later", 5)] {
            create(&mut session, key, start);
            assert!(within(&mut session, TIME).await.unwrap().head.created);
        }
        // Nothing has changed: nobody needs to know.
        assert!(within(&mut session, 3 * TIME).await.is_none());
        write(&core, "busy");
        let events = within(&mut session, TIME).await.unwrap();
        assert_eq!((events.head.watch_id, events.events.len()), (1, 1));
        let told = within(&mut session, TIME).await.unwrap();
        assert_eq!((told.head.watch_id, revision(&told)), (0, 2));
        assert!(told.events.is_empty() && !told.head.created && !told.head.canceled);
        assert!(within(&mut session, 3 * TIME).await.is_none(), "nothing new since");
        for expected in 3..=5 {
            assert_eq!(write(&core, "other"), expected);
        }
        let mut told = vec![];
        while let Some(message) = within(&mut session, TIME).await {
            told.push((message.head.watch_id, revision(&message)));
        }
        told.sort_unstable();
        // The third watch begins with revision 5, which it has.
        assert_eq!(told, [(0, 5), (1, 5), (2, 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_resumed_is_told_at_once_what_it_has() {
        let Bench { core, mut session, .. } = bench();
        let soon = Duration::from_secs(1);
        for _ in 0..5 {
            write(&core, "other");
        }
        create(&mut session, "quiet", 3);
        assert!(within(&mut session, soon).await.unwrap().head.created);
        let told = within(&mut session, soon).await.unwrap();
        assert_eq!((told.head.watch_id, revision(&told)), (0, 6));
        // Events tell it, too.
        create(&mut session, "other", 3);
        assert!(within(&mut session, soon).await.unwrap().head.created);
        assert_eq!(within(&mut session, soon).await.unwrap().events.len(), 4);
        assert!(within(&mut session, soon).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_watch_is_told_before_its_history_goes() {
        let Bench { core, mut session, .. } = bench();
        let soon = Duration::from_secs(1);
        create(&mut session, "quiet", 0);
        assert!(within(&mut session, soon).await.unwrap().head.created);
        for _ in 0..5 {
            write(&core, "other");
        }
        core.history_goes(4).await;
        let told = within(&mut session, soon).await.unwrap();
        assert_eq!((told.head.watch_id, revision(&told)), (0, 6));
        core.history_goes(6).await;
        assert!(
            within(&mut session, soon).await.is_none(),
            "the client can resume there"
        );
    }
}
