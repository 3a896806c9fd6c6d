//! `connect`: makes clusters read each other's stores. Everything is read and checked before anything is written.

mod error;
mod findings;
mod plan;

use super::apply;
use super::change::{Change, Plan, Step};
use super::checks::{Finding, Gravity};
use super::context::Context;
use super::endpoints::{self, AddressType, Endpoints};
use super::exec::Exec;
use super::facts::{CRON_JOBS, Facts, RECORD};
use super::objects;
use super::output::{Output, Silent};
use super::read;
use super::ready;
use super::record::Record;
use super::status;
use super::trust;
use super::values;
use super::wait::Waiting;
pub use error::Error;
use futures::StreamExt;
use jiff::Timestamp;
pub use plan::{Member, keeper, live};
use std::collections::BTreeMap;
use std::time::Duration;

/// Limit for the answer of a pod about its peers.
const POD_TIMEOUT: Duration = Duration::from_secs(10);

/// The flags that name addresses.
const SOURCE_FLAG: &str = "--source-endpoint";
const DESTINATION_FLAG: &str = "--destination-endpoint";

/// Which clusters learn of which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The source and each destination learn of each other.
    #[default]
    Bidirectional,
    /// Every cluster learns of every other one.
    Mesh,
    /// The source alone learns of the destinations.
    Unicast,
}

/// What is done with the changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    #[default]
    Apply,
    /// Print the differences.
    DryRun,
    /// Print the values of the chart.
    PrintValues,
    /// Print the objects.
    PrintManifests,
}

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub mode: Mode,
    pub action: Action,
    /// `HOST:PORT` of the source's store, in place of those that are found.
    pub source_endpoints: Vec<String>,
    /// `[CONTEXT=]HOST:PORT` of the destinations' stores.
    pub destination_endpoints: Vec<String>,
    pub nodes: AddressType,
    /// How many clusters are changed at the same time.
    pub parallel: usize,
    /// Make clusters with different CAs trust each other.
    pub share_authorities: bool,
    /// Connect although a check has failed.
    pub force: bool,
    /// Take fields over from other tools.
    pub adopt: bool,
    /// Limit for waiting for the address of a load balancer.
    pub patience: Duration,
}

/// Connects the first of `contexts` to the others.
pub async fn connect(contexts: &[Context], request: &Request, output: &dyn Output) -> Result<(), Error> {
    if contexts.len() < 2 {
        return Err(Error::NoDestination);
    }
    let named = endpoints_of(contexts, request)?;
    let is_race = |error: &Error| matches!(error, Error::Raced(_));
    apply::again(output, is_race, async |number| {
        // What was found is printed once.
        let told: &dyn Output = if number == 1 { output } else { &Silent };
        let members = Box::pin(gather(contexts, named.clone(), request, told)).await?;
        Box::pin(decide(contexts, &members, request, output)).await
    })
    .await
}

/// Checks the clusters, and makes or prints the changes.
async fn decide(contexts: &[Context], members: &[Member], request: &Request, output: &dyn Output) -> Result<(), Error> {
    let now = Timestamp::now();
    let edges = plan::edges(request.mode, members.len());
    let records = plan::records(members, &edges, request.share_authorities, now)?;
    let findings = findings::findings(members, &edges, &records, request.adopt, now);
    judge(&findings, request.force, output)?;
    let work = plan::work(members, &edges, records, request.adopt)?;
    match request.action {
        Action::Apply => {}
        Action::DryRun => output.document(&dry_run(&work)),
        Action::PrintValues => {
            output.document(&all_values(members, &work.records));
            return Ok(());
        }
        Action::PrintManifests => {
            let plans = work.trust.iter().chain(&work.connect);
            for plan in plans.filter(|plan| !plan.changes.is_empty()) {
                output.document(&plan.document()?);
            }
            return Ok(());
        }
    }
    if !request.adopt {
        refuse_kept(members, &work, output)?;
    }
    refuse_renewed(members, &work, request, output)?;
    rehearse(contexts, &work, output).await?;
    if request.action == Action::DryRun {
        return Ok(());
    }
    carry_out(contexts, members, &work, request, output).await?;
    done(members, request.mode, output);
    Ok(())
}

