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
use crate::mvcc::Store;
use crate::server::upstream::Upstream;
use crate::util::backoff::Backoff;
use crate::util::lifecycle::Lifecycle;
use drive::{Driver, Settings};
use feed::Load;
use index::Index;
use link::Link;
use load::beside;
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
    /// The etcd client file that names other replicas of the same upstream.
    pub peers: Option<PathBuf>,
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

/// Whether a store has a state from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing that could be continued.
    Nothing,
    /// A state of the followed cluster, as of an earlier run.
    Kept,
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

/// An upstream that answers, and whose users are known.
pub struct Connected {
    config: Config,
    link: Arc<Link>,
}

/// Connects to the upstream, for however long that takes, and loads its users and roles into `auth`. Fails if the file that
/// names the upstream cannot be used.
pub async fn connect(config: &Config, auth: Arc<AuthStore>) -> Result<Connected, Error> {
    let people = Arc::new(People::new(auth));
    let link = Arc::new(Link::new(&config.file, config.peers.clone(), people, Arc::default())?);
    let mut waiting = Waiting::new(config, &link);
    while let Err(error) = Box::pin(beside::meet(&link)).await {
        waiting.after(&error).await;
    }
    Ok(Connected {
        config: config.clone(),
        link,
    })
}

impl Connected {
    /// The id of the cluster.
    pub fn cluster_id(&self) -> u64 {
        self.link.cluster_id()
    }

    /// Takes everything over from the upstream, for however long that takes, unless `store` has a state of this cluster that
    /// can be continued. A snapshot of the upstream is kept in a temporary file, in `scratch` if the system's directory for
    /// temporary files takes none.
    pub async fn load(self, store: Arc<Store>, contents: Contents, scratch: Option<PathBuf>) -> Replica {
        let Self { config, link } = self;
        let mut waiting = Waiting::new(&config, &link);
        let mut is_exact = contents == Contents::Kept && has_order(&store).await;
        let loaded = loop {
            if contents == Contents::Kept {
                break None;
            }
            match Box::pin(beside::load_first(&link, scratch.clone())).await {
                Ok((loaded, feed, session)) => {
                    store.swap(loaded.store);
                    break Some((loaded.how.knows(), feed, session));
                }
                Err(error) => waiting.after(&error).await,
            }
        };
        let (rewound, reports) = mpsc::channel(1);
        is_exact |= loaded.as_ref().is_some_and(|(how, ..)| *how == Load::Exact);
        link.metrics.revision.set(store.revision());
        let following = Arc::new(Following {
            link,
            index: Arc::new(Index::new()),
            store: Arc::clone(&store),
            cut_off: config.cut_off,
            exact: is_exact.into(),
            doubtful: false.into(),
            rewound,
        });
        let settings = Settings {
            on_divergence: config.on_divergence,
            scratch,
        };
        Replica {
            store,
            driver: Driver::new(Arc::clone(&following), settings, reports, loaded),
            following,
        }
    }
}

/// Whether the state of a store has the order of the upstream, also inside revisions.
async fn has_order(store: &Arc<Store>) -> bool {
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || store.is_exact())
        .await
        .unwrap_or(false)
}

/// The pauses between attempts to reach the upstream at the start.
struct Waiting<'a> {
    config: &'a Config,
    link: &'a Link,
    backoff: Backoff,
    began: Instant,
}

impl<'a> Waiting<'a> {
    fn new(config: &'a Config, link: &'a Link) -> Self {
        Self {
            config,
            link,
            backoff: Backoff::connect(),
            began: Instant::now(),
        }
    }

    async fn after(&mut self, error: &Error) {
        tracing::warn!(
            %error, file = %self.config.file.display(), secs = self.began.elapsed().as_secs(),
            "cannot follow the upstream; trying again"
        );
        self.link.prefer_next();
        self.backoff.wait().await;
    }
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
