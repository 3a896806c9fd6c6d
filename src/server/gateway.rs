//! The JSON gateway: translates JSON requests under `/v3/` into gRPC requests, and the answers into JSON.
//!
//! The translation uses the descriptors compiled from `proto/`, so the gateway has no code for single messages.
//! The paths are the `google.api.http` options of etcd's rpc.proto. The JSON is grpc-gateway's: proto field names,
//! 64-bit integers as strings, bytes in base64, default values left out.

use crate::server::bodies::Held;
use crate::server::frames;
use crate::server::peer::Peer;
use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use bytes::{Buf, BytesMut};
use futures::StreamExt;
use http_body_util::{BodyExt, Limited};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use std::pin::pin;
use std::sync::Arc;
use tonic::Code;
use tower::ServiceExt;

/// The path below `/v3/`, the service and the method of each route.
const ROUTES: &[(&str, &str, &str)] = &[
    ("kv/range", "etcdserverpb.KV", "Range"),
    ("kv/put", "etcdserverpb.KV", "Put"),
    ("kv/deleterange", "etcdserverpb.KV", "DeleteRange"),
    ("kv/txn", "etcdserverpb.KV", "Txn"),
    ("kv/compaction", "etcdserverpb.KV", "Compact"),
    ("watch", "etcdserverpb.Watch", "Watch"),
    ("lease/grant", "etcdserverpb.Lease", "LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease", "LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease", "LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("kv/lease/timetolive", "etcdserverpb.Lease", "LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease", "LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster", "MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster", "MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster", "MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster", "MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster", "MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance", "Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance", "Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance", "Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance", "Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance", "HashKV"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance", "Snapshot"),
    (
        "maintenance/transfer-leadership",
        "etcdserverpb.Maintenance",
        "MoveLeader",
    ),
    ("maintenance/downgrade", "etcdserverpb.Maintenance", "Downgrade"),
    ("auth/enable", "etcdserverpb.Auth", "AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth", "AuthDisable"),
    ("auth/status", "etcdserverpb.Auth", "AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth", "Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth", "UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth", "UserGet"),
    ("auth/user/list", "etcdserverpb.Auth", "UserList"),
    ("auth/user/delete", "etcdserverpb.Auth", "UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth", "UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth", "UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth", "UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth", "RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth", "RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth", "RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth", "RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth", "RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth", "RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock", "Lock"),
    ("lock/unlock", "v3lockpb.Lock", "Unlock"),
    ("election/campaign", "v3electionpb.Election", "Campaign"),
    ("election/proclaim", "v3electionpb.Election", "Proclaim"),
    ("election/leader", "v3electionpb.Election", "Leader"),
    ("election/observe", "v3electionpb.Election", "Observe"),
    ("election/resign", "v3electionpb.Election", "Resign"),
];

/// An incomplete document of at most this many bytes is parsed again with each further chunk.
const REPARSED_BYTES: usize = 16 << 10;

/// An error as grpc-gateway shows it.
struct Failure {
    code: Code,
    message: String,
}

/// The longest JSON, in bytes, for a gRPC message of `max` bytes: base64 takes a third more, and field names take
/// some space.
fn json_limit(max: usize) -> usize {
    max / 3 * 4 + (64 << 10)
}

/// A router for `/v3/` and its older name `/v3beta/`, which calls the gRPC services of `grpc`.
pub(super) fn router(grpc: &Router, max: usize) -> Router {
    let pool = super::descriptors::descriptors();
    let not_allowed = || async { Failure::new(Code::Unimplemented, "Method Not Allowed") };
    let not_found = || async { Failure::new(Code::NotFound, "Not Found") };
    let router = Router::new()
        .route("/v3/{*path}", any(not_found))
        .route("/v3beta/{*path}", any(not_found));
    ROUTES.iter().fold(router, |router, (path, service, name)| {
        let service = pool.get_service_by_name(service).expect("a service of proto/");
        let method = service
            .methods()
            .find(|m| m.name() == *name)
            .expect("a method of proto/");
        let method = Arc::new(method);
        let grpc = grpc.clone();
        let limit = json_limit(max);
        let handler = move |request: Request| call(grpc.clone(), Arc::clone(&method), limit, request);
        let route = post(handler).fallback(not_allowed);
        router
            .route(&format!("/v3/{path}"), route.clone())
            .route(&format!("/v3beta/{path}"), route)
    })
}

