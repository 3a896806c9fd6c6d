//! Checks clusters before they are connected, and changes nothing: identities, versions, modes, networks, certificates,
//! Services, rights, drift, and on request the network between the nodes.

mod judge;
mod probe;
mod rights;

use super::context::Context;
use super::exec::Exec;
use super::output::Output;
use super::{profile, read};
use serde::Serialize;
use std::fmt::{Display, Formatter};
use std::time::Duration;

/// How to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the commands of this tool are typed, for remedies.
    pub tool: String,
    /// Connect from the nodes of each cluster to the others.
    pub probe: bool,
    /// Time that a pod has for its answer.
    pub pod_timeout: Duration,
}

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Ok,
    Warning,
    Failed,
}

/// One check of one cluster, or of several together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub clusters: Vec<String>,
    pub topic: &'static str,
    pub state: State,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub ok: bool,
    pub failed: usize,
    pub warnings: usize,
    pub checks: Vec<Check>,
}

/// Checks the clusters of `contexts`, the local one first. Prints what takes long. A cluster that cannot be read is a failed
/// check, and hides no other.
pub async fn run(contexts: &[Context], options: &Options, out: &dyn Output) -> Report {
    let read = futures::future::join_all(contexts.iter().map(read::facts)).await;
    let (mut readable, mut facts, mut checks) = (vec![], vec![], vec![]);
    for (context, read) in contexts.iter().zip(read) {
        match read {
            Ok(read) => {
                readable.push(context);
                facts.push(read);
            }
            Err(error) => checks.push(
                Check::ok(&[&*context.name], "objects", error.to_string())
                    .failed("Nothing else is known of this cluster; check again once it answers."),
            ),
        }
    }
    let profiles: Vec<_> = facts.iter().map(profile::of).collect();
    let now = jiff::Timestamp::now();
    let all = || readable.iter().zip(&facts);
    let rights = all().map(|(context, facts)| rights::check(context, facts, options.pod_timeout));
    for (facts, rights) in facts.iter().zip(futures::future::join_all(rights).await) {
        checks.extend(judge::alone(facts, &options.tool, now));
        checks.extend(rights);
    }
    let peers = all().map(async |(context, facts)| probe::peers(context, &exec(context, options), facts).await);
    let peers = futures::future::join_all(peers).await;
    checks.extend(judge::peers(&facts, &peers));
    checks.extend(judge::together(&profiles, now));
    if options.probe && facts.len() > 1 {
        out.line("⌛ Connecting from a node of each cluster to the other clusters");
        for (from, (context, local)) in all().enumerate() {
            let others = facts.iter().enumerate().filter(|(at, _)| *at != from);
            let exec = exec(context, options);
            for (_, other) in others {
                checks.extend(probe::check(context, &exec, local, other).await);
            }
        }
    }
    Report::of(checks)
}

fn exec(context: &Context, options: &Options) -> Exec {
    Exec::new(context.client.clone(), &context.namespace, options.pod_timeout)
}

// === impl Report ===

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        let (failed, warnings) = (count(State::Failed), count(State::Warning));
        Self {
            ok: failed == 0,
            failed,
            warnings,
            checks,
        }
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        for Check {
            clusters,
            state,
            what,
            remedy,
            ..
        } in &self.checks
        {
            let mark = match state {
                State::Ok => "✅",
                State::Warning => "⚠️ ",
                State::Failed => "❌",
            };
            writeln!(out, "{mark} {}: {what}", clusters.join(" <=> "))?;
            if let Some(remedy) = remedy {
                writeln!(out, "   💡 {remedy}")?;
            }
        }
        let (all, failed, warnings) = (self.checks.len(), self.failed, self.warnings);
        let checks = if all == 1 { "check" } else { "checks" };
        let warned = if warnings == 1 { "warning" } else { "warnings" };
        match (failed, warnings) {
            (0, 0) => writeln!(out, "\n✅ All {all} {checks} passed"),
            (0, _) => writeln!(out, "\n⚠️  {all} {checks}: none failed, {warnings} {warned}"),
            _ => writeln!(out, "\n❌ {all} {checks}: {failed} failed, {warnings} {warned}"),
        }
    }
}

// === impl Check ===

impl Check {
    fn ok(clusters: &[&str], topic: &'static str, what: impl Into<String>) -> Self {
        Self {
            clusters: clusters.iter().map(|name| (*name).to_owned()).collect(),
            topic,
            state: State::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    fn warning(self, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self {
            state: State::Warning,
            remedy,
            ..self
        }
    }

    fn failed(self, remedy: impl Into<String>) -> Self {
        Self {
            state: State::Failed,
            ..self.warning(remedy)
        }
    }
}
