//! Replaces the authority of a mesh. The steps are those of [`crate::mesh::rotation`]; this shell reads the clusters, rests
//! between the steps, proves that each step keeps every connection, and writes.

mod member;

use super::Method;
use super::leaves::{self, check_methods};
use super::store::{self, Store};
use crate::mesh::context::Context;
use crate::mesh::facts::{Facts, secret};
use crate::mesh::handshake::{self, Ends};
use crate::mesh::output::Output;
use crate::mesh::pki::{self, Authority, Leaf};
use crate::mesh::ready;
use crate::mesh::rotation::{Rotation, Step};
use crate::mesh::trust;
use jiff::{SignedDuration, Timestamp};
use member::{Member, Prepared};
use std::collections::BTreeSet;
use std::time::Duration;

/// The Secret that holds both authorities while a rotation is under way.
pub const STATE: &str = "isthmus-ca-rotation";
const OLD: &str = "old.crt";
const NEW: &str = "ca.crt";
const NEW_KEY: &str = "ca.key";
/// When the last step was done.
const STEP_AT: &str = "isthmus.io/step-at";
/// Limit for a restart of the stores of one cluster.
const ROLLOUT: Duration = Duration::from_secs(600);

/// How to rotate.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Connected clusters that are not part of the rotation, because they are dead.
    pub without: BTreeSet<String>,
    pub restart: Restart,
    /// Time after a step until all pods have read the change.
    pub rest: SignedDuration,
    /// Whether to write Secrets that another tool renders, too.
    pub adopt: bool,
    /// Whether to write nothing.
    pub dry_run: bool,
}

/// Whether stores are restarted after a change of what they trust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Those that read their trust file only at their start: etcd itself.
    #[default]
    Auto,
    Always,
    Never,
}

/// Why the authority was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Leaves(#[from] leaves::Error),
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error(transparent)]
    Rollout(#[from] Box<ready::Error>),
    #[error(
        "cluster {cluster} is connected to {missing}, which would not trust the new CA: add --destination-context, or \
         --without={missing} if that cluster is gone for good"
    )]
    Missing { cluster: String, missing: String },
    #[error(
        "the state of the rotation in Secret {STATE} of cluster {0} cannot be used: run the command again with the clusters \
         of the first run, or delete the Secret in all clusters to start anew"
    )]
    State(String),
    #[error("{kind} {name}, key {key}, of cluster {cluster} cannot be read: {why}; correct it first")]
    Place {
        kind: &'static str,
        name: String,
        key: String,
        cluster: String,
        why: Box<pki::Error>,
    },
    #[error(
        "{object} in context {context:?} is kept by {by}, which would write the old CA back: replace the CA with that tool, or \
         stop it from writing this object and add --adopt"
    )]
    Kept {
        object: String,
        context: String,
        by: String,
    },
    #[error(
        "after the step {step:?} {client} of cluster {cluster} would not get a connection to the store of {server}: {why}. \
         Nothing of this step was written. Mend the cause and run the command again: the rotation goes on where it is"
    )]
    Broken {
        step: Step,
        client: &'static str,
        cluster: String,
        server: String,
        why: handshake::Failure,
    },
}

/// Replaces the authority of the first cluster of `contexts`, which are at least one. The others are those that trust it,
/// or have the same one.
pub async fn rotate(contexts: &[Context], options: &Options, output: &dyn Output) -> Result<(), Error> {
    let mut members = read(contexts).await?;
    check(&members, options)?;
    let (rotation, new) = begin(&members, options, output).await?;
    loop {
        let step = due(&rotation, &members);
        if options.dry_run {
            announce(&rotation, step, &members, output);
            return Ok(());
        }
        // What was written before is served before the next step builds on it.
        if step != Step::Trust {
            for member in &members {
                member.serve_trust(options.restart, output).await?;
            }
        }
        rest(&members, step, options, output).await;
        // Others may have written meanwhile.
        members = read(contexts).await?;
        if due(&rotation, &members) != step {
            continue;
        }
        if step == Step::Done {
            break;
        }
        let prepared = prepare(&rotation, step, &members, &new)?;
        connected(step, &members, &prepared)?;
        output.line(&format!("🔑 {}: {}", words(step), step.describe()));
        for (member, prepared) in members.iter().zip(&prepared) {
            member.perform(prepared, &new, output).await?;
        }
        members = read(contexts).await?;
    }
    for member in &members {
        member.store.delete(STATE).await?;
    }
    output.line("✅ The CA has been replaced in all clusters");
    Ok(())
}