/// The endpoints that the operator names, for each context.
fn endpoints_of(contexts: &[Context], request: &Request) -> Result<Vec<Option<Endpoints>>, Error> {
    let destinations: Vec<&str> = contexts[1..].iter().map(|context| &*context.name).collect();
    let mut texts: Vec<Vec<String>> = vec![vec![]; contexts.len()];
    texts[0].clone_from(&request.source_endpoints);
    for text in &request.destination_endpoints {
        let at = match (text.split_once('='), &destinations[..]) {
            (Some((context, _)), _) => {
                let at = destinations.iter().position(|name| *name == context);
                at.ok_or_else(|| Error::NoSuchDestination(text.clone(), context.to_owned(), destinations.join(", ")))?
            }
            (None, [_]) => 0,
            (None, _) => return Err(Error::WhoseEndpoint(text.clone(), destinations[0].to_owned())),
        };
        let address = text.split_once('=').map_or(&**text, |(_, address)| address);
        texts[at + 1].push(address.to_owned());
    }
    let parse = |texts: Vec<String>| (!texts.is_empty()).then(|| Endpoints::parse(&texts)).transpose();
    Ok(texts.into_iter().map(parse).collect::<Result<_, _>>()?)
}

/// Reads the clusters, and finds their addresses.
async fn gather(
    contexts: &[Context],
    named: Vec<Option<Endpoints>>,
    request: &Request,
    output: &dyn Output,
) -> Result<Vec<Member>, Error> {
    let read = futures::future::join_all(contexts.iter().map(read::facts)).await;
    let mut members: Vec<Member> = vec![];
    for (at, (facts, named)) in read.into_iter().zip(named).enumerate() {
        let context = &contexts[at];
        let unable = |error: &dyn std::fmt::Display| {
            output.line(&format!(
                "❌ Unable to retrieve access information of cluster \"{}\": {error}",
                context.name
            ));
        };
        let mut facts = facts.inspect_err(|error| unable(error))?;
        if let Some(known) = members
            .iter()
            .find(|known| known.facts.server == facts.server && known.facts.name() == facts.name())
        {
            let names = (known.facts.context.clone(), facts.context.clone());
            return Err(Error::Twice(names.0, names.1, facts.name().to_owned()));
        }
        output.line(&format!(
            "✨ Extracting access information of cluster {}...",
            facts.name()
        ));
        output.line(&format!("🔑 Extracting secrets from cluster {}...", facts.name()));
        let flag = if at == 0 { SOURCE_FLAG } else { DESTINATION_FLAG };
        let endpoints = match named {
            Some(endpoints) => endpoints,
            None => {
                if facts.service_type() == Some("NodePort") {
                    output.line(endpoints::NODE_PORT_WARNING);
                }
                let found = discover(context, &mut facts, request, flag, output).await;
                let found = found.inspect_err(|error| unable(error))?;
                if let Some(line) = endpoints::not_dialled_line(&facts, flag) {
                    output.line(&line);
                }
                found
            }
        };
        output.line(&endpoints.line());
        let record = Record::read(&facts)?;
        let ids = match facts.peers().iter().all(|name| record.peers.contains_key(name)) {
            true => BTreeMap::new(),
            false => {
                let exec = Exec::new(context.client.clone(), &context.namespace, POD_TIMEOUT);
                Box::pin(status::peer_ids(context, &exec, &facts)).await
            }
        };
        members.push(Member {
            facts,
            endpoints,
            record,
            ids,
        });
    }
    Ok(members)
}

/// Finds the addresses of a cluster; waits for those of a load balancer.
async fn discover(
    context: &Context,
    facts: &mut Facts,
    request: &Request,
    flag: &'static str,
    output: &dyn Output,
) -> Result<Endpoints, Error> {
    let mut waiting = Waiting::new(request.patience);
    loop {
        match endpoints::discover(facts, request.nodes, flag) {
            Err(error @ endpoints::Error::Pending { .. }) => {
                let what = format!("the load balancer of cluster {}", facts.name());
                if !waiting.pause(&what, &error.to_string(), output).await {
                    return Err(error.into());
                }
                let deadline = waiting.deadline();
                let read = || read::service_until(context, deadline);
                facts.service = waiting.request(output, read).await?;
            }
            found => return Ok(found?),
        }
    }
}

