//! Checks the connection from an etcd client file to its etcd step by step: DNS, TCP, TLS, certificates, and one read.
//!
//! Parity: the output is that of Cilium's `troubleshoot`, because people compare the two. Errors use the words of Go's
//! standard library (`words`), because people search for them. Each line is written as soon as its step has ended.

mod certificates;
mod client;
mod dial;
mod endpoint;
mod files;
mod report;
mod session;
mod verify;
mod words;

#[cfg(test)]
mod tests;

use crate::kvstore::config::{AliasError, ClientConfig};
use crate::model::cluster::ClusterName;
use crate::util::yaml::first_line;
use report::Report;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// The remote clusters to check.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Directory with one etcd client file for each cluster, named after the cluster.
    pub directory: PathBuf,
    /// The clusters to check; empty for all.
    pub clusters: Vec<String>,
    /// Name of the local cluster, whose entry is marked in the output.
    pub local: Option<String>,
    /// Limit for all steps of one cluster together.
    pub timeout: Duration,
}

/// Why a file is not a configuration.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("open {}: {}", path.display(), words::io(source))]
    Open { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Parse(String),
    #[error(transparent)]
    Alias(#[from] AliasError),
}

/// Checks the etcd of one client file. `timeout` limits all steps together. Returns only errors of `out`.
pub async fn file(path: &Path, timeout: Duration, out: &mut dyn Write) -> io::Result<()> {
    let mut report = Report::new(out);
    match read(path) {
        Ok(config) => check(path, &config, timeout, &mut report).await,
        Err(why) => {
            report.line(format_args!("📄 Configuration path: {}", path.display()))?;
            report.line(format_args!("❌ Cannot parse etcd configuration: {why}"))
        }
    }
}

/// Checks each remote cluster's etcd in turn. Returns only errors of `out`.
pub async fn mesh(mesh: &Mesh, out: &mut dyn Write) -> io::Result<()> {
    let mut report = Report::new(out);
    let files = match files_of(&mesh.directory) {
        Ok(files) => files,
        Err(source) => {
            let path = mesh.directory.clone();
            let why = Error::Open { path, source };
            report.line(format_args!("Unable to retrieve cluster configurations: {why}"))?;
            return report.line("This is expected when Cluster Mesh is disabled");
        }
    };
    report.line(format_args!("Found {} cluster configurations", files.len()))?;
    let mut clusters: Vec<&String> = mesh.clusters.iter().collect();
    if clusters.is_empty() {
        clusters = files.keys().collect();
    } else {
        let named = mesh.clusters.join(", ");
        report.line(format_args!("Troubleshooting filtered subset of clusters: {named}"))?;
    }
    clusters.sort();
    for cluster in clusters {
        report.blank()?;
        report.line(format_args!("Cluster {cluster:?}:"))?;
        if mesh.local.as_ref() == Some(cluster) {
            report.line("ℹ️  This entry corresponds to the local cluster")?;
        }
        if let Err(why) = check_name(cluster) {
            report.line(format_args!("❌ Invalid cluster name: {why}"))?;
            continue;
        }
        let Some(path) = files.get(cluster) else {
            report.line("❌ Configuration not found")?;
            continue;
        };
        match read(path) {
            Ok(config) => check(path, &config, mesh.timeout, &mut report).await?,
            Err(why) => report.line(format_args!(
                "❌ Could not parse Cilium config: failed to parse config file: {why}"
            ))?,
        }
    }
    Ok(())
}

async fn check(path: &Path, config: &ClientConfig, timeout: Duration, report: &mut Report<'_>) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    report.line(format_args!("📄 Configuration path: {}", path.display()))?;
    // Without TLS, the TLS files are not used.
    let tls = match config.insecure_transport {
        true => None,
        false => match files::Material::read(config) {
            Ok(material) => Some(material),
            Err(why) => return report.line(format_args!("❌ Cannot parse etcd configuration: {why}")),
        },
    };
    report.blank()?;
    let mut reached = false;
    if config.endpoints.is_empty() {
        report.line("❌ No available endpoints")?;
    } else {
        report.line("🔌 Endpoints:")?;
    }
    for endpoint in &config.endpoints {
        let mut report = report.nested(3);
        report.line(format_args!("- {endpoint}"))?;
        let endpoint_check = endpoint::Check {
            aliases: &config.cilium_host_aliases,
            tls: tls.as_ref(),
            deadline,
        };
        reached |= endpoint_check.run(endpoint, &mut report.nested(2)).await? == endpoint::Outcome::Usable;
    }
    report.blank()?;
    report.line("🔑 Digital certificates:")?;
    match &tls {
        Some(material) => certificates::report(material, &mut report.nested(3))?,
        None => report.nested(3).line("⚠️ TLS is off: insecure-transport is set")?,
    }
    if let Some(name) = config.username.as_ref().filter(|name| !name.is_empty()) {
        let password = match config.password.as_deref() {
            None | Some("") => "unset",
            Some(_) => "set",
        };
        let text = format_args!("✅ Username set to {name}, password is {password}");
        report.nested(3).line(text)?;
    }
    report.blank()?;
    report.line("⚙️ Etcd client:")?;
    client::report(config, deadline, reached, &mut report.nested(3)).await
}

/// Reads a client file, which may have no endpoints.
fn read(path: &Path) -> Result<ClientConfig, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })?;
    parse(&text)
}

fn parse(text: &str) -> Result<ClientConfig, Error> {
    // An empty file is a configuration without fields.
    let text = if text.trim().is_empty() { "{}" } else { text };
    let config: ClientConfig = serde_saphyr::from_str(text).map_err(|e| unparsed(&e.to_string()))?;
    config.check_aliases()?;
    if !config.endpoints.is_empty() {
        // The client makes all other checks of a configuration.
        ClientConfig::parse(text).map_err(|why| unparsed(&why))?;
    }
    Ok(config)
}

fn unparsed(why: &str) -> Error {
    Error::Parse(first_line(why))
}

/// Checks a cluster's name by Cilium's rules and with Cilium's words.
fn check_name(name: &str) -> Result<(), &'static str> {
    match ClusterName::new(name) {
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() => Err("must not be empty"),
        Err(_) if name.len() > 32 => Err("must not be more than 32 characters"),
        Err(_) => Err("must consist of lower case alphanumeric characters and '-', \
            and must start and end with an alphanumeric character"),
    }
}

/// The client files of a directory by name. As for the mirror, client files are those that contain `endpoints:`.
fn files_of(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let content = match path.is_file() {
            true => std::fs::read(&path).unwrap_or_default(),
            false => continue,
        };
        if String::from_utf8_lossy(&content).contains("endpoints:") {
            files.insert(name, path);
        }
    }
    Ok(files)
}