/// Forwards one call. JSON documents and answers of streams are passed on as they arrive.
async fn call(grpc: Router, method: Arc<MethodDescriptor>, limit: usize, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let input = method.input();
    let frames = if method.is_client_streaming() {
        Body::from_stream(translate(body.into_data_stream(), input, limit))
    } else {
        match unary(body, &input, limit).await {
            Ok(frame) => Body::from(frame),
            Err(failure) => return failure.into_response(),
        }
    };
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut inner = Request::builder().method("POST").uri(path);
    if let Some(headers) = inner.headers_mut() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(token) = parts.headers.get(header::AUTHORIZATION) {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
    }
    // As in etcd, the caller's certificate does not name a user here.
    let peer = parts.extensions.get::<Peer>().cloned().unwrap_or_default();
    let peer = Peer {
        common_name: None,
        secure: false,
        ..peer
    };
    let documents = Arc::clone(&peer.connection.documents);
    let Ok(inner) = inner.extension(peer).body(frames) else {
        return Failure::internal("no request").into_response();
    };
    if method.is_server_streaming() {
        let Ok(response) = grpc.oneshot(inner).await;
        return translated(response, &method).await;
    }
    // The document of an answer is made as a whole.
    let Ok(document) = documents.acquire_owned().await else {
        return Failure::internal("the server stops").into_response();
    };
    let Ok(mut response) = grpc.oneshot(inner).await;
    let mut held = vec![document];
    if let Some(Held(permits)) = response.extensions_mut().remove::<Held>() {
        held.extend(Arc::into_inner(permits).unwrap_or_default());
    }
    let mut answer = translated(response, &method).await;
    answer.extensions_mut().insert(Held(Arc::new(held)));
    answer
}

/// The answer of a gRPC service as JSON.
async fn translated(response: Response, method: &MethodDescriptor) -> Response {
    if let Some(failure) = Failure::of(response.headers()) {
        return failure.into_response();
    }
    let output = method.output();
    if method.is_server_streaming() {
        let json = [(header::CONTENT_TYPE, "application/json")];
        return (json, Body::from_stream(documents(response.into_body(), output))).into_response();
    }
    single(response.into_body(), &output)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

/// The message of a unary request. A request without a body is an empty message.
async fn unary(body: Body, input: &MessageDescriptor, limit: usize) -> Result<Bytes, Failure> {
    let body = Limited::new(body, limit).collect().await;
    let body = body.map_err(|_| Failure::new(Code::ResourceExhausted, "the request is too large"))?;
    let bytes = body.to_bytes();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(frame(&DynamicMessage::new(input.clone())));
    }
    let message = parse(&mut serde_json::Deserializer::from_slice(&bytes), input)?;
    Ok(frame(&message))
}

fn parse<'de, R: serde_json::de::Read<'de>>(
    json: &mut serde_json::Deserializer<R>,
    input: &MessageDescriptor,
) -> Result<DynamicMessage, Failure> {
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(input.clone(), json, &options).map_err(|e| Failure {
        code: Code::InvalidArgument,
        message: e.to_string(),
    })
}

/// Translates consecutive JSON documents into gRPC frames.
fn translate(
    mut body: BodyDataStream,
    input: MessageDescriptor,
    limit: usize,
) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send {
    async_stream::try_stream! {
        let (mut buffer, mut parse_at) = (BytesMut::new(), 0);
        while let Some(chunk) = body.next().await {
            buffer.extend_from_slice(&chunk.map_err(std::io::Error::other)?);
            let blank = buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
            buffer.advance(blank);
            if buffer.len() > limit {
                Err(std::io::Error::other("a document is too large"))?;
            }
            // A long document is not parsed again from its start with each chunk.
            if buffer.len() < parse_at {
                continue;
            }
            loop {
                let mut documents = serde_json::Deserializer::from_slice(&buffer).into_iter::<serde_json::Value>();
                let document = match documents.next() {
                    Some(Ok(document)) => document,
                    // The document is incomplete.
                    None => break,
                    Some(Err(error)) if error.is_eof() => {
                        parse_at = if buffer.len() > REPARSED_BYTES { buffer.len() * 2 } else { 0 };
                        break;
                    }
                    Some(Err(error)) => Err(std::io::Error::other(error))?,
                };
                let used = documents.byte_offset();
                buffer.advance(used);
                parse_at = 0;
                let text = document.to_string();
                let message = parse(&mut serde_json::Deserializer::from_str(&text), &input);
                yield frame(&message.map_err(|f| std::io::Error::other(f.message))?);
            }
        }
    }
}

