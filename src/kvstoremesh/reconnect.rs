//! Drives one remote cluster: connects again and again, revokes the services if the remote stays away, and keeps the
//! cluster configuration in the local store.
//!
//! Mirrored keys stay while the remote is away. If the same store answers again, the watches resume. If another store
//! answers, the prefixes are listed, and only keys that differ are written.

use super::cluster::{Loudness, REVOCABLE};
use super::connection;
use super::error::Error;
use super::remote::Remote;
use crate::kvstore::config::ClientConfig;
use crate::kvstore::{client, explain, keeper};
use crate::model::keys::{self, Scope};
use crate::util::backoff::Backoff;
use futures::FutureExt;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// Mirrors a remote cluster, for ever.
pub(super) async fn run(remote: Remote) {
    // The cluster configuration to keep in the local store, once it is known.
    let config = watch::Sender::new(None);
    tokio::select! {
        never = connect_again_and_again(&remote, &config) => match never {},
        never = revoke_when_overdue(&remote) => match never {},
        never = keep_config(&remote, config.subscribe()) => match never {},
    }
}

async fn connect_again_and_again(remote: &Remote, config: &watch::Sender<Option<Vec<u8>>>) -> Infallible {
    let state = &remote.state;
    loop {
        state.transition(|cluster| cluster.attempt_begun(Instant::now()));
        // Whatever a remote sends, a panic in a library must not end more than the connection to that remote.
        let connection = AssertUnwindSafe(Box::pin(connection::run(remote, config)));
        let Err(error) = connection.catch_unwind().await.unwrap_or(Err(Error::Panicked));
        let wait = match error {
            Error::ConfigChanged => {
                tracing::info!(cluster_name = %remote.name, %error, "reconnecting to the remote cluster");
                state.transition(|cluster| cluster.configuration_changed(Instant::now()))
            }
            Error::Client(error) => failed(remote, &explained(error, remote)),
            error => failed(remote, &error),
        };
        tokio::time::sleep(wait).await;
    }
}

/// The cause of an error, if that is this client's own configuration. What the remote does about it differs from attempt
/// to attempt.
fn explained(error: client::Error, remote: &Remote) -> Error {
    let config = ClientConfig::read(&remote.client_file).ok();
    match config.and_then(|config| explain::own_mistake(&config, &error)) {
        Some(cause) => {
            tracing::debug!(cluster_name = %remote.name, %error, "the remote cluster refuses this client");
            Error::OwnMistake(cause)
        }
        None => Error::Client(error),
    }
}

/// Reports a failure. Returns the wait before the next attempt.
fn failed(remote: &Remote, error: &Error) -> Duration {
    let (now, wall_time) = (Instant::now(), SystemTime::now());
    let retry = remote
        .state
        .transition(|cluster| cluster.failed(error.cause(), error.to_string(), now, wall_time));
    for scope in Scope::ALL {
        remote.sync.initial_read_pending(&scope.cache_prefix(&remote.name));
    }
    let address = remote.options.dialer.address().map(|address| address.to_string());
    if retry.forget_address {
        remote.options.dialer.forget();
    }
    match retry.loudness {
        Loudness::Warning => {
            tracing::warn!(cluster_name = %remote.name, error = retry.error, address, file = %remote.client_file.display(), "cannot connect to the remote cluster, or lost the connection; trying again");
        }
        Loudness::Debug => {
            tracing::debug!(cluster_name = %remote.name, error = retry.error, address, "still cannot connect to the remote cluster");
        }
    }
    retry.wait
}

/// Deletes the keys that send traffic to a remote cluster, once the remote has been away for the cache TTL.
async fn revoke_when_overdue(remote: &Remote) -> Infallible {
    if remote.cache_ttl.is_zero() {
        std::future::pending().await
    }
    loop {
        let due = remote.state.read(|cluster| cluster.revocation_due(remote.cache_ttl));
        let other = remote
            .state
            .until(|cluster| cluster.revocation_due(remote.cache_ttl) != due);
        let overdue = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = other => {}
            () = overdue => revoke(remote),
        }
    }
}

fn revoke(remote: &Remote) {
    let now = Instant::now();
    if !remote.state.transition(|cluster| cluster.revoke(remote.cache_ttl, now)) {
        return;
    }
    tracing::warn!(cluster_name = %remote.name, "the remote cluster was unreachable for longer than the cache TTL; revoking its services");
    for scope in REVOCABLE {
        // An empty list removes all keys of the prefix.
        let list = remote.sync.begin_list();
        remote.sync.end_list(&scope.cache_prefix(&remote.name), list);
    }
}

/// Keeps the cluster configuration in the local store: the one read last, or, until one is read, the one found there.
async fn keep_config(remote: &Remote, mut config: watch::Receiver<Option<Vec<u8>>>) -> Infallible {
    let key = keys::cluster_config(&remote.name);
    let mut backoff = Backoff::write();
    let found = loop {
        match remote.backend.get_and_adopt(&key).await {
            Ok(found) => break found.map(|value| value.to_vec()),
            Err(_) => backoff.wait().await,
        }
    };
    loop {
        let value = config.borrow_and_update().clone().or_else(|| found.clone());
        let kept = async {
            match value {
                Some(value) => {
                    let backend = Arc::clone(&remote.backend);
                    keeper::keep(backend, key.clone(), value, &remote.metrics.kept).await;
                }
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
