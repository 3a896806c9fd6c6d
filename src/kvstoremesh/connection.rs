//! One connection to one remote cluster, from the first request until an error ends it.
//!
//! ```text
//! heartbeat ─► cluster configuration ─► local store ─► per scope: canary ─► list or resume ─► watch
//! ```

use super::error::Error;
use super::exports::Exports;
use super::reflect::{Connected, forbidden_backoff, is_there, reflect};
use super::remote::Remote;
use crate::kvstore::client::{EtcdClient, Event};
use crate::kvstore::config::ClientConfig;
use crate::kvstore::explain::{self, Refused};
use crate::kvstore::keeper;
use crate::model::cluster::{ClusterConfig, ExportMode};
use crate::model::keys::{self, Scope};
use crate::model::probe::Probe;
use crate::util::backoff::Backoff;
use futures::future::select_all;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

/// A store whose heartbeat has not changed for this long is asked whether it answers.
const HEARTBEAT_MAX: Duration = Duration::from_secs(120);
/// Limit for the store's answer to that question.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// How often the round trip of a read is measured. The first [`FIRST_ROUND_TRIPS`] follow each other.
const ROUND_TRIPS: Duration = Duration::from_secs(10);
const FIRST_ROUND_TRIPS: u32 = 20;
/// Largest cluster configuration, in bytes.
const CONFIG_MAX: usize = 4096;
/// Largest number of canaries that are read; a cluster writes one canary for each scope.
const CANARIES_MAX: usize = 1000;
/// How long to wait for the cluster configuration before connecting again.
const CONFIG_WAIT: Duration = Duration::from_secs(180);

/// Connects and mirrors. Sends the cluster configuration that the local store must hold to `kept`.
pub(super) async fn run(remote: &Remote, kept: &watch::Sender<Option<Vec<u8>>>) -> Result<Infallible, Error> {
    let (client, revision) = remote.limits.connects.run(Box::pin(connect(remote))).await?;
    remote
        .state
        .transition(|cluster| cluster.connected(client.cluster_id()));
    let connection = Connection { remote, client };
    let config = connection.wait_for_config().await?;
    let exports = connection.exports(&config);
    connection.announce(&config, kept).await?;
    if let Some(import) = &remote.import {
        import.set_region(config.region.as_deref());
    }
    let state = &remote.state;
    state.transition(|cluster| cluster.configured(config.clone(), &exports));
    remote.ids_changed.notify_one();
    tracing::info!(cluster_name = %remote.name, cluster_id = config.id, "connected to the remote cluster");
    Box::pin(connection.follow(&config, &exports, revision)).await
}

struct Connection<'a> {
    remote: &'a Remote,
    client: EtcdClient,
}

/// Connects and reads the heartbeat. Returns the revision of that read.
async fn connect(remote: &Remote) -> Result<(EtcdClient, i64), Error> {
    let state = &remote.state;
    let config = ClientConfig::read(&remote.client_file)?;
    state.transition(|cluster| cluster.file_read(config.endpoints.join(",")));
    let client = EtcdClient::connect_with(&config, &remote.options).await?;
    let (heartbeat, revision) = match client.get_with_revision(keys::HEARTBEAT).await {
        Ok(read) => read,
        Err(error) => return Err(explained(Error::of(keys::HEARTBEAT, error), &client, remote).await),
    };
    let last = state.read(|cluster| cluster.last_heartbeat().cloned());
    let has_same_past = match last {
        Some(last) => is_there(&last, &client, last.mod_revision()).await?,
        None => false,
    };
    state.note(|cluster| {
        if !has_same_past {
            cluster.past_differs();
        }
        if let Some(heartbeat) = &heartbeat {
            cluster.heartbeat_read(heartbeat);
        }
    });
    Ok((client, revision))
}

