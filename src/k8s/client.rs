//! The client of a Kubernetes API: proxy, trust and credentials as in client-go.
//!
//! ```text
//! Client ─► renewal ─► base URL ─► retry ─► credentials ─► headers ─► HTTP ─► connect ─► tunnel
//! ```
//!
//! `kube` reads the configuration, adds the credentials to requests, and decodes. It does not renew refused credentials,
//! and its proxies ignore most of `NO_PROXY`.

mod connect;
mod proxy;
mod renewal;
mod tunnel;

pub use proxy::{BadProxy, ProxyVariables};

use crate::util::access;
use crate::util::causes::causes;
use crate::util::trust::{self, ServerVerifier};
use crate::util::yaml;
use connect::Connector;
use http::{Request, Response};
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt, DynBody};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use proxy::Proxy;
use rustls::pki_types::CertificateDer;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tower::retry::{Policy, RetryLayer};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt};

/// The HTTP status of a server that gave up waiting. A watch of a version that the server does not have yet ends with it,
/// too, which no repetition cures.
const GATEWAY_TIMEOUT: u16 = 504;

/// Requests with the credentials that were read last.
type Stack = BoxCloneSyncService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// Where the address and the credentials of an API server are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Kubeconfig(PathBuf),
    /// One context of kubeconfig files.
    Context(KubeContext),
    /// This URL, and in a pod its service account and CA.
    Url(String),
    /// The usual kubeconfig, or else the pod's service account.
    Inferred,
}

/// One context of kubeconfig files, and who acts in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeContext {
    /// The kubeconfig files, merged as client-go does: the first file that defines a name wins.
    pub files: Vec<PathBuf>,
    /// The name of the context.
    pub name: String,
    /// The user to impersonate.
    pub user: Option<String>,
    /// The groups to impersonate.
    pub groups: Vec<String>,
}

/// What a client is made of. It is read again when the API refuses the credentials.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) source: Source,
    pub(super) proxies: ProxyVariables,
    /// Limit for establishing a connection; zero selects the client library's limit.
    pub(super) connect_timeout: Duration,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the kubeconfig {}: {}", path.display(), in_file(error, path))]
    Kubeconfig { path: PathBuf, error: KubeconfigError },
    #[error("cannot use the context {context:?} of {files}: {}", causes(source))]
    Context {
        context: String,
        files: String,
        source: KubeconfigError,
    },
    /// Neither a kubeconfig, nor URLs, nor a service account.
    #[error(
        "Kubernetes client not configured, cannot continue: {kubeconfig}, and {in_cluster}; set --k8s-kubeconfig-path or \
         --k8s-api-server-urls"
    )]
    NotConfigured { kubeconfig: String, in_cluster: String },
    #[error("{url:?} is not a URL of a Kubernetes API server")]
    Url { url: String },
    #[error("{variable}: {source}")]
    Proxy { variable: &'static str, source: BadProxy },
    #[error("cannot make a Kubernetes client: {}", describe(.0))]
    Client(#[from] kube::Error),
    #[error("cannot read the CA of the Kubernetes API: {0}")]
    Trust(#[from] rustls::pki_types::pem::Error),
}

/// The text of an error of a client, with its causes.
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let text = causes(error);
    // A status of the API is followed by all its fields, which repeat the text.
    let text = text.split(" (Status {").next().unwrap_or_default().to_owned();
    // The layers of the client say nothing about the failure.
    ["ServiceError: ", "ApiError: ", "client error (Connect): "]
        .iter()
        .fold(text, |text, layer| text.replace(layer, ""))
}

/// What to do about an error of the API, as the end of a sentence. `right` is what the user needs after 403, such as `get
/// secrets`; `conflict` is the end after 409.
pub fn remedy(error: &kube::Error, right: &str, conflict: &str) -> String {
    let kube::Error::Api(status) = error else {
        return "; is the API server of this context reachable from this machine?".to_owned();
    };
    match status.code {
        401 => "; the API refuses the credentials of this context: log in again".to_owned(),
        403 => format!("; the user of this context needs the right to {right} (docs/mesh.md lists all rights)"),
        409 => conflict.to_owned(),
        _ => String::new(),
    }
}

/// Whether the API refused a change because another writer was faster: the object exists already, or is not any more as
/// it was read.
pub fn is_race(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && !is_field_conflict(error))
}

/// Whether the API refused to apply fields because another manager owns them.
pub fn is_field_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.message.starts_with("Apply failed with"))
}

// === impl Settings ===

