//! Asks the pods of one cluster.

use super::causes;
use super::connectivity::Answers;
use super::deployment::{State, state};
use super::path::{Question, Side};
use super::remote::{self, Answer};
use crate::k8s::client::describe;
use crate::mesh::context::Context;
use crate::mesh::exec::{self, Command, Done, Exec};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Pods in one answer to a list.
const PAGE: u32 = 500;
/// The most connections that `troubleshoot` looks at: each takes a pod a few seconds.
const TRACES_MAX: usize = 16;

/// Pods of one kind, and how to ask them.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub selector: &'static str,
    pub container: &'static str,
    argv: &'static [&'static str],
    read: fn(&str) -> Answer,
}

pub const AGENTS: Kind = Kind {
    selector: "k8s-app=cilium",
    container: "cilium-agent",
    argv: &["cilium", "status", "-o", "json"],
    read: remote::of_agent,
};
pub const MIRRORS: Kind = Kind {
    selector: "k8s-app=clustermesh-apiserver",
    container: "kvstoremesh",
    argv: &[
        "/usr/bin/clustermesh-apiserver",
        "kvstoremesh-dbg",
        "status",
        "-o",
        "json",
    ],
    read: remote::of_mirror,
};

/// What the pods of one kind say.
#[derive(Debug, Default)]
pub struct Gathered {
    pub answers: Answers,
    /// Pods that ended and were replaced, with the reason; they are not counted.
    pub left: BTreeMap<String, String>,
}

/// Why pods are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("unable to list pods in namespace {namespace}: {}{}", describe(source), hint(source))]
    Api { namespace: String, source: kube::Error },
    #[error("unable to list pods in namespace {namespace}: the Kubernetes API has not answered in {} s", after.as_secs())]
    Timeout { namespace: String, after: Duration },
}

fn hint(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => "; the user of this context needs the right to list pods",
        _ => "",
    }
}

/// Asks all pods of a kind. Calls `answered` with the number of answers so far and of all pods, after each.
pub async fn ask(
    client: &Client,
    exec: &Exec,
    namespace: &str,
    kind: Kind,
    mut answered: impl FnMut(usize, usize),
) -> Result<Gathered, Error> {
    let (mut gathered, mut commands) = (Gathered::default(), vec![]);
    for pod in list(client, exec, namespace, kind.selector).await? {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match state(&pod, kind.container) {
            State::Left(why) => _ = gathered.left.insert(name, why),
            // A pod that is being replaced.
            _ if pod.metadata.deletion_timestamp.is_some() => {}
            State::NotRunning(why) => _ = gathered.answers.insert(name, Answer::Failed(why)),
            State::Running => commands.push(Command::new(&name, kind.container, kind.argv)),
        }
    }
    let all = commands.len();
    for (command, done) in exec.all(commands, |some| answered(some, all)).await {
        let answer = answer(namespace, &command, done, kind.read);
        gathered.answers.insert(command.pod, answer);
    }
    Ok(gathered)
}

/// Checks connections in pods. Returns the first step that failed for each; connections without one are left out.
pub async fn trace(exec: &Exec, questions: BTreeSet<Question>) -> BTreeMap<Question, String> {
    let mut asked = BTreeMap::new();
    for question in questions.into_iter().take(TRACES_MAX) {
        let (container, mut argv) = match question.side {
            Side::Agent => (AGENTS.container, vec!["cilium-dbg", "troubleshoot", "clustermesh"]),
            Side::Mirror => (
                MIRRORS.container,
                vec!["/usr/bin/clustermesh-apiserver", "kvstoremesh-dbg", "troubleshoot"],
            ),
        };
        argv.push(&question.peer);
        let command = Command::new(&question.pod, container, &argv);
        asked.insert((command.pod.clone(), command.argv.clone()), (question, command));
    }
    let commands = asked.values().map(|(_, command)| command.clone()).collect();
    let answers = exec.all(commands, |_| ()).await;
    let failure = |(command, done): (Command, Result<Done, exec::Error>)| {
        let (question, _) = asked.get(&(command.pod, command.argv))?;
        Some((question.clone(), causes::first_failure(&done.ok()?.stdout)?))
    };
    answers.into_iter().filter_map(failure).collect()
}

