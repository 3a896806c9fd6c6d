//! `etcd`: the store alone, with etcd's flags. Also what the binary is when it is called `etcd`.

use super::flags::{Ignored, boolean, duration};
use super::logging::{self, Format};
use crate::app::{Etcd, EtcdConfig, ListenConfig};
use crate::auth;
use crate::server::tls::TlsFiles;
use crate::server::{self, Identity};
use crate::util::lifecycle::Lifecycle;
use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::time::Duration;

/// Flags of etcd that mean nothing for a single store in memory, or nothing yet.
pub const IGNORED: &[Ignored] = &[
    ("wal-dir", true),
    ("snapshot-count", true),
    ("heartbeat-interval", true),
    ("election-timeout", true),
    ("initial-election-tick-advance", false),
    ("listen-peer-urls", true),
    ("initial-cluster", true),
    ("initial-cluster-state", true),
    ("initial-cluster-token", true),
    ("pre-vote", false),
    ("strict-reconfig-check", false),
    ("peer-cert-file", true),
    ("peer-key-file", true),
    ("peer-trusted-ca-file", true),
    ("peer-client-cert-auth", false),
    ("peer-auto-tls", false),
    ("max-snapshots", true),
    ("max-wals", true),
    ("logger", true),
    ("log-outputs", true),
    ("log-format", true),
    ("enable-grpc-gateway", false),
    ("metrics", true),
    ("snapshot-catchup-entries", true),
    ("backend-bbolt-freelist-type", true),
    ("backend-batch-interval", true),
    ("backend-batch-limit", true),
    ("corrupt-check-time", true),
    ("compact-hash-check-time", true),
    ("force-new-cluster", false),
    ("unsafe-no-fsync", false),
    ("v2-deprecation", true),
    ("feature-gates", true),
    ("max-learners", true),
    ("auto-compaction-mode", true),
    ("initial-cluster-token", true),
    ("experimental-initial-corrupt-check", false),
    ("downgrade-check-time", true),
    ("memory-mlock", false),
    ("socket-reuse-port", false),
    ("socket-reuse-address", false),
    ("warning-apply-duration", true),
    ("warning-unary-request-duration", true),
    ("enable-pprof", false),
    ("compaction-batch-limit", true),
    ("compaction-sleep-interval", true),
    ("bootstrap-defrag-threshold-megabytes", true),
    ("max-concurrent-streams", true),
    ("grpc-keepalive-min-time", true),
    ("grpc-keepalive-interval", true),
    ("grpc-keepalive-timeout", true),
    ("cors", true),
    ("host-whitelist", true),
];

/// Flags of `etcd`.
#[derive(Args, Debug)]
pub struct EtcdArgs {
    /// Directory for durable data; this version keeps all data in memory
    #[arg(long, env = "ETCD_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// More addresses for /metrics and /health, without TLS
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", value_delimiter = ',')]
    listen_metrics_urls: Vec<String>,
    /// Member name
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    name: String,
    /// Where to listen for clients
    #[arg(
        long,
        env = "ETCD_LISTEN_CLIENT_URLS",
        default_value = "http://localhost:2379",
        value_delimiter = ','
    )]
    listen_client_urls: Vec<String>,
    /// Where clients should connect to
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", value_delimiter = ',')]
    advertise_client_urls: Vec<String>,
    /// Peer URLs to report; nothing listens there
    #[arg(
        long,
        env = "ETCD_INITIAL_ADVERTISE_PEER_URLS",
        default_value = "http://localhost:2380",
        value_delimiter = ','
    )]
    initial_advertise_peer_urls: Vec<String>,
    /// Server certificate
    #[arg(long, env = "ETCD_CERT_FILE")]
    cert_file: Option<PathBuf>,
    /// Server key
    #[arg(long, env = "ETCD_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// CAs of client certificates; with it they are required
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE")]
    trusted_ca_file: Option<PathBuf>,
    /// A client certificate is required, and its common name is the user
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    client_cert_auth: bool,
    /// History to keep: a duration, or hours; 0 keeps all
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0")]
    auto_compaction_retention: String,
    /// Largest write request, in bytes
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = 1_572_864)]
    max_request_bytes: usize,
    /// Most operations in a transaction
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = 128)]
    max_txn_ops: usize,
    /// Storage quota to report, in bytes; 0 is etcd's default
    #[arg(long, env = "ETCD_QUOTA_BACKEND_BYTES", default_value_t = 0)]
    quota_backend_bytes: i64,
    /// How often idle watchers are told how far they are
    #[arg(long, env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "10m", value_parser = duration)]
    watch_progress_notify_interval: Duration,
    /// Kind of auth token: only simple
    #[arg(long, env = "ETCD_AUTH_TOKEN", default_value = "simple")]
    auth_token: String,
    /// Life of an unused auth token, in seconds
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", default_value_t = 300)]
    auth_token_ttl: u64,
    /// Cost of hashing passwords
    #[arg(long, env = "ETCD_BCRYPT_COST", default_value_t = 10)]
    bcrypt_cost: u32,
    /// debug, info, warn or error
    #[arg(long, env = "ETCD_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
}

