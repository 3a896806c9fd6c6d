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
    #[error("there are no values or manifests for the removal: remove what enable and connect have printed")]
    Print,
}

/// Disables the mesh in the cluster of `context`.
pub async fn disable(context: &Context, request: &Request, program: &str, output: &dyn Output) -> Result<(), Error> {
    let facts = read::facts(context).await?;
    let record = Record::read(&facts)?;
    let peers: BTreeSet<String> = record.peers.keys().cloned().collect();
    let mut plan = disconnect::plan(&facts, &record, &peers)?;
    let has_entries = !plan.changes.is_empty();
    Box::pin(remove_own(context, &facts, &record, request, &mut plan)).await?;
    Box::pin(remove_certificate_job(context, &facts, request, &mut plan)).await?;
    match request.action {
        Action::Apply if has_entries && !request.adopt => refuse_kept(&facts, &record, output)?,
        Action::Apply => {}
        Action::DryRun => {
            output.document(&plan.to_string());
            return Ok(());
        }
        Action::PrintValues | Action::PrintManifests => return Err(Error::Print),
    }
    for change in &plan.changes {
        output.line(&format!("🗑️  Cluster {}: {change}", plan.cluster));
    }
    apply::apply(context, &plan, output).await?;
    match plan.changes.is_empty() {
        true => output.line(&format!("ℹ️  Cluster {}: nothing to change", facts.name())),
        false => output.line(&format!("✅ Cluster mesh is disabled in cluster {}", facts.name())),
    }
    remains(&facts, &record, program, output);
    Ok(())
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

/// Adds the removal of the objects that this program has made.
async fn remove_own(
    context: &Context,
    facts: &Facts,
    record: &Record,
    request: &Request,
    plan: &mut Plan,
) -> Result<(), Error> {
    let is_ours = |meta: &ObjectMeta| facts::keeper(meta) == Some(Keeper::Isthmus);
    let mut is_elsewhere = false;
    // The Deployment ends before what it uses is removed.
    for object in manifests::objects(&all(facts))?.iter().rev() {
        let target = Target::of(object);
        let live = apply::live(context, &target).await?;
        let namespace = live.as_ref().and_then(manifests::bound);
        is_elsewhere |= namespace.is_some_and(|namespace| namespace != facts.namespace);
        // The role follows its binding, which may be that of an installation in another namespace.
        if is_elsewhere && target.kind.starts_with("ClusterRole") {
            continue;
        }
        let meta = live.and_then(|live: Value| serde_json::from_value(live["metadata"].clone()).ok());
        if meta.is_some_and(|meta| is_ours(&meta)) {
            plan.delete(target);
        }
    }
    let target = |kind: &str, name: &str| Target {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        namespace: Some(facts.namespace.clone()),
        name: name.to_owned(),
    };
    let certificates = [secret::SERVER, secret::ADMIN, secret::REMOTE, secret::LOCAL];
    for (name, object) in &facts.secrets {
        let is_kept = certificates.contains(&&**name) && request.keep_certificates;
        // Other parts of Cilium may use certificates of the CA.
        if !is_ours(&object.metadata) || name == secret::CA || is_kept {
            continue;
        }
        let is_certificate = certificates.contains(&&**name);
        let keys = object.data.iter().flatten().map(|(key, _)| key);
        let (own, foreign): (Vec<&String>, Vec<&String>) =
            keys.partition(|key| (is_certificate && TLS.contains(&&***key)) || is_removed(plan, name, key));
        match (foreign.is_empty(), is_certificate && !own.is_empty()) {
            (true, _) => plan.delete(target("Secret", name)),
            (false, true) => plan.remove_keys(target("Secret", name), own.into_iter().cloned().collect()),
            (false, false) => {}
        }
    }
    let users = objects::users(facts, record, &Record::default()).map_err(disconnect::Error::from)?;
    let has_foreign_users = users != objects::NO_USERS;
    for (name, map, is_shared) in [(USERS, &facts.users, has_foreign_users), (RECORD, &facts.record, false)] {
        if map.as_ref().is_some_and(|map| is_ours(&map.metadata)) && !is_shared {
            plan.changes.retain(|change| change.target.name != name);
            plan.delete(target("ConfigMap", name));
        }
    }
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
    plan: &mut Plan,
) -> Result<(), Error> {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let job = [
        ("batch/v1", "CronJob"),
        (RBAC, "RoleBinding"),
        (RBAC, "Role"),
        ("v1", "ServiceAccount"),
    ];
    let job = job.map(|(version, kind)| (version, kind, cronjob::NAME));
    let state = (!request.keep_certificates).then_some(("v1", "Secret", ROTATION));
    for (version, kind, name) in job.into_iter().chain(state) {
        let target = Target {
            api_version: version.to_owned(),
            kind: kind.to_owned(),
            namespace: Some(facts.namespace.clone()),
            name: name.to_owned(),
        };
        let live = apply::live(context, &target).await?;
        let meta = live.and_then(|live| serde_json::from_value(live["metadata"].clone()).ok());
        if meta.is_some_and(|meta: ObjectMeta| facts::keeper(&meta) == Some(Keeper::Isthmus)) {
            plan.delete(target);
        }
    }
    Ok(())
}

/// Says what stays: the deployment of another tool, the CA, and the entries of other clusters.
fn remains(facts: &Facts, record: &Record, program: &str, output: &dyn Output) {
    let deployment = facts
        .deployment
        .as_ref()
        .and_then(|deployment| facts::keeper(&deployment.metadata));
    if let Some(keeper) = deployment.filter(|keeper| *keeper != Keeper::Isthmus) {
        output.line(&format!(
            "ℹ️  Deployment {}/{APISERVER} stays: {keeper} keeps it. Set clustermesh.useAPIServer and \
             clustermesh.config.enabled to false there",
            facts.namespace
        ));
    }
    if facts.secrets.contains_key(secret::CA) {
        output.line(&format!(
            "ℹ️  Secret {}/{} stays: other parts of Cilium may use this CA",
            facts.namespace,
            secret::CA
        ));
    }
    let readers = record.peers.iter().filter(|(_, peer)| peer.reads);
    for (name, peer) in readers {
        output.line(&format!(
            "⚠️  Cluster {name} keeps its entry for {} and goes on dialling",
            facts.name()
        ));
        output.line(&format!(
            "   💡 Run '{program} disconnect --context {} --destination-name {}'",
            peer.context,
            facts.name()
        ));
    }
}
