//! Puts Isthmus, etcd 3.7 and etcd 3.6 under the same loads, in turns, and writes a table and plots of what they cost.
//! `make bench` builds etcd and runs this; `benches/README.md` explains the scenarios and how to read the results. `make
//! bench-replicas` puts replicas beside etcd.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints its progress"
)]

mod agents;
mod calls;
mod client;
mod plot;
mod replicas;
mod report;
mod results;
mod scenarios;
mod server;
mod slopes;

use anyhow::{Context, bail};
use clap::Parser;
use results::{Machine, Results};
use scenarios::{Figure, Scale, Scenario};
use server::Program;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// That of the shipped binary: the loader should cost little.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Marks the process that `taskset` has pinned to the loader's core.
const PINNED: &str = "ISTHMUS_BENCH_PINNED";
const CPUS: &str = "a list of two CPUs or ranges of CPUs";

/// The figures of one measurement, or why it failed.
type Measured = Result<Vec<Figure>, String>;

/// Measure Isthmus beside etcd
#[derive(Debug, Parser)]
struct Args {
    /// Scenarios to run; a part of a name selects all that contain the part. By default all but those of replicas, which run
    /// alone: "replicas" selects them all.
    scenarios: Vec<String>,
    /// Select only scenarios whose whole names are given.
    #[arg(long)]
    exact: bool,
    /// Print the scenarios.
    #[arg(long)]
    list: bool,
    /// Short measurements with small numbers: shows that all scenarios run, not how fast the servers are.
    #[arg(long)]
    quick: bool,
    /// Rounds, of which the median counts. Long scenarios have one round. By default 3, and 1 with --quick.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Servers to run; a part of a name selects all that contain the part. By default all, and with --quick not etcd 3.6. The
    /// first one is what replicas follow.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    servers: Vec<String>,
    /// CPUs of the server and of the loader, each a number or a range such as 0-3. Loads of one connection, and of one
    /// loader, do not fill many CPUs, and a CPU of both blurs rates and latencies, but not CPU time.
    #[arg(long, default_value = "0,1", value_delimiter = ',', value_name = "SERVER,LOADER")]
    cpus: Vec<String>,
    /// Binary of Isthmus. By default, the one that was built with this program.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_clustermesh-apiserver"))]
    isthmus: PathBuf,
    /// Directory with etcd, and with etcd of version 3.6 in etcd36.
    #[arg(long, value_name = "DIR", env = "PEERS_BIN", default_value = "target/peers")]
    peers: PathBuf,
    /// Directory for the results. By default target/bench; for a whole run, and with --again or --redraw, benches/results,
    /// with a summary in README.md.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Directory for stacks of the servers, recorded by perf. `make profile` draws flame graphs of them.
    #[arg(long, value_name = "DIR")]
    stacks: Option<PathBuf>,
    /// Replace the figures of the selected scenarios in the results that the directory has already. Servers, machine and
    /// --quick must be those of these results. A scenario that fails keeps its former figures.
    #[arg(long)]
    again: bool,
    /// Measure nothing: write the table and the plots of the results that the directory has already.
    #[arg(long)]
    redraw: bool,
    /// What this program runs for each measurement: a scenario and a server, both by their whole names.
    #[arg(long, hide = true, num_args = 2)]
    one: Vec<String>,
    #[command(flatten)]
    sizes: replicas::Sizes,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.list {
        for scenario in &scenarios::ALL {
            println!("{:<20}{}", scenario.name, scenario.title);
        }
        for scenario in &replicas::ALL {
            println!("{:<20}{}", scenario.name, scenario.title);
        }
        return Ok(());
    }
    let [server_cpu, loader_cpu] = &args.cpus[..] else {
        bail!("--cpus is not {CPUS}, such as 0,1");
    };
    let is_pinned = pin(server_cpu, loader_cpu)?;
    // Fails only if a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cpus = is_pinned.then_some((server_cpu.as_str(), loader_cpu.as_str()));
    if let [scenario, server] = &args.one[..] {
        let figures = runtime.block_on(Box::pin(one(&args, scenario, server, cpus.map(|(server, _)| server))));
        let figures: Measured = figures.map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    match args.scenarios.iter().any(|name| name.starts_with(replicas::PREFIX)) {
        true if args.again => bail!("--again is not for replicas: `make bench-replicas` measures all of them anew"),
        true => runtime.block_on(Box::pin(measure_replicas(&args, cpus))),
        false => measure(&args),
    }
}

/// Starts this program anew on the loader's CPU. Returns false if the machine has only one.
fn pin(server: &str, loader: &str) -> anyhow::Result<bool> {
    if std::env::var_os(PINNED).is_some() {
        return Ok(true);
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("This machine has one CPU: server and loader share it, and latencies are those of both.");
        return Ok(false);
    }
    if server == loader && !server.contains('-') {
        bail!("--cpus names one CPU twice: give {CPUS}");
    }
    let mut command = Command::new("taskset");
    command.arg("-c").arg(loader).arg(std::env::current_exe()?);
    let error = command.args(std::env::args_os().skip(1)).env(PINNED, "1").exec();
    Err(error).context("cannot run taskset, which is a part of util-linux")
}

fn measure(args: &Args) -> anyhow::Result<()> {
    if args.redraw {
        let output = args.results(true);
        return show(args, &output, &mut Results::read(&output)?, true);
    }
    let (scale, rounds) = args.extent();
    let chosen = chosen(&scenarios::ALL, &args.scenarios, args.exact)?;
    let programs = programs(args)?;
    let is_whole = chosen.len() == scenarios::ALL.len() && args.servers.is_empty() && scale == Scale::Full;
    let is_shown = is_whole || args.again;
    let output = args.results(is_shown);
    let mut results = Results::new(
        Machine::here(),
        scale,
        programs.iter().map(|program| program.name.clone()),
    );
    let earlier = args.again.then(|| results.earlier(&output)).transpose()?;
    for scenario in &chosen {
        let rounds = if scenario.is_long { 1 } else { rounds };
        for round in 1..=rounds {
            // In turns, so that noise of the machine hits all servers.
            for (at, program) in programs.iter().enumerate() {
                let label = format!("{}, round {round} of {rounds}, {}", scenario.name, program.name);
                eprintln!("{label}");
                match apart(scenario, program)? {
                    Ok(figures) => results.add(scenario, at, figures),
                    Err(error) => {
                        eprintln!("{label}: {error}");
                        results.fail(scenario, at, &error);
                    }
                }
            }
        }
    }
    let failed = results.failures().next();
    let failed = failed.map(|(scenario, program, why)| format!("{scenario} failed with {program}: {why}"));
    if let Some(earlier) = earlier {
        results = results.put_into(earlier, &chosen);
    }
    show(args, &output, &mut results, is_shown)?;
    match failed {
        None => Ok(()),
        Some(failed) => bail!(failed),
    }
}

/// Writes results into a directory and, where they are those of README.md, into that.
fn show(args: &Args, output: &Path, results: &mut Results, is_shown: bool) -> anyhow::Result<()> {
    results.sort(&scenarios::ALL);
    report::write(results, output)?;
    if is_shown && args.output.is_none() {
        report::summarize(results, Path::new("README.md"), output)?;
    }
    println!("{}", report::table(results));
    println!("The results are in {}.", output.display());
    Ok(())
}

/// Measures in a process of its own, so that no scenario finds a loader that has worked for others. Fails if that process
/// does not report, since its server may still run then.
fn apart(scenario: &Scenario, program: &Program) -> anyhow::Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--one", scenario.name, &program.name]);
    command.args(std::env::args_os().skip(1));
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot run this program again")?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "the loader has ended ({}) without figures that can be read",
            output.status
        )
    })
}

