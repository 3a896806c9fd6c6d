//! A replica and its upstream in one process. Calls go through the routes of each, as over a connection.

use crate::auth::{self, AuthStore, ROOT};
use crate::lease::Lessor;
use crate::mvcc::{Followed, Recovery, Store};
use crate::server::peer::Peer;
use crate::server::upstream::{Credentials, Judge, NOBODY, Upstream, UpstreamIdentity, not_sent};
use crate::server::{Config, Core, MemberIdentity, Parts, Serve, Wakers};
use crate::util::lifecycle::Lifecycle;
use axum::Router;
use axum::body::Body;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use std::sync::{Arc, OnceLock};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tower::ServiceExt;

/// The cluster of the upstream, and its term.
pub(super) const CLUSTER: u64 = 77;
pub(super) const TERM: u64 = 9;
pub(super) const LEADER: u64 = 5;

/// How the upstream behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Works,
    /// Nothing reaches it.
    Away,
    /// It executes calls and does not answer.
    Silent,
}

/// A call that went upstream.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) method: String,
    pub(super) who: Credentials,
    pub(super) metadata: MetadataMap,
    pub(super) message: Bytes,
}

/// The upstream as the replica sees it.
pub(super) struct Fake {
    router: Router,
    pub(super) store: Arc<Store>,
    pub(super) auth: Arc<AuthStore>,
    core: Arc<Core>,
    pub(super) mood: Mutex<Mood>,
    pub(super) judge: Mutex<Judge>,
    pub(super) exact: Mutex<bool>,
    pub(super) doubtful: Mutex<bool>,
    pub(super) sent: Mutex<Vec<Sent>>,
    /// The messages of streams.
    pub(super) streamed: Arc<Mutex<Vec<Bytes>>>,
    /// Calls and streams that are refused once as those of an old token.
    pub(super) old: Mutex<usize>,
    /// The replica, whose users follow.
    replica: OnceLock<Arc<AuthStore>>,
}

pub(super) struct Bench {
    pub(super) upstream: Arc<Fake>,
    pub(super) store: Arc<Store>,
    pub(super) core: Arc<Core>,
    pub(super) router: Router,
    pub(super) life: Lifecycle,
}

/// A client of the replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    pub(super) user: Option<&'static str>,
    pub(super) token: Option<String>,
    pub(super) metadata: Vec<(&'static str, &'static str)>,
}

fn frame(message: &Bytes) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

fn take_frame(buffer: &mut BytesMut) -> Option<Bytes> {
    let len = u32::from_be_bytes(buffer.get(1..5)?.try_into().unwrap()) as usize;
    if buffer.len() < 5 + len {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(len).freeze())
}

/// Calls a route with a stream of messages, and returns the stream of answers.
pub(super) async fn stream(
    router: &Router,
    path: &str,
    user: Option<Arc<str>>,
    metadata: MetadataMap,
    requests: BoxStream<'static, Bytes>,
) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
    let frames = requests.map(|message| Ok::<_, std::io::Error>(frame(&message)));
    let mut request = axum::http::Request::post(path).body(Body::from_stream(frames)).unwrap();
    *request.headers_mut() = metadata.into_headers();
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    request.extensions_mut().insert(Peer {
        secure: true,
        common_name: user,
        ..Peer::default()
    });
    let Ok(response) = router.clone().oneshot(request).await;
    if let Some(status) = Status::from_header_map(response.headers()).filter(|s| s.code() != tonic::Code::Ok) {
        return Err(status);
    }
    let mut body = response.into_body();
    Ok(async_stream::stream! {
        let mut buffer = BytesMut::new();
        while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    yield Err(Status::unavailable(error.to_string()));
                    return;
                }
            };
            if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                if status.code() != tonic::Code::Ok {
                    yield Err(status);
                }
                return;
            }
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(message) = take_frame(&mut buffer) {
                yield Ok(message);
            }
        }
    }
    .boxed())
}

/// Calls a route with one message.
pub(super) async fn unary(
    router: &Router,
    path: &str,
    user: Option<Arc<str>>,
    metadata: MetadataMap,
    message: Bytes,
) -> Result<Bytes, Status> {
    let requests = futures::stream::once(async move { message }).boxed();
    let mut answers = stream(router, path, user, metadata, requests).await?;
    let answer = answers
        .next()
        .await
        .unwrap_or_else(|| Err(Status::internal("no answer")))?;
    match answers.next().await {
        Some(Err(status)) => Err(status),
        _ => Ok(answer),
    }
}

