//! An etcd client that trusts one store only: it pins the cluster id of the first answer.
//!
//! Every etcd has its own revisions. Going on at revision N on another one (a replica, or one that lost
//! its data) would be silently wrong, so a changed cluster id ends the connection. A client is made anew
//! for each connection, which also reads the TLS files again.

pub use super::client_error::Error;
use super::config::ClientConfig;
use super::dial::{self, Dialer};
use crate::util::net::Keepalive;
use etcd_client::{Channel, Client, ConnectOptions, EventType, GetOptions, ResponseHeader, WatchOptions, WatchStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Largest answer to a read that is taken: what does not fit is asked for in smaller pages. No store may make us
/// hold more than that.
const ANSWER_MAX: usize = 64 << 20;
/// Largest message of a watch: etcd puts up to 1,000 revisions into one.
const CHANGES_MAX: usize = 128 << 20;
/// Cilium's defaults (`etcd.keepaliveHeartbeat`, `etcd.keepaliveTimeout`).
pub const KEEPALIVE: Keepalive = Keepalive {
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(25),
};
/// For a password to be exchanged for a token.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For a read to be answered.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How a store says that it asks for no password.
const NO_AUTH: &str = "authentication is not enabled";
/// Keys per page of a list, as in Cilium (`etcd.limit`).
pub const PAGE: i64 = 256;

/// How a client asks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Keys per page of a list; 0: no pages.
    pub page: i64,
    pub keepalive: Keepalive,
    /// Knows where the store was before.
    pub dialer: Dialer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            page: PAGE,
            keepalive: KEEPALIVE,
            dialer: Dialer::default(),
        }
    }
}

/// One connection.
#[derive(Clone)]
pub struct EtcdClient {
    client: Client,
    pinned: Arc<AtomicU64>,
    page: i64,
}

/// A list, complete at one revision.
pub struct Listing {
    /// All key-values, in key order.
    pub kvs: Vec<KeyValue>,
    /// The revision they were read at; a watch goes on from the next.
    pub revision: i64,
}

/// A list that is being read.
pub struct Pages {
    client: EtcdClient,
    end: Vec<u8>,
    limit: i64,
    /// Where the next page begins.
    from: Option<Vec<u8>>,
    /// The revision of all pages, once the first is here.
    pub revision: i64,
    /// How many keys there are, once the first page is here.
    pub count: u64,
}

/// A watch on a key or a prefix.
pub struct Watch {
    stream: WatchStream,
    client: EtcdClient,
}

/// A key with its value and revisions, as a store sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    /// 0: attached to no lease.
    pub lease: i64,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(KeyValue),
    Delete {
        key: Vec<u8>,
        /// The revision of the deletion.
        mod_revision: i64,
    },
}

/// One message of a watch: its events, in order.
pub struct Changes {
    pub events: Vec<Event>,
    /// Everything up to this revision has been seen.
    pub revision: i64,
}

impl EtcdClient {
    /// Makes a client. Nothing is sent yet, unless a password has to be exchanged.
    pub async fn connect(config: &ClientConfig) -> Result<Self, Error> {
        Self::connect_with(config, &Options::default()).await
    }

    /// Makes a client that asks in its own way.
    pub async fn connect_with(config: &ClientConfig, how: &Options) -> Result<Self, Error> {
        let channel = Channel::Tonic(dial::channel(config, &how.dialer, how.keepalive)?);
        let options = ConnectOptions::new().with_require_leader(true);
        let with_password = match (&config.username, &config.password) {
            (Some(user), Some(password)) => Some(options.clone().with_user(user, password)),
            _ => None,
        };
        let asked = with_password.is_some();
        let connect = |options| {
            let connected = Box::pin(Client::from_channel(channel.clone(), Some(options)));
            tokio::time::timeout(CONNECT_TIMEOUT, connected)
        };
        let late = |_| Error::Timeout(CONNECT_TIMEOUT);
        let client = match connect(with_password.unwrap_or(options.clone())).await.map_err(late)? {
            // A store that asks for no password is told none, as Go's client does.
            Err(etcd_client::Error::GRpcStatus(status)) if asked && status.message().contains(NO_AUTH) => {
                connect(options).await.map_err(late)??
            }
            done => done?,
        };
        Ok(Self {
            client,
            pinned: Arc::default(),
            page: how.page,
        })
    }

