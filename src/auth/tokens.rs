//! Tokens: issued for a password, and exchanged for a user at each request.

use super::jwt::{ConfigError, Jwt};
use super::{AuthStore, Config, Error, Principal};
use parking_lot::Mutex;
use rand::RngExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Letters in a simple token.
const SIMPLE_LETTERS: usize = 16;

/// The tokens that are valid.
pub(super) struct Tokens {
    /// Signs and verifies tokens, if signed tokens are configured.
    jwt: Option<Jwt>,
    simple: Mutex<HashMap<String, SimpleToken>>,
    ttl: Duration,
}

/// A token that means nothing outside this process.
struct SimpleToken {
    user: Arc<str>,
    expires: Instant,
}

impl Tokens {
    pub(super) fn new(config: &Config) -> Result<Self, ConfigError> {
        Ok(Self {
            jwt: config.jwt.as_ref().map(Jwt::new).transpose()?,
            simple: Mutex::default(),
            ttl: config.token_ttl,
        })
    }

    pub(super) fn clear(&self) {
        self.simple.lock().clear();
    }

    /// Forgets the simple tokens of `user`.
    pub(super) fn forget(&self, user: &str) {
        self.simple.lock().retain(|_, token| &*token.user != user);
    }
}

/// Adds a token, and drops those that have expired.
fn hold(tokens: &mut HashMap<String, SimpleToken>, token: &str, user: &str, ttl: Duration) {
    let now = Instant::now();
    tokens.retain(|_, token| token.expires > now);
    let held = SimpleToken {
        user: user.into(),
        expires: now + ttl,
    };
    tokens.insert(token.to_owned(), held);
}

impl AuthStore {
    /// Issues a token for a name and password. May block, as [`AuthStore::user_add`].
    pub fn authenticate(&self, name: &str, password: &str) -> Result<String, Error> {
        let state = self.state();
        if !state.enabled {
            return Err(Error::AuthNotEnabled);
        }
        let user = state.users.get(name).ok_or(Error::AuthFailed)?;
        let hash = user.password.as_ref().ok_or(Error::NoPasswordUser)?;
        if !bcrypt::verify(password, hash).unwrap_or(false) {
            return Err(Error::AuthFailed);
        }
        if let Some(jwt) = &self.tokens.jwt {
            return jwt.issue(name, state.revision);
        }
        let mut rng = rand::rng();
        let letters: String = (0..SIMPLE_LETTERS)
            .map(|_| char::from(rng.sample(rand::distr::Alphabetic)))
            .collect();
        let token = format!("{letters}.{}", state.revision);
        let mut tokens = self.tokens.simple.lock();
        // The password may have been changed during the verification.
        if self.state().revision != state.revision {
            return Err(Error::AuthOldRevision);
        }
        hold(&mut tokens, &token, name, self.tokens.ttl);
        Ok(token)
    }

    /// Accepts a token that the cluster which this store follows has issued to a user. Has no effect if tokens are
    /// signed, since a signed token needs no memory.
    pub fn remember(&self, token: &str, user: &str) {
        if self.tokens.jwt.is_none() {
            hold(&mut self.tokens.simple.lock(), token, user, self.tokens.ttl);
        }
    }

    /// Whether [`AuthStore::sign`] can sign.
    pub fn signs(&self) -> bool {
        self.tokens.jwt.as_ref().is_some_and(Jwt::signs)
    }

    /// Signs a token for a user, without a password, at the present auth revision.
    pub fn sign(&self, user: &str, ttl: Duration) -> Result<String, Error> {
        let jwt = self.tokens.jwt.as_ref().ok_or(Error::VerifyOnly)?;
        jwt.issue_for(user, self.state().revision, ttl)
    }

    /// The user of `token`. The use of a simple token prolongs it.
    pub fn token_principal(&self, token: &str) -> Result<Principal, Error> {
        if let Some(jwt) = &self.tokens.jwt {
            return jwt.verify(token);
        }
        let now = Instant::now();
        let mut tokens = self.tokens.simple.lock();
        let held = tokens.get_mut(token).filter(|token| token.expires > now);
        let held = held.ok_or(Error::InvalidAuthToken)?;
        held.expires = now + self.tokens.ttl;
        // As in etcd, a simple token is never too old: it is forgotten when its user changes.
        let revision = self.state().revision;
        Ok(Principal {
            user: Arc::clone(&held.user),
            revision,
        })
    }
}
