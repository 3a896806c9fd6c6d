//! The mesh page of a process: where it is served, and what it shows.

mod keys;
mod remotes;
mod snapshot;

use super::etcd::Etcd;
use super::metrics::DaemonMetrics;
use crate::admin;
use crate::kvstore::etcd::EtcdBackend;
use crate::kvstore::sync_store::SyncStore;
use crate::model::cluster::ClusterInfo;
use crate::mvcc;
use crate::server::Core;
use crate::server::tls::{TlsConfig, TlsFiles};
use crate::ui::access::{Access, Credentials, Hosts, TokenFile};
use crate::util::http::{self, StillTrusted, Tls};
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use anyhow::{Context, bail};
use keys::{EtcdKeys, OwnKeys};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use snapshot::Process;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// The address of the page unless a flag says another.
pub const ADDRESS: &str = "localhost:9890";
/// Open connections of browsers. Each open page has one, and one more for a moment.
const CONNECTIONS: usize = 512;

/// Where the page is served, and for whom.
#[derive(Clone, Debug, Default)]
pub struct PageConfig {
    /// `None`: [`ADDRESS`], if the port is free. Empty: no page.
    pub address: Option<String>,
    /// With TLS, a request shows the client certificate of an operator, or the token.
    pub tls: Option<TlsFiles>,
    /// A file with the token.
    pub token_file: Option<PathBuf>,
    /// Serve everybody who reaches the address, also without TLS.
    pub is_insecure: bool,
}

/// The process that the page shows.
pub struct Shown {
    pub cluster: ClusterInfo,
    pub subcommand: &'static str,
    pub ready: Ready,
    pub metrics: DaemonMetrics,
    pub store: ShownStore,
    /// The writer of this cluster's keys; `None` without a publisher.
    pub publisher: Option<Arc<SyncStore>>,
}

/// The store that the process writes to.
#[derive(Clone)]
pub enum ShownStore {
    Own {
        store: Arc<mvcc::Store>,
        core: Arc<Core>,
        quota_bytes: Option<usize>,
    },
    Etcd(Arc<EtcdBackend>),
}

/// Serves the page; returns its address, unless there is no page.
pub async fn start_page(config: PageConfig, shown: Shown, life: &Lifecycle) -> anyhow::Result<Option<SocketAddr>> {
    serve(config, shown, life)
        .await
        .context("cannot serve the mesh page (--ui-addr)")
}

