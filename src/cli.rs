//! The command line: flags become the configuration of rooms, and a subcommand starts them.
//!
//! A daemon runs until a signal asks it to stop or one of its tasks fails, and then ends within five seconds.

mod arguments;
mod budgets;
pub mod clustermesh;
mod completion;
mod coredns;
mod data;
mod dbg;
mod demo;
pub mod etcd;
mod etcdinit;
mod flags;
mod follow;
mod help;
mod ignored;
pub mod kvstoremesh;
mod loadtest;
mod logging;
mod mesh;
mod print;
mod scope;
pub mod serve;
mod snapshot;
mod usage;
mod users;
mod variables;

use crate::app::signal;
use crate::util::blocking;
use crate::util::lifecycle::Lifecycle;
use anyhow::bail;
use arguments::Program;
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use ignored::IgnoredSetting;
use logging::{Format, Output};
use nix::sys::signal::{SigSet, Signal};
use std::time::Duration;
use tracing::Level;

/// Time for tasks to stop, within the five seconds that the process has.
const GRACE: Duration = Duration::from_secs(4);

#[derive(Debug, Parser)]
#[command(
    name = "clustermesh-apiserver",
    about = "Isthmus: a control plane for Cilium Cluster Mesh",
    version,
    disable_version_flag = true
)]
// As in Go, the last of several values of a flag wins.
#[command(args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run store, publisher and mirror in one process
    Serve(Box<serve::ServeArgs>),
    /// Run the etcd v3 store alone, with etcd's flags
    #[command(disable_version_flag = true)]
    Etcd(Box<etcd::EtcdArgs>),
    /// Prepare the data directory of a store: users, roles, authentication
    Etcdinit(etcdinit::EtcdinitArgs),
    /// Run the publisher alone: from Kubernetes or manifests into an etcd
    Clustermesh(Box<clustermesh::ClustermeshArgs>),
    /// Run the mirror alone: from remote clusters into an etcd
    Kvstoremesh(Box<kvstoremesh::KvstoremeshArgs>),
    /// Debug the connection to the local store
    #[command(subcommand)]
    ClustermeshDbg(dbg::ClustermeshDbg),
    /// Debug a mirror and its connections to remote clusters
    KvstoremeshDbg(dbg::KvstoremeshDbg),
    /// Configure CoreDNS for the Multi-Cluster Services API
    McsapiCorednsCfg(Box<coredns::CorednsArgs>),
    /// Connect clusters, from a machine with kubeconfig contexts
    #[command(subcommand)]
    Mesh(mesh::MeshCommand),
    /// Try a scope file before it is applied: which keys it keeps and leaves out, and why
    #[command(subcommand)]
    Scope(scope::ScopeCommand),
    /// Save, restore and inspect snapshots of a store
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Verify every record of a data directory
    Check(data::InspectArgs),
    /// Print every change kept in a data directory, as JSON lines
    Dump(data::InspectArgs),
    /// Test a store under the load of simulated agents, and report
    Loadtest(Box<loadtest::LoadtestArgs>),
    /// Run a mesh of two clusters on this machine
    Demo(demo::DemoArgs),
    /// Print the autocompletion script of a shell
    #[command(subcommand)]
    Completion(completion::Completion),
    /// Print the versions of this program and of the etcd API
    Version,
}

/// A parsed subcommand with its settings.
struct Invocation {
    command: Command,
    program: Program,
    /// The words before the name of a subcommand of `mesh`.
    before_mesh_command: &'static str,
    /// The settings in force, for the log.
    settings: Vec<String>,
    ignored: Vec<IgnoredSetting>,
}

