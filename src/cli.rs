//! The command line. Every subcommand starts its parts, runs until it is told to stop or a part fails,
//! and ends within five seconds.

pub mod clustermesh;
mod completion;
mod coredns;
mod data;
mod dbg;
mod demo;
pub mod etcd;
mod etcdinit;
mod flags;
pub mod kvstoremesh;
mod logging;
pub mod serve;
mod snapshot;
mod usage;
mod users;

use crate::app::signal;
use crate::util::lifecycle::Lifecycle;
use anyhow::bail;
use clap::builder::Resettable;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::collections::BTreeMap;
use std::time::Duration;

/// Tasks get this long to stop; the process has five seconds.
const GRACE: Duration = Duration::from_secs(4);

#[derive(Debug, Parser)]
#[command(
    name = "clustermesh-apiserver",
    about = "Isthmus: a control plane for Cilium Cluster Mesh",
    version
)]
// As in Go, the last of several wins.
#[command(args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Store, publisher and mirror in one process
    Serve(Box<serve::ServeArgs>),
    /// The etcd v3 store alone, with etcd's flags
    #[command(disable_version_flag = true)]
    Etcd(Box<etcd::EtcdArgs>),
    /// Prepare the data directory of an etcd: users, roles, authentication
    Etcdinit(etcdinit::EtcdinitArgs),
    /// The publisher alone: Kubernetes or manifests into an etcd
    Clustermesh(Box<clustermesh::ClustermeshArgs>),
    /// The mirror alone: remote clusters into an etcd
    Kvstoremesh(Box<kvstoremesh::KvstoremeshArgs>),
    /// What there is to know of the local store
    #[command(subcommand)]
    ClustermeshDbg(dbg::ClustermeshDbg),
    /// What a running mirror knows, and why it does not know more
    KvstoremeshDbg(dbg::KvstoremeshDbg),
    /// Set CoreDNS up for the MCS API
    McsapiCorednsCfg(Box<coredns::CorednsArgs>),
    /// Save, restore and look at snapshots
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Verify every record of a data directory
    Check(data::InspectArgs),
    /// Print every change that a data directory holds, as JSON lines
    Dump(data::InspectArgs),
    /// A mesh of two clusters on this machine
    Demo(demo::DemoArgs),
    /// Print the autocompletion script for a shell
    #[command(subcommand)]
    Completion(completion::Completion),
    /// Print the version
    Version,
}

/// Runs the command line `args`; returns the exit code.
pub fn run(args: Vec<String>) -> u8 {
    let (mut args, is_etcd) = as_subcommand(args);
    let mut complaints = vec![];
    let mut command = without_empty_variables(data::with_variables(Cli::command()));
    if is_etcd {
        match settle(&mut args, command) {
            Ok((settled, unknown)) => {
                command = settled;
                let complaint = |name: String| format!("unrecognized setting {name}");
                complaints.extend(unknown.into_iter().map(complaint));
            }
            Err(error) => {
                say_fatal(&error);
                return 1;
            }
        }
    }
    let ignored: &[_] = match args.get(1).map(String::as_str) {
        Some("etcd") => etcd::IGNORED,
        Some("serve" | "clustermesh" | "kvstoremesh") => flags::IGNORED_BY_DAEMONS,
        Some("mcsapi-coredns-cfg") => coredns::IGNORED,
        _ => &[],
    };
    let (args, taken) = flags::strip(args, ignored);
    complaints.extend(taken.iter().map(|flag| no_effect(flag)));
    let parsed = command.clone().try_get_matches_from(&args).and_then(|matches| {
        let settings = settings(&command, &matches);
        Ok((Cli::from_arg_matches(&matches)?, settings))
    });
    let (cli, settings) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if is_etcd => return refused(&error),
        Err(error) => return misunderstood(&args, &error),
    };
    // The originals of these end with -1 on a fatal error.
    let fatal = matches!(
        cli.command,
        Command::Clustermesh(_) | Command::Kvstoremesh(_) | Command::Etcdinit(_) | Command::McsapiCorednsCfg(_)
    );
    match dispatch(cli.command, &settings, &complaints) {
        Ok(()) => 0,
        Err(error) => {
            if !(fatal && logging::fatal(&format!("{error:#}"))) {
                say_fatal(&error);
            }
            if fatal { 255 } else { 1 }
        }
    }
}

