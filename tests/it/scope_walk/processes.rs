//! The processes of the walk: a Kubernetes API, a publisher into an etcd, and two mirrors of it, one with import rules.

use super::views::{Side, View, Views, follow};
use crate::support::admin::Admin;
use crate::support::kubernetes_api::{self as api, KubernetesApi};
use crate::support::store::{names, plain_client, plain_etcd};
use crate::support::{CommandLine, Process, eventually, isthmus};
use etcd_client::Client;
use isthmus::model::cluster::ClusterName;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Kill,
    Stop,
}

/// A process that can be ended and started again.
struct Part {
    process: Option<Process>,
    admin: Admin,
    command: Box<dyn Fn(&Admin) -> CommandLine>,
}

/// An etcd with a process that writes to it.
struct Writer {
    _etcd: Process,
    client: Client,
    part: Part,
}

/// See the module's documentation.
pub struct Processes {
    directory: tempfile::TempDir,
    api: KubernetesApi,
    /// The objects that the API has.
    objects: BTreeSet<(&'static str, String)>,
    publisher: Writer,
    /// Without a scope, and with one.
    mirrors: [Writer; 2],
}

impl Part {
    fn new(command: impl Fn(&Admin) -> CommandLine + 'static) -> Self {
        Self {
            process: None,
            admin: Admin::new(),
            command: Box::new(command),
        }
    }

    async fn start(&mut self) {
        self.process = Some((self.command)(&self.admin).start());
        self.admin.ready().await;
    }

    async fn end(&mut self, end: End) {
        let process = self.process.take().unwrap();
        match end {
            End::Kill => process.kill().await,
            End::Stop => assert!(process.terminate().await.success()),
        }
    }
}

impl Writer {
    /// Starts an etcd, its watcher, and the process that writes to it. `command` gets the client file of the etcd.
    async fn start(
        client_file: &Path,
        side: Side,
        (views, view): (&watch::Sender<Views>, fn(&mut Views) -> &mut View),
        command: impl Fn(&Path, &Admin) -> CommandLine + 'static,
    ) -> Self {
        let etcd = plain_etcd().start();
        let address = etcd.address().await;
        fs::write(client_file, format!("endpoints:\n- http://{address}\n")).unwrap();
        let client = plain_client(&address).await;
        let cluster = ClusterName::new("hk").unwrap();
        follow(client.clone(), (side, cluster), views.clone(), view).await;
        let file = client_file.to_owned();
        let mut part = Part::new(move |admin| command(&file, admin));
        part.start().await;
        Self {
            _etcd: etcd,
            client,
            part,
        }
    }
}

fn publisher(store: &Path, admin: &Admin, api: &str, scope: &Path) -> CommandLine {
    isthmus([
        "clustermesh",
        "--cluster-name=hk",
        "--cluster-id=1",
        "--clustermesh-enable-mcs-api",
    ])
    .arg("--kvstore-opt=etcd.qps=0")
    .arg(format!("--kvstore-opt=etcd.config={}", store.display()))
    .arg(format!("--k8s-api-server-urls={api}"))
    .arg(format!("--scope={}", scope.display()))
    .args([admin.health_flag(), admin.metrics_flag()])
}

fn mirror(store: &Path, admin: &Admin, remotes: &Path) -> CommandLine {
    isthmus(["kvstoremesh", "--cluster-name=local", "--cluster-id=9"])
        .arg("--kvstore-opt=etcd.qps=0")
        .arg(format!("--kvstore-opt=etcd.config={}", store.display()))
        .arg(format!("--clustermesh-config={}", remotes.display()))
        .args([admin.health_flag(), admin.metrics_flag(), admin.api_flag()])
}

/// Replaces a scope file as a careful editor does.
fn write(path: &Path, file: &Value) {
    let new = path.with_extension("new");
    fs::write(&new, file.to_string()).unwrap();
    fs::rename(new, path).unwrap();
}

fn collection(kind: &str) -> &'static str {
    match kind {
        "Namespace" => api::NAMESPACES,
        "CiliumIdentity" => api::IDENTITIES,
        "CiliumEndpoint" => api::ENDPOINTS,
        "Service" => api::SERVICES,
        "EndpointSlice" => api::SLICES,
        "ServiceExport" => api::EXPORTS,
        _ => panic!("{kind}"),
    }
}

