//! `etcd`: the store alone, with etcd's flags. Also what the binary is when it is called `etcd`.

pub mod environment;
pub mod listen;

use super::data::DataArgs;
use super::flags::{Ignored, boolean, duration};
use super::logging::{self, Format};
use crate::app::{Etcd, EtcdConfig, History, certs};
use crate::auth::{self, JwtOptions};
use crate::server::http::Access;
use crate::server::tls::{Protocol, Version};
use crate::server::{self, Identity};
use crate::util::lifecycle::Lifecycle;
use crate::util::net::Keepalive;
use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::time::Duration;

/// Flags of etcd that mean nothing for a single store without Raft and bbolt, or nothing yet.
pub const IGNORED: &[Ignored] = &[
    ("backend-batch-interval", true),
    ("backend-batch-limit", true),
    ("backend-bbolt-freelist-type", true),
    ("bootstrap-defrag-threshold-megabytes", true),
    ("compact-hash-check-enabled", false),
    ("compact-hash-check-time", true),
    ("compaction-batch-limit", true),
    ("compaction-sleep-interval", true),
    ("corrupt-check-time", true),
    ("discovery", true),
    ("discovery-cacert", true),
    ("discovery-cert", true),
    ("discovery-dial-timeout", true),
    ("discovery-endpoints", true),
    ("discovery-fallback", true),
    ("discovery-insecure-skip-tls-verify", false),
    ("discovery-insecure-transport", false),
    ("discovery-keepalive-time", true),
    ("discovery-keepalive-timeout", true),
    ("discovery-key", true),
    ("discovery-password", true),
    ("discovery-proxy", true),
    ("discovery-request-timeout", true),
    ("discovery-srv", true),
    ("discovery-srv-name", true),
    ("discovery-token", true),
    ("discovery-user", true),
    ("distributed-tracing-address", true),
    ("distributed-tracing-instance-id", true),
    ("distributed-tracing-sampling-rate", true),
    ("distributed-tracing-service-name", true),
    ("downgrade-check-time", true),
    ("enable-distributed-tracing", false),
    ("enable-lease-checkpoint", false),
    ("enable-lease-checkpoint-persist", false),
    ("enable-log-rotation", false),
    ("enable-pprof", false),
    ("force-new-cluster", false),
    ("grpc-keepalive-min-time", true),
    ("initial-cluster", true),
    ("initial-cluster-state", true),
    ("initial-cluster-token", true),
    ("initial-corrupt-check", false),
    ("initial-election-tick-advance", false),
    ("listen-peer-urls", true),
    ("log-format", true),
    ("log-rotation-config-json", true),
    ("logger", true),
    ("max-learners", true),
    ("max-snapshots", true),
    ("max-wals", true),
    ("memory-mlock", false),
    ("peer-auto-tls", false),
    ("peer-cert-allowed-cn", true),
    ("peer-cert-allowed-hostname", true),
    ("peer-cert-file", true),
    ("peer-client-cert-auth", false),
    ("peer-client-cert-file", true),
    ("peer-client-key-file", true),
    ("peer-crl-file", true),
    ("peer-key-file", true),
    ("peer-skip-client-san-verification", false),
    ("peer-trusted-ca-file", true),
    ("pre-vote", false),
    ("raft-read-timeout", true),
    ("raft-write-timeout", true),
    ("self-signed-cert-validity", true),
    ("snapshot-catchup-entries", true),
    ("snapshot-count", true),
    ("socket-reuse-address", false),
    ("socket-reuse-port", false),
    ("stop-grpc-service-on-defrag", false),
    ("strict-reconfig-check", false),
    ("txn-mode-write-with-shared-buffer", false),
    ("v2-deprecation", true),
    ("wal-dir", true),
    ("warning-apply-duration", true),
    ("warning-unary-request-duration", true),
];

/// Feature gates of etcd 3.6 and 3.7; none changes anything here.
const FEATURE_GATES: &[&str] = &[
    "AllAlpha",
    "AllBeta",
    "CompactHashCheck",
    "FastLeaseKeepAlive",
    "InitialCorruptCheck",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "PriorityRequest",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
    "TxnModeWriteWithSharedBuffer",
];

