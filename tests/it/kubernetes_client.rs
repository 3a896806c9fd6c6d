//! Proves that the client of the Kubernetes API does what client-go does: self-signed certificates, proxies, credential
//! plugins, and errors with their cause. Cases B2, B3, B4 and C1 from the field.

use crate::support::admin::Admin;
use crate::support::files::free_port;
use crate::support::kubernetes_api::{IDENTITIES, KubernetesApi, NODES};
use crate::support::kubernetes_client::{HIDDEN, Kubeconfig, Proxy, SelfSigned};
use crate::support::store::names;
use crate::support::tls::etcd;
use crate::support::{CommandLine, Process, Tls, eventually, isthmus};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A publisher of the cluster `c3` into the etcd at `store`.
fn publisher(tls: &Tls, store: &str, admin: &Admin) -> CommandLine {
    let config = tls.path("etcd.yaml");
    tls.client_file(&config, store, &tls.ca.client("admin", "admin").unwrap());
    isthmus(["clustermesh", "--cluster-name=c3", "--cluster-id=3"])
        .arg(format!("--kvstore-opt=etcd.config={}", config.display()))
        .args([admin.health_flag(), admin.metrics_flag()])
        .env("NO_PROXY", "")
}

/// Runs a publisher with this kubeconfig until it is ready.
async fn is_published(tls: &Tls, kubeconfig: &Kubeconfig<'_>, variables: &[(&str, &str)]) -> Process {
    let store = etcd(tls).start();
    let admin = Admin::new();
    let mut command = publisher(tls, &store.address().await, &admin)
        .arg(format!("--k8s-kubeconfig-path={}", kubeconfig.write(tls).display()));
    for (name, value) in variables {
        command = command.env(name, value);
    }
    let process = command.start();
    admin.ready().await;
    let mut client = tls.client(&store.address().await, "any").await;
    assert_eq!(names(&mut client, "cilium/state/nodes/v1/c3/").await, ["n1", "n2"]);
    process
}

/// Case C1.
#[tokio::test]
async fn an_api_with_a_self_signed_certificate_is_connected() {
    for is_ca in [false, true] {
        let api = KubernetesApi::with_golden_objects().await;
        let tls = Tls::new();
        let certificate = SelfSigned::new(&tls, is_ca);
        let address = api.serve_tls(&certificate).await;
        let kubeconfig = Kubeconfig {
            server: &format!("https://{address}"),
            ca: Some(&certificate),
            proxy: None,
            plugin: None,
        };
        is_published(&tls, &kubeconfig, &[]).await;
    }
}

/// Case B2.
#[tokio::test]
async fn proxies_are_used_and_exempted_as_in_go() {
    let api = KubernetesApi::with_golden_objects().await;
    let tls = Tls::new();
    let certificate = SelfSigned::new(&tls, true);
    let address = api.serve_tls(&certificate).await;
    let (http, socks) = (Proxy::http(address).await, Proxy::socks(address).await);
    let dead = format!("http://127.0.0.1:{}", free_port());
    let (direct, hidden) = (format!("https://{address}"), format!("https://{HIDDEN}:6443"));
    let (http_url, socks_url) = (
        format!("http://{}", http.address),
        format!("socks5://{}", socks.address),
    );
    let with = |server, proxy| Kubeconfig {
        server,
        ca: Some(&certificate),
        proxy,
        plugin: None,
    };
    // The environment names a proxy that nobody needs.
    let exempt = [("HTTPS_PROXY", &*dead), ("NO_PROXY", "10.0.0.0/8, 127.0.0.0/8")];
    is_published(&tls, &with(&direct, None), &exempt).await;
    // The environment names the proxy, with or without its protocol.
    is_published(&tls, &with(&hidden, None), &[("HTTPS_PROXY", &http_url)]).await;
    let without_scheme = http.address.to_string();
    is_published(&tls, &with(&hidden, None), &[("https_proxy", &without_scheme)]).await;
    is_published(&tls, &with(&hidden, None), &[("HTTPS_PROXY", &socks_url)]).await;
    // The kubeconfig names the proxy, whatever the environment says.
    let other = [("HTTPS_PROXY", &*dead), ("NO_PROXY", HIDDEN)];
    is_published(&tls, &with(&hidden, Some(&http_url)), &other).await;
    is_published(&tls, &with(&hidden, Some(&socks_url)), &other).await;
    let target = format!("{HIDDEN}:6443");
    for proxy in [http, socks] {
        let targets = proxy.targets();
        assert!(
            !targets.is_empty() && targets.iter().all(|t| *t == target),
            "{targets:?}"
        );
    }
}

