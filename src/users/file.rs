//! The users file: its content, and the news about it.

use super::reconcile::Wanted;
use crate::util::follow_dir::{Config, File, FileChange, Follower, Inspected, Removal, Scope, Update};
use crate::util::yaml::first_line;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Longest file that is read, in bytes: more than a ConfigMap can hold.
const LENGTH_MAX: u64 = 4 << 20;
/// The file is read this often even without a notification.
const PERIOD: Duration = Duration::from_secs(5);

/// Decodes the updates that the follower of the file reports.
pub(super) struct UsersFile {
    path: PathBuf,
    /// Users that the file may not change.
    own: BTreeSet<String>,
}

/// The content of a valid file.
struct Parsed {
    users: Wanted,
    /// The reasons why entries are left out, or are without effect.
    complaints: Vec<String>,
}

/// News about the file.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// The file lists these users.
    Listed(Wanted),
    /// The file cannot be read, or is not a users file; the text is the reason.
    Wrong(String),
}

#[derive(Deserialize)]
struct Document {
    /// The list may be empty or null, but a file without this field is not a users file.
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

impl UsersFile {
    pub(super) fn new(path: PathBuf, own: BTreeSet<String>) -> Self {
        Self { path, own }
    }

    pub(super) fn follower(&self) -> Follower {
        Follower::new(self.config())
    }

    fn config(&self) -> Config {
        Config {
            subject: "users file",
            scope: Scope::File(self.path.clone()),
            wants: |_| true,
            inspect: |_| Inspected::Followed { companions: vec![] },
            removal: Removal::AtOnce,
            length_max: LENGTH_MAX,
            period: PERIOD,
        }
    }

    /// The news in an update of the file. A missing or removed file is logged and changes nothing.
    pub(super) fn news(&self, update: Update) -> Option<News> {
        let path = self.path.display();
        let Some(change) = update.changes.into_iter().next() else {
            tracing::info!(%path, "the users file does not exist yet; waiting for the file");
            return None;
        };
        match change {
            FileChange::Content(file) | FileChange::ReadableAgain(file) => Some(self.listed(&file)),
            FileChange::Unreadable { error, .. } => Some(News::Wrong(format!("cannot read {path}: {error}"))),
            FileChange::Removed(_) => {
                tracing::info!(%path, "the users file is gone: users stay as they are");
                None
            }
        }
    }

    fn listed(&self, file: &File) -> News {
        let path = self.path.display();
        match parse(&file.content, &self.own) {
            Ok(Parsed { users, complaints }) => {
                for complaint in complaints {
                    tracing::warn!(%path, "{complaint}");
                }
                News::Listed(users)
            }
            Err(error) => News::Wrong(format!("{path}: {error}")),
        }
    }
}

/// Parses the file. Invalid entries are left out.
fn parse(content: &[u8], own: &BTreeSet<String>) -> Result<Parsed, String> {
    let text = std::str::from_utf8(content).map_err(|e| e.to_string())?;
    let document: Document = serde_saphyr::from_str(text).map_err(|e| first_line(&e.to_string()))?;
    let (mut users, mut complaints) = (Wanted::new(), vec![]);
    for (at, Entry { name, role }) in document.users.into_iter().enumerate() {
        if name.is_empty() {
            complaints.push(format!("entry {} has no name: left out", at + 1));
        } else if own.contains(&name) {
            complaints.push(format!("{name:?} is one of this cluster's own users: left as it is"));
        } else if role.is_empty() {
            complaints.push(format!("{name:?} has no role: the roles that it has are revoked"));
            users.entry(name).or_default();
        } else {
            // Parity: of several entries for one user, the last one remains in effect.
            if users
                .get(&name)
                .is_some_and(|roles| !roles.is_empty() && !roles.contains(&role))
            {
                complaints.push(format!(
                    "{name:?} is listed twice: the role {role:?} of the last entry counts"
                ));
            }
            users.insert(name, [role].into());
        }
    }
    Ok(Parsed { users, complaints })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::follow_dir::{Looker, NextLook, SETTLE};
    use std::time::SystemTime;

    fn own() -> BTreeSet<String> {
        ["root", "admin-hk", "local-hk", "remote"].map(str::to_owned).into()
    }

    fn listed(text: &str) -> Vec<String> {
        let users = parse(text.as_bytes(), &own()).unwrap().users;
        let line = |(name, roles): (String, BTreeSet<String>)| {
            let roles: Vec<_> = roles.into_iter().collect();
            format!("{name}: {}", roles.join(" "))
        };
        users.into_iter().map(line).collect()
    }

    #[test]
    fn the_charts_file_is_read() {
        let text =
            "users:\n- name: remote-tokyo\n  role: remote\n- name: remote-1\n  role: remote\n  more: x\nelse: 1\n";
        assert_eq!(listed(text), ["remote-1: remote", "remote-tokyo: remote"]);
        // The file that the chart writes without clusters.
        assert!(listed("users:\n").is_empty() && listed("users: []").is_empty());
        assert_eq!(
            listed("users: [{name: 7, role: 007}, {name: no, role: yes}]"),
            ["7: 007", "no: yes"]
        );
        let twice = "users: [{name: a, role: r1}, {name: a, role: r2}]";
        assert_eq!(listed(twice), ["a: r2"]);
    }

    #[test]
    fn invalid_entries_are_named_and_the_others_are_used() {
        let text =
            "users: [{role: r}, {name: root, role: r}, {name: a}, {name: local-hk, role: r}, {name: b, role: r}]";
        assert_eq!(listed(text), ["a: ", "b: r"], "a is listed, so the user stays");
        let complaints = parse(text.as_bytes(), &own()).unwrap().complaints;
        assert_eq!(complaints.len(), 4, "{complaints:?}");
        assert!(complaints[0].contains("entry 1") && complaints[1].contains("root"));
    }

    #[test]
    fn a_file_that_is_no_list_of_users_is_invalid() {
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
            assert!(parse(text.as_bytes(), &own()).is_err(), "{text:?}");
        }
        assert!(parse(b"users: \xff", &own()).is_err());
    }

    #[test]
    fn each_content_is_reported_once_and_a_file_being_written_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.yaml");
        let file = UsersFile::new(path.clone(), own());
        let mut looker = Looker::new(file.config());
        let mut look = |now: SystemTime| {
            let look = looker.look(&|| now).unwrap();
            let update = Update {
                changes: look.changes,
                listed: false,
            };
            (file.news(update), look.next)
        };
        let settled = || SystemTime::now() + SETTLE;
        assert_eq!(look(settled()), (None, NextLook::AfterPeriod), "missing");
        std::fs::write(&path, "users: [").unwrap();
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(look(written), (None, NextLook::SoonToSettle));
        assert!(matches!(look(settled()), (Some(News::Wrong(text)), _) if text.contains("users.yaml")));
        assert_eq!(look(settled()), (None, NextLook::AfterPeriod));
        std::fs::write(&path, "users:\n").unwrap();
        assert_eq!(look(settled()).0, Some(News::Listed(Wanted::new())));
        assert_eq!(look(settled()).0, None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!((look(settled()).0, look(settled()).0), (None, None), "gone");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(look(settled()).0, Some(News::Wrong(text)) if text.contains("users.yaml")));
        assert_eq!(look(settled()).0, None);
    }
}