/// Why a subcommand failed.
enum Failure {
    /// The error is still to be printed.
    Error(anyhow::Error),
    /// The subcommand has printed the reason where the original prints it.
    Printed,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// The command line with all that clap's derive cannot express.
fn command_line(program: Program) -> clap::Command {
    let version = Arg::new("version")
        .short('V')
        .long("version")
        .help("Print the version of this program.")
        .action(ArgAction::Version);
    let shared = [
        data::VARIABLES,
        budgets::VARIABLES,
        follow::VARIABLES,
        flags::TRACE_VARIABLES,
    ];
    let cli = match program {
        Program::ClustermeshApiserver => Cli::command(),
        Program::Isthmus => Cli::augment_args(mesh::MeshCommand::augment_subcommands(clap::Command::new(
            mesh::PROGRAM,
        ))),
    };
    let command = shared.into_iter().fold(cli, variables::set);
    help::complete(command).arg(version)
}

/// Runs the command line `args`; returns the exit code.
pub fn run(args: Vec<String>) -> u8 {
    // A file that reaches the limit of `ulimit -f` is an obstacle (EFBIG), and no reason to be killed. Every later
    // thread inherits the mask. Blocking a signal does not fail.
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
    let code = run_subcommand(args);
    logging::finish();
    code
}

fn run_subcommand(args: Vec<String>) -> u8 {
    let program = Program::of(&args);
    let prepared = match arguments::prepare(args, command_line(program)) {
        Ok(prepared) => prepared,
        Err(error) => {
            print_error(&error);
            return 1;
        }
    };
    let parsed = prepared.command.clone().try_get_matches_from(&prepared.args);
    let parsed = parsed.and_then(|matches| {
        Ok(Invocation {
            command: command(program, &matches)?,
            program,
            before_mesh_command: program.before_mesh_command(matches.subcommand_name() == Some(mesh::NAME)),
            settings: settings(&prepared.command, &matches),
            ignored: prepared.ignored,
        })
    });
    match parsed {
        Ok(invocation) => execute(invocation),
        Err(error) => print_answer(&usage::answer(
            prepared.dialect,
            command_line(program),
            &prepared.args,
            &error,
        )),
    }
}

/// The subcommand with its flags.
fn command(program: Program, matches: &ArgMatches) -> Result<Command, clap::Error> {
    let name = matches.subcommand_name().unwrap_or_default();
    match program == Program::Isthmus && mesh::MeshCommand::has_subcommand(name) {
        true => Ok(Command::Mesh(mesh::MeshCommand::from_arg_matches(matches)?)),
        false => Ok(Cli::from_arg_matches(matches)?.command),
    }
}

/// Runs the subcommand; returns the exit code.
fn execute(invocation: Invocation) -> u8 {
    // The original programs of these subcommands log a fatal record and exit with -1.
    let is_fatal = matches!(
        invocation.command,
        Command::Clustermesh(_) | Command::Kvstoremesh(_) | Command::Etcdinit(_) | Command::McsapiCorednsCfg(_)
    );
    match dispatch(invocation) {
        Ok(()) => 0,
        Err(Failure::Printed) => 1,
        Err(Failure::Error(error)) if is_fatal => {
            if !logging::fatal(&with_causes(&error)) {
                print_error(&error);
            }
            255
        }
        Err(Failure::Error(error)) => {
            print_error(&error);
            1
        }
    }
}

/// Prints the answer to a command line that clap refused; returns the exit code.
fn print_answer(answer: &usage::Answer) -> u8 {
    logging::complain(&answer.err);
    match print::answer(&answer.out) {
        Ok(()) => answer.code,
        Err(error) => {
            print_error(&error);
            1
        }
    }
}

fn print_error(error: &anyhow::Error) {
    logging::complain(&format!("Error: {}\n", with_causes(error)));
}

/// The text of `error` and its causes. Some libraries' errors contain the text of their cause, which is then not
/// repeated.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if cause.contains(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Every setting of the subcommand, given or default, as `  --name='value'` in the order of the names: the lines
/// that Cilium's binaries log when they start.
fn settings(command: &clap::Command, matches: &ArgMatches) -> Vec<String> {
    let Some((name, matches)) = matches.subcommand() else {
        return vec![];
    };
    let arguments = command
        .find_subcommand(name)
        .into_iter()
        .flat_map(|c| c.get_arguments())
        .filter(|argument| argument.get_id() != help::ID);
    let mut settings: Vec<_> = arguments
        .filter_map(|argument| {
            let values = matches.try_get_raw(argument.get_id().as_str()).ok().flatten();
            let values: Vec<_> = values.into_iter().flatten().map(|v| v.to_string_lossy()).collect();
            Some(format!("  --{}='{}'", argument.get_long()?, values.join(",")))
        })
        .collect();
    settings.sort();
    settings
}

/// Starts the log of a daemon with its settings, the version, and the ignored settings.
fn start_log(log: &flags::LogArgs, settings: &[String], ignored: &[IgnoredSetting]) {
    let options = logging::options(logging::level(log.debug), &log.log_opt);
    logging::init(options.format, options.level, options.output);
    settings.iter().for_each(|setting| tracing::info!("{setting}"));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "Isthmus clustermesh-apiserver");
    options.invalid.iter().for_each(|invalid| tracing::warn!("{invalid}"));
    ignored.iter().for_each(|ignored| tracing::warn!("{ignored}"));
}

/// Starts the log of `etcd`. etcd's own tools always pass flags without effect, so those flags cause no warnings.
fn start_etcd_log(args: &etcd::EtcdArgs, ignored: &[IgnoredSetting]) {
    args.init_logging();
    for ignored in ignored {
        match ignored {
            IgnoredSetting::NoEffect(_) => tracing::debug!("{ignored}"),
            IgnoredSetting::Unknown(_) | IgnoredSetting::Deprecated(_) => tracing::warn!("{ignored}"),
        }
    }
}

