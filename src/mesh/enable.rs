//! `enable`: makes a cluster ready for a mesh. Where Cilium's chart runs the store, only what it leaves out is added;
//! otherwise our deployment is made. Existing certificates stay.

mod plan;

use super::apply;
use super::change::{Change, Plan, manifests};
use super::connect::Action;
use super::context::Context;
use super::endpoints::{self, AddressType};
use super::facts::{self, Facts, Keeper};
use super::flavor::{self, Undetected};
use super::manifests::{Broken, Exposure, Storage};
use super::objects;
use super::output::{Output, Silent};
use super::pki::{self, AuthMode};
use super::read;
use super::ready;
use super::wait::Waiting;
use crate::model::cluster::{self, ClusterInfo};
pub use plan::{Place, place};
use std::time::Duration;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub action: Action,
    /// `LoadBalancer`, `NodePort` or `ClusterIP`; `None` to find it.
    pub service_type: Option<String>,
    /// The node port for NodePort; 0 lets Kubernetes choose, `None` keeps what there is.
    pub node_port: Option<u16>,
    pub image: Option<String>,
    /// `None` keeps what there is.
    pub replicas: Option<u32>,
    pub storage: Option<Storage>,
    /// Whether a mirror runs in this cluster; `None` keeps what there is.
    pub mirror: Option<bool>,
    pub auth_mode: AuthMode,
    /// More names for the server certificate.
    pub names: Vec<String>,
    /// Take fields over from other tools.
    pub adopt: bool,
    /// Whether to wait until the store is ready, and how long.
    pub patience: Option<Duration>,
}

/// Why a cluster was not enabled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] read::Error),
    #[error(
        "cluster of context {context:?} has no name or id of its own (cluster-name: {name:?}, cluster-id: {id:?}): set the \
         values cluster.name and cluster.id of the Cilium chart, each different in every cluster, and restart all pods, whose \
         identities contain them"
    )]
    Unnamed { context: String, name: String, id: String },
    #[error(
        "ConfigMap {namespace}/cilium-config in context {context:?}: {why}; correct the values cluster.name, cluster.id and clustermesh.maxConnectedClusters of the Cilium chart"
    )]
    Identity {
        namespace: String,
        context: String,
        why: String,
    },
    #[error(transparent)]
    Undetected(#[from] Undetected),
    #[error("cannot find out whether the cluster is OpenShift: {0}; name the type with --service-type")]
    Groups(String),
    #[error(
        "cluster {0} keeps its identities in a kvstore (identity-allocation-mode {1}): run the mesh by the chart's values"
    )]
    Kvstore(String, String),
    #[error(
        "Secret {object} in context {context:?} has no private key (ca.key): certificates cannot be issued. Make the Secrets \
         {missing} with the tool that has the key of this CA, for example cert-manager, and run the command again"
    )]
    NoKey {
        object: String,
        context: String,
        missing: String,
    },
    #[error("Secret {object} in context {context:?}: {source}")]
    Pki {
        object: String,
        context: String,
        source: pki::Error,
    },
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error(transparent)]
    Users(#[from] objects::BadUsers),
    #[error(transparent)]
    Record(#[from] super::record::Invalid),
    #[error("{0}")]
    Apply(#[from] apply::Failure),
    #[error(transparent)]
    Live(#[from] Box<apply::Error>),
    #[error("the cluster would not accept the changes, nothing was changed: {0}")]
    Rehearsal(Box<apply::Error>),
    #[error(
        "{object} in context {context:?} belongs to the installation in namespace {namespace}, whose Deployment \
         {namespace}/clustermesh-apiserver exists: one cluster has one store. Disable it first (disable --namespace {namespace}), \
         or enable the mesh in that namespace"
    )]
    Elsewhere {
        object: String,
        context: String,
        namespace: String,
    },
    #[error(
        "{object} in context {context:?} is kept by {keeper}, which would undo the changes: set the values of --print=values \
         there, or take the objects over with --adopt"
    )]
    Kept {
        object: String,
        context: String,
        keeper: Keeper,
    },
    #[error(transparent)]
    Endpoints(#[from] endpoints::Error),
    #[error(transparent)]
    Ready(#[from] ready::Error),
    #[error("storage persistent needs --replicas=1, not {0}: one process at a time uses a data directory")]
    Replicas(u32),
    #[error(
        "changing the mirror of cluster {cluster} would cut off {}, which another tool has connected: connect them with \
         'connect --adopt' first, or change the mirror with that tool",
        peers.join(", ")
    )]
    Unknown { cluster: String, peers: Vec<String> },
    #[error(
        "a mirror in the connected cluster {0} needs --wait: agents can read their own store only once the mirror has filled it"
    )]
    NeedsWait(String),
    #[error("cannot print YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// Makes the cluster of `context` ready.