/// Prints the findings. Fails if one of them is fatal.
fn judge(findings: &[Finding], force: bool, output: &dyn Output) -> Result<(), Error> {
    for finding in findings {
        let mark = match finding.gravity {
            Gravity::Fatal if !force => "❌",
            _ => "⚠️ ",
        };
        output.line(&format!("{mark} {}", finding.what));
        output.line(&format!("   💡 {}", finding.remedy));
    }
    let fatal = || findings.iter().filter(|finding| finding.gravity == Gravity::Fatal);
    match fatal().count() {
        0 => Ok(()),
        _ if force => Ok(()),
        failed => Err(Error::Checks {
            failed,
            is_about_authorities: fatal().all(|finding| finding.remedy.ends_with(super::checks::SHARE)),
        }),
    }
}

/// Fails where another tool keeps the objects that would be changed, and prints what it should be given.
fn refuse_kept(members: &[Member], work: &plan::Work, output: &dyn Output) -> Result<(), Error> {
    let changed = members
        .iter()
        .zip(&work.connect)
        .zip(&work.records)
        .filter(|((_, plan), _)| plan.changes.iter().any(|change| change.target.name != RECORD));
    let mut refused = None;
    for ((member, _), record) in changed {
        if let Some((object, keeper)) = keeper(&member.facts) {
            output.document(&values::of(&member.facts, &complete(&member.facts, record)));
            refused = refused.or(Some(Error::Kept {
                object,
                context: member.facts.context.clone(),
                keeper,
            }));
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Fails where the CAs that a store is to trust are written again by somebody else, and prints what that tool should be
/// given. With `--adopt` a warning is enough.
fn refuse_renewed(members: &[Member], work: &plan::Work, request: &Request, output: &dyn Output) -> Result<(), Error> {
    let each = members.iter().zip(&work.trust).zip(&work.records);
    let mut refused = None;
    for ((Member { facts, .. }, _), record) in each.filter(|((_, plan), _)| !plan.changes.is_empty()) {
        let (target, key) = trust::target(facts);
        match trust::renewer(facts) {
            Some(renewer) if request.adopt => output.line(&format!(
                "⚠️  {renewer} writes key {key} of {target} again, and removes the CAs of the peers: status shows when"
            )),
            Some(renewer) => {
                output.document(&trust::to_commit(facts, &renewer, record));
                refused = refused.or(Some(Error::Renewed {
                    object: target.to_string(),
                    key,
                    context: facts.context.clone(),
                    renewer,
                }));
            }
            None => {
                for unread in facts.unread.iter().filter(|unread| unread.what == CRON_JOBS) {
                    output.line(&format!(
                        "⚠️  It is unknown whether certgen writes key {key} of {target} again: {} of cluster {} cannot be \
                         read: {}",
                        unread.what,
                        facts.name(),
                        unread.why
                    ));
                }
            }
        }
    }
    refused.map_or(Ok(()), Err)
}

/// The record and the peers that other tools have connected, for values that replace those of another tool.
fn complete(facts: &Facts, record: &Record) -> Record {
    let mut complete = record.clone();
    for (name, endpoints) in objects::endpoints_of_others(facts, record) {
        complete.peers.entry(name).or_default().endpoints = Some(endpoints);
    }
    complete
}

fn all_values(members: &[Member], records: &[Record]) -> String {
    let each = members.iter().zip(records);
    let texts: Vec<_> = each
        .map(|(member, record)| values::of(&member.facts, &complete(&member.facts, record)))
        .collect();
    texts.join("---\n")
}

fn dry_run(work: &plan::Work) -> String {
    let trust = work.trust.iter().filter(|plan| !plan.changes.is_empty());
    let plans = trust.chain(&work.connect);
    plans.map(ToString::to_string).collect()
}

/// Asks all clusters whether they would accept the changes.
async fn rehearse(contexts: &[Context], work: &plan::Work, output: &dyn Output) -> Result<(), Error> {
    let each = contexts.iter().zip(work.trust.iter().zip(&work.connect));
    let asked = each.map(async |(context, (trust, connect))| {
        apply::rehearse(context, trust).await?;
        apply::rehearse(context, connect).await
    });
    let answers = futures::future::join_all(asked).await;
    let errors = || answers.iter().filter_map(|answer| answer.as_ref().err());
    if let Some(error) = errors().next().filter(|_| errors().all(apply::Error::is_race)) {
        return Err(Error::Raced(error.to_string()));
    }
    match apply::tell_refused(&answers, &work.connect, output) {
        0 => Ok(()),
        refused => Err(Error::Refused(refused)),
    }
}

/// Makes the changes, the source's first.
async fn carry_out(
    contexts: &[Context],
    members: &[Member],
    work: &plan::Work,
    request: &Request,
    output: &dyn Output,
) -> Result<(), Error> {
    let all: Vec<usize> = (0..members.len()).collect();
    if work.trust.iter().any(|plan| !plan.changes.is_empty()) {
        for member in members {
            let name = member.facts.name();
            output.line(&format!(
                "🔐 Cluster {name} is to trust the CAs of its peers, beside its own"
            ));
        }
        in_parallel(contexts, &all, &work.trust, request.parallel, output).await?;
    }
    for (at, plan) in work.connect.iter().enumerate() {
        let peers: Vec<&str> = plan::edges(request.mode, members.len())
            .iter()
            .filter(|edge| edge.reader == at)
            .map(|edge| members[edge.read].facts.name())
            .collect();
        match (plan.changes.is_empty(), peers.is_empty()) {
            (_, true) => {}
            (false, false) => output.line(&format!(
                "ℹ️  Configuring Cilium in cluster {} to connect to cluster {}",
                plan.cluster,
                peers.join(",")
            )),
            (true, false) => output.line(&format!(
                "ℹ️  Cluster {} is configured to connect to cluster {}: nothing to change",
                plan.cluster,
                peers.join(",")
            )),
        }
    }
    in_parallel(contexts, &all[..1], &work.connect, 1, output).await?;
    in_parallel(contexts, &all[1..], &work.connect, request.parallel, output).await?;
    restarted(contexts, work, request.patience, output).await
}

/// Waits for the stores that were restarted.
async fn restarted(
    contexts: &[Context],
    work: &plan::Work,
    patience: Duration,
    output: &dyn Output,
) -> Result<(), Error> {
    let is_restart = |change: &Change| matches!(change.step, Step::Restart { .. });
    for (context, plan) in contexts.iter().zip(&work.trust) {
        if plan.changes.iter().any(is_restart) {
            ready::wait(context, patience, output).await?;
        }
    }
    Ok(())
}

/// Applies the plans at these indices. All are tried; each failure is printed.
async fn in_parallel(
    contexts: &[Context],
    indices: &[usize],
    plans: &[Plan],
    parallel: usize,
    output: &dyn Output,
) -> Result<(), Error> {
    let applied = futures::stream::iter(
        indices
            .iter()
            .map(|at| apply::apply(&contexts[*at], &plans[*at], output)),
    );
    let results: Vec<_> = applied.buffered(parallel.max(1)).collect().await;
    let failures = || results.iter().filter_map(|result| result.as_ref().err());
    let Some(first) = failures().next() else {
        return Ok(());
    };
    if failures().all(|failure| failure.error.is_race()) {
        return Err(Error::Raced(first.to_string()));
    }
    for (at, result) in indices.iter().zip(&results) {
        if let Err(failure) = result {
            output.line(&format!("❌ Cluster {}: {failure}", plans[*at].cluster));
        }
    }
    Err(Error::Halfway)
}

/// The lines about what was reached.
fn done(members: &[Member], mode: Mode, output: &dyn Output) {
    let names: Vec<&str> = members.iter().map(|member| member.facts.name()).collect();
    let (source, others) = (names[0], &names[1..]);
    match mode {
        Mode::Mesh => output.line(&format!("✅ Connected clusters {}, and {source}!", others.join(", "))),
        Mode::Bidirectional | Mode::Unicast => {
            let arrow = if mode == Mode::Unicast { "=>" } else { "<=>" };
            for other in others {
                output.line(&format!("✅ Connected cluster {source} {arrow} {other}!"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
