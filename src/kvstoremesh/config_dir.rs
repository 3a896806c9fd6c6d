//! The directory of remote clusters: one etcd client file each, named after the cluster.
//!
//! As in Cilium, a file is a cluster configuration if it contains the text `endpoints:`, and only its content matters. A
//! file that has other fields of one is reported as a broken cluster configuration, where Cilium ignores it, or takes it
//! for a cluster that left.
//! The TLS files that a configuration names count as its content: a new certificate makes a new connection.

use crate::kvstore::config::{ClientConfig, is_meant_as_configuration};
use crate::model::cluster::ClusterName;
use crate::util::follow_dir::{Config, FileChange, Follower, Inspected, Removal, Scope};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// The directory is read this often even without a notification.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest file that is read, in bytes: more than a Secret can hold.
const LENGTH_MAX: u64 = 4 << 20;

/// A change of a remote cluster's client file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The file is new, or its content changed.
    Set(ClusterName, PathBuf),
    /// The file is gone, or is no longer a cluster configuration.
    Removed(ClusterName),
    /// Every file that existed at the start has been reported.
    Listed,
}

/// Turns changes of files into events of clusters.
struct Clusters {
    own: ClusterName,
    /// Files whose names are not cluster names; each was reported.
    refused: BTreeSet<PathBuf>,
    /// Files that were cluster configurations when they were read last.
    reported: BTreeSet<PathBuf>,
}