/// A credential plugin that prints the token in a file, with this expiry or without.
struct Plugin {
    command: PathBuf,
    token: PathBuf,
}

impl Plugin {
    fn new(tls: &Tls, expiry: Option<&str>) -> Self {
        let (command, token) = (tls.path("plugin"), tls.path("token"));
        let expiry = expiry.map(|expiry| format!(",\"expirationTimestamp\":\"{expiry}\""));
        let script = format!(
            "#!/bin/sh\nprintf '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"%s\"{}}}}}' \"$(cat {})\"\n",
            expiry.unwrap_or_default(),
            token.display()
        );
        std::fs::write(&command, script).unwrap();
        std::fs::set_permissions(&command, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { command, token }
    }

    fn print(&self, token: &str) {
        std::fs::write(&self.token, token).unwrap();
    }
}

/// Case B3.
#[tokio::test]
async fn a_credential_plugin_runs_again_when_its_token_is_refused() {
    for expiry in [None, Some("2999-01-01T00:00:00Z")] {
        let api = KubernetesApi::with_golden_objects().await;
        api.require_token("one");
        let tls = Tls::new();
        let plugin = Plugin::new(&tls, expiry);
        plugin.print("one");
        let kubeconfig = Kubeconfig {
            server: &api.url,
            ca: None,
            proxy: None,
            plugin: Some(&plugin.command),
        };
        let store = etcd(&tls).start();
        let admin = Admin::new();
        let publisher = publisher(&tls, &store.address().await, &admin)
            .arg(format!("--k8s-kubeconfig-path={}", kubeconfig.write(&tls).display()))
            .start();
        admin.ready().await;
        let mut client = tls.client(&store.address().await, "any").await;
        plugin.print("two");
        api.require_token("two");
        api.delete_without_event(NODES, "n2");
        api.delete_without_event(IDENTITIES, "196915");
        let begun = tokio::time::Instant::now();
        for collection in [NODES, IDENTITIES] {
            api.expire_watches(collection);
        }
        eventually("the change is published", async || {
            let nodes = names(&mut client, "cilium/state/nodes/v1/c3/").await;
            let identities = names(&mut client, "cilium/state/identities/v1/id/196915").await;
            (nodes == ["n1"] && identities.is_empty()).then_some(())
        })
        .await;
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        let log = publisher.log();
        let renewals = log
            .lines()
            .filter(|line| line.contains("refused the credentials"))
            .count();
        assert_eq!(renewals, 1, "{log}");
        assert!(!log.contains("cannot watch this kind"), "{log}");

        // A plugin whose tokens are refused runs less and less often, and helps once it prints another one.
        api.require_token("three");
        api.apply(
            NODES,
            json!({"metadata": {"name": "n3", "resourceVersion": "11"}, "spec": {}}),
        );
        api.expire_watches(NODES);
        publisher.line("cannot watch this kind").await;
        plugin.print("three");
        eventually("the watch works again", async || {
            (names(&mut client, "cilium/state/nodes/v1/c3/").await == ["n1", "n3"]).then_some(())
        })
        .await;
    }
}

/// Case B4.
#[tokio::test]
async fn a_failed_connection_names_its_cause() {
    let api = KubernetesApi::with_golden_objects().await;
    let tls = Tls::new();
    let certificate = SelfSigned::new(&tls, false);
    let address = api.serve_tls(&certificate).await;
    let closed = format!("https://127.0.0.1:{}", free_port());
    let (secure, hidden) = (format!("https://{address}"), format!("https://{HIDDEN}:6443"));
    let dead = format!("http://127.0.0.1:{}", free_port());
    let store = etcd(&tls).start();
    let store_at = store.address().await;
    let cases = [
        (&closed, None, "Connection refused"),
        (&secure, None, "UnknownIssuer"),
        (&hidden, None, "failed to lookup address information"),
        (&hidden, Some(&dead), "Connection refused"),
    ];
    for (server, proxy, cause) in cases {
        let kubeconfig = Kubeconfig {
            server,
            ca: None,
            proxy: proxy.map(|proxy| &**proxy),
            plugin: None,
        };
        let publisher = publisher(&tls, &store_at, &Admin::new())
            .arg(format!("--k8s-kubeconfig-path={}", kubeconfig.write(&tls).display()))
            .start();
        let line = publisher.line("cannot reach the Kubernetes API").await;
        assert!(line.contains(cause), "{line}");
        assert!(!line.contains("client error (Connect)"), "{line}");
    }
}