/// A message with the prefix of a gRPC frame.
fn frame(message: &DynamicMessage) -> Bytes {
    let message = message.encode_to_vec();
    let mut frame = frames::begin(message.len(), message.len());
    frame.extend_from_slice(&message);
    frame.into()
}

/// Takes the next message from `buffer`; `None` if the message is incomplete.
fn take_frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let len = u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?) as usize;
    if buffer.len() < 5 + len {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(len).freeze())
}

fn to_json(message: Bytes, output: &MessageDescriptor) -> Result<String, Failure> {
    let message = DynamicMessage::decode(output.clone(), message).map_err(Failure::internal)?;
    let mut json = Vec::new();
    let options = SerializeOptions::new().use_proto_field_name(true);
    let done = message.serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options);
    done.map_err(Failure::internal)?;
    String::from_utf8(json).map_err(Failure::internal)
}

async fn single(body: Body, output: &MessageDescriptor) -> Result<Response, Failure> {
    let collected = body.collect().await.map_err(Failure::internal)?;
    if let Some(failure) = collected.trailers().and_then(Failure::of) {
        return Err(failure);
    }
    let mut buffer = BytesMut::from(&collected.to_bytes()[..]);
    let message = take_frame(&mut buffer).ok_or_else(|| Failure::internal("no answer"))?;
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok((json, to_json(message, output)?).into_response())
}

/// The answers of a stream, as one JSON document on each line.
fn documents(body: Body, output: MessageDescriptor) -> impl futures::Stream<Item = Result<String, axum::Error>> + Send {
    async_stream::stream! {
        let mut buffer = BytesMut::new();
        let mut body = pin!(body);
        while let Some(next) = body.frame().await {
            let part = match next {
                Ok(part) => part,
                Err(error) => {
                    yield Ok(Failure::internal(error).line());
                    return;
                }
            };
            if let Some(failure) = part.trailers_ref().and_then(Failure::of) {
                yield Ok(failure.line());
            }
            let Ok(data) = part.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(message) = take_frame(&mut buffer) {
                yield Ok(match to_json(message, &output) {
                    Ok(json) => format!("{{\"result\":{json}}}\n"),
                    Err(failure) => failure.line(),
                });
            }
        }
    }
}

// === impl Failure ===

impl Failure {
    fn new(code: Code, message: &str) -> Self {
        let message = message.to_owned();
        Self { code, message }
    }

    fn internal(error: impl std::fmt::Display) -> Self {
        Self {
            code: Code::Internal,
            message: error.to_string(),
        }
    }

    /// The error in gRPC headers or trailers; `None` for a success.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let status = tonic::Status::from_header_map(headers)?;
        (status.code() != Code::Ok).then(|| Self {
            code: status.code(),
            message: status.message().to_owned(),
        })
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "code": self.code as i32, "message": self.message })
    }

    fn line(&self) -> String {
        format!("{}\n", serde_json::json!({ "error": self.json() }))
    }

    /// The HTTP status of a gRPC code, as in grpc-gateway (runtime/errors.go).
    fn status(&self) -> StatusCode {
        match self.code {
            Code::Ok => StatusCode::OK,
            Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, "application/json")];
        (self.status(), json, self.json().to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_names_a_method_that_exists() {
        let _ = router(&Router::new(), 1 << 20);
    }

    #[test]
    fn frames_are_taken_whole() {
        let pool = crate::server::descriptors::descriptors();
        let put = pool.get_message_by_name("etcdserverpb.PutRequest").unwrap();
        let json = r#"{"key":"Zm9v","prevKv":true,"unknown":1}"#;
        let message = parse(&mut serde_json::Deserializer::from_str(json), &put);
        let message = message.map_err(|f| f.message).unwrap();
        let whole = frame(&message);
        let mut buffer = BytesMut::from(&whole[..whole.len() - 1]);
        assert_eq!(take_frame(&mut buffer), None);
        buffer.extend_from_slice(&whole[whole.len() - 1..]);
        let json = to_json(take_frame(&mut buffer).unwrap(), &put)
            .map_err(|f| f.message)
            .unwrap();
        assert_eq!(json, r#"{"key":"Zm9v","prev_kv":true}"#);
    }
}
