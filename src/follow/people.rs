//! The users of the upstream: the roles that decide here, and the tokens that go upstream.
//!
//! A replica that has the key with which the upstream signs its tokens signs for the users of certificates, and for itself,
//! so that the upstream checks every forwarded call for its real user. Its reads of the index carry a token of the loaded
//! auth revision, and so prove that the roles here are those of the upstream. Any other replica checks the users of
//! certificates itself, and asks every few seconds whether users or roles have changed. While authentication is off, reads
//! carry a token that is refused once it is on.

use super::error::describe;
use crate::auth::{AuthState, AuthStore, ROOT};
use crate::pb::authpb;
use crate::pb::etcdserverpb as pb;
use crate::server::upstream::{Credentials, Judge, NOBODY, is_old_token, is_unknown_token};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Time between two looks at the version of the users.
const PERIOD: Duration = Duration::from_secs(5);
/// The same while reads prove the version, which the end of all authentication would not disturb.
const PROVEN_PERIOD: Duration = Duration::from_secs(60);
/// A version that no read has proven for so long is proven by a read of its own.
const PROOF: Duration = Duration::from_secs(1);
const RANGE: &str = "/etcdserverpb.KV/Range";
/// Questions about users and roles at a time. Each is an entry in the log of an etcd.
const AT_ONCE: usize = 8;
/// Loads that begin anew because users or roles changed meanwhile.
const ATTEMPTS: usize = 10;
/// How long a signed token is used, and how long it is valid. The difference is what clocks may differ by.
const USED: Duration = Duration::from_secs(300);
const VALID: Duration = Duration::from_secs(600);
/// Users whose signed tokens are kept.
const SIGNED_MAX: usize = 10_000;

/// The version of the upstream's users and roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    enabled: bool,
    revision: u64,
}

/// What has to be done to have the users of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// They are here.
    Nothing,
    /// Authentication is off, so that users and roles do not matter.
    Off,
    /// All users and roles have to be loaded.
    Load,
}

/// A token that was signed here.
struct Signed {
    token: Arc<str>,
    revision: u64,
    /// Until when the token is used.
    until: Instant,
}

/// The users of the upstream as this replica knows them.
pub struct People {
    auth: Arc<AuthStore>,
    signed: Mutex<HashMap<Arc<str>, Signed>>,
    /// Held during a load, so that those who come meanwhile share it.
    loading: tokio::sync::Mutex<()>,
    /// When the users here were last known to be those of the upstream.
    confirmed_at: Mutex<Instant>,
}

impl Version {
    fn of(state: &AuthState) -> Self {
        Self {
            enabled: state.enabled,
            revision: state.revision,
        }
    }

    /// What a store with this version has to do once the upstream says that it has the version `upstream`.
    fn next(self, upstream: Self) -> Next {
        match self == upstream {
            true => Next::Nothing,
            false if !upstream.enabled => Next::Off,
            false => Next::Load,
        }
    }
}

/// Something that answers calls of the replica itself.
#[tonic::async_trait]
pub trait Asked: Send + Sync {
    /// Makes a call of the replica itself.
    async fn answer(&self, path: &str, who: &Credentials, request: Bytes) -> Result<Bytes, Status>;
}

/// Asks the Auth service of the upstream.
async fn ask<A: Message + Default>(upstream: &dyn Asked, method: &str, request: impl Message) -> Result<A, Status> {
    let path = format!("/etcdserverpb.Auth/{method}");
    let answer = upstream.answer(&path, &Credentials::Replica, request.encode_to_vec().into());
    let answer = answer.await?;
    A::decode(answer).map_err(|error| Status::internal(format!("{method}: {error}")))
}

async fn ask_version(upstream: &dyn Asked) -> Result<Version, Status> {
    let status: pb::AuthStatusResponse = ask(upstream, "AuthStatus", pb::AuthStatusRequest {}).await?;
    Ok(Version {
        enabled: status.enabled,
        revision: status.auth_revision,
    })
}

async fn ask_user(upstream: &dyn Asked, name: String) -> Result<authpb::User, Status> {
    let request = pb::AuthUserGetRequest { name: name.clone() };
    let user: pb::AuthUserGetResponse = ask(upstream, "UserGet", request).await?;
    Ok(authpb::User {
        name: name.into(),
        roles: user.roles,
        // Hashes of passwords never come here.
        options: Some(authpb::UserAddOptions { no_password: true }),
        ..authpb::User::default()
    })
}