/// One scenario with one server.
async fn one(args: &Args, scenario: &str, server: &str, cpu: Option<&str>) -> anyhow::Result<Vec<Figure>> {
    let (scale, _) = args.extent();
    let scenario = scenarios::ALL.iter().find(|known| known.name == scenario);
    let scenario = scenario.context("--one names no scenario")?;
    let programs = programs(args)?;
    let program = programs.iter().find(|program| program.name == server);
    let program = program.context("--one names no server")?;
    let server = program.start(scenario.security, cpu).await?;
    let stacks = args.stacks.as_deref().map(|dir| dir.join(scenario.name));
    let recording = stacks.map(|file| server.record(&file)).transpose()?;
    let figures = scenario.run(&server, scale).await;
    drop(server);
    if let Some(mut recording) = recording {
        // perf ends with the process that it records.
        recording.wait().context("perf does not end")?;
    }
    figures
}

/// Measures replicas of the first server.
async fn measure_replicas(args: &Args, cpus: Option<(&str, &str)>) -> anyhow::Result<()> {
    let (scale, rounds) = args.extent();
    let chosen = chosen(&replicas::ALL, &args.scenarios, args.exact)?;
    let (servers, ours) = (programs(args)?, Program::ours(args.isthmus.clone())?);
    let bench = replicas::Bench {
        upstream: servers.first().unwrap_or(&ours),
        ours: &ours,
        cpus,
        scale,
        sizes: args.sizes,
        rounds,
    };
    replicas::measure(&chosen, &bench, args.output.as_deref()).await
}

