//! `disconnect`: removes peers from a cluster. A peer that is dead is removed by its name; nothing is asked of it.

mod plan;

use super::apply;
use super::change::Plan;
use super::connect::{Action, Mode, keeper};
use super::context::Context;
use super::facts::{Facts, Keeper};
use super::objects;
use super::output::Output;
use super::pki;
use super::read;
use super::record::{self, Record};
use super::values;
pub use plan::plan;
use std::collections::BTreeSet;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub mode: Mode,
    pub action: Action,
    /// Names of clusters that are not asked: they are dead, or out of reach.
    pub names: Vec<String>,
    /// Take fields over from other tools.
    pub adopt: bool,
}

/// Why clusters were not disconnected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no destination context specified, use --destination-context to specify which cluster to disconnect from, or \
         --destination-name for a cluster that does not answer"
    )]
    NoDestination,
    #[error("{error}; if this cluster is dead, remove it by its name: --destination-name")]
    Destination { error: read::Error },
    #[error(transparent)]
    Read(#[from] read::Error),
    #[error(transparent)]
    Record(#[from] record::Invalid),
    #[error(transparent)]
    Users(#[from] objects::BadUsers),
    #[error("the CAs of cluster {cluster} cannot be read: {why}")]
    Authorities { cluster: String, why: pki::Error },
    #[error(
        "{object} in context {context:?} is kept by {keeper}, which would restore the connection: commit the values above \
         there, or change the objects nevertheless with --adopt"
    )]
    Kept {
        object: String,
        context: String,
        keeper: Keeper,
    },
    #[error("not all clusters were changed; correct the cause and run the same command again, which continues")]
    Halfway,
    #[error("cannot print YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// A cluster that is changed, and the peers that it loses.
struct Member<'a> {
    context: &'a Context,
    facts: Facts,
    record: Record,
    lost: BTreeSet<String>,
}

/// Disconnects the first of `contexts` from the others and from the clusters that the request names.
pub async fn disconnect(
    contexts: &[Context],
    request: &Request,
    program: &str,
    output: &dyn Output,
) -> Result<(), Error> {
    if contexts.len() < 2 && request.names.is_empty() {
        return Err(Error::NoDestination);
    }
    let members = gather(contexts, request).await?;
    let plans: Vec<Plan> = members
        .iter()
        .map(|member| plan(&member.facts, &member.record, &member.lost))
        .collect::<Result<_, _>>()?;
    match request.action {
        Action::Apply => {}
        Action::DryRun => {
            output.document(&plans.iter().map(ToString::to_string).collect::<String>());
            return Ok(());
        }
        Action::PrintValues => {
            let texts: Vec<String> = members.iter().map(values_without).collect();
            output.document(&texts.join("---\n"));
            return Ok(());
        }
        Action::PrintManifests => {
            for plan in &plans {
                output.document(&format!(
                    "# Context {}\n{}",
                    plan.context,
                    super::change::manifests(plan.objects())?
                ));
            }
            return Ok(());
        }
    }
    if !request.adopt {
        refuse_kept(&members, &plans, output)?;
    }
    let mut is_complete = true;
    for (member, plan) in members.iter().zip(&plans) {
        is_complete &= carry_out(member, plan, output).await;
    }
    if !is_complete {
        return Err(Error::Halfway);
    }
    done(&members, &plans, request, program, output);
    Ok(())
}

