//! `etcd`: the store alone, with etcd's flags. A binary called `etcd` runs this subcommand, too.

pub mod environment;
pub mod listen;
pub mod removed;
mod without_effect;

pub use without_effect::IGNORED;

use super::budgets::BudgetArgs;
use super::data::DataArgs;
use super::flags::{TraceArgs, boolean, duration};
use super::follow::FollowArgs;
use super::logging::{self, Format, Output};
use crate::app::{AutoCompaction, Etcd, EtcdConfig, certs};
use crate::auth::{self, JwtOptions};
use crate::durable;
use crate::server::http::BrowserAccess;
use crate::server::tls::{TlsProtocol, TlsVersion};
use crate::server::{self, MemberIdentity};
use crate::util::lifecycle::Lifecycle;
use crate::util::net::Keepalive;
use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::time::Duration;
use without_effect::FEATURE_GATES;

/// Headings of the help, in etcd's grouping.
mod heading {
    pub const MEMBER: &str = "Member";
    pub const HTTP: &str = "HTTP";
    pub const SECURITY: &str = "Security";
    pub const AUTH: &str = "Authentication";
    pub const LIMITS: &str = "Limits and history";
    pub const REPLICA: &str = "Replica";
    pub const LOGGING: &str = "Logging";
}

/// Flags of `etcd`.
#[derive(Args, Debug)]
pub struct EtcdArgs {
    /// Name of this member.
    #[arg(long, env = "ETCD_NAME", default_value = "default", value_name = "NAME", help_heading = heading::MEMBER)]
    name: String,
    /// URLs to listen on for clients: http, https, unix or unixs, with an IP address or localhost.
    #[arg(long, env = "ETCD_LISTEN_CLIENT_URLS", default_value = "http://localhost:2379", value_delimiter = ',', value_name = "URL,...", help_heading = heading::MEMBER)]
    listen_client_urls: Vec<String>,
    /// Client URLs to report in the member list. Required if --listen-client-urls is set.
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", value_delimiter = ',', value_name = "URL,...", help_heading = heading::MEMBER)]
    advertise_client_urls: Vec<String>,
    /// Peer URLs to report in the member list. Isthmus has no peers, so no socket listens on these URLs.
    #[arg(long, env = "ETCD_INITIAL_ADVERTISE_PEER_URLS", default_value = "http://localhost:2380", value_delimiter = ',', value_name = "URL,...", help_heading = heading::MEMBER)]
    initial_advertise_peer_urls: Vec<String>,
    /// YAML or JSON file with all settings. Other flags and environment variables are then ignored.
    #[arg(long, env = "ETCD_CONFIG_FILE", value_name = "FILE", help_heading = heading::MEMBER)]
    config_file: Option<PathBuf>,
    /// Election timeout in milliseconds. Isthmus holds no elections; the value only sets the shortest lease TTL, 1.5 times this
    /// value.
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = 1000, value_name = "MS", help_heading = heading::MEMBER)]
    election_timeout: u32,
    /// Accepted without effect: there are no elections.
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", default_value_t = 100, value_name = "MS", help_heading = heading::MEMBER)]
    heartbeat_interval: u32,
    /// Feature gates, as Name=true or Name=false. Checked, and otherwise without effect.
    #[arg(long, env = "ETCD_FEATURE_GATES", value_delimiter = ',', value_name = "GATE,...", help_heading = heading::MEMBER)]
    feature_gates: Vec<String>,
    /// Print the version and exit.
    #[arg(long, help_heading = heading::MEMBER)]
    version: bool,
    #[command(flatten)]
    data: DataArgs,
    /// Acknowledge writes before they are on the disk, as --durability=none does.
    #[arg(long, env = "ETCD_UNSAFE_NO_FSYNC", num_args = 0..=1, require_equals = true, help_heading = "Data directory",
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    unsafe_no_fsync: bool,
    /// URLs to serve HTTP on; --listen-client-urls then serve gRPC only.
    #[arg(long, env = "ETCD_LISTEN_CLIENT_HTTP_URLS", value_delimiter = ',', value_name = "URL,...", help_heading = heading::HTTP)]
    listen_client_http_urls: Vec<String>,
    /// URLs to serve only /metrics and the health endpoints on, in addition to the client URLs.
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", value_delimiter = ',', value_name = "URL,...", help_heading = heading::HTTP)]
    listen_metrics_urls: Vec<String>,
    /// Level of detail of the metrics; extensive adds histograms of the duration of calls.
    #[arg(long, env = "ETCD_METRICS", default_value = "basic", value_parser = ["basic", "extensive"], value_name = "LEVEL", help_heading = heading::HTTP)]
    metrics: String,
    /// Serve the gRPC API as JSON under /v3/.
    #[arg(long, env = "ETCD_ENABLE_GRPC_GATEWAY", num_args = 0..=1, require_equals = true, help_heading = heading::HTTP,
          default_missing_value = "true", default_value = "true", value_parser = boolean, action = ArgAction::Set)]
    enable_grpc_gateway: bool,
    /// Origins that browsers accept answers from (CORS); * for any.
    #[arg(long, env = "ETCD_CORS", default_value = "*", value_delimiter = ',', value_name = "ORIGIN,...", help_heading = heading::HTTP)]
    cors: Vec<String>,
    /// Host names that HTTP requests without TLS may be addressed to; * for any.
    #[arg(long, env = "ETCD_HOST_WHITELIST", default_value = "*", value_delimiter = ',', value_name = "HOST,...", help_heading = heading::HTTP)]
    host_whitelist: Vec<String>,
    /// Server certificate with its chain, PEM.
    #[arg(long, env = "ETCD_CERT_FILE", value_name = "FILE", help_heading = heading::SECURITY)]
    cert_file: Option<PathBuf>,
    /// Private key of the server certificate, PEM.
    #[arg(long, env = "ETCD_KEY_FILE", value_name = "FILE", help_heading = heading::SECURITY)]
    key_file: Option<PathBuf>,
    /// CA certificates that client certificates must be signed by, PEM. Makes a client certificate required.
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE", value_name = "FILE", help_heading = heading::SECURITY)]
    trusted_ca_file: Option<PathBuf>,
    /// Require a client certificate, whose common name is the etcd user.
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true, help_heading = heading::SECURITY,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    client_cert_auth: bool,
    /// Revocation list (CRL, DER) of client certificates to refuse.
    #[arg(long, env = "ETCD_CLIENT_CRL_FILE", value_name = "FILE", help_heading = heading::SECURITY)]
    client_crl_file: Option<PathBuf>,
    /// Host names, one of which a client certificate must be valid for.
    #[arg(long, env = "ETCD_CLIENT_CERT_ALLOWED_HOSTNAME", value_delimiter = ',', value_name = "HOST,...", help_heading = heading::SECURITY)]
    client_cert_allowed_hostname: Vec<String>,
    /// Make a self-signed server certificate if --cert-file is not set.
    #[arg(long, env = "ETCD_AUTO_TLS", num_args = 0..=1, require_equals = true, help_heading = heading::SECURITY,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    auto_tls: bool,
    /// Cipher suites of TLS 1.2, by their Go names. Empty: all secure suites.
    #[arg(long, env = "ETCD_CIPHER_SUITES", value_delimiter = ',', value_name = "SUITE,...", help_heading = heading::SECURITY)]
    cipher_suites: Vec<String>,
    /// Lowest TLS version: TLS1.2 or TLS1.3. Defaults to TLS1.2.
    #[arg(long, env = "ETCD_TLS_MIN_VERSION", value_name = "VERSION", help_heading = heading::SECURITY)]
    tls_min_version: Option<TlsVersion>,
    /// Highest TLS version: TLS1.2 or TLS1.3. Defaults to TLS1.3.
    #[arg(long, env = "ETCD_TLS_MAX_VERSION", value_name = "VERSION", help_heading = heading::SECURITY)]
    tls_max_version: Option<TlsVersion>,
    /// Kind of auth token: simple, or jwt,sign-method=METHOD,pub-key=FILE,priv-key=FILE,ttl=DURATION.
    #[arg(long, env = "ETCD_AUTH_TOKEN", default_value = "simple", value_name = "TOKEN", help_heading = heading::AUTH)]
    auth_token: String,
    /// Time after which an unused auth token expires, in seconds.
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", default_value_t = 300, value_name = "SECONDS", help_heading = heading::AUTH)]
    auth_token_ttl: u64,
    /// Cost of bcrypt for password hashes, 4 to 31; each step doubles the time.
    #[arg(long, env = "ETCD_BCRYPT_COST", default_value_t = 10, value_name = "COST", help_heading = heading::AUTH)]
    bcrypt_cost: u32,
    /// Unit of --auto-compaction-retention: periodic (time) or revision (number of revisions).
    #[arg(long, env = "ETCD_AUTO_COMPACTION_MODE", default_value = "periodic", value_parser = ["periodic", "revision"], value_name = "MODE", help_heading = heading::LIMITS)]
    auto_compaction_mode: String,
    /// Revisions to keep when compacting: a duration, a number of hours or, by --auto-compaction-mode, of revisions; 0
    /// disables compaction.
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0", value_name = "RETENTION", help_heading = heading::LIMITS)]
    auto_compaction_retention: String,
    /// Largest size of a request, in bytes.
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = 1_572_864, value_name = "BYTES", help_heading = heading::LIMITS)]
    max_request_bytes: usize,
    /// Largest number of operations in a transaction.
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = 128, value_name = "N", help_heading = heading::LIMITS)]
    max_txn_ops: usize,
    /// Size of the data, in bytes, from which writes are refused and the alarm NOSPACE is raised; 0 for 2 GiB, a
    /// negative number for no quota.
    #[arg(long, env = "ETCD_QUOTA_BACKEND_BYTES", default_value_t = 0, allow_negative_numbers = true, value_name = "BYTES", help_heading = heading::LIMITS)]
    quota_backend_bytes: i64,
    /// Time without traffic after which the server pings a client.
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_INTERVAL", default_value = "5m", value_parser = duration, value_name = "DURATION", help_heading = heading::LIMITS)]
    grpc_keepalive_interval: Duration,
    /// Time without an answer to a ping after which the connection is closed.
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = duration, value_name = "DURATION", help_heading = heading::LIMITS)]
    grpc_keepalive_timeout: Duration,
    /// Interval of progress notifications to idle watchers that asked for them.
    #[arg(long, env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "10m", value_parser = duration, value_name = "DURATION", help_heading = heading::LIMITS)]
    watch_progress_notify_interval: Duration,
    /// Tell a watch that had no message for a third of --auto-compaction-retention, or for 100 seconds, the revision that
    /// it has, so that its client can resume from there after hours. The message has no events. etcd has no such
    /// messages; kube-apiserver would make bookmarks of them.
    #[arg(long, env = "ETCD_PROGRESS_TO_QUIET_WATCHES", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set, help_heading = heading::LIMITS)]
    progress_to_quiet_watches: bool,
    #[command(flatten)]
    follow: FollowArgs,
    /// Age up to which a replica keeps revisions, so that its clients can resume watches and page through lists; 0s keeps
    /// all. Takes the place of --auto-compaction-retention in a replica, and has no effect without --follow.
    #[arg(long, env = "ETCD_HISTORY", default_value = "10m", value_parser = duration, value_name = "DURATION", help_heading = heading::REPLICA)]
    history: Duration,
    /// Bytes of history, that is, of replaced and deleted versions, from which a replica compacts revisions older than 10
    /// seconds although --history keeps them; 0 for no limit. Has an effect with --follow only.
    #[arg(long, env = "ETCD_HISTORY_MAX_BYTES", default_value_t = 256 << 20, value_name = "BYTES", help_heading = heading::REPLICA)]
    history_max_bytes: usize,
    #[command(flatten)]
    budgets: BudgetArgs,
    #[command(flatten)]
    traces: TraceArgs,
    /// Level of the log: debug, info, warn or error.
    #[arg(long, env = "ETCD_LOG_LEVEL", default_value = "info", value_name = "LEVEL", help_heading = heading::LOGGING)]
    log_level: String,
    /// Output of the log: stdout or stderr. Defaults to stderr.
    #[arg(long, env = "ETCD_LOG_OUTPUTS", default_value = "default", value_delimiter = ',', value_name = "OUTPUT,...", help_heading = heading::LOGGING)]
    log_outputs: Vec<String>,
}

