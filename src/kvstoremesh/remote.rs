//! One remote cluster: connect, read its configuration, mirror its prefixes, follow them; again when the
//! connection fails.
//!
//! ```text
//! connect ─► list heartbeat ─► read config ─► write config here ─► per scope: canary ─► list ─► watch
//!    ▲                                                                                            │
//!    └───────────── backoff ◄──────── error, silent heartbeat, changed config or cluster id ◄─────┘
//! ```
//!
//! What is mirrored stays while the remote is away. A new list is a diff: nothing is written for a key
//! that did not change.

use super::status::Shared;
use crate::kvstore::client::{Changes, Error as ClientError, EtcdClient};
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

/// A remote without a heartbeat for this long is not alive.
const HEARTBEAT_MAX: Duration = Duration::from_secs(120);
/// How long to wait for a remote to publish its configuration, before connecting again.
const CONFIG_WAIT: Duration = Duration::from_secs(180);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Error {
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
    #[error("no heartbeat for {} s", HEARTBEAT_MAX.as_secs())]
    NoHeartbeat,
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
}

/// Scopes that one remote's configuration enables, and where they are watched.
struct Source {
    cached: bool,
    gated: bool,
    enabled: BTreeSet<Scope>,
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
                if was_connected {
                    s.failures += 1;
                    s.last_failure = Some(SystemTime::now());
                    s.lost_at = Some(Instant::now());
                }
            });
            if was_connected {
                backoff.reset();
            }
            if was_connected || backoff.attempts().is_multiple_of(10) {
                tracing::warn!(cluster_name = %self.name, %error, file = %self.path.display(), "no connection to the remote cluster, trying again");
            } else {
                tracing::debug!(cluster_name = %self.name, %error, "no connection to the remote cluster");
            }
            backoff.wait().await;
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
        for scope in REVOCABLE {
            let list = self.sync.begin_list();
            self.sync.end_list(&scope.cache_prefix(&self.name), list);
        }
    }

    /// One connection; it only ends with an error.
    async fn connection(&self, started: Instant) -> Result<Infallible, Error> {
        let config = ClientConfig::read(&self.path)?;
        self.status.update(|s| s.endpoint = config.endpoints.join(","));
        let client = EtcdClient::connect(&config).await?;
        let heartbeat = client.list(keys::HEARTBEAT).await?;
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
        let (identities, after_identities) = watch::channel(false);
        let scopes = Scope::ALL.map(|scope| {
            let identities = (scope == Scope::Identities).then(|| identities.clone());
            let wait_for = (scope == Scope::Endpoints).then(|| after_identities.clone());
            self.reflect(&client, &source, scope, seen.clone(), identities, wait_for, started)
        });
        let kept = keeper::keep(Arc::clone(&self.backend), config_key, config);
        tokio::select! {
            (ended, ..) = select_all(scopes.map(Box::pin)) => ended,
            ended = self.follow_canaries(&client, canaries) => ended,
            ended = self.follow_config(&client, &remote) => ended,
            ended = watch_heartbeat(&client, heartbeat.revision) => ended,
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

    /// Mirrors one scope.
    #[allow(clippy::too_many_arguments, reason = "what one connection's scopes share")]
    async fn reflect(
        &self,
        client: &EtcdClient,
        source: &Source,
        scope: Scope,
        mut canaries: watch::Receiver<BTreeSet<String>>,
        identities_done: Option<watch::Sender<bool>>,
        wait_for: Option<watch::Receiver<bool>>,
        started: Instant,
    ) -> Result<Infallible, Error> {
        let (target, canary) = (scope.cache_prefix(&self.name), scope.cache_canary(&self.name));
        if !source.enabled.contains(&scope) {
            // Nothing is mirrored, and readers that wait for the canary should not.
            let list = self.sync.begin_list();
            self.sync.end_list(&target, list);
            self.sync.canary(canary.clone(), keys::timestamp());
            return Ok(self.written(&canary, started).await);
        }
        let (prefix, gate) = match source.cached {
            true => (target.clone(), canary.clone()),
            false => (scope.state_prefix(&self.name), scope.state_canary(&self.name)),
        };
        if source.gated {
            // The senders live as long as this.
            let _ = canaries.wait_for(|seen| seen.contains(&gate)).await;
        }
        if let Some(mut identities) = wait_for {
            let _ = identities.wait_for(|done| *done).await;
        }
        let listing = client.list(&prefix).await?;
        let list = self.sync.begin_list();
        let mut refused = 0;
        for kv in &listing.kvs {
            match name_under(kv.key(), &prefix) {
                Some(name) => self
                    .sync
                    .upsert([target.as_bytes(), name].concat(), kv.value().to_vec()),
                None => refused += 1,
            }
        }
        if refused > 0 {
            tracing::warn!(cluster_name = %self.name, prefix, keys = refused, "keys with unsafe names are not mirrored");
        }
        self.sync.end_list(&target, list);
        if !self.sync.is_written(&canary) {
            self.sync.canary(canary.clone(), keys::timestamp());
        }
        self.status.update(|s| {
            s.listed.insert(scope, true);
        });
        if let Some(done) = identities_done {
            done.send_replace(true);
        }
        let follow = self.follow_scope(client, &prefix, &target, listing.revision + 1);
        tokio::select! { ended = follow => ended, never = self.written(&canary, started) => match never {} }
    }

    /// Notes how long the first complete mirror took, once the last canary is written.
    async fn written(&self, canary: &str, started: Instant) -> Infallible {
        self.sync.written(canary).await;
        if Scope::ALL
            .iter()
            .all(|s| self.sync.is_written(&s.cache_canary(&self.name)))
        {
            self.status.update(|s| {
                s.sync_took.get_or_insert(started.elapsed());
            });
        }
        std::future::pending().await
    }

    async fn follow_scope(
        &self,
        client: &EtcdClient,
        prefix: &str,
        target: &str,
        from: i64,
    ) -> Result<Infallible, Error> {
        let mut watch = client.watch(prefix, from).await?;
        loop {
            let Changes { events, .. } = watch.next().await?;
            for (deleted, kv) in events {
                let Some(name) = name_under(kv.key(), prefix) else {
                    tracing::warn!(cluster_name = %self.name, prefix, "a key with an unsafe name is not mirrored");
                    continue;
                };
                let key = [target.as_bytes(), name].concat();
                match deleted {
                    true => self.sync.delete(key),
                    false => self.sync.upsert(key, kv.value().to_vec()),
                }
            }
        }
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
}

/// Ends when the heartbeat has been silent for too long.
async fn watch_heartbeat(client: &EtcdClient, listed_at: i64) -> Result<Infallible, Error> {
    let mut watch = client.watch(keys::HEARTBEAT, listed_at + 1).await?;
    loop {
        let beat = async {
            loop {
                let changes = watch.next().await?;
                if changes.events.iter().any(|(deleted, _)| !deleted) {
                    return Ok::<_, Error>(());
                }
            }
        };
        tokio::time::timeout(HEARTBEAT_MAX, beat)
            .await
            .map_err(|_| Error::NoHeartbeat)??;
    }
}

/// What follows `prefix` in a key, if that is safe to put under another prefix.
fn name_under<'a>(key: &'a [u8], prefix: &str) -> Option<&'a [u8]> {
    key.strip_prefix(prefix.as_bytes())
        .filter(|name| keys::is_safe_name(name))
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