/// Flags of `etcd`.
#[derive(Args, Debug)]
pub struct EtcdArgs {
    /// Where and how data is kept.
    #[command(flatten)]
    data: DataArgs,
    /// Answer before anything is on the disk, as with --durability=none
    #[arg(long, env = "ETCD_UNSAFE_NO_FSYNC", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    unsafe_no_fsync: bool,
    /// More URLs for /metrics and health
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
    /// Where to listen for HTTP; then --listen-client-urls is for gRPC alone
    #[arg(long, env = "ETCD_LISTEN_CLIENT_HTTP_URLS", value_delimiter = ',')]
    listen_client_http_urls: Vec<String>,
    /// basic, or extensive: also how long calls take
    #[arg(long, env = "ETCD_METRICS", default_value = "basic", value_parser = ["basic", "extensive"])]
    metrics: String,
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
    /// Client certificates to refuse: a CRL, DER
    #[arg(long, env = "ETCD_CLIENT_CRL_FILE")]
    client_crl_file: Option<PathBuf>,
    /// Names of which client certificates must be for one
    #[arg(long, env = "ETCD_CLIENT_CERT_ALLOWED_HOSTNAME", value_delimiter = ',')]
    client_cert_allowed_hostname: Vec<String>,
    /// Make a certificate, where there is none
    #[arg(long, env = "ETCD_AUTO_TLS", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    auto_tls: bool,
    /// Cipher suites for TLS 1.2; all that are safe if empty
    #[arg(long, env = "ETCD_CIPHER_SUITES", value_delimiter = ',')]
    cipher_suites: Vec<String>,
    /// Lowest TLS version: TLS1.2 or TLS1.3
    #[arg(long, env = "ETCD_TLS_MIN_VERSION")]
    tls_min_version: Option<Version>,
    /// Highest TLS version: TLS1.2 or TLS1.3
    #[arg(long, env = "ETCD_TLS_MAX_VERSION")]
    tls_max_version: Option<Version>,
    /// Whether /v3/ speaks JSON
    #[arg(long, env = "ETCD_ENABLE_GRPC_GATEWAY", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    enable_grpc_gateway: bool,
    /// Origins that browsers may come from
    #[arg(long, env = "ETCD_CORS", default_value = "*", value_delimiter = ',')]
    cors: Vec<String>,
    /// Hosts that HTTP requests without TLS may name
    #[arg(long, env = "ETCD_HOST_WHITELIST", default_value = "*", value_delimiter = ',')]
    host_whitelist: Vec<String>,
    /// What --auto-compaction-retention counts: periodic (time) or revision
    #[arg(long, env = "ETCD_AUTO_COMPACTION_MODE", default_value = "periodic", value_parser = ["periodic", "revision"])]
    auto_compaction_mode: String,
    /// History to keep: a duration, hours, or revisions; 0 keeps all
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0")]
    auto_compaction_retention: String,
    /// Largest write request, in bytes
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = 1_572_864)]
    max_request_bytes: usize,
    /// Most operations in a transaction
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = 128)]
    max_txn_ops: usize,
    /// Bytes to store at most; 0 is 2 GiB, less is no limit
    #[arg(
        long,
        env = "ETCD_QUOTA_BACKEND_BYTES",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    quota_backend_bytes: i64,
    /// Most calls at once on one connection
    #[arg(long, env = "ETCD_MAX_CONCURRENT_STREAMS", default_value_t = u32::MAX)]
    max_concurrent_streams: u32,
    /// A client that says nothing for this long is pinged
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_INTERVAL", default_value = "5m", value_parser = duration)]
    grpc_keepalive_interval: Duration,
    /// A client that does not answer a ping for this long is gone
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = duration)]
    grpc_keepalive_timeout: Duration,
    /// Here only the measure of the shortest lease, which is 1.5 times this, in milliseconds
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = 1000)]
    election_timeout: u32,
    /// Accepted; there are no elections
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", default_value_t = 100)]
    heartbeat_interval: u32,
    /// Features to switch, as Name=true|false; they have no effect
    #[arg(long, env = "ETCD_FEATURE_GATES", value_delimiter = ',')]
    feature_gates: Vec<String>,
    /// How often idle watchers are told how far they are
    #[arg(long, env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "10m", value_parser = duration)]
    watch_progress_notify_interval: Duration,
    /// Kind of auth token: simple, or jwt,sign-method=M,pub-key=FILE,priv-key=FILE,ttl=D
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
    /// stdout, or stderr
    #[arg(long, env = "ETCD_LOG_OUTPUTS", default_value = "default", value_delimiter = ',')]
    log_outputs: Vec<String>,
    /// A file with all settings; flags and variables are ignored then
    #[arg(long, env = "ETCD_CONFIG_FILE")]
    config_file: Option<PathBuf>,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
}