/// Parses `--auto-compaction-retention`: a duration or, as a bare number, hours or revisions.
fn auto_compaction(mode: &str, retention: &str) -> anyhow::Result<AutoCompaction> {
    // As in etcd, an empty text means 0.
    let retention = if retention.is_empty() { "0" } else { retention };
    if mode == "revision" {
        let keep = retention.parse::<i64>().ok().filter(|n| *n >= 0);
        let keep =
            keep.with_context(|| format!("--auto-compaction-retention={retention}: not a number of revisions, which --auto-compaction-mode=revision \
                 requires"))?;
        return Ok(match keep {
            0 => AutoCompaction::Off,
            _ => AutoCompaction::Revision(keep),
        });
    }
    let keep = match retention.parse::<u64>() {
        Ok(hours) => Duration::from_secs(hours * 3600),
        Err(_) => duration(retention).map_err(|e| anyhow::anyhow!("--auto-compaction-retention: {e}"))?,
    };
    Ok(match keep.is_zero() {
        true => AutoCompaction::Off,
        false => AutoCompaction::Periodic(keep),
    })
}

/// Parses `--auth-token`: `simple` gives `None`, `jwt,key=value,…` its options.
fn token(text: &str) -> anyhow::Result<Option<JwtOptions>> {
    let mut parts = text.split(',');
    match parts.next() {
        Some("simple" | "") => return Ok(None),
        Some("jwt") => {}
        _ => bail!("--auth-token={text}: the kind of token must be simple or jwt"),
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
            _ => bail!(
                "--auth-token={text}: {part:?} is not one of sign-method=METHOD, pub-key=FILE, priv-key=FILE, ttl=DURATION"
            ),
        }
    }
    if options.method.is_empty() {
        bail!("--auth-token={text}: sign-method is missing: add it, for example sign-method=RS256");
    }
    Ok(Some(options))
}

