//! What surrounds a Kubernetes API for a client: TLS, kubeconfigs, proxies.

use crate::support::Tls;
use axum::serve::Listener;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A name that no resolver knows: only a proxy leads to it.
pub const HIDDEN: &str = "api.hidden.test";

/// A self-signed certificate for 127.0.0.1 and [`HIDDEN`], and its key, as files.
pub struct SelfSigned {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl SelfSigned {
    /// As `openssl req -x509 -addext subjectAltName=IP:127.0.0.1` makes one.
    pub fn new(tls: &Tls, is_ca: bool) -> Self {
        let mut params = CertificateParams::new(["127.0.0.1", HIDDEN].map(str::to_owned)).unwrap();
        params.is_ca = match is_ca {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::NoCa,
        };
        let pair = KeyPair::generate().unwrap();
        let (cert, key) = (tls.path("self.crt"), tls.path("self.key"));
        std::fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        Self { cert, key }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let chain = vec![CertificateDer::from_pem_file(&self.cert).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

/// Accepts TLS connections. Connections that fail are dropped.
pub struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    pub async fn new(certificate: &SelfSigned) -> Self {
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            acceptor: certificate.acceptor(),
        }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A kubeconfig for a server.
pub struct Kubeconfig<'a> {
    pub server: &'a str,
    pub ca: Option<&'a SelfSigned>,
    pub proxy: Option<&'a str>,
    /// A command that prints credentials.
    pub plugin: Option<&'a PathBuf>,
}

impl Kubeconfig<'_> {
    pub fn write(&self, tls: &Tls) -> PathBuf {
        let mut cluster = format!("server: {:?}", self.server);
        if let Some(ca) = self.ca {
            cluster += &format!(", certificate-authority: {:?}", ca.cert);
        }
        if let Some(proxy) = self.proxy {
            cluster += &format!(", proxy-url: {proxy:?}");
        }
        let user = self.plugin.map(|plugin| {
            format!(
                "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {plugin:?}, interactiveMode: Never}}"
            )
        });
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{}}}}}]\n",
            user.unwrap_or_default()
        );
        let path = tls.path("kubeconfig");
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// A proxy that leads to one address, whatever target it is asked for.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    /// The targets that clients asked for.
    targets: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// An HTTP proxy.
    pub async fn http(to: SocketAddr) -> Self {
        Self::start(to, async |stream| {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8(head).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            Ok(head.split(' ').nth(1).unwrap().to_owned())
        })
        .await
    }

    /// A SOCKS5 proxy for names.
    pub async fn socks(to: SocketAddr) -> Self {
        Self::start(to, async |stream| {
            let mut greeting = [0; 3];
            stream.read_exact(&mut greeting).await?;
            stream.write_all(&[5, 0]).await?;
            let mut head = [0; 5];
            stream.read_exact(&mut head).await?;
            let mut rest = vec![0; usize::from(head[4]) + 2];
            stream.read_exact(&mut rest).await?;
            stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
            let (name, port) = rest.split_at(rest.len() - 2);
            let port = u16::from_be_bytes(port.try_into().unwrap());
            Ok(format!("{}:{port}", String::from_utf8_lossy(name)))
        })
        .await
    }

    async fn start<F>(to: SocketAddr, greet: F) -> Self
    where
        F: AsyncFn(&mut TcpStream) -> io::Result<String> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            targets: Arc::default(),
        };
        let targets = Arc::clone(&proxy.targets);
        // The tunnels need not be `Send`: one thread drives them all.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let greet = std::rc::Rc::new(greet);
            let std_listener = listener.into_std().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = TcpListener::from_std(std_listener).unwrap();
                loop {
                    let (mut client, _) = listener.accept().await.unwrap();
                    let (greet, targets) = (std::rc::Rc::clone(&greet), Arc::clone(&targets));
                    tokio::task::spawn_local(async move {
                        let Ok(target) = greet(&mut client).await else { return };
                        targets.lock().push(target);
                        let mut server = TcpStream::connect(to).await.unwrap();
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    });
                }
            });
        });
        proxy
    }

    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().clone()
    }
}
