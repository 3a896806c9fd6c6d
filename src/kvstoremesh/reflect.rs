//! One scope of one remote cluster: list, then watch; after a broken connection go on from where the mirror is.
//!
//! The remote is not trusted: what could leave its place here, is too large or too much is refused, counted
//! and named in the status, and costs no other cluster anything.

use super::remote::{Error, Remote, STEADY, Source};
use crate::kvstore::client::{Changes, Error as ClientError, EtcdClient, Event, KeyValue, Pages};
use crate::kvstore::sync_store::PrefixSize;
use crate::model::keys::{self, Scope};

use crate::util::backoff::Backoff;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Values that are larger are not mirrored: agents read no value near this, and an etcd takes 1.5 MiB at most.
pub const VALUE_MAX: usize = 1 << 20;
/// Keys that are longer are not mirrored.
pub const KEY_MAX: usize = 4096;
/// Bytes of values of one kind of one cluster; more is not mirrored.
const BYTES_MAX: usize = 1 << 30;
/// Initial lists that are read at the same time.
const LISTS: usize = 8;
/// Connections that are made at the same time.
const CONNECTS: usize = 64;
/// What takes longer than this no longer keeps others waiting.
const TURN: Duration = Duration::from_secs(5);
/// A list that takes longer has failed.
const LIST_MAX: Duration = Duration::from_secs(600);

/// A kind of which a remote has too many keys is looked at again after this long.
pub(super) const LEFT_ALONE: Duration = Duration::from_secs(300);

/// What all remote clusters share.
pub(super) struct Turns {
    lists: Turn,
    /// Connections that are made at the same time.
    pub(super) connects: Turn,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            lists: Turn(Semaphore::new(LISTS)),
            connects: Turn(Semaphore::new(CONNECTS)),
        }
    }
}

/// Lets few go at a time; one that takes long goes on, and no longer keeps others waiting.
pub(super) struct Turn(Semaphore);

impl Turn {
    pub(super) async fn take<T>(&self, work: impl Future<Output = T>) -> T {
        let turn = self.0.acquire().await;
        let mut work = Box::pin(work);
        match tokio::time::timeout(TURN, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                drop(turn);
                work.await
            }
        }
    }
}

/// How far a scope's mirror is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The store it was read from.
    cluster_id: u64,
    /// Where it was watched.
    prefix: String,
    /// Everything up to this revision is here.
    revision: i64,
    /// A key as it is at that revision: a store that has it otherwise has another past.
    witness: Option<Witness>,
}

/// A key-value by which a store's past is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    key: Vec<u8>,
    revisions: (i64, i64, i64),
    value: u64,
}

impl Witness {
    fn of(kv: &KeyValue) -> Self {
        let mut hasher = DefaultHasher::new();
        kv.value.hash(&mut hasher);
        Self {
            key: kv.key.clone(),
            revisions: (kv.create_revision, kv.mod_revision, kv.version),
            value: hasher.finish(),
        }
    }

