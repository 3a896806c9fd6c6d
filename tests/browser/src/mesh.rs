//! A mirror of remote clusters that a test fills by hand: all of them in one store without TLS.

use crate::process::Process;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The kinds of keys, by their names in keys.
const KINDS: [&str; 6] = [
    "identities",
    "ip",
    "nodes",
    "services",
    "serviceexports",
    "endpointslices",
];

/// A store of remote clusters, and a mirror of them into another store.
pub struct Mesh {
    pub dir: tempfile::TempDir,
    _target: Process,
    remote: Process,
    remote_address: String,
    _mirror: Process,
    /// The page of the mirror.
    pub url: String,
}

async fn store() -> (Process, String) {
    let process = Process::start([
        "etcd",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:1",
    ]);
    let line = process.line("serving client traffic").await;
    let start = line.find("127.0.0.1:").unwrap();
    let is_part = |c: &char| *c == '.' || *c == ':' || c.is_ascii_digit();
    (process, line[start..].chars().take_while(is_part).collect())
}

impl Mesh {
    /// Mirrors the clusters of these names, which have nothing but a configuration yet. Those in `dead` are never reached.
    pub async fn start(names: &[String], dead: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (target, target_address) = store().await;
        let (remote, remote_address) = store().await;
        for name in names {
            client_file(dir.path(), name, &remote_address);
        }
        for name in dead {
            client_file(dir.path(), name, "127.0.0.1:1");
        }
        let mirror = Process::start([
            "kvstoremesh",
            "--cluster-name=here",
            "--cluster-id=511",
            "--max-connected-clusters=511",
            "--health-port=0",
            "--api-serve-addr=",
            "--ui-addr=127.0.0.1:0",
            "--kvstore-opt=etcd.qps=0",
            &format!("--kvstore-opt=etcd.address=http://{target_address}"),
            &format!("--clustermesh-config={}", dir.path().display()),
        ]);
        let url = mirror.url("serving the mesh page").await;
        let url = url.trim_start_matches("url=").trim_matches('"').to_owned();
        let mesh = Self {
            dir,
            _target: target,
            remote,
            remote_address,
            _mirror: mirror,
            url,
        };
        mesh.put("cilium/.heartbeat", "2026-11-28T00:00:00Z").await;
        for (id, name) in names.iter().enumerate() {
            let config = format!(
                r#"{{"id":{},"capabilities":{{"syncedCanaries":true,"maxConnectedClusters":511}}}}"#,
                id + 1
            );
            mesh.put(&format!("cilium/cluster-config/{name}"), &config).await;
            for kind in KINDS {
                mesh.put(&format!("cilium/synced/{name}/cilium/state/{kind}/v1"), "now")
                    .await;
            }
        }
        mesh
    }

    /// Writes a key into the store of the remote clusters, by the JSON gateway.
    pub async fn put(&self, key: &str, value: &str) {
        let body = format!(
            r#"{{"key":"{}","value":"{}"}}"#,
            STANDARD.encode(key),
            STANDARD.encode(value)
        );
        let mut stream = TcpStream::connect(&self.remote_address).await.unwrap();
        let request = format!(
            "POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Kills the store of the remote clusters.
    pub fn kill_remote(self) -> (tempfile::TempDir, Process, Process) {
        drop(self.remote);
        (self.dir, self._target, self._mirror)
    }
}

fn client_file(directory: &Path, name: &str, address: &str) {
    std::fs::write(directory.join(name), format!("endpoints:\n- http://{address}\n")).unwrap();
}