async fn ask_role(upstream: &dyn Asked, name: String) -> Result<authpb::Role, Status> {
    let request = pb::AuthRoleGetRequest { role: name.clone() };
    let role: pb::AuthRoleGetResponse = ask(upstream, "RoleGet", request).await?;
    Ok(authpb::Role {
        name: name.into(),
        key_permission: role.perm,
    })
}

/// All users and roles, which may be of several versions.
async fn ask_all(upstream: &dyn Asked, version: Version) -> Result<AuthState, Status> {
    let users: pb::AuthUserListResponse = ask(upstream, "UserList", pb::AuthUserListRequest {}).await?;
    let roles: pb::AuthRoleListResponse = ask(upstream, "RoleList", pb::AuthRoleListRequest {}).await?;
    let users = futures::stream::iter(users.users).map(|name| ask_user(upstream, name));
    let users = users.buffered(AT_ONCE).try_collect().await?;
    let roles = futures::stream::iter(roles.roles).map(|name| ask_role(upstream, name));
    let roles = roles.buffered(AT_ONCE).try_collect().await?;
    Ok(AuthState::of(version.enabled, version.revision, users, roles))
}

impl People {
    /// The users in `auth`, which the store's checks use, are those of the upstream from now on.
    pub fn new(auth: Arc<AuthStore>) -> Self {
        Self {
            auth,
            signed: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            confirmed_at: Mutex::new(Instant::now()),
        }
    }

    /// Who decides what the users of certificates may do.
    pub fn judge(&self) -> Judge {
        match self.auth.signs() {
            true => Judge::Upstream,
            false => Judge::Replica,
        }
    }

    /// The token that goes upstream with a call; `None` if the replica's own connection has to say who it is.
    pub fn token(&self, who: &Credentials) -> Result<Option<Arc<str>>, Status> {
        match who {
            Credentials::Token(token) => Ok(Some(Arc::clone(token))),
            Credentials::User(user) => self.signed(user).map(Some),
            Credentials::Replica if self.auth.signs() => self.signed(&ROOT.into()).map(Some),
            Credentials::Replica => Ok(None),
            Credentials::Nobody => Ok(Some(NOBODY.into())),
        }
    }

    /// A token for `user` at the present auth revision. Signing takes a millisecond with some methods.
    fn signed(&self, user: &Arc<str>) -> Result<Arc<str>, Status> {
        let (revision, now) = (self.auth.state().revision, Instant::now());
        let is_good = |signed: &Signed| signed.revision == revision && signed.until > now;
        if let Some(signed) = self.signed.lock().get(user).filter(|signed| is_good(signed)) {
            return Ok(Arc::clone(&signed.token));
        }
        let token: Arc<str> = self.auth.sign(user, VALID)?.into();
        let mut all = self.signed.lock();
        if all.len() >= SIGNED_MAX {
            all.retain(|_, signed| is_good(signed));
        }
        if all.len() < SIGNED_MAX {
            let signed = Signed {
                token: Arc::clone(&token),
                revision,
                until: now + USED,
            };
            all.insert(Arc::clone(user), signed);
        }
        Ok(token)
    }

    /// Notes that a read of the upstream has succeeded, which proves the users here if it had a token of their revision.
    pub fn proven(&self) {
        if self.is_proven_by_reads() {
            self.confirm();
        }
    }

    fn confirm(&self) {
        *self.confirmed_at.lock() = Instant::now();
    }

    /// The time since the users here were known to be those of the upstream.
    pub fn age(&self) -> Duration {
        self.confirmed_at.lock().elapsed()
    }

    /// Keeps the users here as they are upstream. Never returns.
    pub async fn keep(&self, upstream: &dyn Asked) {
        loop {
            if let Err(status) = self.look(upstream).await {
                tracing::debug!(error = describe(&status), "cannot ask the upstream for its users");
            }
            let looked = Instant::now();
            while self.is_proven_by_reads() && looked.elapsed() < PROVEN_PERIOD {
                tokio::time::sleep(PROOF).await;
                if self.age() >= PROOF
                    && let Err(status) = self.prove(upstream).await
                {
                    tracing::debug!(error = describe(&status), "cannot prove the users of the upstream");
                }
            }
            if !self.is_proven_by_reads() {
                tokio::time::sleep(PERIOD).await;
            }
        }
    }