    /// Hands over a snapshot of the store, piece by piece; the last is the SHA-256 of the others.
    pub async fn snapshot(&self, mut piece: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), Error> {
        let mut stream = self.client.clone().snapshot().await?;
        while let Some(message) = stream.message().await? {
            let written = piece(message.blob());
            written.map_err(|source| Error::File {
                path: "the snapshot".to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// The etcd-client underneath.
    pub fn raw(&self) -> Client {
        self.client.clone()
    }

    /// The pinned cluster id; 0 before the first answer.
    pub fn cluster_id(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Whether this is the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pinned, &other.pinned)
    }

    /// An error if an answer is of another store than those before.
    pub(super) fn seen(&self, header: Option<&ResponseHeader>) -> Result<(), Error> {
        self.check(header).map(drop)
    }

    fn check(&self, header: Option<&ResponseHeader>) -> Result<i64, Error> {
        let header = header.ok_or(Error::NoHeader)?;
        let got = header.cluster_id();
        match self
            .pinned
            .compare_exchange(0, got, Ordering::Relaxed, Ordering::Relaxed)
        {
            Err(expected) if expected != got => Err(Error::ClusterChanged { expected, got }),
            _ => Ok(header.revision()),
        }
    }

    async fn range(&self, key: Vec<u8>, options: GetOptions) -> Result<(etcd_client::GetResponse, i64), Error> {
        let mut kv = self.client.kv_client().max_decoding_message_size(ANSWER_MAX);
        let answer = tokio::time::timeout(READ_TIMEOUT, kv.get(key, Some(options))).await;
        let response = answer.map_err(|_| Error::Timeout(READ_TIMEOUT))??;
        let revision = self.check(response.header())?;
        Ok((response, revision))
    }

    /// Reads one key.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        Ok(self.get_with_revision(key).await?.0)
    }

    /// Reads one key; a watch for what comes then begins at the next revision.
    pub async fn get_with_revision(&self, key: &str) -> Result<(Option<KeyValue>, i64), Error> {
        let (mut response, revision) = self.range(key.into(), GetOptions::new()).await?;
        Ok((response.take_kvs().pop().map(KeyValue::from), revision))
    }

    /// Reads one key as it was at a revision; an error if that is compacted, or has not come yet.
    pub async fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Error> {
        let options = GetOptions::new().with_revision(revision);
        let (mut response, _) = self.range(key.into(), options).await?;
        Ok(response.take_kvs().pop().map(KeyValue::from))
    }

    /// Reads a prefix whole, all pages at one revision.
    pub async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let (mut kvs, mut pages) = (Vec::new(), self.pages(prefix));
        while let Some(mut page) = pages.next().await? {
            kvs.append(&mut page);
        }
        let revision = pages.revision;
        Ok(Listing { kvs, revision })
    }

    /// Reads a prefix page by page, all pages at one revision.
    pub fn pages(&self, prefix: &str) -> Pages {
        let end = crate::mvcc::prefix_end(prefix.as_bytes()).map_or(vec![0], |end| end.to_vec());
        Pages {
            client: self.clone(),
            end,
            limit: self.page,
            from: Some(prefix.as_bytes().to_vec()),
            revision: 0,
            count: 0,
        }
    }

    /// Watches a prefix from a revision on.
    pub async fn watch(&self, prefix: &str, from: i64) -> Result<Watch, Error> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from);
        self.start_watch(prefix, options.with_progress_notify()).await
    }

    /// Watches one key from a revision on, 0 for now.
    pub async fn watch_key(&self, key: &str, from: i64) -> Result<Watch, Error> {
        self.start_watch(key, WatchOptions::new().with_start_revision(from))
            .await
    }

    async fn start_watch(&self, key: &str, options: WatchOptions) -> Result<Watch, Error> {
        let mut client = self.client.watch_client().max_decoding_message_size(CHANGES_MAX);
        let stream = client.watch(key, Some(options)).await?;
        Ok(Watch {
            stream,
            client: self.clone(),
        })
    }
}

impl Pages {
    /// The next page; none after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, Error> {
        let Some(from) = self.from.take() else { return Ok(None) };
        let (mut response, revision) = loop {
            let options = GetOptions::new()
                .with_range(self.end.clone())
                .with_limit(self.limit)
                .with_revision(self.revision);
            match self.client.range(from.clone(), options).await {
                Err(error) if error.is_too_large() && self.limit != 1 => {
                    self.limit = if self.limit == 0 {
                        PAGE
                    } else {
                        (self.limit / 16).max(1)
                    };
                }
                done => break done?,
            }
        };
        if self.revision == 0 {
            self.revision = revision;
            self.count = u64::try_from(response.count()).unwrap_or_default();
        }
        let more = response.more();
        let kvs: Vec<_> = response.take_kvs().into_iter().map(KeyValue::from).collect();
        if let Some(last) = kvs.last().filter(|_| more) {
            // Or a list might never end.
            if last.key < from {
                return Err(Error::Nonsense("a page of a list does not go on".to_owned()));
            }
            self.from = Some([&last.key[..], &[0]].concat());
        }
        Ok(Some(kvs))
    }
}

impl Watch {
    /// Waits for the next message with events, or for word of how far there were none.
    pub async fn next(&mut self) -> Result<Changes, Error> {
        loop {
            let response = self.stream.message().await?.ok_or(Error::Ended)?;
            let revision = self.client.check(response.header())?;
            if response.canceled() {
                return Err(match response.compact_revision() {
                    0 => Error::Cancelled(response.cancel_reason().to_owned()),
                    at => Error::Compacted(at),
                });
            }
            let events = events_of(&response);
            // Without events it says how far everything has been seen, unless it only says that it began.
            if !events.is_empty() || !response.created() {
                return Ok(Changes { events, revision });
            }
        }
    }
}

// === impl KeyValue ===

impl From<etcd_client::KeyValue> for KeyValue {
    fn from(kv: etcd_client::KeyValue) -> Self {
        let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
        let (version, lease) = (kv.version(), kv.lease());
        let (key, value) = kv.into_key_value();
        Self {
            key,
            value,
            create_revision,
            mod_revision,
            version,
            lease,
        }
    }
}

// === impl Event ===

impl Event {
    /// The key-value that was put, unless this is a deletion.
    pub fn put(&self) -> Option<&KeyValue> {
        match self {
            Self::Put(kv) => Some(kv),
            Self::Delete { .. } => None,
        }
    }

    pub fn mod_revision(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

fn events_of(response: &etcd_client::WatchResponse) -> Vec<Event> {
    let event = |event: &etcd_client::Event| {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => Event::Put(kv.clone().into()),
            EventType::Delete => Event::Delete {
                key: kv.key().to_vec(),
                mod_revision: kv.mod_revision(),
            },
        })
    };
    response.events().iter().filter_map(event).collect()
}
