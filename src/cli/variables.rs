//! Environment variables of the flags that `etcd` and `serve` share: each subcommand has names of its own.

use clap::Command;

/// The environment variables of one flag.
pub struct Variables {
    /// The id of the flag: its name with underscores.
    pub flag: &'static str,
    pub etcd: &'static str,
    pub serve: &'static str,
}

/// Gives the flags of `variables` the environment variables of each subcommand.
pub fn set(command: Command, variables: &[Variables]) -> Command {
    let set = |command: Command, name: &str, of: fn(&Variables) -> &'static str| {
        command.mut_subcommand(name, |sub| {
            variables.iter().fold(sub, |sub, variables| {
                sub.mut_arg(variables.flag, |arg| arg.env(of(variables)))
            })
        })
    };
    set(set(command, "etcd", |v| v.etcd), "serve", |v| v.serve)
}