/// Shared TLS and address flags of a client listener: URLs → listeners.
pub fn listeners(
    urls: &[String],
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
    ca: Option<&PathBuf>,
    cert_auth: bool,
) -> anyhow::Result<Vec<ListenConfig>> {
    let tls = || match (cert, key) {
        (Some(cert), Some(key)) => {
            if cert_auth && ca.is_none() {
                bail!("--client-cert-auth needs --trusted-ca-file");
            }
            Ok(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: ca.cloned(),
            })
        }
        _ => bail!("an https URL needs --cert-file and --key-file"),
    };
    let listen = |url: &String| {
        let (secure, address) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(address), _) => (true, address),
            (None, Some(address)) => (false, address),
            (None, None) => bail!("{url:?} is not an http or https URL"),
        };
        let port = address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(_))) {
            bail!("{url:?} has no port");
        }
        let tls = if secure {
            Some(tls().with_context(|| format!("cannot listen on {url}"))?)
        } else {
            None
        };
        Ok(ListenConfig {
            address: address.to_owned(),
            tls,
            cert_auth: cert_auth && secure,
        })
    };
    urls.iter().map(listen).collect()
}

/// A retention as etcd reads it: a bare number is hours.
fn retention(text: &str) -> anyhow::Result<Option<Duration>> {
    let keep = match text.parse::<u64>() {
        Ok(hours) => Duration::from_secs(hours * 3600),
        Err(_) => duration(text).map_err(|e| anyhow::anyhow!("--auto-compaction-retention: {e}"))?,
    };
    Ok((!keep.is_zero()).then_some(keep))
}

impl EtcdArgs {
    /// Starts logging as etcd does.
    pub fn init_logging(&self) {
        let level = self.log_level.parse().unwrap_or(tracing::Level::INFO);
        logging::init(Format::Etcd, level, false);
    }

    /// Whether only the version is wanted.
    pub fn wants_version(&self) -> bool {
        self.version
    }

    /// Starts the store.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        if self.advertise_client_urls.is_empty() && self.listen_client_urls != ["http://localhost:2379"] {
            bail!("--advertise-client-urls is required when --listen-client-urls is set explicitly");
        }
        if self.auth_token != "simple" {
            bail!("--auth-token={}: only simple tokens are supported", self.auth_token);
        }
        if let Some(directory) = &self.data_dir {
            tracing::warn!(data_dir = %directory.display(), "this version keeps all data in memory: nothing is written there");
        }
        let (cert, key, ca) = (
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
            self.trusted_ca_file.as_ref(),
        );
        let listen = listeners(&self.listen_client_urls, cert, key, ca, self.client_cert_auth)?;
        let defaults = server::Config::new(Identity::random());
        let config = EtcdConfig {
            server: server::Config {
                name: self.name,
                client_urls: match self.advertise_client_urls.is_empty() {
                    true => self.listen_client_urls,
                    false => self.advertise_client_urls,
                },
                peer_urls: self.initial_advertise_peer_urls,
                max_request_bytes: self.max_request_bytes,
                max_txn_ops: self.max_txn_ops,
                watch_progress_interval: self.watch_progress_notify_interval.max(Duration::from_millis(100)),
                quota_bytes: if self.quota_backend_bytes == 0 {
                    defaults.quota_bytes
                } else {
                    self.quota_backend_bytes
                },
                ..defaults
            },
            auth: auth::Config {
                jwt: None,
                token_ttl: Duration::from_secs(self.auth_token_ttl),
                bcrypt_cost: if (4..=31).contains(&self.bcrypt_cost) {
                    self.bcrypt_cost
                } else {
                    10
                },
            },
            listen,
            keep_history: retention(&self.auto_compaction_retention)?,
            users_of: None,
        };
        let metrics = self.listen_metrics_urls.iter().map(|url| {
            let address = url.strip_prefix("http://").map(|a| a.trim_end_matches('/').to_owned());
            address.with_context(|| format!("--listen-metrics-urls={url}: only http URLs are supported"))
        });
        let metrics = metrics.collect::<anyhow::Result<Vec<_>>>()?;
        let etcd = Etcd::start(config, life).await?;
        for address in metrics {
            let address = etcd.start_metrics(&address, life).await?;
            tracing::info!(%address, "metrics are here");
        }
        for address in &etcd.addresses {
            tracing::info!(%address, "serving client traffic");
        }
        tracing::info!("ready to serve client requests");
        Ok(())
    }
}

/// What `etcd --version` prints.
pub fn version() -> String {
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    format!(
        "etcd Version: {}\nGit SHA: isthmus-{}\nGo Version: none (Rust)\nGo OS/Arch: {os}/{arch}",
        server::ETCD_VERSION,
        env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_retention_is_hours() {
        assert_eq!(retention("1").unwrap(), Some(Duration::from_secs(3600)));
        assert_eq!(retention("30m").unwrap(), Some(Duration::from_secs(1800)));
        assert_eq!(retention("0").unwrap(), None);
        assert!(retention("soon").is_err());
    }

    #[test]
    fn urls_must_be_complete() {
        let ok = |url: &str| listeners(&[url.to_owned()], None, None, None, false);
        assert!(ok("http://127.0.0.1:2379").is_ok());
        for (url, why) in [
            ("127.0.0.1:2379", "not an http"),
            ("http://localhost", "no port"),
            ("https://x:1", "--cert-file"),
        ] {
            assert!(format!("{:#}", ok(url).unwrap_err()).contains(why), "{url}");
        }
    }
}
