//! The Auth service. All of it needs the role `root`, but for a user's own data.

use super::Core;
use crate::auth::Error;
use crate::pb::authpb;
use crate::pb::etcdserverpb as pb;
use bytes::Bytes;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `etcdserverpb.Auth`.
pub(super) struct AuthService(pub(super) Arc<Core>);

/// Runs something that hashes a password, off the workers.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(f).await;
    Ok(done.map_err(|e| Status::internal(e.to_string()))??)
}

/// What the role `root` is shown to have.
fn everything() -> authpb::Permission {
    authpb::Permission {
        perm_type: authpb::permission::Type::Readwrite.into(),
        key: Bytes::new(),
        range_end: Bytes::from_static(&[0]),
    }
}

impl AuthService {
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.0.header(self.0.store.revision()))
    }

    /// The caller must be root, or `allowed` must say that it may see this of itself.
    fn check_root_or<T>(
        &self,
        request: &Request<T>,
        allowed: impl FnOnce(&str, &crate::auth::State) -> bool,
    ) -> Result<(), Status> {
        let identity = self.0.identity_of(request)?;
        let Err(refused) = self.0.auth.check_root(identity.as_ref()) else {
            return Ok(());
        };
        let user = identity.as_ref().map_or("", |i| &*i.user);
        match allowed(user, &self.0.auth.state()) {
            true => Ok(()),
            false => Err(refused.into()),
        }
    }
}

/// Methods that check for root, do one thing and answer with a header.
macro_rules! simple {
    ($(($method:ident, $request:ident, $response:ident, |$auth:ident, $r:ident| $do:expr))*) => {
        #[tonic::async_trait]
        impl pb::auth_server::Auth for AuthService {
            $(async fn $method(
                &self,
                request: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                self.0.check_root(&request)?;
                let ($auth, $r) = (Arc::clone(&self.0.auth), request.into_inner());
                // Changes are rare, and some hash a password.
                self.0.check_disk()?;
                let done = blocking(move || $do).await;
                self.0.flushed().await?;
                done?;
                Ok(Response::new(pb::$response { header: self.header() }))
            })*

            async fn auth_status(
                &self,
                _: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                let state = self.0.auth.state();
                self.0.flushed().await?;
                let (enabled, auth_revision) = (state.enabled, state.revision);
                Ok(Response::new(pb::AuthStatusResponse { header: self.header(), enabled, auth_revision }))
            }

            async fn authenticate(
                &self,
                request: Request<pb::AuthenticateRequest>,
            ) -> Result<Response<pb::AuthenticateResponse>, Status> {
                let (auth, r) = (Arc::clone(&self.0.auth), request.into_inner());
                let token = blocking(move || auth.authenticate(&r.name, &r.password)).await?;
                Ok(Response::new(pb::AuthenticateResponse { header: self.header(), token }))
            }

            async fn user_get(
                &self,
                request: Request<pb::AuthUserGetRequest>,
            ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
                let name = &request.get_ref().name;
                self.check_root_or(&request, |user, _| user == name)?;
                let state = self.0.auth.state();
                self.0.flushed().await?;
                let user = state.users.get(name).ok_or(Error::UserNotFound)?;
                let roles = user.roles.iter().cloned().collect();
                Ok(Response::new(pb::AuthUserGetResponse { header: self.header(), roles }))
            }

            async fn user_list(
                &self,
                request: Request<pb::AuthUserListRequest>,
            ) -> Result<Response<pb::AuthUserListResponse>, Status> {
                self.0.check_root(&request)?;
                let users = self.0.auth.state().users.keys().cloned().collect();
                self.0.flushed().await?;
                Ok(Response::new(pb::AuthUserListResponse { header: self.header(), users }))
            }

            async fn role_get(
                &self,
                request: Request<pb::AuthRoleGetRequest>,
            ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
                let role = &request.get_ref().role;
                self.check_root_or(&request, |user, state| {
                    state.users.get(user).is_some_and(|u| u.roles.contains(role))
                })?;
                let state = self.0.auth.state();
                self.0.flushed().await?;
                let permissions = state.roles.get(role).ok_or(Error::RoleNotFound)?;
                let perm = match &**role {
                    // Parity: whatever has been granted to it, it may do everything.
                    crate::auth::ROOT => vec![everything()],
                    _ => permissions.iter().map(Into::into).collect(),
                };
                Ok(Response::new(pb::AuthRoleGetResponse { header: self.header(), perm }))
            }

            async fn role_list(
                &self,
                request: Request<pb::AuthRoleListRequest>,
            ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
                self.0.check_root(&request)?;
                let roles = self.0.auth.state().roles.keys().cloned().collect();
                self.0.flushed().await?;
                Ok(Response::new(pb::AuthRoleListResponse { header: self.header(), roles }))
            }
        }
    };
}

simple! {
    (auth_enable, AuthEnableRequest, AuthEnableResponse, |auth, _r| auth.enable())
    (auth_disable, AuthDisableRequest, AuthDisableResponse, |auth, _r| auth.disable())
    (user_add, AuthUserAddRequest, AuthUserAddResponse, |auth, r| {
        let no_password = r.options.is_some_and(|o| o.no_password);
        auth.user_add(&r.name, (!no_password).then_some(&*r.password))
    })
    (user_delete, AuthUserDeleteRequest, AuthUserDeleteResponse, |auth, r| auth.user_delete(&r.name))
    (user_change_password, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse, |auth, r| {
        auth.user_change_password(&r.name, &r.password)
    })
    (user_grant_role, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, |auth, r| {
        auth.user_grant_role(&r.user, &r.role)
    })
    (user_revoke_role, AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, |auth, r| {
        auth.user_revoke_role(&r.name, &r.role)
    })
    (role_add, AuthRoleAddRequest, AuthRoleAddResponse, |auth, r| auth.role_add(&r.name))
    (role_delete, AuthRoleDeleteRequest, AuthRoleDeleteResponse, |auth, r| auth.role_delete(&r.role))
    (role_grant_permission, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, |auth, r| {
        auth.role_grant(&r.name, r.perm.ok_or(Error::PermissionNotGiven)?.into())
    })
    (role_revoke_permission, AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, |auth, r| {
        auth.role_revoke(&r.role, &r.key, &r.range_end)
    })
}