fn due(rotation: &Rotation, members: &[Member<'_>]) -> Step {
    let clusters: Vec<_> = members.iter().map(Member::cluster).collect();
    rotation.due(&clusters)
}

/// Prints what is to be done next.
fn announce(rotation: &Rotation, step: Step, members: &[Member<'_>], output: &dyn Output) {
    output.line(&format!("ℹ️  Would do next: {}", step.describe()));
    for member in members.iter().filter(|_| step != Step::Done) {
        let work = rotation.work(step, &member.cluster());
        output.line(&member::summary(
            &member.facts,
            work.places.len(),
            work.files.len(),
            work.leaves.len(),
        ));
    }
}

fn words(step: Step) -> &'static str {
    match step {
        Step::Trust => "Step 1 of 4",
        Step::Reload => "Step 2 of 4",
        Step::Issue => "Step 3 of 4",
        Step::Forget => "Step 4 of 4",
        Step::Done => "the end",
    }
}

async fn read(contexts: &[Context]) -> Result<Vec<Member<'_>>, Error> {
    let read = contexts.iter().map(|context| Member::read(Store { context }));
    futures::future::try_join_all(read).await
}

fn kept(facts: &Facts, object: String, by: String) -> Error {
    let context = facts.context.clone();
    Error::Kept { object, context, by }
}

