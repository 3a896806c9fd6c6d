//! An etcd client that talks to one store only: it pins the cluster id of the first answer.
//!
//! Every store has its own revisions. A watch that resumed at a revision of another store (a replica, or one that lost
//! its data) would be silently wrong, so another cluster id in an answer is an error. Each connection has a new client,
//! which also reads the TLS files again.

use super::answers::Pinned;
pub use super::answers::{Changes, Event, KeyValue};
pub use super::client_error::Error;
use super::config::ClientConfig;
use super::dial::{self, Dialer, Transport};
pub use super::watching::Watch;
use super::watching::Watched;
use crate::util::net::Keepalive;
use etcd_client::{Channel, Client, ConnectOptions, GetOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse};
use std::time::Duration;

/// Largest answer to a read, in bytes, so that no store can exhaust our memory. A page of a list that is larger is read
/// in smaller pages.
const ANSWER_MAX: usize = 64 << 20;
/// Cilium's defaults (`etcd.keepaliveHeartbeat`, `etcd.keepaliveTimeout`).
pub const KEEPALIVE: Keepalive = Keepalive {
    interval: Duration::from_secs(15),
    timeout: Duration::from_secs(25),
};
/// Limit for exchanging a password for a token.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Limit for the answer to a read.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// etcd's error if authentication is off.
const NO_AUTH: &str = "authentication is not enabled";
/// Keys per page of a list, as in Cilium (`etcd.limit`).
pub const PAGE: i64 = 256;

/// Options of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// Keys per page of a list; 0 reads a list in one page.
    pub page: i64,
    pub keepalive: Keepalive,
    /// Remembers the last good address.
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

/// A client of one connection. Clones share the connection.
#[derive(Clone)]
pub struct EtcdClient {
    client: Client,
    /// The connection, for calls that need no token; `None` for a user with a password.
    plain: Option<tonic::transport::Channel>,
    pinned: Pinned,
    page: i64,
}

/// A complete list at one revision.
pub struct Listing {
    /// All key-values, in key order.
    pub kvs: Vec<KeyValue>,
    /// The revision of the list. A watch continues at the next one.
    pub revision: i64,
}

/// A list that is being read.
pub struct Pages {
    client: EtcdClient,
    end: Vec<u8>,
    limit: i64,
    /// The first key of the next page; `None` after the last page.
    from: Option<Vec<u8>>,
    /// The revision of all pages, once the first was read.
    pub revision: i64,
    /// The number of keys in the list, according to its first page.
    pub count: u64,
}

impl EtcdClient {
    /// Makes a client with default options.
    pub async fn connect(config: &ClientConfig) -> Result<Self, Error> {
        Self::connect_with(config, &Options::default()).await
    }

    /// Makes a client. Sends no request, except to exchange a password for a token.
    pub async fn connect_with(config: &ClientConfig, options: &Options) -> Result<Self, Error> {
        let transport = Transport {
            keepalive: options.keepalive,
            window: None,
        };
        let connection = dial::channel(config, &options.dialer, transport)?;
        let channel = Channel::Tonic(connection.clone());
        let plain = ConnectOptions::new().with_require_leader(true);
        let with_password = match (&config.username, &config.password) {
            (Some(user), Some(password)) => Some(plain.clone().with_user(user, password)),
            _ => None,
        };
        let has_password = with_password.is_some();
        let connect = |options| {
            let connected = Box::pin(Client::from_channel(channel.clone(), Some(options)));
            tokio::time::timeout(CONNECT_TIMEOUT, connected)
        };
        let late = |_| Error::Timeout(CONNECT_TIMEOUT);
        let (client, has_token) = match connect(with_password.unwrap_or(plain.clone())).await.map_err(late)? {
            // As in Go's client, a store without authentication is sent no password.
            Err(etcd_client::Error::GRpcStatus(status)) if has_password && status.message().contains(NO_AUTH) => {
                (connect(plain).await.map_err(late)??, false)
            }
            done => (done?, has_password),
        };
        Ok(Self {
            client,
            plain: (!has_token).then_some(connection),
            pinned: Pinned::default(),
            page: options.page,
        })
    }

    /// Hands a snapshot of the store to `write`, piece by piece. The last piece is the SHA-256 of the others.
    pub async fn snapshot(&self, mut write: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), Error> {
        let mut stream = self.client.clone().snapshot().await?;
        while let Some(message) = stream.message().await? {
            let written = write(message.blob());
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
        self.pinned.get()
    }

    /// Whether this is the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.pinned.is(&other.pinned)
    }

