//! Where a store comes from: memory, a data directory, or an upstream.

use crate::auth::{self, AuthStore, OnChange};
use crate::durable::{self, Durable, Loaded};
use crate::follow::{self, Contents, Replica};
use crate::mvcc::{Hooks, Recovery, Store};
use crate::server::{self, MemberIdentity, Wakers};
use crate::util::lifecycle::Lifecycle;
use anyhow::Context;
use std::sync::Arc;
use tokio::time::Instant;

/// The task of an auth store that can fail, for error messages.
const TOKENS: &str = "cannot set up auth tokens (--auth-token)";

/// The store and its users, with the journal that makes their changes durable.
pub(super) struct Opened {
    pub(super) store: Arc<Store>,
    pub(super) auth: Arc<AuthStore>,
    pub(super) durable: Option<Arc<Durable>>,
    /// The replica that owns the store.
    pub(super) replica: Option<Replica>,
}

/// Takes everything over from the upstream, whose identity `server` takes over, too.
pub(super) async fn follow_upstream(
    follow: &follow::Config,
    data: Option<durable::Config>,
    auth: auth::Config,
    wakers: &Wakers,
    server: &mut server::Config,
    life: &Lifecycle,
) -> anyhow::Result<Opened> {
    let auth = Arc::new(AuthStore::new(auth).context(TOKENS)?);
    let connected = follow::connect(follow, Arc::clone(&auth)).await.context("--follow")?;
    let (store, durable, contents) = match data {
        None => (Recovery::following().open(wakers.hooks()), None, Contents::Nothing),
        Some(data) => {
            server.scratch = Some(data.directory.clone());
            let copy = durable::Config {
                follows: Some(connected.cluster_id()),
                ..data
            };
            let (durable, loaded) = load(copy, wakers.hooks(), life).await?;
            server.identity.member_id = loaded.identity.member_id;
            let contents = match loaded.is_void || loaded.store.revision() <= 1 {
                true => Contents::Nothing,
                false => Contents::Kept,
            };
            (loaded.store, Some(durable), contents)
        }
    };
    let replica = connected.load(store, contents, server.scratch.clone()).await;
    let (cluster_id, raft_term) = replica.identity();
    server.identity = MemberIdentity {
        cluster_id,
        raft_term,
        ..server.identity
    };
    tracing::info!(
        etcd_cluster_id = %format_args!("{cluster_id:x}"), revision = replica.store.revision(),
        keys = replica.store.stats().keys, floor = replica.store.floor(), "the state of the upstream is here"
    );
    Ok(Opened {
        store: Arc::clone(&replica.store),
        auth,
        durable,
        replica: Some(replica),
    })
}

/// Opens the store of the data directory, whose identity `server` takes over, or an empty store in memory.
pub(super) async fn open(
    data: Option<durable::Config>,
    auth: auth::Config,
    wakers: &Wakers,
    server: &mut server::Config,
    life: &Lifecycle,
) -> anyhow::Result<Opened> {
    let Some(data) = data else {
        return Ok(Opened {
            store: Store::with_hooks(wakers.hooks()),
            auth: Arc::new(AuthStore::new(auth).context(TOKENS)?),
            durable: None,
            replica: None,
        });
    };
    server.scratch = Some(data.directory.clone());
    let (durable, loaded) = load(data, wakers.hooks(), life).await?;
    resume(server, &loaded);
    let journal = Arc::clone(&durable);
    let on_change: OnChange = Box::new(move |before, after| journal.auth_changed(before, after));
    Ok(Opened {
        auth: Arc::new(AuthStore::with(loaded.metadata.auth(), auth, Some(on_change)).context(TOKENS)?),
        store: loaded.store,
        durable: Some(durable),
        replica: None,
    })
}

/// Loads the data directory. A later failure to write to the directory ends the process, unless the directory is a copy of what
/// a replica follows.
async fn load(config: durable::Config, hooks: Hooks, life: &Lifecycle) -> anyhow::Result<(Arc<Durable>, Loaded)> {
    let (directory, is_copy) = (config.directory.clone(), config.follows.is_some());
    let begun = Instant::now();
    let (durable, loaded) = tokio::task::spawn_blocking(move || durable::open(&config, hooks)).await??;
    tracing::info!(
        data_dir = %directory.display(),
        etcd_cluster_id = %format_args!("{:x}", loaded.identity.cluster_id),
        revision = loaded.store.revision(),
        keys = loaded.store.stats().keys,
        secs = begun.elapsed().as_secs_f64(),
        "data loaded"
    );
    let durable = Arc::new(durable);
    let (stop, watched) = (life.stop_token().clone(), Arc::clone(&durable));
    let closing = Arc::clone(&durable);
    life.at_end(move || closing.close());
    if is_copy {
        life.spawn_part("data directory", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                why = watched.failed() => tracing::error!(
                    error = %why, "the replica's copy cannot be written any more; the replica goes on, and its next start loads from the upstream"
                ),
            }
        });
        return Ok((durable, loaded));
    }
    life.spawn("data directory", async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            why = watched.failed() => Err(why),
        }
    });
    Ok((durable, loaded))
}

/// Continues with the identity, the alarms and the peer URLs of the loaded store.
fn resume(server: &mut server::Config, loaded: &Loaded) {
    server.identity = MemberIdentity {
        cluster_id: loaded.identity.cluster_id,
        member_id: loaded.identity.member_id,
        raft_term: loaded.metadata.raft_term + 1,
    };
    server.alarms.clone_from(&loaded.metadata.alarms);
    if !loaded.metadata.peer_urls.is_empty() {
        server.peer_urls.clone_from(&loaded.metadata.peer_urls);
    }
}