    /// Whether the store has the same key-value at `revision`.
    async fn is_there(&self, client: &EtcdClient, revision: i64) -> Result<bool, Error> {
        match client.get_at(&self.key, revision).await {
            Ok(found) => Ok(found.is_some_and(|kv| Self::of(&kv) == *self)),
            Err(error) if error.is_out_of_range() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// How far the mirror of a cluster is, scope by scope. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Positions(Arc<Mutex<BTreeMap<Scope, Position>>>, Arc<Mutex<Option<Witness>>>);

impl Positions {
    /// What is here of these scopes is no longer what was read.
    pub(super) fn forget(&self, scopes: &[Scope]) {
        self.0.lock().retain(|scope, _| !scopes.contains(scope));
    }

    fn get(&self, scope: Scope, cluster_id: u64, prefix: &str) -> Option<Position> {
        let position = self.0.lock().get(&scope)?.clone();
        (position.cluster_id == cluster_id && position.prefix == prefix).then_some(position)
    }

    /// The last heartbeat seen: no other past has one of the same time at the same revision.
    pub(super) fn beat(&self, heartbeat: &KeyValue) {
        *self.1.lock() = Some(Witness::of(heartbeat));
    }

    /// Forgets everything unless the store has the past that was seen.
    pub(super) async fn verify(&self, client: &EtcdClient) -> Result<(), Error> {
        let seen = self.1.lock().clone();
        let same = match seen {
            Some(beat) => beat.is_there(client, beat.revisions.1).await?,
            None => false,
        };
        if !same {
            self.forget(&Scope::ALL);
        }
        Ok(())
    }

    fn set(&self, scope: Scope, position: Position) {
        self.0.lock().insert(scope, position);
    }

    fn advance(&self, scope: Scope, revision: i64) {
        if let Some(position) = self.0.lock().get_mut(&scope) {
            position.revision = position.revision.max(revision);
        }
    }

    /// Notes a change: the last key put is the witness, as long as it is there.
    fn changed(&self, scope: Scope, event: &Event) {
        if let Some(position) = self.0.lock().get_mut(&scope) {
            match (event, &position.witness) {
                (Event::Put(kv), _) => position.witness = Some(Witness::of(kv)),
                (Event::Delete { key, .. }, Some(witness)) if witness.key == *key => position.witness = None,
                (Event::Delete { .. }, _) => {}
            }
        }
    }
}

/// What the scopes of one connection share.
pub(super) struct Connection<'a> {
    pub(super) client: &'a EtcdClient,
    pub(super) source: &'a Source,
    pub(super) started: Instant,
    /// Canaries of the remote that have been seen.
    pub(super) canaries: watch::Receiver<BTreeSet<String>>,
    /// Whether the identities are here, which are written before the addresses that name them.
    pub(super) identities: watch::Sender<bool>,
}

impl Connection<'_> {
    fn identities_done(&self, scope: Scope) {
        if scope == Scope::Identities {
            self.identities.send_replace(true);
        }
    }
}

/// What is wrong with a key, if anything is.
fn refusal(key: &[u8], prefix: &str, value: &[u8]) -> Result<usize, &'static str> {
    let Some(name) = key.strip_prefix(prefix.as_bytes()) else {
        return Err("key outside of what was asked for");
    };
    if !keys::is_safe_name(name) {
        return Err("unsafe key");
    }
    match (key.len() > KEY_MAX, value.len() > VALUE_MAX) {
        (true, _) => Err("key too long"),
        (_, true) => Err("value too large"),
        _ => Ok(prefix.len()),
    }
}

impl Remote {
    /// Mirrors one scope.
    pub(super) async fn reflect(&self, connection: &Connection<'_>, scope: Scope) -> Result<Infallible, Error> {
        let (target, canary) = (scope.cache_prefix(&self.name), scope.cache_canary(&self.name));
        let source = connection.source;
        if !source.enabled.contains(&scope) {
            // Nothing is mirrored, and readers that wait for the canary should not.
            self.positions.forget(&[scope]);
            let list = self.sync.begin_list();
            self.sync.end_list(&target, list);
            self.write_canary(&canary);
            return Ok(self.written(scope, connection.started).await);
        }
        let (prefix, gate) = match source.cached {
            true => (target.clone(), canary.clone()),
            false => (scope.state_prefix(&self.name), scope.state_canary(&self.name)),
        };
        if source.gated {
            // The senders live as long as this.
            let _ = connection.canaries.clone().wait_for(|seen| seen.contains(&gate)).await;
        }
        if scope == Scope::Endpoints {
            let _ = connection.identities.subscribe().wait_for(|done| *done).await;
        }
        let place = Place { scope, prefix, target };
        let mirrored = self.mirror(connection, &place, &canary);
        tokio::select! { ended = mirrored => ended, never = self.written(scope, connection.started) => match never {} }
    }

    /// Lists and watches, and lists again when the past is gone.
    async fn mirror(&self, connection: &Connection<'_>, place: &Place, canary: &str) -> Result<Infallible, Error> {
        let mut backoff = Backoff::connect();
        loop {
            let began = Instant::now();
            let Err(error) = self.mirror_once(connection, place, canary).await;
            // What was seen since does not lead on from here, or is sent in a form that cannot be taken.
            let too_much = match &error {
                Error::TooMuch { .. } => true,
                Error::Client(ClientError::Compacted(_)) => false,
                Error::Client(error) if error.is_too_large() => false,
                _ => return Err(error),
            };
            self.positions.forget(&[place.scope]);
            if too_much {
                tracing::error!(cluster_name = %self.name, %error, "not mirrored any further");
                self.status.update(|s| {
                    s.stopped.insert(place.scope, error.to_string());
                    s.listed.insert(place.scope, false);
                });
                self.sync.initial_read_pending(&place.target);
                connection.identities_done(place.scope);
                tokio::time::sleep(LEFT_ALONE).await;
                continue;
            }
            tracing::info!(cluster_name = %self.name, prefix = place.prefix, %error, "listing again");
            if began.elapsed() >= STEADY {
                backoff.reset();
            }
            backoff.wait().await;
        }
    }