pub async fn enable(context: &Context, request: &Request, program: &str, output: &dyn Output) -> Result<(), Error> {
    apply::again(output, Error::is_race, async |_| {
        Box::pin(attempt(context, request, program, output)).await
    })
    .await
}

async fn attempt(context: &Context, request: &Request, program: &str, output: &dyn Output) -> Result<(), Error> {
    let facts = read::facts(context).await?;
    check(&facts)?;
    let place = place(&facts);
    let exposure = match place {
        Place::Chart => None,
        Place::Ours => Some(exposure(context, &facts, request, output).await?),
    };
    if request.action == Action::PrintValues {
        let kind = exposure
            .as_ref()
            .map(|exposure| &*exposure.kind)
            .or(facts.service_type());
        output.document(&plan::values(&facts, request, kind.unwrap_or("NodePort")));
        return Ok(());
    }
    let Some(exposure) = exposure else {
        return of_chart(context, &facts, request, program, output).await;
    };
    let objects = plan::deployment(&facts, request, exposure)?;
    let files = plan::client_files(&facts, request, &objects)?;
    if request.action == Action::PrintManifests {
        return printed(&objects, &files, program, output);
    }
    let objects = plan::with_users(&facts, objects)?;
    let plan = Box::pin(plan::with_live(context, &facts, objects, request.adopt)).await?;
    let mut whole = plan.clone();
    plan::certificates(&facts, request, &[], jiff::Timestamp::now(), &mut whole, &Silent)?;
    let deployment = whole.take_kind("Deployment");
    let ordered = [&files.before.changes, &deployment, &files.after.changes];
    whole.changes.extend(ordered.into_iter().flatten().cloned());
    if request.action == Action::DryRun {
        output.document(&whole.to_string());
    }
    rehearse(context, &whole).await?;
    if request.action == Action::DryRun {
        return Ok(());
    }
    deploy(context, &facts, plan, files, request, output).await?;
    finish(context, request, facts.name(), program, output);
    Ok(())
}

/// Asks the cluster whether it would accept the changes.
async fn rehearse(context: &Context, plan: &Plan) -> Result<(), Error> {
    let accepted = apply::rehearse(context, plan).await;
    accepted.map_err(|error| Error::Rehearsal(Box::new(error)))
}

/// Prints the objects that belong into a repository: no private keys, and no list of users, since a repository would
/// remove the users of clusters that are connected later.
fn printed(
    objects: &[serde_json::Value],
    files: &plan::ClientFiles,
    program: &str,
    output: &dyn Output,
) -> Result<(), Error> {
    let files = files.before.objects().chain(files.after.objects());
    output.document(&manifests(objects.iter().chain(files))?);
    output.line(&format!(
        "ℹ️  Without certificates: '{program} enable' issues them, and so does cert-manager"
    ));
    Ok(())
}

// === impl Error ===

impl Error {
    /// Whether another writer was faster.
    fn is_race(&self) -> bool {
        match self {
            Self::Apply(failure) => failure.error.is_race(),
            Self::Rehearsal(error) => error.is_race(),
            _ => false,
        }
    }
}

