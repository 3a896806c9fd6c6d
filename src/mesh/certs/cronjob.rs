//! A CronJob that issues certificates anew before they end, with no more rights than that takes.

use crate::mesh::facts::{self, MANAGED_BY, MANAGER, secret};
use serde_json::{Value, json};

/// The name of all objects.
pub const NAME: &str = "isthmus-certs";

/// The CronJob to make.
#[derive(Clone, Debug)]
pub struct Options {
    pub namespace: String,
    pub image: String,
    /// In the form of cron.
    pub schedule: String,
    /// Time before the end of a certificate at which it is issued anew, as `720h`.
    pub renew_before: String,
    /// Whether certificates that another tool renders are issued, too.
    pub adopt: bool,
}

/// The objects: ServiceAccount, Role, RoleBinding and CronJob.
pub fn objects(options: &Options) -> Vec<Value> {
    let meta = json!({
        "name": NAME,
        "namespace": options.namespace,
        "labels": {MANAGED_BY: MANAGER, "app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "cilium"},
    });
    let read: Vec<&str> = secret::ALL.to_vec();
    let written = [secret::SERVER, secret::ADMIN, secret::REMOTE, secret::LOCAL];
    let maps = [facts::CILIUM_CONFIG, facts::USERS, facts::RECORD];
    let rules = json!([
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": read, "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": written, "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": maps, "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": [facts::APISERVER], "verbs": ["get"]},
    ]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": options.namespace}],
        }),
        json!({
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": meta,
            "spec": {
                "schedule": options.schedule,
                "concurrencyPolicy": "Forbid",
                "jobTemplate": {"spec": {"backoffLimit": 3, "template": pod(options)}},
            },
        }),
    ]
}

fn pod(options: &Options) -> Value {
    let mut args = vec![
        "mesh".to_owned(),
        "certs".to_owned(),
        "rotate".to_owned(),
        format!("--namespace={}", options.namespace),
        format!("--renew-before={}", options.renew_before),
    ];
    if options.adopt {
        args.push("--adopt".to_owned());
    }
    json!({
        "metadata": {"labels": {"app.kubernetes.io/name": NAME}},
        "spec": {
            "serviceAccountName": NAME,
            "restartPolicy": "OnFailure",
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "certs",
                "image": options.image,
                "command": ["/usr/bin/clustermesh-apiserver"],
                "args": args,
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}