impl Args {
    /// The directory for the results, which README.md shows or not.
    fn results(&self, is_shown: bool) -> PathBuf {
        let usual = if is_shown { "benches/results" } else { "target/bench" };
        self.output.clone().unwrap_or_else(|| PathBuf::from(usual))
    }

    /// The scale, and the number of rounds.
    fn extent(&self) -> (Scale, usize) {
        let scale = if self.quick { Scale::Quick } else { Scale::Full };
        (scale, self.rounds.unwrap_or(scale.of(3, 1)).max(1))
    }
}

/// Something that has a name.
trait Named {
    fn name(&self) -> &'static str;
}

impl Named for Scenario {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl Named for replicas::Scenario {
    fn name(&self) -> &'static str {
        self.name
    }
}

fn chosen<'a, T: Named>(all: &'a [T], names: &[String], exact: bool) -> anyhow::Result<Vec<&'a T>> {
    let selects = |name: &String, scenario: &T| match exact {
        true => scenario.name() == name,
        false => scenario.name().contains(name.as_str()),
    };
    if let Some(name) = names
        .iter()
        .find(|name| !all.iter().any(|scenario| selects(name, scenario)))
    {
        let what = if exact { "has the name" } else { "contains" };
        bail!("no scenario {what} {name:?}: --list prints their names, and those of replicas run alone");
    }
    let is_chosen = |scenario: &&T| names.is_empty() || names.iter().any(|name| selects(name, scenario));
    Ok(all.iter().filter(is_chosen).collect())
}

/// The servers, the first of which the others are compared with.
fn programs(args: &Args) -> anyhow::Result<Vec<Program>> {
    let mut programs = vec![];
    // Without etcd, there are still replicas of Isthmus.
    let is_ours = |name: &String| !name.is_empty() && "Isthmus".starts_with(name.as_str());
    if args.servers.is_empty() || !args.servers.iter().all(is_ours) {
        programs.push(Program::etcd(args.peers.join("etcd"))?);
        if !args.quick || !args.servers.is_empty() {
            programs.push(Program::etcd(args.peers.join("etcd36/etcd"))?);
        }
    }
    programs.push(Program::ours(args.isthmus.clone())?);
    programs.retain(|program| args.servers.is_empty() || args.servers.iter().any(|name| program.name.contains(name)));
    if programs.is_empty() {
        bail!("--servers selects no server: their names are like \"etcd 3.7\" and \"Isthmus\"");
    }
    Ok(programs)
}