fn dispatch(invocation: Invocation) -> Result<(), Failure> {
    let Invocation {
        command,
        program,
        before_mesh_command,
        settings,
        ignored,
    } = invocation;
    match command {
        Command::Serve(args) => {
            start_log(&args.log, &settings, &ignored);
            daemon(async |life| args.start(&life).await)?;
        }
        Command::Clustermesh(args) => {
            start_log(&args.log, &settings, &ignored);
            daemon(async |life| args.start(&life).await)?;
        }
        Command::Kvstoremesh(args) => {
            start_log(&args.log, &settings, &ignored);
            daemon(async |life| args.start(&life).await)?;
        }
        Command::Etcd(args) if args.wants_version() => print::answer(&(etcd::version() + "\n"))?,
        Command::Etcd(args) => {
            start_etcd_log(&args, &ignored);
            daemon(async |life| args.start(&life).await)?;
        }
        Command::Etcdinit(args) => {
            logging::init(Format::Text, logging::level(args.debug), Output::Stdout);
            args.run()?;
        }
        Command::ClustermeshDbg(command) => command.run()?,
        Command::KvstoremeshDbg(dbg::KvstoremeshDbg::Troubleshoot(args)) => args.run()?,
        Command::KvstoremeshDbg(dbg::KvstoremeshDbg::Ask(args)) => match args.run() {
            Ok(text) => print::answer(&text)?,
            Err(error) => {
                print::answer(&format!(
                    "Failed to retrieve status information: {}\n",
                    with_causes(&error)
                ))?;
                return Err(Failure::Printed);
            }
        },
        Command::Scope(command) => {
            logging::init(Format::TextWithoutTime, Level::WARN, Output::Stderr);
            command.run()?;
        }
        Command::Snapshot(command) => print::answer(&command.run()?)?,
        Command::Check(args) => print::answer(&args.check()?)?,
        Command::Dump(args) => args.dump()?,
        Command::Loadtest(args) => args.run()?,
        Command::Demo(args) => daemon(async |life| args.start(&life).await)?,
        Command::McsapiCorednsCfg(args) => {
            logging::init(Format::Text, Level::INFO, Output::Stdout);
            ignored.iter().for_each(|ignored| tracing::warn!("{ignored}"));
            args.run()?;
        }
        Command::Mesh(command) => command.run(before_mesh_command)?,
        Command::Completion(shell) => shell.print(command_line(program))?,
        Command::Version => print::answer(&version())?,
    }
    Ok(())
}

/// Our version and etcd's, in the format of Cilium's `version`.
fn version() -> String {
    let (own, etcd) = (env!("CARGO_PKG_VERSION"), crate::server::ETCD_VERSION);
    let platform = format!("{}/{}", std::env::consts::OS, crate::util::arch());
    format!("Isthmus clustermesh-apiserver: {own} {platform}\netcd: {etcd} isthmus-{own} (compatible) {platform}\n")
}

/// Runs `start`, then waits for the stop signal. Fails if `start` or a task failed.
fn daemon(start: impl AsyncFnOnce(Lifecycle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = blocking::runtime()?;
    let done = runtime.block_on(run_until_stopped(start));
    // Does not wait for long computations on blocking threads: snapshots, hashes.
    runtime.shutdown_background();
    done
}

async fn run_until_stopped(start: impl AsyncFnOnce(Lifecycle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let life = Lifecycle::default();
    signal::stop_on_signals(&life)?;
    life.spawn_forever("a thread for blocking work", blocking::keep_a_thread());
    tokio::select! {
        started = start(life.clone()) => started?,
        // A signal, or a failed task, ends an incomplete start.
        () = life.stop_token().cancelled() => {}
    }
    match life.stopped(GRACE).await {
        None => Ok(()),
        Some(failure) => bail!("{failure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that make a reader guess the subject.
    const RIDDLES: [&str; 8] = ["It", "What", "Who", "One", "Where", "When", "Whether", "How"];

    fn assert_readable(name: &str, text: Option<String>) -> String {
        let text = text.unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        assert!(text.starts_with(|c: char| c.is_ascii_uppercase()), "{name}: {text:?}");
        assert!(!RIDDLES.contains(&first), "{name}: {text:?}");
        text
    }

    fn assert_readable_help(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        let about = assert_readable(&path, command.get_about().map(ToString::to_string));
        assert!(!about.ends_with('.'), "{path}: {about:?}");
        for argument in command.get_arguments() {
            let name = format!("{path} {}", argument.get_id());
            let help = assert_readable(&name, argument.get_help().map(ToString::to_string));
            assert!(help.ends_with('.') && !help.ends_with(".."), "{name}: {help:?}");
        }
        for subcommand in command.get_subcommands() {
            assert_readable_help(subcommand, &path);
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("no such file");
        let error = anyhow::Error::new(cause).context("cannot read x: no such file");
        assert_eq!(with_causes(&error), "cannot read x: no such file");
        let error = anyhow::anyhow!("broken").context("cannot read x");
        assert_eq!(with_causes(&error), "cannot read x: broken");
    }

    #[test]
    fn every_flag_and_every_subcommand_is_explained_in_sentences() {
        for program in [Program::ClustermeshApiserver, Program::Isthmus] {
            let command = command_line(program);
            assert!(command.get_subcommands().count() > 10);
            assert_readable_help(&command, "");
        }
    }
}
