//! The sockets of an etcd server.

use super::super::expiry;
use super::config::ListenConfig;
use crate::server::listen::Listener;
use crate::server::peer::UserSource;
use crate::server::tls::TlsConfig;
use crate::server::{Core, Serve};
use crate::util::expiry::{CertificateFile, Role};
use crate::util::lifecycle::Lifecycle;
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;

/// The bound sockets, by what they serve.
pub(super) struct Sockets {
    pub(super) clients: Vec<Listener>,
    pub(super) http: Vec<Listener>,
    pub(super) metrics: Vec<Listener>,
}

impl Sockets {
    pub(super) fn serve(self, core: &Arc<Core>, life: &Lifecycle) {
        let clients = if self.http.is_empty() { Serve::All } else { Serve::Grpc };
        for (name, listeners, what) in [
            ("etcd server", self.clients, clients),
            ("http", self.http, Serve::Http),
            ("metrics", self.metrics, Serve::Metrics),
        ] {
            if !listeners.is_empty() {
                life.spawn(name, Arc::clone(core).serve(listeners, what, life.clone()));
            }
        }
    }
}

/// The certificate files of listeners.
pub(super) fn certificates<'a>(listeners: impl Iterator<Item = &'a ListenConfig>) -> Vec<CertificateFile> {
    let mut files = vec![];
    for tls in listeners.filter_map(|listener| listener.tls.as_ref()) {
        files.push(expiry::file(Role::Server, tls.cert.clone()));
        files.extend(tls.client_ca.clone().map(|ca| expiry::file(Role::ClientCa, ca)));
    }
    files
}

pub(super) async fn listen(configs: Vec<ListenConfig>) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = vec![];
    for config in configs {
        let address = &config.address;
        let failed = || format!("cannot listen on {address}");
        let tls = config.tls.map(TlsConfig::load).transpose().with_context(failed)?;
        let users = match config.cert_auth {
            true => UserSource::TokenOrCertificate,
            false => UserSource::Token,
        };
        let listener = Listener::bind(address, tls.map(Arc::new), users).await;
        listeners.push(listener.with_context(failed)?);
    }
    Ok(listeners)
}

pub(super) fn addresses(listeners: &[Listener]) -> std::io::Result<Vec<SocketAddr>> {
    listeners.iter().filter_map(|l| l.address().transpose()).collect()
}

pub(super) fn urls(listeners: &[Listener]) -> std::io::Result<Vec<String>> {
    let url = |l: &Listener| {
        let scheme = if l.is_secure() { "https" } else { "http" };
        Ok(l.address()?.map(|address| format!("{scheme}://{address}")))
    };
    listeners.iter().filter_map(|l| url(l).transpose()).collect()
}
