//! Fuzzing of all code that decodes bytes from outside. libFuzzer drives the target named by `FUZZ_TARGET`:
//!
//! - `requests`: gRPC requests of every method, against a store that keeps its state between inputs;
//! - `gateway`: the same requests as JSON;
//! - `manifests`: Kubernetes objects as YAML, through the publisher;
//! - `http2`: what a client sends on a connection of HTTP/2 after the preface and its first frame;
//! - `remotes`: client files of remote clusters, etcd's config file, and the cluster configuration that a remote
//!   cluster publishes.

#![no_main]

use axum::body::Body;
use axum::http::Request;
use isthmus::auth::{self, AuthStore};
use isthmus::cli::etcd::environment;
use isthmus::clustermesh::publisher::{Options, Publisher, ServiceMode};
use isthmus::http2::{self, RequestStream};
use isthmus::k8s::manifests;
use isthmus::k8s::types::Kind;
use isthmus::kvstore::config::ClientConfig;
use isthmus::lease::{Lessor, MIN_TTL_SECS};
use isthmus::model::cluster::{ClusterConfig, ClusterInfo};
use isthmus::mvcc::Store;
use isthmus::server::{Config, Core, MemberIdentity, Parts, Serve, Wakers};
use isthmus::util::lifecycle::Lifecycle;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tower::ServiceExt;

/// gRPC methods, with their path below the JSON gateway.
const METHODS: &[(&str, &str)] = &[
    ("/etcdserverpb.KV/Range", "kv/range"),
    ("/etcdserverpb.KV/Put", "kv/put"),
    ("/etcdserverpb.KV/DeleteRange", "kv/deleterange"),
    ("/etcdserverpb.KV/Txn", "kv/txn"),
    ("/etcdserverpb.KV/Compact", "kv/compaction"),
    ("/etcdserverpb.KV/RangeStream", "kv/range"),
    ("/etcdserverpb.Watch/Watch", "watch"),
    ("/etcdserverpb.Lease/LeaseGrant", "lease/grant"),
    ("/etcdserverpb.Lease/LeaseRevoke", "lease/revoke"),
    ("/etcdserverpb.Lease/LeaseKeepAlive", "lease/keepalive"),
    ("/etcdserverpb.Lease/LeaseTimeToLive", "lease/timetolive"),
    ("/etcdserverpb.Cluster/MemberAdd", "cluster/member/add"),
    ("/etcdserverpb.Maintenance/Alarm", "maintenance/alarm"),
    ("/etcdserverpb.Maintenance/HashKV", "maintenance/hashkv"),
    ("/etcdserverpb.Maintenance/Downgrade", "maintenance/downgrade"),
    ("/etcdserverpb.Auth/RoleAdd", "auth/role/add"),
    ("/etcdserverpb.Auth/RoleGrantPermission", "auth/role/grant"),
    ("/etcdserverpb.Auth/RoleRevokePermission", "auth/role/revoke"),
    ("/etcdserverpb.Auth/UserGrantRole", "auth/user/grant"),
    ("/v3lockpb.Lock/Lock", "lock/lock"),
    ("/v3electionpb.Election/Campaign", "election/campaign"),
    ("/v3electionpb.Election/Proclaim", "election/proclaim"),
];

/// Inputs for one store; then a new store begins.
const INPUTS: u32 = 5000;

/// A store with its services and the runtime they live in.
struct Server {
    runtime: tokio::runtime::Runtime,
    router: axum::Router,
    life: Lifecycle,
    inputs: u32,
}

impl Server {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let life = Lifecycle::default();
        let router = runtime.block_on(async {
            let wakers = Wakers::default();
            let store = Store::with_hooks(wakers.hooks());
            let lessor = Arc::new(Lessor::new(Arc::clone(&store), MIN_TTL_SECS));
            let auth = Arc::new(AuthStore::new(auth::Config::default()).expect("simple tokens"));
            let config = Config { quota_bytes: 64 << 20, ..Config::new(MemberIdentity::random()) };
            let parts = Parts { store, lessor, auth, durable: None, upstream: None, wakers };
            Core::start(parts, config, &life).router(Serve::All)
        });
        Self { runtime, router, life, inputs: 0 }
    }

    fn call(&mut self, path: String, kind: &'static str, body: Vec<u8>) {
        self.inputs += 1;
        let request = Request::post(path).header("content-type", kind).body(Body::from(body)).expect("a request");
        let router = self.router.clone();
        self.runtime.block_on(async move {
            let answer = async {
                let Ok(response) = router.oneshot(request).await;
                let _ = axum::body::to_bytes(response.into_body(), usize::MAX).await;
            };
            // Watches, locks and campaigns do not end: only their first steps are tested.
            let _ = tokio::time::timeout(Duration::from_millis(2), answer).await;
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.life.stop();
    }
}

thread_local! {
    static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
}

fn call(data: &[u8], json: bool) {
    let Some((&method, body)) = data.split_first() else { return };
    let (grpc, rest) = METHODS[usize::from(method) % METHODS.len()];
    SERVER.with_borrow_mut(|server| {
        if server.as_ref().is_some_and(|s| s.inputs >= INPUTS) {
            *server = None;
        }
        let server = server.get_or_insert_with(Server::new);
        if json {
            server.call(format!("/v3/{rest}"), "application/json", body.to_vec());
        } else {
            let len = (body.len() as u32).to_be_bytes();
            server.call(grpc.to_owned(), "application/grpc", [&[0], &len[..], body].concat());
        }
    });
}

/// Serves a client that sends `data` and then closes the connection.
fn connect(data: &[u8]) {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let frames = [&settings, data].concat();
    let service = |request: Request<RequestStream>| async {
        let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20).await;
        axum::http::Response::new(Body::from(body.unwrap_or_default()))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let io = tokio::io::join(&frames[..], tokio::io::sink());
        let _ = http2::Connection::new(io, service, Arc::default()).await;
    });
}

fn publish(text: &str) {
    let events = manifests::parse(text);
    for endpoint_slices in [false, true] {
        let mut publisher = Publisher::new(Options {
            cluster: ClusterInfo::new("c1", 1, 255).expect("a valid cluster"),
            default_global_namespace: true,
            endpoint_slices,
            service_exports: true,
            service_mode: ServiceMode::default(),
            probe_interval: Default::default(),
            scope: None,
        });
        let listed = Kind::ALL.iter().map(|kind| isthmus::k8s::events::Event::Listed(*kind));
        for event in events.iter().cloned().chain(listed) {
            publisher.handle(event);
        }
    }
}

fn target() -> &'static str {
    static TARGET: OnceLock<String> = OnceLock::new();
    TARGET.get_or_init(|| std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names what to fuzz"))
}

fuzz_target!(|data: &[u8]| {
    match target() {
        "requests" => call(data, false),
        "gateway" => call(data, true),
        "http2" => connect(data),
        "manifests" => {
            if let Ok(text) = std::str::from_utf8(data) {
                publish(text);
            }
        }
        "remotes" => {
            if let Ok(text) = std::str::from_utf8(data) {
                if let Ok(config) = ClientConfig::parse(text) {
                    let _ = (config.check_aliases(), config.files().count());
                }
                let _ = environment::flags_of(text);
            }
            if let Ok(config) = serde_json::from_slice::<ClusterConfig>(data) {
                let _ = config.to_json();
            }
        }
        other => panic!("FUZZ_TARGET={other}: no such target"),
    }
});
