//! Users, roles, permissions and tokens, with etcd's rules.
//!
//! Who may do what is decided from an immutable state that is replaced whole at each change, so a check
//! is a pointer load and a binary search. The auth revision grows with each change; a signed token says
//! at which one it was issued.

mod jwt;
mod messages;
mod permission;
mod standing;

pub use jwt::{ConfigError as JwtError, Options as JwtOptions};
pub use messages::Difference;
pub use permission::{Access, Permission, Ranges, Span};

use arc_swap::ArcSwap;
use jwt::Jwt;
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The all-powerful role; it may be granted without existing.
pub const ROOT: &str = "root";

/// Why a request of the auth service, or a permission check, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("root user does not exist")]
    RootUserNotExist,
    #[error("root user does not have root role")]
    RootRoleNotExist,
    #[error("user name already exists")]
    UserAlreadyExist,
    #[error("user name is empty")]
    UserEmpty,
    #[error("user name not found")]
    UserNotFound,
    #[error("role name already exists")]
    RoleAlreadyExist,
    #[error("role name not found")]
    RoleNotFound,
    #[error("role name is empty")]
    RoleEmpty,
    #[error("authentication failed, invalid user ID or password")]
    AuthFailed,
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    #[error("permission not given")]
    PermissionNotGiven,
    #[error("permission denied")]
    PermissionDenied,
    #[error("role is not granted to the user")]
    RoleNotGranted,
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    #[error("authentication is not enabled")]
    AuthNotEnabled,
    #[error("invalid auth token")]
    InvalidAuthToken,
    #[error("invalid auth management")]
    InvalidAuthMgmt,
    #[error("revision of auth store is old")]
    AuthOldRevision,
    #[error("auth: token signing attempted with verify-only key")]
    VerifyOnly,
    #[error("{0}")]
    Internal(String),
}

/// Who makes a request, once authentication has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: Arc<str>,
    /// Auth revision at which the identity was established.
    pub revision: u64,
}

/// What a user is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// bcrypt hash; `None` for a user that only certificates stand for.
    pub password: Option<String>,
    /// Names of its roles.
    pub roles: BTreeSet<String>,
}

/// Everything that is durable about authentication.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Whether requests are checked.
    pub enabled: bool,
    /// Grows with every change; 1 at first.
    pub revision: u64,
    /// Name → user.
    pub users: BTreeMap<String, User>,
    /// Name → permissions, sorted by key.
    pub roles: BTreeMap<String, Vec<Permission>>,
    /// User → merged permissions; derived.
    ranges: HashMap<String, Arc<Ranges>>,
}

/// The store of users and roles.
pub struct AuthStore {
    state: ArcSwap<State>,
    /// One change at a time.
    writer: Mutex<()>,
    tokens: Mutex<HashMap<String, Token>>,
    on_change: Option<OnChange>,
    jwt: Option<Jwt>,
    config: Config,
}

/// Called with the state before and after each change, in the order of changes, before anybody sees the change.
pub type OnChange = Box<dyn Fn(&State, &State) + Send + Sync>;

/// Tokens and passwords.
#[derive(Clone, Debug)]
pub struct Config {
    /// Issue signed tokens instead of simple ones.
    pub jwt: Option<JwtOptions>,
    /// How long a simple token lives after its last use.
    pub token_ttl: Duration,
    /// bcrypt cost, 4 to 31.
    pub bcrypt_cost: u32,
}

struct Token {
    user: Arc<str>,
    expires: Instant,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            jwt: None,
            token_ttl: Duration::from_secs(300),
            bcrypt_cost: 10,
        }
    }
}

// === impl State ===

impl State {
    /// Whether `user` has the root role.
    pub fn is_root(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|u| u.roles.contains(ROOT))
    }

    fn derive(&mut self) {
        let State {
            users, roles, ranges, ..
        } = self;
        *ranges = users
            .iter()
            .map(|(name, user)| {
                let permissions = user.roles.iter().filter_map(|r| roles.get(r)).flatten();
                (name.clone(), Arc::new(Ranges::merge(permissions)))
            })
            .collect();
    }
}

// === impl AuthStore ===

impl AuthStore {
    /// No users, no roles, disabled. Fails if tokens cannot be signed or verified as configured.
    pub fn new(config: Config) -> Result<Self, JwtError> {
        let state = State {
            revision: 1,
            ..State::default()
        };
        Self::with(state, config, None)
    }