/// How much history to keep, as etcd reads it: a bare number is hours, or revisions.
fn history(mode: &str, retention: &str) -> anyhow::Result<History> {
    if mode == "revision" {
        let keep = retention.parse::<i64>().ok().filter(|n| *n >= 0);
        let keep =
            keep.with_context(|| format!("--auto-compaction-retention={retention}: not a number of revisions"))?;
        return Ok(if keep == 0 {
            History::All
        } else {
            History::Revisions(keep)
        });
    }
    let keep = match retention.parse::<u64>() {
        Ok(hours) => Duration::from_secs(hours * 3600),
        Err(_) => duration(retention).map_err(|e| anyhow::anyhow!("--auto-compaction-retention: {e}"))?,
    };
    Ok(if keep.is_zero() {
        History::All
    } else {
        History::For(keep)
    })
}

/// `simple`, or `jwt,key=value,…`.
fn token(text: &str) -> anyhow::Result<Option<JwtOptions>> {
    let mut parts = text.split(',');
    match parts.next() {
        Some("simple" | "") => return Ok(None),
        Some("jwt") => {}
        _ => bail!("--auth-token={text}: tokens are simple or jwt"),
    }
    let mut options = JwtOptions {
        method: String::new(),
        public: None,
        private: None,
        ttl: Duration::from_secs(300),
    };
    for part in parts {
        match part.split_once('=') {
            Some(("sign-method", method)) => method.clone_into(&mut options.method),
            Some(("pub-key", path)) => options.public = Some(path.into()),
            Some(("priv-key", path)) => options.private = Some(path.into()),
            Some(("ttl", ttl)) => options.ttl = duration(ttl).map_err(|e| anyhow::anyhow!("--auth-token: ttl: {e}"))?,
            _ => bail!("--auth-token={text}: {part:?} is not understood"),
        }
    }
    if options.method.is_empty() {
        bail!("--auth-token={text}: sign-method is missing");
    }
    Ok(Some(options))
}

fn check_gates(gates: &[String]) -> anyhow::Result<()> {
    for gate in gates.iter().filter(|g| !g.is_empty()) {
        let known = gate
            .split_once('=')
            .is_some_and(|(name, value)| FEATURE_GATES.contains(&name) && boolean(value).is_ok());
        if !known {
            bail!("--feature-gates: unrecognized feature gate {gate:?}");
        }
    }
    Ok(())
}

impl EtcdArgs {
    /// Starts logging as etcd does.
    pub fn init_logging(&self) {
        let level = match &*self.log_level {
            // What Go's zap has besides.
            "dpanic" | "panic" | "fatal" => tracing::Level::ERROR,
            level => level.parse().unwrap_or(tracing::Level::INFO),
        };
        let to_stdout = self.log_outputs.iter().any(|o| o == "stdout");
        logging::init(Format::Etcd, level, to_stdout);
    }

    /// Whether only the version is wanted.
    pub fn wants_version(&self) -> bool {
        self.version
    }

    fn tls(&self) -> anyhow::Result<listen::Tls> {
        let mut tls = listen::Tls {
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            ca: self.trusted_ca_file.clone(),
            cert_auth: self.client_cert_auth,
            crl: self.client_crl_file.clone(),
            allowed_hostnames: self
                .client_cert_allowed_hostname
                .iter()
                .filter(|h| !h.is_empty())
                .cloned()
                .collect(),
            protocol: Protocol {
                min: self.tls_min_version,
                max: self.tls_max_version,
                cipher_suites: self.cipher_suites.iter().filter(|s| !s.is_empty()).cloned().collect(),
            },
        };
        if self.auto_tls && tls.cert.is_none() {
            let directory = match &self.data.data_dir {
                Some(directory) => directory.join("fixtures/client"),
                None => format!("{}.etcd/fixtures/client", self.name).into(),
            };
            let made = certs::self_signed(&directory);
            let pair = made.with_context(|| format!("cannot make a certificate in {}", directory.display()))?;
            (tls.cert, tls.key) = (Some(pair.cert), Some(pair.key));
        }
        Ok(tls)
    }

