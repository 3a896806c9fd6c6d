//! An etcd client that trusts one store only: it pins the cluster id of the first answer.
//!
//! Every etcd has its own revisions. Going on at revision N on another one (a replica, or one that lost
//! its data) would be silently wrong, so a changed cluster id ends the connection. A client is made anew
//! for each connection, which also reads the TLS files again.

use super::config::ClientConfig;
use etcd_client::{
    Certificate, Client, ConnectOptions, EventType, GetOptions, Identity, ResponseHeader, TlsOptions, WatchOptions,
    WatchStream,
};
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use etcd_client::KeyValue;

/// Largest answer accepted.
const DECODE_MAX: usize = 2 << 30;
/// gRPC keepalive: a ping after this long, and how long to wait for its answer.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(25));
/// For a connection to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a read to be answered.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Keys per page of a list, as in Cilium (`etcd.limit`).
pub const PAGE: i64 = 256;

/// Why a client could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configured file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The store or the way to it failed.
    #[error("{}", describe(.0))]
    Etcd(#[from] etcd_client::Error),
    /// No answer in time.
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    /// Another store answers than the one that was connected to.
    #[error("etcd cluster ID has changed: expected {expected:x}, got {got:x}")]
    ClusterChanged {
        /// The id pinned.
        expected: u64,
        /// The id seen.
        got: u64,
    },
    /// An answer without a header.
    #[error("the etcd response has no header")]
    NoHeader,
    /// What was asked for is compacted: only a list can tell what there is.
    #[error("required revision has been compacted (at {0})")]
    Compacted(i64),
    /// The store answers what no etcd would.
    #[error("the store answers nonsense: {0}")]
    Nonsense(String),
    /// A watch was cancelled by the store.
    #[error("watch cancelled: {0}")]
    Cancelled(String),
    /// The stream ended.
    #[error("the watch stream ended")]
    Ended,
}

/// How a client asks.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Keys per page of a list; 0: no pages.
    pub page: i64,
    /// gRPC keepalive: a ping after this long, and how long to wait for its answer.
    pub keepalive: (Duration, Duration),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            page: PAGE,
            keepalive: KEEPALIVE,
        }
    }
}

impl Error {
    /// Whether a revision was asked for that is compacted, or has not come yet.
    pub fn is_out_of_range(&self) -> bool {
        matches!(self, Self::Etcd(etcd_client::Error::GRpcStatus(status)) if status.code() == tonic::Code::OutOfRange)
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

/// One message of a watch: its events, in order.
pub struct Changes {
    /// (deleted, key-value); a deleted one has only its key.
    pub events: Vec<(bool, KeyValue)>,
    /// Everything up to this revision has been seen.
    pub revision: i64,
}

/// An error with its causes, which etcd-client leaves inside.
fn describe(error: &etcd_client::Error) -> String {
    let (text, mut source) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(e) => (e.to_string(), e.source()),
        other => (other.to_string(), None),
    };
    let mut texts = vec![text];
    while let Some(error) = source {
        let text = error.to_string();
        // Most layers repeat what is inside them.
        if !texts.iter().any(|t| t.contains(&text)) {
            texts.push(text);
        }
        source = error.source();
    }
    texts.retain(|t| !t.is_empty());
    texts.join(": ")
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let path_text = path.display().to_string();
    tokio::fs::read(path).await.map_err(|source| Error::File {
        path: path_text,
        source,
    })
}

/// TLS options from the configuration's files, read now.
async fn tls(config: &ClientConfig) -> Result<TlsOptions, Error> {
    let mut tls = TlsOptions::new();
    tls = match &config.trusted_ca_file {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path).await?)),
        None => tls.with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
        tls = tls.identity(Identity::from_pem(read(cert).await?, read(key).await?));
    }
    Ok(tls)
}

impl EtcdClient {
    /// Makes a client. Nothing is sent yet, unless a password has to be exchanged.
    pub async fn connect(config: &ClientConfig) -> Result<Self, Error> {
        Self::connect_with(config, Options::default()).await
    }

    /// Makes a client that asks in its own way.
    pub async fn connect_with(config: &ClientConfig, how: Options) -> Result<Self, Error> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(how.keepalive.0, how.keepalive.1)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_require_leader(true);
        let (mut targets, name) = config.targets();
        if config.insecure_transport {
            let plain = |target: &String| target.replacen("https://", "http://", 1);
            targets = targets.iter().map(plain).collect();
        }
        let secure = targets.iter().any(|e| e.starts_with("https://"));
        if secure {
            let tls = tls(config).await?;
            options = options.with_tls(match &name {
                Some(name) => tls.domain_name(name),
                None => tls,
            });
        }
        if let (Some(user), Some(password)) = (&config.username, &config.password) {
            options = options.with_user(user, password);
        }
        let client = Client::connect(&targets, Some(options)).await?;
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
        let mut kv = self.client.kv_client().max_decoding_message_size(DECODE_MAX);
        let answer = tokio::time::timeout(READ_TIMEOUT, kv.get(key, Some(options))).await;
        let response = answer.map_err(|_| Error::Timeout(READ_TIMEOUT))??;
        let revision = self.check(response.header())?;
        Ok((response, revision))
    }

    /// Reads one key.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let (mut response, _) = self.range(key.into(), GetOptions::new()).await?;
        Ok(response.take_kvs().pop())
    }

    /// Reads one key as it was at a revision; an error if that is compacted, or has not come yet.
    pub async fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Error> {
        let options = GetOptions::new().with_revision(revision);
        let (mut response, _) = self.range(key.into(), options).await?;
        Ok(response.take_kvs().pop())
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
        let mut client = self.client.watch_client().max_decoding_message_size(DECODE_MAX);
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
        let options = GetOptions::new()
            .with_range(self.end.clone())
            .with_limit(self.client.page)
            .with_revision(self.revision);
        let (mut response, revision) = self.client.range(from.clone(), options).await?;
        if self.revision == 0 {
            self.revision = revision;
            self.count = u64::try_from(response.count()).unwrap_or_default();
        }
        let more = response.more();
        let kvs = response.take_kvs();
        if let Some(last) = kvs.last().filter(|_| more) {
            // Or a list might never end.
            if last.key() < &from[..] {
                return Err(Error::Nonsense("a page of a list does not go on".to_owned()));
            }
            self.from = Some([last.key(), &[0]].concat());
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

fn events_of(response: &etcd_client::WatchResponse) -> Vec<(bool, KeyValue)> {
    let of = |e: &etcd_client::Event| Some((e.event_type() == EventType::Delete, e.kv()?.clone()));
    response.events().iter().filter_map(of).collect()
}