/// Where etcd's settings come from: a file alone, or flags and variables, never the same from both.
/// Returns the command to parse with, and what is no setting.
fn settle(args: &mut Vec<String>, command: clap::Command) -> anyhow::Result<(clap::Command, Vec<String>)> {
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let etcd = command.find_subcommand("etcd");
    let own = etcd
        .into_iter()
        .flat_map(|c| c.get_arguments())
        .filter_map(|a| a.get_long());
    let ignored = etcd::IGNORED.iter().map(|(name, _)| *name);
    let flags: Vec<String> = own.chain(ignored).map(str::to_owned).collect();
    if let Some(path) = etcd::environment::config_file(args, &variables) {
        let mut given = etcd::environment::flags_of_file(&path)?;
        for arg in &mut given {
            plain(arg);
        }
        let name = |arg: &str| arg.trim_start_matches("--").split('=').next().map(str::to_owned);
        let known = |arg: &String| name(arg).is_some_and(|name| flags.contains(&name));
        let unknown = given.extract_if(.., |arg| !known(arg)).collect();
        args.truncate(2);
        args.extend(given);
        let command = command.mut_subcommand("etcd", |etcd| etcd.mut_args(|arg| arg.env(Resettable::Reset)));
        return Ok((command, unknown));
    }
    let unknown = etcd::environment::check(args, &flags, &variables)?;
    Ok((command, unknown))
}

/// What to say of a flag that changes nothing. etcd's own words where it has some, since tools look for
/// them.
fn no_effect(flag: &str) -> String {
    match flag {
        "max-snapshots" => "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.".to_owned(),
        "v2-deprecation" => "--v2-deprecation is deprecated and scheduled for removal in v3.8. \
            The default value is enforced, ignoring user input."
            .to_owned(),
        _ => format!("--{flag} is accepted and has no effect"),
    }
}

/// Says what is wrong with etcd's command line, as etcd does; returns the exit code.
fn refused(error: &clap::Error) -> u8 {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(arg))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
        && !arg.starts_with('-')
    {
        say_fatal(&anyhow::anyhow!("{arg:?} is not a valid flag"));
        return 1;
    }
    let _ = error.print();
    // cobra exits with 1, Go's flag package with 2.
    2
}

/// Says what is wrong with any other command line, as cobra does; returns the exit code.
#[allow(clippy::print_stderr, clippy::print_stdout, reason = "what cobra does")]
fn misunderstood(args: &[String], error: &clap::Error) -> u8 {
    let said = usage::said(Cli::command(), args, error);
    eprint!("{}", said.err);
    print!("{}", said.out);
    said.code
}

/// A variable set to nothing is not set, as in the originals.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|sub| {
        without_empty_variables(sub).mut_args(|arg| match arg.get_env().and_then(std::env::var_os) {
            Some(value) if value.is_empty() => arg.env(Resettable::Reset),
            _ => arg,
        })
    })
}

/// What was experimental in 3.5 goes by its plain name.
fn plain(arg: &mut String) {
    if let Some(plain) = arg.strip_prefix("--experimental-") {
        *arg = format!("--{plain}");
    }
}

#[allow(clippy::print_stderr, reason = "also where no log has been started")]
fn say_fatal(error: &anyhow::Error) {
    eprintln!("Error: {error:#}");
}

/// Makes `etcd …` a subcommand of ours, and Go's `-flag` a `--flag`.
fn as_subcommand(mut args: Vec<String>) -> (Vec<String>, bool) {
    let program = args.first().and_then(|a| a.rsplit('/').next()).unwrap_or_default();
    if program == "etcd" {
        args.insert(1, "etcd".to_owned());
    }
    let is_etcd = args.get(1).is_some_and(|a| a == "etcd");
    if is_etcd {
        for arg in args.iter_mut().skip(2) {
            let long = |c: char| c.is_ascii_lowercase();
            if arg.len() > 2 && arg.starts_with('-') && arg[1..].starts_with(long) {
                arg.insert(0, '-');
            }
            plain(arg);
        }
    }
    (args, is_etcd)
}

