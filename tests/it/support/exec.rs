//! Executes commands in pods as a Kubernetes API does: over a WebSocket, with the answers of a script.

use axum::extract::Request;
use axum::response::Response;
use futures::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The protocol that kubelets speak since Kubernetes 1.29.
const PROTOCOL: &str = "v5.channel.k8s.io";
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;

/// A request to execute a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    pub pod: String,
    pub container: String,
    /// The words of the command, separated by spaces.
    pub command: String,
}

/// What the command does.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Prints this, and succeeds.
    Prints(String),
    /// Prints this on stderr, and fails with this exit code.
    Fails(String, i32),
    /// Never ends.
    Hangs,
    /// The connection ends without a status.
    Breaks,
}

impl Execution {
    /// The execution that `request` asks for, if its path is that of a pod's `exec`.
    pub fn of(request: &Request) -> Option<Self> {
        let pod = request
            .uri()
            .path()
            .strip_suffix("/exec")?
            .rsplit('/')
            .next()?
            .to_owned();
        let query = request.uri().query().unwrap_or_default();
        let values = |name: &str| -> Vec<String> {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| decoded(value))
                .collect()
        };
        Some(Self {
            pod,
            container: values("container").join(""),
            command: values("command").join(" "),
        })
    }
}

/// A value of a query without its escapes.
fn decoded(value: &str) -> String {
    let mut bytes = vec![];
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let escaped = (byte == b'%').then(|| [rest.next().unwrap(), rest.next().unwrap()]);
        bytes.push(match (byte, escaped) {
            (_, Some(digits)) => u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap(),
            (b'+', None) => b' ',
            (other, None) => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// Upgrades the connection of `request` and plays `reply` on it.
pub fn answer(mut request: Request, reply: Reply) -> Response {
    let key = request.headers()["sec-websocket-key"].as_bytes().to_vec();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = TokioIo::new(upgrade.await.unwrap());
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
        // A client that gave up has closed the connection.
        let _ = play(socket, reply).await;
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", derive_accept_key(&key))
        .header("sec-websocket-protocol", PROTOCOL)
        .body(axum::body::Body::empty())
        .unwrap()
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn play(mut socket: Socket, reply: Reply) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let (out, status) = match reply {
        Reply::Prints(text) => ((STDOUT, text), json!({"status": "Success"})),
        Reply::Fails(text, code) => ((STDERR, text), failed(code)),
        Reply::Hangs => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            return Ok(());
        }
        Reply::Breaks => return socket.close(None).await,
    };
    // As a kubelet does, in pieces.
    for piece in out.1.as_bytes().chunks(32 << 10) {
        socket.send(frame(out.0, piece)).await?;
    }
    socket.send(frame(STATUS, status.to_string().as_bytes())).await?;
    socket.close(None).await?;
    // Reads until the client has closed the connection, too: what is sent must arrive.
    while socket.next().await.is_some_and(|message| message.is_ok()) {}
    Ok(())
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

fn failed(code: i32) -> Value {
    json!({"status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with exit code {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}
