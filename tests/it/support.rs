//! Starts the binary, reads its log, and connects to it.

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use isthmus::app::certs::{Ca, Pair};
use parking_lot::{Condvar, Mutex};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::time::Instant;

/// Long enough for a loaded machine; a test that gets there fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running binary.
pub struct Process {
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Process {
    /// Starts the binary with `args`.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(Path::new(env!("CARGO_MANIFEST_DIR")), args)
    }

    pub fn start_in(directory: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"));
        command.args(args).current_dir(directory);
        Self::spawn(command)
    }

    /// Starts the binary with variables in its environment.
    pub fn start_with(variables: &[(&str, &str)], args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"));
        command.args(args).envs(variables.iter().copied());
        Self::spawn(command)
    }

    /// Starts another program, which becomes the binary.
    pub fn command(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(command)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    log.lines.lock().push(line);
                    log.changed.notify_all();
                }
            });
        }
        Self { child, log }
    }

    /// Waits for a line that contains `part`.
    pub fn line(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock();
        loop {
            if let Some(line) = lines.iter().find(|l| l.contains(part)) {
                return line.clone();
            }
            let timed_out = self.log.changed.wait_until(&mut lines, deadline.into_std()).timed_out();
            assert!(!timed_out, "no line with {part:?} in:\n{}", lines.join("\n"));
        }
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.lines.lock().join("\n")
    }

    /// The address in the line that says where clients are served.
    pub fn address(&self) -> String {
        let line = self.line("serving ");
        let at = line
            .find("127.0.0.1:")
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        line[at..]
            .split(|c: char| c != '.' && c != ':' && !c.is_ascii_digit())
            .next()
            .unwrap()
            .to_owned()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for the end; the status, and how long it took.
    pub async fn ended(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < PATIENCE, "still running:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a CA, a server certificate, and clients'.
pub struct Tls {
    pub dir: tempfile::TempDir,
    pub ca: Ca,
    pub server: Pair,
}

impl Tls {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new(&dir.path().join("certs"), "test CA").unwrap();
        let server = ca.server("server").unwrap();
        Self { dir, ca, server }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The flags of a listener that requires client certificates.
    pub fn flags(&self) -> Vec<String> {
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        vec![
            flag("cert-file", &self.server.cert),
            flag("key-file", &self.server.key),
            flag("trusted-ca-file", &self.ca.path()),
            "--client-cert-auth".to_owned(),
            "--listen-client-urls=https://127.0.0.1:0".to_owned(),
        ]
    }

    /// Writes the etcd client file for a connection as `pair`.
    pub fn client_file(&self, path: &Path, address: &str, pair: &Pair) {
        let text = format!(
            "endpoints:\n- https://{address}\ntrusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
            self.ca.path().display(),
            pair.cert.display(),
            pair.key.display()
        );
        std::fs::write(path, text).unwrap();
    }

    /// A client whose certificate says `common_name`.
    pub async fn client(&self, address: &str, common_name: &str) -> Client {
        let pair = self.ca.client(&format!("client-{common_name}"), common_name).unwrap();
        let read = |path: &Path| std::fs::read(path).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(read(&self.ca.path())))
            .identity(Identity::from_pem(read(&pair.cert), read(&pair.key)));
        let options = ConnectOptions::new().with_tls(tls);
        Client::connect([format!("https://{address}")], Some(options))
            .await
            .unwrap()
    }
}

/// Starts `etcd` over TLS, without users: everybody with a certificate may do everything.
pub fn etcd(tls: &Tls, more: &[&str]) -> Process {
    let flags = tls.flags();
    let mut args = vec!["etcd", "--advertise-client-urls=https://127.0.0.1:2379"];
    args.extend(flags.iter().map(String::as_str));
    args.extend(more);
    Process::start(&args)
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Repeats `check` until it gives something.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Copies a directory of manifests.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_dir(&path, &there),
            false => drop(std::fs::copy(&path, there).unwrap()),
        }
    }
}
