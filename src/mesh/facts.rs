//! The facts about one cluster: its objects as they were read. All decisions of this room are functions of them.
//!
//! Facts can be written and read as JSON, so that a test runs on the recorded objects of a cluster. They contain private
//! keys: nothing prints them.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Node, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the Deployment and of the Service of the store.
pub const APISERVER: &str = "clustermesh-apiserver";
pub const CILIUM_CONFIG: &str = "cilium-config";
/// The agents' DaemonSet.
pub const AGENTS: &str = "cilium";
/// The container of a mirror, in the chart's pod and in ours.
pub const MIRROR: &str = "kvstoremesh";
/// The ConfigMap of the users of other clusters, and its only key.
pub const USERS: &str = "clustermesh-remote-users";
pub const USERS_KEY: &str = "users.yaml";
/// The CronJob of Cilium's certgen, which issues the certificates of the mesh where the chart says so.
pub const CERTGEN: &str = "clustermesh-apiserver-generate-certs";
/// What is noted as unread where it is unknown whether that CronJob exists.
pub const CRON_JOBS: &str = "CronJobs";
/// The ConfigMap of the peers that this program has connected.
pub const RECORD: &str = "isthmus-mesh";

/// The Secrets of a mesh.
pub mod secret {
    /// Client files of the agents.
    pub const AGENTS: &str = "cilium-clustermesh";
    /// Client files of the mirror.
    pub const MIRROR: &str = "cilium-kvstoremesh";
    pub const CA: &str = "cilium-ca";
    pub const SERVER: &str = "clustermesh-apiserver-server-cert";
    pub const ADMIN: &str = "clustermesh-apiserver-admin-cert";
    pub const REMOTE: &str = "clustermesh-apiserver-remote-cert";
    pub const LOCAL: &str = "clustermesh-apiserver-local-cert";
    /// Former names of [`REMOTE`], which old installations have.
    pub const DEPRECATED_REMOTE: [&str; 2] = [
        "clustermesh-apiserver-client-cert",
        "clustermesh-apiserver-client-certs",
    ];
    /// All of them.
    pub const ALL: [&str; 9] = [
        AGENTS,
        MIRROR,
        CA,
        SERVER,
        ADMIN,
        REMOTE,
        LOCAL,
        DEPRECATED_REMOTE[0],
        DEPRECATED_REMOTE[1],
    ];
}

/// The last part of the name of our image.
const IMAGE: &str = "isthmus";
/// Label that names the tool that owns an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] of our objects, and the field manager of our writes.
pub const MANAGER: &str = "isthmus";

/// What was read of one cluster. An absent object is `None`, or missing in its map.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Facts {
    /// The name of the kubeconfig context.
    pub context: String,
    /// The name of the kubeconfig's cluster entry.
    pub entry: String,
    /// The URL of the API server.
    pub server: String,
    /// The namespace of Cilium.
    pub namespace: String,
    pub cilium_config: Option<ConfigMap>,
    pub service: Option<Service>,
    pub deployment: Option<Deployment>,
    pub agents: Option<DaemonSet>,
    pub nodes: Vec<Node>,
    pub cilium_nodes: Vec<CiliumNode>,
    /// The Secrets of [`secret::ALL`] that exist.
    pub secrets: BTreeMap<String, Secret>,
    pub users: Option<ConfigMap>,
    pub record: Option<ConfigMap>,
    /// The CA bundle that the pods of the mesh use, if there is one.
    pub bundle: Option<Bundle>,
    /// Whether the CronJob of Cilium's certgen exists, which issues the certificates of the mesh again and again.
    pub has_certgen: bool,
    /// The Helm releases whose name contains `cilium`, in all namespaces that could be listed.
    pub releases: Vec<Release>,
    /// The optional facts that could not be read.
    pub unread: Vec<Unread>,
}

/// The part of a CiliumNode that checks need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CiliumNode {
    pub name: String,
    /// The networks of the pods of this node.
    pub pod_cidrs: Vec<String>,
}

/// A CA bundle that pods use in place of `ca.crt` of their certificates: the chart's value `tls.caBundle`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bundle {
    pub place: BundlePlace,
    /// The metadata of the object; empty if it does not exist.
    pub metadata: ObjectMeta,
    /// The certificates, PEM; `None` if the object or its key does not exist.
    pub pem: Option<String>,
}