impl Processes {
    /// Starts everything, with these scope files of the publisher and of the second mirror.
    pub async fn start(export: &Value, import: &Value, views: &watch::Sender<Views>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let [export_file, import_file, remotes] = [path("export.yaml"), path("import.yaml"), path("remotes")];
        let [whole_store, scoped_store] = [path("whole"), path("scoped")];
        write(&export_file, export);
        write(&import_file, import);
        fs::create_dir(&remotes).unwrap();
        let api = KubernetesApi::start().await;
        let url = api.url.clone();
        let source = remotes.join("hk");
        let publisher = Writer::start(
            &source,
            Side::State,
            (views, |views| &mut views.source),
            move |store, admin| publisher(store, admin, &url, &export_file),
        );
        let publisher = publisher.await;
        let of = remotes.clone();
        let whole = Writer::start(
            &whole_store,
            Side::Cache,
            (views, |views| &mut views.whole),
            move |store, admin| mirror(store, admin, &of),
        );
        let whole = whole.await;
        let scoped = Writer::start(
            &scoped_store,
            Side::Cache,
            (views, |views| &mut views.scoped),
            move |store, admin| mirror(store, admin, &remotes).arg(format!("--scope={}", import_file.display())),
        );
        let mirrors = [whole, scoped.await];
        let mut processes = Self {
            directory,
            api,
            objects: BTreeSet::new(),
            publisher,
            mirrors,
        };
        processes.mirrors_complete().await;
        processes
    }

    async fn mirrors_complete(&mut self) {
        for mirror in &self.mirrors {
            eventually("the mirror is complete", async || {
                let clusters = mirror.part.admin.clusters().await;
                (clusters.len() == 1 && clusters[0]["ready"] == true).then_some(())
            })
            .await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Creates, replaces or deletes an object.
    pub fn apply(&mut self, kind: &'static str, namespace: &str, name: &str, object: Option<Value>) {
        let full_name = match namespace {
            "" => name.to_owned(),
            _ => format!("{namespace}/{name}"),
        };
        let id = (kind, full_name);
        match object {
            Some(mut object) => {
                object["metadata"]["resourceVersion"] = json!("5");
                object["metadata"]["uid"] = json!("0");
                self.api.apply(collection(kind), object);
                self.objects.insert(id);
            }
            None => {
                if self.objects.remove(&id) {
                    self.api.delete(collection(kind), &id.1);
                }
            }
        }
    }

    pub fn write_export(&self, file: &Value) {
        write(&self.path("export.yaml"), file);
    }

    pub fn write_import(&self, file: &Value) {
        write(&self.path("import.yaml"), file);
    }

    pub async fn end_publisher(&mut self, end: End) {
        self.publisher.part.end(end).await;
    }

    pub async fn start_publisher(&mut self) {
        self.publisher.part.start().await;
    }

    /// The addresses in the store of the publisher.
    pub async fn addresses(&mut self) -> Vec<String> {
        names(&mut self.publisher.client, "cilium/state/ip/v1/default/").await
    }

    pub async fn end_mirror(&mut self, at: usize, end: End) {
        self.mirrors[at].part.end(end).await;
    }

    pub async fn start_mirror(&mut self, at: usize) {
        self.mirrors[at].part.start().await;
        self.mirrors_complete().await;
    }

    /// Waits until the mirror with a scope knows the region of its source.
    pub async fn knows_region(&self, region: Option<&str>) {
        eventually(&format!("the region is {region:?}"), async || {
            let clusters = self.mirrors[1].part.admin.clusters().await;
            (clusters.first()?["scope"]["region"].as_str() == region).then_some(())
        })
        .await;
    }

    /// The last lines of all processes.
    pub fn logs(&self) -> String {
        let parts = [&self.publisher, &self.mirrors[0], &self.mirrors[1]];
        let log = |writer: &Writer| {
            let log = writer.part.process.as_ref().map(Process::log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(10)..].join("\n")
        };
        parts.map(log).join("\n\n")
    }
}