impl Settings {
    /// Makes a client. Sends nothing to the API yet, but runs a credential plugin that the kubeconfig names.
    pub(super) async fn client(self) -> Result<Client, Error> {
        let (stack, namespace) = self.stack().await?;
        Ok(Client::new(renewal::Renewal::new(stack, self), namespace))
    }

    /// Reads the configuration, and makes the layers below the renewal. Returns the default namespace, too.
    async fn stack(&self) -> Result<(Stack, String), Error> {
        let (mut config, proxy) = self.load().await?;
        if !self.connect_timeout.is_zero() {
            config.connect_timeout = Some(self.connect_timeout);
        }
        let namespace = config.default_namespace.clone();
        // A credential plugin runs for a while.
        let made = tokio::task::spawn_blocking(move || stack(&config, proxy)).await;
        let stack = made.expect("making a client does not panic")?;
        Ok((stack, namespace))
    }

    /// Reads the configuration, and chooses the proxy.
    async fn load(&self) -> Result<(Config, Option<Proxy>), Error> {
        let (config, proxy) = match &self.source {
            Source::Kubeconfig(path) => {
                let read = of_kubeconfig(Kubeconfig::read_from(path)).await;
                read.map_err(|error| Error::Kubeconfig {
                    path: path.clone(),
                    error,
                })?
            }
            Source::Context(context) => {
                let read = of_kubeconfig(context.read()).await;
                read.map_err(|source| Error::Context {
                    context: context.name.clone(),
                    files: context.file_names(),
                    source,
                })?
            }
            Source::Url(url) => (of_url(url)?, None),
            Source::Inferred => match of_kubeconfig(Kubeconfig::read()).await {
                Ok(read) => read,
                Err(kubeconfig) => {
                    let config = Config::incluster().map_err(|in_cluster| Error::NotConfigured {
                        kubeconfig: no_kubeconfig(&kubeconfig),
                        in_cluster: not_in_cluster(&in_cluster),
                    })?;
                    (config, None)
                }
            },
        };
        let bad = |variable| move |source| Error::Proxy { variable, source };
        // As in client-go, NO_PROXY does not concern a proxy that the kubeconfig names.
        let proxy = match proxy {
            Some(url) => Some(Proxy::parse(&url).map_err(bad("proxy-url"))?),
            None => self.proxies.proxy(&config.cluster_url).map_err(bad("HTTPS_PROXY"))?,
        };
        Ok((config, proxy))
    }
}

/// Why the kubeconfig at `path` cannot be used.
fn in_file(error: &KubeconfigError, path: &Path) -> String {
    match error {
        KubeconfigError::ReadConfig(error, _) => access::explain(error, path),
        // The other lines quote the file, which may hold a password.
        error => yaml::first_line(&causes(error)),
    }
}

/// Why the usual kubeconfig is not used.
fn no_kubeconfig(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, path) if error.kind() == io::ErrorKind::NotFound => {
            format!("there is no kubeconfig {}", path.display())
        }
        KubeconfigError::ReadConfig(_, path) => {
            format!("the kubeconfig {} fails: {}", path.display(), in_file(error, path))
        }
        error => format!("the kubeconfig fails: {}", yaml::first_line(&causes(error))),
    }
}

/// Why the configuration of a pod is not used.
fn not_in_cluster(error: &InClusterError) -> String {
    match error {
        InClusterError::ReadEnvironmentVariable(_) => {
            "this is no pod of Kubernetes (KUBERNETES_SERVICE_HOST is not set)".to_owned()
        }
        error => format!("the service account of the pod fails: {}", causes(error)),
    }
}

// === impl KubeContext ===

impl KubeContext {
    /// Makes a client. Sends nothing yet, but runs a credential plugin that the kubeconfig names.
    pub async fn client(self, proxies: ProxyVariables, connect_timeout: Duration) -> Result<Client, Error> {
        let source = Source::Context(self);
        client(source, proxies, connect_timeout).await
    }

    /// The files, for messages.
    pub fn file_names(&self) -> String {
        let names: Vec<_> = self.files.iter().map(|file| file.display().to_string()).collect();
        names.join(", ")
    }

    /// The files as one, with this context as the current one.
    fn read(&self) -> Result<Kubeconfig, KubeconfigError> {
        let empty = Kubeconfig::default();
        let merge = |merged: Kubeconfig, file: &PathBuf| merged.merge(Kubeconfig::read_from(file)?);
        let mut merged = self.files.iter().try_fold(empty, merge)?;
        merged.current_context = Some(self.name.clone());
        let users = merged
            .auth_infos
            .iter_mut()
            .filter_map(|named| named.auth_info.as_mut());
        for user in users {
            if let Some(name) = &self.user {
                user.impersonate = Some(name.clone());
            }
            if !self.groups.is_empty() {
                user.impersonate_groups = Some(self.groups.clone());
            }
        }
        Ok(merged)
    }
}

