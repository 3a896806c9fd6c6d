//! The CAs that the store of a cluster trusts in its clients: where they are kept, and who writes them again.
//!
//! Pods read them from `ca.crt` of their certificate's Secret or, with the chart's value `tls.caBundle`, from a ConfigMap
//! or Secret of their own. The volumes of the pods say which.

use super::change::Target;
use super::facts::{self, Bundle, BundleKind, BundlePlace, Facts, Keeper, secret};
use super::pki;
use super::record::Record;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{KeyToPath, PodSpec, VolumeProjection};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::fmt::{self, Write as _};

/// The file of the CAs that the store trusts, in the volume of its certificate.
const SERVERS: &str = "ca.crt";
/// The file of the CAs that readers of other stores trust, in the volume of their certificate.
const READERS: &str = "common-etcd-client-ca.crt";
/// The annotation of Secrets that cert-manager issues.
const CERT_MANAGER: &str = "cert-manager.io/certificate-name";
/// The label of bundles that trust-manager writes.
const TRUST_MANAGER: &str = "trust.cert-manager.io/bundle";
/// A part of the name with which certgen writes.
const CERTGEN: &str = "certgen";

/// Who writes the trusted CAs of a store again, and removes those that others have added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewer {
    /// cert-manager, for this Certificate.
    CertManager(String),
    /// trust-manager, for this Bundle.
    TrustManager(String),
    /// Cilium's certgen.
    Certgen,
    /// A tool that renders the object.
    Rendered(Keeper),
}

/// Where the CAs of the pods' common trust come from.
enum Source {
    /// The Secret of the certificate.
    Certificate,
    Bundle(BundlePlace),
}

/// The CA bundle that the pods of a cluster use; `None` if they use `ca.crt` of their certificates.
///
/// The chart gives all pods the same bundle. The volume of the store decides, then that of the mirror, then that of the
/// agents, as far as they exist.
pub fn place(deployment: Option<&Deployment>, agents: Option<&DaemonSet>) -> Option<BundlePlace> {
    let store = deployment.and_then(|deployment| deployment.spec.as_ref()?.template.spec.as_ref());
    let agents = agents.and_then(|agents| agents.spec.as_ref()?.template.spec.as_ref());
    let found = [
        (store, secret::SERVER, SERVERS),
        (store, secret::REMOTE, READERS),
        (agents, secret::REMOTE, READERS),
    ]
    .into_iter()
    .find_map(|(pod, certificate, file)| source(pod?, certificate, file))?;
    match found {
        Source::Certificate => None,
        Source::Bundle(place) => Some(place),
    }
}

/// The source of `file` in the projected volume that has the certificate.
fn source(pod: &PodSpec, certificate: &str, file: &str) -> Option<Source> {
    let projected = pod
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.projected.as_ref());
    let mut sources = projected.map(|volume| volume.sources.as_deref().unwrap_or_default());
    let has_certificate = |sources: &&[VolumeProjection]| {
        let mut secrets = sources.iter().filter_map(|source| source.secret.as_ref());
        secrets.any(|secret| secret.name == certificate)
    };
    let sources = sources.find(has_certificate)?;
    let key = |items: &Option<Vec<KeyToPath>>| {
        let item = items.iter().flatten().find(|item| item.path == file)?;
        Some(item.key.clone())
    };
    sources.iter().find_map(|source| {
        if let Some(secret) = &source.secret {
            let key = key(&secret.items)?;
            return Some(match secret.name == certificate {
                true => Source::Certificate,
                false => Source::Bundle(BundlePlace {
                    kind: BundleKind::Secret,
                    name: secret.name.clone(),
                    key,
                }),
            });
        }
        let map = source.config_map.as_ref()?;
        Some(Source::Bundle(BundlePlace {
            kind: BundleKind::ConfigMap,
            name: map.name.clone(),
            key: key(&map.items)?,
        }))
    })
}

/// The object and the key with the CAs that the store trusts.
pub fn target(facts: &Facts) -> (Target, String) {
    let (kind, name, key) = match &facts.bundle {
        Some(Bundle { place, .. }) => (place.kind, &*place.name, &*place.key),
        None => (BundleKind::Secret, secret::SERVER, SERVERS),
    };
    let target = Target {
        api_version: "v1".to_owned(),
        kind: kind.to_string(),
        namespace: Some(facts.namespace.clone()),
        name: name.to_owned(),
    };
    (target, key.to_owned())
}

/// The metadata of that object.
pub fn metadata(facts: &Facts) -> Option<&ObjectMeta> {
    match &facts.bundle {
        Some(bundle) => Some(&bundle.metadata),
        None => facts.secrets.get(secret::SERVER).map(|secret| &secret.metadata),
    }
}

/// The version of that object as it was read.
pub fn version(facts: &Facts) -> Option<String> {
    metadata(facts)?.resource_version.clone()
}

