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

use super::reflect::{Connection, LEFT_ALONE, Positions, Turns};
use super::status::Shared;
use crate::kvstore::client::{Error as ClientError, EtcdClient, Event, Options};
use crate::kvstore::config::{ClientConfig, Error as ConfigError};
use crate::kvstore::sync_store::SyncStore;
use crate::kvstore::{self, Backend, keeper};
use crate::model::cluster::{ClusterConfig, ClusterName, ExportMode};
use crate::model::keys::{self, Scope};
use crate::util::backoff::Backoff;
use futures::FutureExt;
use futures::future::select_all;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
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
pub(super) const STEADY: Duration = Duration::from_secs(30);
/// Largest configuration of a cluster; in bytes.
const CONFIG_MAX: usize = 4096;
/// Most canaries; there is one for each kind.
const CANARIES_MAX: usize = 1000;
/// How often it is looked whether a remote is away.
const LOOK: Duration = Duration::from_secs(1);
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
    #[error("{key} has {bytes} bytes: no cluster configuration is that large")]
    HugeClusterConfig { key: String, bytes: usize },
    #[error("what it sent could not be handled; the log says more")]
    Panicked,
    #[error("its cluster configuration changed")]
    ConfigChanged,
    #[error("no heartbeat for {} s, and no answer", HEARTBEAT_MAX.as_secs())]
    NoHeartbeat,
    #[error("the heartbeat goes on, but the watch of it does not")]
    StuckWatch,
    #[error("{prefix} holds {what}")]
    TooMuch { prefix: String, what: String },
}

