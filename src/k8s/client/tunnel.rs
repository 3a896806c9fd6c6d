//! The first messages on a connection to a proxy, after which the connection leads to the target: HTTP's CONNECT, or
//! SOCKS version 5 (RFC 1928, RFC 1929).

use base64::Engine;
use std::io;
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest head of an answer to CONNECT, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// Why a proxy does not lead to the target.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the proxy requires a user and a password, or refuses them")]
    Credentials,
    /// The first line of the answer.
    #[error("the proxy answered {0:?}")]
    Refused(String),
    #[error("the proxy answered with SOCKS error {0}")]
    Socks(String),
    #[error("the answer is not that of a SOCKS5 proxy")]
    NoSocks,
    #[error("a name, a user or a password has more than 255 bytes")]
    TooLong,
}

/// A target behind a proxy.
pub(super) struct Target<'a> {
    /// A name or an address, without brackets.
    pub(super) host: &'a str,
    pub(super) port: u16,
}

/// Asks an HTTP proxy for a tunnel.
pub(super) async fn connect<S>(
    stream: &mut S,
    Target { host, port }: Target<'_>,
    credentials: Option<&(String, String)>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let authority = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some((user, password)) = credentials {
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        request += &format!("Proxy-Authorization: Basic {encoded}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes()).await?;
    // Bytes after the head belong to the target, so the head is read byte by byte; the kernel has the rest.
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let line = head.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some(code) if code.len() == 3 && code.starts_with('2') && line.starts_with("HTTP/1.") => Ok(()),
        Some("407") => Err(Error::Credentials),
        _ => Err(Error::Refused(line.chars().take(100).collect())),
    }
}

/// Asks a SOCKS5 proxy for a tunnel. The proxy resolves names.
pub(super) async fn socks<S>(
    stream: &mut S,
    Target { host, port }: Target<'_>,
    credentials: Option<&(String, String)>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let methods: &[u8] = match credentials {
        Some(_) => &[5, 2, 0, 2],
        None => &[5, 1, 0],
    };
    stream.write_all(methods).await?;
    match (read(stream).await?, credentials) {
        ([5, 0], _) => {}
        ([5, 2], Some((user, password))) => {
            let mut message = vec![1];
            append(&mut message, user)?;
            append(&mut message, password)?;
            stream.write_all(&message).await?;
            if read(stream).await? != [1, 0] {
                return Err(Error::Credentials);
            }
        }
        ([5, _], _) => return Err(Error::Credentials),
        _ => return Err(Error::NoSocks),
    }
    let mut request = vec![5, 1, 0];
    match host.parse() {
        Ok(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend(ip.octets());
        }
        Ok(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend(ip.octets());
        }
        Err(_) => {
            request.push(3);
            append(&mut request, host)?;
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    let [version, code, _, kind] = read(stream).await?;
    if version != 5 {
        return Err(Error::NoSocks);
    }
    if code != 0 {
        return Err(Error::Socks(failure(code)));
    }
    // The address that the proxy connects from.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await?),
        _ => return Err(Error::NoSocks),
    };
    stream.read_exact(&mut vec![0; length + 2]).await?;
    Ok(())
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Appends a text behind its length.
fn append(message: &mut Vec<u8>, text: &str) -> Result<(), Error> {
    message.push(u8::try_from(text.len()).map_err(|_| Error::TooLong)?);
    message.extend(text.as_bytes());
    Ok(())
}

fn failure(code: u8) -> String {
    let text = match code {
        1 => "general failure",
        2 => "not allowed",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        _ => "unknown",
    };
    format!("{code} ({text})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target<'static> = Target {
        host: "api.example",
        port: 6443,
    };

    fn ann() -> (String, String) {
        ("ann".to_owned(), "secret".to_owned())
    }

    /// Runs `dial` against a proxy that reads and writes these bytes in turn.
    async fn against<T>(
        script: &[(&[u8], &[u8])],
        dial: impl AsyncFnOnce(tokio::io::DuplexStream) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (near, mut far) = tokio::io::duplex(1024);
        let proxy = async move {
            for (expected, answer) in script {
                let mut got = vec![0; expected.len()];
                far.read_exact(&mut got).await.unwrap();
                assert_eq!(got, *expected);
                far.write_all(answer).await.unwrap();
            }
            far
        };
        let (done, _far) = tokio::join!(dial(near), proxy);
        done
    }

    async fn connect_against(answer: &str) -> Result<(), Error> {
        let request = b"CONNECT api.example:6443 HTTP/1.1\r\nHost: api.example:6443\r\n\r\n";
        let script: [(&[u8], &[u8]); 1] = [(request, answer.as_bytes())];
        against(&script, async |mut s| connect(&mut s, TARGET, None).await).await
    }

    #[tokio::test]
    async fn an_http_proxy_is_asked_for_a_tunnel() {
        connect_against("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
            .await
            .unwrap();
        for (answer, error) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "requires a user"),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 403 Forbidden"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "SSH-2.0-OpenSSH"),
        ] {
            let got = connect_against(answer).await.unwrap_err().to_string();
            assert!(got.contains(error), "{got}");
        }
        let request = b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\nProxy-Authorization: Basic YW5uOnNlY3JldA==\r\n\r\n";
        let script: [(&[u8], &[u8]); 1] = [(request, b"HTTP/1.0 200 OK\r\n\r\nrest")];
        let rest = against(&script, async |mut stream| {
            let target = Target {
                host: "fd00::1",
                port: 443,
            };
            connect(&mut stream, target, Some(&ann())).await?;
            read::<4>(&mut stream).await
        });
        assert_eq!(&rest.await.unwrap(), b"rest", "bytes after the head are the target's");
    }

    #[tokio::test]
    async fn a_socks_proxy_is_asked_for_a_tunnel() {
        let by_name: &[u8] = b"\x05\x01\x00\x03\x0bapi.example\x19\x2b";
        let done: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let script: [(&[u8], &[u8]); 2] = [(&[5, 1, 0], &[5, 0]), (by_name, done)];
        against(&script, async |mut s| socks(&mut s, TARGET, None).await)
            .await
            .unwrap();
        let script: [(&[u8], &[u8]); 3] = [
            (&[5, 2, 0, 2], &[5, 2]),
            (b"\x01\x03ann\x06secret", &[1, 0]),
            (by_name, &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
        ];
        let refused = against(&script, async |mut s| socks(&mut s, TARGET, Some(&ann())).await).await;
        assert!(refused.unwrap_err().to_string().contains("connection refused"));
        let script: [(&[u8], &[u8]); 1] = [(&[5, 1, 0], &[5, 0xff])];
        let refused = against(&script, async |mut s| socks(&mut s, TARGET, None).await).await;
        assert!(matches!(refused, Err(Error::Credentials)));
        let script: [(&[u8], &[u8]); 1] = [(&[5, 1, 0], b"HT")];
        let refused = against(&script, async |mut s| socks(&mut s, TARGET, None).await).await;
        assert!(matches!(refused, Err(Error::NoSocks)));
    }
}
