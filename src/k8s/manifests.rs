//! A directory of manifests as the source of objects: YAML or JSON, read again when files change.
//!
//! ```text
//! follow_dir ─ changed files ─► documents (parse, defaults) ─► published (compare) ─► events
//! ```
//!
//! An invalid document affects only itself: a warning names it, and everything published from its file stays until
//! the file is valid again.

mod defaults;
mod documents;
mod published;
#[cfg(test)]
mod tests;

use super::events::{Event, Received};
use super::status::Status;
use super::types::Kind;
use crate::util::access;
use crate::util::follow_dir::{self, Follower, Inspected, Removal, Scope};
use published::Manifests;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// The directory is read this often even without a notification.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest manifest that is read, in bytes.
const LENGTH_MAX: u64 = 256 << 20;

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the manifest directory {}: {source}", path.display())]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

/// Follows `directory` until `events` is closed. The directory must be readable at the start. Sends [`Event::Listed`]
/// for each of `kinds` after all manifests that were there at the start.
pub async fn follow(
    directory: PathBuf,
    kinds: Vec<Kind>,
    events: mpsc::Sender<Received>,
    status: &Status,
) -> Result<(), Error> {
    let mut follower = Follower::new(config(directory.clone()));
    let mut manifests = Manifests::default();
    let mut is_listed = false;
    loop {
        let update = match follower.next().await {
            Ok(update) => update,
            Err(source) if !is_listed => {
                let source = access::explained(source, &directory);
                return Err(Error {
                    path: directory,
                    source,
                });
            }
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "cannot read the manifests: nothing changes");
                continue;
            }
        };
        is_listed |= update.listed;
        // Parsing many objects takes long enough to block a worker of the runtime.
        let parse = move || {
            let list = manifests.update(update.changes);
            (manifests, list)
        };
        let mut list;
        (manifests, list) = tokio::task::spawn_blocking(parse)
            .await
            .expect("parsing does not panic");
        list.retain(|event| is_wanted(event, &kinds));
        if update.listed {
            list.extend(kinds.iter().map(|kind| Event::Listed(*kind)));
        }
        for event in list {
            status.count_event(&event);
            if events.send(event.into()).await.is_err() {
                return Ok(());
            }
        }
        for kind in &kinds {
            status.set_objects(*kind, manifests.count(*kind));
        }
    }
}

/// The events of one manifest, as if it were the only file of its directory. Invalid documents are left out.
pub fn parse(text: &str) -> Vec<Event> {
    let mut manifests = Manifests::default();
    let file = follow_dir::File {
        path: PathBuf::from("manifest"),
        content: text.into(),
        // 2006-01-02T15:04:05Z
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_136_214_245),
    };
    manifests.update(vec![follow_dir::FileChange::Content(file)])
}

fn config(directory: PathBuf) -> follow_dir::Config {
    follow_dir::Config {
        subject: "manifests",
        scope: Scope::Tree(directory),
        wants: is_manifest,
        inspect: |_| Inspected::Followed { companions: vec![] },
        removal: Removal::AtOnce,
        length_max: LENGTH_MAX,
        period: PERIOD,
    }
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension();
    extension.is_some_and(|e| ["yaml", "yml", "json"].iter().any(|manifest| e == *manifest))
}

fn is_wanted(event: &Event, kinds: &[Kind]) -> bool {
    match event {
        Event::Apply(key, _) => kinds.contains(&key.kind),
        Event::Delete(key) => kinds.contains(&key.kind),
        Event::Listed(_) => true,
    }
}