/// Where a CA bundle is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BundlePlace {
    pub kind: BundleKind,
    pub name: String,
    pub key: String,
}

/// The kind of the object that holds a CA bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BundleKind {
    #[default]
    ConfigMap,
    Secret,
}

/// A Helm release.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Release {
    pub namespace: String,
    pub name: String,
}

/// A fact that could not be read, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// The objects, such as `CiliumNodes`.
    pub what: String,
    pub why: String,
}

/// The tool that keeps an object as it is, and will undo the changes of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A Helm release: its namespace and name.
    Helm(Release),
    /// An application of Argo CD.
    ArgoCd(String),
    /// A Kustomization or HelmRelease of Flux.
    Flux(String),
    /// This program.
    Isthmus,
}

/// A version of Cilium, without its patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

/// What the objects of the mesh say about the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorMode {
    /// A mirror runs in this cluster; agents read the own store.
    On,
    /// Agents read the stores of the other clusters.
    Off,
}

// === impl Facts ===

impl Facts {
    /// A value of Cilium's configuration; empty if it is absent.
    pub fn setting(&self, key: &str) -> &str {
        let data = self.cilium_config.as_ref().and_then(|map| map.data.as_ref());
        data.and_then(|data| data.get(key)).map_or("", |value| value.trim())
    }

    /// The name of the cluster, or the context if it has none.
    pub fn name(&self) -> &str {
        match self.setting("cluster-name") {
            "" => &self.context,
            name => name,
        }
    }

    /// The id of the cluster, unless it is absent or no number.
    pub fn id(&self) -> Option<u32> {
        self.setting("cluster-id").parse().ok()
    }

    /// The number of clusters that the mesh can have.
    pub fn max_connected(&self) -> Result<u32, std::num::ParseIntError> {
        match self.setting("max-connected-clusters") {
            "" => Ok(255),
            text => text.parse(),
        }
    }

    /// Whether the cluster has a name and an id of its own.
    pub fn is_named(&self) -> bool {
        let (name, id) = (self.setting("cluster-name"), self.setting("cluster-id"));
        !["", crate::model::cluster::DEFAULT_NAME].contains(&name) && !["", "0"].contains(&id)
    }

    /// The version of Cilium, according to the agents' image.
    pub fn cilium_version(&self) -> Option<Version> {
        let agents = self.agents.as_ref()?.spec.as_ref()?;
        let containers = &agents.template.spec.as_ref()?.containers;
        let agent = containers.iter().find(|container| container.name == "cilium-agent")?;
        Version::of_image(agent.image.as_deref()?)
    }

    /// The containers of the mesh's pod.
    pub fn containers(&self) -> &[Container] {
        let spec = self.deployment.as_ref().and_then(|deployment| deployment.spec.as_ref());
        let pod = spec.and_then(|spec| spec.template.spec.as_ref());
        pod.map_or(&[], |pod| &pod.containers)
    }

    pub fn mirror(&self) -> MirrorMode {
        match self.containers().iter().any(|container| container.name == MIRROR) {
            true => MirrorMode::On,
            false => MirrorMode::Off,
        }
    }

    /// Whether the mesh's pod is ours: one container that serves, publishes and mirrors.
    pub fn runs_isthmus(&self) -> bool {
        let serves = |container: &Container| container.args.iter().flatten().any(|arg| arg == "serve");
        self.containers().iter().any(serves)
    }

    /// Whether the store reads the CAs that it trusts while it runs, as ours does; etcd reads them at its start only.
    ///
    /// The chart's pod may run our image in place of the original's. The repository of such an image ends with our name, as
    /// that of our releases does; any other image is taken for the original, whose needless restart harms less than a CA
    /// that is not trusted.
    pub fn follows_trust(&self) -> bool {
        let mut stores = self.containers().iter().filter(|container| container.name == "etcd");
        self.runs_isthmus() || stores.any(|store| is_our_image(store.image.as_deref().unwrap_or_default()))
    }

