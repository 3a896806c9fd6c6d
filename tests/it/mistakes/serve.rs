//! Wrong command lines of `serve`.

use super::{Mistake, mistake};

/// Mistakes of `serve`, after the flags of a command line that works.
pub(super) const SERVE: &[Mistake] = &[
    mistake(
        "--cluster-id=0",
        1,
        &["ClusterID 0 is reserved", "--cluster-id", "1 to 255"],
    ),
    mistake("--cluster-id=300", 1, &["300 > 255", "--max-connected-clusters=511"]),
    mistake("--cluster-id=600", 1, &["600 > 255", "1 to 255"]),
    mistake(
        "--cluster-id=one",
        1,
        &["\"one\"", "--cluster-id", "not a whole number", "serve --help"],
    ),
    mistake(
        "--cluster-name=Tokyo_1",
        1,
        &["\"Tokyo_1\"", "lower case", "--cluster-name"],
    ),
    mistake(
        "--max-connected-clusters=300",
        1,
        &["--max-connected-clusters=300", "[255, 511]"],
    ),
    mistake(
        "--clusterid=2",
        1,
        &[
            "unknown flag: --clusterid",
            "Did you mean --cluster-id?",
            "serve --help",
        ],
    ),
    mistake("--history=10", 1, &["\"10\"", "--history", "such as 30s"]),
    mistake(
        "--health-port=localhost",
        1,
        &["--health-port", "\"localhost\"", "HOST:PORT"],
    ),
    mistake(
        "--prometheus-serve-addr=9962",
        1,
        &["--prometheus-serve-addr", "\"9962\" has no port", ":PORT"],
    ),
    mistake(
        "--manifests=DIR/nowhere",
        1,
        &["--manifests", "DIR/nowhere", "No such file"],
    ),
    mistake(
        "--manifests=DIR/text",
        1,
        &["--manifests", "DIR/text is a file, and a directory is needed"],
    ),
    mistake(
        "--clustermesh-config=DIR/nowhere",
        1,
        &["--clustermesh-config", "DIR/nowhere", "No such file"],
    ),
    mistake(
        "--clustermesh-config=DIR/text",
        1,
        &["--clustermesh-config", "DIR/text is a file"],
    ),
    mistake(
        "--data-dir=DIR/text",
        1,
        &["data directory DIR/text", "is a file, and a directory is needed"],
    ),
    mistake(
        "--cert-file=DIR/nowhere",
        1,
        &["--cert-file", "DIR/nowhere", "No such file"],
    ),
    mistake(
        "--cert-file=DIR",
        1,
        &["--cert-file", "DIR is a directory, and a file is needed"],
    ),
    mistake(
        "--cert-file=DIR/empty",
        1,
        &["--cert-file", "DIR/empty", "the file is empty"],
    ),
    mistake("--cert-file=DIR/text", 1, &["--cert-file", "DIR/text", "-----BEGIN"]),
    mistake(
        "--cert-file=DIR/certs/server.key",
        1,
        &["--cert-file", "a certificate is needed", "private key"],
    ),
    mistake(
        "--key-file=DIR/certs/server.crt",
        1,
        &["--key-file", "a private key is needed", "certificate"],
    ),
    mistake(
        "--key-file=DIR/certs/other.key",
        1,
        &["DIR/certs/other.key", "does not belong to", "server.crt"],
    ),
    mistake(
        "--trusted-ca-file=DIR/empty",
        1,
        &["--trusted-ca-file", "DIR/empty", "the file is empty"],
    ),
    mistake(
        "--listen-client-urls=127.0.0.1:0",
        1,
        &["--listen-client-urls", "must start with", "https://"],
    ),
    mistake(
        "--listen-client-urls=https://127.0.0.1:70000",
        1,
        &["--listen-client-urls", "65535", "\"70000\""],
    ),
    mistake(
        "--listen-client-urls=https://mesh.example:1",
        1,
        &["mesh.example", "IP address or localhost"],
    ),
    mistake(
        "--listen-client-urls=https://203.0.113.9:1",
        1,
        &["203.0.113.9", "an address of this machine"],
    ),
    mistake(
        "--k8s-kubeconfig-path=DIR/nowhere --enable-k8s",
        1,
        &["kubeconfig DIR/nowhere", "No such file"],
    ),
    mistake(
        "--k8s-kubeconfig-path=DIR/text --enable-k8s",
        1,
        &["kubeconfig DIR/text", "line 1 column 1"],
    ),
];
