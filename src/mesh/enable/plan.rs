//! What enabling a cluster changes.

use super::super::apply::live;
use super::super::change::{self, Plan, Target};
use super::super::connect::{self, Action};
use super::super::context::Context;
use super::super::facts::{self, APISERVER, Facts, Keeper, MANAGED_BY, MANAGER, MirrorMode, USERS_KEY, secret};
use super::super::manifests::{self, Exposure, Options, Storage};
use super::super::objects;
use super::super::output::Output;
use super::super::pki::{self, Authority, Leaf, Material, Owner};
use super::super::record::Record;
use super::{Error, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The node port of the chart.
const NODE_PORT: u16 = 32379;
/// The common name of the chart's CA.
const CA_NAME: &str = "Cilium CA";
/// The certificates that our deployment and the agents mount.
const LEAVES: [Leaf; 3] = [Leaf::Server, Leaf::Remote, Leaf::Local];

/// Who runs the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Cilium's chart, or another tool.
    Chart,
    /// This program, or nobody yet.
    Ours,
}

/// Who runs the store of a cluster.
pub fn place(facts: &Facts) -> Place {
    match &facts.deployment {
        Some(deployment) if facts::keeper(&deployment.metadata) != Some(Keeper::Isthmus) => Place::Chart,
        _ => Place::Ours,
    }
}

pub fn keeper_of_store(facts: &Facts) -> Option<Keeper> {
    facts::keeper(&facts.deployment.as_ref()?.metadata)
}

/// What the chart leaves to others: the users, without which its pod does not start.
pub fn beside_chart(facts: &Facts) -> Result<Plan, Error> {
    let mut plan = Plan::new(&facts.context, facts.name());
    for object in with_users(facts, vec![])? {
        let present = connect::live(facts, &object);
        plan.apply(object, present.as_ref(), false);
    }
    Ok(plan)
}

/// The objects of our deployment.
pub fn deployment(facts: &Facts, request: &Request, exposure: Exposure) -> Result<Vec<Value>, Error> {
    let storage = storage(facts, request);
    let replicas = replicas(facts, request);
    if storage == Storage::Persistent && replicas != 1 {
        return Err(Error::Replicas(replicas));
    }
    let options = Options {
        namespace: facts.namespace.clone(),
        image: request.image.clone().or_else(|| present_image(facts)),
        replicas,
        storage,
        has_mirror: mirror(facts, request) == MirrorMode::On,
        exposure,
    };
    Ok(manifests::objects(&options)?)
}

/// The objects of our deployment, and the users of the peers if they are missing.
pub fn with_users(facts: &Facts, mut objects: Vec<Value>) -> Result<Vec<Value>, Error> {
    let data = facts.users.as_ref().and_then(|map| map.data.as_ref());
    // The ConfigMap has no contents where a command was interrupted.
    if data.is_none_or(|data| !data.contains_key(USERS_KEY)) {
        let record = Record::read(facts)?;
        objects.insert(0, objects::users_object(facts, &record, &record)?);
    }
    Ok(objects)
}

/// The port on the nodes of a Service of this type: a second run without --node-port does not move it.
pub fn node_port(facts: &Facts, request: &Request, kind: &str) -> u16 {
    let spec = facts.service.as_ref().and_then(|service| service.spec.as_ref());
    let port = spec.and_then(|spec| spec.ports.as_ref()?.first()?.node_port);
    let present = port.filter(|_| kind == "NodePort" && facts.service_type() == Some("NodePort"));
    let present = present.and_then(|port| u16::try_from(port).ok());
    request.node_port.or(present).unwrap_or(NODE_PORT)
}

fn replicas(facts: &Facts, request: &Request) -> u32 {
    let spec = facts
        .deployment
        .as_ref()
        .and_then(|deployment| deployment.spec.as_ref());
    let present = spec.and_then(|spec| u32::try_from(spec.replicas?).ok());
    request.replicas.or(present).unwrap_or(1)
}

/// Where the store keeps its data: a second run without --storage does not lose it.
fn storage(facts: &Facts, request: &Request) -> Storage {
    let spec = facts
        .deployment
        .as_ref()
        .and_then(|deployment| deployment.spec.as_ref());
    let present = spec.and_then(|spec| manifests::storage(spec.template.spec.as_ref()?));
    request.storage.or(present).unwrap_or_default()
}