/// Follows `directory` until `events` is closed. `own` is not a remote cluster. A directory that cannot
/// be read is an error at the start; later it is a warning, and the clusters stay as they are.
pub async fn follow(directory: PathBuf, own: ClusterName, events: mpsc::Sender<Event>) -> std::io::Result<()> {
    let mut follower = Follower::new(config(directory.clone()));
    let mut clusters = Clusters::new(own);
    let mut is_listed = false;
    loop {
        let update = match follower.next().await {
            Ok(update) => update,
            Err(error) if !is_listed => return Err(error),
            Err(error) => {
                tracing::warn!(
                    directory = %directory.display(), %error,
                    "cannot read the cluster configurations: the remote clusters stay as they are"
                );
                continue;
            }
        };
        is_listed |= update.listed;
        let changes = update.changes.into_iter();
        let mut list: Vec<_> = changes.filter_map(|change| clusters.event(change)).collect();
        list.extend(update.listed.then_some(Event::Listed));
        for event in list {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn config(directory: PathBuf) -> Config {
    Config {
        subject: "cluster configurations",
        scope: Scope::Directory(directory),
        wants: |path| name(path).is_some(),
        inspect,
        removal: Removal::Confirmed,
        length_max: LENGTH_MAX,
        period: PERIOD,
    }
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Whether a file is a cluster configuration, and which files it names.
fn inspect(content: &[u8]) -> Inspected {
    let text = String::from_utf8_lossy(content);
    if !text.contains("endpoints:") && !is_meant_as_configuration(&text) {
        return Inspected::Ignored;
    }
    let config = ClientConfig::parse(&text);
    let companions = config.map_or_else(|_| vec![], |config| config.files().cloned().collect());
    Inspected::Followed { companions }
}

impl Clusters {
    fn new(own: ClusterName) -> Self {
        Self {
            own,
            refused: BTreeSet::new(),
            reported: BTreeSet::new(),
        }
    }

    fn event(&mut self, change: FileChange) -> Option<Event> {
        match change {
            FileChange::Content(file) => {
                self.reported.insert(file.path.clone());
                let name = self.remote(&file.path)?;
                Some(Event::Set(name, file.path))
            }
            FileChange::Removed(path) => {
                self.reported.remove(&path);
                self.remote(&path).map(Event::Removed)
            }
            // Perhaps no cluster configuration: keys of certificates lie in the same directory.
            FileChange::Unreadable { path, error } if !self.reported.contains(&path) => {
                tracing::debug!(file = %path.display(), %error, "cannot read a file in the directory of cluster configurations");
                None
            }
            FileChange::Unreadable { path, error } => {
                tracing::warn!(file = %path.display(), %error, "cannot read a cluster configuration: the cluster stays as it is");
                None
            }
            FileChange::ReadableAgain(_) => None,
        }
    }

    /// The remote cluster that a file is named after.
    fn remote(&mut self, path: &Path) -> Option<ClusterName> {
        match ClusterName::new(name(path)?) {
            Ok(name) => (name != self.own).then_some(name),
            Err(error) => {
                if self.refused.insert(path.to_owned()) {
                    tracing::error!(file = %path.display(), %error, "the name of this cluster configuration is not a cluster name: ignored");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::follow_dir::{Looker, NextLook, SETTLE};
    use std::time::SystemTime;

    /// A directory of cluster configurations, and its looker.
    struct Fixture {
        dir: tempfile::TempDir,
        looker: Looker,
        clusters: Clusters,
        next: NextLook,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self {
                looker: Looker::new(config(dir.path().to_owned())),
                clusters: Clusters::new(cluster("own")),
                next: NextLook::AfterPeriod,
                dir,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path(name), text).unwrap();
        }

        fn set(&self, name: &str) -> Event {
            Event::Set(cluster(name), self.path(name))
        }

        /// Looks at the directory after all written files have settled.
        fn scan(&mut self) -> Vec<Event> {
            let look = self.looker.look(&|| SystemTime::now() + SETTLE).unwrap();
            self.next = look.next;
            let changes = look.changes.into_iter();
            changes.filter_map(|change| self.clusters.event(change)).collect()
        }
    }

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).unwrap()
    }

    #[test]
    fn files_that_hold_endpoints_are_clusters_and_only_content_counts() {
        let mut dir = Fixture::new();
        dir.write("ca.crt", "one");
        let config = format!(
            "endpoints:\n- https://x:2379\ntrusted-ca-file: {}\n",
            dir.path("ca.crt").display()
        );
        dir.write("hk", &config);
        dir.write("own", &config);
        dir.write("Bad_Name", &config);
        dir.write("other.key", "secret");
        std::fs::create_dir(dir.path("..data")).unwrap();
        assert_eq!(dir.scan(), [dir.set("hk")]);
        dir.write("hk", &config);
        assert_eq!(dir.scan(), []);
        dir.write("ca.crt", "two");
        assert_eq!(dir.scan(), [dir.set("hk")]);
        dir.write("hk", "no longer one");
        assert_eq!(dir.scan(), [], "looked at twice");
        assert_eq!(dir.next, NextLook::SoonToSettle);
        assert_eq!(dir.scan(), [Event::Removed(cluster("hk"))]);
        // A configuration may be absent for a moment while it is replaced.
        dir.write("hk", &config);
        assert_eq!(dir.scan(), [dir.set("hk")]);
        std::fs::remove_file(dir.path("hk")).unwrap();
        assert_eq!(dir.scan(), []);
        dir.write("hk", &config);
        assert_eq!(dir.scan(), []);
        assert_eq!(dir.next, NextLook::AfterPeriod);
    }

    #[test]
    fn a_mistyped_configuration_is_a_cluster_and_no_removal() {
        let mut dir = Fixture::new();
        dir.write("hk", "endpoint: [\"https://x:2379\"]\nca-file: /ca.crt\n");
        dir.write(
            "ca.crt",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        );
        dir.write("notes", "name: value\n");
        assert_eq!(dir.scan(), [dir.set("hk")]);
        dir.write("hk", "endpoints: [\"https://x:2379\"]\n");
        assert_eq!(dir.scan(), [dir.set("hk")]);
        dir.write("hk", "endpoint: [\"https://x:2379\"]\ncert-file: /tls.crt\n");
        assert_eq!(dir.scan(), [dir.set("hk")]);
    }

    #[test]
    fn a_swapped_symlink_is_a_change() {
        let mut dir = Fixture::new();
        for (version, port) in [("..1", 1), ("..2", 2)] {
            std::fs::create_dir(dir.path(version)).unwrap();
            dir.write(&format!("{version}/hk"), &format!("endpoints: [\"http://x:{port}\"]"));
        }
        std::os::unix::fs::symlink("..1", dir.path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/hk", dir.path("hk")).unwrap();
        let written = std::fs::metadata(dir.path("hk")).unwrap().modified().unwrap();
        let look = dir.looker.look(&|| written).unwrap();
        assert!(look.changes.is_empty(), "still being written");
        assert_eq!(look.next, NextLook::SoonToSettle);
        assert_eq!(dir.scan(), [dir.set("hk")]);
        std::fs::remove_file(dir.path("..data")).unwrap();
        std::os::unix::fs::symlink("..2", dir.path("..data")).unwrap();
        assert_eq!(dir.scan(), [dir.set("hk")]);
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_read_is_an_error_at_the_start() {
        let dir = Fixture::new();
        let (sender, mut events) = mpsc::channel(4);
        let error = follow(dir.path("absent"), cluster("own"), sender.clone()).await;
        assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::NotFound);
        dir.write("hk", "endpoints: []");
        let told = async { (events.recv().await.unwrap(), events.recv().await.unwrap()) };
        tokio::select! {
            ended = follow(dir.dir.path().to_owned(), cluster("own"), sender) => panic!("{ended:?}"),
            told = told => assert_eq!(told, (dir.set("hk"), Event::Listed)),
        }
    }
}