/// Fails unless the cluster can be part of a mesh.
fn check(facts: &Facts) -> Result<(), Error> {
    let (name, id) = (facts.setting("cluster-name"), facts.setting("cluster-id"));
    if !facts.is_named() {
        return Err(Error::Unnamed {
            context: facts.context.clone(),
            name: name.to_owned(),
            id: id.to_owned(),
        });
    }
    let identity = |why: String| Error::Identity {
        namespace: facts.namespace.clone(),
        context: facts.context.clone(),
        why,
    };
    let number = id
        .parse()
        .map_err(|_| identity(format!("cluster-id {id:?} is not a number")))?;
    let max = facts
        .max_connected()
        .map_err(|why| identity(format!("max-connected-clusters: {why}")))?;
    ClusterInfo::new(name, number, max).map_err(|why: cluster::Error| identity(why.to_string()))?;
    match facts.setting("identity-allocation-mode") {
        "" | "crd" => Ok(()),
        mode if mode.starts_with("doublewrite") => Ok(()),
        mode => Err(Error::Kvstore(name.to_owned(), mode.to_owned())),
    }
}

/// The type of the Service: the given one, that of a Service which is there, or that which suits the cloud.
async fn exposure(context: &Context, facts: &Facts, request: &Request, output: &dyn Output) -> Result<Exposure, Error> {
    // What this program applied once and leaves out later is removed: an internal load balancer would become a public one.
    let mut annotations = plan::own_annotations(facts);
    let of = |kind: &str, annotations| Exposure {
        kind: kind.to_owned(),
        node_port: plan::node_port(facts, request, kind),
        annotations,
    };
    if let Some(kind) = &request.service_type {
        if kind == "NodePort" {
            output.line("⚠️  Using service type NodePort may fail when nodes are removed from the cluster!");
        }
        return Ok(of(kind, annotations));
    }
    if let Some(kind) = facts.service_type() {
        return Ok(of(kind, annotations));
    }
    let groups = context.client.list_api_groups().await;
    let groups = groups.map_err(|error| Error::Groups(crate::k8s::client::describe(&error)))?;
    let has_routes = groups.groups.iter().any(|group| group.name == "route.openshift.io");
    let found = flavor::detect(facts, has_routes).exposure()?;
    output.line(found.line);
    let of_cloud = found.annotations.iter();
    annotations.extend(of_cloud.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Ok(of("LoadBalancer", annotations))
}

/// Adds to the chart's deployment what it leaves to others.
async fn of_chart(
    context: &Context,
    facts: &Facts,
    request: &Request,
    program: &str,
    output: &dyn Output,
) -> Result<(), Error> {
    let keeper = plan::keeper_of_store(facts).map_or_else(|| "another tool".to_owned(), |keeper| keeper.to_string());
    output.line(&format!(
        "ℹ️  Deployment {}/clustermesh-apiserver is kept by {keeper} and stays as it is",
        facts.namespace
    ));
    if let Some(kind) = request
        .service_type
        .as_ref()
        .filter(|kind| facts.service_type() != Some(&***kind))
    {
        output.line(&format!(
            "⚠️  Its Service stays of type {}: set the value clustermesh.apiserver.service.type to {kind} there",
            facts.service_type().unwrap_or("unknown")
        ));
    }
    for (flag, value) in plan::of_the_chart(facts, request) {
        output.line(&format!("⚠️  {flag} has no effect here: set the value {value} there"));
    }
    let plan = plan::beside_chart(facts)?;
    match request.action {
        Action::DryRun => {
            output.document(&plan.to_string());
            rehearse(context, &plan).await?;
        }
        Action::PrintManifests => output.line(&format!(
            "ℹ️  No manifests: the chart leaves ConfigMap {}/{} to others, and a repository would remove the users of \
             clusters that are connected later. '{program} enable' makes it",
            facts.namespace,
            facts::USERS
        )),
        Action::Apply | Action::PrintValues => {
            told(&plan, output);
            apply::apply(context, &plan, output).await?;
            if let Some(limit) = request.patience {
                ready::wait(context, limit, output).await?;
            }
            finish(context, request, facts.name(), program, output);
        }
    }
    Ok(())
}

fn told(plan: &Plan, output: &dyn Output) {
    if plan.changes.is_empty() {
        output.line(&format!("ℹ️  Cluster {}: nothing to change", plan.cluster));
    }
    for change in &plan.changes {
        output.line(&format!("🚀 Cluster {}: {change}", plan.cluster));
    }
}

/// Makes our deployment: the Service first, because a load balancer's name belongs into the server certificate.
async fn deploy(
    context: &Context,
    facts: &Facts,
    mut plan: Plan,
    files: plan::ClientFiles,
    request: &Request,
    output: &dyn Output,
) -> Result<(), Error> {
    let mut deployment: Vec<Change> = files.before.changes;
    deployment.extend(plan.take_kind("Deployment"));
    let all = || plan.changes.iter().chain(&deployment).chain(&files.after.changes);
    let is_new = all().next().is_some();
    for change in all() {
        output.line(&format!("🚀 Cluster {}: {change}", plan.cluster));
    }
    apply::apply(context, &plan, output).await?;
    let names = load_balancer_names(context, facts, request, output).await?;
    let mut rest = Plan::new(&facts.context, facts.name());
    plan::certificates(facts, request, &names, jiff::Timestamp::now(), &mut rest, output)?;
    let is_unchanged = !is_new && rest.changes.is_empty();
    rest.changes.extend(deployment);
    apply::apply(context, &rest, output).await?;
    if is_unchanged {
        output.line(&format!("ℹ️  Cluster {}: nothing to change", facts.name()));
    }
    if let Some(limit) = request.patience {
        ready::wait(context, limit, output).await?;
    }
    // The agents turn to a new mirror once it runs.
    apply::apply(context, &files.after, output).await?;
    Ok(())
}

/// The host names of the load balancer, once it has an address.
async fn load_balancer_names(
    context: &Context,
    facts: &Facts,
    request: &Request,
    output: &dyn Output,
) -> Result<Vec<String>, Error> {
    let mut now = Facts {
        service: read::service(context).await?,
        ..facts.clone()
    };
    if now.service_type() != Some("LoadBalancer") {
        return Ok(vec![]);
    }
    let mut waiting = Waiting::new(request.patience.unwrap_or_default());
    loop {
        match endpoints::discover(&now, AddressType::Auto, "--source-endpoint of connect") {
            Err(error @ endpoints::Error::Pending { .. }) => {
                let what = format!("the load balancer of cluster {}", facts.name());
                if !waiting.pause(&what, &error.to_string(), output).await {
                    output.line(&format!("⚠️  {error}"));
                    return Ok(vec![]);
                }
                let deadline = waiting.deadline();
                let read = || read::service_until(context, deadline);
                now.service = waiting.request(output, read).await?;
            }
            found => {
                let found = found?;
                output.line(&found.line());
                // Any of the names may be given to connect.
                return Ok(found.address.into_iter().chain(endpoints::not_dialled(&now)).collect());
            }
        }
    }
}

fn finish(context: &Context, request: &Request, name: &str, program: &str, output: &dyn Output) {
    match request.patience {
        Some(_) => output.line(&format!("✅ Cluster {name} is ready to be connected")),
        None => output.line(&format!(
            "✅ Cluster mesh is enabled in cluster {name}; its store may not be ready yet"
        )),
    }
    output.line(&format!(
        "   💡 Next: '{program} connect --context {} --destination-context <context of the other cluster>'",
        context.name
    ));
}

#[cfg(test)]
mod tests;
