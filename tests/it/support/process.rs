//! The binary under test: run to its end, or started, observed through its log, signalled and awaited.

use crate::support::PATIENCE;
pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// The path of the binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_clustermesh-apiserver");

/// A command line of the binary that has not been started yet.
pub struct CommandLine(Command);

/// Begins a command line with `arguments`. Relative paths in it are relative to the repository's root. Unless a flag says
/// otherwise, the process serves no mesh page, since all processes have the same default, and writes no probe, so that a
/// store in which nothing happens does not change.
pub fn isthmus<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> CommandLine {
    let mut command = Command::new(BINARY);
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
        .env("CILIUM_UI_ADDR", "")
        .env("CILIUM_PROPAGATION_PROBE_INTERVAL", "0");
    CommandLine(command)
}

/// The result of a command that ran to its end.
pub struct Finished {
    /// `None` if a signal ended the command.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Both outputs, standard output first.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl CommandLine {
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.0.arg(argument);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.0.args(arguments);
        self
    }

    /// Runs another build of the binary.
    pub fn program(self, program: &str) -> Self {
        let mut command = Command::new(program);
        command.args(self.0.get_args()).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.envs(self.0.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self(command)
    }

    /// Calls the program by another name.
    pub fn called(mut self, name: &str) -> Self {
        self.0.arg0(name);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Makes relative paths relative to this directory.
    pub fn current_dir(mut self, directory: &Path) -> Self {
        self.0.current_dir(directory);
        self
    }

    /// Runs the command to its end and blocks meanwhile.
    pub fn run(mut self) -> Finished {
        let output = self.0.stdin(Stdio::null()).output().unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts the command as a process of its own.
    pub fn start(self) -> Process {
        Process::spawn(self.0)
    }
}

/// A running process. It is killed, and its end awaited, when the value is dropped.
pub struct Process {
    pid: Pid,
    state: watch::Receiver<State>,
    waiter: Option<JoinHandle<()>>,
}

/// The known state of a process.
#[derive(Default)]
struct State {
    /// The lines of both outputs, in the order of their arrival.
    lines: Vec<String>,
    /// Set after the process has ended and its last line has been read.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command whose outputs become the log.
    pub fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let (sender, state) = watch::channel(State::default());
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        let readers = outputs.map(|output| {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    sender.send_modify(|state| state.lines.push(line));
                }
            })
        });
        let waiter = thread::spawn(move || {
            let status = child.wait().unwrap();
            for reader in readers {
                reader.join().unwrap();
            }
            sender.send_modify(|state| state.ended = Some(status));
        });
        Self {
            pid,
            state,
            waiter: Some(waiter),
        }
    }

    pub fn id(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for a line that contains `part`, earlier lines included.
    pub async fn line(&self, part: &str) -> String {
        self.line_with_any(&[part]).await
    }

    /// Waits for a line that contains one of `parts`, earlier lines included.
    async fn line_with_any(&self, parts: &[&str]) -> String {
        let mut state = self.state.clone();
        let matches = |line: &&String| parts.iter().any(|part| line.contains(part));
        let found = |state: &State| state.lines.iter().find(matches).cloned();
        let wait = state.wait_for(|state| found(state).is_some() || state.ended.is_some());
        if let Ok(Ok(state)) = timeout(PATIENCE, wait).await
            && let Some(line) = found(&state)
        {
            return line;
        }
        panic!("no line contains any of {parts:?} in:\n{}", self.log());
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.state.borrow().lines.join("\n")
    }

    /// The address on which clients are served, from the line that announces it.
    pub async fn address(&self) -> String {
        let line = self
            .line_with_any(&["serving etcd clients", "serving client traffic"])
            .await;
        let start = line
            .find("127.0.0.1:")
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        let is_part = |c: char| c == '.' || c == ':' || c.is_ascii_digit();
        line[start..].chars().take_while(|c| is_part(*c)).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// Waits for the end of the process.
    pub async fn ended(&self) -> ExitStatus {
        self.ended_within(PATIENCE).await
    }

    /// Waits for the end of the process, and fails if the process runs for longer than `limit`.
    pub async fn ended_within(&self, limit: Duration) -> ExitStatus {
        let mut state = self.state.clone();
        let ended = timeout(limit, state.wait_for(|state| state.ended.is_some())).await;
        let ended = ended.ok().and_then(|state| state.unwrap().ended);
        ended.unwrap_or_else(|| panic!("still running after {limit:?}:\n{}", self.log()))
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }
}

/// The lines of a process's log that a failed test prints.
const LAST_LINES: usize = 40;

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            let state = self.state.borrow();
            let last = &state.lines[state.lines.len().saturating_sub(LAST_LINES)..];
            eprintln!(
                "process {} ended: {:?}; its last lines:\n{}",
                self.pid,
                state.ended,
                last.join("\n")
            );
        }
        if self.state.borrow().ended.is_none() {
            // Fails only if the process ends at this moment.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}
