//! Processes under test.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// A process of Isthmus, which is killed when the value is dropped.
pub struct Process {
    _child: Child,
    input: ChildStdin,
    lines: Arc<Mutex<Vec<String>>>,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Process {
    /// Starts the binary of `ISTHMUS_BIN`.
    pub fn start<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let binary = std::env::var("ISTHMUS_BIN").expect("ISTHMUS_BIN is the binary under test: use `make page`");
        let mut child = Command::new(binary)
            .args(arguments)
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        read(child.stdout.take().unwrap(), &lines);
        read(child.stderr.take().unwrap(), &lines);
        Self {
            input: child.stdin.take().unwrap(),
            _child: child,
            lines,
        }
    }

    /// Waits for a line that contains `part`.
    pub async fn line(&self, part: &str) -> String {
        crate::eventually(&format!("a line contains {part:?}"), async || {
            let lines = self.lines.lock().unwrap();
            lines.iter().find(|line| line.contains(part)).cloned()
        })
        .await
    }

    /// Types a line.
    pub async fn type_line(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The address in the line that contains `part`.
    pub async fn url(&self, part: &str) -> String {
        let line = self.line(part).await;
        let start = line.find("http://").unwrap_or_else(|| panic!("no address in {line:?}"));
        line[start..].split_whitespace().next().unwrap().to_owned()
    }
}

/// Collects the lines of an output.
fn read(output: impl AsyncRead + Send + Unpin + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let (mut output, lines) = (BufReader::new(output).lines(), Arc::clone(lines));
    tokio::spawn(async move {
        while let Ok(Some(line)) = output.next_line().await {
            lines.lock().unwrap().push(line);
        }
    });
}