    async fn mirror_once(&self, connection: &Connection<'_>, place: &Place, canary: &str) -> Result<Infallible, Error> {
        let client = connection.client;
        let from = match self.resumable(client, place).await? {
            Some(revision) => {
                self.status.update(|s| s.resumes += 1);
                revision
            }
            None => self.list(client, place).await?,
        };
        self.write_canary(canary);
        self.status.update(|s| {
            s.listed.insert(place.scope, true);
            s.stopped.remove(&place.scope);
        });
        self.sync.initial_read_done(&place.target);
        connection.identities_done(place.scope);
        self.follow(client, place, from + 1).await
    }

    /// The revision to go on from, if the mirror is a past state of this very store.
    async fn resumable(&self, client: &EtcdClient, place: &Place) -> Result<Option<i64>, Error> {
        let position = self.positions.get(place.scope, client.cluster_id(), &place.prefix);
        let Some((position, witness)) = position.and_then(|p| Some((p.revision, p.witness?))) else {
            // What is empty is listed quickly.
            return Ok(None);
        };
        Ok(witness.is_there(client, position).await?.then_some(position))
    }

    /// The canary, unless it is there.
    fn write_canary(&self, canary: &str) {
        if !self.sync.is_written(canary) {
            self.sync.queue_canary(canary.to_owned(), keys::timestamp());
        }
    }

    /// Reads all there is; returns at which revision.
    async fn list(&self, client: &EtcdClient, place: &Place) -> Result<i64, Error> {
        // The time counts from when it is its turn.
        let reading = async { tokio::time::timeout(LIST_MAX, Box::pin(self.read_pages(client, place))).await };
        let late = |_| Err(ClientError::Timeout(LIST_MAX).into());
        let read = self.turns.lists.take(reading).await.unwrap_or_else(late);
        let (revision, witness) = read?;
        self.positions.set(
            place.scope,
            Position {
                cluster_id: client.cluster_id(),
                prefix: place.prefix.clone(),
                revision,
                witness,
            },
        );
        Ok(revision)
    }

    async fn read_pages(&self, client: &EtcdClient, place: &Place) -> Result<(i64, Option<Witness>), Error> {
        self.status.update(|s| s.lists += 1);
        // A list that breaks off leaves neither this store's state nor the one before.
        self.positions.forget(&[place.scope]);
        let mut newest: Option<Witness> = None;
        let mut pages = client.pages(&place.prefix);
        let list = self.sync.begin_list();
        let mut seen = Amount::default();
        while let Some(page) = self.page(place, &mut pages).await? {
            seen.keys += page.len();
            seen.bytes += page.iter().map(|kv| kv.value.len()).sum::<usize>();
            // What it says first is believed; what it sends is counted.
            let says = usize::try_from(pages.count).unwrap_or(usize::MAX);
            let most = Amount {
                keys: says.max(seen.keys),
                ..seen
            };
            self.check(place, most)?;
            for kv in &page {
                self.take(place, &kv.key, Some(&kv.value));
            }
            if let Some(kv) = page.iter().max_by_key(|kv| kv.mod_revision)
                && newest.as_ref().is_none_or(|w| w.revisions.1 < kv.mod_revision)
            {
                newest = Some(Witness::of(kv));
            }
        }
        self.sync.end_list(&place.target, list);
        Ok((pages.revision, newest))
    }

    async fn page(&self, place: &Place, pages: &mut Pages) -> Result<Option<Vec<KeyValue>>, Error> {
        match pages.next().await {
            Err(error) if error.is_too_large() => Err(Error::TooMuch {
                prefix: place.prefix.clone(),
                what: format!("a value that cannot be taken: {error}"),
            }),
            page => Ok(page?),
        }
    }

    /// An error if there is more of it than is mirrored.
    fn check(&self, place: &Place, amount: Amount) -> Result<(), Error> {
        let Amount { keys, bytes } = amount;
        let what = match (keys > self.keys_max, bytes > BYTES_MAX) {
            (true, _) => format!(
                "{keys} keys, more than the {} that are mirrored (--clustermesh-max-keys)",
                self.keys_max
            ),
            (_, true) => format!("{bytes} bytes, more than the {BYTES_MAX} that are mirrored of one kind"),
            _ => return Ok(()),
        };
        Err(Error::TooMuch {
            prefix: place.prefix.clone(),
            what,
        })
    }

