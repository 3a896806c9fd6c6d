//! `completion`: scripts for the completion of commands and flags in a shell.

use super::print;
use clap::{Command, Subcommand};
use clap_complete::{Shell, generate};

/// The shells.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Completion {
    /// Print the autocompletion script for bash
    Bash,
    /// Print the autocompletion script for fish
    Fish,
    /// Print the autocompletion script for PowerShell
    Powershell,
    /// Print the autocompletion script for zsh
    Zsh,
}

impl Completion {
    /// Prints the script for `command`.
    pub fn print(self, mut command: Command) -> anyhow::Result<()> {
        let shell = match self {
            Self::Bash => Shell::Bash,
            Self::Fish => Shell::Fish,
            Self::Powershell => Shell::PowerShell,
            Self::Zsh => Shell::Zsh,
        };
        let name = command.get_name().to_owned();
        let mut script = vec![];
        generate(shell, &mut command, name, &mut script);
        print::answer(&String::from_utf8_lossy(&script))
    }
}
