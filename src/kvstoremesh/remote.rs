//! One remote cluster: connect, read its configuration, mirror its prefixes, follow them; again when the
//! connection fails.
//!
//! ```text
//! connect ─► list heartbeat ─► read config ─► write config here ─► per scope: canary ─► list ─► watch
//!    ▲                                                                                            │
//!    └───────────── backoff ◄──────── error, silent heartbeat, changed config or cluster id ◄─────┘
//! ```
//!
//! What is mirrored stays while the remote is away. If the same store answers again, the watches go on from
//! where they were; if it is another one, a new list is a diff. Nothing is written for a key that did not change.

use super::reflect::{Connection, Positions, Turns};
use super::status::Shared;
use crate::kvstore::client::{Error as ClientError, EtcdClient};
use crate::kvstore::config::{ClientConfig, Error as ConfigError};
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{Backend, keeper};
use crate::model::cluster::{ClusterConfig, ClusterName, ExportMode};
use crate::model::keys::{self, Scope};
use crate::util::backoff::Backoff;
use futures::future::select_all;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// A remote without a heartbeat for this long is asked whether it is alive.
const HEARTBEAT_MAX: Duration = Duration::from_secs(120);
/// For its answer.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// A connection that held for this long was a good one: the next is not waited for.
const STEADY: Duration = Duration::from_secs(30);
/// A remote that sends too much is left alone for this long.
const LEFT_ALONE: Duration = Duration::from_secs(300);
/// How long to wait for a remote to publish its configuration, before connecting again.
const CONFIG_WAIT: Duration = Duration::from_secs(180);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write here: {0}")]
    Backend(#[from] crate::kvstore::Error),
    #[error("{key} is missing; is the cluster called {name}?")]
    NoClusterConfig { key: String, name: ClusterName },
    #[error("{key} is not a cluster configuration: {source}")]
    BadClusterConfig { key: String, source: serde_json::Error },
    #[error("its endpointSlicesExportMode {0:?} is not known here")]
    UnknownExportMode(String),
    #[error("its cluster configuration changed")]
    ConfigChanged,
    #[error("no heartbeat for {} s, and no answer", HEARTBEAT_MAX.as_secs())]
    NoHeartbeat,
    #[error("the heartbeat goes on, but the watch of it does not")]
    StuckWatch,
    #[error(
        "{prefix} holds {keys} keys, more than the {max} that are mirrored of one cluster (--clustermesh-max-keys)"
    )]
    TooManyKeys { prefix: String, keys: usize, max: usize },
}

/// One remote cluster that is being mirrored.
pub(super) struct Remote {
    pub(super) name: ClusterName,
    /// Its client file.
    pub(super) path: PathBuf,
    pub(super) own_id: u32,
    /// Whether legacy services are wanted here.
    pub(super) legacy_services: bool,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) sync: Arc<SyncStore>,
    pub(super) status: Shared,
    /// After this long without the remote its services are revoked; zero: never.
    pub(super) cache_ttl: Duration,
    /// Most keys of one scope.
    pub(super) keys_max: usize,
    pub(super) positions: Positions,
    pub(super) turns: Arc<Turns>,
}

/// Scopes that one remote's configuration enables, and where they are watched.
pub(super) struct Source {
    pub(super) cached: bool,
    pub(super) gated: bool,
    pub(super) enabled: BTreeSet<Scope>,
}

/// The scopes whose mirror is revoked when the remote stays away.
const REVOCABLE: [Scope; 3] = [Scope::Services, Scope::ServiceExports, Scope::EndpointSlices];

