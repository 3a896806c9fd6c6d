//! The file with the users: how it is noticed that it changes, and what it says.

use super::reconcile::Wanted;
use crate::util::files::{is_change, is_settled};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest file that is read: more than a ConfigMap can hold.
const LENGTH_MAX: u64 = 4 << 20;

/// Tells that something changed in a file's directory. Mounted ConfigMaps swap a symlink there.
pub(super) struct Changes {
    directory: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Whether the directory is being watched; it need not be there from the beginning.
    watched: bool,
    /// Holds one: more than one change since the last look is as good as one.
    noticed: mpsc::Receiver<()>,
}

/// The file, as last seen.
pub(super) struct UsersFile {
    path: PathBuf,
    own: BTreeSet<String>,
    seen: Seen,
}

#[derive(PartialEq)]
enum Seen {
    Nothing,
    Missing,
    Unreadable(String),
    Content(Vec<u8>),
}

/// What a look at the file finds.
#[derive(Debug, PartialEq)]
pub(super) enum Look {
    /// Nothing new: the file is as it was, or not there.
    Same,
    /// It may not be whole.
    BeingWritten,
    /// It has changed, and this is who it lists.
    New(Wanted),
    /// It has changed, and this is what is wrong with it.
    Wrong(String),
}

#[derive(Deserialize)]
struct Document {
    /// An empty list may be written as nothing; without the word it is some other file.
    #[serde(deserialize_with = "list")]
    users: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    name: String,
    role: String,
}

fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

// === impl Changes ===

impl Changes {
    pub(super) fn beside(path: &Path) -> Self {
        let (changed, noticed) = mpsc::channel(1);
        let tell = move |event: notify::Result<notify::Event>| {
            if is_change(&event) {
                let _ = changed.try_send(());
            }
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        Self {
            directory: parent.unwrap_or(Path::new(".")).to_owned(),
            watcher: notify::recommended_watcher(tell).ok(),
            watched: false,
            noticed,
        }
    }

    /// Returns at a change, or after this time.
    pub(super) async fn within(&mut self, time: Duration) {
        if let Some(watcher) = self.watcher.as_mut().filter(|_| !self.watched) {
            self.watched = watcher.watch(&self.directory, RecursiveMode::NonRecursive).is_ok();
        }
        tokio::select! {
            Some(()) = self.noticed.recv() => {}
            () = tokio::time::sleep(time) => {}
        }
    }
}

// === impl UsersFile ===

impl UsersFile {
    /// `own` are users that no file may name.
    pub(super) fn new(path: PathBuf, own: BTreeSet<String>) -> Self {
        Self {
            path,
            own,
            seen: Seen::Nothing,
        }
    }

    pub(super) fn look(&mut self) -> Look {
        let seen = match self.read() {
            Ok(Some(content)) => Seen::Content(content),
            Ok(None) => return Look::BeingWritten,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::Missing,
            Err(error) => Seen::Unreadable(error.to_string()),
        };
        if seen == self.seen {
            return Look::Same;
        }
        let path = self.path.display();
        let look = match &seen {
            Seen::Missing if self.seen == Seen::Nothing => {
                tracing::info!(%path, "there is no users file yet: waiting for it");
                Look::Same
            }
            Seen::Missing | Seen::Nothing => {
                tracing::info!(%path, "the users file is gone: users stay as they are");
                Look::Same
            }
            Seen::Unreadable(error) => Look::Wrong(format!("cannot read {path}: {error}")),
            Seen::Content(content) => match wanted(content, &self.own) {
                Ok((wanted, complaints)) => {
                    for complaint in complaints {
                        tracing::warn!(%path, "{complaint}");
                    }
                    Look::New(wanted)
                }
                Err(error) => Look::Wrong(format!("{path}: {error}")),
            },
        };
        self.seen = seen;
        look
    }

    /// The content; nothing if it may still be being written.
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        // A missing file is not settled either.
        let file = std::fs::File::open(&self.path)?;
        if !is_settled(&self.path) {
            return Ok(None);
        }
        let mut content = vec![];
        file.take(LENGTH_MAX + 1).read_to_end(&mut content)?;
        match content.len() as u64 > LENGTH_MAX {
            true => Err(io::Error::other(format!("it is longer than {LENGTH_MAX} bytes"))),
            false => Ok(Some(content)),
        }
    }
}

