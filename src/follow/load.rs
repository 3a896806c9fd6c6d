//! Loads all keys of the upstream: from a snapshot, a stream of all keys, or a list in pages.
//!
//! A snapshot has the whole history since the upstream's compaction, and users and roles; it needs the role root. Lists have
//! the present keys only. Where the database file of the upstream is mostly free pages, which a snapshot has to carry, lists
//! come first.

pub(super) mod beside;

use super::error::Error;
use super::feed::Load;
use super::link::{Link, local_revision};
use super::member::{Facts, HASH, Member, path};
use super::wire::{RangeResponse, RangeStreamResponse};
use crate::mvcc::{Kv, Loader, OutOfOrder, Recovery};
use crate::pb::etcdserverpb as pb;
use crate::server::upstream::SISTER;
use crate::snapshot::{Content, Reader};
use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataValue;

/// Bytes of key-values that a page should have.
const PAGE_BYTES: usize = 32 << 20;
/// Keys of the first page, and the fewest of the others: the upstream counts all keys for each page (etcd#16510).
const PAGE_MIN: i64 = 20_000;
const PAGE_MAX: i64 = 1_000_000;
/// Limit for a page.
const PAGE_LIMIT: Duration = Duration::from_secs(60);
/// Limit for the next piece of a stream.
const PIECE_LIMIT: Duration = Duration::from_secs(30);
/// How long a member may lack the revision of another replica, and the time between two looks.
const LAG: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// Lists that begin anew because their revision was compacted before the last page.
const ATTEMPTS: usize = 5;

/// The way in which keys were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The snapshot of another replica.
    Sister,
    Snapshot,
    RangeStream,
    Pages,
}

/// Everything that was loaded.
pub struct Loaded {
    pub how: How,
    pub store: Recovery,
}

/// All key-values at one revision, in the order of keys.
struct List {
    kvs: Vec<Kv>,
    revision: i64,
}

impl How {
    pub(super) const ALL: [Self; 4] = [Self::Sister, Self::Snapshot, Self::RangeStream, Self::Pages];

    /// What the loaded state knows of its own revision.
    pub(super) fn knows(self) -> Load {
        match self {
            Self::Sister | Self::Snapshot => Load::Exact,
            Self::RangeStream | Self::Pages => Load::Listed,
        }
    }

    /// The label in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sister => "sister",
            Self::Snapshot => "snapshot",
            Self::RangeStream => "range_stream",
            Self::Pages => "pages",
        }
    }

    /// The ways in the order in which they are tried.
    fn order(facts: &Facts) -> [Self; 3] {
        match facts.is_fragmented() {
            true => [Self::RangeStream, Self::Pages, Self::Snapshot],
            false => [Self::Snapshot, Self::RangeStream, Self::Pages],
        }
    }
}

