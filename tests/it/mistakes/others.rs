//! Wrong command lines of the subcommands other than `serve`.

use super::{Mistake, mistake};

/// Mistakes of the other subcommands.
pub(super) const OTHERS: &[Mistake] = &[
    mistake("serv", 1, &["unknown command \"serv\"", "serve"]),
    mistake("snapshot save", 1, &["requires <FILE>", "snapshot save --help"]),
    mistake(
        "snapshot save DIR/x --endpoints=127.0.0.1:1",
        1,
        &["http://127.0.0.1:1", "refused", "store run there?"],
    ),
    mistake(
        "snapshot save DIR/x --endpoints=ftp://a:1",
        1,
        &["\"ftp://a:1\"", "https://HOST:PORT"],
    ),
    mistake(
        "snapshot save DIR/x --endpoints=https://a:1 --cacert=DIR/nowhere",
        1,
        &["DIR/nowhere", "No such file"],
    ),
    mistake(
        "snapshot save DIR/x --endpoints=https://a:1 --cacert=DIR/text",
        1,
        &["DIR/text", "certificate is needed"],
    ),
    mistake(
        "snapshot save DIR/x --endpoints=https://a:1 --cert=DIR/certs/server.crt",
        1,
        &["server.crt", "needs a key"],
    ),
    mistake("snapshot save DIR/x --user=root", 1, &["--user=root", "NAME:PASSWORD"]),
    mistake(
        "snapshot save DIR/nowhere/x",
        1,
        &["cannot write DIR/nowhere/x", "No such file"],
    ),
    mistake(
        "snapshot save DIR/x --data-dir=DIR/nowhere",
        1,
        &["DIR/nowhere", "check the path"],
    ),
    mistake(
        "snapshot restore DIR/nowhere --data-dir=DIR/r",
        1,
        &["DIR/nowhere", "No such file"],
    ),
    mistake(
        "snapshot restore DIR/text --data-dir=DIR/r",
        1,
        &["DIR/text", "not a bbolt file"],
    ),
    mistake(
        "snapshot restore DIR/text",
        1,
        &["\"data-dir\" not set", "snapshot restore --help"],
    ),
    mistake("snapshot status DIR/empty", 1, &["DIR/empty", "not a bbolt file"]),
    mistake(
        "snapshot status DIR/text -w xml",
        1,
        &["\"xml\"", "--write-out", "simple, table, json"],
    ),
    mistake("check", 1, &["requires <DATA_", "check --help"]),
    mistake(
        "check DIR/nowhere",
        1,
        &["DIR/nowhere holds no store", "check the path"],
    ),
    mistake("check DIR/text", 1, &["DIR/text holds no store", "check the path"]),
    mistake("dump DIR/certs", 1, &["DIR/certs holds no store", "check the path"]),
    mistake("dump --all DIR", 1, &["unknown flag: --all", "dump --help"]),
    mistake(
        "demo --manifests=DIR/text",
        1,
        &["DIR/text/tokyo-cluster", "--manifests"],
    ),
    mistake(
        "demo --timeout=3",
        1,
        &["unknown flag: --timeout", "Did you mean --timeout-secs?"],
    ),
    mistake("completion tcsh", 1, &["unknown command \"tcsh\"", "zsh"]),
    mistake("version --foo", 1, &["unknown flag: --foo"]),
    mistake(
        "etcdinit --etcd-data-dir=DIR/nowhere",
        255,
        &["--etcd-data-dir=DIR/nowhere", "make the directory first"],
    ),
    mistake(
        "etcdinit --etcd-data-dir=DIR/text",
        255,
        &["--etcd-data-dir=DIR/text", "Not a directory"],
    ),
    mistake("etcdinit --timeout=x", 1, &["\"x\"", "--timeout", "such as 30s"]),
    mistake(
        "clustermesh --cluster-name=a",
        255,
        &["ClusterID 0 is reserved", "--cluster-id"],
    ),
    mistake(
        "clustermesh --cluster-name=a --cluster-id=1",
        255,
        &["--kvstore-opt=etcd.config=FILE"],
    ),
    mistake(
        "clustermesh --cluster-name=a --cluster-id=1 --kvstore-opt=x",
        255,
        &["--kvstore-opt", "key=value"],
    ),
    mistake(
        "kvstoremesh --cluster-name=a --cluster-id=1 --kvstore-opt=etcd.address=http://a:1",
        255,
        &["--clustermesh-config"],
    ),
    mistake(
        "kvstoremesh-dbg status --host=nowhere",
        1,
        &["\"nowhere\" has no port", "HOST:PORT"],
    ),
    mistake(
        "kvstoremesh-dbg status --host=127.0.0.1:1",
        1,
        &["is KVStoreMesh running", "127.0.0.1:1"],
    ),
    mistake(
        "kvstoremesh-dbg status -o xml",
        1,
        &["\"xml\"", "--output", "json, yaml"],
    ),
    mistake(
        "kvstoremesh-dbg troubleshoot --clustermesh-config=DIR/nowhere",
        0,
        &["open DIR/nowhere: no such file"],
    ),
    mistake(
        "clustermesh-dbg troubleshoot --etcd-config=DIR/text",
        0,
        &["DIR/text", "expected mapping"],
    ),
    mistake(
        "mcsapi-coredns-cfg --k8s-kubeconfig-path=DIR/nowhere",
        255,
        &["kubeconfig DIR/nowhere", "No such file"],
    ),
    mistake(
        "etcd --data-dir=DIR/text",
        1,
        &["DIR/text", "is a file, and a directory is needed"],
    ),
    mistake(
        "etcd --config-file=DIR/nowhere",
        1,
        &["config file DIR/nowhere", "No such file"],
    ),
    mistake(
        "etcd --config-file=DIR/text",
        1,
        &["config file DIR/text", "line 1 column 1"],
    ),
    mistake(
        "etcd --listen-client-urls=https://127.0.0.1:0 --advertise-client-urls=https://127.0.0.1:1",
        1,
        &["https://127.0.0.1:0", "--cert-file and --key-file"],
    ),
    mistake("loadtest --prefix=/", 1, &["--prefix is empty", "isthmus/loadtest"]),
    mistake(
        "loadtest --prefix=cilium/cluster-config/",
        1,
        &["--prefix=cilium/cluster-config", "outside of cilium/"],
    ),
    mistake(
        "loadtest --endpoints=127.0.0.1:1",
        1,
        &["http://127.0.0.1:1", "refused", "does a store run there?"],
    ),
    mistake(
        "loadtest merge DIR/text --report=DIR/text",
        1,
        &["--report=DIR/text would overwrite DIR/text", "another file"],
    ),
    mistake(
        "loadtest --report=DIR/r --output=DIR/r",
        1,
        &["--report and --output", "DIR/r", "two files"],
    ),
    mistake(
        "loadtest --report=DIR/text --client-config=DIR/text",
        1,
        &["DIR/text", "etcd client configuration"],
    ),
    mistake(
        "loadtest --cacert=DIR/certs/server.crt --output=DIR/certs/server.crt",
        1,
        &["--output=DIR/certs/server.crt would overwrite"],
    ),
    mistake(
        "loadtest merge DIR/empty",
        1,
        &["DIR/empty", "`loadtest --output` or `--json`"],
    ),
    mistake("etcd --quota-backend-bytes=big", 2, &["'big'", "--quota-backend-bytes"]),
];
