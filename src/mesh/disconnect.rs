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
use std::fmt::Write as _;

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
    #[error("cluster {cluster} cannot be disconnected from itself{how}; {known}")]
    Itself {
        cluster: String,
        /// The contexts, if two of them lead to the cluster.
        how: String,
        /// Its peers, in words.
        known: String,
    },
    #[error(
        "no cluster {}: nothing of that name is left in {cluster}; {known}{}",
        names.join(", "),
        did_you_mean(meant)
    )]
    Strangers {
        names: Vec<String>,
        cluster: String,
        /// The peers of the clusters, in words.
        known: String,
        /// The name of a peer whose context was given.
        meant: Option<String>,
    },
    #[error("{0} of the clusters would not accept the changes, nothing was changed")]
    Refused(usize),
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

fn did_you_mean(peer: &Option<String>) -> String {
    let meant = |peer: &String| format!(". Did you mean --destination-name {peer}, whose context this is?");
    peer.as_ref().map_or_else(String::new, meant)
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
        Action::DryRun => output.document(&plans.iter().map(ToString::to_string).collect::<String>()),
        Action::PrintValues => {
            let texts: Vec<String> = members.iter().map(values_without).collect();
            output.document(&texts.join("---\n"));
            return Ok(());
        }
        Action::PrintManifests => return print_manifests(&plans, output),
    }
    if !request.adopt {
        refuse_kept(&members, &plans, output)?;
    }
    rehearse(&members, &plans, output).await?;
    if request.action == Action::DryRun {
        output.line(apply::ACCEPTED);
        return Ok(());
    }
    let mut is_complete = true;
    for (member, plan) in members.iter().zip(&plans) {
        is_complete &= carry_out(member, plan, output).await;
    }
    if !is_complete {
        return Err(Error::Halfway);
    }
    done(&members, &plans, request, program, output)
}

fn print_manifests(plans: &[Plan], output: &dyn Output) -> Result<(), Error> {
    let changed = plans.iter().filter(|plan| !plan.changes.is_empty());
    let texts: Vec<String> = changed.map(Plan::document).collect::<Result<_, _>>()?;
    match texts.is_empty() {
        true => output.line("ℹ️  The clusters are not connected: nothing to change"),
        false => output.document(&texts.concat()),
    }
    Ok(())
}

/// Asks all clusters whether they would accept the changes.
async fn rehearse(members: &[Member<'_>], plans: &[Plan], output: &dyn Output) -> Result<(), Error> {
    let each = members.iter().zip(plans);
    let asked = each.map(|(member, plan)| apply::rehearse(member.context, plan));
    match apply::tell_refused(&futures::future::join_all(asked).await, plans, output) {
        0 => Ok(()),
        refused => Err(Error::Refused(refused)),
    }
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
        let same = |known: &&Member<'_>| known.facts.server == facts.server && known.facts.name() == facts.name();
        if let Some(known) = members.iter().find(same) {
            return Err(Error::Itself {
                cluster: facts.name().to_owned(),
                how: format!(
                    " (contexts {:?} and {:?} lead to it)",
                    known.facts.context, facts.context
                ),
                known: peers_of(known),
            });
        }
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
            let dead = request.names.iter().filter(|name| at == 0 || **name != names[at]);
            member.lost.extend(dead.cloned());
        }
    }
    members.retain(|member| !member.lost.is_empty());
    refuse_strangers(&members, &request.names)?;
    Ok(members)
}

/// Fails if a name is that of a cluster itself, or of a cluster that no member has heard of. Whatever an interrupted
/// command has left makes a cluster known.
fn refuse_strangers(members: &[Member<'_>], names: &[String]) -> Result<(), Error> {
    let mut strangers = vec![];
    for name in names {
        if let Some(own) = members
            .iter()
            .find(|member| member.facts.name() == name && member.lost.contains(name))
        {
            return Err(Error::Itself {
                cluster: name.clone(),
                how: String::new(),
                known: peers_of(own),
            });
        }
        let mut is_known = members.iter().any(|member| member.facts.name() == name);
        for member in members.iter().filter(|member| member.lost.contains(name)) {
            is_known |= plan::knows(&member.facts, &member.record, name)?;
        }
        if !is_known {
            strangers.push(name.clone());
        }
    }
    if strangers.is_empty() {
        return Ok(());
    }
    let clusters: Vec<&str> = members.iter().map(|member| member.facts.name()).collect();
    let known: Vec<String> = members.iter().map(peers_of).collect();
    let records = members.iter().flat_map(|member| &member.record.peers);
    let mut meant = records.filter(|(_, peer)| strangers.contains(&peer.context));
    Err(Error::Strangers {
        cluster: clusters.join(", "),
        known: known.join("; "),
        meant: meant.next().map(|(name, _)| name.clone()),
        names: strangers,
    })
}

/// The peers of a cluster, in words.
fn peers_of(member: &Member<'_>) -> String {
    let mut peers = member.facts.peers();
    peers.extend(member.record.peers.keys().cloned());
    let peers: Vec<String> = peers.into_iter().collect();
    match peers.is_empty() {
        true => format!("cluster {} is connected to no cluster", member.facts.name()),
        false => format!("cluster {} is connected to: {}", member.facts.name(), peers.join(", ")),
    }
}

/// The values without the lost peers.
fn values_without(member: &Member<'_>) -> String {
    let mut rest = member.record.clone();
    for (name, endpoints) in objects::endpoints_of_others(&member.facts, &member.record) {
        rest.peers.entry(name).or_default().endpoints = Some(endpoints);
    }
    rest.peers.retain(|name, _| !member.lost.contains(name));
    let mut text = values::of(&member.facts, &rest);
    let has_other_ca = |record: &Record| record.peers.values().any(|peer| peer.authorities.is_some());
    if has_other_ca(&member.record) && !has_other_ca(&rest) {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# No other CA is needed for the mesh any more: remove tls.caBundle, unless something else uses it."
        );
    }
    text
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
fn done(
    members: &[Member<'_>],
    plans: &[Plan],
    request: &Request,
    program: &str,
    output: &dyn Output,
) -> Result<(), Error> {
    let source = members[0].facts.name();
    let asked: Vec<&str> = members[1..].iter().map(|member| member.facts.name()).collect();
    let unasked = members[0].lost.iter().filter(|name| !asked.contains(&&***name));
    if request.mode == Mode::Mesh && !asked.is_empty() {
        if plans.iter().any(|plan| !plan.changes.is_empty()) {
            output.line(&format!("✅ Disconnected clusters {}, and {source}!", asked.join(", ")));
        }
    } else {
        for (other, name) in members[1..].iter().zip(&asked) {
            let was_connected = plan::knows(&members[0].facts, &members[0].record, name)?
                || plan::knows(&other.facts, &other.record, source)?;
            if was_connected {
                output.line(&format!("✅ Disconnected clusters {source} <x> {name}!"));
            }
        }
    }
    for other in unasked {
        // Another member may have known the cluster.
        if !plan::knows(&members[0].facts, &members[0].record, other)? {
            continue;
        }
        output.line(&format!("✅ Disconnected clusters {source} x> {other}!"));
        output.line(&format!(
            "⚠️  Cluster {other} was not asked: it keeps its entry for {source} and goes on dialling"
        ));
        let peer = members[0].record.peers.get(other);
        let context = peer.map_or("", |peer| &peer.context);
        output.line(&format!(
            "   💡 Once it answers, run '{program} disconnect --context {} --destination-name {source}'",
            if context.is_empty() { "<its context>" } else { context }
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