/// One remote cluster that is being mirrored.
pub(super) struct Remote {
    pub(super) name: ClusterName,
    /// Its client file.
    pub(super) path: PathBuf,
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
    pub(super) metrics: kvstore::Metrics,
    /// How to ask it.
    pub(super) how: Options,
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
        let config = watch::Sender::new(None);
        tokio::select! {
            never = self.connections(&config) => match never {},
            never = self.revoke_when_overdue() => match never {},
            never = self.keep_config(config.subscribe()) => match never {},
        }
    }

    async fn connections(&self, config: &watch::Sender<Option<Vec<u8>>>) -> Infallible {
        let (mut backoff, mut said) = (Backoff::connect(), String::new());
        loop {
            let started = Instant::now();
            // What a remote sends must not end more than its own connection, whatever a library makes of it.
            let connection = AssertUnwindSafe(Box::pin(self.connection(started, config)));
            let Err(error) = connection.catch_unwind().await.unwrap_or(Err(Error::Panicked));
            if matches!(error, Error::ConfigChanged) {
                // No failure, and nothing to wait for unless it goes on like that.
                tracing::info!(cluster_name = %self.name, %error, "connecting anew");
                self.status.update(|s| (s.connected, s.registered) = (false, false));
                match started.elapsed() >= STEADY {
                    true => backoff.reset(),
                    false => backoff.wait().await,
                }
                continue;
            }
            let was_connected = self.status.live().registered;
            let mut text = error.to_string();
            if !was_connected && matches!(&error, Error::Client(error) if error.is_connection_lost()) {
                text += "; is this side's certificate accepted there, and is it TLS on both sides?";
            }
            self.status.update(|s| {
                (s.connected, s.registered) = (false, false);
                s.error = Some(text.clone());
                s.attempts_failed += u64::from(!was_connected);
                if was_connected {
                    s.failures += 1;
                    s.last_failure = Some(SystemTime::now());
                    s.away_since = Some(Instant::now());
                }
            });
            for scope in Scope::ALL {
                self.sync.initial_read_pending(&scope.cache_prefix(&self.name));
            }
            // One that comes and goes is not waited for any less, and may be better at another address.
            match was_connected && started.elapsed() >= STEADY {
                true => backoff.reset(),
                false => self.how.dialer.forget(),
            }
            if was_connected || backoff.attempts().is_multiple_of(10) || text != said {
                tracing::warn!(cluster_name = %self.name, error = text, file = %self.path.display(), "no connection to the remote cluster, trying again");
            } else {
                tracing::debug!(cluster_name = %self.name, error = text, "no connection to the remote cluster");
            }
            said = text;
            match error {
                Error::TooMuch { .. } => tokio::time::sleep(LEFT_ALONE).await,
                _ => backoff.wait().await,
            }
        }
    }

    /// Keeps the cluster's configuration here as `config` has it, and until then as it is.
    async fn keep_config(&self, mut config: watch::Receiver<Option<Vec<u8>>>) -> Infallible {
        let key = keys::cluster_config(&self.name);
        let mut backoff = Backoff::write();
        let found = loop {
            match self.backend.get_and_adopt(&key).await {
                Ok(found) => break found.map(|value| value.to_vec()),
                Err(_) => backoff.wait().await,
            }
        };
        loop {
            let value = config.borrow_and_update().clone().or_else(|| found.clone());
            let kept = async {
                match value {
                    Some(value) => keeper::keep(Arc::clone(&self.backend), key.clone(), value).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = config.changed() => if changed.is_err() { std::future::pending().await },
                () = kept => {}
            }
        }
    }

    /// Deletes what would send traffic to a cluster that is not there, once it has been away for too long.
    async fn revoke_when_overdue(&self) -> Infallible {
        if self.cache_ttl.is_zero() {
            std::future::pending().await
        }
        loop {
            match self.status.live().away_since {
                Some(since) if since.elapsed() >= self.cache_ttl => self.revoke(),
                Some(since) => tokio::time::sleep_until(since + self.cache_ttl).await,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    fn revoke(&self) {
        tracing::warn!(cluster_name = %self.name, "the remote cluster stayed away: revoking its services");
        self.positions.forget(&REVOCABLE);
        self.status.update(|s| {
            s.revocations += 1;
            // Once, until it has been here again.
            s.away_since = None;
        });
        for scope in REVOCABLE {
            let list = self.sync.begin_list();
            self.sync.end_list(&scope.cache_prefix(&self.name), list);
        }
    }

    /// Connects, and reads the heartbeat for a first answer; returns at which revision.
    async fn connect(&self) -> Result<(EtcdClient, i64), Error> {
        let config = ClientConfig::read(&self.path)?;
        self.status.update(|s| s.endpoint = config.endpoints.join(","));
        let client = EtcdClient::connect_with(&config, &self.how).await?;
        let (heartbeat, revision) = client.get_with_revision(keys::HEARTBEAT).await?;
        self.positions.verify(&client).await?;
        if let Some(beat) = &heartbeat {
            self.positions.beat(beat);
        }
        Ok((client, revision))
    }

    /// One connection; it only ends with an error.
    async fn connection(&self, started: Instant, kept: &watch::Sender<Option<Vec<u8>>>) -> Result<Infallible, Error> {
        let (client, revision) = self.turns.connects.take(Box::pin(self.connect())).await?;
        self.status.update(|s| {
            (s.connected, s.error) = (true, None);
            s.cluster_id_hex = format!("{:x}", client.cluster_id());
        });
        let remote = self.cluster_config(&client).await?;
        let source = self.source(&remote);
        let mut mirrored = remote.clone();
        mirrored.capabilities.synced_canaries = true;
        mirrored.capabilities.cached = true;
        // Before any data, so that readers know where to look.
        let (config_key, config) = (keys::cluster_config(&self.name), mirrored.to_json());
        kept.send_if_modified(|kept| kept.replace(config.clone()).as_ref() != Some(&config));
        keeper::ensure(&*self.backend, &config_key, &config).await?;
        self.status.update(|s| {
            (s.config, s.config_retrieved, s.registered) = (Some(remote.clone()), true, true);
            (s.error, s.away_since) = (None, None);
            s.connects += 1;
            // What was complete before stays so while it is listed again.
            s.listed.retain(|scope, _| source.enabled.contains(scope));
            s.stopped.retain(|scope, _| source.enabled.contains(scope));
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
        tokio::select! {
            (ended, ..) = select_all(scopes.map(Box::pin)) => ended,
            ended = self.follow_canaries(&client, canaries) => ended,
            ended = self.follow_config(&client, &remote) => ended,
            ended = self.watch_heartbeat(&client, revision) => ended,
        }
    }

    /// Waits for the remote's configuration.
    async fn cluster_config(&self, client: &EtcdClient) -> Result<ClusterConfig, Error> {
        let key = keys::cluster_config(&self.name);
        let deadline = Instant::now() + CONFIG_WAIT;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let why = match self.read_config(client, &key).await? {
                Ok(config) => return Ok(config),
                Err(why) => why,
            };
            if Instant::now() >= deadline {
                return Err(why);
            }
            let text = why.to_string();
            if self.status.live().error.as_ref() != Some(&text) {
                tracing::warn!(cluster_name = %self.name, error = text, "waiting for the configuration of the remote cluster");
                self.status.update(|s| s.error = Some(text));
            }
            backoff.wait().await;
        }
    }

    /// The remote's configuration, or what is wrong with it.
    async fn read_config(&self, client: &EtcdClient, key: &str) -> Result<Result<ClusterConfig, Error>, Error> {
        let (key, name) = (key.to_owned(), self.name.clone());
        let Some(kv) = client.get(&key).await? else {
            return Ok(Err(Error::NoClusterConfig { key, name }));
        };
        let bytes = kv.value.len();
        if bytes > CONFIG_MAX {
            return Ok(Err(Error::HugeClusterConfig { key, bytes }));
        }
        let parsed = serde_json::from_slice(&kv.value);
        Ok(parsed.map_err(|source| Error::BadClusterConfig { key, source }))
    }

    fn source(&self, config: &ClusterConfig) -> Source {
        let capabilities = &config.capabilities;
        if let ExportMode::Unknown(mode) = &capabilities.endpoint_slices_export_mode {
            // Mirrored all the same, as the original does; readers refuse what they do not know.
            tracing::warn!(cluster_name = %self.name, mode, "the endpointSlicesExportMode of the remote cluster is not known here");
        }
        let mode = &capabilities.endpoint_slices_export_mode;
        let enabled = Scope::ALL.into_iter().filter(|scope| match scope {
            Scope::Services => self.legacy_services && *mode != ExportMode::EndpointSlices,
            Scope::EndpointSlices => *mode != ExportMode::Services,
            Scope::ServiceExports => capabilities.service_exports_enabled.is_some(),
            Scope::Identities | Scope::Endpoints | Scope::Nodes => true,
        });
        Source {
            cached: capabilities.cached,
            gated: capabilities.synced_canaries,
            enabled: enabled.collect(),
        }
    }

    /// Follows the remote's canaries.
    async fn follow_canaries(
        &self,
        client: &EtcdClient,
        seen: watch::Sender<BTreeSet<String>>,
    ) -> Result<Infallible, Error> {
        let prefix = keys::synced_prefix(&self.name);
        let known: BTreeSet<String> = Scope::ALL
            .iter()
            .flat_map(|scope| [scope.state_canary(&self.name), scope.cache_canary(&self.name)])
            .collect();
        let name = |key: &[u8]| {
            std::str::from_utf8(key)
                .ok()
                .filter(|key| known.contains(*key))
                .map(str::to_owned)
        };
        let (mut pages, mut listed) = (client.pages(&prefix), 0);
        while let Some(page) = pages.next().await? {
            seen.send_modify(|s| s.extend(page.iter().filter_map(|kv| name(&kv.key))));
            listed += page.len();
            if listed > CANARIES_MAX {
                let what = format!("more than {CANARIES_MAX} keys");
                return Err(Error::TooMuch { prefix, what });
            }
        }
        let mut watch = client.watch(&prefix, pages.revision + 1).await?;
        loop {
            let changes = watch.next().await?;
            // A canary that goes says nothing: what it stood for was here.
            let put = changes.events.iter().filter_map(Event::put);
            seen.send_modify(|s| s.extend(put.filter_map(|kv| name(&kv.key))));
        }
    }

    /// Ends when the remote's configuration is another one.
    async fn follow_config(&self, client: &EtcdClient, known: &ClusterConfig) -> Result<Infallible, Error> {
        let key = keys::cluster_config(&self.name);
        let mut watch = client.watch_key(&key, 0).await?;
        loop {
            // The watch began just now: what changed before it is seen here.
            match self.read_config(client, &key).await? {
                Ok(config) if config == *known => self.status.update(|s| s.error = None),
                Ok(_) => return Err(Error::ConfigChanged),
                // What is mirrored is as good as before.
                Err(error) => {
                    tracing::warn!(cluster_name = %self.name, %error, "the remote cluster lost its configuration: going on with the one before");
                    self.status.update(|s| s.error = Some(error.to_string()));
                }
            }
            watch.next().await?;
        }
    }

    /// Follows the heartbeat. When it stops, the store is asked: as long as it answers, all other watches are
    /// good, and nothing would be won by a new connection.
    async fn watch_heartbeat(&self, client: &EtcdClient, listed_at: i64) -> Result<Infallible, Error> {
        let mut watch = client.watch(keys::HEARTBEAT, listed_at + 1).await?;
        let (mut last, mut beat_at) = (None, Instant::now());
        loop {
            let beat = async {
                loop {
                    let changes = watch.next().await?;
                    let beats = changes.events.iter().filter_map(Event::put);
                    if let Some(beat) = beats.max_by_key(|kv| kv.mod_revision) {
                        self.positions.beat(beat);
                        return Ok::<_, Error>(beat.mod_revision);
                    }
                }
            };
            match tokio::time::timeout(HEARTBEAT_MAX, beat).await {
                Ok(revision) => {
                    last = Some(revision?);
                    self.status.update(|s| s.silent_since = None);
                    beat_at = Instant::now();
                }
                Err(_) => {
                    let answer = tokio::time::timeout(PROBE_MAX, client.get(keys::HEARTBEAT)).await;
                    let found = answer.map_err(|_| Error::NoHeartbeat)??.map(|kv| kv.mod_revision);
                    if found > last.or(Some(listed_at)) {
                        return Err(Error::StuckWatch);
                    }
                    self.metrics.no_heartbeat();
                    let silent = self.status.live().silent_since.is_some();
                    self.status.update(|s| s.silent_since = Some(beat_at));
                    if !silent {
                        tracing::warn!(cluster_name = %self.name, "no heartbeat, but the store of the remote cluster answers: going on");
                    }
                }
            }
        }
    }
}
