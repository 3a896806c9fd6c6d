//! A TLS connection that is driven step by step, so that its state can be inspected when it fails.

use super::words;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion};
use std::io::{self, Read, Write};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Size of one read, in bytes.
const PIECE: usize = 16 << 10;
/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 << 10;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server sent an alert.
    #[error("{}", words::tls(.0))]
    Alert(rustls::Error),
    /// The client refused the server.
    #[error("{}", words::tls(.0))]
    Tls(rustls::Error),
    #[error("{}", words::io(.0))]
    Io(#[from] io::Error),
    #[error("EOF")]
    Eof,
    #[error("i/o timeout")]
    TooLate,
}

/// The parameters of a connection.
pub(super) struct Negotiated {
    pub(super) version: String,
    pub(super) suite: String,
}

/// A TLS client on a TCP connection.
pub(super) struct Session {
    connection: Box<ClientConnection>,
    stream: TcpStream,
}

impl Session {
    /// Prepares a session. Sends nothing yet.
    pub(super) fn new(
        config: ClientConfig,
        name: ServerName<'static>,
        stream: TcpStream,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: Box::new(ClientConnection::new(Arc::new(config), name)?),
            stream,
        })
    }

    /// The version and the cipher suite, once the server has chosen them.
    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
            ProtocolVersion::TLSv1_2 => "TLS 1.2".to_owned(),
            other => format!("{other:?}"),
        };
        let suite = format!("{:?}", self.connection.negotiated_cipher_suite()?.suite());
        // The IANA name, which Go prints.
        let suite = suite.replacen("TLS13_", "TLS_", 1);
        Some(Negotiated { version, suite })
    }

    pub(super) async fn handshake(&mut self) -> Result<(), Failure> {
        while self.connection.is_handshaking() {
            self.send().await?;
            if self.connection.is_handshaking() {
                self.receive().await?;
            }
        }
        self.send().await
    }

    /// Sends a request. Returns the answer as soon as it `is_whole`, or when the server closes the connection.
    pub(super) async fn ask(&mut self, request: &[u8], is_whole: fn(&[u8]) -> bool) -> Result<Vec<u8>, Failure> {
        self.connection.writer().write_all(request)?;
        // A server that closed the connection may have sent an alert before, which says more than the failed write.
        let sent = self.send().await;
        let mut answer = vec![];
        while !is_whole(&answer) && answer.len() < ANSWER_MAX {
            let received = self.receive().await;
            self.take(&mut answer)?;
            match received {
                Ok(()) => {}
                Err(Failure::Eof | Failure::Io(_)) if !answer.is_empty() => break,
                Err(Failure::Eof | Failure::Io(_)) if sent.is_err() => return sent.map(|()| answer),
                Err(failure) => return Err(failure),
            }
        }
        Ok(answer)
    }

    /// Appends the decrypted bytes to `answer`.
    fn take(&mut self, answer: &mut Vec<u8>) -> Result<(), Failure> {
        match self.connection.reader().read_to_end(answer) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            // The server closed the connection without `close_notify`. The next read reports the end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn send(&mut self) -> Result<(), Failure> {
        let mut bytes = vec![];
        while self.connection.wants_write() {
            self.connection.write_tls(&mut bytes)?;
        }
        Ok(self.stream.write_all(&bytes).await?)
    }

    /// Reads once and processes the complete records; the rest stays buffered.
    async fn receive(&mut self) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        let n = self.stream.read(&mut piece).await?;
        if n == 0 {
            return Err(Failure::Eof);
        }
        let mut rest = &piece[..n];
        while !rest.is_empty() {
            self.connection.read_tls(&mut rest)?;
            if let Err(error) = self.connection.process_new_packets() {
                // Sends the client's alert to the server.
                let _ = self.send().await;
                return Err(match error {
                    rustls::Error::AlertReceived(_) => Failure::Alert(error),
                    error => Failure::Tls(error),
                });
            }
        }
        Ok(())
    }
}