/// Refuses to begin where the mesh would break, or where another tool would undo the change.
fn check(members: &[Member<'_>], options: &Options) -> Result<(), Error> {
    let names: BTreeSet<_> = members.iter().map(|member| member.facts.name().to_owned()).collect();
    for member in members {
        check_methods(&member.facts, &Leaf::ALL, options.adopt)?;
        let method = member
            .facts
            .secrets
            .get(secret::CA)
            .map(|secret| Method::of(&secret.metadata));
        if let Some(by) = method.and_then(|method| method.name()).filter(|_| !options.adopt) {
            return Err(kept(&member.facts, format!("Secret {}", secret::CA), by));
        }
        let is_bundle = member.facts.bundle.is_some() && !options.adopt;
        if let Some(by) = trust::renewer(&member.facts).filter(|_| is_bundle) {
            let (bundle, _) = trust::target(&member.facts);
            return Err(kept(&member.facts, bundle.to_string(), by.to_string()));
        }
        member.check_places()?;
        let missing = member.connected();
        let missing = missing
            .into_iter()
            .find(|peer| !names.contains(peer) && !options.without.contains(peer));
        if let Some(missing) = missing {
            let cluster = member.facts.name().to_owned();
            return Err(Error::Missing { cluster, missing });
        }
    }
    Ok(())
}

/// The rotation that is under way, or a new one.
async fn begin(members: &[Member<'_>], options: &Options, output: &dyn Output) -> Result<(Rotation, Authority), Error> {
    let (mut authorities, mut key) = (None::<(String, String)>, None);
    for member in members {
        let Some(state) = &member.state else { continue };
        let text = |key: &str| {
            let value = state.data.as_ref()?.get(key)?;
            String::from_utf8(value.0.clone()).ok()
        };
        let (Some(old), Some(new)) = (text(OLD), text(NEW)) else {
            return Err(Error::State(member.facts.name().to_owned()));
        };
        if authorities.as_ref().is_some_and(|(_, known)| *known != new) {
            return Err(Error::State(member.facts.name().to_owned()));
        }
        authorities = Some((old, new));
        key = key.or(text(NEW_KEY));
    }
    let (old, new) = match (authorities, key) {
        (Some((old, new)), Some(key)) => {
            output.line("ℹ️  A rotation is under way and goes on");
            (old, Authority::parse(&new, &key)?)
        }
        (Some(_), None) => return Err(Error::State(members[0].facts.name().to_owned())),
        (None, _) => {
            let old = leaves::authority(&members[0].facts)?.certificate()?;
            let new = Authority::generate(&old.common_name, Timestamp::now())?;
            (pki::encode(&old.der), new)
        }
    };
    let rotation = Rotation::new(&old, new.cert())?;
    if !options.dry_run {
        for member in members.iter().filter(|member| member.state.is_none()) {
            let mut values = vec![(OLD, old.as_str()), (NEW, new.cert())];
            // A cluster with a CA of its own gets no key of another one.
            if pki::contains(member.facts.secret_text(secret::CA, "ca.crt").unwrap_or_default(), &old) {
                values.push((NEW_KEY, new.key()));
            }
            member.store.create(STATE, &values).await?;
        }
    }
    Ok((rotation, new))
}

/// Waits until the pods of all members have read the last step's changes.
async fn rest(members: &[Member<'_>], step: Step, options: &Options, output: &dyn Output) {
    let now = Timestamp::now();
    let waits = members
        .iter()
        .filter_map(|member| member.step_at)
        .map(|at| Step::rest(at, options.rest, now));
    let longest = waits.max().unwrap_or(SignedDuration::ZERO);
    if longest > SignedDuration::ZERO {
        let seconds = longest.as_secs();
        let next = words(step);
        output.line(&format!(
            "⌛ Waiting {seconds}s until all pods have read the last change, before: {next}"
        ));
        tokio::time::sleep(longest.unsigned_abs()).await;
    }
}

/// What the step writes in each cluster. Certificates are issued now, and proven before they are written.
fn prepare(rotation: &Rotation, step: Step, members: &[Member<'_>], new: &Authority) -> Result<Vec<Prepared>, Error> {
    let one = |member: &Member<'_>| member.prepare(rotation.work(step, &member.cluster()), new);
    members.iter().map(one).collect()
}

/// Proves that every client gets its connection, whichever of the clusters the step has reached.
fn connected(step: Step, members: &[Member<'_>], prepared: &[Prepared]) -> Result<(), Error> {
    let now = Timestamp::now();
    for (at, client) in members.iter().enumerate() {
        for (to, server) in members.iter().enumerate() {
            let clients: &[(Leaf, &'static str)] = match at == to {
                true => &[(Leaf::Local, "an agent"), (Leaf::Admin, "the publisher")],
                false if client.reads(server.facts.name()) => &[(Leaf::Remote, "the mirror")],
                false => &[],
            };
            for (leaf, name) in clients {
                for (with, against) in [(false, false), (true, false), (false, true), (true, true)] {
                    let client_side = client.seen(*leaf, with.then_some(&prepared[at]));
                    let server_side = server.seen(Leaf::Server, against.then_some(&prepared[to]));
                    let (Some(own), Some(theirs)) = (client_side, server_side) else {
                        continue;
                    };
                    let trusts = client.trusts(server.facts.name(), &own, with.then_some(&prepared[at]));
                    let ends = Ends {
                        server: &theirs,
                        server_name: &format!("{}.mesh.cilium.io", server.facts.name()),
                        client: &own,
                        client_trusts: &trusts,
                        server_trusts: &theirs.ca,
                    };
                    handshake::attempt(&ends, now).map_err(|why| Error::Broken {
                        step,
                        client: name,
                        cluster: client.facts.name().to_owned(),
                        server: server.facts.name().to_owned(),
                        why,
                    })?;
                }
            }
        }
    }
    Ok(())
}