/// Who is listed, and what is wrong with some of the entries.
fn wanted(content: &[u8], own: &BTreeSet<String>) -> Result<(Wanted, Vec<String>), String> {
    let text = std::str::from_utf8(content).map_err(|e| e.to_string())?;
    let document: Document = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let (mut wanted, mut complaints) = (Wanted::new(), vec![]);
    for (at, Entry { name, role }) in document.users.into_iter().enumerate() {
        if name.is_empty() {
            complaints.push(format!("entry {} has no name: left out", at + 1));
        } else if own.contains(&name) {
            complaints.push(format!("{name:?} is a user of this cluster's own: left as it is"));
        } else if role.is_empty() {
            complaints.push(format!("{name:?} has no role: left as it is"));
            wanted.entry(name).or_default();
        } else {
            // Parity: whoever is listed twice has both roles.
            wanted.entry(name).or_default().insert(role);
        }
    }
    Ok((wanted, complaints))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> BTreeSet<String> {
        ["root", "admin-hk", "local-hk", "remote"].map(str::to_owned).into()
    }

    fn listed(text: &str) -> Vec<String> {
        let (wanted, _) = wanted(text.as_bytes(), &own()).unwrap();
        let line = |(name, roles): (String, BTreeSet<String>)| {
            let roles: Vec<_> = roles.into_iter().collect();
            format!("{name}: {}", roles.join(" "))
        };
        wanted.into_iter().map(line).collect()
    }

    #[test]
    fn the_charts_file_is_read() {
        let text =
            "users:\n- name: remote-tokyo\n  role: remote\n- name: remote-1\n  role: remote\n  more: x\nelse: 1\n";
        assert_eq!(listed(text), ["remote-1: remote", "remote-tokyo: remote"]);
        // What the chart makes of no clusters.
        assert!(listed("users:\n").is_empty() && listed("users: []").is_empty());
        assert_eq!(
            listed("users: [{name: 7, role: 007}, {name: no, role: yes}]"),
            ["7: 007", "no: yes"]
        );
        let twice = "users: [{name: a, role: r1}, {name: a, role: r2}]";
        assert_eq!(listed(twice), ["a: r1 r2"]);
    }

    #[test]
    fn entries_that_cannot_be_meant_are_named_and_cost_no_other() {
        let text =
            "users: [{role: r}, {name: root, role: r}, {name: a}, {name: local-hk, role: r}, {name: b, role: r}]";
        assert_eq!(listed(text), ["a: ", "b: r"], "a is listed, so it stays");
        let (_, complaints) = wanted(text.as_bytes(), &own()).unwrap();
        assert_eq!(complaints.len(), 4, "{complaints:?}");
        assert!(complaints[0].contains("entry 1") && complaints[1].contains("root"));
    }

    #[test]
    fn a_file_that_is_no_list_of_users_is_wrong() {
        for text in [
            "",
            "\n",
            "a: b",
            "users: 7",
            "users: [",
            "- name: a",
            "users: [a]",
            "\u{0}",
        ] {
            assert!(wanted(text.as_bytes(), &own()).is_err(), "{text:?}");
        }
        assert!(wanted(b"users: \xff", &own()).is_err());
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "file times are what is waited for")]
    fn each_content_is_said_once_and_a_file_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.yaml");
        let mut file = UsersFile::new(path.clone(), own());
        assert_eq!((file.look(), file.look()), (Look::Same, Look::Same), "missing");
        std::fs::write(&path, "users: [").unwrap();
        assert_eq!(file.look(), Look::BeingWritten);
        std::thread::sleep(crate::util::files::SETTLE);
        assert!(matches!(file.look(), Look::Wrong(text) if text.contains("users.yaml")));
        assert_eq!(file.look(), Look::Same);
        std::fs::write(&path, "users:\n").unwrap();
        std::thread::sleep(crate::util::files::SETTLE);
        assert_eq!((file.look(), file.look()), (Look::New(Wanted::new()), Look::Same));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((file.look(), file.look()), (Look::Same, Look::Same), "gone");
        std::fs::create_dir(&path).unwrap();
        std::thread::sleep(crate::util::files::SETTLE);
        assert!(matches!(file.look(), Look::Wrong(text) if text.contains("users.yaml")));
        assert_eq!(file.look(), Look::Same);
    }
}
