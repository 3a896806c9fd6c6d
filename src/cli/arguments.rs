//! Prepares the command line for clap: `etcd` becomes a subcommand, etcd's settings come from one source, and
//! flags that are accepted without effect are taken out.

use super::ignored::{IgnoredFlags, IgnoredSetting};
use super::{coredns, etcd, flags, help, mesh};
use clap::Command;
use clap::builder::Resettable;
use std::collections::BTreeMap;

/// The program whose conventions a command line follows, and so the words and exit codes of its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// etcd, built on Go's flag package.
    Etcd,
    /// Cilium's binaries, built on cobra.
    Cobra,
    /// Subcommands that no other program has.
    Own,
}

/// The name that the program was called by, where it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    ClustermeshApiserver,
    /// The subcommands of `mesh` are at the top level, too.
    Isthmus,
}

/// A command line that clap can parse.
#[derive(Debug)]
pub struct Prepared {
    pub args: Vec<String>,
    pub command: Command,
    pub dialect: Dialect,
    pub ignored: Vec<IgnoredSetting>,
}

// === impl Program ===

impl Program {
    /// The program that the first argument names.
    pub fn of(args: &[String]) -> Self {
        match program_name(args) {
            mesh::PROGRAM => Self::Isthmus,
            _ => Self::ClustermeshApiserver,
        }
    }

    /// The words before the name of a subcommand of `mesh`, as they were typed.
    pub fn before_mesh_command(self, is_below_mesh: bool) -> &'static str {
        match (self, is_below_mesh) {
            (Self::ClustermeshApiserver, _) => "clustermesh-apiserver mesh",
            (Self::Isthmus, true) => "isthmus mesh",
            (Self::Isthmus, false) => "isthmus",
        }
    }
}

/// The name of the file that was executed.
fn program_name(args: &[String]) -> &str {
    args.first().and_then(|a| a.rsplit('/').next()).unwrap_or_default()
}

/// Makes `args` a command line for `command`. Fails where etcd refuses the sources of its settings.
pub fn prepare(args: Vec<String>, command: Command) -> anyhow::Result<Prepared> {
    let (mut args, dialect) = as_subcommand(args);
    let mut command = without_empty_variables(command);
    let mut ignored = vec![];
    if dialect == Dialect::Etcd {
        ignored = choose_etcd_source(&mut args, &mut command)?;
    }
    let without_effect = match args.get(1).map(String::as_str) {
        Some("etcd") => etcd::IGNORED,
        Some("serve" | "clustermesh" | "kvstoremesh") => flags::IGNORED_BY_DAEMONS,
        Some("mcsapi-coredns-cfg") => coredns::IGNORED,
        _ => IgnoredFlags::NONE,
    };
    let (args, removed) = without_effect.strip(args);
    ignored.extend(removed.iter().map(|flag| IgnoredSetting::of_flag(flag)));
    Ok(Prepared {
        args,
        command,
        dialect,
        ignored,
    })
}

/// Makes a program called `etcd` the subcommand of that name, and Go's `-flag` a `--flag`.
fn as_subcommand(mut args: Vec<String>) -> (Vec<String>, Dialect) {
    if program_name(&args) == "etcd" {
        args.insert(1, "etcd".to_owned());
    }
    if args.get(1).is_none_or(|subcommand| subcommand != "etcd") {
        let dialect = match args.get(1).map(String::as_str) {
            Some("serve" | "snapshot" | "check" | "dump" | "demo" | "loadtest" | "mesh") => Dialect::Own,
            Some(
                "clustermesh" | "clustermesh-dbg" | "etcdinit" | "kvstoremesh" | "kvstoremesh-dbg"
                | "mcsapi-coredns-cfg",
            ) => Dialect::Cobra,
            // No original has this name.
            _ if program_name(&args) == mesh::PROGRAM => Dialect::Own,
            _ => Dialect::Cobra,
        };
        return (args, dialect);
    }
    for arg in args.iter_mut().skip(2) {
        let long = |c: char| c.is_ascii_lowercase();
        if arg.len() > 2 && arg.starts_with('-') && arg[1..].starts_with(long) {
            arg.insert(0, '-');
        }
    }
    (args, Dialect::Etcd)
}

/// As in the originals, an empty environment variable counts as unset.
fn without_empty_variables(command: Command) -> Command {
    command.mut_subcommands(|sub| {
        without_empty_variables(sub).mut_args(|arg| match arg.get_env().and_then(std::env::var_os) {
            Some(value) if value.is_empty() => arg.env(Resettable::Reset),
            _ => arg,
        })
    })
}

/// Applies etcd's rule for sources: settings come from a config file alone, or from flags and variables, and then
/// never the same setting from both. Returns the settings that etcd does not know.
fn choose_etcd_source(args: &mut Vec<String>, command: &mut Command) -> anyhow::Result<Vec<IgnoredSetting>> {
    let variables: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let flags = etcd_flags(command);
    let unknown = match etcd::environment::config_file(args, &variables) {
        Some(path) => {
            let (known, unknown) = split_known(etcd::environment::flags_of_file(&path)?, &flags);
            args.truncate(2);
            args.extend(known);
            let without_variables = |etcd: Command| etcd.mut_args(|arg| arg.env(Resettable::Reset));
            *command = std::mem::take(command).mut_subcommand("etcd", without_variables);
            unknown
        }
        None => etcd::environment::check(args, &flags, &variables)?,
    };
    Ok(unknown.into_iter().map(IgnoredSetting::Unknown).collect())
}

/// The flags that etcd knows: those with a meaning here, and those that are ignored.
fn etcd_flags(command: &Command) -> Vec<String> {
    let own = command
        .find_subcommand("etcd")
        .into_iter()
        .flat_map(|c| c.get_arguments());
    let own = own
        .filter(|arg| arg.get_id() != help::ID)
        .filter_map(|arg| arg.get_long());
    own.map(str::to_owned)
        .chain(etcd::IGNORED.names().map(str::to_owned))
        .collect()
}

/// Separates the flags of a config file that are in `known` from those that are not.
fn split_known(given: Vec<String>, known: &[String]) -> (Vec<String>, Vec<String>) {
    given.into_iter().partition(|arg| {
        let name = arg.trim_start_matches("--").split('=').next().unwrap_or_default();
        known.iter().any(|flag| flag == name)
    })
}