    fn config(&self) -> anyhow::Result<EtcdConfig> {
        let default_url = ["http://localhost:2379"];
        if self.advertise_client_urls.is_empty() && self.listen_client_urls != default_url {
            bail!("--advertise-client-urls is required when --listen-client-urls is set explicitly");
        }
        check_gates(&self.feature_gates)?;
        let tls = self.tls()?;
        let set = |list: &[String]| list.iter().filter(|s| !s.is_empty()).cloned().collect();
        let defaults = server::Config::new(Identity::random());
        Ok(EtcdConfig {
            server: server::Config {
                name: self.name.clone(),
                client_urls: match self.advertise_client_urls.is_empty() {
                    true => self.listen_client_urls.clone(),
                    false => self.advertise_client_urls.clone(),
                },
                peer_urls: self.initial_advertise_peer_urls.clone(),
                max_request_bytes: self.max_request_bytes,
                max_txn_ops: self.max_txn_ops,
                watch_progress_interval: self.watch_progress_notify_interval.max(Duration::from_millis(100)),
                quota_bytes: match self.quota_backend_bytes {
                    0 => defaults.quota_bytes,
                    bytes => bytes,
                },
                keepalive: Keepalive {
                    interval: self.grpc_keepalive_interval,
                    timeout: self.grpc_keepalive_timeout,
                },
                max_concurrent_streams: self.max_concurrent_streams,
                gateway: self.enable_grpc_gateway,
                access: Access {
                    cors: set(&self.cors),
                    hosts: set(&self.host_whitelist),
                },
                extensive_metrics: self.metrics == "extensive",
                ..defaults
            },
            auth: auth::Config {
                jwt: token(&self.auth_token)?,
                token_ttl: Duration::from_secs(self.auth_token_ttl),
                bcrypt_cost: if (4..=31).contains(&self.bcrypt_cost) {
                    self.bcrypt_cost
                } else {
                    10
                },
            },
            // etcd: server/etcdserver/server.go, minLeaseTTL.
            min_lease_ttl_secs: i64::from((self.election_timeout.saturating_mul(3)).div_ceil(2000).max(1)),
            listen: tls.listeners(&self.listen_client_urls)?,
            listen_http: tls.listeners(&self.listen_client_http_urls)?,
            listen_metrics: tls.listeners(&self.listen_metrics_urls)?,
            history: history(&self.auto_compaction_mode, &self.auto_compaction_retention)?,
            data: self.data.config(self.unsafe_no_fsync),
            users_of: None,
        })
    }

    /// Starts the store.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        let etcd = Etcd::start(self.config()?, life).await?;
        for address in &etcd.metrics_addresses {
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
    fn a_bare_retention_is_hours_or_revisions() {
        let periodic = |text| history("periodic", text).unwrap();
        assert_eq!(periodic("1"), History::For(Duration::from_secs(3600)));
        assert_eq!(periodic("30m"), History::For(Duration::from_secs(1800)));
        assert_eq!(periodic("0"), History::All);
        assert!(history("periodic", "soon").is_err());
        assert_eq!(history("revision", "1000").unwrap(), History::Revisions(1000));
        assert!(history("revision", "1h").is_err());
    }

    #[test]
    fn tokens_are_simple_or_jwt() {
        assert!(token("simple").unwrap().is_none());
        let jwt = token("jwt,pub-key=/p,priv-key=/k,sign-method=RS256,ttl=10m")
            .unwrap()
            .unwrap();
        assert_eq!((&*jwt.method, jwt.ttl), ("RS256", Duration::from_secs(600)));
        for wrong in ["paseto", "jwt", "jwt,sign-method=RS256,colour=red"] {
            assert!(token(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_feature_gate_must_exist() {
        assert!(check_gates(&["InitialCorruptCheck=true".to_owned()]).is_ok());
        assert!(check_gates(&["Nonsense=true".to_owned()]).is_err());
        assert!(check_gates(&["LeaseCheckpoint=maybe".to_owned()]).is_err());
    }
}