    /// The type of the Service of the store: `NodePort`, say.
    pub fn service_type(&self) -> Option<&str> {
        let spec = self.service.as_ref()?.spec.as_ref()?;
        Some(spec.type_.as_deref().unwrap_or("ClusterIP"))
    }

    /// A value of a Secret.
    pub fn secret(&self, name: &str, key: &str) -> Option<&[u8]> {
        let data = self.secrets.get(name)?.data.as_ref()?;
        data.get(key).map(|value| &*value.0)
    }

    /// The text of a Secret's value.
    pub fn secret_text(&self, name: &str, key: &str) -> Option<&str> {
        std::str::from_utf8(self.secret(name, key)?).ok()
    }

    /// The authorities that the store trusts in its clients: the bundle, or `ca.crt` of the server certificate. PEM.
    pub fn trusted(&self) -> Option<&str> {
        match &self.bundle {
            Some(bundle) => bundle.pem.as_deref(),
            None => self.secret_text(secret::SERVER, "ca.crt"),
        }
    }

    /// The clusters that a Secret of client files names, other than this one.
    pub fn peers_in(&self, secret: &str) -> BTreeSet<String> {
        let data = self.secrets.get(secret).and_then(|secret| secret.data.as_ref());
        let is_peer = |value: &[u8]| std::str::from_utf8(value).is_ok_and(|text| text.contains("endpoints:"));
        data.into_iter()
            .flatten()
            .filter(|(name, value)| is_peer(&value.0) && *name != self.name())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The clusters that this one is connected to.
    pub fn peers(&self) -> BTreeSet<String> {
        let mirrored = self.peers_in(secret::MIRROR);
        self.peers_in(secret::AGENTS).union(&mirrored).cloned().collect()
    }

    /// The nodes that are ready.
    pub fn ready_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| is_ready(node))
    }

    /// The Helm release of Cilium, unless none or several were found.
    pub fn release(&self) -> Option<&Release> {
        match &self.releases[..] {
            [release] => Some(release),
            releases => releases
                .iter()
                .find(|release| release.namespace == self.namespace && release.name == AGENTS),
        }
    }
}

/// Whether the name of an image is that of ours: `registry:5000/mirror/isthmus:0.2.0@sha256:…`.
fn is_our_image(image: &str) -> bool {
    let path = image.split('@').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split(':').next().unwrap_or_default() == IMAGE
}

/// Whether a node is ready.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    ready.is_some_and(|condition| condition.status == "True")
}

/// The tool that keeps an object, according to its labels and annotations.
pub fn keeper(meta: &ObjectMeta) -> Option<Keeper> {
    let label = |name: &str| {
        meta.labels
            .as_ref()
            .and_then(|labels| labels.get(name))
            .map(String::as_str)
    };
    let note = |name: &str| {
        meta.annotations
            .as_ref()
            .and_then(|notes| notes.get(name))
            .map(String::as_str)
    };
    let first = |names: [&str; 2]| names.into_iter().find_map(&label);
    // Argo CD and Flux apply rendered charts, which say that Helm manages them: they are asked first.
    if let Some(app) = note("argocd.argoproj.io/tracking-id").or_else(|| label("argocd.argoproj.io/instance")) {
        let app = app.split(':').next().unwrap_or_default();
        return Some(Keeper::ArgoCd(app.to_owned()));
    }
    if let Some(name) = first(["helm.toolkit.fluxcd.io/name", "kustomize.toolkit.fluxcd.io/name"]) {
        return Some(Keeper::Flux(name.to_owned()));
    }
    match label(MANAGED_BY)? {
        MANAGER => Some(Keeper::Isthmus),
        "Helm" => Some(Keeper::Helm(Release {
            namespace: note("meta.helm.sh/release-namespace").unwrap_or_default().to_owned(),
            name: note("meta.helm.sh/release-name").unwrap_or_default().to_owned(),
        })),
        _ => None,
    }
}

// === impl BundleKind ===

impl std::fmt::Display for BundleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

// === impl Keeper ===