/// Loads everything from a member. `scratch` is the directory of a temporary file if the system's directory for temporary
/// files takes none.
pub(super) async fn load(member: &Member, scratch: Option<PathBuf>) -> Result<Loaded, Error> {
    if member.facts.is_fragmented() {
        tracing::info!(
            endpoint = member.endpoint,
            bytes = member.facts.db_size,
            bytes_in_use = member.facts.db_size_in_use,
            "the database file of the upstream is mostly free pages: its keys are listed; `etcdctl defrag` makes the file small"
        );
    }
    let mut failures = vec![];
    for how in How::order(&member.facts) {
        let begun = Instant::now();
        let loaded = match how {
            How::Sister | How::Snapshot => Box::pin(snapshot(member, how, scratch.clone())).await,
            How::RangeStream => finish(member, how, Box::pin(range_stream(member)).await).await,
            How::Pages => finish(member, how, Box::pin(pages(member)).await).await,
        };
        match loaded {
            Ok(loaded) => {
                tracing::info!(
                    endpoint = member.endpoint,
                    how = how.label(),
                    revision = loaded.store.revision(),
                    floor = loaded.store.floor(),
                    secs = begun.elapsed().as_secs_f64(),
                    "the upstream's keys are loaded"
                );
                return Ok(loaded);
            }
            Err(error) if error.is_denied() || error.is_unimplemented() || error.is_compacted() => {
                tracing::info!(
                    endpoint = member.endpoint, how = how.label(), %error,
                    "the upstream's keys cannot be loaded in this way; another one is tried"
                );
                failures.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(failures.pop().unwrap_or_else(|| member.invalid("no way of loading")))
}

/// Waits for a piece of a stream for a limited time.
async fn piece<T>(member: &Member, next: impl Future<Output = T>) -> Result<T, Error> {
    timeout(PIECE_LIMIT, next).await.map_err(|_| Error::Timeout {
        endpoint: member.endpoint.clone(),
        limit: PIECE_LIMIT,
    })
}

/// Loads everything from another replica of the same cluster, if one can be reached that has revision `least`: that costs the
/// upstream no more than a hash, and brings the history of the other replica. A replica whose keys are not those of `upstream`
/// is passed over.
pub(super) async fn load_from_sister(
    link: &Link,
    upstream: &Member,
    least: i64,
    scratch: Option<PathBuf>,
) -> Option<Loaded> {
    for endpoint in link.sisters() {
        let begun = Instant::now();
        let loaded = async {
            let sister = link.connect_to_sister(&endpoint).await?;
            let found = local_revision(&sister).await?;
            if found < least {
                return Err(sister.invalid(format!("it is at revision {found}, and {least} is wanted")));
            }
            let loaded = Box::pin(snapshot(&sister, How::Sister, scratch.clone())).await?;
            Box::pin(compared(loaded, &sister, upstream)).await
        };
        match loaded.await {
            Ok(loaded) => {
                tracing::info!(
                    endpoint,
                    how = How::Sister.label(),
                    revision = loaded.store.revision(),
                    floor = loaded.store.floor(),
                    secs = begun.elapsed().as_secs_f64(),
                    "the keys of another replica are loaded"
                );
                return Some(loaded);
            }
            Err(error @ Error::OtherKeys { .. }) => {
                tracing::warn!(%error, "another replica has another past; nothing is taken over from it");
            }
            Err(error) => tracing::info!(endpoint, %error, "another replica cannot be loaded from"),
        }
    }
    None
}

/// Compares the state of a sister with the hash that the upstream has at the same revision, if the upstream can say it. A state
/// that cannot be compared is taken: the next connection judges it like one from a directory.
async fn compared(loaded: Loaded, sister: &Member, upstream: &Member) -> Result<Loaded, Error> {
    let revision = loaded.store.revision();
    let answer = match hash_at(upstream, revision).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::info!(%error, revision, "the state of another replica cannot be compared with the upstream");
            return Ok(loaded);
        }
    };
    let (endpoint, upstream) = (sister.endpoint.clone(), upstream.endpoint.clone());
    blocking(move || {
        let ours = loaded.store.versions().hash_compacted(answer.compact_revision);
        match ours {
            Some(ours) if ours != answer.hash => Err(Error::OtherKeys {
                endpoint,
                upstream,
                revision,
            }),
            _ => Ok(loaded),
        }
    })
    .await
}

/// Asks a member for its hash of all keys at a revision, which it may not have yet.
async fn hash_at(member: &Member, revision: i64) -> Result<pb::HashKvResponse, Error> {
    let began = Instant::now();
    loop {
        let request = pb::HashKvRequest { revision };
        match member.ask(path::HASH_KV, &request, HASH).await {
            Err(error) if error.is_future() && began.elapsed() < LAG => tokio::time::sleep(LOOK).await,
            answered => return answered,
        }
    }
}

async fn snapshot(member: &Member, how: How, scratch: Option<PathBuf>) -> Result<Loaded, Error> {
    let made = tempfile::tempfile().or_else(|error| match &scratch {
        Some(directory) => tempfile::tempfile_in(directory),
        None => Err(error),
    });
    let mut file = made.map_err(Error::Temporary)?;
    let mut metadata = member.metadata();
    if how == How::Sister {
        // Its own state rather than that of the upstream.
        metadata.insert(SISTER, MetadataValue::from_static("1"));
    }
    let mut stream = member
        .ask_for_stream(path::SNAPSHOT, metadata, &pb::SnapshotRequest {})
        .await?;
    while let Some(answer) = piece(member, stream.next()).await? {
        let answer = answer.map_err(|status| member.failed(status))?;
        let answer = pb::SnapshotResponse::decode(answer).map_err(|e| member.invalid(e.to_string()))?;
        // The file is in the kernel's cache, and pieces are small.
        file.write_all(&answer.blob).map_err(Error::Temporary)?;
    }
    blocking(move || read_snapshot(file, how)).await
}

/// Makes the store of a snapshot. The last 32 bytes of the file are its hash.
fn read_snapshot(mut file: File, how: How) -> Result<Loaded, Error> {
    file.rewind().map_err(Error::Temporary)?;
    let reader = Reader::from_file(file).map_err(crate::snapshot::Error::from)?;
    let content = Content::read(&reader)?;
    drop(reader);
    Ok(Loaded {
        how,
        store: content.following()?,
    })
}

/// The key-values of an answer.
fn checked(member: &Member, answer: &RangeResponse, into: &mut Vec<Kv>) -> Result<usize, Error> {
    let mut bytes = 0;
    into.reserve(answer.kvs.len());
    for kv in &answer.kvs {
        bytes += kv.len();
        let checked = Kv::checked(kv).filter(|kv| into.last().is_none_or(|last| last.key() < kv.key()));
        into.push(checked.ok_or_else(|| member.invalid("a key-value that no etcd writes, or out of order"))?);
    }
    Ok(bytes)
}

/// Lists all keys from `from` on.
fn request(from: Bytes, limit: i64, revision: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: from,
        range_end: Bytes::from_static(&[0]),
        limit,
        revision,
        // The member that answered the first page has the revision, and needs nobody to read it again.
        serializable: revision > 0,
        ..pb::RangeRequest::default()
    }
}

