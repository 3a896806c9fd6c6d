//! Makes the changes of a plan, and verifies each one. A failure says what was done before it and what was not.

use super::change::{Change, Plan, Step, Target, missing};
use super::context::Context;
use super::facts::MANAGER;
use super::output::Output;
use crate::k8s::client::describe;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The annotation of a pod template that restarts the pods; kubectl's.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// The last line of a dry run.
pub const ACCEPTED: &str = "ℹ️  Nothing was changed: this is a dry run, whose changes the Kubernetes APIs would accept";

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot {verb} {target} in context {context:?}: {}{}",
        describe(error),
        remedy(verb, target, error)
    )]
    Api {
        verb: &'static str,
        target: Target,
        context: String,
        error: Box<kube::Error>,
    },
    #[error(
        "{target} in context {context:?} was applied, and does not have: {}; an admission webhook or another controller has \
         changed it at once", fields.join(", ")
    )]
    Altered {
        target: Target,
        context: String,
        fields: Vec<String>,
    },
}

/// A plan that was not carried out to its end.
#[derive(Debug, thiserror::Error)]
#[error("{error}\n{}", progress(done, undone))]
pub struct Failure {
    /// The changes that were made.
    pub done: Vec<String>,
    /// The changes that were not made, the failed one first.
    pub undone: Vec<String>,
    pub error: Box<Error>,
}

fn progress(done: &[String], undone: &[String]) -> String {
    let list = |title: &str, changes: &[String]| match changes.is_empty() {
        true => format!("{title}: nothing"),
        false => format!("{title}: {}", changes.join("; ")),
    };
    format!("{}. {}.", list("Done", done), list("Not done", undone))
}

/// What to do about an error of the API.
fn remedy(verb: &str, target: &Target, error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else {
        return "; is the API server of this context reachable from this machine?".to_owned();
    };
    match status.code {
        403 => {
            let verb = if verb == "apply" { "create and patch" } else { verb };
            let plural = plural(target);
            format!("; the user of this context needs the right to {verb} {plural} (docs/mesh.md lists all rights)")
        }
        409 if status.message.contains("conflict") => {
            "; another tool owns these fields: let that tool write the values of \
             --print=values or --print=manifests, or take the fields over with --adopt"
                .to_owned()
        }
        409 => "; somebody has changed the object in the meantime: run the command again".to_owned(),
        _ => String::new(),
    }
}

fn plural(target: &Target) -> String {
    format!("{}s", target.kind.to_lowercase())
}

/// The API of the kind of an object.
fn api(context: &Context, target: &Target) -> Api<DynamicObject> {
    let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: target.api_version.clone(),
        kind: target.kind.clone(),
        plural: plural(target),
    };
    match &target.namespace {
        Some(namespace) => Api::namespaced_with(context.client.clone(), namespace, &resource),
        None => Api::all_with(context.client.clone(), &resource),
    }
}

/// The object of this name; `None` if it does not exist.
pub async fn live(context: &Context, target: &Target) -> Result<Option<Value>, Error> {
    let got = api(context, target).get_opt(&target.name).await;
    let got = got.map_err(|source| failed("get", target, context, source))?;
    // An object of the API is representable.
    Ok(got.and_then(|object| serde_json::to_value(object).ok()))
}

/// Asks the API whether it would accept the changes, and changes nothing: finds missing rights, fields of other tools, and
/// what admission refuses.
pub async fn rehearse(context: &Context, plan: &Plan) -> Result<(), Error> {
    for change in &plan.changes {
        make(context, change, true).await?;
    }
    Ok(())
}

/// Makes the changes in their order, and prints a line for each.
pub async fn apply(context: &Context, plan: &Plan, output: &dyn Output) -> Result<(), Failure> {
    let mut done = vec![];
    for (at, change) in plan.changes.iter().enumerate() {
        if let Err(error) = make(context, change, false).await {
            return Err(Failure {
                done,
                undone: plan.changes[at..].iter().map(ToString::to_string).collect(),
                error: Box::new(error),
            });
        }
        if matches!(change.step, Step::Restart { .. }) {
            output.line(&format!("♻️  {}: {change}", plan.cluster));
        }
        done.push(change.to_string());
    }
    Ok(())
}

async fn make(context: &Context, change: &Change, is_rehearsal: bool) -> Result<(), Error> {
    let (target, api) = (&change.target, api(context, &change.target));
    match &change.step {
        Step::Apply { object, force } => {
            let params = PatchParams {
                dry_run: is_rehearsal,
                force: *force,
                ..PatchParams::apply(MANAGER)
            };
            let applied = api.patch(&target.name, &params, &Patch::Apply(object)).await;
            let applied = applied.map_err(|source| failed("apply", target, context, source))?;
            let fields = missing(object, &serde_json::to_value(applied).unwrap_or_default());
            if fields.is_empty() {
                return Ok(());
            }
            Err(Error::Altered {
                target: target.clone(),
                context: context.name.clone(),
                fields,
            })
        }
        Step::SetKeys { data, version } => {
            let mut patch = json!({"data": data});
            if let Some(version) = version {
                patch["metadata"] = json!({"resourceVersion": version});
            }
            merge(context, target, patch, is_rehearsal).await
        }
        Step::RemoveKeys(keys) => {
            let none: BTreeMap<&String, Value> = keys.iter().map(|key| (key, Value::Null)).collect();
            merge(context, target, json!({"data": none}), is_rehearsal).await
        }
        Step::Delete => {
            let params = DeleteParams {
                dry_run: is_rehearsal,
                ..DeleteParams::default()
            };
            match api.delete(&target.name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                deleted => deleted
                    .map(drop)
                    .map_err(|source| failed("delete", target, context, source)),
            }
        }
        Step::Restart { .. } => {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED: now}}}}});
            merge(context, target, patch, is_rehearsal).await
        }
    }
}

/// Merges a patch into an object.
async fn merge(context: &Context, target: &Target, patch: Value, is_rehearsal: bool) -> Result<(), Error> {
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        dry_run: is_rehearsal,
        ..PatchParams::default()
    };
    let patched = api(context, target)
        .patch(&target.name, &params, &Patch::Merge(patch))
        .await;
    patched
        .map(drop)
        .map_err(|error| failed("patch", target, context, error))
}

fn failed(verb: &'static str, target: &Target, context: &Context, error: kube::Error) -> Error {
    Error::Api {
        verb,
        target: target.clone(),
        context: context.name.clone(),
        error: Box::new(error),
    }
}