/// Finds the cause of a refusal: an unknown user, or the store of another cluster.
async fn explained(error: Error, client: &EtcdClient, remote: &Remote) -> Error {
    let Error::Forbidden { .. } = &error else { return error };
    let Ok(config) = ClientConfig::read(&remote.client_file) else {
        return error;
    };
    match Box::pin(explain::refused(client, &config)).await {
        Some(Refused::NoUser { user }) => Error::NoUser { user },
        Some(Refused::Allowed { keys, .. }) => match keys::only_cluster(&keys) {
            Some(owner) if owner != remote.name.as_str() => Error::OtherCluster {
                endpoints: config.endpoints.join(","),
                owner: owner.to_owned(),
                name: remote.name.clone(),
            },
            _ => error,
        },
        None => error,
    }
}

impl Connection<'_> {
    /// Reads the cluster configuration, and waits until the remote cluster has written one.
    async fn wait_for_config(&self) -> Result<ClusterConfig, Error> {
        let deadline = Instant::now() + CONFIG_WAIT;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let error = match self.read_config().await? {
                Ok(config) => return Ok(config),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            let state = &self.remote.state;
            if state.transition(|cluster| cluster.configuration_missing(error.to_string())) {
                tracing::warn!(cluster_name = %self.remote.name, %error, "waiting for the configuration of the remote cluster");
            }
            backoff.wait().await;
        }
    }

    /// The cluster configuration, or the reason why it is not usable. The outer error ends the connection.
    async fn read_config(&self) -> Result<Result<ClusterConfig, Error>, Error> {
        let (key, name) = (keys::cluster_config(&self.remote.name), self.remote.name.clone());
        let read = match self.client.get(&key).await {
            Ok(read) => read,
            Err(error) => return Err(explained(Error::of(&key, error), &self.client, self.remote).await),
        };
        let Some(kv) = read else {
            return Ok(Err(Error::NoClusterConfig { key, name }));
        };
        let bytes = kv.value.len();
        if bytes > CONFIG_MAX {
            return Ok(Err(Error::HugeClusterConfig { key, bytes }));
        }
        let parsed = serde_json::from_slice(&kv.value);
        Ok(parsed.map_err(|source| Error::BadClusterConfig { key, source }))
    }

    fn exports(&self, config: &ClusterConfig) -> Exports {
        if let ExportMode::Unknown(mode) = &config.capabilities.endpoint_slices_export_mode {
            // As in Cilium, both forms are mirrored: a reader refuses a mode that it does not know.
            tracing::warn!(cluster_name = %self.remote.name, mode, "the remote cluster has an unknown endpointSlicesExportMode; mirroring both forms of its services");
        }
        Exports::of(config, self.remote.legacy_services)
    }

    /// Writes the cluster configuration to the local store before any data, so that readers know where the data is.
    async fn announce(&self, config: &ClusterConfig, kept: &watch::Sender<Option<Vec<u8>>>) -> Result<(), Error> {
        let mut mirrored = config.clone();
        mirrored.capabilities.synced_canaries = true;
        mirrored.capabilities.cached = true;
        mirrored.region = None;
        let (key, value) = (keys::cluster_config(&self.remote.name), mirrored.to_json());
        kept.send_if_modified(|kept| kept.replace(value.clone()).as_ref() != Some(&value));
        keeper::ensure(&*self.remote.backend, &key, &value).await?;
        Ok(())
    }

    /// Mirrors every scope, and follows the canaries, the cluster configuration and the heartbeat. `revision` is the
    /// revision of the first answer.
    async fn follow(&self, config: &ClusterConfig, exports: &Exports, revision: i64) -> Result<Infallible, Error> {
        let (seen, canaries) = watch::channel(BTreeSet::new());
        let connected = Connected {
            remote: self.remote,
            client: &self.client,
            exports,
            canaries,
            queued: watch::Sender::new(Scope::ALL.into_iter().filter(|s| !exports.scopes.contains(s)).collect()),
        };
        let scopes = Scope::ALL.map(|scope| {
            let prefix = exports.prefix(scope, &self.remote.name);
            reflect(&connected, scope).instrument(tracing::error_span!("kind of keys", prefix))
        });
        tokio::select! {
            (ended, ..) = select_all(scopes.map(Box::pin)) => ended,
            ended = self.follow_canaries(seen, exports.has_canaries) => ended,
            ended = self.follow_config(config) => ended,
            ended = self.follow_heartbeat(revision) => ended,
            ended = self.follow_probe() => ended,
        }
    }

    /// Follows the canaries. If the store forbids reading them, tries again alone: what is mirrored already is followed.
    async fn follow_canaries(
        &self,
        seen: watch::Sender<BTreeSet<String>>,
        are_needed: bool,
    ) -> Result<Infallible, Error> {
        let (name, state) = (&self.remote.name, &self.remote.state);
        let prefix = keys::synced_prefix(name);
        let mut backoff = forbidden_backoff();
        loop {
            let error = match self.read_canaries(&seen).await {
                Err(Error::Client(source)) if source.is_permission_denied() => Error::of(&prefix, source),
                ended => return ended,
            };
            if !are_needed {
                return Ok(std::future::pending().await);
            }
            if state.transition(|cluster| cluster.canaries_forbidden(Some(error.to_string()))) {
                tracing::warn!(cluster_name = %name, prefix, %error, "the remote cluster forbids reading its canaries; no kind of keys is mirrored before its canary is read");
            }
            backoff.wait().await;
        }
    }

    async fn read_canaries(&self, seen: &watch::Sender<BTreeSet<String>>) -> Result<Infallible, Error> {
        let name = &self.remote.name;
        let prefix = keys::synced_prefix(name);
        let canaries: BTreeSet<String> = Scope::ALL
            .iter()
            .flat_map(|scope| [scope.state_canary(name), scope.cache_canary(name)])
            .collect();
        let canary = |key: &[u8]| {
            std::str::from_utf8(key)
                .ok()
                .filter(|key| canaries.contains(*key))
                .map(str::to_owned)
        };
        let (mut pages, mut listed) = (self.client.pages(&prefix), 0);
        while let Some(page) = pages.next().await? {
            seen.send_modify(|seen| seen.extend(page.iter().filter_map(|kv| canary(&kv.key))));
            listed += page.len();
            if listed > CANARIES_MAX {
                let what = format!("more than {CANARIES_MAX} keys");
                return Err(Error::TooMuch { prefix, what });
            }
        }
        let mut watch = self.client.watch(&prefix, pages.revision + 1).await?;
        let state = &self.remote.state;
        state.transition(|cluster| cluster.canaries_forbidden(None));
        loop {
            let changes = watch.next().await?;
            // The deletion of a canary is ignored: the remote's first state was complete.
            let put = changes.events.iter().filter_map(Event::put);
            seen.send_modify(|seen| seen.extend(put.filter_map(|kv| canary(&kv.key))));
        }
    }

    /// Ends when the cluster configuration differs from `known`.
    async fn follow_config(&self, known: &ClusterConfig) -> Result<Infallible, Error> {
        let state = &self.remote.state;
        let key = keys::cluster_config(&self.remote.name);
        let mut watch = self.client.watch_key(&key, 0).await?;
        loop {
            // Read after the watch began, so that no change in between is missed.
            match self.read_config().await? {
                Ok(config) if config == *known => state.transition(|cluster| cluster.configuration_confirmed()),
                Ok(_) => return Err(Error::ConfigChanged),
                // The mirror stays valid without the remote's configuration.
                Err(error) => {
                    tracing::warn!(cluster_name = %self.remote.name, %error, "the configuration of the remote cluster is missing or invalid; keeping the previous configuration");
                    state.transition(|cluster| cluster.configuration_lost(error.to_string()));
                }
            }
            watch.next().await?;
        }
    }

    /// Follows the heartbeat. If the heartbeat stops, reads its key: as long as the store answers and the watch has
    /// missed no heartbeat, all other watches work too, and a new connection would gain nothing.
    async fn follow_heartbeat(&self, read_at: i64) -> Result<Infallible, Error> {
        let state = &self.remote.state;
        let mut watch = self.client.watch_key(keys::HEARTBEAT, read_at + 1).await?;
        let (mut last_revision, mut changed_at) = (read_at, Instant::now());
        loop {
            let change = async {
                loop {
                    let changes = watch.next().await?;
                    let put = changes.events.into_iter().filter_map(|event| match event {
                        Event::Put(kv) => Some(kv),
                        Event::Delete { .. } => None,
                    });
                    if let Some(heartbeat) = put.max_by_key(|kv| kv.mod_revision) {
                        return Ok::<_, Error>(heartbeat);
                    }
                }
            };
            match tokio::time::timeout(HEARTBEAT_MAX, change).await {
                Ok(heartbeat) => {
                    let heartbeat = heartbeat?;
                    last_revision = heartbeat.mod_revision;
                    state.observe(|observed| observed.saw_heartbeat(&heartbeat.value));
                    state.transition(|cluster| cluster.heartbeat_changed(&heartbeat));
                    changed_at = Instant::now();
                }
                Err(_) => {
                    let answer = tokio::time::timeout(PROBE_MAX, self.client.get(keys::HEARTBEAT)).await;
                    let answer = answer.map_err(|_| Error::NoHeartbeat(HEARTBEAT_MAX))??;
                    if answer.is_some_and(|kv| kv.mod_revision > last_revision) {
                        return Err(Error::StuckWatch);
                    }
                    self.remote.metrics.no_heartbeat();
                    if state.transition(|cluster| cluster.heartbeat_silent(changed_at)) {
                        tracing::warn!(cluster_name = %self.remote.name, "the heartbeat of the remote cluster stopped, but its store answers; keeping the connection");
                    }
                }
            }
        }
    }

    /// Measures how long commits take to arrive, by the probes of the publisher. A store without probes, or one that
    /// forbids reading them, is mirrored all the same.
    async fn follow_probe(&self) -> Result<Infallible, Error> {
        let key = keys::probe(&self.remote.name);
        let state = &self.remote.state;
        let (first, has_probes) = watch::channel(false);
        let follow = async {
            let Ok(mut watch) = self.client.watch_key(&key, 0).await else {
                return;
            };
            // Another watch notices that the connection is lost.
            while let Ok(changes) = watch.next().await {
                let last = changes.events.iter().rev().find_map(Event::put);
                if let Some(probe) = last.and_then(|kv| Probe::parse(&kv.value)) {
                    state.observe(|observed| observed.saw_probe(&probe));
                    first.send_replace(true);
                }
            }
        };
        // Reads run beside the watch: the arrival of a probe must not wait for the answer to a read.
        tokio::select! {
            () = follow => {}
            never = self.time_reads(&key, has_probes) => match never {},
        }
        Ok(std::future::pending().await)
    }

    /// Measures the round trip of a read now and then, once there are probes.
    async fn time_reads(&self, key: &str, mut has_probes: watch::Receiver<bool>) -> Infallible {
        if has_probes.wait_for(|has_probes| *has_probes).await.is_err() {
            std::future::pending().await
        }
        for n in 0_u32.. {
            let begun = Instant::now();
            if let Ok(Ok(_)) = tokio::time::timeout(PROBE_MAX, self.client.get(key)).await {
                self.remote
                    .state
                    .observe(|observed| observed.round_trip(begun.elapsed()));
            }
            let is_first = n < FIRST_ROUND_TRIPS;
            tokio::time::sleep(if is_first { ROUND_TRIPS / 50 } else { ROUND_TRIPS }).await;
        }
        std::future::pending().await
    }
}
