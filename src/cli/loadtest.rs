//! `loadtest`: simulated agents and writers against a store, with a report.

mod output;
mod progress;
mod users;

use self::output::OutputArgs;
use self::users::UserArgs;
use super::flags::{EndpointArgs, boolean, duration};
use super::{logging, print};
use crate::app::signal;
use crate::kvstore::config::{self, ClientConfig};
use crate::loadtest::merge::merge;
use crate::loadtest::plan::{Layout, Plan, SlowReadersAt};
use crate::loadtest::scenarios::Scenario;
use crate::loadtest::{self, Target};
use crate::util::blocking;
use crate::util::lifecycle::Lifecycle;
use anyhow::{Context, bail};
use clap::{ArgAction, Args, Subcommand};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Flags and subcommands of `loadtest`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LoadtestArgs {
    #[command(subcommand)]
    command: Option<LoadtestCommand>,
    #[command(flatten)]
    run: RunArgs,
}

/// Subcommands of `loadtest`.
#[derive(Debug, Subcommand)]
pub enum LoadtestCommand {
    /// Add up the results of runs on several machines and report on all of them
    Merge(MergeArgs),
    /// Explain the scenarios, with their settings and with what they write
    Scenarios,
}

/// Flags of `loadtest merge`.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// Results to add up, written by --output.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of a run.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Set of settings, which the flags override; `loadtest scenarios` explains them.
    #[arg(default_value = "quick", value_parser = Scenario::ALL.map(Scenario::name))]
    scenario: String,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    agents: AgentArgs,
    #[command(flatten)]
    safety: SafetyArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The store to test.
#[derive(Args, Debug)]
#[command(next_help_heading = "Store")]
struct StoreArgs {
    #[command(flatten)]
    endpoints: EndpointArgs,
    /// The etcd client's YAML file with endpoints and TLS files, instead of the four flags above.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["endpoints", "cacert", "cert", "key"])]
    client_config: Option<PathBuf>,
    #[command(flatten)]
    users: UserArgs,
    /// Process of the server, whose CPU time and memory are reported, and after its end the process that listens on the
    /// endpoint. By default, the process that listens on a loopback endpoint.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

/// What is read and written.
#[derive(Args, Debug)]
#[command(next_help_heading = "Load (defaults come from the scenario)")]
struct LoadArgs {
    /// Simulated agents (nodes). Each opens one connection for each cluster, as Cilium's agents do.
    #[arg(long, value_name = "N")]
    agents: Option<usize>,
    /// Simulated remote clusters, whose keys the test writes.
    #[arg(long, value_name = "N")]
    clusters: Option<usize>,
    /// Keys of each cluster: identities, addresses, nodes, services and service exports.
    #[arg(long, value_name = "N")]
    keys: Option<u32>,
    /// Size of a value in bytes.
    #[arg(long, value_name = "BYTES")]
    value_bytes: Option<usize>,
    /// Duration of the phase in which agents watch and writers change keys.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    duration: Option<Duration>,
    /// Changes of single keys per second, in all clusters together.
    #[arg(long, value_name = "PER-SECOND")]
    rate: Option<f64>,
    /// Percentage of changes that delete a key and create another one.
    #[arg(long, value_name = "PERCENT")]
    deletes: Option<u32>,
    /// Further changes that are made at once, every --burst-interval.
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Time between two bursts.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    burst_interval: Option<Duration>,
    /// Time after which writers write clusters again as a whole, in transactions; 0 for never.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    bulk_interval: Option<Duration>,
    /// Puts of a transaction while keys are written as a whole, 1 to 128.
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Writers, each with one connection and one request at a time.
    #[arg(long, value_name = "N")]
    writers: Option<usize>,
    /// Reconnect storms: all agents lose their connections at once and list everything again.
    #[arg(long, value_name = "N")]
    storms: Option<u32>,
    /// Time between the starts of two storms, and before the first. By default that of the scenario, or less if --duration is too
    /// short for all storms.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    storm_interval: Option<Duration>,
    /// Further connections that stop reading once they are in sync.
    #[arg(long, value_name = "N")]
    slow_readers: Option<usize>,
    /// Time of the slow readers: from the start, or the middle third of --duration, so that the results compare the others with
    /// and without them.
    #[arg(long, value_name = "start|middle", value_parser = slow_readers_at)]
    slow_readers_at: Option<SlowReadersAt>,
}

/// How agents behave.
#[derive(Args, Debug)]
#[command(next_help_heading = "Agents")]
struct AgentArgs {
    /// Connections that are opened per second, also in storms and after a restart of the store; 0 for all at once.
    #[arg(long, value_name = "PER-SECOND")]
    connect_rate: Option<f64>,
    /// Watches of a connection, 3 to 7: the heartbeat, the canaries, and one to five kinds of keys. Agents have 6, mirrors 7.
    #[arg(long, value_name = "N")]
    watches: Option<usize>,
    /// Keys per page of a list; 0 reads a list in one page.
    #[arg(long, value_name = "N")]
    page: Option<i64>,
    /// Time without any data after which a connection is pinged.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    keepalive: Option<Duration>,
    /// Answer received data by a ping, as grpc-go does to estimate bandwidth.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
          value_parser = boolean, action = ArgAction::Set)]
    bdp_pings: bool,
    /// Precede each connection by one that is closed during its handshake, as Cilium's client does.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true",
          value_parser = boolean, action = ArgAction::Set)]
    aborted_handshakes: bool,
    /// Number of loopback addresses, from 127.0.0.2 on, to connect from. Each adds about 28,000 connections. Only for endpoints
    /// on 127.0.0.0/8.
    #[arg(long, default_value_t = 0, value_name = "N")]
    source_addresses: u32,
    /// Time that agents have for the last events before they count as behind.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    settle: Option<Duration>,
    /// Time that all agents have for being in sync, after the start and in each storm, beyond the time that --connect-rate
    /// takes. Agents that are later count as errors, and the test goes on. By default 2m, or 20ms for each connection if that
    /// is longer.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    sync_timeout: Option<Duration>,
}

