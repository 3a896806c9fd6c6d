//! Administration of a store's users, and its implementation for any etcd.

use super::Error;
use super::client::{self, EtcdClient};
use super::config::ConfigSource;
use etcd_client::{Client, Permission, UserAddOptions};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::Mutex;
use tonic::Code;

/// Limit for a call.
const TIMEOUT: Duration = Duration::from_secs(10);

/// etcd's error for a user that does not exist.
const NO_USER: &str = "user name not found";

/// Changes a store's users. A change that is already in effect is not an error.
#[async_trait::async_trait]
pub trait UserAdmin: Send + Sync {
    /// The names of all users.
    async fn list(&self) -> Result<BTreeSet<String>, Error>;

    /// The roles of a user; `None` if there is no such user.
    async fn roles(&self, user: &str) -> Result<Option<BTreeSet<String>>, Error>;

    /// Adds a user without a password: it can only be authenticated by a certificate.
    async fn add(&self, user: &str) -> Result<(), Error>;

    /// Removes a user.
    async fn delete(&self, user: &str) -> Result<(), Error>;

    /// Gives a user a role, which must exist.
    async fn grant(&self, user: &str, role: &str) -> Result<(), Error>;

    /// Takes a role from a user.
    async fn revoke(&self, user: &str, role: &str) -> Result<(), Error>;
}

/// The users of any etcd.
pub struct EtcdUsers {
    source: ConfigSource,
    client: Mutex<Option<EtcdClient>>,
}

impl EtcdUsers {
    /// Makes the client without connecting.
    pub fn new(source: ConfigSource) -> Self {
        Self {
            source,
            client: Mutex::default(),
        }
    }

    async fn client(&self) -> Result<Client, Error> {
        let mut slot = self.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.raw());
        }
        let config = self.source.read();
        let config = config.map_err(|e| Error::Unavailable(e.to_string()))?;
        let client = EtcdClient::connect(&config).await?;
        Ok(slot.insert(client).raw())
    }

    /// Adds a role.
    pub async fn add_role(&self, role: &str) -> Result<(), Error> {
        let added = self.call(async |mut client| client.role_add(role).await.map(drop));
        accept(&["role name already exists"], added.await)
    }

    /// Lets a role read a range of keys, or one key if `end` is empty.
    pub async fn allow_reading(&self, role: &str, key: &[u8], end: &[u8]) -> Result<(), Error> {
        let found = self.call(async |mut client| client.role_get(role).await).await?;
        // A change without effect would still invalidate every token.
        if found
            .permissions()
            .iter()
            .any(|p| p.key() == key && p.range_end() == end)
        {
            return Ok(());
        }
        let permission = Permission::read(key).with_range_end(end);
        self.call(async |mut client| client.role_grant_permission(role, permission).await.map(drop))
            .await
    }

    /// Turns authentication on.
    pub async fn enable(&self) -> Result<(), Error> {
        self.call(async |mut client| client.auth_enable().await.map(drop)).await
    }

    /// Calls the store. If that fails for another reason than the call's arguments, the next call reads the TLS files
    /// and connects again.
    async fn call<T, F>(&self, f: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let client = self.client().await?;
        // The client's futures are large.
        let done = match tokio::time::timeout(TIMEOUT, Box::pin(f(client))).await {
            Ok(done) => done.map_err(failure),
            Err(_) => Err(client::Error::Timeout(TIMEOUT).into()),
        };
        if matches!(done, Err(Error::Unavailable(_))) {
            *self.client.lock().await = None;
        }
        done
    }
}

/// Distinguishes errors that the call's arguments cause ([`Error::Rejected`]) from errors of the connection or its
/// user, which concern every call.
fn failure(error: etcd_client::Error) -> Error {
    let rejected = match &error {
        etcd_client::Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists | Code::OutOfRange
        ),
        _ => false,
    };
    let text = client::Error::from(error).to_string();
    match rejected {
        true => Error::Rejected(text),
        false => Error::Unavailable(text),
    }
}

/// Turns an error into a success if its text says that the change is already in effect.
fn accept(already: &[&str], done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::Rejected(text)) if already.iter().any(|a| text.contains(a)) => Ok(()),
        done => done,
    }
}

#[async_trait::async_trait]
impl UserAdmin for EtcdUsers {
    async fn list(&self) -> Result<BTreeSet<String>, Error> {
        let list = self.call(async |mut client| client.user_list().await).await?;
        Ok(list.users().iter().cloned().collect())
    }

    async fn roles(&self, user: &str) -> Result<Option<BTreeSet<String>>, Error> {
        match self.call(async |mut client| client.user_get(user).await).await {
            Ok(found) => Ok(Some(found.roles().iter().cloned().collect())),
            Err(Error::Rejected(text)) if text.contains(NO_USER) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn add(&self, user: &str) -> Result<(), Error> {
        let options = UserAddOptions::new().with_no_pwd();
        let added = self.call(async |mut client| client.user_add(user, "", Some(options)).await.map(drop));
        accept(&["user name already exists"], added.await)
    }

    async fn delete(&self, user: &str) -> Result<(), Error> {
        let deleted = self.call(async |mut client| client.user_delete(user).await.map(drop));
        accept(&[NO_USER], deleted.await)
    }

    async fn grant(&self, user: &str, role: &str) -> Result<(), Error> {
        self.call(async |mut client| client.user_grant_role(user, role).await.map(drop))
            .await
    }

    async fn revoke(&self, user: &str, role: &str) -> Result<(), Error> {
        let revoked = self.call(async |mut client| client.user_revoke_role(user, role).await.map(drop));
        accept(&["role is not granted to the user", NO_USER], revoked.await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_the_arguments_cause_reject_the_call() {
        let status = |code| etcd_client::Error::GRpcStatus(tonic::Status::new(code, "etcdserver: words"));
        let rejected = failure(status(Code::FailedPrecondition));
        assert!(matches!(&rejected, Error::Rejected(text) if text == "etcdserver: words"));
        // The connection's user has no permission for any call of this kind.
        for code in [
            Code::Unavailable,
            Code::Unknown,
            Code::PermissionDenied,
            Code::Unauthenticated,
        ] {
            assert!(matches!(failure(status(code)), Error::Unavailable(_)), "{code:?}");
        }
        assert!(accept(&["words"], Err(rejected)).is_ok());
    }
}
