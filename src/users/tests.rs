//! The reconciler and the follower against a store in memory.

use super::reconcile::{Reconciler, Wanted};
use super::*;
use crate::kvstore::Error;
use std::collections::BTreeMap;
use tokio::sync::Notify;

/// A store in memory whose calls can fail.
#[derive(Default)]
struct Fake {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    users: BTreeMap<String, BTreeSet<String>>,
    /// Roles that exist.
    roles: BTreeSet<String>,
    /// Errors of every call for these users; `""` for the list of users.
    broken: BTreeMap<String, fn() -> Error>,
    /// The calls made, without lists.
    calls: Vec<String>,
    lists: usize,
}

impl Fake {
    fn with(users: &[(&str, &str)]) -> Arc<Self> {
        let fake = Self::default();
        let mut state = fake.state.lock();
        state.roles = ["r1", "r2", "r3", "r4", "remote", "root"].map(str::to_owned).into();
        state.users = wanted(users);
        drop(state);
        Arc::new(fake)
    }

    /// The users as `user: role …`.
    fn users(&self) -> Vec<String> {
        let line = |(user, roles): (&String, &BTreeSet<String>)| {
            let roles: Vec<_> = roles.iter().map(String::as_str).collect();
            format!("{user}: {}", roles.join(" "))
        };
        self.state.lock().users.iter().map(line).collect()
    }

    /// The calls since this was last called.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().calls)
    }

    fn breaks(&self, user: &str, how: fn() -> Error) {
        self.state.lock().broken.insert(user.to_owned(), how);
    }

    fn call<T>(&self, what: &str, user: &str, f: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.state.lock();
        state.calls.push(format!("{what} {user}"));
        let done = match state.broken.get(user) {
            Some(error) => Err(error()),
            None => f(&mut state),
        };
        self.changed.notify_one();
        done
    }

    async fn until(&self, users: &[&str]) {
        let same = async {
            while self.users() != users {
                self.changed.notified().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), same).await;
        assert!(waited.is_ok(), "{:?}", self.users());
    }
}

#[async_trait::async_trait]
impl UserAdmin for Fake {
    async fn list(&self) -> Result<BTreeSet<String>, Error> {
        let mut state = self.state.lock();
        state.lists += 1;
        match state.broken.get("") {
            Some(error) => Err(error()),
            None => Ok(state.users.keys().cloned().collect()),
        }
    }

    async fn roles(&self, user: &str) -> Result<Option<BTreeSet<String>>, Error> {
        self.call("roles", user, |state| Ok(state.users.get(user).cloned()))
    }

    async fn add(&self, user: &str) -> Result<(), Error> {
        self.call("add", user, |state| {
            state.users.entry(user.to_owned()).or_default();
            Ok(())
        })
    }

    async fn delete(&self, user: &str) -> Result<(), Error> {
        self.call("delete", user, |state| {
            state.users.remove(user);
            Ok(())
        })
    }

    async fn grant(&self, user: &str, role: &str) -> Result<(), Error> {
        self.call(&format!("grant {role}"), user, |state| {
            if !state.roles.contains(role) {
                return Err(Error::Rejected("role name not found".to_owned()));
            }
            state.users.get_mut(user).unwrap().insert(role.to_owned());
            Ok(())
        })
    }

    async fn revoke(&self, user: &str, role: &str) -> Result<(), Error> {
        self.call(&format!("revoke {role}"), user, |state| {
            state.users.get_mut(user).unwrap().remove(role);
            Ok(())
        })
    }
}

/// Users with their roles, separated by spaces.
fn wanted(users: &[(&str, &str)]) -> Wanted {
    let roles = |role: &str| role.split_whitespace().map(str::to_owned).collect();
    users
        .iter()
        .map(|(user, role)| ((*user).to_owned(), roles(role)))
        .collect()
}

fn own() -> BTreeSet<String> {
    ["root", "admin-hk", "local-hk", "remote"].map(str::to_owned).into()
}

/// A reconciler after it has brought the store to `first`.
async fn after(fake: &Fake, first: &[(&str, &str)]) -> Reconciler {
    let mut reconciler = Reconciler::new(own());
    reconciler.want(wanted(first));
    let outcome = reconciler.reconcile(fake).await;
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert_eq!(outcome.managed, Some(first.len()));
    fake.calls();
    reconciler
}

fn down() -> Error {
    Error::Unavailable("down".to_owned())
}

fn bad_name() -> Error {
    Error::Rejected("bad name".to_owned())
}