/// Who writes that object again; `None` if a change stays.
pub fn renewer(facts: &Facts) -> Option<Renewer> {
    let meta = metadata(facts)?;
    let value = |map: &Option<std::collections::BTreeMap<String, String>>, name: &str| map.as_ref()?.get(name).cloned();
    if let Some(certificate) = value(&meta.annotations, CERT_MANAGER) {
        return Some(Renewer::CertManager(certificate));
    }
    if let Some(bundle) = value(&meta.labels, TRUST_MANAGER) {
        return Some(Renewer::TrustManager(bundle));
    }
    match facts::keeper(meta) {
        None | Some(Keeper::Isthmus) => {}
        Some(keeper) => return Some(Renewer::Rendered(keeper)),
    }
    // certgen writes certificates without marks of its own. Where it runs only once for each release of the chart, no
    // CronJob exists, and the writer of the fields tells.
    let mut managers = meta
        .managed_fields
        .iter()
        .flatten()
        .filter_map(|entry| entry.manager.as_deref());
    let is_certgen = facts.has_certgen || managers.any(|manager| manager.contains(CERTGEN));
    (facts.bundle.is_none() && is_certgen).then_some(Renewer::Certgen)
}

/// What to commit where `renewer` writes the CAs, so that the store trusts the peers of `record` for good.
pub fn to_commit(facts: &Facts, renewer: &Renewer, record: &Record) -> String {
    let (target, _) = target(facts);
    match renewer {
        Renewer::TrustManager(bundle) => {
            let mut text = format!(
                "# Add to the Bundle {bundle} of trust-manager, which writes {target} (context {})\nspec:\n  sources:\n",
                facts.context
            );
            for authorities in authorities(record) {
                text += "  - inLine: |\n";
                indent(&mut text, authorities, "      ");
            }
            text
        }
        Renewer::CertManager(_) | Renewer::Certgen | Renewer::Rendered(_) => format!(
            "# Values of the Cilium chart for cluster {} (context {})\n{}",
            facts.name(),
            facts.context,
            values(facts, record)
        ),
    }
}

/// The values of Cilium's chart, and of the chart of this program, with which the store trusts the peers of `record`;
/// empty if the peers have the CA of this cluster.
pub fn values(facts: &Facts, record: &Record) -> String {
    let peers: Vec<&str> = authorities(record).collect();
    if peers.is_empty() {
        return String::new();
    }
    let mut text = "tls:\n  caBundle:\n    enabled: true\n".to_owned();
    if let Some(Bundle { place, .. }) = &facts.bundle {
        let is_secret = place.kind == BundleKind::Secret;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "    name: {}\n    key: {}\n    useSecret: {is_secret}",
            place.name, place.key
        );
    }
    let of_secret = |key| facts.secret_text(secret::CA, key);
    let own = facts
        .trusted()
        .or_else(|| of_secret("ca.crt"))
        .or_else(|| of_secret("tls.crt"));
    let all: Vec<&str> = own.into_iter().chain(peers).collect();
    if own.is_none() {
        text += "    # The CA of this cluster is unknown, and must be added.\n";
    }
    text += "    content: |\n";
    // A text that cannot be read stays as it is.
    let content = pki::bundle(&all).unwrap_or_else(|_| all.join("\n"));
    indent(&mut text, &content, "      ");
    text
}

/// The authorities of the peers that have others than this cluster.
fn authorities(record: &Record) -> impl Iterator<Item = &str> {
    record.peers.values().filter_map(|peer| peer.authorities.as_deref())
}

fn indent(text: &mut String, lines: &str, by: &str) {
    for line in lines.lines() {
        let _ = writeln!(text, "{by}{line}");
    }
}

// === impl Renewer ===

