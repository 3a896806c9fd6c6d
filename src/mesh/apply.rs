//! Makes the changes of a plan, and verifies each one. A failure says what was done before it and what was not.

use super::change::{Change, Plan, Presence, Step, Target, missing};
use super::context::Context;
use super::facts::MANAGER;
use super::output::Output;
use crate::k8s::client::{describe, is_field_conflict, is_race, remedy};
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

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
        remedy(error, &right(verb, target), conflict(error))
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

// === impl Error ===

impl Error {
    /// Whether another writer was faster, so that a command should read again and decide anew.
    pub fn is_race(&self) -> bool {
        matches!(self, Self::Api { error, .. } if is_race(error))
    }
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

/// The right that a change needs.
fn right(verb: &str, target: &Target) -> String {
    let verb = if verb == "apply" { "create and patch" } else { verb };
    format!("{verb} {}", plural(target))
}

/// What to do about a conflict.
fn conflict(error: &kube::Error) -> &'static str {
    match is_field_conflict(error) {
        true => {
            "; another tool owns these fields: let that tool write the values of --print=values or --print=manifests, or take \
             the fields over with --adopt"
        }
        false => "; somebody has changed the object in the meantime: run the command again",
    }
}

fn plural(target: &Target) -> String {
    format!("{}s", target.kind.to_lowercase())
}

/// How often a command decides anew because others change the same objects at the same time.
const ATTEMPTS: u32 = 5;

/// Repeats what reads, decides and changes as long as other writers are faster, at most [`ATTEMPTS`] times. `attempt` is
/// given the number of the attempt, from 1; `is_race` tells from its error whether others were faster.
pub async fn again<T, E>(
    output: &dyn Output,
    is_race: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut(u32) -> Result<T, E>,
) -> Result<T, E> {
    let mut number = 1;
    loop {
        match attempt(number).await {
            Err(error) if is_race(&error) && number < ATTEMPTS => {
                output.line("ℹ️  Another command changes the same objects: reading them again");
                // Commands that were started together do not go on together.
                let most = u64::from(number) * 400;
                tokio::time::sleep(Duration::from_millis(rand::random_range(50..=most))).await;
                number += 1;
            }
            done => return done,
        }
    }
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
    let makes_role = plan.changes.iter().any(|change| change.target.kind == "ClusterRole");
    for change in &plan.changes {
        // A role that is only rehearsed cannot be bound.
        let is_left_out = makes_role && change.target.kind == "ClusterRoleBinding" && change.step != Step::Delete;
        if !is_left_out {
            make(context, change, true).await?;
        }
    }
    Ok(())
}

/// Prints the refused ones among rehearsed plans, and returns their number.
pub fn tell_refused(answers: &[Result<(), Error>], plans: &[Plan], output: &dyn Output) -> usize {
    let mut refused = 0;
    for (answer, plan) in answers.iter().zip(plans) {
        if let Err(error) = answer {
            refused += 1;
            output.line(&format!("❌ Cluster {}: {error}", plan.cluster));
        }
    }
    refused
}

/// Applies objects of this program in their order, whoever has written their fields.
pub async fn force(context: &Context, objects: &[Value]) -> Result<(), Error> {
    for object in objects {
        apply_object(context, &Target::of(object), object, true, false).await?;
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
        Step::Apply {
            object,
            force,
            presence,
        } => match presence {
            Presence::Absent if !is_rehearsal && has_blank(target) => {
                let object = reserve(context, target, object).await?;
                apply_object(context, target, &object, *force, false).await
            }
            _ => apply_object(context, target, object, *force, is_rehearsal).await,
        },
        Step::Create(object) => create(context, target, object, is_rehearsal).await.map(drop),
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

/// Applies the fields of an object, and verifies that they are there.
async fn apply_object(
    context: &Context,
    target: &Target,
    object: &Value,
    force: bool,
    is_rehearsal: bool,
) -> Result<(), Error> {
    let params = PatchParams {
        dry_run: is_rehearsal,
        force,
        ..PatchParams::apply(MANAGER)
    };
    let applied = api(context, target)
        .patch(&target.name, &params, &Patch::Apply(object))
        .await;
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

/// Whether an object of this kind can be made without contents. Of the other kinds, whose contents come from flags alone and
/// from no other object, the last command decides.
fn has_blank(target: &Target) -> bool {
    ["ConfigMap", "Secret", "ServiceAccount"].contains(&&*target.kind)
}

/// Makes a blank object for contents that are applied next. Fails if the object exists. Returns the contents with the version
/// of the blank object.
///
/// Applying makes an object or changes one, and cannot be told to make one only. An object that was created with its
/// contents would keep contents that are not applied any more: the creation owns them, too.
async fn reserve(context: &Context, target: &Target, object: &Value) -> Result<Value, Error> {
    let mut blank = object.clone();
    if let Some(fields) = blank.as_object_mut() {
        fields.remove("data");
    }
    let version = create(context, target, &blank, false).await?;
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!(version);
    Ok(object)
}

/// Makes an object. Fails if it exists. Returns its version.
async fn create(
    context: &Context,
    target: &Target,
    object: &Value,
    is_rehearsal: bool,
) -> Result<Option<String>, Error> {
    let params = PostParams {
        dry_run: is_rehearsal,
        field_manager: Some(MANAGER.to_owned()),
    };
    let fail = |source| failed("create", target, context, source);
    let object: DynamicObject = serde_json::from_value(object.clone())
        .map_err(kube::Error::SerdeError)
        .map_err(fail)?;
    let created = api(context, target).create(&params, &object).await;
    Ok(created.map_err(fail)?.metadata.resource_version)
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