impl Remote {
    /// Mirrors, for ever.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::connect();
        loop {
            let started = Instant::now();
            let Err(error) = tokio::select! {
                ended = Box::pin(self.connection(started)) => ended,
                never = self.revoke_when_overdue() => match never {},
            };
            let was_connected = self.status.live().registered;
            self.status.update(|s| {
                (s.connected, s.registered) = (false, false);
                s.error = Some(error.to_string());
                s.attempts_failed += u64::from(!was_connected);
                if was_connected {
                    s.failures += 1;
                    s.last_failure = Some(SystemTime::now());
                    s.lost_at = Some(Instant::now());
                }
            });
            // One that comes and goes is not waited for any less.
            if was_connected && started.elapsed() >= STEADY {
                backoff.reset();
            }
            if was_connected || backoff.attempts().is_multiple_of(10) {
                tracing::warn!(cluster_name = %self.name, %error, file = %self.path.display(), "no connection to the remote cluster, trying again");
            } else {
                tracing::debug!(cluster_name = %self.name, %error, "no connection to the remote cluster");
            }
            match error {
                Error::TooManyKeys { .. } => tokio::time::sleep(LEFT_ALONE).await,
                _ => backoff.wait().await,
            }
        }
    }

    /// Deletes what would send traffic to a cluster that is not there, once it has been away for too long.
    async fn revoke_when_overdue(&self) -> Infallible {
        if let Some(lost_at) = self.status.live().lost_at.filter(|_| !self.cache_ttl.is_zero()) {
            tokio::time::sleep_until(lost_at + self.cache_ttl).await;
            if !self.status.live().registered {
                self.revoke();
            }
        }
        std::future::pending().await
    }

    fn revoke(&self) {
        tracing::warn!(cluster_name = %self.name, "the remote cluster stayed away: revoking its services");
        self.positions.forget(&REVOCABLE);
        self.status.update(|s| s.revocations += 1);
        for scope in REVOCABLE {
            let list = self.sync.begin_list();
            self.sync.end_list(&scope.cache_prefix(&self.name), list);
        }
    }

    /// One connection; it only ends with an error.
    async fn connection(&self, started: Instant) -> Result<Infallible, Error> {
        let config = ClientConfig::read(&self.path)?;
        self.status.update(|s| s.endpoint = config.endpoints.join(","));
        let turn = self.turns.connects.acquire().await;
        let client = EtcdClient::connect(&config).await?;
        let heartbeat = client.list(keys::HEARTBEAT).await?;
        drop(turn);
        self.positions.verify(&client).await?;
        heartbeat.kvs.iter().for_each(|beat| self.positions.beat(beat));
        self.status.update(|s| {
            (s.connected, s.error) = (true, None);
            s.cluster_id_hex = format!("{:x}", client.cluster_id());
        });
        let remote = self.cluster_config(&client).await?;
        let source = self.source(&remote)?;
        let mut mirrored = remote.clone();
        mirrored.capabilities.synced_canaries = true;
        mirrored.capabilities.cached = true;
        // Before any data, so that readers know where to look.
        let (config_key, config) = (keys::cluster_config(&self.name), mirrored.to_json());
        keeper::ensure(&*self.backend, &config_key, &config).await?;
        self.status.update(|s| {
            (s.config, s.config_retrieved, s.registered) = (Some(remote.clone()), true, true);
            (s.error, s.lost_at) = (None, None);
            // What was complete before stays so while it is listed again.
            s.listed.retain(|scope, _| source.enabled.contains(scope));
            for scope in &source.enabled {
                s.listed.entry(*scope).or_insert(false);
            }
        });
        tracing::info!(cluster_name = %self.name, cluster_id = remote.id, "connected to the remote cluster");
        let (canaries, seen) = watch::channel(BTreeSet::new());
        let connection = Connection {
            client: &client,
            source: &source,
            started,
            canaries: seen,
            identities: watch::Sender::new(!source.enabled.contains(&Scope::Identities)),
        };
        let scopes = Scope::ALL.map(|scope| self.reflect(&connection, scope));
        let kept = keeper::keep(Arc::clone(&self.backend), config_key, config);
        tokio::select! {
            (ended, ..) = select_all(scopes.map(Box::pin)) => ended,
            ended = self.follow_canaries(&client, canaries) => ended,
            ended = self.follow_config(&client, &remote) => ended,
            ended = self.watch_heartbeat(&client, heartbeat.revision) => ended,
            () = kept => Err(Error::ConfigChanged),
        }
    }

    /// Waits for the remote's configuration.
    async fn cluster_config(&self, client: &EtcdClient) -> Result<ClusterConfig, Error> {
        let key = keys::cluster_config(&self.name);
        let deadline = Instant::now() + CONFIG_WAIT;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            if let Some(kv) = client.get(&key).await? {
                let parsed = serde_json::from_slice(kv.value());
                return parsed.map_err(|source| Error::BadClusterConfig { key, source });
            }
            let missing = Error::NoClusterConfig {
                key: key.clone(),
                name: self.name.clone(),
            };
            if Instant::now() >= deadline {
                return Err(missing);
            }
            self.status.update(|s| s.error = Some(missing.to_string()));
            backoff.wait().await;
        }
    }

    fn source(&self, config: &ClusterConfig) -> Result<Source, Error> {
        let capabilities = &config.capabilities;
        if let ExportMode::Unknown(mode) = &capabilities.endpoint_slices_export_mode {
            return Err(Error::UnknownExportMode(mode.clone()));
        }
        if config.id == self.own_id {
            // Mirrored all the same, as the original does; agents refuse it.
            tracing::error!(cluster_name = %self.name, cluster_id = config.id, "the remote cluster has this cluster's id");
        }
        let mode = &capabilities.endpoint_slices_export_mode;
        let enabled = Scope::ALL.into_iter().filter(|scope| match scope {
            Scope::Services => self.legacy_services && *mode != ExportMode::EndpointSlices,
            Scope::EndpointSlices => *mode != ExportMode::Services,
            Scope::ServiceExports => capabilities.service_exports_enabled.is_some(),
            Scope::Identities | Scope::Endpoints | Scope::Nodes => true,
        });
        Ok(Source {
            cached: capabilities.cached,
            gated: capabilities.synced_canaries,
            enabled: enabled.collect(),
        })
    }

    /// Follows the remote's canaries.
    async fn follow_canaries(
        &self,
        client: &EtcdClient,
        seen: watch::Sender<BTreeSet<String>>,
    ) -> Result<Infallible, Error> {
        let prefix = keys::synced_prefix(&self.name);
        let name = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let listing = client.list(&prefix).await?;
        seen.send_modify(|s| s.extend(listing.kvs.iter().map(|kv| name(kv.key()))));
        let mut watch = client.watch(&prefix, listing.revision + 1).await?;
        loop {
            let changes = watch.next().await?;
            // A canary that goes says nothing: what it stood for was here.
            let new = changes.events.iter().filter(|(deleted, _)| !deleted);
            seen.send_modify(|s| s.extend(new.map(|(_, kv)| name(kv.key()))));
        }
    }

    /// Ends when the remote's configuration is another one.
    async fn follow_config(&self, client: &EtcdClient, known: &ClusterConfig) -> Result<Infallible, Error> {
        let key = keys::cluster_config(&self.name);
        let mut watch = client.watch_key(&key, 0).await?;
        loop {
            // The watch began just now: what changed before it is seen here.
            if self.cluster_config(client).await? != *known {
                return Err(Error::ConfigChanged);
            }
            self.status.update(|s| s.error = None);
            watch.next().await?;
        }
    }

    /// Follows the heartbeat. When it stops, the store is asked: as long as it answers, all other watches are
    /// good, and nothing would be won by a new connection.
    async fn watch_heartbeat(&self, client: &EtcdClient, listed_at: i64) -> Result<Infallible, Error> {
        let mut watch = client.watch(keys::HEARTBEAT, listed_at + 1).await?;
        let mut last = None;
        loop {
            let beat = async {
                loop {
                    let changes = watch.next().await?;
                    let beats = changes.events.iter().filter(|(deleted, _)| !deleted);
                    if let Some((_, beat)) = beats.max_by_key(|(_, kv)| kv.mod_revision()) {
                        self.positions.beat(beat);
                        return Ok::<_, Error>(beat.mod_revision());
                    }
                }
            };
            match tokio::time::timeout(HEARTBEAT_MAX, beat).await {
                Ok(revision) => {
                    last = Some(revision?);
                    self.status.update(|s| s.silent = false);
                }
                Err(_) => {
                    let answer = tokio::time::timeout(PROBE_MAX, client.get(keys::HEARTBEAT)).await;
                    let found = answer.map_err(|_| Error::NoHeartbeat)??.map(|kv| kv.mod_revision());
                    if found > last.or(Some(listed_at)) {
                        return Err(Error::StuckWatch);
                    }
                    let silent = self.status.live().silent;
                    self.status.update(|s| s.silent = true);
                    if !silent {
                        tracing::warn!(cluster_name = %self.name, "no heartbeat, but the store of the remote cluster answers: going on");
                    }
                }
            }
        }
    }
}

/// Removes what is left of a cluster: its configuration first, then, after `grace`, canaries and data.
pub(super) async fn drain(name: &ClusterName, backend: &dyn Backend, grace: Duration) {
    let mut backoff = Backoff::write();
    let mut steps: BTreeMap<u8, String> = BTreeMap::new();
    steps.insert(0, keys::cluster_config(name));
    steps.insert(1, keys::synced_prefix(name));
    for (at, scope) in Scope::ALL.into_iter().enumerate() {
        steps.insert(at as u8 + 2, scope.cache_prefix(name));
    }
    for (at, target) in steps {
        if at == 1 {
            // Agents that still read it get the time to leave.
            tokio::time::sleep(grace).await;
        }
        loop {
            let done = match at {
                0 => {
                    backend
                        .write(
                            crate::kvstore::Class::Live,
                            &[crate::kvstore::Write::Delete(target.clone().into())],
                        )
                        .await
                }
                _ => backend.delete_prefix(&target).await,
            };
            match done {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(cluster_name = %name, %error, "cannot remove the cluster's keys, trying again")
                }
            }
            backoff.wait().await;
        }
    }
    tracing::info!(cluster_name = %name, "removed what was mirrored of the cluster");
}
