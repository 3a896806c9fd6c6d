//! The caller of a call: its credentials, and the user they stand for.

use crate::auth::{AuthStore, Error, Principal};
use crate::server::peer::Peer;
use crate::server::upstream::{Credentials, Judge};
use std::sync::Arc;
use tonic::Request;
use tonic::metadata::MetadataMap;

/// The credentials of a call: the token in its metadata, and the peer at the other end of its connection.
///
/// A stream keeps its caller for as long as it lasts. Each admission looks the credentials up again, because
/// tokens expire and users change.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct Caller {
    token: Option<String>,
    peer: Peer,
}

impl Caller {
    /// The caller of `request`.
    pub(in crate::server) fn of<T>(request: &Request<T>) -> Self {
        Self::new(request.metadata(), Peer::of(request))
    }

    pub(super) fn new(metadata: &MetadataMap, peer: Peer) -> Self {
        let token = metadata.get("token").or_else(|| metadata.get("authorization"));
        // A token that is not UTF-8 becomes a text that equals no issued token, and is refused as invalid.
        let token = token.map(|token| String::from_utf8_lossy(token.as_encoded_bytes()).into_owned());
        Self { token, peer }
    }

    /// The user that the credentials stand for: the token's, or else the certificate's. `None` if there are no
    /// credentials, or while authentication is disabled.
    pub(super) fn principal(&self, auth: &AuthStore) -> Result<Option<Principal>, Error> {
        let state = auth.state();
        if !state.enabled {
            return Ok(None);
        }
        if let Some(token) = self.token() {
            return auth.token_principal(token).map(Some);
        }
        let user = self.peer.common_name.clone();
        let revision = state.revision;
        Ok(user.map(|user| Principal { user, revision }))
    }

    fn token(&self) -> Option<&str> {
        let token = self.token.as_deref()?;
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    }

    /// On whose behalf a call of this caller goes to the cluster that a replica follows. As in etcd, a token wins over a
    /// certificate. A token goes upstream even while authentication seems to be off, since only upstream knows.
    pub(in crate::server) fn credentials(&self, auth: &AuthStore, judge: Judge) -> Credentials {
        match (self.token(), judge, &self.peer.common_name) {
            (Some(token), ..) => Credentials::Token(token.into()),
            (None, Judge::Upstream, Some(user)) if auth.state().enabled => Credentials::User(Arc::clone(user)),
            _ if !auth.state().enabled => Credentials::Nobody,
            // Whoever has no credentials is refused by the checks here.
            _ => Credentials::Replica,
        }
    }

    /// The other end of the connection.
    pub(in crate::server) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether a token rather than a certificate names the user.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }
}
