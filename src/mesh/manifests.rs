//! The objects of our own deployment, adapted to one cluster. They are those of `deploy/kustomize`, which a test compares
//! with the Helm chart.

use super::facts::{APISERVER, MANAGED_BY, MANAGER, MIRROR};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::{Value, json};

/// The manifests, in the order in which they are applied; the Deployment is the last one.
const BASE: [&str; 7] = [
    include_str!("../../deploy/kustomize/base/service-account.yaml"),
    include_str!("../../deploy/kustomize/base/cluster-role.yaml"),
    include_str!("../../deploy/kustomize/base/cluster-role-binding.yaml"),
    include_str!("../../deploy/kustomize/base/service.yaml"),
    include_str!("../../deploy/kustomize/base/metrics-service.yaml"),
    include_str!("../../deploy/kustomize/base/pod-disruption-budget.yaml"),
    include_str!("../../deploy/kustomize/base/deployment.yaml"),
];
/// The claim of a persistent store.
const CLAIM: &str = include_str!("../../deploy/kustomize/components/persistent/claim.yaml");
/// The volume of the data, and the variable with its directory.
const DATA: &str = "etcd-data-dir";
const DATA_VARIABLE: &str = "CILIUM_DATA_DIR";
/// The volume of the client files, and the flag with its directory.
const CLIENT_FILES: &str = "kvstoremesh-secrets";
const CLIENT_FILES_FLAG: &str = "--clustermesh-config=";
/// The name of the container if it has no mirror.
const WITHOUT_MIRROR: &str = "apiserver";

/// Where the store keeps its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// In the memory of the process.
    Memory,
    /// On the disk of the node, as long as the pod lives.
    #[default]
    EmptyDir,
    /// On a persistent volume.
    Persistent,
}

/// How the store is reached by other clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// `NodePort`, `LoadBalancer` or `ClusterIP`.
    pub kind: String,
    /// The node port; 0 lets Kubernetes choose.
    pub node_port: u16,
    pub annotations: Vec<(String, String)>,
}

/// What differs from cluster to cluster.
#[derive(Clone, Debug)]
pub struct Options {
    pub namespace: String,
    /// The image; `None` for that of the manifests.
    pub image: Option<String>,
    pub replicas: u32,
    pub storage: Storage,
    pub has_mirror: bool,
    pub exposure: Exposure,
}

/// A manifest of this program cannot be read; a test reads all of them.
#[derive(Debug, thiserror::Error)]
#[error("a manifest of this program cannot be read: {0}")]
pub struct Broken(#[from] serde_saphyr::Error);

/// All objects, for server-side apply.
pub fn objects(options: &Options) -> Result<Vec<Value>, Broken> {
    let claim = (options.storage == Storage::Persistent).then_some(CLAIM);
    let texts = claim.into_iter().chain(BASE);
    let objects: Result<Vec<_>, Broken> = texts.map(parse).collect();
    let mut objects = objects?;
    for object in &mut objects {
        adapt(object, options);
    }
    Ok(objects)
}

/// Where a pod of these manifests keeps its data.
pub fn storage(pod: &PodSpec) -> Option<Storage> {
    let has_mirror_or_name = |container: &Container| [MIRROR, WITHOUT_MIRROR].contains(&&*container.name);
    pod.containers.iter().find(|container| has_mirror_or_name(container))?;
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == DATA);
    Some(match volume {
        None => Storage::Memory,
        Some(volume) if volume.persistent_volume_claim.is_some() => Storage::Persistent,
        Some(_) => Storage::EmptyDir,
    })
}

/// The namespace of the pods that a ClusterRoleBinding of these manifests gives their rights; `None` for other objects.
pub fn bound(object: &Value) -> Option<&str> {
    let is_binding = object["roleRef"]["kind"] == "ClusterRole" && object["roleRef"]["name"] == APISERVER;
    let mut subjects = object["subjects"].as_array().filter(|_| is_binding)?.iter();
    let account = subjects.find(|subject| subject["kind"] == "ServiceAccount" && subject["name"] == APISERVER)?;
    account["namespace"].as_str()
}

