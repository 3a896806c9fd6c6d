//! Wrong command lines of `mesh`, which need no API server.

use super::{Mistake, mistake};

/// Mistakes of `mesh`. `DIR/config` is a kubeconfig with the context `tokyo`, whose API server does not run.
pub(super) const MESH: &[Mistake] = &[
    mistake(
        "mesh statuss",
        1,
        &["unknown command \"statuss\"", "Did you mean status?"],
    ),
    mistake(
        "mesh status --context=nowhere --kubeconfig=DIR/config",
        1,
        &["context \"nowhere\" does not exist in DIR/config", "there are: tokyo"],
    ),
    mistake(
        "mesh status --kubeconfig=DIR/nowhere",
        1,
        &["cannot read the kubeconfig DIR/nowhere", "set --kubeconfig"],
    ),
    mistake(
        "mesh status --kubeconfig=DIR/config",
        1,
        &[
            "cannot get ConfigMap kube-system/cilium-config in context \"tokyo\"",
            "Connection refused",
            "is the API server of this context reachable",
        ],
    ),
    mistake(
        "mesh status --wait-duration=0s",
        1,
        &["--wait-duration must be longer than 0s"],
    ),
    mistake(
        "mesh status --wait-duration=3",
        1,
        &["\"3\" is not a duration", "such as 30s"],
    ),
    mistake("mesh status -o xml", 1, &["\"xml\"", "summary, json, yaml"]),
    mistake(
        "mesh status --destination-context=hk",
        1,
        &["unknown flag: --destination-context", "mesh status --help"],
    ),
    mistake(
        "mesh connect",
        1,
        &["\"destination-context\" not set", "mesh connect --help"],
    ),
    mistake(
        "mesh connect --print=yaml --destination-context=hk",
        1,
        &["\"yaml\"", "values, manifests"],
    ),
    mistake(
        "mesh disconnect --kubeconfig=DIR/config",
        1,
        &[
            "no destination context specified",
            "--destination-context",
            "--destination-name",
        ],
    ),
    mistake(
        "mesh enable --service-type=External",
        1,
        &["\"External\"", "LoadBalancer, NodePort, ClusterIP"],
    ),
    mistake(
        "mesh preflight --kubeconfig=DIR/config",
        1,
        &[
            "❌ tokyo: cannot get ConfigMap",
            "1 check: 1 failed",
            "check again once it answers",
        ],
    ),
    mistake(
        "mesh certs rotat",
        1,
        &["unknown command \"rotat\"", "Did you mean rotate?"],
    ),
];