async fn range_stream(member: &Member) -> Result<List, Error> {
    let request = request(Bytes::from_static(&[0]), 0, 0);
    let mut stream = member
        .ask_for_stream(path::RANGE_STREAM, member.metadata(), &request)
        .await?;
    let mut list = List {
        kvs: vec![],
        revision: 0,
    };
    while let Some(answer) = piece(member, stream.next()).await? {
        let answer = answer.map_err(|status| member.failed(status))?;
        let answer = RangeStreamResponse::decode(answer).map_err(|e| member.invalid(e.to_string()))?;
        let answer = answer.range.unwrap_or_default();
        checked(member, &answer, &mut list.kvs)?;
        // The header comes with the last chunk.
        list.revision = answer.header.map_or(list.revision, |header| header.revision);
    }
    Ok(list)
}

async fn pages(member: &Member) -> Result<List, Error> {
    let mut attempts = 0;
    loop {
        match pages_at_one_revision(member).await {
            Err(error) if error.is_compacted() && attempts < ATTEMPTS => attempts += 1,
            done => return done,
        }
    }
}

async fn pages_at_one_revision(member: &Member) -> Result<List, Error> {
    let mut list = List {
        kvs: vec![],
        revision: 0,
    };
    let (mut from, mut limit) = (Bytes::from_static(&[0]), PAGE_MIN);
    loop {
        let request = request(from, limit, list.revision);
        let answer: RangeResponse = member.ask(path::RANGE, &request, PAGE_LIMIT).await?;
        if list.revision == 0 {
            list.revision = answer.header.map_or(0, |header| header.revision);
        }
        let (before, bytes) = (list.kvs.len(), checked(member, &answer, &mut list.kvs)?);
        let Some(last) = list.kvs.last().filter(|_| answer.more && list.kvs.len() > before) else {
            return Ok(list);
        };
        from = Bytes::from([last.key(), &[0]].concat());
        limit = keys_of_a_page(list.kvs.len() - before, bytes);
    }
}

/// How many keys like those of the last page make a page.
fn keys_of_a_page(keys: usize, bytes: usize) -> i64 {
    let fitting = PAGE_BYTES.saturating_mul(keys) / bytes.max(1);
    i64::try_from(fitting).unwrap_or(PAGE_MAX).clamp(PAGE_MIN, PAGE_MAX)
}

/// Makes the store of a list.
async fn finish(member: &Member, how: How, list: Result<List, Error>) -> Result<Loaded, Error> {
    let List { kvs, revision } = list?;
    if revision == 0 {
        return Err(member.invalid("a list without a header"));
    }
    Ok(Loaded {
        how,
        store: blocking(move || Ok(of_list(kvs, revision)?)).await?,
    })
}

/// A store with these keys and no history. The order of the changes inside a revision is not known.
fn of_list(kvs: Vec<Kv>, revision: i64) -> Result<Recovery, OutOfOrder> {
    let mut loader = Loader::listed(revision);
    for kv in kvs {
        let found = kv.fields().mod_revision;
        if !loader.push_listed(kv) {
            return Err(OutOfOrder {
                found,
                current: revision,
            });
        }
    }
    loader.finish()
}

/// Runs long work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => Err(Error::Temporary(std::io::Error::other(panic))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_sized_by_bytes() {
        assert_eq!(keys_of_a_page(20_000, 20_000 * 400), (PAGE_BYTES / 400) as i64);
        assert_eq!(keys_of_a_page(20_000, 20_000 * 100_000), PAGE_MIN);
        assert_eq!(keys_of_a_page(20_000, 20_000), PAGE_MAX);
        assert_eq!(keys_of_a_page(0, 0), PAGE_MIN);
    }

    #[test]
    fn a_file_of_free_pages_is_not_asked_for_first() {
        let facts = |db_size| Facts {
            db_size,
            db_size_in_use: 100,
            ..Facts::default()
        };
        assert_eq!(How::order(&facts(100))[0], How::Snapshot);
        assert_eq!(
            How::order(&facts(1000)).map(How::label),
            ["range_stream", "pages", "snapshot"]
        );
    }
}