/// A store with its services. Its users are `root`, who may do everything, and `kim`, who may use the keys from `k` on
/// and has the password `secret`; `eve` is none.
fn serve(
    auth: &Arc<AuthStore>,
    upstream: Option<Arc<dyn Upstream>>,
    configure: impl FnOnce(&mut Config),
    life: &Lifecycle,
) -> (Arc<Store>, Arc<Core>) {
    let wakers = Wakers::default();
    let store = match &upstream {
        None => Store::with_hooks(wakers.hooks()),
        Some(_) => Recovery::following().open(wakers.hooks()),
    };
    let parts = Parts {
        store: Arc::clone(&store),
        lessor: Arc::new(Lessor::new(Arc::clone(&store), 2)),
        auth: Arc::clone(auth),
        durable: None,
        upstream,
        wakers,
    };
    let mut config = Config {
        client_urls: vec!["https://replica:2379".to_owned()],
        ..Config::new(MemberIdentity::random())
    };
    configure(&mut config);
    (store, Core::start(parts, config, life))
}

fn users() -> Arc<AuthStore> {
    let config = auth::Config {
        bcrypt_cost: 4,
        ..auth::Config::default()
    };
    Arc::new(AuthStore::new(config).unwrap())
}

// === impl Fake ===

impl Fake {
    fn peer(who: &Credentials, metadata: &MetadataMap) -> (Option<Arc<str>>, MetadataMap) {
        let mut metadata = metadata.clone();
        match who {
            Credentials::Replica => (Some(ROOT.into()), metadata),
            Credentials::Nobody => {
                metadata.insert("token", NOBODY.parse().unwrap());
                (Some(ROOT.into()), metadata)
            }
            // Instead of a token that the replica signs.
            Credentials::User(user) => (Some(Arc::clone(user)), metadata),
            Credentials::Token(token) => {
                metadata.insert("token", token.parse().unwrap());
                (None, metadata)
            }
        }
    }

    /// Notes the call; fails if the upstream is away or takes the token for old.
    fn receive(&self, path: &str, who: &Credentials, metadata: &MetadataMap, message: &Bytes) -> Result<(), Status> {
        if *self.mood.lock() == Mood::Away {
            return Err(not_sent());
        }
        self.sent.lock().push(Sent {
            method: path.rsplit_once('/').unwrap().1.to_owned(),
            who: who.clone(),
            metadata: metadata.clone(),
            message: message.clone(),
        });
        let mut old = self.old.lock();
        if *old > 0 {
            *old -= 1;
            return Err(crate::auth::Error::AuthOldRevision.into());
        }
        Ok(())
    }

    /// The names of the methods that went upstream since the last call.
    pub(super) fn take_sent(&self) -> Vec<String> {
        self.sent.lock().drain(..).map(|sent| sent.method).collect()
    }
}

#[tonic::async_trait]
impl Upstream for Fake {
    async fn index(&self) -> Result<i64, Status> {
        match *self.mood.lock() {
            _ if self.is_doubtful() => Err(crate::server::upstream::cut_off()),
            Mood::Works => Ok(self.store.revision()),
            Mood::Away | Mood::Silent => Err(crate::server::upstream::cut_off()),
        }
    }

    async fn call(
        &self,
        path: &str,
        who: &Credentials,
        metadata: &MetadataMap,
        request: Bytes,
        _: Option<Instant>,
    ) -> Result<Bytes, Status> {
        self.receive(path, who, metadata, &request)?;
        let (user, metadata) = Self::peer(who, metadata);
        let answer = unary(&self.router, path, user, metadata, request).await;
        let silent = *self.mood.lock() == Mood::Silent;
        match silent {
            true => std::future::pending().await,
            false => answer,
        }
    }

    async fn stream(
        &self,
        path: &str,
        who: &Credentials,
        metadata: &MetadataMap,
        requests: BoxStream<'static, Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        self.receive(path, who, metadata, &Bytes::new())?;
        let (user, metadata) = Self::peer(who, metadata);
        let streamed = Arc::clone(&self.streamed);
        let requests = requests.inspect(move |message| streamed.lock().push(message.clone()));
        stream(&self.router, path, user, metadata, requests.boxed()).await
    }

    fn identity(&self) -> UpstreamIdentity {
        UpstreamIdentity {
            cluster_id: CLUSTER,
            raft_term: TERM,
            leader: LEADER,
            version: [3, 6, 16],
        }
    }

    fn judge(&self) -> Judge {
        *self.judge.lock()
    }

