//! Runs commands in containers of pods, through the Kubernetes API.
//!
//! Many pods are asked at the same time, and each answers or fails for itself.

use crate::k8s::client::describe;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess};
use kube::{Client, client::UpgradeConnectionError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

/// Time that a pod has for its answer.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Pods that are asked at the same time.
const AT_ONCE: usize = 16;
/// Longest output that is read, in bytes: the status of an agent with many clusters takes a few hundred kilobytes.
const OUTPUT_MAX: u64 = 16 << 20;
/// Size of a pipe from the connection, in bytes.
const PIPE: usize = 64 << 10;

/// A command for one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub pod: String,
    pub container: String,
    pub argv: Vec<String>,
}

/// What a command printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub stdout: String,
    pub stderr: String,
    /// Why the command failed, such as `command terminated with exit code 1`; `None` if it succeeded.
    pub failure: Option<String>,
}

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of the resource is that of a right.
    #[error(
        "{}; executing in pods needs the rights to get and create pods/exec in namespace {namespace}",
        describe(source)
    )]
    Forbidden { namespace: String, source: kube::Error },
    #[error("{}{}", describe(.0), remedy(.0))]
    Api(kube::Error),
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the connection to the pod broke: {0}")]
    Broken(#[from] std::io::Error),
    #[error("the command ended without a status; did the container restart?")]
    NoStatus,
    #[error("the command printed more than {} MiB", OUTPUT_MAX >> 20)]
    TooLong,
}

/// A hint about proxies between this machine and the API, many of which do not pass WebSockets.
fn remedy(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(_)) => {
            "; does a proxy in front of the Kubernetes API refuse WebSocket connections?"
        }
        _ => "",
    }
}

/// Runs commands in the pods of one namespace.
#[derive(Clone)]
pub struct Exec {
    client: Client,
    namespace: String,
    timeout: Duration,
    deadline: Option<Instant>,
}

// === impl Command ===

impl Command {
    pub fn new(pod: &str, container: &str, argv: &[&str]) -> Self {
        Self {
            pod: pod.to_owned(),
            container: container.to_owned(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        }
    }
}

// === impl Exec ===

impl Exec {
    pub fn new(client: Client, namespace: &str, timeout: Duration) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            timeout,
            deadline: None,
        }
    }

    /// Ends every command at this time, however many there are.
    pub fn until(self, deadline: Instant) -> Self {
        let deadline = Some(deadline);
        Self { deadline, ..self }
    }

    /// The end of a request that begins now.
    pub fn end(&self) -> Instant {
        let end = Instant::now() + self.timeout;
        self.deadline.map_or(end, |deadline| deadline.min(end))
    }

    /// Runs all commands, some at a time. Calls `answered` with the number of answers so far, after each.
    pub async fn all(
        &self,
        commands: Vec<Command>,
        mut answered: impl FnMut(usize),
    ) -> Vec<(Command, Result<Done, Error>)> {
        let run = |command: Command| async move {
            let done = self.run(&command).await;
            (command, done)
        };
        let mut running = futures::stream::iter(commands).map(run).buffer_unordered(AT_ONCE);
        let mut answers = vec![];
        while let Some(answer) = running.next().await {
            answers.push(answer);
            answered(answers.len());
        }
        answers
    }

    /// Runs one command.
    pub async fn run(&self, command: &Command) -> Result<Done, Error> {
        let (now, end) = (Instant::now(), self.end());
        let ended = tokio::time::timeout_at(end, self.attached(command)).await;
        ended.unwrap_or(Err(Error::Timeout(end.saturating_duration_since(now))))
    }

    async fn attached(&self, command: &Command) -> Result<Done, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = AttachParams::default()
            .container(&*command.container)
            .stdin(false)
            .stdout(true)
            .stderr(true)
            .max_stdout_buf_size(PIPE)
            .max_stderr_buf_size(PIPE);
        let attached = pods
            .exec(&command.pod, command.argv.iter().map(String::as_str), &params)
            .await;
        let mut process = attached.map_err(|source| match &source {
            kube::Error::Api(status) if status.code == 403 => Error::Forbidden {
                namespace: self.namespace.clone(),
                source,
            },
            _ => Error::Api(source),
        })?;
        let (out, err) = (process.stdout(), process.stderr());
        let (stdout, stderr) = futures::try_join!(text(out), text(err))?;
        let failure = failure(&mut process).await?;
        Ok(Done {
            stdout,
            stderr,
            failure,
        })
    }
}

/// Why the command failed.
async fn failure(process: &mut AttachedProcess) -> Result<Option<String>, Error> {
    let status = match process.take_status() {
        Some(status) => status.await,
        None => None,
    };
    let Status { status, message, .. } = status.ok_or(Error::NoStatus)?;
    match status.as_deref() {
        Some("Success") => Ok(None),
        _ => Ok(Some(message.unwrap_or_else(|| "command failed".to_owned()))),
    }
}

async fn text(pipe: Option<impl AsyncRead + Unpin>) -> Result<String, Error> {
    let mut bytes = vec![];
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_MAX + 1).read_to_end(&mut bytes).await?;
    }
    match u64::try_from(bytes.len()).is_ok_and(|length| length <= OUTPUT_MAX) {
        true => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        false => Err(Error::TooLong),
    }
}
