//! The etcd client's YAML file, as Go's clientv3/yaml reads it: endpoints and TLS files.

use crate::util::access;
use crate::util::yaml::first_line;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The endpoints and credentials of a client. As in clientv3/yaml, unknown keys are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ClientConfig {
    /// URLs; `https` means TLS.
    pub endpoints: Vec<String>,
    /// CAs of the server, PEM. Defaults to the system's CAs.
    pub trusted_ca_file: Option<PathBuf>,
    /// Client certificate, PEM.
    pub cert_file: Option<PathBuf>,
    /// Client key, PEM.
    pub key_file: Option<PathBuf>,
    /// User name for authentication by password.
    pub username: Option<String>,
    pub password: Option<String>,
    /// Addresses of hosts that DNS does not know (Cilium 1.20).
    pub cilium_host_aliases: Vec<HostAlias>,
    /// No TLS, whatever the URLs say.
    pub insecure_transport: bool,
    /// Not supported: a file that sets this is refused.
    pub insecure_skip_tls_verify: bool,
}

/// The addresses of one host, as in `/etc/hosts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostAlias {
    /// The server's certificate is still checked against this name.
    pub hostname: String,
    pub ips: Vec<std::net::IpAddr>,
}

/// The source of a client's configuration.
#[derive(Clone, Debug)]
pub enum ConfigSource {
    /// An etcd client's YAML file, read again for each connection.
    File(PathBuf),
    /// A comma-separated list of addresses, without TLS.
    Address(String),
}

impl ConfigSource {
    pub(super) fn read(&self) -> Result<ClientConfig, Error> {
        match self {
            Self::File(path) => ClientConfig::read(path),
            Self::Address(address) => Ok(ClientConfig::address(address)),
        }
    }
}

/// Why a host alias is invalid, in Cilium's words.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    #[error("cilium-host-aliases entry has an empty hostname")]
    NoName,
    #[error("cilium-host-aliases entry for hostname {0:?} has no IPs")]
    NoAddress(String),
    #[error("cilium-host-aliases has duplicate hostname {0:?}")]
    Twice(String),
}

/// Why a file is not a usable client configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not an etcd client configuration: {why}", path.display())]
    Parse { path: PathBuf, why: String },
}

impl ClientConfig {
    /// Plain connections to a comma-separated list of addresses.
    pub fn address(address: &str) -> Self {
        let endpoints = address.split(',').map(|a| a.trim().to_owned()).collect();
        Self {
            endpoints,
            ..Self::default()
        }
    }

    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source: access::explained(source, path),
        })?;
        Self::parse(&text).map_err(|why| Error::Parse {
            path: path.to_owned(),
            why,
        })
    }

    /// Parses a file's text. The error is the reason why the text is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| first_line(&e.to_string()))?;
        if config.endpoints.is_empty() {
            return Err(no_endpoints(text));
        }
        config.check_aliases().map_err(|e| e.to_string())?;
        if config.insecure_skip_tls_verify {
            return Err("insecure-skip-tls-verify is not supported".to_owned());
        }
        Ok(config)
    }

    /// Checks the aliases as Cilium does.
    pub fn check_aliases(&self) -> Result<(), AliasError> {
        let mut seen = BTreeSet::new();
        for alias in &self.cilium_host_aliases {
            let name = || alias.hostname.clone();
            match () {
                () if alias.hostname.is_empty() => return Err(AliasError::NoName),
                () if alias.ips.is_empty() => return Err(AliasError::NoAddress(name())),
                () if !seen.insert(&alias.hostname) => return Err(AliasError::Twice(name())),
                () => {}
            }
        }
        Ok(())
    }

    /// The TLS files that the configuration names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.trusted_ca_file, &self.cert_file, &self.key_file]
            .into_iter()
            .flatten()
    }
}

/// The fields of a client's file.
const FIELDS: [&str; 9] = [
    "endpoints",
    "trusted-ca-file",
    "cert-file",
    "key-file",
    "username",
    "password",
    "cilium-host-aliases",
    "insecure-transport",
    "insecure-skip-tls-verify",
];
/// What authors write in place of these fields.
const MISTAKEN: [&str; 5] = ["endpoint", "Endpoints", "ca-file", "cacert", "trusted-ca"];

/// Whether a file without endpoints looks like a client configuration, so that its author should be told.
pub fn is_meant_as_configuration(text: &str) -> bool {
    // User and password alone may belong to anything.
    let is_general = |name: &str| ["username", "password"].contains(&name);
    let is_known = |name: &str| (FIELDS.contains(&name) && !is_general(name)) || MISTAKEN.contains(&name);
    names(text).iter().any(|name| is_known(name))
}

/// The names of the fields in a file, which may have any value.
fn names(text: &str) -> Vec<String> {
    let fields = serde_saphyr::from_str::<BTreeMap<String, IgnoredAny>>(text);
    fields.map_or_else(|_| vec![], |fields| fields.into_keys().collect())
}

/// The fields of a client's file that mean nothing, such as misspelled ones.
pub fn unknown_fields(text: &str) -> Vec<String> {
    let names = names(text).into_iter();
    names.filter(|name| !FIELDS.contains(&&**name)).collect()
}

fn no_endpoints(text: &str) -> String {
    let unknown = unknown_fields(text);
    let missing = "the field `endpoints:` is missing or empty";
    match unknown.is_empty() {
        true => missing.to_owned(),
        false => format!("{missing}; unknown fields: {}", unknown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_charts_file_is_read_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hk-cluster");
        let text = "endpoints:\n- https://hk.mesh.cilium.io:2379\ntrusted-ca-file: /ca.crt\nkey-file: /k\ncert-file: /c\nsomething: else\n";
        std::fs::write(&path, text).unwrap();
        let config = ClientConfig::read(&path).unwrap();
        assert_eq!(config.endpoints, ["https://hk.mesh.cilium.io:2379"]);
        assert_eq!(config.files().count(), 3);
        let aliases = "cilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips: [10.0.0.1, 'fd00::1']\n";
        std::fs::write(&path, format!("{text}{aliases}")).unwrap();
        let alias = &ClientConfig::read(&path).unwrap().cilium_host_aliases[0];
        assert_eq!(alias.hostname, "hk.mesh.cilium.io");
        assert_eq!(alias.ips.len(), 2);
        for broken in [
            "endpoints: [",
            "endpoints: []",
            "a: b",
            "endpoints: [x]\ninsecure-skip-tls-verify: true",
            "endpoints: [x]\ncilium-host-aliases: [{ips: [10.0.0.1]}]",
            "endpoints: [x]\ncilium-host-aliases: [{hostname: a}]",
            "endpoints: [x]\ncilium-host-aliases: [{hostname: a, ips: [::1]}, {hostname: a, ips: [::1]}]",
        ] {
            std::fs::write(&path, broken).unwrap();
            let error = ClientConfig::read(&path).unwrap_err().to_string();
            assert!(error.contains("hk-cluster"), "{error}");
        }
        std::fs::write(&path, "endpoint: [x]\nca-file: /ca\nkey-file: /k\n").unwrap();
        let error = ClientConfig::read(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("the field `endpoints:` is missing or empty; unknown fields: ca-file, endpoint"),
            "{error}"
        );
        let error = ClientConfig::read(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