    /// Continues from `state`, which does not include tokens.
    pub fn with(state: State, config: Config, on_change: Option<OnChange>) -> Result<Self, JwtError> {
        Ok(Self {
            state: ArcSwap::from_pointee(state),
            writer: Mutex::default(),
            tokens: Mutex::default(),
            on_change,
            jwt: config.jwt.as_ref().map(Jwt::new).transpose()?,
            config,
        })
    }

    /// The present state.
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let _writer = self.writer.lock();
        let before = self.state.load();
        let mut state = State::clone(&before);
        let done = f(&mut state)?;
        state.derive();
        if let Some(on_change) = &self.on_change {
            on_change(&before, &state);
        }
        self.state.store(Arc::new(state));
        Ok(done)
    }

    /// As [`AuthStore::change`], and the auth revision grows.
    fn revise<T>(&self, f: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        self.change(|state| {
            let done = f(state)?;
            state.revision += 1;
            Ok(done)
        })
    }

    /// Turns checks on; needs a user `root` with the role `root`.
    pub fn enable(&self) -> Result<(), Error> {
        self.change(|state| {
            if state.enabled {
                return Ok(());
            }
            let root = state.users.get(ROOT).ok_or(Error::RootUserNotExist)?;
            if !root.roles.contains(ROOT) {
                return Err(Error::RootRoleNotExist);
            }
            state.enabled = true;
            Ok(())
        })
    }

    /// Turns checks off and forgets all tokens.
    pub fn disable(&self) -> Result<(), Error> {
        if self.state.load().enabled {
            self.revise(|state| {
                state.enabled = false;
                Ok(())
            })?;
            self.tokens.lock().clear();
        }
        Ok(())
    }

    /// Adds a user. `password` is in clear, `None` for a user without one. Hashing takes tens of
    /// milliseconds: call from a thread that may block.
    pub fn user_add(&self, name: &str, password: Option<&str>) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.state.load().users.contains_key(name) {
            return Err(Error::UserAlreadyExist);
        }
        let password = password.map(|p| self.hash(p)).transpose()?;
        self.revise(|state| match state.users.contains_key(name) {
            true => Err(Error::UserAlreadyExist),
            false => {
                state.users.insert(
                    name.to_owned(),
                    User {
                        password,
                        roles: BTreeSet::new(),
                    },
                );
                Ok(())
            }
        })
    }

    /// Removes a user and its tokens.
    pub fn user_delete(&self, name: &str) -> Result<(), Error> {
        self.revise(|state| {
            if state.enabled && name == ROOT {
                return Err(Error::InvalidAuthMgmt);
            }
            state.users.remove(name).map(drop).ok_or(Error::UserNotFound)
        })?;
        self.forget_tokens(name);
        Ok(())
    }

    /// Sets a password (in clear) and forgets the user's tokens; without one nobody can authenticate. May
    /// block, as [`AuthStore::user_add`].
    ///
    /// Parity: a user added without a password stays one.
    pub fn user_change_password(&self, name: &str, password: &str) -> Result<(), Error> {
        let state = self.state.load();
        let has_one = state.users.get(name).ok_or(Error::UserNotFound)?.password.is_some();
        let password = match (has_one, password) {
            (false, _) => None,
            (true, "") => Some(String::new()),
            (true, password) => Some(self.hash(password)?),
        };
        self.revise(|state| {
            state.users.get_mut(name).ok_or(Error::UserNotFound)?.password = password;
            Ok(())
        })?;
        self.forget_tokens(name);
        Ok(())
    }

    /// Gives a user a role; the role `root` need not exist.
    pub fn user_grant_role(&self, user: &str, role: &str) -> Result<(), Error> {
        let state = self.state.load();
        let has = state.users.get(user).ok_or(Error::UserNotFound)?.roles.contains(role);
        if role != ROOT && !state.roles.contains_key(role) {
            return Err(Error::RoleNotFound);
        }
        if has {
            return Ok(());
        }
        self.revise(|state| {
            state
                .users
                .get_mut(user)
                .ok_or(Error::UserNotFound)?
                .roles
                .insert(role.to_owned());
            Ok(())
        })
    }

    /// Takes a role from a user.
    pub fn user_revoke_role(&self, user: &str, role: &str) -> Result<(), Error> {
        self.revise(|state| {
            if state.enabled && user == ROOT && role == ROOT {
                return Err(Error::InvalidAuthMgmt);
            }
            let roles = &mut state.users.get_mut(user).ok_or(Error::UserNotFound)?.roles;
            roles.remove(role).then_some(()).ok_or(Error::RoleNotGranted)
        })
    }

    /// Adds a role without permissions.
    pub fn role_add(&self, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        self.revise(|state| match state.roles.contains_key(name) {
            true => Err(Error::RoleAlreadyExist),
            false => {
                state.roles.insert(name.to_owned(), Vec::new());
                Ok(())
            }
        })
    }

    /// Removes a role, from all users too.
    pub fn role_delete(&self, name: &str) -> Result<(), Error> {
        self.revise(|state| {
            if state.enabled && name == ROOT {
                return Err(Error::InvalidAuthMgmt);
            }
            state.roles.remove(name).ok_or(Error::RoleNotFound)?;
            for user in state.users.values_mut() {
                user.roles.remove(name);
            }
            Ok(())
        })
    }

    /// Grants a permission, or changes the kind of one granted for the same range.
    pub fn role_grant(&self, role: &str, permission: Permission) -> Result<(), Error> {
        let (key, end) = (&permission.key, &permission.range_end);
        if key.is_empty() || (!end.is_empty() && end[..] != [0] && key >= end) {
            return Err(Error::InvalidAuthMgmt);
        }
        self.revise(|state| {
            let list = state.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
            // Parity: ordered by key, then by when they came; only the first of a key can be changed.
            let first = list.partition_point(|p| p.key < permission.key);
            match list.get_mut(first) {
                Some(p) if (&p.key, &p.range_end) == (&permission.key, &permission.range_end) => {
                    p.access = permission.access;
                }
                _ => {
                    let after = list.partition_point(|p| p.key <= permission.key);
                    list.insert(after, permission);
                }
            }
            Ok(())
        })
    }

    /// Revokes the permission for exactly this range.
    pub fn role_revoke(&self, role: &str, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.revise(|state| {
            let list = state.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
            let before = list.len();
            list.retain(|p| p.key != key || p.range_end != range_end);
            (list.len() < before).then_some(()).ok_or(Error::PermissionNotGranted)
        })
    }

    /// Exchanges name and password for a token. May block, as [`AuthStore::user_add`].
    pub fn authenticate(&self, name: &str, password: &str) -> Result<String, Error> {
        let state = self.state.load_full();
        if !state.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = state.users.get(name).ok_or(Error::AuthFailed)?;
        let hash = user.password.as_ref().ok_or(Error::NoPasswordUser)?;
        if !bcrypt::verify(password, hash).unwrap_or(false) {
            return Err(Error::AuthFailed);
        }
        if let Some(jwt) = &self.jwt {
            return jwt.issue(name, state.revision);
        }
        let mut rng = rand::rng();
        let text: String = (0..16)
            .map(|_| char::from(rng.sample(rand::distr::Alphabetic)))
            .collect();
        let token = format!("{text}.{}", state.revision);
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        // The password may have been changed while it was hashed.
        if self.state.load().revision != state.revision {
            return Err(Error::AuthOldRevision);
        }
        tokens.retain(|_, t| t.expires > now);
        let expires = now + self.config.token_ttl;
        tokens.insert(
            token.clone(),
            Token {
                user: name.into(),
                expires,
            },
        );
        Ok(token)
    }

    /// Who holds `token`; using a simple one prolongs it.
    pub fn token_identity(&self, token: &str) -> Result<Identity, Error> {
        if let Some(jwt) = &self.jwt {
            let (user, revision) = jwt.verify(token)?;
            let user = user.into();
            return Ok(Identity { user, revision });
        }
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        let held = tokens.get_mut(token).filter(|t| t.expires > now);
        let held = held.ok_or(Error::InvalidAuthToken)?;
        held.expires = now + self.config.token_ttl;
        // Parity: a simple token is never too old, it is forgotten when its user changes.
        let revision = self.state.load().revision;
        Ok(Identity {
            user: Arc::clone(&held.user),
            revision,
        })
    }

    /// The permissions of `identity`; `None` for root, who may do everything. Without authentication
    /// everybody is root.
    pub fn ranges(&self, identity: Option<&Identity>) -> Result<Option<Arc<Ranges>>, Error> {
        let state = self.state.load();
        if !state.enabled {
            return Ok(None);
        }
        let identity = identity.ok_or(Error::UserEmpty)?;
        if identity.revision < state.revision {
            return Err(Error::AuthOldRevision);
        }
        if state.is_root(&identity.user) {
            return Ok(None);
        }
        let ranges = state.ranges.get(&*identity.user).ok_or(Error::PermissionDenied)?;
        Ok(Some(Arc::clone(ranges)))
    }

    /// Whether `identity` may administer: it has the role `root`. Auth revisions are not compared.
    pub fn check_root(&self, identity: Option<&Identity>) -> Result<(), Error> {
        let state = self.state.load();
        if !state.enabled {
            return Ok(());
        }
        let identity = identity.ok_or(Error::UserEmpty)?;
        let user = state.users.get(&*identity.user).ok_or(Error::UserNotFound)?;
        user.roles.contains(ROOT).then_some(()).ok_or(Error::PermissionDenied)
    }

    fn hash(&self, password: &str) -> Result<String, Error> {
        bcrypt::non_truncating_hash(password, self.config.bcrypt_cost).map_err(|e| Error::Internal(e.to_string()))
    }

    fn forget_tokens(&self, user: &str) {
        self.tokens.lock().retain(|_, t| &*t.user != user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> AuthStore {
        let auth = AuthStore::new(Config {
            bcrypt_cost: 4,
            ..Config::default()
        })
        .unwrap();
        assert_eq!(auth.enable(), Err(Error::RootUserNotExist));
        auth.user_add("root", None).unwrap();
        assert_eq!(auth.enable(), Err(Error::RootRoleNotExist));
        auth.user_grant_role("root", "root").unwrap();
        auth.user_add("remote", None).unwrap();
        auth.role_add("remote").unwrap();
        auth.user_grant_role("remote", "remote").unwrap();
        let read = |key: &str, end: &str| Permission {
            access: Access::Read,
            key: key.into(),
            range_end: end.into(),
        };
        auth.role_grant("remote", read("cilium/state/", "cilium/state0"))
            .unwrap();
        auth.role_grant("remote", read("cilium/cluster-config/c1", "")).unwrap();
        auth.enable().unwrap();
        auth
    }

    fn who(auth: &AuthStore, user: &str) -> Option<Identity> {
        Some(Identity {
            user: user.into(),
            revision: auth.state().revision,
        })
    }

    #[test]
    fn a_certificate_user_reads_what_its_roles_grant_and_no_more() {
        let auth = enabled();
        let remote = who(&auth, "remote");
        let ranges = auth.ranges(remote.as_ref()).unwrap().unwrap();
        assert!(ranges.may_read((b"cilium/state/nodes/", Some(b"cilium/state/nodes0"))));
        assert!(!ranges.may_read((b"cilium/cluster-config/", Some(b"cilium/cluster-config0"))));
        assert!(!ranges.may_write((b"cilium/state/x", Some(b"cilium/state/x\0"))));
        assert_eq!(auth.check_root(remote.as_ref()), Err(Error::PermissionDenied));
        assert_eq!(auth.check_root(who(&auth, "nobody").as_ref()), Err(Error::UserNotFound));
        assert_eq!(
            auth.ranges(who(&auth, "nobody").as_ref()).err(),
            Some(Error::PermissionDenied)
        );
        assert_eq!(auth.ranges(None).err(), Some(Error::UserEmpty));
        assert!(auth.ranges(who(&auth, "root").as_ref()).unwrap().is_none());
    }

    #[test]
    fn a_change_makes_older_identities_old_and_a_removed_role_is_gone() {
        let auth = enabled();
        let before = who(&auth, "remote");
        auth.role_delete("remote").unwrap();
        assert_eq!(auth.ranges(before.as_ref()).err(), Some(Error::AuthOldRevision));
        let ranges = auth.ranges(who(&auth, "remote").as_ref()).unwrap().unwrap();
        assert!(!ranges.may_read((b"cilium/state/", Some(b"cilium/state/x"))));
        assert_eq!(auth.user_delete("root"), Err(Error::InvalidAuthMgmt));
        assert_eq!(auth.user_revoke_role("root", "root"), Err(Error::InvalidAuthMgmt));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_while_it_is_used_and_dies_with_the_password() {
        let auth = enabled();
        auth.user_add("pw", Some("secret")).unwrap();
        assert_eq!(auth.authenticate("pw", "wrong"), Err(Error::AuthFailed));
        assert_eq!(auth.authenticate("remote", ""), Err(Error::NoPasswordUser));
        let token = auth.authenticate("pw", "secret").unwrap();
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(200)).await;
            assert_eq!(&*auth.token_identity(&token).unwrap().user, "pw");
        }
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(auth.token_identity(&token), Err(Error::InvalidAuthToken));
        let token = auth.authenticate("pw", "secret").unwrap();
        auth.user_change_password("pw", "other").unwrap();
        assert_eq!(auth.token_identity(&token), Err(Error::InvalidAuthToken));
    }
}