/// What may be written, and where.
#[derive(Args, Debug)]
#[command(next_help_heading = "Safety")]
struct SafetyArgs {
    /// Write nothing. Agents read the clusters that the store has, and heartbeats measure the latency.
    #[arg(long)]
    read_only: bool,
    /// Existing cluster to read with --read-only, repeatable. By default, clusters with a configuration in the store.
    #[arg(long, value_name = "NAME", requires = "read_only")]
    cluster: Vec<String>,
    /// Prefix of all keys: cilium/cache as a mirror writes them, cilium/state as a publisher does, or one of your own. The
    /// names of the simulated clusters begin with loadtest- in any case.
    #[arg(long, default_value = "cilium/cache", value_name = "PREFIX")]
    prefix: String,
    /// Write the heartbeat key every minute. Only for a store that no publisher writes to.
    #[arg(long)]
    heartbeat: bool,
    /// Time that written keys outlive a test that was killed: the TTL of their leases.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    lease_ttl: Option<Duration>,
}

impl LoadtestArgs {
    /// Runs the test or the subcommand. Fails if the store did not pass.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(LoadtestCommand::Merge(args)) => args.run(),
            Some(LoadtestCommand::Scenarios) => print::answer(&scenarios()),
            None => self.run.run(),
        }
    }
}

impl MergeArgs {
    fn run(self) -> anyhow::Result<()> {
        self.output.check(&self.files)?;
        self.output.write(&merge(&self.files)?)
    }
}

impl RunArgs {
    fn run(self) -> anyhow::Result<()> {
        let mut plan = self.plan();
        let target = self.store.target()?;
        plan.users = target.users.len();
        self.output.check(self.store.files())?;
        let runtime = blocking::runtime()?;
        let outcome = runtime.block_on(async {
            let life = Lifecycle::default();
            signal::stop_on_signals(&life)?;
            let (sender, receiver) = watch::channel(loadtest::Progress::default());
            let run = Box::pin(loadtest::run(plan, &target, &sender, &life));
            tokio::select! {
                outcome = run => outcome.map_err(anyhow::Error::from),
                error = progress::show(receiver) => Err(error),
            }
        });
        runtime.shutdown_background();
        let endpoints = || format!("cannot test {}", target.config.endpoints.join(", "));
        self.output.write(&outcome.with_context(endpoints)?)
    }