    /// Takes one key over, or refuses it.
    fn take(&self, place: &Place, key: &[u8], value: Option<&[u8]>) {
        match refusal(key, &place.prefix, value.unwrap_or_default()) {
            Ok(at) => {
                let key = [place.target.as_bytes(), &key[at..]].concat();
                match value {
                    Some(value) => {
                        self.status.count(key.len() + value.len());
                        self.sync.upsert(key, value.to_vec());
                    }
                    None => self.sync.delete(key),
                }
            }
            Err(why) => {
                let shown = String::from_utf8_lossy(&key[..key.len().min(200)]).into_owned();
                if self.status.refused(why, &shown) {
                    tracing::warn!(cluster_name = %self.name, key = shown, why, "a key of the remote cluster is not mirrored");
                }
                // What was mirrored under this name before is not what is there now.
                if let (Some(_), Some(name)) = (value, key.strip_prefix(place.prefix.as_bytes()))
                    && keys::is_safe_name(name)
                {
                    self.sync.delete([place.target.as_bytes(), name].concat());
                }
            }
        }
    }

    /// Notes that all of a scope is written, once its canary is, and how long the first complete mirror took.
    async fn written(&self, scope: Scope, started: Instant) -> Infallible {
        self.sync.wait_written(&scope.cache_canary(&self.name)).await;
        self.sync.initial_write_done(&scope.cache_prefix(&self.name));
        self.status.update(|s| {
            s.written.insert(scope);
            if s.written.len() == Scope::ALL.len() {
                s.sync_took.get_or_insert(started.elapsed());
            }
        });
        std::future::pending().await
    }

    async fn follow(&self, client: &EtcdClient, place: &Place, from: i64) -> Result<Infallible, Error> {
        let mut watch = client.watch(&place.prefix, from).await?;
        loop {
            let Changes { events, revision } = watch.next().await?;
            // With events, the revision may be ahead of them.
            let mut seen = if events.is_empty() { revision } else { 0 };
            for event in events {
                match &event {
                    Event::Put(kv) => self.take(place, &kv.key, Some(&kv.value)),
                    Event::Delete { key, .. } => self.take(place, key, None),
                }
                self.positions.changed(place.scope, &event);
                seen = seen.max(event.mod_revision());
            }
            self.positions.advance(place.scope, seen);
            let PrefixSize { keys, bytes } = self.sync.desired(&place.target);
            self.check(place, Amount { keys, bytes })?;
        }
    }
}

/// How much there is.
#[derive(Clone, Copy, Default)]
struct Amount {
    keys: usize,
    bytes: usize,
}

/// A scope, and where it is there and here.
struct Place {
    scope: Scope,
    /// There.
    prefix: String,
    /// Here.
    target: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_do_harm_is_refused() {
        let prefix = "cilium/state/nodes/v1/hk/";
        let of = |name: &str| refusal(format!("{prefix}{name}").as_bytes(), prefix, b"v");
        assert_eq!(of("n1"), Ok(prefix.len()));
        for bad in ["", "..", "a//b", "../../x", "a/"] {
            assert_eq!(of(bad), Err("unsafe key"), "{bad}");
        }
        assert_eq!(of(&"n".repeat(KEY_MAX)), Err("key too long"));
        let outside = refusal(b"cilium/state/nodes/v1/hkg/n1", prefix, b"v");
        assert_eq!(outside, Err("key outside of what was asked for"));
        let large = vec![0; VALUE_MAX + 1];
        assert_eq!(
            refusal(format!("{prefix}n").as_bytes(), prefix, &large),
            Err("value too large")
        );
    }

    #[test]
    fn a_position_counts_only_for_the_store_and_the_place_it_was_read_at() {
        let positions = Positions::default();
        let position = Position {
            cluster_id: 7,
            prefix: "p/".to_owned(),
            revision: 5,
            witness: None,
        };
        positions.set(Scope::Nodes, position);
        positions.advance(Scope::Nodes, 9);
        positions.advance(Scope::Nodes, 8);
        let revision = |id, prefix| positions.get(Scope::Nodes, id, prefix).map(|p| p.revision);
        assert_eq!(revision(7, "p/"), Some(9));
        assert_eq!((revision(8, "p/"), revision(7, "q/")), (None, None));
        positions.forget(&[Scope::Nodes]);
        assert_eq!(revision(7, "p/"), None);
    }
}
