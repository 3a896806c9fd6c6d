//! Whether a Deployment is ready, and why pods are not.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Why a Deployment is not ready, in the words of Cilium's CLI; `None` if it is ready.
pub fn problem(deployment: &Deployment) -> Option<String> {
    let status = deployment.status.clone().unwrap_or_default();
    let (observed, generation) = (
        status.observed_generation.unwrap_or_default(),
        deployment.metadata.generation.unwrap_or_default(),
    );
    if observed < generation {
        return Some(format!(
            "observed generation ({observed}) is older than generation of the desired state ({generation})"
        ));
    }
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let replicas = status.replicas.unwrap_or_default();
    if replicas == 0 {
        return Some("replicas count is zero".to_owned());
    }
    let counts = [
        (status.available_replicas, "available"),
        (status.ready_replicas, "ready"),
        (status.updated_replicas, "up-to-date"),
    ];
    let short = counts
        .iter()
        .find(|(count, _)| count.unwrap_or_default() < wanted.max(replicas));
    short.map(|(count, what)| {
        let (count, of) = (count.unwrap_or_default(), wanted.max(replicas));
        format!("only {count} of {of} replicas are {what}")
    })
}

/// What a pod can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The container runs.
    Running,
    /// The pod has ended and does not come back, as after an eviction. Its controller has replaced it.
    Left(String),
    /// The container does not run, with the reason.
    NotRunning(String),
}

/// The state of the container `container` of a pod.
pub fn state(pod: &Pod, container: &str) -> State {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_else(|| "Unknown".to_owned());
    let reason = status.reason.or(status.message);
    if matches!(&*phase, "Failed" | "Succeeded") {
        return State::Left(reason.unwrap_or(phase));
    }
    let containers = status.container_statuses.unwrap_or_default();
    let found = containers.iter().find(|status| status.name == container);
    if let Some(found) = found {
        return match why_not_running(found) {
            None => State::Running,
            Some(why) => State::NotRunning(format!("container {container} is not running: {why}")),
        };
    }
    let inits = status.init_container_statuses.unwrap_or_default();
    let init = inits
        .iter()
        .find_map(|init| Some(format!(": init container {}: {}", init.name, why_not_running(init)?)));
    let why = init
        .or_else(|| unschedulable(pod))
        .or_else(|| reason.map(|reason| format!(": {reason}")));
    State::NotRunning(format!("pod is {phase}{}", why.unwrap_or_default()))
}

fn why_not_running(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if state.running.is_some() {
        return None;
    }
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.clone().unwrap_or_else(|| "waiting".to_owned());
        let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let exit = last.map(|last| {
            format!(
                ", last exit code {}{}",
                last.exit_code,
                last_words(last.message.as_deref())
            )
        });
        return Some(reason + &exit.unwrap_or_default());
    }
    let ended = state.terminated.as_ref()?;
    // An init container that did its work.
    (ended.exit_code != 0).then(|| format!("exit code {}{}", ended.exit_code, last_words(ended.message.as_deref())))
}

/// The last line of a termination message, which holds the end of the log.
fn last_words(message: Option<&str>) -> String {
    let line = message.and_then(|message| message.trim_end().lines().last());
    line.map_or_else(String::new, |line| {
        format!(": {}", line.chars().take(200).collect::<String>())
    })
}

fn unschedulable(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    Some(format!(
        ": {}",
        condition.message.as_ref().or(condition.reason.as_ref())?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(wanted: i32, status: Value) -> Deployment {
        let template = json!({"spec": {"containers": [{"name": "apiserver"}]}});
        let text = json!({"metadata": {"generation": 3}, "status": status,
            "spec": {"replicas": wanted, "selector": {}, "template": template}});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_reason_is_that_of_ciliums_tool() {
        let of = |status| problem(&deployment(2, status));
        let old = of(json!({"observedGeneration": 2}));
        let text = "observed generation (2) is older than generation of the desired state (3)";
        assert_eq!(old.as_deref(), Some(text));
        assert_eq!(
            of(json!({"observedGeneration": 3})).as_deref(),
            Some("replicas count is zero")
        );
        let mut status = json!({"observedGeneration": 3, "replicas": 2});
        for (field, what, next) in [
            ("availableReplicas", "only 0 of 2 replicas are available", 2),
            ("readyReplicas", "only 0 of 2 replicas are ready", 2),
            ("updatedReplicas", "only 0 of 2 replicas are up-to-date", 1),
        ] {
            assert_eq!(of(status.clone()).as_deref(), Some(what));
            status[field] = json!(next);
        }
        assert_eq!(
            of(status.clone()).as_deref(),
            Some("only 1 of 2 replicas are up-to-date")
        );
        status["updatedReplicas"] = json!(2);
        assert_eq!(of(status), None);
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()
    }

    #[test]
    fn pods_that_cannot_be_asked_say_why() {
        let of = |status| state(&pod(status), "cilium-agent");
        let evicted = of(json!({"phase": "Failed", "reason": "Evicted"}));
        assert_eq!(evicted, State::Left("Evicted".to_owned()));
        let running = json!({"phase": "Running", "containerStatuses": [
            {"name": "cilium-agent", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]});
        assert_eq!(of(running), State::Running);
        let conditions = json!([{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]);
        let pending = of(json!({"phase": "Pending", "conditions": conditions}));
        assert_eq!(
            pending,
            State::NotRunning("pod is Pending: 0/3 nodes are available".to_owned())
        );
        let crashed = json!({"phase": "Running", "containerStatuses": [
            {"name": "cilium-agent", "ready": false, "restartCount": 4, "image": "", "imageID": "",
             "state": {"waiting": {"reason": "CrashLoopBackOff"}},
             "lastState": {"terminated": {"exitCode": 1, "message": "level=info\nlevel=fatal msg=\"no BPF\"\n"}}}]});
        let why =
            "container cilium-agent is not running: CrashLoopBackOff, last exit code 1: level=fatal msg=\"no BPF\"";
        assert_eq!(of(crashed), State::NotRunning(why.to_owned()));
    }
}