    /// Whether the replica's own reads fail once the users here are not those of the upstream: they carry a token of the loaded
    /// auth revision, or one that is refused once authentication is on.
    fn is_proven_by_reads(&self) -> bool {
        self.auth.signs() || !self.auth.state().enabled
    }

    /// The credentials of reads that prove the users here.
    pub fn reader(&self) -> Credentials {
        match self.auth.state().enabled {
            true => Credentials::Replica,
            false => Credentials::Nobody,
        }
    }

    /// Reads something that does not exist. Unlike a question of the Auth service, that is no entry in the log of an etcd.
    async fn prove(&self, upstream: &dyn Asked) -> Result<(), Status> {
        let request = pb::RangeRequest {
            key: Bytes::from_static(&[0]),
            count_only: true,
            ..pb::RangeRequest::default()
        };
        match upstream
            .answer(RANGE, &self.reader(), request.encode_to_vec().into())
            .await
        {
            Ok(_) => {
                self.confirm();
                Ok(())
            }
            Err(status) if is_old_token(&status) || is_unknown_token(&status) => self.reload(upstream).await,
            Err(status) => Err(status),
        }
    }

    /// Asks the upstream for the version of its users, and loads them if it is another one.
    pub async fn look(&self, upstream: &dyn Asked) -> Result<(), Status> {
        let version = ask_version(upstream).await?;
        match Version::of(&self.auth.state()).next(version) {
            Next::Nothing => self.confirm(),
            Next::Off | Next::Load => self.reload(upstream).await?,
        }
        Ok(())
    }

