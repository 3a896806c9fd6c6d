//! Users, roles, permissions and tokens, with etcd's rules.
//!
//! The auth state is immutable, and each change replaces all of it, so a permission check is a pointer load and
//! a binary search. The auth revision grows with each change; a signed token carries the auth revision at which
//! it was issued.

mod check;
mod jwt;
mod messages;
mod permission;
mod roles;
#[cfg(test)]
mod tests;
mod tokens;
mod users;

pub use check::AuthVersion;
pub use jwt::{ConfigError as JwtError, Options as JwtOptions};
pub use messages::Difference;
pub use permission::{Access, Permission, Ranges, Span};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokens::Tokens;

/// The role that may do everything. As in etcd, the role may be granted although it does not exist.
pub const ROOT: &str = "root";

/// Why a request of the Auth service, or a check of a permission, failed. The texts are etcd's.
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

/// The user that a request's credentials stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub user: Arc<str>,
    /// The auth revision at which the token was issued; for other credentials, the revision at the check.
    pub revision: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The bcrypt hash; `None` for a user who authenticates by certificate only.
    pub password: Option<String>,
    pub roles: BTreeSet<String>,
}

/// The durable state of authentication.
#[derive(Clone, Debug, Default)]
pub struct AuthState {
    pub enabled: bool,
    /// The auth revision: 1 at first, one more after each change.
    pub revision: u64,
    pub users: BTreeMap<String, User>,
    /// The permissions of each role, sorted by key.
    pub roles: BTreeMap<String, Vec<Permission>>,
    /// The merged permissions of each user, derived from `users` and `roles`.
    ranges: HashMap<String, Arc<Ranges>>,
}

/// Users, roles and tokens, and the only way to change them.
pub struct AuthStore {
    state: ArcSwap<AuthState>,
    /// Held during a change, so that changes and their records have one order.
    writer: Mutex<()>,
    tokens: Tokens,
    on_change: Option<OnChange>,
    bcrypt_cost: u32,
}

/// Called with the state before and after each change, in the order of changes, before requests see the change.
pub type OnChange = Box<dyn Fn(&AuthState, &AuthState) + Send + Sync>;

/// How tokens are issued and passwords are hashed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Issue JSON web tokens instead of simple tokens.
    pub jwt: Option<JwtOptions>,
    /// How long a simple token is valid after its last use.
    pub token_ttl: Duration,
    /// The cost of bcrypt, from 4 to 31. Each step doubles the time that a password takes.
    pub bcrypt_cost: u32,
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

// === impl AuthState ===

impl AuthState {
    pub fn is_root(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|u| u.roles.contains(ROOT))
    }

    fn derive(&mut self) {
        let AuthState {
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
    /// Starts without users and roles, disabled. Fails if tokens cannot be signed or verified as configured.
    pub fn new(config: Config) -> Result<Self, JwtError> {
        let state = AuthState {
            revision: 1,
            ..AuthState::default()
        };
        Self::with(state, config, None)
    }

    /// Starts with the users and roles of an earlier run. Simple tokens do not outlive a run.
    pub fn with(state: AuthState, config: Config, on_change: Option<OnChange>) -> Result<Self, JwtError> {
        Ok(Self {
            state: ArcSwap::from_pointee(state),
            writer: Mutex::default(),
            tokens: Tokens::new(&config)?,
            on_change,
            bcrypt_cost: config.bcrypt_cost,
        })
    }

    pub fn state(&self) -> Arc<AuthState> {
        self.state.load_full()
    }

    /// Replaces the state by one that `f` changed, unless `f` fails.
    fn change<T>(&self, f: impl FnOnce(&mut AuthState) -> Result<T, Error>) -> Result<T, Error> {
        let _writer = self.writer.lock();
        let before = self.state.load();
        let mut state = AuthState::clone(&before);
        let done = f(&mut state)?;
        state.derive();
        if let Some(on_change) = &self.on_change {
            on_change(&before, &state);
        }
        self.state.store(Arc::new(state));
        Ok(done)
    }

    /// Changes the state and increases the auth revision.
    fn revise<T>(&self, f: impl FnOnce(&mut AuthState) -> Result<T, Error>) -> Result<T, Error> {
        self.change(|state| {
            let done = f(state)?;
            state.revision += 1;
            Ok(done)
        })
    }

    /// Replaces users and roles by those of the cluster that this store follows. A change forgets all tokens that were
    /// remembered, since it may have been a change of their users. Returns whether anything changed.
    pub fn follow(&self, mut state: AuthState) -> bool {
        let _writer = self.writer.lock();
        let before = self.state.load();
        if (before.enabled, before.revision) == (state.enabled, state.revision)
            && (&before.users, &before.roles) == (&state.users, &state.roles)
        {
            return false;
        }
        state.derive();
        if let Some(on_change) = &self.on_change {
            on_change(&before, &state);
        }
        self.state.store(Arc::new(state));
        self.tokens.clear();
        true
    }

    /// Enables authentication. Needs a user `root` with the role `root`.
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

    /// Disables authentication and forgets all simple tokens.
    pub fn disable(&self) -> Result<(), Error> {
        if self.state.load().enabled {
            self.revise(|state| {
                state.enabled = false;
                Ok(())
            })?;
            self.tokens.clear();
        }
        Ok(())
    }
}
