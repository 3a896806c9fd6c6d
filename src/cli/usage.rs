//! Help, and errors about command lines that clap refuses, in the words of the originals, since tools look for
//! them.
//!
//! Cilium's binaries use cobra: the message and the usage go to standard error, the bare message to standard
//! output.

use super::arguments::Dialect;
use super::etcd::removed;
use clap::Command;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use std::error::Error as _;

/// The texts to print, and the exit code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The text for standard output.
    pub out: String,
    /// The text for standard error.
    pub err: String,
    /// The exit code.
    pub code: u8,
}

/// The answer to `args`, which `command` refused because of `error`.
pub fn answer(dialect: Dialect, command: Command, args: &[String], error: &Error) -> Answer {
    match dialect {
        Dialect::Etcd => etcd_answer(error),
        Dialect::Cobra => cobra_answer(command, args, error),
        Dialect::Own => own_answer(command, args, error),
    }
}

/// One line that names the mistake and what was probably meant.
fn own_answer(command: Command, args: &[String], error: &Error) -> Answer {
    let help = cobra_answer(command.clone(), args, error);
    if help.code == 0 {
        return help;
    }
    let root = command.get_name().to_owned();
    let mut command = command.bin_name(root);
    command.build();
    let named = named(&mut command, args);
    let message = message(named, args, error);
    let message = message.split("\n\n").next().unwrap_or_default();
    let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand].map(|kind| texts(error, kind));
    let similar = similar.concat();
    // The most similar one is the last.
    let similar: Vec<_> = similar.iter().rev().take(2).map(|similar| name(similar)).collect();
    let similar = match similar.is_empty() {
        false => format!(" Did you mean {}?", similar.join(" or ")),
        true => String::new(),
    };
    let path = named.get_bin_name().unwrap_or_default();
    Answer {
        err: format!("Error: {message}.{similar} See `{path} --help`\n"),
        out: String::new(),
        code: 1,
    }
}

fn etcd_answer(error: &Error) -> Answer {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return Answer {
            out: text,
            ..Answer::default()
        };
    }
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(arg))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
        && !arg.starts_with('-')
    {
        return Answer {
            err: format!("Error: {arg:?} is not a valid flag\n"),
            code: 1,
            ..Answer::default()
        };
    }
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) if error.kind() == ErrorKind::UnknownArgument => arg.trim_start_matches("--"),
        _ => "",
    };
    let text = match removed::remedy(unknown) {
        // Tools that run several releases of etcd look for the words of Go's flag package.
        Some(remedy) => format!("flag provided but not defined: -{unknown}\n{remedy}\n"),
        None => text,
    };
    Answer {
        err: text,
        // cobra exits with 1, Go's flag package with 2.
        code: 2,
        ..Answer::default()
    }
}

fn cobra_answer(command: Command, args: &[String], error: &Error) -> Answer {
    let root = command.get_name().to_owned();
    let mut command = command.bin_name(&root);
    command.build();
    let help = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Some(error.render().to_string())
        }
        ErrorKind::MissingSubcommand => Some(named(&mut command, args).render_help().to_string()),
        _ => None,
    };
    if let Some(help) = help {
        let out = format!("{}\n", help.trim_end());
        return Answer {
            out,
            ..Answer::default()
        };
    }
    let is_unknown = error.kind() == ErrorKind::InvalidSubcommand;
    if is_unknown && args.get(1).is_some_and(|arg| arg == "help") {
        let topic = text(error, ContextKind::InvalidSubcommand);
        let err = format!("Unknown help topic [`{topic}`]\n{}", usage(&command));
        return Answer {
            err,
            ..Answer::default()
        };
    }
    let named = named(&mut command, args);
    let message = message(named, args, error);
    let help = match is_unknown && named.get_name() == root {
        true => format!("Run '{root} --help' for usage.\n"),
        false => format!("{}\n", usage(named)),
    };
    Answer {
        err: format!("Error: {message}\n{help}"),
        out: format!("{message}\n"),
        code: 1,
    }
}

/// The subcommand that `args` name.
fn named<'a>(command: &'a mut Command, args: &[String]) -> &'a mut Command {
    let mut at = command;
    for arg in args.iter().skip(1).filter(|arg| !arg.starts_with('-')) {
        // Two look-ups, because the borrow checker extends the mutable borrow of a match to the branch without a match.
        if at.find_subcommand(arg).is_none() {
            break;
        }
        at = at.find_subcommand_mut(arg).expect("it was there");
    }
    at
}