    /// Loads users and roles; they are in force when this returns. Fails as long as the upstream does not show them: this
    /// needs the role root.
    pub async fn reload(&self, upstream: &dyn Asked) -> Result<(), Status> {
        let asked = Instant::now();
        let _loading = self.loading.lock().await;
        if *self.confirmed_at.lock() > asked {
            // Another load ended while this one waited. It may have begun before the change that this one is for.
            let version = ask_version(upstream).await?;
            if Version::of(&self.auth.state()) == version {
                return Ok(());
            }
        }
        for _ in 0..ATTEMPTS {
            let version = ask_version(upstream).await?;
            let state = match version.enabled {
                true => ask_all(upstream, version).await,
                false => Ok(AuthState::of(false, version.revision, vec![], vec![])),
            };
            let state = match state {
                Ok(state) => state,
                // A user or a role was removed between the list and the question.
                Err(status) if status.code() == Code::FailedPrecondition => continue,
                Err(status) => return Err(status),
            };
            if ask_version(upstream).await? == version {
                if self.auth.follow(state) {
                    tracing::info!(
                        enabled = version.enabled,
                        auth_revision = version.revision,
                        "the users of the upstream are loaded"
                    );
                }
                self.confirm();
                return Ok(());
            }
        }
        Err(Status::unavailable("etcdserver: users and roles change all the time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{self, JwtOptions};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// An upstream whose users are those of a store here.
    struct Users {
        auth: AuthStore,
        asked: AtomicUsize,
        /// How often the version was asked for.
        questions: AtomicUsize,
        /// The replica, whose reads carry a token of its auth revision.
        reader: Mutex<Option<Arc<AuthStore>>>,
        /// Called at each question about a user.
        meddle: Box<dyn Fn(&AuthStore) + Send + Sync>,
    }

    impl Users {
        fn new(meddle: impl Fn(&AuthStore) + Send + Sync + 'static) -> Self {
            let auth = AuthStore::new(auth::Config::default()).unwrap();
            for user in [ROOT, "kim"] {
                auth.user_add(user, None).unwrap();
            }
            auth.user_grant_role(ROOT, ROOT).unwrap();
            auth.role_add("r").unwrap();
            auth.user_grant_role("kim", "r").unwrap();
            auth.enable().unwrap();
            Self {
                auth,
                asked: AtomicUsize::new(0),
                questions: AtomicUsize::new(0),
                reader: Mutex::default(),
                meddle: Box::new(meddle),
            }
        }
    }

    #[tonic::async_trait]
    impl Asked for Users {
        async fn answer(&self, path: &str, who: &Credentials, request: Bytes) -> Result<Bytes, Status> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (state, header) = (self.auth.state(), None);
            let answer = match path {
                "/etcdserverpb.Auth/AuthStatus" => {
                    self.questions.fetch_add(1, Ordering::Relaxed);
                    let (enabled, auth_revision) = (state.enabled, state.revision);
                    let answer = pb::AuthStatusResponse {
                        header,
                        enabled,
                        auth_revision,
                    };
                    answer.encode_to_vec()
                }
                "/etcdserverpb.Auth/UserList" => {
                    let users = state.users.keys().cloned().collect();
                    pb::AuthUserListResponse { header, users }.encode_to_vec()
                }
                "/etcdserverpb.Auth/RoleList" => {
                    let roles = state.roles.keys().cloned().collect();
                    pb::AuthRoleListResponse { header, roles }.encode_to_vec()
                }
                "/etcdserverpb.Auth/UserGet" => {
                    (self.meddle)(&self.auth);
                    let name = pb::AuthUserGetRequest::decode(request).unwrap().name;
                    let user = state.users.get(&name).ok_or(auth::Error::UserNotFound)?;
                    let roles = user.roles.iter().cloned().collect();
                    pb::AuthUserGetResponse { header, roles }.encode_to_vec()
                }
                "/etcdserverpb.Auth/RoleGet" => {
                    let role = pb::AuthRoleGetRequest::decode(request).unwrap().role;
                    let permissions = state.roles.get(&role).ok_or(auth::Error::RoleNotFound)?;
                    let perm = permissions.iter().map(Into::into).collect();
                    pb::AuthRoleGetResponse { header, perm }.encode_to_vec()
                }
                RANGE => {
                    if *who == Credentials::Nobody && state.enabled {
                        return Err(auth::Error::InvalidAuthToken.into());
                    }
                    let reader = self.reader.lock().as_ref().map(|auth| auth.state().revision);
                    if reader.is_some_and(|revision| revision < state.revision) {
                        return Err(auth::Error::AuthOldRevision.into());
                    }
                    vec![]
                }
                path => panic!("{path}"),
            };
            Ok(answer.into())
        }
    }

    fn people(jwt: Option<JwtOptions>) -> People {
        let config = auth::Config {
            jwt,
            ..auth::Config::default()
        };
        People::new(Arc::new(AuthStore::new(config).unwrap()))
    }

    #[test]
    fn users_are_loaded_when_their_version_is_another_one() {
        let version = |enabled, revision| Version { enabled, revision };
        assert_eq!(version(true, 5).next(version(true, 5)), Next::Nothing);
        assert_eq!(version(true, 5).next(version(true, 6)), Next::Load);
        assert_eq!(
            version(true, 5).next(version(true, 4)),
            Next::Load,
            "a restored upstream"
        );
        assert_eq!(version(false, 5).next(version(true, 5)), Next::Load);
        assert_eq!(version(true, 5).next(version(false, 6)), Next::Off);
    }

    #[tokio::test(start_paused = true)]
    async fn users_and_roles_follow_the_upstream_and_no_hash_comes_here() {
        let (people, upstream) = (people(None), Users::new(|_| {}));
        people.look(&upstream).await.unwrap();
        let state = people.auth.state();
        let theirs = upstream.auth.state();
        assert_eq!((state.enabled, state.revision), (true, theirs.revision));
        assert_eq!(state.users["kim"].roles, theirs.users["kim"].roles);
        assert!(state.users.values().all(|user| user.password.is_none()));
        let asked = upstream.asked.load(Ordering::Relaxed);
        people.look(&upstream).await.unwrap();
        assert_eq!(upstream.asked.load(Ordering::Relaxed), asked + 1, "nothing has changed");
        upstream.auth.user_revoke_role("kim", "r").unwrap();
        tokio::select! {
            () = people.keep(&upstream) => unreachable!(),
            () = tokio::time::sleep(PERIOD + Duration::from_secs(1)) => {}
        }
        assert!(people.auth.state().users["kim"].roles.is_empty());
        upstream.auth.disable().unwrap();
        people.look(&upstream).await.unwrap();
        assert!(!people.auth.state().enabled);
    }

    #[tokio::test(start_paused = true)]
    async fn that_authentication_is_turned_on_is_noticed_by_a_read_and_questions_are_rare_until_then() {
        let (people, upstream) = (people(None), Users::new(|_| {}));
        upstream.auth.disable().unwrap();
        let asked = || upstream.asked.load(Ordering::Relaxed);
        tokio::select! {
            () = people.keep(&upstream) => unreachable!(),
            () = async {
                tokio::time::sleep(Duration::from_secs(50)).await;
                let questions = upstream.questions.load(Ordering::Relaxed);
                assert!(questions <= 3, "{questions} questions are entries in the log of an etcd");
                assert!(asked() > 40 && people.age() <= 2 * PROOF);
                upstream.auth.enable().unwrap();
                tokio::time::sleep(2 * PROOF).await;
            } => {}
        }
        assert!(people.auth.state().enabled && people.auth.state().users.contains_key("kim"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_saw_two_versions_begins_anew() {
        let left = Arc::new(AtomicUsize::new(3));
        let meddling = Arc::clone(&left);
        let upstream = Users::new(move |auth| {
            let less = |n: usize| n.checked_sub(1);
            if let Ok(n) = meddling.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
                auth.role_add(&format!("r{n}")).unwrap();
            }
        });
        let people = people(None);
        people.reload(&upstream).await.unwrap();
        assert_eq!(people.auth.state().revision, upstream.auth.state().revision);
        assert_eq!(people.auth.state().roles.len(), 4);
        left.store(usize::MAX, Ordering::Relaxed);
        let restless = people.reload(&upstream).await.unwrap_err();
        assert_eq!(restless.code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_with_the_key_signs_for_users_and_itself() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "a secret of some length").unwrap();
        let options = || JwtOptions {
            method: "HS256".to_owned(),
            public: None,
            private: Some(secret.clone()),
            ttl: Duration::from_secs(300),
        };
        let people = people(Some(options()));
        let upstream = Users::new(|_| {});
        people.reload(&upstream).await.unwrap();
        assert_eq!(people.judge(), Judge::Upstream);
        let theirs = AuthStore::new(auth::Config {
            jwt: Some(options()),
            ..auth::Config::default()
        });
        let theirs = theirs.unwrap();
        let user = |who: &Credentials| {
            let token = people.token(who).unwrap().unwrap();
            let principal = theirs.token_principal(&token).unwrap();
            (principal.user.to_string(), principal.revision)
        };
        let revision = upstream.auth.state().revision;
        let kim = Credentials::User("kim".into());
        assert_eq!(user(&kim), ("kim".to_owned(), revision));
        assert_eq!(user(&Credentials::Replica), (ROOT.to_owned(), revision));
        let first = people.token(&kim).unwrap();
        assert_eq!(people.token(&kim).unwrap(), first, "a token is used again");
        upstream.auth.role_add("more").unwrap();
        people.reload(&upstream).await.unwrap();
        assert_eq!(user(&kim).1, revision + 1, "a change of users makes another token");
        *upstream.reader.lock() = Some(Arc::clone(&people.auth));
        tokio::select! {
            () = people.keep(&upstream) => unreachable!(),
            () = async {
                tokio::time::sleep(Duration::from_millis(2500)).await;
                upstream.auth.user_revoke_role("kim", "r").unwrap();
                tokio::time::sleep(Duration::from_secs(2)).await;
            } => {}
        }
        assert!(people.auth.state().users["kim"].roles.is_empty(), "noticed by a read");
        assert!(people.age() <= PROOF);
        let own = Credentials::Token("theirs".into());
        assert_eq!(people.token(&own).unwrap().as_deref(), Some("theirs"));
    }

    #[test]
    fn a_replica_without_the_key_leaves_its_own_token_to_its_connection() {
        let people = people(None);
        assert_eq!(people.judge(), Judge::Replica);
        assert_eq!(people.token(&Credentials::Replica).unwrap(), None);
        assert!(people.token(&Credentials::User("kim".into())).is_err());
    }
}
