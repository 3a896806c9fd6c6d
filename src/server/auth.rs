//! The Auth service.

use super::Core;
use super::admission::{Call, Caller, Operation, Subject};
use super::peer::Peer;
use crate::auth::Error;
use crate::pb::authpb;
use crate::pb::etcdserverpb as pb;
use bytes::Bytes;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `etcdserverpb.Auth`.
pub(super) struct AuthService(pub(super) Arc<Core>);

/// The permission that RoleGet shows for the role `root`, which needs no permissions.
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

    async fn admit<T>(&self, request: &Request<T>, operation: &Operation) -> Result<(), Status> {
        self.0.admit(&Caller::of(request), operation).await.map(drop)
    }

    /// Returns an answer, or an error, once all changes of users so far are durable.
    async fn commit<T, E: Into<Status>>(&self, outcome: Result<T, E>) -> Result<T, Status> {
        self.0.durability.commit_metadata(outcome).await
    }
}

/// Implements the Auth service: the listed methods make a change and answer with a header only; the macro contains the
/// other methods.
macro_rules! auth_service {
    ($(($method:ident, $request:ident, $response:ident, |$auth:ident, $r:ident| $do:expr))*) => {
        #[tonic::async_trait]
        impl pb::auth_server::Auth for AuthService {
            $(async fn $method(
                &self,
                request: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                self.admit(&request, &Operation::new(Call::AuthChange)).await?;
                let peer = Peer::of(&request);
                let ($auth, $r) = (Arc::clone(&self.0.auth), request.into_inner());
                self.commit(self.0.log_in(&peer, move || $do).await).await?;
                Ok(Response::new(pb::$response { header: self.header() }))
            })*

            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                self.admit(&request, &Operation::new(Call::AuthOpen)).await?;
                let state = self.commit(Ok::<_, Error>(self.0.auth.state())).await?;
                let (enabled, auth_revision) = (state.enabled, state.revision);
                Ok(Response::new(pb::AuthStatusResponse { header: self.header(), enabled, auth_revision }))
            }

            async fn authenticate(
                &self,
                request: Request<pb::AuthenticateRequest>,
            ) -> Result<Response<pb::AuthenticateResponse>, Status> {
                self.admit(&request, &Operation::new(Call::AuthOpen)).await?;
                let peer = Peer::of(&request);
                let (auth, r) = (Arc::clone(&self.0.auth), request.into_inner());
                let token = self.0.log_in(&peer, move || auth.authenticate(&r.name, &r.password)).await;
                let token = self.commit(token).await?;
                Ok(Response::new(pb::AuthenticateResponse { header: self.header(), token }))
            }

            async fn user_get(
                &self,
                request: Request<pb::AuthUserGetRequest>,
            ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
                let name = request.get_ref().name.clone();
                let operation = Operation::about(Call::UserGet, Subject::User(name.clone()));
                self.admit(&request, &operation).await?;
                let state = self.0.auth.state();
                let user = self.commit(state.users.get(&name).ok_or(Error::UserNotFound)).await?;
                let roles = user.roles.iter().cloned().collect();
                Ok(Response::new(pb::AuthUserGetResponse { header: self.header(), roles }))
            }

            async fn user_list(
                &self,
                request: Request<pb::AuthUserListRequest>,
            ) -> Result<Response<pb::AuthUserListResponse>, Status> {
                self.admit(&request, &Operation::new(Call::AuthList)).await?;
                let state = self.commit(Ok::<_, Error>(self.0.auth.state())).await?;
                let users = state.users.keys().cloned().collect();
                Ok(Response::new(pb::AuthUserListResponse { header: self.header(), users }))
            }

            async fn role_get(
                &self,
                request: Request<pb::AuthRoleGetRequest>,
            ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
                let role = request.get_ref().role.clone();
                let operation = Operation::about(Call::RoleGet, Subject::Role(role.clone()));
                self.admit(&request, &operation).await?;
                let state = self.0.auth.state();
                let permissions = self.commit(state.roles.get(&role).ok_or(Error::RoleNotFound)).await?;
                let perm = match &*role {
                    // As in etcd, the role `root` may do everything, independently of its granted permissions.
                    crate::auth::ROOT => vec![everything()],
                    _ => permissions.iter().map(Into::into).collect(),
                };
                Ok(Response::new(pb::AuthRoleGetResponse { header: self.header(), perm }))
            }

            async fn role_list(
                &self,
                request: Request<pb::AuthRoleListRequest>,
            ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
                self.admit(&request, &Operation::new(Call::AuthList)).await?;
                let state = self.commit(Ok::<_, Error>(self.0.auth.state())).await?;
                let roles = state.roles.keys().cloned().collect();
                Ok(Response::new(pb::AuthRoleListResponse { header: self.header(), roles }))
            }
        }
    };
}

auth_service! {
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