fn mirror(facts: &Facts, request: &Request) -> MirrorMode {
    let is_wanted = request.mirror.unwrap_or(match &facts.deployment {
        Some(_) => facts.mirror() == MirrorMode::On,
        None => true,
    });
    if is_wanted { MirrorMode::On } else { MirrorMode::Off }
}

/// The annotations of the Service that this program has applied.
pub fn own_annotations(facts: &Facts) -> Vec<(String, String)> {
    let Some(service) = &facts.service else { return vec![] };
    // An object of the API is representable.
    let live = serde_json::to_value(service).unwrap_or_default();
    let names = change::owned(&live).into_iter().filter_map(|path| match &path[..] {
        [meta, notes, name] if meta == "metadata" && notes == "annotations" => Some(name.clone()),
        _ => None,
    });
    let notes = service.metadata.annotations.as_ref();
    names
        .filter_map(|name| {
            let value = notes?.get(&name)?.clone();
            Some((name, value))
        })
        .collect()
}

/// The flags of a request that a chart's deployment does not follow, and the value to set instead.
pub fn of_the_chart(facts: &Facts, request: &Request) -> Vec<(&'static str, String)> {
    let mut found = vec![];
    if let Some(image) = &request.image {
        found.push(("--image", format!("clustermesh.apiserver.image.override to {image}")));
    }
    if let Some(replicas) = request
        .replicas
        .filter(|_| replicas(facts, &Request::default()) != replicas(facts, request))
    {
        found.push(("--replicas", format!("clustermesh.apiserver.replicas to {replicas}")));
    }
    if let Some(storage) = request.storage {
        let medium = if storage == Storage::Memory { "Memory" } else { "Disk" };
        found.push((
            "--storage",
            format!("clustermesh.apiserver.etcd.storageMedium to {medium}"),
        ));
    }
    let is_on = facts.mirror() == MirrorMode::On;
    if let Some(mirror) = request.mirror.filter(|mirror| *mirror != is_on) {
        let value = format!("clustermesh.apiserver.kvstoremesh.enabled to {mirror}");
        found.push(("--enable-kvstoremesh", value));
    }
    if request
        .node_port
        .is_some_and(|_| node_port(facts, request, "NodePort") != node_port(facts, &Request::default(), "NodePort"))
    {
        let port = request.node_port.unwrap_or_default();
        found.push((
            "--node-port",
            format!("clustermesh.apiserver.service.nodePort to {port}"),
        ));
    }
    found
}

/// The client files of a connected cluster, around the change of the Deployment.
#[derive(Debug, Default)]
pub struct ClientFiles {
    pub before: Plan,
    pub after: Plan,
}

/// The client files that fit the Deployment among `objects`. Without a mirror the agents read the peers' stores, which
/// they must know before the mirror ends; with a mirror they read the own store, which must be filled before.
pub fn client_files(facts: &Facts, request: &Request, objects: &[Value]) -> Result<ClientFiles, Error> {
    let new = || Plan::new(&facts.context, facts.name());
    let mut files = ClientFiles {
        before: new(),
        after: new(),
    };
    let record = Record::read(facts)?;
    let mode = mirror(facts, request);
    if facts.deployment.is_some() && mode != facts.mirror() {
        let peers = facts
            .peers()
            .into_iter()
            .filter(|name| !record.peers.contains_key(name));
        let peers: Vec<String> = peers.collect();
        if !peers.is_empty() {
            let cluster = facts.name().to_owned();
            return Err(Error::Unknown { cluster, peers });
        }
    }
    if record.peers.is_empty() {
        return Ok(files);
    }
    let deployment = objects.iter().find(|object| object["kind"] == "Deployment");
    let later = Facts {
        deployment: deployment.and_then(|object| serde_json::from_value(object.clone()).ok()),
        ..facts.clone()
    };
    let agents = objects::secret_of(&later, secret::AGENTS, &objects::agents(&later, &record));
    let mirror = objects::secret_of(&later, secret::MIRROR, &objects::mirror(&later, &record));
    let has_mirror = mode == MirrorMode::On || facts.secrets.contains_key(secret::MIRROR);
    let (first, last) = match mode {
        MirrorMode::On => (Some(mirror), Some(agents)),
        MirrorMode::Off => (Some(agents), Some(mirror).filter(|_| has_mirror)),
    };
    for (object, plan) in [(first, &mut files.before), (last, &mut files.after)] {
        let Some(object) = object else { continue };
        let live = facts
            .secrets
            .get(object["metadata"]["name"].as_str().unwrap_or_default());
        // An object of the API is representable.
        let live = live.and_then(|live| serde_json::to_value(live).ok());
        if let Some(keeper) = live.as_ref().and_then(other_keeper).filter(|_| !request.adopt) {
            let mut differs = new();
            differs.apply(object.clone(), live.as_ref(), false);
            if !differs.changes.is_empty() {
                return Err(Error::Kept {
                    object: Target::of(&object).to_string(),
                    context: facts.context.clone(),
                    keeper,
                });
            }
        }
        plan.apply(object, live.as_ref(), request.adopt);
    }
    let turns_to_mirror = mode == MirrorMode::On && !files.after.changes.is_empty();
    if turns_to_mirror && request.action == Action::Apply && request.patience.is_none() {
        return Err(Error::NeedsWait(facts.name().to_owned()));
    }
    Ok(files)
}