#[tokio::test]
async fn a_changed_list_makes_only_the_necessary_calls() {
    let fake = Fake::with(&[]);
    let mut reconciler = after(&fake, &[("foo", "r1"), ("bar", "r2"), ("qux", "r3")]).await;
    assert_eq!(fake.users(), ["bar: r2", "foo: r1", "qux: r3"]);
    reconciler.want(wanted(&[("baz", "r3"), ("foo", "r1"), ("qux", "r4")]));
    let outcome = reconciler.reconcile(&*fake).await;
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert_eq!(
        fake.users(),
        ["baz: r3", "foo: r1", "qux: r4"],
        "the former role is revoked"
    );
    let calls = [
        "delete bar",
        "add baz",
        "roles baz",
        "grant r3 baz",
        "roles foo",
        "roles qux",
        "grant r4 qux",
        "revoke r3 qux",
    ];
    assert_eq!(fake.calls(), calls);
    assert!(reconciler.reconcile(&*fake).await.routine);
    assert_eq!(fake.calls(), [""; 0], "nothing to compare");
}

#[tokio::test]
async fn users_of_an_earlier_process_are_removed_and_strangers_are_not() {
    let strangers = [
        ("admin-hk", "root"),
        ("alice", "r1"),
        ("local-hk", ""),
        ("remote", "remote"),
        ("root", "root"),
    ];
    let fake = Fake::with(
        &[
            &strangers[..],
            &[("remote-old", "remote"), ("remote-tokyo", "remote root")],
        ]
        .concat(),
    );
    let mut reconciler = after(&fake, &[("remote-tokyo", "remote")]).await;
    let left = [
        "admin-hk: root",
        "alice: r1",
        "local-hk: ",
        "remote: remote",
        "remote-tokyo: remote",
        "root: root",
    ];
    assert_eq!(fake.users(), left);
    reconciler.want(Wanted::new());
    let outcome = reconciler.reconcile(&*fake).await;
    assert_eq!((outcome.failures.len(), outcome.managed), (0, Some(0)));
    let strangers: Vec<_> = strangers.iter().map(|(user, role)| format!("{user}: {role}")).collect();
    assert_eq!(fake.users(), strangers);
}

#[tokio::test]
async fn a_user_that_fails_delays_no_other_and_only_it_is_retried() {
    let fake = Fake::with(&[("remote-a", "r1"), ("remote-gone", "remote")]);
    fake.breaks("remote-c", bad_name);
    let mut reconciler = Reconciler::new(own());
    let all = [
        ("remote-a", "later"),
        ("remote-b", "remote"),
        ("remote-c", "remote"),
        ("remote-d", "remote"),
    ];
    reconciler.want(wanted(&all));
    let outcome = reconciler.reconcile(&*fake).await;
    assert_eq!(
        outcome.failures,
        ["user remote-a: role name not found", "user remote-c: bad name"]
    );
    // The role that is not listed is revoked, although the listed one cannot be granted.
    assert_eq!(fake.users(), ["remote-a: ", "remote-b: remote", "remote-d: remote"]);
    fake.calls();
    fake.state.lock().roles.insert("later".to_owned());
    let outcome = reconciler.reconcile(&*fake).await;
    assert_eq!(outcome.failures, ["user remote-c: bad name"]);
    assert_eq!(fake.calls(), ["roles remote-a", "grant later remote-a", "add remote-c"]);
}

#[tokio::test]
async fn an_unavailable_store_is_not_asked_for_every_user() {
    let fake = Fake::with(&[]);
    let names = ["remote-a", "remote-b", "remote-c", "remote-d"];
    fake.breaks("", down);
    let mut reconciler = Reconciler::new(own());
    reconciler.want(wanted(&names.map(|name| (name, "remote"))));
    let outcome = reconciler.reconcile(&*fake).await;
    assert_eq!(outcome.failures, ["cannot list the users: down"]);
    assert_eq!((outcome.managed, fake.calls().len()), (None, 0));
    fake.state.lock().broken.clear();
    for name in ["remote-a", "remote-c", "remote-d"] {
        fake.breaks(name, down);
    }
    let outcome = reconciler.reconcile(&*fake).await;
    assert_eq!(
        outcome.failures.len(),
        3,
        "failures that are not in a row may be the users' own: {outcome:?}"
    );
    assert_eq!(fake.users(), ["remote-b: remote"]);
    fake.breaks("remote-b", down);
    fake.calls();
    reconciler.want(wanted(&names.map(|name| (name, "remote"))));
    assert_eq!(reconciler.reconcile(&*fake).await.failures.len(), 2);
    assert_eq!(fake.calls(), ["add remote-a", "roles remote-b"]);
}

#[tokio::test]
async fn a_store_that_lost_its_users_gets_them_back() {
    let fake = Fake::with(&[]);
    let mut reconciler = after(&fake, &[("remote-a", "remote"), ("remote-b", "r1")]).await;
    fake.state.lock().users.remove("remote-b");
    assert!(!reconciler.reconcile(&*fake).await.routine);
    assert_eq!(fake.users(), ["remote-a: remote", "remote-b: r1"]);
}

