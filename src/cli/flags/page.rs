//! Flags of the mesh page.

use super::boolean;
use crate::app::page::{PageConfig, check_page};
use crate::server::tls::{ClientCertificates, TlsFiles, TlsProtocol};
use anyhow::bail;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// The mesh page: a view of this cluster and its mesh for browsers, and a JSON API.
#[derive(Args, Debug)]
#[command(next_help_heading = "Mesh page")]
pub struct PageArgs {
    /// Listen address of the mesh page and its JSON API. Empty: no page. Defaults to localhost:9890, if the port is free.
    /// An address that other machines reach needs --ui-cert-file and --ui-key-file, or --ui-insecure.
    #[arg(long, env = "CILIUM_UI_ADDR", value_name = "HOST:PORT")]
    ui_addr: Option<String>,
    /// Server certificate of the page with its chain, PEM. Over TLS, the page opens for a client certificate with the common
    /// name admin-CLUSTER, for one with the common name local-CLUSTER, which sees only the keys that agents may read, and
    /// for the token of --ui-token-file. CLUSTER is the name of this cluster. Changed files are read without a restart.
    #[arg(long, env = "CILIUM_UI_CERT_FILE", value_name = "FILE")]
    ui_cert_file: Option<PathBuf>,
    /// Private key of --ui-cert-file, PEM.
    #[arg(long, env = "CILIUM_UI_KEY_FILE", value_name = "FILE")]
    ui_key_file: Option<PathBuf>,
    /// CA certificates that client certificates of operators must be signed by, PEM. Without it, only the token opens the
    /// page over TLS.
    #[arg(long, env = "CILIUM_UI_TRUSTED_CA_FILE", value_name = "FILE")]
    ui_trusted_ca_file: Option<PathBuf>,
    /// File with a token that opens the page: browsers ask for the token as a password of any user, programs send it as a
    /// bearer token. The file is read at each request.
    #[arg(long, env = "CILIUM_UI_TOKEN_FILE", value_name = "FILE")]
    ui_token_file: Option<PathBuf>,
    /// Serve the page without TLS and without a certificate or token to everybody who reaches the address. Set it only if
    /// something else protects the address.
    #[arg(long, env = "CILIUM_UI_INSECURE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    ui_insecure: bool,
}

impl PageArgs {
    /// Configures the page. Fails if the flags contradict each other, or if the page would be open to everybody.
    pub fn config(self) -> anyhow::Result<PageConfig> {
        let tls = match (self.ui_cert_file, self.ui_key_file) {
            (Some(cert), Some(key)) => Some(TlsFiles {
                cert,
                key,
                client_ca: self.ui_trusted_ca_file,
                client_certificates: ClientCertificates::Optional,
                client_crl: None,
                allowed_hostnames: vec![],
                protocol: TlsProtocol::default(),
            }),
            (None, None) if self.ui_trusted_ca_file.is_some() => {
                bail!("--ui-trusted-ca-file needs TLS: set --ui-cert-file and --ui-key-file, too")
            }
            (None, None) => None,
            (Some(_), None) => bail!("--ui-cert-file needs --ui-key-file"),
            (None, Some(_)) => bail!("--ui-key-file needs --ui-cert-file"),
        };
        let config = PageConfig {
            address: self.ui_addr,
            tls,
            token_file: self.ui_token_file,
            is_insecure: self.ui_insecure,
        };
        check_page(&config)?;
        Ok(config)
    }
}