/// What a subcommand was told, or does without being told: `--name='value'`, in the order of the names, as the
/// original logs it when it starts.
fn settings(command: &clap::Command, matches: &ArgMatches) -> Vec<String> {
    let Some((name, matches)) = matches.subcommand() else {
        return vec![];
    };
    let arguments = command
        .find_subcommand(name)
        .into_iter()
        .flat_map(|c| c.get_arguments());
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

#[allow(clippy::print_stdout, reason = "answers, not logs")]
fn dispatch(command: Command, settings: &[String], complaints: &[String]) -> anyhow::Result<()> {
    let init = |log: &flags::LogArgs| {
        let options = logging::options(log.debug, &log.log_opt);
        logging::init(options.format, options.level, options.to_stdout);
        settings.iter().for_each(|setting| tracing::info!("{setting}"));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "Isthmus clustermesh-apiserver");
        let all = options.complaints.iter().chain(complaints);
        all.for_each(|complaint| tracing::warn!("{complaint}"));
    };
    match command {
        Command::Etcd(args) if args.wants_version() => println!("{}", etcd::version()),
        Command::Etcd(args) => {
            args.init_logging();
            // etcd's own tools pass many flags that mean nothing here, always.
            for complaint in complaints {
                match complaint.contains("no effect") {
                    true => tracing::debug!("{complaint}"),
                    false => tracing::warn!("{complaint}"),
                }
            }
            return daemon(async |life| args.start(&life).await);
        }
        Command::Etcdinit(args) => {
            let level = if args.debug {
                tracing::Level::DEBUG
            } else {
                tracing::Level::INFO
            };
            logging::init(logging::Format::Text, level, true);
            args.run()?;
        }
        Command::Serve(args) => {
            init(&args.log);
            return daemon(async |life| args.start(&life).await);
        }
        Command::Clustermesh(args) => {
            init(&args.log);
            return daemon(async |life| args.start(&life).await);
        }
        Command::Kvstoremesh(args) => {
            init(&args.log);
            return daemon(async |life| args.start(&life).await);
        }
        Command::ClustermeshDbg(command) => command.run()?,
        Command::KvstoremeshDbg(dbg::KvstoremeshDbg::Troubleshoot(args)) => args.run()?,
        Command::KvstoremeshDbg(dbg::KvstoremeshDbg::Ask(args)) => match args.run() {
            Ok(text) => print!("{text}"),
            Err(error) => {
                println!("Failed to retrieve status information: {error:#}");
                bail!("no status");
            }
        },
        Command::Snapshot(command) => print!("{}", command.run()?),
        Command::Check(args) => print!("{}", args.check()?),
        Command::Dump(args) => args.dump()?,
        Command::Demo(args) => return daemon(async |life| args.start(&life).await),
        Command::McsapiCorednsCfg(args) => {
            let options = logging::options(false, &[]);
            logging::init(options.format, options.level, options.to_stdout);
            complaints.iter().for_each(|c| tracing::warn!("{c}"));
            args.run()?;
        }
        Command::Completion(shell) => shell.print(Cli::command())?,
        Command::Version => print!("{}", version()),
    }
    Ok(())
}

/// Both versions, in the shape of the original.
fn version() -> String {
    let (own, etcd) = (env!("CARGO_PKG_VERSION"), crate::server::ETCD_VERSION);
    let platform = format!("{}/{}", std::env::consts::OS, crate::util::arch());
    format!("Isthmus clustermesh-apiserver: {own} {platform}\netcd: {etcd} isthmus-{own} (compatible) {platform}\n")
}

/// Runs `start`, then waits until everything is told to stop; fails if a part failed.
fn daemon(start: impl AsyncFnOnce(Lifecycle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(run_until_stopped(start));
    // A long computation, a snapshot or a hash, is not waited for.
    runtime.shutdown_background();
    done
}

async fn run_until_stopped(start: impl AsyncFnOnce(Lifecycle) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let life = Lifecycle::default();
    signal::stop_on_signals(&life)?;
    tokio::select! {
        started = start(life.clone()) => started?,
        // Told to stop, or a part failed, before everything was up.
        () = life.stop_token().cancelled() => {}
    }
    match life.stopped(GRACE).await {
        None => Ok(()),
        Some(failure) => bail!("{failure}"),
    }
}