    /// Fails if an answer is from another store than the answers before.
    pub(super) fn seen(&self, header: Option<&ResponseHeader>) -> Result<(), Error> {
        self.check(header).map(drop)
    }

    fn check(&self, header: Option<&ResponseHeader>) -> Result<i64, Error> {
        let header = header.ok_or(Error::NoHeader)?;
        self.pinned.check(header.cluster_id())?;
        Ok(header.revision())
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

    /// Reads one key, and the store's revision. A watch for later changes begins at the next revision.
    pub async fn get_with_revision(&self, key: &str) -> Result<(Option<KeyValue>, i64), Error> {
        let (mut response, revision) = self.range(key.into(), GetOptions::new()).await?;
        Ok((response.take_kvs().pop().map(KeyValue::from), revision))
    }

    /// Reads one key as it was at a revision. Fails if the revision is compacted or in the future.
    pub async fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Error> {
        let options = GetOptions::new().with_revision(revision);
        let (mut response, _) = self.range(key.into(), options).await?;
        Ok(response.take_kvs().pop().map(KeyValue::from))
    }

    /// Reads keys as they were at a revision, in one transaction; the answer has those that existed. Fails if the revision
    /// is compacted or in the future.
    pub async fn get_all_at(&self, keys: &[Vec<u8>], revision: i64) -> Result<Vec<KeyValue>, Error> {
        let at = |key: &Vec<u8>| TxnOp::get(key.clone(), Some(GetOptions::new().with_revision(revision)));
        let txn = Txn::new().and_then(keys.iter().map(at).collect::<Vec<_>>());
        let mut kv = self.client.kv_client().max_decoding_message_size(ANSWER_MAX);
        let answer = tokio::time::timeout(READ_TIMEOUT, kv.txn(txn)).await;
        let response = answer.map_err(|_| Error::Timeout(READ_TIMEOUT))??;
        self.check(response.header())?;
        let found = response.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
            _ => None,
        });
        Ok(found.map(KeyValue::from).collect())
    }

    /// Reads a whole prefix, all pages at one revision.
    pub async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let (mut kvs, mut pages) = (Vec::new(), self.pages(prefix));
        while let Some(mut page) = pages.next().await? {
            kvs.append(&mut page);
        }
        let revision = pages.revision;
        Ok(Listing { kvs, revision })
    }

    /// Reads up to `limit` keys of a prefix, from the first key after `after` on, and whether there are more. A page of large
    /// values is shorter.
    pub async fn page(
        &self,
        prefix: &str,
        after: Option<&[u8]>,
        mut limit: i64,
    ) -> Result<(Vec<KeyValue>, bool), Error> {
        let end = range_end(prefix);
        let from = after.map_or_else(|| prefix.as_bytes().to_vec(), |after| [after, &[0]].concat());
        let mut response = loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            match self.range(from.clone(), options).await {
                Err(error) if error.is_too_large() && limit > 1 => limit = (limit / 16).max(1),
                done => break done?.0,
            }
        };
        let more = response.more();
        Ok((response.take_kvs().into_iter().map(KeyValue::from).collect(), more))
    }

    /// Reads a prefix page by page, all pages at one revision.
    pub fn pages(&self, prefix: &str) -> Pages {
        let end = range_end(prefix);
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
        self.start_watch(Watched {
            key: prefix.into(),
            range_end: range_end(prefix),
            from,
            with_progress: true,
        })
        .await
    }

    /// Watches one key from a revision on; 0 watches later changes only.
    pub async fn watch_key(&self, key: &str, from: i64) -> Result<Watch, Error> {
        self.start_watch(Watched {
            key: key.into(),
            range_end: vec![],
            from,
            with_progress: false,
        })
        .await
    }

    async fn start_watch(&self, watched: Watched) -> Result<Watch, Error> {
        let pinned = self.pinned.clone();
        match &self.plain {
            Some(channel) => Watch::small(channel.clone(), pinned, watched).await,
            None => Watch::with_token(&self.client, pinned, watched).await,
        }
    }
}

/// The end of the range of a prefix; one zero for an empty prefix, which is everything.
fn range_end(prefix: &str) -> Vec<u8> {
    crate::mvcc::prefix_end(prefix.as_bytes()).map_or(vec![0], |end| end.to_vec())
}

impl Pages {
    /// The next page; `None` after the last.
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
            // A store that repeats a page must not make the list endless.
            if last.key < from {
                return Err(Error::InvalidAnswer(
                    "a page of a list begins before its first key".to_owned(),
                ));
            }
            self.from = Some([&last.key[..], &[0]].concat());
        }
        Ok(Some(kvs))
    }
}
