//! Prints what subcommands answer.

use anyhow::Context;
use std::io::{ErrorKind, Write};

/// Prints `text` on standard output. A reader that has closed the pipe, such as `head`, is no error.
pub fn answer(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