/// The image that runs: a second run without --image does not go back to the default.
fn present_image(facts: &Facts) -> Option<String> {
    facts.containers().first()?.image.clone()
}

/// The plan for objects, beside those that exist.
pub async fn with_live(context: &Context, facts: &Facts, objects: Vec<Value>, adopt: bool) -> Result<Plan, Error> {
    let mut plan = Plan::new(&facts.context, facts.name());
    for object in objects {
        let present = live(context, &Target::of(&object)).await.map_err(Box::new)?;
        if let Some(present) = &present {
            not_elsewhere(context, facts, present).await?;
        }
        if let Some(keeper) = present.as_ref().and_then(other_keeper).filter(|_| !adopt) {
            return Err(Error::Kept {
                object: Target::of(&object).to_string(),
                context: facts.context.clone(),
                keeper,
            });
        }
        plan.apply(object, present.as_ref(), true);
    }
    Ok(plan)
}

/// Refuses to take an object of the whole cluster from a store that runs in another namespace, whose pods would lose their
/// rights.
async fn not_elsewhere(context: &Context, facts: &Facts, present: &Value) -> Result<(), Error> {
    let Some(namespace) = manifests::bound(present).filter(|namespace| *namespace != facts.namespace) else {
        return Ok(());
    };
    let store = Target {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: Some(namespace.to_owned()),
        name: APISERVER.to_owned(),
    };
    match live(context, &store).await.map_err(Box::new)? {
        // Its namespace may have been deleted.
        None => Ok(()),
        Some(_) => Err(Error::Elsewhere {
            object: Target::of(present).to_string(),
            context: facts.context.clone(),
            namespace: namespace.to_owned(),
        }),
    }
}

/// The other tool that keeps an object.
fn other_keeper(object: &Value) -> Option<Keeper> {
    let meta = serde_json::from_value(object["metadata"].clone()).ok()?;
    facts::keeper(&meta).filter(|keeper| *keeper != Keeper::Isthmus)
}

/// Adds the Secrets that are missing. Existing ones stay, whoever made them.
pub fn certificates(
    facts: &Facts,
    request: &Request,
    names: &[String],
    now: Timestamp,
    plan: &mut Plan,
    output: &dyn Output,
) -> Result<(), Error> {
    let missing: Vec<Leaf> = LEAVES
        .into_iter()
        .filter(|leaf| !facts.secrets.contains_key(leaf.secret()))
        .collect();
    let names: Vec<String> = request.names.iter().chain(names).cloned().collect();
    warn_of_names(facts, &names, output);
    if missing.is_empty() {
        return Ok(());
    }
    let authority = match authority(facts, &missing)? {
        Some(authority) => authority,
        None => {
            let authority = Authority::generate(CA_NAME, now).map_err(|source| bad(facts, secret::CA, source))?;
            output.line(&format!("🔑 Created CA in Secret {}/{}", facts.namespace, secret::CA));
            plan.create(ca_object(facts, &authority));
            authority
        }
    };
    let owner = Owner {
        cluster: facts.name().to_owned(),
        namespace: facts.namespace.clone(),
        auth_mode: request.auth_mode,
        extra_names: names,
    };
    for leaf in missing {
        let issued = authority.issue(&leaf.request(&owner), now);
        let material = issued.map_err(|source| bad(facts, secret::CA, source))?;
        output.line(&format!(
            "🔑 Created certificate in Secret {}/{}",
            facts.namespace,
            leaf.secret()
        ));
        plan.create(leaf_object(facts, leaf.secret(), &material));
    }
    Ok(())
}