impl fmt::Display for Renewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CertManager(name) => write!(f, "cert-manager (Certificate {name})"),
            Self::TrustManager(name) => write!(f, "trust-manager (Bundle {name})"),
            Self::Certgen => write!(f, "Cilium's certgen (CronJob {})", facts::CERTGEN),
            Self::Rendered(keeper) => keeper.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(volumes: &Value) -> Value {
        json!({"spec": {"selector": {}, "template": {"spec": {"containers": [], "volumes": volumes}}}})
    }

    /// The volume of a certificate with its CAs, as the chart renders it.
    fn volume(certificate: &str, file: &str, bundle: Option<Value>) -> Value {
        let mut items = json!([{"key": "tls.crt", "path": "a"}, {"key": "tls.key", "path": "b"}]);
        let mut sources = json!([{"secret": {"name": "cilium-kvstoremesh", "optional": true}}]);
        let list = sources.as_array_mut().unwrap();
        match bundle {
            None => {
                items
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"key": "ca.crt", "path": file}));
                list.push(json!({"secret": {"name": certificate, "items": items}}));
            }
            Some(bundle) => {
                list.push(json!({"secret": {"name": certificate, "items": items}}));
                list.push(bundle);
            }
        }
        json!({"name": "v", "projected": {"sources": sources}})
    }

    fn bundle(kind: &str, key: &str, file: &str) -> Value {
        json!({kind: {"name": "roots", "items": [{"key": key, "path": file}]}})
    }

    fn found(deployment: &Value, agents: &Value) -> Option<String> {
        let deployment: Option<Deployment> = serde_json::from_value(deployment.clone()).unwrap();
        let agents: Option<DaemonSet> = serde_json::from_value(agents.clone()).unwrap();
        place(deployment.as_ref(), agents.as_ref()).map(|place| format!("{} {} {}", place.kind, place.name, place.key))
    }

    #[test]
    fn the_volumes_of_the_pods_say_where_the_trusted_authorities_are() {
        let (server, remote, none) = (secret::SERVER, secret::REMOTE, Value::Null);
        let admin = volume(secret::ADMIN, SERVERS, Some(bundle("configMap", "other", SERVERS)));
        let own = pod(&json!([admin, volume(server, SERVERS, None)]));
        let with_map = Some(bundle("configMap", "ca.crt", SERVERS));
        assert_eq!(found(&own, &none), None);
        let map = pod(&json!([admin, volume(server, SERVERS, with_map)]));
        assert_eq!(found(&map, &none).unwrap(), "ConfigMap roots ca.crt");
        let with_secret = Some(bundle("secret", "roots.pem", SERVERS));
        let secret = pod(&json!([volume(server, SERVERS, with_secret)]));
        assert_eq!(found(&secret, &none).unwrap(), "Secret roots roots.pem");
        // A pod without a store, and a cluster without the pod.
        let mirror = pod(&json!([volume(
            remote,
            READERS,
            Some(bundle("configMap", "k", READERS))
        )]));
        assert_eq!(found(&mirror, &none).unwrap(), "ConfigMap roots k");
        assert_eq!(found(&none, &mirror).unwrap(), "ConfigMap roots k");
        assert_eq!(found(&own, &mirror), None);
        assert_eq!(found(&none, &none), None);
    }

    fn facts(secret: &Value, more: &Value) -> Facts {
        let mut facts = json!({"context": "tokyo", "namespace": "kube-system", "secrets": {secret::SERVER: secret}});
        facts.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(facts).unwrap()
    }

    #[test]
    fn who_writes_the_authorities_again_is_known_by_marks_writers_and_the_cronjob() {
        let of = |secret: Value, more: Value| renewer(&facts(&secret, &more)).map(|renewer| renewer.to_string());
        let none = json!({});
        let plain = json!({"metadata": {"name": "s"}});
        assert_eq!(of(plain.clone(), none.clone()), None);
        let ours = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "isthmus"}}});
        assert_eq!(of(ours, none.clone()), None);
        let helm = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}});
        assert_eq!(of(helm.clone(), none.clone()).unwrap(), "Helm");
        let manager = json!({"metadata": {"annotations": {CERT_MANAGER: "server"}}});
        assert_eq!(of(manager, none.clone()).unwrap(), "cert-manager (Certificate server)");
        let written = json!({"metadata": {"managedFields": [{"manager": "cilium-certgen", "operation": "Update"}]}});
        assert!(of(written.clone(), none).unwrap().contains("certgen"));
        assert!(of(plain, json!({"hasCertgen": true})).unwrap().contains(facts::CERTGEN));
        // A bundle stands for itself.
        let bundle = json!({"bundle": {"metadata": {"labels": {TRUST_MANAGER: "roots"}}}});
        assert_eq!(of(helm.clone(), bundle).unwrap(), "trust-manager (Bundle roots)");
        assert_eq!(of(helm, json!({"bundle": {"metadata": {}}, "hasCertgen": true})), None);
    }

    #[test]
    fn the_values_to_commit_keep_what_is_trusted_and_where_it_is() {
        let record: Record = {
            let data = json!({"hk": json!({"authorities": "THEIRS"}).to_string()});
            Record::read(&facts(&json!({}), &json!({"record": {"data": data}}))).unwrap()
        };
        let place = json!({"kind": "Secret", "name": "roots", "key": "k"});
        let facts = facts(&json!({}), &json!({"bundle": {"place": place, "pem": "OURS"}}));
        let parsed: Value = serde_saphyr::from_str(&values(&facts, &record)).unwrap();
        let expected =
            json!({"enabled": true, "name": "roots", "key": "k", "useSecret": true, "content": "OURS\nTHEIRS\n"});
        assert_eq!(parsed["tls"]["caBundle"], expected);
        assert_eq!(values(&facts, &Record::default()), "");
        let text = to_commit(&facts, &Renewer::TrustManager("roots".to_owned()), &record);
        let parsed: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(parsed["spec"]["sources"], json!([{"inLine": "THEIRS\n"}]));
    }
}