    async fn reload_users(&self) -> Result<(), Status> {
        if let Some(replica) = self.replica.get() {
            let mut state = auth::AuthState::clone(&self.auth.state());
            state.users.values_mut().for_each(|user| user.password = None);
            replica.follow(state);
        }
        Ok(())
    }

    fn is_exact(&self) -> bool {
        *self.exact.lock()
    }

    fn is_doubtful(&self) -> bool {
        *self.doubtful.lock()
    }
}

// === impl Bench ===

impl Bench {
    pub(super) fn new() -> Self {
        Self::configured(|_| {})
    }

    /// A bench whose replica has another configuration.
    pub(super) fn configured(configure: impl FnOnce(&mut Config)) -> Self {
        let life = Lifecycle::default();
        let auth = users();
        let (store, core) = serve(&auth, None, |_| {}, &life);
        let upstream = Arc::new(Fake {
            router: core.router(Serve::Grpc),
            core,
            store,
            auth,
            mood: Mutex::new(Mood::Works),
            judge: Mutex::new(Judge::Replica),
            exact: Mutex::new(true),
            doubtful: Mutex::default(),
            sent: Mutex::default(),
            streamed: Arc::default(),
            old: Mutex::default(),
            replica: OnceLock::new(),
        });
        let auth = users();
        upstream.replica.get_or_init(|| Arc::clone(&auth));
        let (store, core) = serve(&auth, Some(Arc::clone(&upstream) as _), configure, &life);
        Self {
            upstream,
            store,
            router: core.router(Serve::All),
            core,
            life,
        }
    }

    /// A bench whose replica follows all the time.
    pub(super) fn following() -> Self {
        let bench = Self::new();
        let (upstream, store) = (Arc::clone(&bench.upstream.core), Arc::clone(&bench.store));
        bench.life.spawn_part("feed", async move {
            let mut visible = upstream.visible.subscribe();
            loop {
                follow(&upstream.store, &store, i64::MAX);
                if visible.changed().await.is_err() {
                    return;
                }
            }
        });
        bench
    }

    /// Takes over what the upstream has, up to a revision.
    pub(super) fn follow_to(&self, revision: i64) {
        follow(&self.upstream.store, &self.store, revision);
    }

    /// Makes the users, turns authentication on, and loads the users here.
    pub(super) async fn enable_auth(&self) {
        self.enable_auth_upstream();
        self.upstream.reload_users().await.unwrap();
    }

    /// Makes the users and turns authentication on, which the replica is not told.
    pub(super) fn enable_auth_upstream(&self) {
        let auth = &self.upstream.auth;
        auth.user_add(ROOT, None).unwrap();
        auth.user_grant_role(ROOT, ROOT).unwrap();
        auth.user_add("kim", Some("secret")).unwrap();
        auth.role_add("k").unwrap();
        let permission = auth::Permission {
            access: auth::Access::ReadWrite,
            key: b"k".to_vec(),
            range_end: b"l".to_vec(),
        };
        auth.role_grant("k", permission).unwrap();
        auth.user_grant_role("kim", "k").unwrap();
        auth.enable().unwrap();
    }

    /// Grants a lease of ten minutes, upstream.
    pub(super) fn upstream_grant(&self, id: i64) {
        self.upstream.core.lessor.grant(id, 600).unwrap();
    }

    /// Makes a call of a client.
    pub(super) async fn call<A: Message + Default>(
        &self,
        client: &Client,
        path: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        let message = request.encode_to_vec().into();
        let answer = unary(
            &self.router,
            path,
            client.user.map(Into::into),
            client.metadata(),
            message,
        )
        .await?;
        Ok(A::decode(answer).unwrap())
    }
}

impl Client {
    pub(super) fn named(user: &'static str) -> Self {
        Self {
            user: Some(user),
            ..Self::default()
        }
    }

    pub(super) fn with_token(token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..Self::default()
        }
    }

    pub(super) fn metadata(&self) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in &self.metadata {
            metadata.insert(*key, value.parse().unwrap());
        }
        if let Some(token) = &self.token {
            metadata.insert("token", token.parse().unwrap());
        }
        metadata
    }
}

fn follow(upstream: &Store, here: &Store, revision: i64) {
    for batch in upstream.batches(here.revision() + 1, 1000) {
        if batch.revision > revision {
            break;
        }
        let events = batch.events.iter().map(|event| Followed {
            kind: event.kind,
            kv: event.kv.clone(),
        });
        here.adopt(batch.revision, events.collect()).unwrap();
    }
}
