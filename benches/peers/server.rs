//! A server under test: started on one core with an empty store, measured through `/proc`, and ended.

use crate::client::{Call, Client};
use anyhow::{Context, bail};
use isthmus::kvstore::config::ClientConfig;
use isthmus::loadtest::Target;
use isthmus::pb::etcdserverpb::RangeRequest;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Limit for a start.
const START: Duration = Duration::from_secs(30);
/// Files of etcd are in memory where that is possible, so that no disk is measured.
const MEMORY: &str = "/dev/shm";

/// A program to compare.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    path: PathBuf,
    is_ours: bool,
}

/// How clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    /// Mutual TLS with keys on the curve P-256.
    Ec,
    /// Mutual TLS with keys of RSA-2048, as Helm makes them.
    Rsa,
}

/// A running server.
pub struct Server {
    process: Child,
    pub authority: String,
    config: ClientConfig,
    /// Whether it is Isthmus.
    pub is_ours: bool,
    /// Its data and certificates.
    _dir: tempfile::TempDir,
}

/// What a process has cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

impl Program {
    pub fn ours(path: PathBuf) -> anyhow::Result<Self> {
        let version = output(&path, &["version"])?;
        let word = |line: &str| {
            line.split_whitespace()
                .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
                .map(str::to_owned)
        };
        let version = version.lines().find_map(word).unwrap_or_default();
        Ok(Self {
            name: format!("Isthmus {version}").trim_end().to_owned(),
            path,
            is_ours: true,
        })
    }

    pub fn etcd(path: PathBuf) -> anyhow::Result<Self> {
        let version = output(&path, &["--version"])?;
        let version = version.lines().find_map(|line| line.strip_prefix("etcd Version: "));
        Ok(Self {
            name: format!("etcd {}", version.unwrap_or("of an unknown version")),
            path,
            is_ours: false,
        })
    }

    /// Starts the program on these cores and waits until it answers.
    pub async fn start(&self, security: Security, cores: Option<&str>) -> anyhow::Result<Server> {
        let base = Path::new(MEMORY);
        let dir = match base.is_dir() {
            true => tempfile::tempdir_in(base),
            false => tempfile::tempdir(),
        };
        let dir = dir.context("cannot create a data directory")?;
        let (port, other) = (free_port()?, free_port()?);
        let authority = format!("127.0.0.1:{port}");
        let scheme = if security == Security::Plain { "http" } else { "https" };
        let url = format!("{scheme}://{authority}");
        let mut args = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            "--quota-backend-bytes=8589934592".to_owned(),
            "--log-level=error".to_owned(),
        ];
        if self.is_ours {
            args.insert(0, "etcd".to_owned());
        } else {
            let peer = format!("http://127.0.0.1:{other}");
            args.extend([
                format!("--data-dir={}", dir.path().join("data").display()),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
            ]);
        }
        let mut config = ClientConfig {
            endpoints: vec![url],
            ..ClientConfig::default()
        };
        if security != Security::Plain {
            args.extend(certify(security, dir.path(), &mut config)?);
        }
        let mut command = match cores {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cores).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        let log = std::fs::File::create(dir.path().join("log"))?;
        let process = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        let mut server = Server {
            process: process.with_context(|| format!("cannot start {}", self.path.display()))?,
            authority,
            config,
            is_ours: self.is_ours,
            _dir: dir,
        };
        server
            .ready(security)
            .await
            .with_context(|| format!("{} does not start", self.name))?;
        Ok(server)
    }
}

impl Server {
    /// Waits until a call is answered or, over TLS, until connections are accepted.
    async fn ready(&mut self, security: Security) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let answered = match security {
                Security::Plain => match Client::connect(&self.authority).await {
                    Ok(client) => {
                        let get = RangeRequest {
                            key: "ready".into(),
                            ..RangeRequest::default()
                        };
                        client.call(Call::Range, &get).await.is_ok()
                    }
                    Err(_) => false,
                },
                _ => tokio::net::TcpStream::connect(&self.authority).await.is_ok(),
            };
            if answered {
                // What follows a start, such as an election and the first garbage collection, is not measured.
                sleep(Duration::from_millis(500)).await;
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self._dir.path().join("log")).unwrap_or_default();
                bail!("ended with {status}: {}", log.lines().last().unwrap_or("no message"));
            }
            if began.elapsed() > START {
                bail!("no answer within {} s", START.as_secs());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Records the stacks of the server into `file`, until the server ends.
    pub fn record(&self, file: &Path) -> anyhow::Result<Child> {
        let mut command = Command::new("perf");
        command.args(["record", "--quiet", "-F", "1499", "--call-graph", "dwarf,8192"]);
        command.arg("-p").arg(self.process.id().to_string()).arg("-o").arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
            .spawn()
            .context("cannot run perf, which is in the package linux-perf of Debian and linux-tools of Ubuntu")
    }

    /// What the server has cost up to now.
    pub fn cost(&self) -> anyhow::Result<Cost> {
        let pid = self.process.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|n| n.parse::<u64>().ok())
                .context("/proc has no CPU time")
        };
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = rss.and_then(|rss| rss.split_whitespace().next()?.parse::<u64>().ok());
        Ok(Cost {
            // A tick is 10 ms on every Linux that Rust supports.
            cpu: Duration::from_millis((ticks(11)? + ticks(12)?) * 10),
            rss: kib.context("/proc has no memory")? << 10,
        })
    }

    /// The server as the load tester wants it.
    pub fn target(&self) -> Target {
        Target {
            users: vec![],
            config: self.config.clone(),
            pid: Some(self.process.id()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if the server has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn output(path: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(path).args(args).output();
    let output = output.with_context(|| format!("cannot run {}: `make peers` builds etcd", path.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Makes a CA and certificates in `dir`. Returns the server's flags, and adds the client's files to `config`.
fn certify(security: Security, dir: &Path, config: &mut ClientConfig) -> anyhow::Result<Vec<String>> {
    let kind: &'static SignatureAlgorithm = match security {
        Security::Rsa => &PKCS_RSA_SHA256,
        _ => &PKCS_ECDSA_P256_SHA256,
    };
    let ca_key = KeyPair::generate_for(kind)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "bench CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, ca_key);
    let ca_file = dir.join("ca.crt");
    std::fs::write(&ca_file, ca.pem())?;
    let issue = |name: &str, usage: ExtendedKeyUsagePurpose| -> anyhow::Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate_for(kind)?;
        let files = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        std::fs::write(&files.0, params.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(&files.1, key.serialize_pem())?;
        Ok(files)
    };
    let (cert, key) = issue("server", ExtendedKeyUsagePurpose::ServerAuth)?;
    let (client_cert, client_key) = issue("agent", ExtendedKeyUsagePurpose::ClientAuth)?;
    config.trusted_ca_file = Some(ca_file.clone());
    (config.cert_file, config.key_file) = (Some(client_cert), Some(client_key));
    Ok(vec![
        format!("--cert-file={}", cert.display()),
        format!("--key-file={}", key.display()),
        format!("--trusted-ca-file={}", ca_file.display()),
        "--client-cert-auth".to_owned(),
    ])
}