fn parse(text: &str) -> Result<Value, Broken> {
    // Kubernetes reads YAML 1.1, where 0400 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}

fn adapt(object: &mut Value, options: &Options) {
    object["metadata"]["labels"][MANAGED_BY] = json!(MANAGER);
    if object["metadata"].get("namespace").is_some() {
        object["metadata"]["namespace"] = json!(options.namespace);
    }
    let (kind, name) = (object["kind"].clone(), object["metadata"]["name"].clone());
    match (kind.as_str().unwrap_or_default(), name.as_str().unwrap_or_default()) {
        ("ClusterRoleBinding", _) => {
            for subject in object["subjects"].as_array_mut().into_iter().flatten() {
                subject["namespace"] = json!(options.namespace);
            }
        }
        ("Service", APISERVER) => expose(object, &options.exposure),
        ("Deployment", _) => deploy(&mut object["spec"], options),
        _ => {}
    }
}

fn expose(service: &mut Value, exposure: &Exposure) {
    service["spec"]["type"] = json!(exposure.kind);
    let port = &mut service["spec"]["ports"][0];
    match (&*exposure.kind, exposure.node_port) {
        ("NodePort", 1..) => port["nodePort"] = json!(exposure.node_port),
        _ => {
            let _ = port.as_object_mut().map(|port| port.remove("nodePort"));
        }
    }
    for (name, value) in &exposure.annotations {
        let notes = &mut service["metadata"]["annotations"];
        if notes.get(name).is_none() {
            notes[name] = json!(value);
        }
    }
}

fn deploy(spec: &mut Value, options: &Options) {
    spec["replicas"] = json!(options.replicas);
    let pod = &mut spec["template"]["spec"];
    let container = &mut pod["containers"][0];
    if let Some(image) = &options.image {
        container["image"] = json!(image);
    }
    if !options.has_mirror {
        container["name"] = json!(WITHOUT_MIRROR);
        retain(&mut container["args"], |arg| {
            !arg.as_str().unwrap_or_default().starts_with(CLIENT_FILES_FLAG)
        });
        without_volume(pod, CLIENT_FILES);
        let annotations = &mut spec["template"]["metadata"]["annotations"];
        annotations["kubectl.kubernetes.io/default-container"] = json!(WITHOUT_MIRROR);
    }
    match options.storage {
        Storage::EmptyDir => {}
        Storage::Memory => {
            let pod = &mut spec["template"]["spec"];
            retain(&mut pod["containers"][0]["env"], |variable| {
                variable["name"] != DATA_VARIABLE
            });
            without_volume(pod, DATA);
        }
        Storage::Persistent => {
            spec["strategy"] = json!({"type": "Recreate"});
            let volumes = spec["template"]["spec"]["volumes"].as_array_mut();
            for volume in volumes.into_iter().flatten().filter(|volume| volume["name"] == DATA) {
                *volume = json!({"name": DATA, "persistentVolumeClaim": {"claimName": APISERVER}});
            }
        }
    }
}

fn without_volume(pod: &mut Value, name: &str) {
    retain(&mut pod["volumes"], |volume| volume["name"] != name);
    retain(&mut pod["containers"][0]["volumeMounts"], |mount| mount["name"] != name);
}

fn retain(list: &mut Value, keep: impl Fn(&Value) -> bool) {
    if let Some(list) = list.as_array_mut() {
        list.retain(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(storage: Storage, has_mirror: bool, kind: &str) -> Options {
        Options {
            namespace: "cilium".to_owned(),
            image: Some("registry/isthmus:1".to_owned()),
            replicas: 2,
            storage,
            has_mirror,
            exposure: Exposure {
                kind: kind.to_owned(),
                node_port: 32379,
                annotations: vec![("a".to_owned(), "b".to_owned())],
            },
        }
    }

    fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
        objects.iter().find(|object| object["kind"] == kind).unwrap()
    }

    fn names(list: &Value) -> Vec<&str> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn the_manifests_are_adapted_to_the_cluster() {
        let objects = objects(&options(Storage::EmptyDir, true, "NodePort")).unwrap();
        assert!(
            objects
                .iter()
                .all(|object| object["metadata"]["labels"][MANAGED_BY] == MANAGER)
        );
        let deployment = find(&objects, "Deployment");
        assert_eq!(deployment["metadata"]["namespace"], "cilium");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], "registry/isthmus:1");
        assert_eq!(
            (&pod["containers"][0]["name"], &deployment["spec"]["replicas"]),
            (&json!(MIRROR), &json!(2))
        );
        // Octal in YAML, decimal in JSON.
        assert_eq!(pod["volumes"][0]["projected"]["defaultMode"], 0o400);
        let service = find(&objects, "Service");
        assert_eq!(service["spec"]["ports"][0]["nodePort"], 32379);
        assert_eq!(service["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            find(&objects, "ClusterRoleBinding")["subjects"][0]["namespace"],
            "cilium"
        );
        assert_eq!(objects.last().unwrap()["kind"], "Deployment");
        let service = super::objects(&options(Storage::EmptyDir, true, "ClusterIP")).unwrap();
        let service = find(&service, "Service");
        assert!(service["spec"]["ports"][0].get("nodePort").is_none() && service["spec"]["type"] == "ClusterIP");
    }

    #[test]
    fn storage_and_mirror_can_be_chosen() {
        let memory = objects(&options(Storage::Memory, false, "NodePort")).unwrap();
        let pod = &find(&memory, "Deployment")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["name"], WITHOUT_MIRROR);
        assert!(!container["args"].to_string().contains(CLIENT_FILES_FLAG));
        for list in [&pod["volumes"], &container["volumeMounts"]] {
            assert!(
                !names(list).contains(&DATA) && !names(list).contains(&CLIENT_FILES),
                "{list}"
            );
        }
        assert!(!names(&container["env"]).contains(&DATA_VARIABLE));
        let persistent = objects(&options(Storage::Persistent, true, "NodePort")).unwrap();
        assert_eq!(
            find(&persistent, "PersistentVolumeClaim")["metadata"]["namespace"],
            "cilium"
        );
        let spec = &find(&persistent, "Deployment")["spec"];
        assert_eq!(spec["strategy"], json!({"type": "Recreate"}));
        assert!(
            spec["template"]["spec"]["volumes"]
                .to_string()
                .contains("persistentVolumeClaim")
        );
    }
}
