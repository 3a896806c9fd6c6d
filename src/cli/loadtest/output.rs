//! Where the results of `loadtest` go.

use crate::cli::print;
use crate::loadtest::outcome::Outcome;
use crate::loadtest::report::{Summary, html};
use anyhow::{Context, bail, ensure};
use clap::Args;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the results go.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Print the figures as JSON instead of a table. `loadtest merge` reads the text, too.
    #[arg(long)]
    json: bool,
    /// File for a report with plots, HTML. The file loads nothing from elsewhere.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// File for the whole result with its histograms, JSON, to be added up by `loadtest merge`.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl OutputArgs {
    /// Fails before the test if a file cannot be written after it, or is one of the `inputs`.
    pub fn check<'a>(&self, inputs: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
        let files = [("--report", &self.report), ("--output", &self.output)];
        let files = files
            .into_iter()
            .filter_map(|(flag, file)| Some((flag, file.as_ref()?)));
        let files: Vec<_> = files.collect();
        for input in inputs {
            for (flag, file) in &files {
                let file_name = file.display();
                ensure!(
                    !is_same(file, input),
                    "{flag}={file_name} would overwrite {}, which is read: name another file",
                    input.display()
                );
            }
        }
        if let [(_, report), (_, output)] = files[..] {
            ensure!(
                !is_same(report, output),
                "--report and --output are the same file, {}: name two files",
                report.display()
            );
        }
        for (_, file) in files {
            let opened = fs::OpenOptions::new().append(true).create(true).open(file);
            opened.with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// Prints and writes an outcome. Fails if the store did not pass.
    pub fn write(&self, outcome: &Outcome) -> anyhow::Result<()> {
        let summary = Summary::of(outcome);
        if let Some(file) = &self.report {
            write(file, &html::page(outcome))?;
        }
        if let Some(file) = &self.output {
            write(file, &(serde_json::to_string(outcome)? + "\n"))?;
        }
        print::answer(&match self.json {
            true => summary.json(outcome)?,
            false => summary.table(),
        })?;
        match (summary.passed, summary.interrupted) {
            (true, false) => Ok(()),
            (true, true) => bail!("the test was interrupted: {}", summary.tested()),
            (false, true) => bail!("the test was interrupted: {}", summary.faults.join("; ")),
            (false, false) => bail!("the store did not pass: {}", summary.faults.join("; ")),
        }
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Whether two paths lead to the same file, which may not exist yet.
fn is_same(one: &Path, two: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(two)) {
        (Ok(a), Ok(b)) => a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => {
            let absolute = |path: &Path| std::path::absolute(path).ok();
            absolute(one).is_some() && absolute(one) == absolute(two)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_read_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("result"), "precious").unwrap();
        fs::hard_link(path("result"), path("link")).unwrap();
        let output = |report: &str, output: &str| OutputArgs {
            json: false,
            report: Some(path(report)),
            output: Some(path(output)),
        };
        let check = |args: OutputArgs| args.check([&path("result")]).map_err(|error| error.to_string());
        for (args, word) in [
            (output("link", "b"), "--report="),
            (output("a", "./result"), "--output="),
            (output("c", "./c"), "same file"),
        ] {
            let error = check(args).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(check(output("a", "b")), Ok(()));
        assert_eq!(fs::read_to_string(path("result")).unwrap(), "precious");
    }
}