/// A client with the service account of the pod that this process runs in.
pub async fn in_cluster(proxies: ProxyVariables, connect_timeout: Duration) -> Result<Client, Error> {
    client(Source::Inferred, proxies, connect_timeout).await
}

async fn client(source: Source, proxies: ProxyVariables, connect_timeout: Duration) -> Result<Client, Error> {
    let settings = Settings {
        source,
        proxies,
        connect_timeout,
    };
    settings.client().await
}

/// The configuration of the current context, and the proxy that its cluster names.
async fn of_kubeconfig(read: Result<Kubeconfig, KubeconfigError>) -> Result<(Config, Option<String>), KubeconfigError> {
    let file = read?;
    let context = file.current_context.as_deref().and_then(|current| {
        let named = file.contexts.iter().find(|context| context.name == current)?;
        named.context.as_ref()
    });
    let proxy = context.and_then(|context| {
        let named = file.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
        named.cluster.as_ref()?.proxy_url.clone().filter(|url| !url.is_empty())
    });
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok((config, proxy))
}

fn of_url(url: &str) -> Result<Config, Error> {
    let full = match url.contains("://") {
        true => url.to_owned(),
        false => format!("https://{url}"),
    };
    let parsed = full.parse().map_err(|_| Error::Url { url: url.to_owned() })?;
    Ok(match Config::incluster() {
        Ok(mut config) => {
            config.cluster_url = parsed;
            config
        }
        Err(_) => Config::new(parsed),
    })
}

fn stack(config: &Config, proxy: Option<Proxy>) -> Result<Stack, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Fails if the process has a default already, which is the same.
    let _ = rustls::crypto::CryptoProvider::install_default((*provider).clone());
    let mut tls = config.rustls_client_config()?;
    if !config.accept_invalid_certs {
        let verifier = match (&config.root_cert_file, &config.root_cert) {
            (Some(file), _) => ServerVerifier::of_file(file.clone(), provider)?,
            (None, Some(roots)) => {
                let roots = roots.iter().map(|der| CertificateDer::from(der.clone()));
                ServerVerifier::new(roots.collect(), provider)
            }
            (None, None) => ServerVerifier::new(trust::of_system(), provider),
        };
        tls.dangerous().set_certificate_verifier(Arc::new(verifier));
    }
    let connector = Connector::new(connect::Config {
        proxy,
        tls: Arc::new(tls),
        server_name: config.tls_server_name.clone(),
        timeout: config.connect_timeout,
    });
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(Retry(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    let boxed = |body| Box::new(http_body_util::BodyExt::map_err(body, BoxError::from)) as Box<DynBody>;
    let service = service.map_response(move |response: Response<_>| response.map(boxed));
    Ok(BoxCloneSyncService::new(service))
}

/// Repeats requests that the server has no time for, when the server says so.
#[derive(Clone)]
struct Retry(RetryPolicy);

impl<T> Policy<Request<Body>, Response<T>, BoxError> for Retry {
    type Future = tokio::time::Sleep;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        result: &mut Result<Response<T>, BoxError>,
    ) -> Option<Self::Future> {
        match result {
            Ok(response) if response.status() == GATEWAY_TIMEOUT => None,
            _ => self.0.retry(request, result),
        }
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Policy::<_, Response<T>, BoxError>::clone_request(&mut self.0, request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case B4 from the field.
    #[tokio::test]
    async fn errors_are_described_by_their_cause_and_once() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let settings = Settings {
            source: Source::Url(format!("http://{address}")),
            proxies: ProxyVariables::default(),
            connect_timeout: Duration::ZERO,
        };
        let client = settings.client().await.unwrap();
        let error = client.apiserver_version().await.unwrap_err();
        let error = kube::runtime::watcher::Error::InitialListFailed(error);
        let text = describe(&error);
        let expected = format!("failed to perform initial object list: cannot connect to {address}: ");
        assert!(
            text.starts_with(&expected) && text.contains("Connection refused"),
            "{text}"
        );
        let status = serde_json::json!({
            "status": "Failure", "code": 403, "message": "nodes is forbidden", "reason": "Forbidden",
        });
        let error = kube::Error::Api(serde_json::from_value(status).unwrap());
        assert_eq!(describe(&error), "nodes is forbidden: Forbidden");
    }
}
