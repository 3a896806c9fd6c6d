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
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Limit for a start, and for that of a replica, which loads everything first.
const START: Duration = Duration::from_secs(30);
const LOAD: Duration = Duration::from_secs(300);
/// Limit for an end.
const END: Duration = Duration::from_secs(30);
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

/// A directory with the certificates of servers that belong together, and with their data. It is removed with the last of them.
pub struct Site {
    dir: tempfile::TempDir,
    security: Security,
    /// Flags of a server.
    tls: Vec<String>,
    /// The files of a client, without endpoints.
    client: ClientConfig,
}

/// What a replica has beside its upstream.
#[derive(Default)]
pub struct Follow<'a> {
    /// The name of its data directory in the site; without one, the replica keeps its copy in memory.
    pub data: Option<&'a str>,
}

/// A running server.
pub struct Server {
    process: Child,
    /// Its address for clients without TLS.
    pub authority: String,
    /// The address for clients of the scenario: with TLS, if the scenario has it.
    config: ClientConfig,
    /// Whether it is Isthmus.
    pub is_ours: bool,
    /// The time from its start to its first answer.
    pub ready_after: Duration,
    site: Arc<Site>,
    log: PathBuf,
}

/// What a process has cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
    /// The most resident memory that the process ever had.
    pub peak: u64,
}

impl Site {
    pub fn new(security: Security) -> anyhow::Result<Arc<Self>> {
        let base = Path::new(MEMORY);
        let dir = match base.is_dir() {
            true => tempfile::tempdir_in(base),
            false => tempfile::tempdir(),
        };
        let dir = dir.context("cannot create a data directory")?;
        let mut client = ClientConfig::default();
        let tls = match security {
            Security::Plain => vec![],
            _ => certify(security, dir.path(), &mut client)?,
        };
        Ok(Arc::new(Self {
            dir,
            security,
            tls,
            client,
        }))
    }
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
        self.start_in(&Site::new(security)?, cores).await
    }

    /// Starts the program with an empty store at a site.
    pub async fn start_in(&self, site: &Arc<Site>, cores: Option<&str>) -> anyhow::Result<Server> {
        let mut args = vec!["--quota-backend-bytes=8589934592".to_owned()];
        if !self.is_ours {
            let peer = format!("http://127.0.0.1:{}", free_port()?);
            args.extend([
                format!("--data-dir={}", site.dir.path().join("data").display()),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
            ]);
        }
        let server = self.launch(site, cores, args, START).await?;
        // What follows a start, such as an election and the first garbage collection, is not measured.
        sleep(Duration::from_millis(500)).await;
        Ok(server)
    }

    /// Starts the program as a replica, and returns as soon as it answers.
    pub async fn follow(&self, upstream: &Server, cores: Option<&str>, with: Follow<'_>) -> anyhow::Result<Server> {
        let site = &upstream.site;
        let file = site.dir.path().join("upstream.yaml");
        std::fs::write(&file, yaml(&upstream.config)).with_context(|| format!("cannot write {}", file.display()))?;
        let mut args = vec![format!("--follow={}", file.display())];
        if let Some(data) = with.data {
            args.push(format!("--data-dir={}", site.dir.path().join(data).display()));
        }
        self.launch(site, cores, args, LOAD).await
    }

    /// Starts the program with listeners for clients with and without TLS, and waits for its first answer.
    async fn launch(
        &self,
        site: &Arc<Site>,
        cores: Option<&str>,
        args: Vec<String>,
        limit: Duration,
    ) -> anyhow::Result<Server> {
        let authority = format!("127.0.0.1:{}", free_port()?);
        let mut urls = vec![format!("http://{authority}")];
        if site.security != Security::Plain {
            urls.push(format!("https://127.0.0.1:{}", free_port()?));
        }
        let mut command = match cores {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cores).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        if self.is_ours {
            command.arg("etcd");
        }
        command.arg(format!("--listen-client-urls={}", urls.join(",")));
        command.arg(format!("--advertise-client-urls={}", urls.join(",")));
        command.arg("--log-level=error").args(&site.tls).args(args);
        let log = site.dir.path().join(format!("{authority}.log"));
        let file = std::fs::File::create(&log)?;
        let began = Instant::now();
        let process = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn();
        let mut server = Server {
            process: process.with_context(|| format!("cannot start {}", self.path.display()))?,
            authority,
            is_ours: self.is_ours,
            config: ClientConfig {
                endpoints: urls.split_off(urls.len() - 1),
                ..site.client.clone()
            },
            ready_after: Duration::ZERO,
            site: Arc::clone(site),
            log,
        };
        server
            .ready(limit)
            .await
            .with_context(|| format!("{} does not start", self.name))?;
        server.ready_after = began.elapsed();
        Ok(server)
    }
}

impl Server {
    /// Waits until a call is answered.
    async fn ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Ok(client) = Client::connect(&self.authority).await {
                let get = RangeRequest {
                    key: "ready".into(),
                    ..RangeRequest::default()
                };
                if client.call(Call::Range, &get).await.is_ok() {
                    return Ok(());
                }
            }
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("ended with {status}: {}", log.lines().last().unwrap_or("no message"));
            }
            if began.elapsed() > limit {
                bail!("no answer within {} s", limit.as_secs());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let mut command = Command::new("kill");
        command.arg(format!("-{name}")).arg(self.process.id().to_string());
        match command.status().context("cannot run kill")?.success() {
            true => Ok(()),
            false => bail!("cannot send SIG{name} to the server"),
        }
    }

    /// Ends the server as an operator does.
    pub async fn end(mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > END {
                bail!("the server did not end within {} s", END.as_secs());
            }
            sleep(Duration::from_millis(20)).await;
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
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
        };
        Ok(Cost {
            // A tick is 10 ms on every Linux that Rust supports.
            cpu: Duration::from_millis((ticks(11)? + ticks(12)?) * 10),
            rss: bytes("VmRSS:").context("/proc has no memory")?,
            peak: bytes("VmHWM:").context("/proc has no memory")?,
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

/// A client's file.
fn yaml(config: &ClientConfig) -> String {
    let mut text = "endpoints:\n".to_owned();
    for endpoint in &config.endpoints {
        let _ = writeln!(text, "- {endpoint}");
    }
    for (name, file) in [
        ("trusted-ca-file", &config.trusted_ca_file),
        ("cert-file", &config.cert_file),
        ("key-file", &config.key_file),
    ] {
        if let Some(file) = file {
            let _ = writeln!(text, "{name}: {}", file.display());
        }
    }
    text
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
