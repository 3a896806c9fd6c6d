//! The status of one cluster in the mesh: what Cilium's CLI tells, and the first broken hop of each path to a remote
//! cluster.
//!
//! Whatever is wrong becomes a part of the report; nothing hides the rest.

mod access;
mod causes;
mod connectivity;
mod deployment;
mod gather;
mod path;
mod remote;
mod report;
mod summary;
mod warnings;

pub use access::{Access, of as access};
pub use connectivity::Connectivity;
pub use deployment::problem as deployment_problem;
pub use gather::an_agent;
pub use path::{Broken, Hop, Path};
pub use report::{Identity, Kvstoremesh, Report};

use super::context::Context;
use super::drift;
use super::exec::Exec;
use super::facts::{APISERVER, Facts, MirrorMode, secret};
use super::output::Output;
use super::read;
use super::record::Record;
use super::wait::Waiting;
use crate::kvstore::config::ClientConfig;
use connectivity::Answers;
use gather::{AGENTS, Gathered, MIRRORS};
use path::{Evidence, Mirror, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Time for finding causes after the deadline.
const CAUSES: Duration = Duration::from_secs(5);

/// How to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the commands of this tool are typed, for remedies.
    pub tool: String,
    /// Wait until everything is right.
    pub wait: bool,
    /// Limit for the whole command.
    pub limit: Duration,
    /// Time that a pod has for its answer.
    pub pod_timeout: Duration,
}

/// One look at a cluster.
struct Look<'a> {
    context: &'a Context,
    options: &'a Options,
    out: &'a dyn Output,
    wait: Waiting,
    exec: Exec,
    facts: Facts,
    /// Why pods could not be listed at the last look, by their container.
    unlisted: BTreeMap<&'static str, String>,
    report: Report,
}

/// The answers of agents and mirrors.
#[derive(Default)]
struct Seen {
    agents: Answers,
    /// `None` if no mirror runs.
    mirrors: Option<Answers>,
}

/// Looks at a cluster. Prints each step when it is done; `Report::summary` has the rest.
pub async fn run(context: &Context, options: &Options, out: &dyn Output) -> Result<Report, read::Error> {
    let mut wait = Waiting::new(options.limit);
    let exec = Exec::new(context.client.clone(), &context.namespace, options.pod_timeout).until(wait.deadline());
    let facts = read_patiently(context, options.wait.then_some(Failures::OfServers), &mut wait, out).await?;
    let report = Report::of(&facts);
    let mut look = Look {
        context,
        options,
        out,
        wait,
        exec,
        facts,
        unlisted: BTreeMap::new(),
        report,
    };
    look.announce();
    look.service().await;
    look.deployment().await;
    look.connections().await;
    look.finish();
    Ok(look.report)
}

/// Which failed reads are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failures {
    /// Those that time may mend: before the first success, a missing right or another namespace is a mistake of the operator.
    OfServers,
    All,
}

/// Reads the objects of a cluster, and repeats failed reads until the deadline.
async fn read_patiently(
    context: &Context,
    repeated: Option<Failures>,
    wait: &mut Waiting,
    out: &dyn Output,
) -> Result<Facts, read::Error> {
    let mut has_failed = false;
    loop {
        let error = match read::facts_until(context, wait.deadline()).await {
            Ok(facts) => {
                // Another request may fail all the same.
                if has_failed {
                    wait.succeeded();
                }
                return Ok(facts);
            }
            Err(error) => error,
        };
        has_failed = true;
        let is_repeated = match repeated {
            None => false,
            Some(Failures::OfServers) => !is_mistake(&error),
            Some(Failures::All) => true,
        };
        if !(is_repeated && wait.retry(&error.to_string(), out).await) {
            return Err(error);
        }
    }
}

/// Whether an error is probably a mistake of the operator.
fn is_mistake(error: &read::Error) -> bool {
    match error {
        read::Error::NoCilium { .. } => true,
        read::Error::Api { error, .. } => {
            matches!(&**error, kube::Error::Api(status) if [401, 403].contains(&status.code))
        }
        read::Error::Timeout { .. } => false,
    }
}

/// The ids of the clusters that a cluster is connected to, by name, as far as its mirrors or agents know them.
pub async fn peer_ids(context: &Context, exec: &Exec, facts: &Facts) -> BTreeMap<String, u32> {
    let kind = if facts.mirror() == MirrorMode::On {
        MIRRORS
    } else {
        AGENTS
    };
    let gathered = gather::ask(&context.client, exec, &context.namespace, kind, |_, _| ()).await;
    let answers = gathered.map(|gathered| gathered.answers).unwrap_or_default();
    let remotes = answers
        .values()
        .filter_map(|answer| answer.view())
        .flat_map(|view| &view.remotes);
    let ids = remotes.filter_map(|remote| Some((remote.name.clone(), remote.config?.cluster_id)));
    ids.filter(|(_, id)| *id != 0).collect()
}

