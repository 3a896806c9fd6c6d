//! Runs the commands of docs/operations.md about a mesh by hand and its data directory as they are written, but for the ports.

use super::text::Document;
use crate::support::files::{example, free_port};
use crate::support::process::BINARY;
use crate::support::{eventually, http};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The section's ports, and the ports of this run.
struct Ports(Vec<(&'static str, u16)>);

impl Ports {
    fn new() -> Self {
        let ports = ["2379", "3379", "9880", "9881", "9888", "9889", "9890", "9891"];
        Self(ports.map(|port| (port, free_port())).to_vec())
    }

    fn of(&self, port: &str) -> u16 {
        self.0.iter().find(|(known, _)| *known == port).unwrap().1
    }

    /// The command with the ports of this run.
    fn put_into(&self, command: &str) -> String {
        let mut command = command.to_owned();
        for (port, here) in &self.0 {
            for before in [":", "="] {
                command = command.replace(&format!("{before}{port}"), &format!("{before}{here}"));
            }
        }
        command
    }
}

/// A directory in which the commands run, with the program in the path.
struct Shell {
    dir: tempfile::TempDir,
    ports: Ports,
}

/// A process that ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Shell {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(BINARY, dir.path().join("clustermesh-apiserver")).unwrap();
        Self {
            dir,
            ports: Ports::new(),
        }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        let path = std::env::var("PATH").unwrap();
        command
            .args(["-c", &format!("set -eu -o pipefail\n{script}")])
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{path}", self.dir.path().display()))
            .env("EXAMPLES", example("tokyo-cluster").parent().unwrap())
            // The default ports, which the commands of Tokyo do not name.
            .env("CILIUM_HEALTH_PORT", self.ports.of("9880").to_string())
            .env("CILIUM_API_SERVE_ADDR", format!("localhost:{}", self.ports.of("9889")))
            .env("CILIUM_UI_ADDR", format!("localhost:{}", self.ports.of("9890")))
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, script: &str) -> String {
        let output = self.command(&self.ports.put_into(script)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{script}{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    fn start(&self, command: &str) -> Daemon {
        let command = format!("exec {}", self.ports.put_into(command.trim_start()));
        let started = self
            .command(&command)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Daemon(started.unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn document(name: &str) -> Document {
    Document {
        path: name.to_owned(),
        text: super::read(name),
    }
}

/// The blocks of commands of a section.
fn section(name: &str, title: &str) -> Vec<String> {
    let blocks = document(name).shell_blocks();
    let blocks: Vec<_> = blocks.into_iter().filter(|block| block.section == title).collect();
    assert!(!blocks.is_empty(), "{name} has no commands in the section {title:?}");
    blocks.into_iter().map(|block| block.text).collect()
}

/// The only block of a section that begins so.
fn block(name: &str, title: &str, beginning: &str) -> String {
    let mut blocks = section(name, title)
        .into_iter()
        .filter(|block| block.starts_with(beginning));
    let found = blocks
        .next()
        .unwrap_or_else(|| panic!("{name}: no {beginning:?} in {title:?}"));
    assert_eq!(blocks.next(), None);
    found
}

/// The URL in a command of curl.
fn url(command: &str) -> String {
    let word = command
        .split_whitespace()
        .find(|word| word.contains("http://"))
        .unwrap();
    word.trim_matches('\'').replace("localhost", "127.0.0.1")
}

fn has(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let has = found.is_ok_and(|status| status.success());
    if !has {
        eprintln!("{program} is not here: its commands are not run");
    }
    has
}

#[tokio::test]
async fn the_mesh_by_hand_works_as_it_is_written() {
    // Both are in every image of CI.
    if !has("openssl") || !has("bash") {
        return;
    }
    const OPERATIONS: &str = "docs/operations.md";
    let (shell, by_hand) = (Shell::new(), section(OPERATIONS, "A mesh by hand"));
    let [ca, issue, certificates, client_file, hk, tokyo, status] = <[String; 7]>::try_from(by_hand).unwrap();
    shell.run(&format!("{ca}{issue}{certificates}{client_file}"));
    let _hk = shell.start(&hk);
    let tokyo = shell.start(&tokyo);

    let status = format!("{} --host=localhost:9889", status.trim_end());
    let text = eventually("Tokyo mirrors Hong Kong", async || {
        let output = shell.command(&shell.ports.put_into(&status)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("1/1 remote clusters ready").then_some(text)
    })
    .await;
    let operations = super::read(OPERATIONS);
    for line in text.lines().filter(|line| !line.starts_with("   └")) {
        assert!(operations.contains(line), "{OPERATIONS} does not show {line:?}");
    }
    let readyz = url(&shell.ports.put_into(&block(OPERATIONS, "Readiness", "curl ")));
    eventually("Tokyo is ready", async || {
        let answer = http::get(&readyz).await.ok()?;
        (answer.status.as_u16() == 200 && answer.body.ends_with("Ready")).then_some(())
    })
    .await;
    let remotes = url(&shell.ports.put_into(&block("docs/page.md", "The API", "curl ")));
    let remotes: serde_json::Value = serde_json::from_str(&http::get(&remotes).await.unwrap().body).unwrap();
    assert_eq!(remotes[0]["name"], "hk-cluster", "{remotes}");

    let data = |beginning: &str| block(OPERATIONS, "Data directory", beginning);
    shell.run(&data("clustermesh-apiserver snapshot save"));
    assert!(
        shell
            .run(&data("clustermesh-apiserver snapshot status"))
            .contains("TOTAL KEYS")
    );
    let restore = data("clustermesh-apiserver snapshot restore");
    shell.run(&restore.replace("DIR", "restored"));
    drop(tokyo);
    for (directory, key) in [
        ("data", "cilium/state/nodes/v1/tokyo-cluster/"),
        ("restored", "cilium/cache/nodes/v1/hk-cluster/"),
    ] {
        assert!(shell.path(directory).is_dir());
        shell.run(&data("clustermesh-apiserver check").replace("DIR", directory));
        let dump = section(OPERATIONS, "Data directory");
        let dump = dump
            .iter()
            .find(|block| *block == "clustermesh-apiserver dump DIR\n")
            .unwrap();
        assert!(shell.run(&dump.replace("DIR", directory)).contains(key));
        if has("jq") {
            let newest = section(OPERATIONS, "Data directory")
                .into_iter()
                .find(|block| block.contains("| jq"));
            let newest = shell.run(&newest.unwrap().replace("DIR", directory));
            assert!(newest.contains(key) && serde_json::from_str::<serde_json::Value>(&newest).is_ok());
        }
    }
    assert!(Path::new(&shell.path("backup.db")).is_file());
}
