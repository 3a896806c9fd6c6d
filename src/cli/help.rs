//! The style of all help texts: full stops, and names for the values of boolean flags.

use clap::{Arg, ArgAction, Command};

/// Id of the flag that prints help.
pub const ID: &str = "help";

/// Completes the help texts of `command` and its subcommands.
///
/// clap removes the full stop at the end of a doc comment. A help text of several sentences needs it back, and
/// then all of them do.
pub fn complete(command: Command) -> Command {
    let help = Arg::new(ID)
        .short('h')
        .long("help")
        .help("Print help.")
        .action(ArgAction::Help);
    command
        .mut_subcommands(complete)
        .mut_args(|arg| with_value_name(with_full_stop(arg)))
        .disable_help_flag(true)
        // The last flattened group leaves its heading behind.
        .next_help_heading(None)
        .arg(help)
}

fn with_full_stop(arg: Arg) -> Arg {
    match arg.get_help().map(ToString::to_string) {
        Some(help) if !help.ends_with('.') => arg.help(help + "."),
        _ => arg,
    }
}

/// Boolean flags take an optional value, after `=` only.
fn with_value_name(arg: Arg) -> Arg {
    match arg.is_require_equals_set() {
        true => arg.value_name("true|false"),
        false => arg,
    }
}