#[tokio::test]
async fn a_user_that_is_listed_without_a_role_loses_its_roles_and_is_neither_made_nor_removed() {
    let fake = Fake::with(&[("alice", "r1"), ("remote-a", "r1")]);
    let mut reconciler = Reconciler::new(own());
    reconciler.want(wanted(&[("alice", ""), ("remote-a", ""), ("remote-b", "")]));
    assert!(reconciler.reconcile(&*fake).await.failures.is_empty());
    assert_eq!(fake.users(), ["alice: ", "remote-a: "]);
    assert!(reconciler.reconcile(&*fake).await.routine);
    reconciler.want(Wanted::new());
    reconciler.reconcile(&*fake).await;
    assert_eq!(fake.users(), ["alice: "], "alice was never managed");
}

/// A mounted ConfigMap: the file is a link through `..data`, which is replaced.
struct ConfigMap(tempfile::TempDir);

impl ConfigMap {
    fn new() -> Self {
        let map = Self(tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink("..data/users.yaml", map.path()).unwrap();
        map
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("users.yaml")
    }

    fn set(&self, version: &str, text: &str) {
        let at = |name: &str| self.0.path().join(name);
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("users.yaml"), text).unwrap();
        std::os::unix::fs::symlink(version, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    }
}

/// Waits until `is_so` holds for the status.
async fn status(users: &Users, is_so: impl Fn(&Status) -> bool) -> Status {
    let so = async {
        loop {
            let status = users.status();
            if is_so(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), so).await;
    waited.unwrap_or_else(|_| panic!("{:?}", users.status()))
}

#[tokio::test]
async fn a_configmap_is_followed_and_an_invalid_or_missing_file_changes_nothing() {
    let (map, fake) = (
        ConfigMap::new(),
        Fake::with(&[("remote-old", "remote"), ("root", "root")]),
    );
    let users = Users::new(map.path(), own());
    let follow = async {
        map.set("..1", "users:\n- name: remote-a\n  role: remote\n");
        fake.until(&["remote-a: remote", "root: root"]).await;
        let first = status(&users, |s| s.runs_ok > 0).await;
        let expected = Status {
            runs_ok: 1,
            managed: 1,
            ..Status::default()
        };
        assert_eq!(first, expected);
        map.set("..2", "users: [");
        let wrong = status(&users, |s| s.last_error.is_some()).await;
        assert!(wrong.last_error.unwrap().contains("users.yaml"));
        assert_eq!((wrong.runs_ok, wrong.runs_failed, wrong.managed), (1, 1, 1));
        map.set(
            "..3",
            "users: [{name: remote-b, role: soon}, {name: remote-a, role: remote}]",
        );
        let failing = status(&users, |s| {
            s.last_error.as_ref().is_some_and(|e| e.contains("remote-b"))
        })
        .await;
        assert_eq!((failing.runs_ok, failing.managed), (1, 2));
        fake.state.lock().roles.insert("soon".to_owned());
        fake.until(&["remote-a: remote", "remote-b: soon", "root: root"]).await;
        status(&users, |s| (s.runs_ok, &s.last_error) == (2, &None)).await;
        std::fs::remove_file(map.0.path().join("..data")).unwrap();
        map.set("..4", "users: []");
        fake.until(&["root: root"]).await;
        assert_eq!(status(&users, |s| s.runs_ok == 3).await.managed, 0);
    };
    tokio::select! {
        () = users.run(Arc::clone(&fake) as _) => unreachable!("run never returns"),
        () = follow => {}
    }
}

#[tokio::test(start_paused = true)]
async fn while_there_is_no_file_nobody_is_removed() {
    let (map, fake) = (ConfigMap::new(), Fake::with(&[("remote-old", "remote")]));
    let users = Users::new(map.path(), own());
    let long = Duration::from_secs(600);
    assert!(
        tokio::time::timeout(long, users.run(Arc::clone(&fake) as _))
            .await
            .is_err()
    );
    assert_eq!((users.status(), fake.state.lock().lists), (Status::default(), 0));
    map.set("..1", "users:\n- {name: remote-old, role: remote}\n");
    assert!(
        tokio::time::timeout(long, users.run(Arc::clone(&fake) as _))
            .await
            .is_err()
    );
    assert_eq!(users.status().runs_ok, 1);
    let lists = fake.state.lock().lists;
    // The clock of file times is not paused: for a while the file counts as being written.
    assert!((6..=12).contains(&lists), "once a minute: {lists}");
    assert_eq!(fake.calls(), ["roles remote-old"], "roles only once");
}