/// The usage of a command: its help without its description.
fn usage(command: &Command) -> String {
    let template = "{usage-heading}\n  {usage}\n\n{all-args}";
    let help = command.clone().help_template(template).render_help().to_string();
    format!("{}\n", help.trim_end())
}

fn texts(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => vec![],
    }
}

fn text(error: &Error, kind: ContextKind) -> String {
    texts(error, kind).join(", ")
}

/// The flag in clap's `--timeout <TIMEOUT>`.
fn name(arg: &str) -> &str {
    arg.split([' ', '=', '[']).next().unwrap_or_default()
}

/// The message, without a newline.
fn message(command: &Command, args: &[String], error: &Error) -> String {
    match error.kind() {
        ErrorKind::UnknownArgument => unknown(command, args, &text(error, ContextKind::InvalidArg)),
        ErrorKind::InvalidSubcommand => {
            let message = unknown(command, args, &text(error, ContextKind::InvalidSubcommand));
            let similar = texts(error, ContextKind::SuggestedSubcommand);
            let similar: String = similar.iter().map(|name| format!("\t{name}\n")).collect();
            match similar.is_empty() {
                true => message,
                false => format!("{message}\n\nDid you mean this?\n{similar}"),
            }
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => invalid(command, error),
        ErrorKind::MissingRequiredArgument => missing(&texts(error, ContextKind::InvalidArg)),
        _ => {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            first.trim_start_matches("error: ").trim().to_owned()
        }
    }
}

/// The message about a flag or a subcommand that does not exist.
fn unknown(command: &Command, args: &[String], arg: &str) -> String {
    let path = command.get_bin_name().unwrap_or_default();
    // For `-xyz`, clap names `-x` only; cobra names both.
    let given = args
        .iter()
        .find(|given| given.starts_with(arg))
        .map_or(arg, String::as_str);
    if let Some(name) = arg.strip_prefix("--") {
        let name = name.split('=').next().unwrap_or_default();
        return match name.is_empty() {
            true => format!("bad flag syntax: {given}"),
            false => format!("unknown flag: --{name}"),
        };
    }
    match arg.strip_prefix('-').and_then(|letters| letters.chars().next()) {
        Some(letter) => format!("unknown shorthand flag: {letter:?} in {given}"),
        None => format!("unknown command {arg:?} for {path:?}"),
    }
}

/// The message about an invalid or a missing value.
fn invalid(command: &Command, error: &Error) -> String {
    let (arg, value) = (
        text(error, ContextKind::InvalidArg),
        text(error, ContextKind::InvalidValue),
    );
    let (flag, valid) = (name(&arg), texts(error, ContextKind::ValidValue));
    if value.is_empty() && error.kind() == ErrorKind::InvalidValue {
        return format!("flag needs an argument: {flag}");
    }
    let why = match error.source().map(ToString::to_string) {
        // The words of Rust's numbers.
        Some(why) if why.contains("invalid digit") || why.contains("empty string") => "not a whole number".to_owned(),
        Some(why) => why,
        None if valid.is_empty() => "not valid".to_owned(),
        None => format!("must be one of {}", valid.join(", ")),
    };
    match flag.starts_with('-') {
        true => format!("invalid argument {value:?} for {:?} flag: {why}", both(command, flag)),
        false => format!("invalid argument {value:?} for {arg}: {why}"),
    }
}

/// The message about required arguments or flags that are missing.
fn missing(args: &[String]) -> String {
    if !args.iter().all(|arg| arg.starts_with('-')) {
        return format!("requires {}", args.join(" "));
    }
    let names: Vec<_> = args
        .iter()
        .map(|arg| format!("{:?}", name(arg).trim_matches('-')))
        .collect();
    format!("required flag(s) {} not set", names.join(", "))
}

/// A flag with its short form: `-D, --debug`.
fn both(command: &Command, flag: &str) -> String {
    let mut pairs = command
        .get_arguments()
        .filter_map(|arg| Some((format!("-{}", arg.get_short()?), format!("--{}", arg.get_long()?))));
    match pairs.find(|(short, long)| short == flag || long == flag) {
        Some((short, long)) => format!("{short}, {long}"),
        None => flag.to_owned(),
    }
}
