//! The directory of remote clusters: one etcd client file each, named after the cluster.
//!
//! As in Cilium, a file counts if it holds the text `endpoints:`, and only its content matters. Mounted
//! Secrets swap a symlink, so the directory is watched, and looked at every few seconds besides. The TLS
//! files that a configuration names count as its content: new certificates make a new connection.

use crate::kvstore::config::ClientConfig;
use crate::model::cluster::ClusterName;
use crate::util::files::{SETTLE, is_change, is_settled};
use notify::{RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// The directory is looked at this often even if no change was noticed.
const RESCAN: Duration = Duration::from_secs(5);

/// What happened to a remote cluster's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new, or its content changed.
    Set(ClusterName, PathBuf),
    /// It is gone.
    Removed(ClusterName),
    /// Everything that was there at the start has been said.
    Listed,
}

/// Files seen: name → hash of everything that counts.
#[derive(Default)]
struct Seen {
    clusters: BTreeMap<ClusterName, u64>,
    /// Whether a file was being written when it was looked at.
    unsettled: bool,
    /// Clusters whose file was not there at the last look.
    missing: BTreeSet<ClusterName>,
    /// Names already complained about.
    refused: Vec<String>,
}

/// Follows `directory` until `events` is closed. `own` is not a remote cluster. A directory that cannot
/// be read is an error at the start, and later a warning: nothing is removed then.
pub async fn follow(directory: PathBuf, own: ClusterName, events: mpsc::Sender<Event>) -> std::io::Result<()> {
    let (changed, mut changes) = mpsc::channel(1);
    let noticed = move |event: notify::Result<notify::Event>| {
        if !is_change(&event) {
            return;
        }
        let _ = changed.try_send(());
    };
    let mut watcher = notify::recommended_watcher(noticed).ok();
    if let Some(watcher) = &mut watcher
        && let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive)
    {
        tracing::warn!(%error, "changes of the cluster configurations are noticed by polling only");
    }
    let mut seen = Seen::default();
    let mut first = true;
    loop {
        match seen.scan(&directory, &own) {
            Ok(list) => {
                for event in list {
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(error) if first => return Err(error),
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "cannot read the cluster configurations");
            }
        }
        if seen.unsettled {
            tokio::time::sleep(SETTLE).await;
            continue;
        }
        if std::mem::take(&mut first) && events.send(Event::Listed).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(RESCAN) => {}
        }
        while changes.try_recv().is_ok() {}
    }
}

impl Seen {
    fn scan(&mut self, directory: &Path, own: &ClusterName) -> std::io::Result<Vec<Event>> {
        let mut now = BTreeMap::new();
        let mut events = vec![];
        self.unsettled = false;
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
                continue;
            };
            let known = ClusterName::new(name).ok().and_then(|n| self.clusters.remove_entry(&n));
            if std::fs::metadata(&path).is_ok_and(|m| m.is_file()) && !is_settled(&path) {
                self.unsettled = true;
                now.extend(known);
                continue;
            }
            let before = known.as_ref().map(|(_, hash)| *hash);
            let text = match read_config(&path) {
                Ok(Some(text)) => text,
                Ok(None) => {
                    events.extend(known.and_then(|(name, hash)| self.missing(name, hash, &mut now)));
                    continue;
                }
                Err(error) => {
                    // That says nothing of the cluster.
                    if known.is_some() {
                        tracing::warn!(file = %path.display(), %error, "cannot be read");
                    }
                    now.extend(known);
                    continue;
                }
            };
            match ClusterName::new(name) {
                Ok(name) if name == *own => {}
                Ok(name) => {
                    let hash = hash(&path, &text);
                    if before != Some(hash) {
                        events.push(Event::Set(name.clone(), path));
                    }
                    self.missing.remove(&name);
                    now.insert(name, hash);
                }
                Err(error) if !self.refused.iter().any(|r| r == name) => {
                    tracing::error!(file = %path.display(), %error, "not a remote cluster");
                    self.refused.push(name.to_owned());
                }
                Err(_) => {}
            }
        }
        // What is left was not there.
        for (name, hash) in std::mem::take(&mut self.clusters) {
            events.extend(self.missing(name, hash, &mut now));
        }
        self.clusters = now;
        Ok(events)
    }

    /// A cluster whose file is not there; it left if that is so at two looks, and not between two states.
    fn missing(&mut self, name: ClusterName, hash: u64, now: &mut BTreeMap<ClusterName, u64>) -> Option<Event> {
        if self.missing.remove(&name) {
            return Some(Event::Removed(name));
        }
        self.unsettled = true;
        self.missing.insert(name.clone());
        now.insert(name, hash);
        None
    }
}

/// The text of a file that is a cluster configuration; none if it is none, or is not there.
fn read_config(path: &Path) -> std::io::Result<Option<String>> {
    let read = std::fs::metadata(path).and_then(|found| match found.is_file() {
        true => std::fs::read(path).map(Some),
        false => Ok(None),
    });
    match read {
        Ok(text) => Ok(text
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .filter(|text| text.contains("endpoints:"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn hash(path: &Path, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    if let Ok(config) = ClientConfig::read(path) {
        for file in config.files() {
            std::fs::read(file).ok().hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "file times are what is waited for")]
    fn files_that_hold_endpoints_are_clusters_and_only_content_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            std::thread::sleep(SETTLE);
        };
        let name = |n: &str| ClusterName::new(n).unwrap();
        let set = |n: &str| Event::Set(name(n), dir.path().join(n));
        let mut seen = Seen::default();
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, "one").unwrap();
        let config = format!("endpoints:\n- https://x:2379\ntrusted-ca-file: {}\n", ca.display());
        write("hk", &config);
        write("own", &config);
        write("Bad_Name", &config);
        write("other.key", "secret");
        std::fs::create_dir(dir.path().join("..data")).unwrap();
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), [set("hk")]);
        write("hk", &config);
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), []);
        std::fs::write(&ca, "two").unwrap();
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), [set("hk")]);
        write("hk", "no longer one");
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), [], "looked at twice");
        assert!(seen.unsettled);
        assert_eq!(
            seen.scan(dir.path(), &name("own")).unwrap(),
            [Event::Removed(name("hk"))]
        );
        // Between two states it may be away for a moment.
        write("hk", &config);
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), [set("hk")]);
        std::fs::remove_file(dir.path().join("hk")).unwrap();
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), []);
        write("hk", &config);
        assert_eq!(seen.scan(dir.path(), &name("own")).unwrap(), []);
        assert!(seen.missing.is_empty());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "file times are what is waited for")]
    fn a_swapped_symlink_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        for (version, port) in [("..1", 1), ("..2", 2)] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("hk"), format!("endpoints: [\"http://x:{port}\"]")).unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/hk", at("hk")).unwrap();
        let own = ClusterName::new("own").unwrap();
        let mut seen = Seen::default();
        assert_eq!(seen.scan(dir.path(), &own).unwrap(), [], "still being written");
        assert!(seen.unsettled);
        std::thread::sleep(SETTLE);
        assert_eq!(seen.scan(dir.path(), &own).unwrap().len(), 1);
        std::fs::remove_file(at("..data")).unwrap();
        std::os::unix::fs::symlink("..2", at("..data")).unwrap();
        assert_eq!(seen.scan(dir.path(), &own).unwrap().len(), 1);
    }
}