/// The name of an agent's pod that runs.
pub async fn an_agent(context: &Context, exec: &Exec) -> Result<String, String> {
    let listed = list(&context.client, exec, &context.namespace, AGENTS.selector).await;
    let pods = listed.map_err(|error| error.to_string())?;
    let runs = |pod: &&Pod| state(pod, AGENTS.container) == State::Running;
    let name = pods.iter().find(runs).and_then(|pod| pod.metadata.name.clone());
    name.ok_or_else(|| format!("no pod {} runs in namespace {}", AGENTS.selector, context.namespace))
}

/// Lists pods in the time that a pod has for its answer.
async fn list(client: &Client, exec: &Exec, namespace: &str, selector: &str) -> Result<Vec<Pod>, Error> {
    let started = Instant::now();
    let listed = timeout_at(exec.end(), pages(client, namespace, selector)).await;
    listed.unwrap_or_else(|_| {
        Err(Error::Timeout {
            namespace: namespace.to_owned(),
            after: started.elapsed(),
        })
    })
}

async fn pages(client: &Client, namespace: &str, selector: &str) -> Result<Vec<Pod>, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut page = ListParams::default().labels(selector).limit(PAGE);
    let mut pods = vec![];
    loop {
        let listed = api.list(&page).await.map_err(|source| Error::Api {
            namespace: namespace.to_owned(),
            source,
        })?;
        pods.extend(listed.items);
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(pods),
        }
    }
}

/// Reads the answer of one pod. Output on stderr is no failure as long as the answer can be read.
fn answer(namespace: &str, command: &Command, done: Result<Done, exec::Error>, read: fn(&str) -> Answer) -> Answer {
    let Command { pod, container, .. } = command;
    let failed = |why: &str| {
        Answer::Failed(format!(
            "command failed (pod={namespace}/{pod}, container={container}): {why}"
        ))
    };
    let done = match done {
        Ok(done) => done,
        Err(error) => return failed(&error.to_string()),
    };
    let Some(failure) = &done.failure else {
        return read(&done.stdout);
    };
    if ["Usage:", "unknown command"]
        .iter()
        .any(|words| done.stderr.contains(words))
    {
        return Answer::Unsupported;
    }
    // An agent that is not healthy ends with an error, and prints its status all the same.
    if let known @ Answer::Known(_) = read(&done.stdout) {
        return known;
    }
    let words = [&done.stderr, &done.stdout]
        .into_iter()
        .map(|text| text.trim())
        .find(|text| !text.is_empty());
    let last = words
        .and_then(|text| text.lines().last())
        .map(|line| format!(": {line}"));
    failed(&format!("{failure}{}", last.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stdout: &str, stderr: &str, failure: Option<&str>) -> Answer {
        let done = Done {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            failure: failure.map(str::to_owned),
        };
        let command = Command::new("p", MIRRORS.container, MIRRORS.argv);
        answer("kube-system", &command, Ok(done), MIRRORS.read)
    }

    #[test]
    fn noise_on_stderr_does_not_hide_an_answer() {
        assert!(matches!(read("[]", "level=warn", None), Answer::Known(_)));
        assert!(matches!(read("[]", "", Some("exit code 1")), Answer::Known(_)));
    }

    #[test]
    fn a_program_without_the_command_is_told_from_a_failure() {
        let exit = Some("command terminated with exit code 1");
        assert_eq!(read("", "Error: unknown command \"status\"", exit), Answer::Unsupported);
        let refused = read("Failed to retrieve status information: connection refused\n", "", exit);
        let text = "command failed (pod=kube-system/p, container=kvstoremesh): command terminated with exit code 1: \
            Failed to retrieve status information: connection refused";
        assert_eq!(refused, Answer::Failed(text.to_owned()));
        assert!(matches!(read("x", "", None), Answer::Failed(why) if why.contains("unable to unmarshal")));
    }
}
