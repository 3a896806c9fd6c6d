//! `disable`: removes from a cluster what `enable` and `connect` have made, and says which clusters still dial it.

use super::apply;
use super::change::{Plan, Target};
use super::connect::Action;
use super::context::Context;
use super::disconnect;
use super::facts::{self, APISERVER, Facts, Keeper, RECORD, USERS, secret};
use super::manifests::{self, Broken, Exposure, Options, Storage};
use super::output::Output;
use super::read;
use super::record::{self, Record};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::collections::BTreeSet;

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
    remove_own(context, &facts, request, &mut plan).await?;
    match request.action {
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

/// Adds the removal of the objects that this program has made.
async fn remove_own(context: &Context, facts: &Facts, request: &Request, plan: &mut Plan) -> Result<(), Error> {
    let is_ours = |meta: &ObjectMeta| facts::keeper(meta) == Some(Keeper::Isthmus);
    let options = Options {
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
    };
    // The Deployment ends before what it uses is removed.
    for object in manifests::objects(&options)?.iter().rev() {
        let target = Target::of(object);
        let live = apply::live(context, &target).await?;
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
        if is_ours(&object.metadata) && name != secret::CA && !is_kept {
            plan.delete(target("Secret", name));
        }
    }
    for (name, map) in [(USERS, &facts.users), (RECORD, &facts.record)] {
        if map.as_ref().is_some_and(|map| is_ours(&map.metadata)) {
            plan.changes.retain(|change| change.target.name != name);
            plan.delete(target("ConfigMap", name));
        }
    }
    let deleted: Vec<Target> = plan
        .changes
        .iter()
        .filter(|change| change.step == super::change::Step::Delete)
        .map(|change| change.target.clone())
        .collect();
    // Nothing is changed in an object that is deleted afterwards.
    plan.changes
        .retain(|change| change.step == super::change::Step::Delete || !deleted.contains(&change.target));
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