    /// The settings of the scenario with those of the flags.
    fn plan(&self) -> Plan {
        let named = Scenario::ALL
            .into_iter()
            .find(|scenario| scenario.name() == self.scenario);
        let mut plan = named.unwrap_or(Scenario::Quick).plan();
        let (load, agents, safety) = (&self.load, &self.agents, &self.safety);
        fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                *setting = value.clone();
            }
        }
        set(&mut plan.agents, &load.agents);
        set(&mut plan.clusters, &load.clusters);
        set(&mut plan.keys, &load.keys);
        set(&mut plan.value_bytes, &load.value_bytes);
        set(&mut plan.duration, &load.duration);
        set(&mut plan.rate, &load.rate);
        set(&mut plan.deletes, &load.deletes);
        set(&mut plan.burst, &load.burst);
        set(&mut plan.burst_interval, &load.burst_interval);
        set(&mut plan.bulk_interval, &load.bulk_interval);
        set(&mut plan.batch, &load.batch);
        set(&mut plan.writers, &load.writers);
        set(&mut plan.storms, &load.storms);
        if plan.storms > 0 {
            // A shorter run has its storms, too.
            plan.storm_interval = plan.storm_interval.min(plan.duration / (plan.storms + 1));
        }
        set(&mut plan.storm_interval, &load.storm_interval);
        set(&mut plan.slow_readers, &load.slow_readers);
        set(&mut plan.slow_readers_at, &load.slow_readers_at);
        set(&mut plan.connect_rate, &agents.connect_rate);
        set(&mut plan.watches, &agents.watches);
        set(&mut plan.page, &agents.page);
        set(&mut plan.keepalive, &agents.keepalive);
        set(&mut plan.settle, &agents.settle);
        plan.sync_timeout = agents.sync_timeout.or(plan.sync_timeout);
        set(&mut plan.lease_ttl, &safety.lease_ttl);
        (plan.bdp_pings, plan.aborted_handshakes) = (agents.bdp_pings, agents.aborted_handshakes);
        plan.source_addresses = agents.source_addresses;
        (plan.read_only, plan.heartbeat) = (safety.read_only, safety.heartbeat && !safety.read_only);
        plan.existing = safety.cluster.clone();
        plan.layout = match safety.prefix.trim_end_matches('/') {
            "cilium/cache" => Layout::Cache,
            "cilium/state" => Layout::State,
            own => Layout::Own(own.to_owned()),
        };
        plan
    }
}

impl StoreArgs {
    fn target(&self) -> anyhow::Result<Target> {
        let config = match &self.client_config {
            Some(file) => {
                let config = ClientConfig::read(file)?;
                complain_of_unknown_fields(file);
                config
            }
            None => self.endpoints.config(),
        };
        if config.username.is_some() {
            bail!("agents authenticate by certificates: a user name with a password is not supported");
        }
        Ok(Target {
            users: self.users.users(config.trusted_ca_file.as_deref())?,
            config,
            pid: self.server_pid,
        })
    }

    /// The files that are read.
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.endpoints
            .files()
            .chain(&self.client_config)
            .chain(self.users.files())
    }
}

/// A misspelled field is ignored by every client of etcd, and makes an error that does not name it.
fn complain_of_unknown_fields(file: &Path) {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let unknown = config::unknown_fields(&text);
    if !unknown.is_empty() {
        let (file, fields) = (file.display(), unknown.join(", "));
        logging::complain(&format!(
            "note: {file} has fields that no client of etcd knows, and that are ignored: {fields}\n"
        ));
    }
}

fn slow_readers_at(text: &str) -> Result<SlowReadersAt, String> {
    match text {
        "start" => Ok(SlowReadersAt::Start),
        "middle" => Ok(SlowReadersAt::Middle),
        _ => Err("neither start nor middle".to_owned()),
    }
}

/// The scenarios with their settings.
fn scenarios() -> String {
    let mut out = String::new();
    for scenario in Scenario::ALL {
        let plan = scenario.plan();
        let _ = writeln!(out, "{}\n  {}", scenario.name(), scenario.question());
        let rate = match plan.connect_rate {
            0.0 => "all at once".to_owned(),
            rate => format!("{rate} per second"),
        };
        let _ = writeln!(
            out,
            "  --agents={} --clusters={} --keys={} --duration={:?} --rate={} --connect-rate={} ({rate}) --storms={} \
             --burst={} --slow-readers={}\n",
            plan.agents,
            plan.clusters,
            plan.keys,
            plan.duration,
            plan.rate,
            plan.connect_rate,
            plan.storms,
            plan.burst,
            plan.slow_readers,
        );
    }
    out + "What is written: keys below <prefix>/<kind>/v1/loadtest-<run>-<number>/ (--prefix, by default cilium/cache), with \
           leases, removed at the end. The user of the certificate needs the right to read and write these prefixes, and to \
           read cilium/.heartbeat, cilium/cluster-config/ and cilium/synced/. With --read-only nothing is written.\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn parsed(args: &[&str]) -> RunArgs {
        let command = RunArgs::augment_args(Command::new("loadtest"));
        let matches = command.try_get_matches_from([&["loadtest"], args].concat()).unwrap();
        RunArgs::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn flags_override_the_settings_of_the_scenario() {
        let plan = parsed(&["storm", "--agents=7", "--duration=90s", "--bdp-pings=false"]).plan();
        assert_eq!((plan.agents, plan.storms, plan.bdp_pings), (7, 3, false));
        assert_eq!(plan.duration, Duration::from_secs(90));
        assert_eq!(parsed(&[]).plan().scenario, "quick");
        let plan = parsed(&["--sync-timeout=7s"]).plan();
        assert_eq!(plan.sync_timeout, Some(Duration::from_secs(7)));
        assert_eq!(
            parsed(&["--prefix=isthmus/test/"]).plan().layout,
            Layout::Own("isthmus/test".to_owned())
        );
    }
}
