//! From who should be there to what has to be done.

use crate::kvstore::Error;
use crate::kvstore::users::UserAdmin;
use std::collections::{BTreeMap, BTreeSet};

/// Users of remote clusters are called so. Those that nobody lists any more are ours to remove, whoever made
/// them.
const PREFIX: &str = "remote-";
/// A store that fails this often in a row, whatever it is asked, is not there.
const UNAVAILABLE_MAX: usize = 2;

/// User → roles; a user without any is left as it is.
pub(super) type Wanted = BTreeMap<String, BTreeSet<String>>;

/// Who should be there, and what is known of who is.
pub(super) struct Reconciler {
    /// Never touched.
    own: BTreeSet<String>,
    wanted: Wanted,
    /// Users without the prefix that are ours to remove, since they were listed once.
    adopted: BTreeSet<String>,
    /// Users whose roles have to be looked at. All others' have been right since they were listed.
    unsure: BTreeSet<String>,
}

/// What came of one comparison.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What failed.
    pub(super) failures: Vec<String>,
    /// How many users are ours; unknown if the store could not be asked.
    pub(super) managed: Option<usize>,
    /// Whether nothing had been in doubt, and nothing had to be changed.
    pub(super) routine: bool,
}

/// Counts failures of the store itself.
#[derive(Default)]
struct Tally {
    failures: Vec<String>,
    unavailable: usize,
}

impl Tally {
    /// Notes how it went with `user`.
    fn note(&mut self, user: &str, done: Result<(), Error>) {
        match done {
            Ok(()) | Err(Error::Rejected(_)) => self.unavailable = 0,
            Err(Error::Unavailable(_) | Error::Full(_)) => self.unavailable += 1,
        }
        if let Err(error) = done {
            self.failures.push(format!("user {user}: {error}"));
        }
    }

    /// Whether the store is not there for anybody.
    fn is_too_much(&self) -> bool {
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

    /// From now on these should be there.
    pub(super) fn want(&mut self, wanted: Wanted) {
        self.unsure = wanted.keys().cloned().collect();
        self.wanted = wanted;
    }

    /// Makes the store's users what they should be, as far as it can be done.
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
        let gone: Vec<_> = present.iter().filter(|user| self.is_to_go(user)).cloned().collect();
        let todo = self.todo(&present);
        let routine = gone.is_empty() && todo.is_empty();
        let mut tally = Tally::default();
        // First those who may not be here any more.
        for user in gone {
            let deleted = admin.delete(&user).await;
            if deleted.is_ok() {
                tracing::info!(user, "user removed");
                self.adopted.remove(&user);
                present.remove(&user);
            }
            tally.note(&user, deleted);
            if tally.is_too_much() {
                break;
            }
        }
        for (user, roles) in todo {
            if tally.is_too_much() {
                break;
            }
            let was_there = present.contains(&user);
            let done = ensure(admin, &user, &roles, &mut present).await;
            if done.is_ok() || (!was_there && present.contains(&user)) {
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
            managed: Some(present.iter().filter(|user| self.is_ours(user)).count()),
            routine,
        }
    }

    /// Who is missing, and who may have other roles than these.
    fn todo(&self, present: &BTreeSet<String>) -> Wanted {
        let wanted = self.wanted.iter().filter(|(_, roles)| !roles.is_empty());
        let todo = wanted.filter(|(user, _)| self.unsure.contains(*user) || !present.contains(*user));
        todo.map(|(user, roles)| (user.clone(), roles.clone())).collect()
    }

    fn is_ours(&self, user: &str) -> bool {
        !self.own.contains(user) && (user.starts_with(PREFIX) || self.adopted.contains(user))
    }

    fn is_to_go(&self, user: &str) -> bool {
        self.is_ours(user) && !self.wanted.contains_key(user)
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
        // Somebody else may have been quicker.
        roles = admin.roles(user).await?;
    }
    let roles = roles.unwrap_or_default();
    // A role that cannot be given keeps no other from being given or taken.
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