async fn gather<'a>(contexts: &'a [Context], request: &Request) -> Result<Vec<Member<'a>>, Error> {
    let read = futures::future::join_all(contexts.iter().map(read::facts)).await;
    let mut members: Vec<Member<'a>> = vec![];
    for (at, (context, facts)) in contexts.iter().zip(read).enumerate() {
        let facts = match facts {
            Err(error) if at > 0 => return Err(Error::Destination { error }),
            facts => facts?,
        };
        let record = Record::read(&facts)?;
        members.push(Member {
            context,
            facts,
            record,
            lost: BTreeSet::new(),
        });
    }
    let names: Vec<String> = members.iter().map(|member| member.facts.name().to_owned()).collect();
    for (at, member) in members.iter_mut().enumerate() {
        let others = names.iter().enumerate().filter(|(other, _)| match request.mode {
            Mode::Mesh => *other != at,
            Mode::Bidirectional => *other != at && (at == 0 || *other == 0),
            Mode::Unicast => at == 0 && *other != 0,
        });
        member.lost = others.map(|(_, name)| name.clone()).collect();
        // In mode mesh the dead are removed from all members, otherwise from the source.
        if at == 0 || request.mode == Mode::Mesh {
            member.lost.extend(request.names.iter().cloned());
        }
    }
    members.retain(|member| !member.lost.is_empty());
    Ok(members)
}

/// The values without the lost peers.
fn values_without(member: &Member<'_>) -> String {
    let mut rest = member.record.clone();
    for (name, endpoints) in objects::endpoints_of_others(&member.facts, &member.record) {
        rest.peers.entry(name).or_default().endpoints = Some(endpoints);
    }
    rest.peers.retain(|name, _| !member.lost.contains(name));
    values::of(&member.facts, &rest)
}

/// Fails where another tool keeps the objects that would be changed, and prints what it should be given.
fn refuse_kept(members: &[Member<'_>], plans: &[Plan], output: &dyn Output) -> Result<(), Error> {
    let mut refused = None;
    for (member, _) in members.iter().zip(plans).filter(|(_, plan)| !plan.changes.is_empty()) {
        if let Some((object, keeper)) = keeper(&member.facts) {
            output.document(&values_without(member));
            refused = refused.or(Some(Error::Kept {
                object,
                context: member.facts.context.clone(),
                keeper,
            }));
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Changes one cluster. Returns whether all was done.
async fn carry_out(member: &Member<'_>, plan: &Plan, output: &dyn Output) -> bool {
    let name = member.facts.name();
    let lost: Vec<&str> = member.lost.iter().map(String::as_str).collect();
    if plan.changes.is_empty() {
        let peers: Vec<String> = member.facts.peers().into_iter().collect();
        let peers = if peers.is_empty() {
            "no cluster".to_owned()
        } else {
            peers.join(", ")
        };
        output.line(&format!(
            "ℹ️  Cluster {name} is not connected to cluster {}: nothing to change (connected to: {peers})",
            lost.join(",")
        ));
        return true;
    }
    output.line(&format!(
        "ℹ️  Configuring Cilium in cluster {name} to disconnect from cluster {}",
        lost.join(",")
    ));
    match apply::apply(member.context, plan, output).await {
        Ok(()) => true,
        Err(failure) => {
            output.line(&format!("❌ Cluster {name}: {failure}"));
            false
        }
    }
}

/// The lines about what was reached, and what remains elsewhere.
fn done(members: &[Member<'_>], plans: &[Plan], request: &Request, program: &str, output: &dyn Output) {
    let source = members[0].facts.name();
    let asked: Vec<&str> = members[1..].iter().map(|member| member.facts.name()).collect();
    let unasked = members[0].lost.iter().filter(|name| !asked.contains(&&***name));
    if request.mode == Mode::Mesh && !asked.is_empty() {
        output.line(&format!("✅ Disconnected clusters {}, and {source}!", asked.join(", ")));
    } else {
        for other in &asked {
            output.line(&format!("✅ Disconnected clusters {source} <x> {other}!"));
        }
    }
    if plans[0].changes.is_empty() {
        return;
    }
    for other in unasked {
        output.line(&format!("✅ Disconnected clusters {source} x> {other}!"));
        output.line(&format!(
            "⚠️  Cluster {other} was not asked: it keeps its entry for {source} and goes on dialling"
        ));
        let context = members[0]
            .record
            .peers
            .get(other)
            .map_or("<its context>", |peer| &peer.context);
        output.line(&format!(
            "   💡 Once it answers, run '{program} disconnect --context {context} --destination-name {source}'"
        ));
    }
}

#[cfg(test)]
mod tests;
