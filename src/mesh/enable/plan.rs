//! What enabling a cluster changes.

use super::super::apply::live;
use super::super::change::{Plan, Target};
use super::super::context::Context;
use super::super::facts::{self, Facts, Keeper, MANAGED_BY, MANAGER, MirrorMode, secret};
use super::super::manifests::{self, Exposure, Options};
use super::super::objects;
use super::super::output::Output;
use super::super::pki::{self, Authority, Leaf, Material, Owner};
use super::super::record::Record;
use super::{Error, Request};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

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
    if facts.users.is_none() {
        let record = Record::read(facts)?;
        plan.apply(objects::users_object(facts, &record, &record)?, None, false);
    }
    Ok(plan)
}

/// The objects of our deployment.
pub fn deployment(facts: &Facts, request: &Request, exposure: Exposure) -> Result<Vec<Value>, Error> {
    let has_mirror = request.mirror.unwrap_or(match &facts.deployment {
        Some(_) => facts.mirror() == MirrorMode::On,
        None => true,
    });
    let options = Options {
        namespace: facts.namespace.clone(),
        image: request.image.clone().or_else(|| present_image(facts)),
        replicas: request.replicas,
        storage: request.storage,
        has_mirror,
        exposure,
    };
    let mut all = manifests::objects(&options)?;
    if facts.users.is_none() {
        let record = Record::read(facts)?;
        all.insert(0, objects::users_object(facts, &record, &record)?);
    }
    Ok(all)
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
            plan.apply(ca_object(facts, &authority), None, false);
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
        plan.apply(leaf_object(facts, leaf.secret(), &material), None, false);
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
    let mirror = request.mirror.unwrap_or(true);
    let port = match (kind, request.node_port) {
        ("NodePort", 1..) => format!("      nodePort: {}\n", request.node_port),
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
        request.replicas
    )
}
