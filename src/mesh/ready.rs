//! Waits until the store of a cluster is ready, and says what is missing.

use super::context::Context;
use super::facts::APISERVER;
use super::output::Output;
use super::read;
use super::wait::Waiting;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use std::time::Duration;
use tokio::time::timeout_at;

/// Why the store is not known to be ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] read::Error),
    #[error(
        "timeout while waiting for condition, last error: {0}; the objects are there, status shows when the store is ready"
    )]
    NotReady(String),
}

/// Waits for the Deployment.
pub async fn wait(context: &Context, limit: Duration, output: &dyn Output) -> Result<(), Error> {
    let mut waiting = Waiting::new(limit);
    let deadline = waiting.deadline();
    loop {
        let read = || read::deployment_until(context, deadline);
        let deployment = waiting.request(output, read).await?;
        let Some(why) = obstacle(deployment.as_ref()) else {
            output.line(&format!("✅ Deployment {APISERVER} is ready"));
            return Ok(());
        };
        let pods = timeout_at(deadline, pods(context)).await.unwrap_or_default();
        let what = format!("deployment {APISERVER} to become ready");
        if !waiting.pause(&what, &format!("{why}{pods}"), output).await {
            return Err(Error::NotReady(format!(
                "deployment {APISERVER} is not ready: {why}{pods}"
            )));
        }
    }
}

/// Why a Deployment is not ready, in the words of Cilium's CLI.
pub fn obstacle(deployment: Option<&Deployment>) -> Option<String> {
    let Some(deployment) = deployment else {
        return Some("it does not exist".to_owned());
    };
    let wanted = deployment.metadata.generation.unwrap_or_default();
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let observed = status.observed_generation.unwrap_or_default();
    let count = |count: Option<i32>| count.unwrap_or_default();
    let (available, ready, updated) = (
        count(status.available_replicas),
        count(status.ready_replicas),
        count(status.updated_replicas),
    );
    match () {
        () if observed < wanted => Some(format!(
            "observed generation ({observed}) is older than generation of the desired state ({wanted})"
        )),
        () if replicas == 0 => Some("replicas count is zero".to_owned()),
        () if available < replicas => Some(format!("only {available} of {replicas} replicas are available")),
        () if ready < replicas => Some(format!("only {ready} of {replicas} replicas are ready")),
        () if updated < replicas => Some(format!("only {updated} of {replicas} replicas are up-to-date")),
        () => None,
    }
}

/// What the pods wait for; empty if they cannot be listed or say nothing.
async fn pods(context: &Context) -> String {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &context.namespace);
    let listed = api
        .list(&ListParams::default().labels(&format!("k8s-app={APISERVER}")))
        .await;
    let pods = listed.map(|listed| listed.items).unwrap_or_default();
    let reasons: Vec<String> = pods.iter().filter_map(reason).collect();
    match reasons.is_empty() {
        true => String::new(),
        false => format!(" ({})", reasons.join("; ")),
    }
}

/// What a pod waits for.
pub fn reason(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let of_scheduler = status.conditions.iter().flatten().find_map(|condition| {
        let is_unscheduled = condition.type_ == "PodScheduled" && condition.status == "False";
        is_unscheduled.then(|| condition.message.clone()).flatten()
    });
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let of_container = containers.into_iter().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = waiting
            .message
            .as_deref()
            .map_or_else(String::new, |message| format!(": {message}"));
        Some(format!("container {} {reason}{message}", container.name))
    });
    let why = of_scheduler.or(of_container)?;
    Some(format!("pod {name}: {why}"))
}
