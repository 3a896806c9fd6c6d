//! Prints what subcommands answer.

use crate::util::words::visible;
use anyhow::Context;
use std::io::{self, ErrorKind, Write};

/// Prints `text` on standard output. A reader that has closed the pipe, such as `head`, is no error.
pub fn answer(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Prints a text for people that may quote names of other clusters: hidden characters are written as escapes.
pub fn text(text: &str) -> anyhow::Result<()> {
    answer(&visible(text))
}

/// Writes texts on in which hidden characters are written as escapes. Each call must have whole characters, as those of
/// `write!` have.
pub struct Visible<W>(pub W);

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(visible(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_printed_without_hidden_characters() {
        let (mut out, name) = (Visible(vec![]), "CN=hk\u{202e}\u{200b}");
        writeln!(out, "subject {name}: 香港").unwrap();
        assert_eq!(
            String::from_utf8(out.0).unwrap(),
            "subject CN=hk\\u{202e}\\u{200b}: 香港\n"
        );
    }
}
