//! `scope`: tries a scope file before it is applied.

mod sources;

use super::print;
use crate::explain::{self, Files, NamedFile};
use crate::scope::{ScopeFile, schema};
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use sources::SourceArgs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Stands for standard input in place of a file.
const STANDARD_INPUT: &str = "-";

/// Commands of `scope`.
#[derive(Debug, Subcommand)]
pub enum ScopeCommand {
    /// Report what a scope file keeps and leaves out, what would change, and which traps it has
    Explain(Box<ExplainArgs>),
    /// Say which rule of a scope file decides about a key, a pod, an address or an identity
    Why(Box<WhyArgs>),
    /// Check whether a scope file is valid
    Check(CheckArgs),
    /// Print the JSON Schema of scope files
    Schema,
}

/// The files to compare.
#[derive(Args, Debug)]
struct FileArgs {
    /// Scope file to try; - reads standard input. The format is in docs/scope.md.
    #[arg(long, env = "CILIUM_SCOPE", value_name = "FILE")]
    scope: PathBuf,
    /// Scope file in force now, to compare with. Without it, everything is exported and imported now.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

/// Flags of `scope explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Print the report as a JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sources: SourceArgs,
}

/// Flags of `scope why`.
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// Key in a store (cilium/state/… or cilium/cache/…), pod or service as NAMESPACE/NAME, IP address, or number of an
    /// identity.
    #[arg(value_name = "KEY|POD|IP|IDENTITY")]
    what: String,
    #[command(flatten)]
    files: FileArgs,
    /// Print the answer as a JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sources: SourceArgs,
}

/// Flags of `scope check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Scope file to check; - reads standard input.
    file: PathBuf,
}

impl ScopeCommand {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Explain(args) => waited(args.run()),
            Self::Why(args) => waited(args.run()),
            Self::Check(args) => args.run(),
            Self::Schema => print::answer(&(serde_json::to_string_pretty(&schema::schema())? + "\n")),
        }
    }
}

/// Runs a command that reads clusters.
fn waited(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(command);
    // Does not wait for a DNS lookup on a blocking thread.
    runtime.shutdown_background();
    done
}

impl FileArgs {
    fn read(&self) -> anyhow::Result<Files> {
        Ok(Files {
            new: read(&self.scope)?,
            present: self.against.as_deref().map(read).transpose()?,
        })
    }
}

impl ExplainArgs {
    async fn run(self) -> anyhow::Result<()> {
        let report = explain::explain(&self.files.read()?, &self.sources.sources()?).await?;
        print::answer(&match self.json {
            true => serde_json::to_string_pretty(&report)? + "\n",
            false => report.text(),
        })?;
        let failed: Vec<_> = report.failures().map(|(cluster, _)| cluster).collect();
        all_read(&failed.join(", "))
    }
}

impl WhyArgs {
    async fn run(self) -> anyhow::Result<()> {
        let answer = explain::why(&self.files.read()?, &self.sources.sources()?, &self.what).await?;
        print::answer(&match self.json {
            true => serde_json::to_string_pretty(&answer)? + "\n",
            false => answer.text(),
        })?;
        all_read(&answer.failures.join(", "))?;
        match answer.keys.is_empty() {
            true => bail!("no key matches {:?}", self.what),
            false => Ok(()),
        }
    }
}

/// Fails if clusters could not be read, so that a script does not take a part for the whole.
fn all_read(failed: &str) -> anyhow::Result<()> {
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("the answer is incomplete: could not read {failed}"),
    }
}

impl CheckArgs {
    fn run(self) -> anyhow::Result<()> {
        let NamedFile { name, file } = read(&self.file)?;
        let traps = explain::file_traps(&file);
        let mut text = format!("{name} is valid: {}\n", contents(&file));
        text += &explain::warnings(&traps);
        print::answer(&text)
    }
}

/// What a file has.
fn contents(file: &ScopeFile) -> String {
    let (export, import) = (&file.export, &file.import);
    let rules = |n: usize| match n {
        1 => "1 rule".to_owned(),
        n => format!("{n} rules"),
    };
    let exported = [&export.endpoints, &export.services, &export.service_exports];
    let imported = import
        .clusters
        .iter()
        .flat_map(|entry| [&entry.endpoints, &entry.services, &entry.service_exports]);
    let region = file
        .region
        .as_ref()
        .map_or_else(|| "no region".to_owned(), |region| format!("region {region}"));
    let entries = match import.clusters.len() {
        1 => "1 entry".to_owned(),
        n => format!("{n} entries"),
    };
    format!(
        "{region}; export with {}; import with {entries} and {}",
        rules(exported.into_iter().map(|list| list.list().len()).sum()),
        rules(imported.map(|list| list.list().len()).sum())
    )
}

/// Reads a scope file, or standard input.
fn read(path: &Path) -> anyhow::Result<NamedFile> {
    let is_input = path.as_os_str() == STANDARD_INPUT;
    let name = match is_input {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    };
    let content = match is_input {
        true => {
            let mut content = vec![];
            std::io::stdin().read_to_end(&mut content).map(|_| content)
        }
        false => std::fs::read(path),
    };
    let content = content.with_context(|| format!("cannot read the scope file {name}"))?;
    let file = ScopeFile::parse(&content).map_err(|mistake| anyhow!("{name} is not a valid scope file: {mistake}"))?;
    Ok(NamedFile {
        name,
        file: Arc::new(file),
    })
}