fn check_gates(gates: &[String]) -> anyhow::Result<()> {
    for gate in gates.iter().filter(|g| !g.is_empty()) {
        let known = gate
            .split_once('=')
            .is_some_and(|(name, value)| FEATURE_GATES.contains(&name) && boolean(value).is_ok());
        if !known {
            bail!(
                "--feature-gates: unrecognized feature gate {gate:?}: expected Name=true or Name=false with a name of {}",
                FEATURE_GATES.join(", ")
            );
        }
    }
    Ok(())
}

impl EtcdArgs {
    /// Starts logging in etcd's format.
    pub fn init_logging(&self) {
        let level = match &*self.log_level {
            // Levels of Go's zap above error.
            "dpanic" | "panic" | "fatal" => tracing::Level::ERROR,
            level => level.parse().unwrap_or(tracing::Level::INFO),
        };
        let output = match self.log_outputs.iter().any(|o| o == "stdout") {
            true => Output::Stdout,
            false => Output::Stderr,
        };
        logging::init(Format::Etcd, level, output);
    }

    /// Whether `--version` was given.
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
            protocol: TlsProtocol {
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
            let pair =
                made.with_context(|| format!("--auto-tls: cannot make a certificate in {}", directory.display()))?;
            (tls.cert, tls.key) = (Some(pair.cert), Some(pair.key));
        }
        Ok(tls)
    }

    fn data_config(&self) -> Option<durable::Config> {
        let mut config = self.data.config()?;
        if self.unsafe_no_fsync {
            config.mode = durable::Mode::None;
        }
        Some(config)
    }

    /// What compacts revisions. The history of a replica is its own choice.
    fn auto_compaction(&self) -> anyhow::Result<AutoCompaction> {
        match (self.follow.is_replica(), self.history.is_zero()) {
            (false, _) => auto_compaction(&self.auto_compaction_mode, &self.auto_compaction_retention),
            (true, true) => Ok(AutoCompaction::Off),
            (true, false) => Ok(AutoCompaction::Periodic(self.history)),
        }
    }

    fn config(&self) -> anyhow::Result<EtcdConfig> {
        let default_url = ["http://localhost:2379"];
        if self.advertise_client_urls.is_empty() && self.listen_client_urls != default_url {
            bail!("--advertise-client-urls is required when --listen-client-urls is set explicitly");
        }
        check_gates(&self.feature_gates)?;
        let tls = self.tls()?;
        let set = |list: &[String]| list.iter().filter(|s| !s.is_empty()).cloned().collect();
        let defaults = server::Config::new(MemberIdentity::random());
        let compaction = self.auto_compaction()?;
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
                quiet_watch_time: self.progress_to_quiet_watches.then(|| compaction.quiet_watch_time()),
                quota_bytes: match self.quota_backend_bytes {
                    0 => defaults.quota_bytes,
                    bytes => bytes,
                },
                keepalive: Keepalive {
                    interval: self.grpc_keepalive_interval,
                    timeout: self.grpc_keepalive_timeout,
                },
                max_concurrent_streams: self.budgets.max_concurrent_streams,
                watch_gather_time: self.budgets.watch_gather_time,
                ping_answer_delay: self.budgets.ping_answer_delay,
                drain_time: self.budgets.drain_time,
                cancel_impossible_watches: self.follow.cancels_impossible_watches(false),
                budgets: self.budgets.budgets(),
                gateway: self.enable_grpc_gateway,
                access: BrowserAccess {
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
            auto_compaction: compaction,
            history_max: (self.follow.is_replica() && self.history_max_bytes > 0).then_some(self.history_max_bytes),
            data: self.data_config(),
            users_of: None,
            follow: self.follow.config(),
        })
    }

    /// Starts the store.
    pub async fn start(self, life: &Lifecycle) -> anyhow::Result<()> {
        self.traces.start("etcd", &self.name, life)?;
        let etcd = Etcd::start(self.config()?, life).await?;
        for address in &etcd.metrics_addresses {
            tracing::info!(%address, "serving metrics and health");
        }
        for address in &etcd.addresses {
            tracing::info!(%address, "serving client traffic");
        }
        tracing::info!("ready to serve client requests");
        Ok(())
    }
}

/// The text of `etcd --version`.
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
        let periodic = |text| auto_compaction("periodic", text).unwrap();
        assert_eq!(periodic("1"), AutoCompaction::Periodic(Duration::from_secs(3600)));
        assert_eq!(periodic("30m"), AutoCompaction::Periodic(Duration::from_secs(1800)));
        assert_eq!(
            (periodic("0"), periodic("")),
            (AutoCompaction::Off, AutoCompaction::Off)
        );
        assert!(auto_compaction("periodic", "soon").is_err());
        assert_eq!(
            auto_compaction("revision", "1000").unwrap(),
            AutoCompaction::Revision(1000)
        );
        assert!(auto_compaction("revision", "1h").is_err());
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