async fn serve(config: PageConfig, shown: Shown, life: &Lifecycle) -> anyhow::Result<Option<SocketAddr>> {
    let is_default = config.address.is_none();
    let address = config.address.clone().unwrap_or_else(|| ADDRESS.to_owned());
    if address.is_empty() {
        return Ok(None);
    }
    let access = access(&config, &address, shown.cluster.name.as_str())?;
    if let Some(token) = access
        .credentials
        .as_ref()
        .and_then(|credentials| credentials.token.as_ref())
    {
        // A file that lets nobody in is logged now, and not only when somebody asks.
        token.read().await;
    }
    let tls = match config.tls {
        Some(files) => Some(Arc::new(PageTls(Arc::new(TlsConfig::load(files)?))) as Arc<dyn Tls>),
        None => None,
    };
    let (listener, bound) = match admin::bind(&address).await {
        Ok(bound) => bound,
        // Nobody has asked for this address.
        Err(error) if is_default => {
            tracing::warn!(%error, "the mesh page is not served; --ui-addr chooses another address");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let keys: Arc<dyn crate::ui::Keys> = match &shown.store {
        ShownStore::Own { store, .. } => Arc::new(OwnKeys(Arc::clone(store))),
        ShownStore::Etcd(backend) => Arc::new(EtcdKeys(Arc::clone(backend))),
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let router = crate::ui::router(Arc::new(Process::new(shown)), keys, access, life.clone());
    let options = http::Options {
        tls,
        connections: CONNECTIONS,
    };
    life.spawn("mesh page", http::serve(listener, router, options, life.clone()));
    tracing::info!(url = %format_args!("{scheme}://{bound}/"), "serving the mesh page");
    Ok(Some(bound))
}

/// Who may see the page of `cluster` at `address`.
fn access(config: &PageConfig, address: &str, cluster: &str) -> anyhow::Result<Access> {
    let is_local = is_loopback(address);
    if config.tls.is_none() && !is_local && !config.is_insecure {
        bail!(
            "the mesh page would be open to everybody who reaches {address}: set --ui-cert-file and --ui-key-file, with \
             --ui-trusted-ca-file or --ui-token-file; or --ui-insecure, if something else protects the address"
        );
    }
    if let Some(tls) = &config.tls
        && tls.client_ca.is_none()
        && config.token_file.is_none()
    {
        bail!("nobody could open the mesh page: set --ui-trusted-ca-file for client certificates, or --ui-token-file");
    }
    let asks = config.tls.is_some() || config.token_file.is_some();
    Ok(Access {
        hosts: match config.tls.is_none() && is_local && !config.is_insecure {
            true => Hosts::Loopback,
            false => Hosts::Any,
        },
        credentials: asks.then(|| Credentials {
            cluster: cluster.to_owned(),
            token: config.token_file.clone().map(TokenFile::new),
        }),
    })
}

/// Whether only this machine reaches the address.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The TLS of the files, for HTTP/1 alone.
struct PageTls(Arc<TlsConfig>);

impl Tls for PageTls {
    fn next(&self) -> Arc<ServerConfig> {
        let mut config = (*self.0.next()).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn trust(&self, chain: &[CertificateDer<'_>]) -> StillTrusted {
        Box::new(self.0.trust(chain))
    }
}

// === impl Shown ===

impl Shown {
    /// A process without a publisher.
    pub fn new(
        subcommand: &'static str,
        cluster: ClusterInfo,
        ready: Ready,
        metrics: DaemonMetrics,
        store: ShownStore,
    ) -> Self {
        Self {
            cluster,
            subcommand,
            ready,
            metrics,
            store,
            publisher: None,
        }
    }

    /// The process publishes by this writer, if it has one.
    pub fn publishing(self, publisher: Option<Arc<SyncStore>>) -> Self {
        Self { publisher, ..self }
    }
}

// === impl ShownStore ===

impl ShownStore {
    /// The store of this process.
    pub fn own(etcd: &Etcd) -> Self {
        Self::Own {
            store: Arc::clone(&etcd.store),
            core: Arc::clone(etcd.core()),
            quota_bytes: etcd.quota_bytes(),
        }
    }
}

/// Fails if the page cannot be served as configured, before anything is started.
pub fn check_page(config: &PageConfig) -> anyhow::Result<()> {
    let address = config.address.as_deref().unwrap_or(ADDRESS);
    match address.is_empty() {
        true => Ok(()),
        false => access(config, address, "").map(drop).context("--ui-addr"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str) -> PageConfig {
        PageConfig {
            address: Some(address.to_owned()),
            ..PageConfig::default()
        }
    }

    #[test]
    fn an_open_page_is_served_to_this_machine_only() {
        for local in ["localhost:9890", "127.0.0.1:0", "[::1]:9890"] {
            let access = access(&config(local), local, "tokyo").unwrap();
            assert_eq!(access.hosts, Hosts::Loopback, "{local}");
            assert!(access.credentials.is_none());
        }
        for open in [
            ":9890",
            "0.0.0.0:9890",
            "[::]:9890",
            "10.0.0.1:9890",
            "mesh.example:9890",
        ] {
            let error = check_page(&config(open)).unwrap_err();
            assert!(format!("{error:#}").contains("--ui-cert-file"), "{error:#}");
            let insecure = PageConfig {
                is_insecure: true,
                ..config(open)
            };
            assert_eq!(access(&insecure, open, "tokyo").unwrap().hosts, Hosts::Any);
        }
        assert!(check_page(&config("")).is_ok() && check_page(&PageConfig::default()).is_ok());
    }

    #[test]
    fn a_page_over_tls_asks_for_a_certificate_or_a_token() {
        let tls = |client_ca: Option<PathBuf>| PageConfig {
            tls: Some(TlsFiles {
                cert: "tls.crt".into(),
                key: "tls.key".into(),
                client_ca,
                client_certificates: Default::default(),
                client_crl: None,
                allowed_hostnames: vec![],
                protocol: Default::default(),
            }),
            ..config(":9890")
        };
        assert!(
            access(&tls(Some("ca.crt".into())), ":9890", "tokyo")
                .unwrap()
                .credentials
                .is_some()
        );
        let error = access(&tls(None), ":9890", "tokyo").unwrap_err().to_string();
        assert!(error.contains("--ui-token-file"), "{error}");
    }
}