// === impl Look ===

impl Look<'_> {
    fn announce(&mut self) {
        let Identity {
            context,
            name,
            id,
            cilium_version,
            ..
        } = &self.report.cluster;
        if self.facts.is_named() {
            let version = cilium_version
                .as_ref()
                .map_or_else(String::new, |version| format!(", Cilium {version}"));
            self.out
                .line(&format!("ℹ️  Cluster {name}, id {id}{version} (context {context})"));
        } else {
            self.out.line(
                "⚠️  Cluster not configured for clustermesh, use '--set cluster.id' and '--set cluster.name' with 'cilium install'.",
            );
        }
        if self.has_external_store() {
            self.out.line("✅ Cilium is configured with an external kvstore");
        }
    }

    /// Whether agents write their objects into a store of their own accord.
    fn has_external_store(&self) -> bool {
        !["", "crd"].contains(&self.facts.setting("identity-allocation-mode"))
    }

    /// Whether there is nothing to look for: neither a part of the mesh that publishes, nor the need for one.
    fn publishes_elsewhere(&self) -> bool {
        self.has_external_store() && self.facts.service.is_none()
    }

    /// Waits before the next look, and reads the objects for it. Returns false if there is no next look.
    async fn again(&mut self, what: &str, why: &str) -> bool {
        self.options.wait && self.wait.pause(what, why, self.out).await && self.read_again().await
    }

    /// Reads the objects again. Returns false if that failed until the deadline.
    async fn read_again(&mut self) -> bool {
        match read_patiently(self.context, Some(Failures::All), &mut self.wait, self.out).await {
            Ok(facts) => {
                self.facts = facts;
                true
            }
            Err(error) => {
                self.fail(error.to_string());
                false
            }
        }
    }

    /// The Service through which other clusters come.
    async fn service(&mut self) {
        while !self.publishes_elsewhere() {
            match access::of(&self.facts, &self.options.tool) {
                Ok(found) => {
                    found.lines().iter().for_each(|line| self.out.line(line));
                    self.report.access_information = Some(found);
                    break;
                }
                Err(why) => {
                    if !self.again("access information", &why).await {
                        self.fail(why);
                        break;
                    }
                }
            }
        }
    }

    /// The Deployment of the store.
    async fn deployment(&mut self) {
        let what = "deployment clustermesh-apiserver to become ready";
        loop {
            let why = match &self.facts.deployment {
                // The missing Service has been reported.
                None if self.facts.service.is_none() => break,
                None => Some("it does not exist".to_owned()),
                Some(deployment) => deployment::problem(deployment),
            };
            let Some(why) = why else {
                self.out.line("✅ Deployment clustermesh-apiserver is ready");
                break;
            };
            if !self.again(what, &why).await {
                self.fail(format!("deployment clustermesh-apiserver is not ready: {why}"));
                break;
            }
        }
        self.report.kvstoremesh.enabled = self.facts.mirror() == MirrorMode::On;
        if self.facts.deployment.is_some() {
            let state = if self.report.kvstoremesh.enabled {
                "enabled"
            } else {
                "disabled"
            };
            self.out.line(&format!("ℹ️  KVStoreMesh is {state}"));
        }
        // Readers of the Secret take its equal addresses for a mistake.
        if sources(&self.facts).values().any(|source| *source == Source::Own) && self.report.kvstoremesh.enabled {
            let namespace = &self.facts.namespace;
            self.out.line(&format!(
                "ℹ️  Agents read remote clusters from the own store, which KVStoreMesh fills: Secret {namespace}/{} rightly has one \
                 address for all of them",
                secret::AGENTS
            ));
        }
    }

    /// What agents and mirrors are connected to.
    async fn connections(&mut self) {
        let mut seen = Seen::default();
        let store = self.report.errors.first().cloned();
        loop {
            self.ask(&mut seen).await;
            let goes_on = match (self.unlisted.values().next().cloned(), self.report.missing()) {
                (None, None) => break,
                (None, Some(why)) => self.again("clusters to be connected", &why).await,
                (Some(failure), _) => {
                    self.options.wait && self.wait.retry(&failure, self.out).await && self.read_again().await
                }
            };
            if !goes_on {
                break;
            }
        }
        if !self.unlisted.is_empty() {
            // Nothing follows from pods that are not known.
            std::mem::take(&mut self.unlisted)
                .into_values()
                .for_each(|why| self.fail(why));
            return;
        }
        if self
            .report
            .kvstoremesh
            .status
            .as_ref()
            .is_some_and(|status| status.is_unsupported)
        {
            self.out
                .line("⚠️  KVStoreMesh status retrieval is not supported by this Cilium version");
        }
        let agent_peers = sources(&self.facts);
        let mirror_peers = self.facts.peers_in(secret::MIRROR);
        let untraced = BTreeMap::new();
        let evidence = Evidence {
            tool: &self.options.tool,
            namespace: &self.facts.namespace,
            local: self.facts.name(),
            agents: &seen.agents,
            agent_peers: &agent_peers,
            mirror: seen.mirrors.as_ref().map(|answers| Mirror {
                answers,
                peers: &mirror_peers,
            }),
            store: store.as_deref(),
            traces: &untraced,
        };
        // The causes are worth a few seconds after the deadline, too.
        let Context { client, namespace, .. } = self.context;
        let end = self.wait.deadline().max(Instant::now() + CAUSES);
        let exec = Exec::new(client.clone(), namespace, self.options.pod_timeout).until(end);
        let traces = gather::trace(&exec, evidence.questions()).await;
        let evidence = Evidence {
            traces: &traces,
            ..evidence
        };
        self.report.paths = evidence.paths();
    }

    /// Asks the pods that were not connected at the last look.
    async fn ask(&mut self, seen: &mut Seen) {
        let is_due = |status: Option<&Connectivity>| status.is_none_or(|status| !status.is_healthy());
        if is_due(self.report.connectivity.as_ref())
            && let Some(agents) = self.gather(AGENTS).await
        {
            let peers = self.facts.peers_in(secret::AGENTS);
            self.report.connectivity = Some(Connectivity::of(&agents, &peers));
            seen.agents = agents;
        }
        if self.facts.mirror() == MirrorMode::On
            && is_due(self.report.kvstoremesh.status.as_ref())
            && let Some(mirrors) = self.gather(MIRRORS).await
        {
            let peers = self.facts.peers_in(secret::MIRROR);
            self.report.kvstoremesh.status = Some(Connectivity::of(&mirrors, &peers));
            seen.mirrors = Some(mirrors);
        }
    }

    /// The answers of the pods of a kind; `None` if the pods cannot be listed.
    async fn gather(&mut self, kind: gather::Kind) -> Option<Answers> {
        let Context { client, namespace, .. } = self.context;
        let (wait, out) = (&mut self.wait, self.out);
        let answered = |some, all| wait.report_progress(some, all, out);
        match gather::ask(client, &self.exec, namespace, kind, answered).await {
            Ok(Gathered { answers, left }) => {
                // The other list may still fail for the same reason.
                if self.unlisted.remove(kind.container).is_some() && self.unlisted.is_empty() {
                    self.wait.succeeded();
                }
                for (pod, why) in left {
                    let warning = format!("Pod {namespace}/{pod} ended ({why}) and is not counted");
                    if !self.report.warnings.contains(&warning) {
                        self.report.warnings.push(warning);
                    }
                }
                Some(answers)
            }
            Err(error) => {
                self.unlisted.insert(kind.container, error.to_string());
                None
            }
        }
    }

    fn fail(&mut self, why: String) {
        if self.report.errors.contains(&why) {
            return;
        }
        self.out.line(&format!("❌ {why}"));
        self.report.errors.push(why);
    }

    /// What another tool has changed or removed. Agents forget a peer without an error when its entry is removed.
    fn drift(&mut self) {
        let tool = &self.options.tool;
        let found = match Record::read(&self.facts) {
            Ok(record) => drift::find(&self.facts, &record),
            Err(error) => return self.fail(error.to_string()),
        };
        for drift in found {
            self.fail(format!("{}; {}", drift.problem(tool), drift.remedy(tool)));
        }
    }

    fn finish(&mut self) {
        self.drift();
        let expiry = warnings::expiry(&self.facts, &self.options.tool, jiff::Timestamp::now());
        expiry.over.into_iter().for_each(|over| self.fail(over));
        self.report.warnings.extend(expiry.soon);
        self.report.timed_out = self.wait.timed_out();
        self.report.healthy = self.report.problem().is_none();
    }
}

/// Where agents read each peer from.
fn sources(facts: &Facts) -> BTreeMap<String, Source> {
    let own = format!("{APISERVER}.{}.svc", facts.namespace);
    let endpoints = |secret: &str, peer: &str| -> BTreeSet<String> {
        let config = facts
            .secret_text(secret, peer)
            .and_then(|text| ClientConfig::parse(text).ok());
        config
            .map(|config| config.endpoints.into_iter().collect())
            .unwrap_or_default()
    };
    let source = |peer: &String| {
        let (agents, mirror) = (endpoints(secret::AGENTS, peer), endpoints(secret::MIRROR, peer));
        let is_own = agents.iter().any(|endpoint| endpoint.contains(&own));
        let is_mirrored = facts.mirror() == MirrorMode::On && !mirror.is_empty() && mirror != agents;
        if is_own || is_mirrored {
            Source::Own
        } else {
            Source::Remote
        }
    };
    facts
        .peers_in(secret::AGENTS)
        .into_iter()
        .map(|peer| (peer.clone(), source(&peer)))
        .collect()
}
