//! Brings the users of a store to the wanted state.

use crate::kvstore::Error;
use crate::kvstore::users::UserAdmin;
use std::collections::{BTreeMap, BTreeSet};

/// Prefix of the names of users of remote clusters. Users with this prefix that are not listed are removed, even if
/// another program made them.
const PREFIX: &str = "remote-";
/// After this many consecutive failures of the store itself, the rest of the comparison is postponed.
const UNAVAILABLE_MAX: usize = 2;

/// The listed users with their roles. A user without roles is not created, and loses the roles that it has.
pub(super) type Wanted = BTreeMap<String, BTreeSet<String>>;

/// The wanted users, and the knowledge about the present users.
pub(super) struct Reconciler {
    /// Users that are never changed.
    own: BTreeSet<String>,
    wanted: Wanted,
    /// Users without the prefix that are removed when they are no longer listed, because they were listed once.
    adopted: BTreeSet<String>,
    /// Users whose roles must be compared. The roles of all others have been compared since the list changed.
    unsure: BTreeSet<String>,
}

/// The outcome of one comparison.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) failures: Vec<String>,
    /// The number of managed users in the store; `None` if the users could not be listed.
    pub(super) managed: Option<usize>,
    /// Whether the comparison found nothing to compare or change.
    pub(super) routine: bool,
}

/// Collects failures, and counts those of the store itself.
#[derive(Default)]
struct Tally {
    failures: Vec<String>,
    /// Consecutive failures of the store rather than of a user.
    unavailable: usize,
}

impl Tally {
    /// Adds the outcome for `user`.
    fn note(&mut self, user: &str, done: Result<(), Error>) {
        match done {
            Ok(()) | Err(Error::Rejected(_)) => self.unavailable = 0,
            Err(Error::Unavailable(_) | Error::Full(_)) => self.unavailable += 1,
        }
        if let Err(error) = done {
            self.failures.push(format!("user {user}: {error}"));
        }
    }

    /// Whether the store is unavailable for every user.
    fn is_unavailable(&self) -> bool {
        self.unavailable >= UNAVAILABLE_MAX
    }
}

impl Reconciler {
    pub(super) fn new(own: BTreeSet<String>) -> Self {
        Self {
            own,
            wanted: Wanted::new(),
            adopted: BTreeSet::new(),
            unsure: BTreeSet::new(),
        }
    }

    /// Replaces the wanted users.
    pub(super) fn want(&mut self, wanted: Wanted) {
        self.unsure = wanted.keys().cloned().collect();
        self.wanted = wanted;
    }

    /// Removes, adds and changes users of the store as wanted. Users that fail are left for the next call.
    pub(super) async fn reconcile(&mut self, admin: &dyn UserAdmin) -> Outcome {
        let mut present = match admin.list().await {
            Ok(present) => present,
            Err(error) => {
                return Outcome {
                    failures: vec![format!("cannot list the users: {error}")],
                    ..Outcome::default()
                };
            }
        };
        let gone: Vec<_> = present
            .iter()
            .filter(|user| self.is_to_be_removed(user))
            .cloned()
            .collect();
        let todo = self.todo(&present);
        let routine = gone.is_empty() && todo.is_empty();
        let mut tally = Tally::default();
        // Removals first: a cluster that left loses its access before others are added.
        for user in gone {
            let deleted = admin.delete(&user).await;
            if deleted.is_ok() {
                tracing::info!(user, "user removed");
                self.adopted.remove(&user);
                present.remove(&user);
            }
            tally.note(&user, deleted);
            if tally.is_unavailable() {
                break;
            }
        }
        for (user, roles) in todo {
            if tally.is_unavailable() {
                break;
            }
            let was_there = present.contains(&user);
            let done = ensure(admin, &user, &roles, &mut present).await;
            if !roles.is_empty() && (done.is_ok() || (!was_there && present.contains(&user))) {
                self.adopted.insert(user.clone());
            }
            match done.is_ok() {
                true => self.unsure.remove(&user),
                false => self.unsure.insert(user.clone()),
            };
            tally.note(&user, done);
        }
        Outcome {
            failures: tally.failures,
            managed: Some(present.iter().filter(|user| self.is_managed(user)).count()),
            routine,
        }
    }

    /// The wanted users that are missing, or may have other roles.
    fn todo(&self, present: &BTreeSet<String>) -> Wanted {
        let todo = self
            .wanted
            .iter()
            .filter(|(user, roles)| match present.contains(*user) {
                true => self.unsure.contains(*user),
                false => !roles.is_empty(),
            });
        todo.map(|(user, roles)| (user.clone(), roles.clone())).collect()
    }

    fn is_managed(&self, user: &str) -> bool {
        !self.own.contains(user) && (user.starts_with(PREFIX) || self.adopted.contains(user))
    }

    fn is_to_be_removed(&self, user: &str) -> bool {
        self.is_managed(user) && !self.wanted.contains_key(user)
    }
}

/// Makes a user have exactly these roles.
async fn ensure(
    admin: &dyn UserAdmin,
    user: &str,
    wanted: &BTreeSet<String>,
    present: &mut BTreeSet<String>,
) -> Result<(), Error> {
    let mut changed = false;
    let mut roles = match present.contains(user) {
        true => admin.roles(user).await?,
        false => None,
    };
    if roles.is_none() {
        admin.add(user).await?;
        changed = true;
        present.insert(user.to_owned());
        // Another process may have added the user first, with roles.
        roles = admin.roles(user).await?;
    }
    let roles = roles.unwrap_or_default();
    // A role that cannot be granted does not keep others from being granted or revoked.
    let mut done = Ok(());
    for role in wanted.difference(&roles) {
        changed = true;
        done = done.and(admin.grant(user, role).await);
    }
    for role in roles.difference(wanted) {
        changed = true;
        done = done.and(admin.revoke(user, role).await);
    }
    if changed && done.is_ok() {
        tracing::info!(user, "user configured");
    }
    done
}
