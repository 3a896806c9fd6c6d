//! How the tools of operators reach a store: etcdctl's names of addresses and TLS files.

use crate::kvstore::config::ClientConfig;
use clap::Args;
use std::path::PathBuf;

/// Addresses of a store and TLS files.
#[derive(Args, Debug)]
pub struct EndpointArgs {
    /// Addresses of the store: HOST:PORT, https://HOST:PORT or http://HOST:PORT. HOST:PORT alone uses TLS if a TLS file is
    /// given.
    #[arg(
        long,
        default_value = "127.0.0.1:2379",
        value_delimiter = ',',
        value_name = "HOST:PORT,..."
    )]
    endpoints: Vec<String>,
    /// CA certificates that the server certificate must be signed by, PEM. Selects TLS.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Client certificate, PEM. Selects TLS.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Private key of the client certificate, PEM. Selects TLS.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl EndpointArgs {
    /// The configuration of a client.
    pub fn config(&self) -> ClientConfig {
        let scheme = if self.files().next().is_some() { "https" } else { "http" };
        let url = |endpoint: &String| match endpoint.contains("://") {
            true => endpoint.clone(),
            false => format!("{scheme}://{endpoint}"),
        };
        ClientConfig {
            endpoints: self.endpoints.iter().map(url).collect(),
            trusted_ca_file: self.cacert.clone(),
            cert_file: self.cert.clone(),
            key_file: self.key.clone(),
            ..ClientConfig::default()
        }
    }

    /// The files that are read.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cacert, &self.cert, &self.key].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    #[test]
    fn a_tls_file_selects_tls() {
        let endpoint = |args: &[&str]| {
            let command = EndpointArgs::augment_args(Command::new("x"));
            let matches = command.try_get_matches_from([&["x"], args].concat()).unwrap();
            let args = EndpointArgs::from_arg_matches(&matches).unwrap();
            args.config().endpoints[0].clone()
        };
        assert_eq!(endpoint(&[]), "http://127.0.0.1:2379");
        for flag in ["--cacert=f", "--cert=f", "--key=f"] {
            assert_eq!(endpoint(&["--endpoints=a:1", flag]), "https://a:1");
            assert_eq!(endpoint(&["--endpoints=http://a:1", flag]), "http://a:1");
        }
    }
}