fn bad(facts: &Facts, name: &str, source: pki::Error) -> Error {
    Error::Pki {
        object: format!("{}/{name}", facts.namespace),
        context: facts.context.clone(),
        source,
    }
}

/// Says which names an existing server certificate lacks.
fn warn_of_names(facts: &Facts, names: &[String], output: &dyn Output) {
    let text = facts.secret_text(secret::SERVER, "tls.crt");
    let Some(Ok(all)) = text.map(pki::certificates) else {
        return;
    };
    for name in names.iter().filter(|name| !all[0].is_for(name)) {
        output.line(&format!(
            "⚠️  Secret {}/{} is kept, and its certificate is not valid for {name}: 'certs rotate --add-name {name}' adds it",
            facts.namespace,
            secret::SERVER
        ));
    }
}

/// The CA of the cluster; `None` if there is none.
fn authority(facts: &Facts, missing: &[Leaf]) -> Result<Option<Authority>, Error> {
    if !facts.secrets.contains_key(secret::CA) {
        return Ok(None);
    }
    let first = |keys: [&str; 2]| keys.into_iter().find_map(|key| facts.secret_text(secret::CA, key));
    let cert = first(["ca.crt", "tls.crt"]).unwrap_or_default();
    let key = first(["ca.key", "tls.key"]).filter(|key| !key.trim().is_empty());
    let key = key.ok_or_else(|| Error::NoKey {
        object: format!("{}/{}", facts.namespace, secret::CA),
        context: facts.context.clone(),
        missing: missing.iter().map(|leaf| leaf.secret()).collect::<Vec<_>>().join(", "),
    })?;
    let parsed = Authority::parse(cert, key).map_err(|source| bad(facts, secret::CA, source))?;
    Ok(Some(parsed))
}

/// The Secret of a new CA. It carries the marks that Helm needs for taking it over, because Cilium's chart makes a Secret
/// of this name as soon as Hubble or the mesh is enabled in it.
fn ca_object(facts: &Facts, authority: &Authority) -> Value {
    let mut meta = json!({"name": secret::CA, "namespace": facts.namespace,
        "labels": {MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "cilium"}});
    if let Some(release) = facts.release() {
        meta["labels"][MANAGED_BY] = json!("Helm");
        meta["annotations"] = json!({"meta.helm.sh/release-name": release.name,
            "meta.helm.sh/release-namespace": release.namespace});
    }
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta,
        "data": {"ca.crt": STANDARD.encode(authority.cert()), "ca.key": STANDARD.encode(authority.key())}})
}

fn leaf_object(facts: &Facts, name: &str, material: &Material) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": objects::metadata(facts, name, None),
        "data": {"tls.crt": STANDARD.encode(&material.cert), "tls.key": STANDARD.encode(&material.key),
            "ca.crt": STANDARD.encode(&material.ca)}})
}

/// The values of Cilium's chart that enable the mesh in the same way.
pub fn values(facts: &Facts, request: &Request, kind: &str) -> String {
    let mirror = mirror(facts, request) == MirrorMode::On;
    let port = match (kind, node_port(facts, request, kind)) {
        ("NodePort", port @ 1..) => format!("      nodePort: {port}\n"),
        _ => String::new(),
    };
    let override_ = request
        .image
        .as_ref()
        .map(|image| format!("    image:\n      override: {image}\n"));
    format!(
        "# Values of the Cilium chart for cluster {} (context {})\nclustermesh:\n  useAPIServer: true\n  config:\n    \
         enabled: true\n  apiserver:\n{}    replicas: {}\n    service:\n      type: {kind}\n{port}    kvstoremesh:\n      \
         enabled: {mirror}\n",
        facts.name(),
        facts.context,
        override_.unwrap_or_default(),
        replicas(facts, request)
    )
}
