//! Writes indented lines.

use std::fmt::Display;
use std::io::{self, Write};

/// A writer of lines at one indentation.
pub(super) struct Report<'a> {
    out: &'a mut dyn Write,
    indent: usize,
}

impl<'a> Report<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, indent: 0 }
    }

    /// A writer at a deeper indentation.
    pub(super) fn nested(&mut self, by: usize) -> Report<'_> {
        Report {
            out: &mut *self.out,
            indent: self.indent + by,
        }
    }

    pub(super) fn line(&mut self, text: impl Display) -> io::Result<()> {
        writeln!(self.out, "{:1$}{text}", "", self.indent)
    }

    pub(super) fn blank(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }
}
