//! The mesh page of a process, as a browser or a program asks for it.

use crate::support::files::free_port;
use crate::support::{PATIENCE, http};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A page without TLS.
pub struct Page {
    pub authority: String,
}

/// The events of a live page.
pub struct Events(BufReader<TcpStream>);

impl Page {
    /// A page at a free port, for a process that is started with [`Page::flag`].
    pub fn new() -> Self {
        Self::at(&format!("127.0.0.1:{}", free_port()))
    }

    pub fn at(authority: &str) -> Self {
        Self {
            authority: authority.to_owned(),
        }
    }

    pub fn flag(&self) -> String {
        format!("--ui-addr={}", self.authority)
    }

    pub async fn get(&self, path: &str) -> http::Response {
        http::get(&format!("http://{}{path}", self.authority)).await.unwrap()
    }

    /// The answer of the API.
    pub async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Follows a live page.
    pub async fn follow(&self, path: &str) -> Events {
        let mut stream = TcpStream::connect(&self.authority).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.authority);
        stream.write_all(request.as_bytes()).await.unwrap();
        Events(BufReader::new(stream))
    }
}

impl Page {
    /// Follows a live page; returns the status of the answer, too.
    pub async fn stream(&self, path: &str) -> (u16, Events) {
        let mut events = self.follow(path).await;
        let mut line = String::new();
        timeout(PATIENCE, events.0.read_line(&mut line)).await.unwrap().unwrap();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {line:?}")), events)
    }
}

impl Events {
    /// Waits for an event whose data contains `part`; returns the data, decoded from JSON.
    pub async fn with(&mut self, part: &str) -> Value {
        let find = async {
            loop {
                let mut line = String::new();
                assert!(self.0.read_line(&mut line).await.unwrap() > 0, "the events ended");
                if let Some(data) = line.strip_prefix("data: ").filter(|data| data.contains(part)) {
                    return serde_json::from_str(data).unwrap();
                }
            }
        };
        let found = timeout(PATIENCE, find).await;
        found.unwrap_or_else(|_| panic!("no event contains {part:?}"))
    }
}