impl std::fmt::Display for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Helm(release) if release.name.is_empty() => f.write_str("Helm"),
            Self::Helm(Release { namespace, name }) => write!(f, "the Helm release {namespace}/{name}"),
            Self::ArgoCd(app) => write!(f, "the Argo CD application {app}"),
            Self::Flux(name) => write!(f, "the Flux resource {name}"),
            Self::Isthmus => f.write_str(MANAGER),
        }
    }
}

// === impl Version ===

impl Version {
    /// The version in the tag of an image: `quay.io/cilium/cilium:v1.20.2@sha256:…`.
    pub fn of_image(image: &str) -> Option<Self> {
        let image = image.split('@').next().unwrap_or_default();
        let (_, tag) = image.rsplit_once(':')?;
        let mut parts = tag.trim_start_matches('v').split('.');
        let mut number = || parts.next()?.parse().ok();
        Some(Self {
            major: number()?,
            minor: number()?,
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_is_that_of_the_image() {
        let of = |image| Version::of_image(image).map(|version| version.to_string());
        assert_eq!(of("quay.io/cilium/cilium:v1.20.2@sha256:ab").unwrap(), "1.20");
        assert_eq!(of("registry:5000/cilium:1.9.1").unwrap(), "1.9");
        assert_eq!(of("registry:5000/cilium"), None);
        assert_eq!(of("cilium:latest"), None);
    }

    #[test]
    fn a_store_follows_its_trust_where_the_image_is_ours_by_its_own_name() {
        let follows = |name: &str, image: &str, args: serde_json::Value| {
            let container = json!({"name": name, "image": image, "args": args});
            let spec = json!({"selector": {}, "template": {"spec": {"containers": [container]}}});
            let facts: Facts = serde_json::from_value(json!({"deployment": {"spec": spec}})).unwrap();
            facts.follows_trust()
        };
        assert!(follows(
            "etcd",
            "registry:5000/mirror/isthmus:0.2.0@sha256:ab",
            json!([])
        ));
        assert!(follows("etcd", "isthmus", json!([])));
        // The name of a registry or of an organization says nothing about the program.
        assert!(!follows(
            "etcd",
            "isthmus.example/clustermesh-apiserver:v1.20.2",
            json!([])
        ));
        assert!(!follows(
            "etcd",
            "registry/isthmus/clustermesh-apiserver:v1.20.2",
            json!([])
        ));
        assert!(!follows("apiserver", "isthmus:0.2.0", json!([])));
        assert!(follows("kvstoremesh", "registry/any:1", json!(["serve"])));
    }

    #[test]
    fn the_keeper_of_an_object_is_known_by_its_marks() {
        let keeper = |meta: serde_json::Value| keeper(&serde_json::from_value(meta).unwrap()).map(|k| k.to_string());
        let helm = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}});
        assert_eq!(keeper(helm.clone()).unwrap(), "the Helm release kube-system/cilium");
        let mut argo = helm;
        argo["annotations"]["argocd.argoproj.io/tracking-id"] = json!("mesh:v1/Secret:kube-system/cilium-clustermesh");
        assert_eq!(keeper(argo).unwrap(), "the Argo CD application mesh");
        let flux = json!({"labels": {"helm.toolkit.fluxcd.io/name": "cilium"}});
        assert_eq!(keeper(flux).unwrap(), "the Flux resource cilium");
        assert_eq!(
            keeper(json!({"labels": {"app.kubernetes.io/managed-by": "isthmus"}})).unwrap(),
            "isthmus"
        );
        assert_eq!(keeper(json!({"labels": {"a": "b"}})), None);
    }

    #[test]
    fn peers_are_the_entries_with_endpoints() {
        let mut facts = Facts::default();
        let encoded = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        facts.cilium_config = Some(serde_json::from_value(json!({"data": {"cluster-name": "tokyo"}})).unwrap());
        let secret = Secret {
            data: Some(BTreeMap::from([
                ("hk".to_owned(), encoded("endpoints: [https://x]")),
                ("tokyo".to_owned(), encoded("endpoints: [https://x]")),
                ("hk.etcd-client-ca.crt".to_owned(), encoded("PEM")),
            ])),
            ..Secret::default()
        };
        facts.secrets.insert(secret::AGENTS.to_owned(), secret);
        assert_eq!(facts.peers().into_iter().collect::<Vec<_>>(), ["hk"]);
    }
}
