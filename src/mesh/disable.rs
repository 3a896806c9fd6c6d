//! `disable`: removes from a cluster what `enable` and `connect` have made, and says which clusters still dial it.

use super::apply;
use super::certs::cronjob;
use super::change::{Plan, Step, Target};
use super::connect::{self, Action};
use super::context::Context;
use super::disconnect;
use super::facts::{self, APISERVER, Facts, Keeper, RECORD, USERS, secret};
use super::manifests::{self, Broken, Exposure, Options, Storage};
use super::objects;
use super::output::Output;
use super::read;
use super::record::{self, Record};
use super::values;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::collections::BTreeSet;

/// The keys of a certificate.
const TLS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// The Secret with the state of a rotation, of `certs/authority.rs`.
const ROTATION: &str = super::certs::authority::STATE;

/// What is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    pub action: Action,
    /// Leave the certificates, so that the cluster can be enabled again without new ones.
    pub keep_certificates: bool,
    /// Take fields over from other tools.
    pub adopt: bool,
}

/// Why a cluster was not disabled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] read::Error),
    #[error(transparent)]
    Record(#[from] record::Invalid),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error(transparent)]
    Disconnect(#[from] disconnect::Error),
    #[error(transparent)]
    Live(#[from] apply::Error),
    #[error("{0}")]
    Apply(#[from] apply::Failure),
    #[error(
        "there are no values for the removal: set clustermesh.useAPIServer and clustermesh.config.enabled of the Cilium chart to \
         false; --print=manifests lists the objects to remove"
    )]
    Print,
    #[error("cannot print YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// What is done, and what is not.
struct Work {
    plan: Plan,
    /// Objects that stay, and why.
    kept: Vec<(Target, String)>,
    /// Objects that the user may not read: they may or may not exist.
    unseen: Vec<Target>,
}

/// Disables the mesh in the cluster of `context`.
pub async fn disable(context: &Context, request: &Request, program: &str, output: &dyn Output) -> Result<(), Error> {
    let facts = read::facts(context).await?;
    let record = Record::read(&facts)?;
    let peers: BTreeSet<String> = record.peers.keys().cloned().collect();
    let plan = disconnect::plan(&facts, &record, &peers)?;
    let has_entries = !plan.changes.is_empty();
    let mut work = Work {
        plan,
        kept: vec![],
        unseen: vec![],
    };
    Box::pin(remove_own(context, &facts, &record, request, &mut work)).await?;
    Box::pin(remove_certificate_job(context, &facts, request, &mut work)).await?;
    let plan = &work.plan;
    match request.action {
        Action::Apply => {}
        Action::DryRun => output.document(&plan.to_string()),
        Action::PrintManifests => {
            output.document(&plan.document()?);
            remains(&facts, &record, &work, program, output);
            return Ok(());
        }
        Action::PrintValues => return Err(Error::Print),
    }
    if has_entries && !request.adopt {
        refuse_kept(&facts, &record, output)?;
    }
    apply::rehearse(context, plan).await?;
    if request.action == Action::DryRun {
        remains(&facts, &record, &work, program, output);
        output.line(apply::ACCEPTED);
        return Ok(());
    }
    for change in &plan.changes {
        output.line(&format!("🗑️  Cluster {}: {change}", plan.cluster));
    }
    apply::apply(context, plan, output).await?;
    match plan.changes.is_empty() {
        true => output.line(&format!("ℹ️  Cluster {}: nothing to change", facts.name())),
        false => output.line(&format!("✅ Cluster mesh is disabled in cluster {}", facts.name())),
    }
    remains(&facts, &record, &work, program, output);
    Ok(())
}

// === impl Work ===

impl Work {
    /// Notes an object that stays.
    fn keep(&mut self, why: impl Into<String>, target: Target) {
        self.kept.push((target, why.into()));
    }

    /// Notes that an object stays because somebody else has made it, or keeps it.
    fn keep_for(&mut self, keeper: Option<&Keeper>, target: Target) {
        let why = keeper.map_or_else(
            || "another tool has made it".to_owned(),
            |keeper| format!("{keeper} keeps it"),
        );
        self.keep(why, target);
    }
}

/// Fails where another tool keeps the entries of the peers, and prints what it should be given.
fn refuse_kept(facts: &Facts, record: &Record, output: &dyn Output) -> Result<(), disconnect::Error> {
    let Some((object, keeper)) = connect::keeper(facts) else {
        return Ok(());
    };
    let mut rest = Record::default();
    for (name, endpoints) in objects::endpoints_of_others(facts, record) {
        rest.peers.entry(name).or_default().endpoints = Some(endpoints);
    }
    output.document(&values::of(facts, &rest));
    let context = facts.context.clone();
    Err(disconnect::Error::Kept {
        object,
        context,
        keeper,
    })
}

/// The keeper of an object that exists.
async fn keeper_of(context: &Context, target: &Target) -> Result<Option<Option<Keeper>>, apply::Error> {
    Ok(apply::live(context, target).await?.as_ref().map(keeper_in))
}

/// The keeper of an object.
fn keeper_in(live: &Value) -> Option<Keeper> {
    let meta = serde_json::from_value::<ObjectMeta>(live["metadata"].clone());
    meta.ok().as_ref().and_then(facts::keeper)
}

fn is_ours(meta: &ObjectMeta) -> bool {
    facts::keeper(meta) == Some(Keeper::Isthmus)
}

/// The name of an object of the core API in Cilium's namespace.
fn core(facts: &Facts, kind: &str, name: &str) -> Target {
    Target {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        namespace: Some(facts.namespace.clone()),
        name: name.to_owned(),
    }
}

/// Adds the removal of the objects that this program has made.
async fn remove_own(
    context: &Context,
    facts: &Facts,
    record: &Record,
    request: &Request,
    work: &mut Work,
) -> Result<(), Error> {
    let mut is_elsewhere = false;
    // The Deployment ends before what it uses is removed.
    for object in manifests::objects(&all(facts))?.iter().rev() {
        let target = Target::of(object);
        let live = match apply::live(context, &target).await {
            Ok(Some(live)) => live,
            Ok(None) => continue,
            // Most clusters have no claim, and many users may not read any.
            Err(error) if target.kind == "PersistentVolumeClaim" && is_forbidden(&error) => {
                work.unseen.push(target);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        is_elsewhere |= manifests::bound(&live).is_some_and(|namespace| namespace != facts.namespace);
        // The role follows its binding, which may be that of an installation in another namespace.
        match keeper_in(&live) {
            _ if is_elsewhere && target.kind.starts_with("ClusterRole") => {
                work.keep("the installation in another namespace uses it", target);
            }
            Some(Keeper::Isthmus) => work.plan.delete(target),
            keeper => work.keep_for(keeper.as_ref(), target),
        }
    }
    for (name, object) in &facts.secrets {
        remove_secret(facts, name, object, request, work);
    }
    let users = objects::users(facts, record, &Record::default()).map_err(disconnect::Error::from)?;
    let has_foreign_users = users != objects::NO_USERS;
    for (name, map, is_shared) in [(USERS, &facts.users, has_foreign_users), (RECORD, &facts.record, false)] {
        let Some(map) = map else { continue };
        let target = core(facts, "ConfigMap", name);
        match (is_ours(&map.metadata), is_shared) {
            (true, false) => {
                work.plan.changes.retain(|change| change.target.name != name);
                work.plan.delete(target);
            }
            (true, true) => work.keep("it has users of clusters that another tool has connected", target),
            (false, _) => work.keep_for(facts::keeper(&map.metadata).as_ref(), target),
        }
    }
    let plan = &mut work.plan;
    let deleted: Vec<Target> = plan
        .changes
        .iter()
        .filter(|change| change.step == Step::Delete)
        .map(|change| change.target.clone())
        .collect();
    // Nothing is changed in an object that is deleted afterwards.
    plan.changes
        .retain(|change| change.step == Step::Delete || !deleted.contains(&change.target));
    Ok(())
}

/// Adds the removal of a Secret, or of those of its keys that this program has made.
fn remove_secret(facts: &Facts, name: &str, object: &Secret, request: &Request, work: &mut Work) {
    let target = core(facts, "Secret", name);
    let is_certificate = [secret::SERVER, secret::ADMIN, secret::REMOTE, secret::LOCAL].contains(&name);
    if name == secret::CA {
        return work.keep("other parts of Cilium may use this CA", target);
    }
    if !is_ours(&object.metadata) {
        return work.keep_for(facts::keeper(&object.metadata).as_ref(), target);
    }
    if is_certificate && request.keep_certificates {
        return work.keep("--keep-certs, and nothing renews it from now on", target);
    }
    let keys = object.data.iter().flatten().map(|(key, _)| key);
    let (own, foreign): (Vec<&String>, Vec<&String>) =
        keys.partition(|key| (is_certificate && TLS.contains(&&***key)) || is_removed(&work.plan, name, key));
    match (foreign.is_empty(), is_certificate && !own.is_empty()) {
        (true, _) => return work.plan.delete(target),
        (false, true) => work
            .plan
            .remove_keys(target.clone(), own.into_iter().cloned().collect()),
        (false, false) => {}
    }
    let foreign: Vec<&str> = foreign.into_iter().map(String::as_str).collect();
    work.keep(format!("another tool has written {}", foreign.join(", ")), target);
}

/// Whether the user lacks a right.
fn is_forbidden(error: &apply::Error) -> bool {
    matches!(error, apply::Error::Api { error, .. }
        if matches!(&**error, kube::Error::Api(status) if status.code == 403))
}

/// The deployment with all objects that it can have.
fn all(facts: &Facts) -> Options {
    Options {
        namespace: facts.namespace.clone(),
        image: None,
        replicas: 1,
        storage: Storage::Persistent,
        has_mirror: true,
        exposure: Exposure {
            kind: "ClusterIP".to_owned(),
            node_port: 0,
            annotations: vec![],
        },
    }
}

/// Whether the plan removes this key of a Secret.
fn is_removed(plan: &Plan, secret: &str, key: &String) -> bool {
    let of_secret = plan.changes.iter().filter(|change| change.target.name == secret);
    let mut keys = of_secret.filter_map(|change| match &change.step {
        Step::RemoveKeys(keys) => Some(keys),
        _ => None,
    });
    keys.any(|keys| keys.contains(key))
}

/// Adds the removal of the job that renews certificates and, with the certificates, of the state of a rotation.
async fn remove_certificate_job(
    context: &Context,
    facts: &Facts,
    request: &Request,
    work: &mut Work,
) -> Result<(), Error> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let job = [
        ("batch/v1", "CronJob"),
        (RBAC, "RoleBinding"),
        (RBAC, "Role"),
        ("v1", "ServiceAccount"),
    ];
    for (version, kind) in job {
        let target = Target {
            api_version: version.to_owned(),
            ..core(facts, kind, cronjob::NAME)
        };
        match keeper_of(context, &target).await {
            Ok(None) => {}
            Ok(Some(Some(Keeper::Isthmus))) => work.plan.delete(target),
            Ok(Some(keeper)) => work.keep_for(keeper.as_ref(), target),
            // The job is optional: who has not made it needs no rights for it.
            Err(error) if is_forbidden(&error) => work.unseen.push(target),
            Err(error) => return Err(error.into()),
        }
    }
    let state = core(facts, "Secret", ROTATION);
    if keeper_of(context, &state).await? == Some(Some(Keeper::Isthmus)) {
        match request.keep_certificates {
            true => work.keep("--keep-certs, and it is the state of a change of the CA", state),
            false => work.plan.delete(state),
        }
    }
    Ok(())
}

/// Says what stays, what may be there unseen, and which clusters still dial this one.
fn remains(facts: &Facts, record: &Record, work: &Work, program: &str, output: &dyn Output) {
    for (target, why) in &work.kept {
        output.line(&format!("ℹ️  {target} stays: {why}"));
    }
    let deployment = facts
        .deployment
        .as_ref()
        .and_then(|deployment| facts::keeper(&deployment.metadata));
    if let Some(keeper) = deployment.filter(|keeper| *keeper != Keeper::Isthmus) {
        output.line(&format!(
            "   💡 Deployment {}/{APISERVER}: set clustermesh.useAPIServer and clustermesh.config.enabled to false where {keeper} \
             has its values",
            facts.namespace
        ));
    }
    if !work.unseen.is_empty() {
        let unseen: Vec<String> = work.unseen.iter().map(ToString::to_string).collect();
        output.line(&format!(
            "⚠️  This user may not read {}: what exists of them stays",
            unseen.join(", ")
        ));
        for target in &work.unseen {
            output.line(&format!(
                "   💡 If it was made: kubectl delete -n {} {} {}",
                facts.namespace,
                target.kind.to_lowercase(),
                target.name
            ));
        }
    }
    let foreign: Vec<String> = facts
        .peers()
        .into_iter()
        .filter(|name| !record.peers.contains_key(name))
        .collect();
    if !foreign.is_empty() {
        output.line(&format!(
            "⚠️  The entries of {} stay: another tool has connected them. 'disconnect --destination-name' removes them",
            foreign.join(", ")
        ));
    }
    let readers = record.peers.iter().filter(|(_, peer)| peer.reads);
    for (name, peer) in readers {
        let context = if peer.context.is_empty() {
            "<its context>"
        } else {
            &peer.context
        };
        output.line(&format!(
            "⚠️  Cluster {name} keeps its entry for {} and goes on dialling",
            facts.name()
        ));
        output.line(&format!(
            "   💡 Run '{program} disconnect --context {context} --destination-name {}'",
            facts.name()
        ));
    }
}
