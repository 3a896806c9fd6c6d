//! A TLS connection whose state can be looked at when it fails, which is why it is driven by hand.

use super::words;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion};
use std::io::{self, Read, Write};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes read at once.
const PIECE: usize = 16 << 10;
/// Most of an answer that is read.
const ANSWER_MAX: usize = 64 << 10;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server says why.
    #[error("{}", words::tls(.0))]
    Alert(rustls::Error),
    /// This side has a reason.
    #[error("{}", words::tls(.0))]
    Tls(rustls::Error),
    #[error("{}", words::io(.0))]
    Io(#[from] io::Error),
    #[error("EOF")]
    Eof,
    #[error("i/o timeout")]
    TooLate,
}

/// A TLS client on a TCP connection.
pub(super) struct Session {
    connection: Box<ClientConnection>,
    stream: TcpStream,
}

impl Session {
    /// Nothing is sent yet.
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

    /// The version and the cipher suite, as soon as the server has chosen them.
    pub(super) fn negotiated(&self) -> Option<(String, String)> {
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
            ProtocolVersion::TLSv1_2 => "TLS 1.2".to_owned(),
            other => format!("{other:?}"),
        };
        let suite = format!("{:?}", self.connection.negotiated_cipher_suite()?.suite());
        // The registry's name.
        Some((version, suite.replacen("TLS13_", "TLS_", 1)))
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

    /// Sends a request; returns what comes back until it `is_whole`, or until the server ends it.
    pub(super) async fn ask(&mut self, request: &[u8], is_whole: fn(&[u8]) -> bool) -> Result<Vec<u8>, Failure> {
        self.connection.writer().write_all(request)?;
        // A server that has hung up may have left its reason, which counts for more than that it has.
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

    /// Moves what has been decrypted to `answer`.
    fn take(&mut self, answer: &mut Vec<u8>) -> Result<(), Failure> {
        match self.connection.reader().read_to_end(answer) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            // Without a goodbye, which is the next read's to say.
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

    /// Takes what has come; what is left of a record waits for the rest.
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
                // The server should know, too.
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
