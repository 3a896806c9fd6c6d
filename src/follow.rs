//! A replica: a store that repeats the revisions of another etcd, its *upstream*, and passes everything that changes
//! something on to it.
//!
//! `link` and `member` are the connections, `load` takes everything over at the start, `session` is the watch that brings
//! all changes, `feed` decides what its messages mean, and `drive` carries that out. `index` asks for the revision that a
//! linearizable read has to wait for. `upstream` is what the server's services see. `ARCHITECTURE.md` explains how they work
//! together.

mod drive;
mod endpoints;
mod error;
pub mod feed;
mod index;
mod link;
mod load;
mod member;
mod metrics;
mod people;
mod session;
mod upstream;
mod wire;
pub mod witness;

pub use error::Error;
pub use metrics::Metrics;
pub use upstream::CutOff;

use crate::auth::AuthStore;
use crate::mvcc::{Hooks, Store};
use crate::server::upstream::Upstream;
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use drive::{Driver, Settings};
use feed::Load;
use index::Index;
use link::Link;
use people::People;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use upstream::Following;

/// Time between looks whether the store has reached a revision.
const LOOK: Duration = Duration::from_millis(5);

/// The upstream of a replica, and what happens without it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The etcd client file that names the upstream.
    pub file: PathBuf,
    pub on_divergence: OnDivergence,
    pub cut_off: CutOff,
}

/// The reaction to an upstream with another past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDivergence {
    /// The state is loaded anew, and all watches are cancelled as compacted.
    Reload,
    /// The process ends.
    Exit,
}

/// A replica that has everything the upstream had when it was loaded.
pub struct Replica {
    pub store: Arc<Store>,
    following: Arc<Following>,
    driver: Driver,
}

/// A replica that follows.
pub struct Followed {
    following: Arc<Following>,
}

/// Loads everything from the upstream, for however long the upstream cannot be reached: users and roles into `auth`, and
/// the keys into a store that gets `hooks`. A snapshot of the upstream is kept in a temporary file, in `scratch` if the system's directory for temporary files
/// takes none. Fails if the file that names the upstream cannot be used.
pub async fn begin(
    config: &Config,
    auth: Arc<AuthStore>,
    hooks: Hooks,
    scratch: Option<PathBuf>,
) -> Result<Replica, Error> {
    let metrics = Arc::new(Metrics::default());
    let people = Arc::new(People::new(auth));
    let link = Arc::new(Link::new(&config.file, people, Arc::clone(&metrics))?);
    let mut backoff = Backoff::connect();
    let began = Instant::now();
    let (loaded, feed, session) = loop {
        match Box::pin(drive::load_first(&link, scratch.clone())).await {
            Ok(first) => break first,
            Err(error) => {
                tracing::warn!(
                    %error, file = %config.file.display(), secs = began.elapsed().as_secs(),
                    "cannot follow the upstream; trying again"
                );
                link.prefer_next();
                backoff.wait().await;
            }
        }
    };
    let load::Loaded { how, store } = loaded;
    let store = store.open(hooks);
    let (rewound, reports) = mpsc::channel(1);
    let following = Arc::new(Following {
        link,
        index: Arc::new(Index::new()),
        store: Arc::clone(&store),
        cut_off: config.cut_off,
        exact: (how.knows() == Load::Exact).into(),
        doubtful: false.into(),
        rewound,
    });
    let settings = Settings {
        on_divergence: config.on_divergence,
        scratch,
    };
    let driver = Driver::new(Arc::clone(&following), settings, reports, (feed, session, how));
    metrics.revision.set(store.revision());
    Ok(Replica {
        store,
        following,
        driver,
    })
}

impl Replica {
    /// The id of the followed cluster, and the highest term of its answers.
    pub fn identity(&self) -> (u64, u64) {
        (self.following.link.cluster_id(), self.following.link.term())
    }

    /// The upstream for the server's services.
    pub fn upstream(&self) -> Arc<dyn Upstream> {
        Arc::clone(&self.following) as _
    }

    /// Begins to follow.
    pub fn start(self, life: &Lifecycle) -> Followed {
        let Self { following, driver, .. } = self;
        let stop = life.stop_token().clone();
        life.spawn("feed", async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = driver.run() => ended.map(|never| match never {}),
            }
        });
        let reader = Arc::clone(&following);
        life.spawn_forever("read index", async move { reader.read_index().await });
        let users = Arc::clone(&following);
        life.spawn_forever("users of the upstream", async move {
            users.link.people.keep(&*users).await;
        });
        let link = Arc::clone(&following.link);
        life.spawn_forever("leader of the upstream", async move { link.keep_facts().await });
        Followed { following }
    }
}

impl Followed {
    /// Waits until the store has everything that the upstream has now, so that nobody sees time go back.
    pub async fn caught_up(&self) {
        let mut told = Instant::now();
        let needed = loop {
            match self.following.index.get().await {
                Ok(index) => break index,
                Err(error) if told.elapsed() > Duration::from_secs(5) => {
                    tracing::warn!(%error, "the replica waits for the upstream before it serves");
                    told = Instant::now();
                }
                Err(_) => {}
            }
        };
        while self.following.store.revision() < needed {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The figures of the replica.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.following.link.metrics
    }
}
