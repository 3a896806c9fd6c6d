//! Proves that a remote cluster that forbids reading one kind of keys is mirrored without that kind: case D1 from the
//! field.

use crate::support::mesh::{Mirror, RemoteStore, mirrored, write_client_files};
use crate::support::store::add_user;
use crate::support::tls::etcd;
use crate::support::{Tls, eventually};
use etcd_client::{Client, Permission};
use serde_json::Value;

/// The permissions of the mirror's user at a remote store.
struct Reader {
    root: Client,
}

impl Reader {
    /// Enables authentication at `store`: the user `admin` may read `prefixes`.
    async fn new(tls: &Tls, store: &RemoteStore, prefixes: &[&str]) -> Self {
        let mut root = tls.client(&store.address(), "root").await;
        root.role_add("root").await.unwrap();
        root.role_add("reader").await.unwrap();
        for (user, role) in [("root", "root"), ("admin", "reader")] {
            add_user(&mut root, user).await;
            root.user_grant_role(user, role).await.unwrap();
        }
        let mut reader = Self { root };
        for prefix in prefixes {
            reader.allow(prefix).await;
        }
        reader.root.auth_enable().await.unwrap();
        reader
    }

    async fn allow(&mut self, prefix: &str) {
        let permission = Permission::read(prefix).with_prefix();
        self.root.role_grant_permission("reader", permission).await.unwrap();
    }

    async fn forbid(&mut self, prefix: &str) {
        let options = etcd_client::RoleRevokePermissionOptions::new().with_prefix();
        self.root
            .role_revoke_permission("reader", prefix, Some(options))
            .await
            .unwrap();
    }
}

/// The prefixes that the chart's role `remote` may read, but the services.
const ALL_BUT_SERVICES: [&str; 6] = [
    "cilium/.heartbeat",
    "cilium/cluster-config/",
    "cilium/synced/",
    "cilium/state/identities/",
    "cilium/state/ip/",
    "cilium/state/nodes/",
];

async fn status(mirror: &Mirror) -> Option<Value> {
    mirror.admin.clusters().await.into_iter().next()
}

#[tokio::test]
async fn a_forbidden_prefix_is_named_and_tried_again_while_the_others_are_mirrored() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    drop(source.fill(&tls, 1).await);
    let mut reader = Reader::new(&tls, &source, &ALL_BUT_SERVICES).await;
    let target = etcd(&tls).start();
    let address = target.address().await;
    write_client_files(&tls, &[&source]);
    let mirror = Mirror::start(&tls, &address, &[]);
    let mut local = tls.client(&address, "any").await;
    mirror.admin.ready().await;
    assert_eq!(mirrored(&mut local, "nodes", "hk/").await.len(), 10);
    assert_eq!(mirrored(&mut local, "ip", "hk/").await.len(), 10);
    let cluster = status(&mirror).await.unwrap();
    assert_eq!(cluster["connected"], true, "{cluster}");
    assert_eq!(cluster["ready"], Value::Null, "{cluster}");
    assert_eq!(
        (&cluster["synced"]["nodes"], &cluster["synced"]["services"]),
        (&Value::Bool(true), &Value::Null)
    );
    let text = cluster["status"].as_str().unwrap();
    let named = "the remote forbids reading cilium/state/services/v1/hk/: etcdserver: permission denied";
    assert!(text.contains(named), "{text}");
    let line = mirror.process.line("the remote cluster forbids reading a prefix").await;
    assert!(line.contains("cilium/state/services/v1/hk/"), "{line}");
    let series = |kind: &str| {
        format!("cilium_kvstoremesh_remote_cluster_kind_forbidden{{target_cluster=\"hk\",scope=\"{kind}/v1\"}}")
    };
    assert_eq!(mirror.admin.metric(&series("services")).await, Some(1.0));
    assert_eq!(mirror.admin.metric(&series("nodes")).await, Some(0.0));

    // The permission comes later, without a new connection.
    reader
        .root
        .put("cilium/state/services/v1/hk/ns/s", "service", None)
        .await
        .unwrap();
    reader.allow("cilium/state/services/").await;
    eventually("the services are mirrored", async || {
        let services = mirrored(&mut local, "services", "hk/").await;
        let ready = status(&mirror).await?["ready"] == true;
        (ready && services.len() == 1).then_some(())
    })
    .await;
    assert_eq!(status(&mirror).await.unwrap()["num-failures"], Value::Null);
    assert_eq!(mirror.admin.metric(&series("services")).await, Some(0.0));

    // A kind that is enabled later, and forbidden.
    reader
        .root
        .put(
            "cilium/cluster-config/hk",
            r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true}}"#,
            None,
        )
        .await
        .unwrap();
    eventually("the exports are named", async || {
        let cluster = status(&mirror).await?;
        let text = cluster["status"].as_str()?;
        text.contains("forbids reading cilium/state/serviceexports/v1/hk/")
            .then_some(())
    })
    .await;
    reader
        .root
        .put("cilium/state/nodes/v1/hk/n0", "changed", None)
        .await
        .unwrap();
    eventually("the nodes are followed", async || {
        (mirrored(&mut local, "nodes", "hk/").await["n0"] == "changed").then_some(())
    })
    .await;

    // A permission that is lost while the prefix is watched. The store cancels the watch with its next event.
    reader.forbid("cilium/state/nodes/").await;
    let key = "cilium/state/nodes/v1/hk/n0";
    reader.root.put(key, "hidden", None).await.unwrap();
    eventually("the nodes are named", async || {
        let cluster = status(&mirror).await?;
        let is_named = cluster["status"]
            .as_str()?
            .contains("forbids reading cilium/state/nodes/v1/hk/");
        (is_named && cluster["connected"] == true).then_some(())
    })
    .await;
    assert_eq!(mirrored(&mut local, "nodes", "hk/").await["n0"], "changed");
    reader.allow("cilium/state/nodes/").await;
    eventually("the nodes are followed again", async || {
        (mirrored(&mut local, "nodes", "hk/").await["n0"] == "hidden").then_some(())
    })
    .await;
}

#[tokio::test]
async fn forbidden_canaries_and_a_forbidden_configuration_are_named() {
    let tls = Tls::new();
    let source = RemoteStore::start(&tls, "hk").await;
    drop(source.fill(&tls, 1).await);
    let mut reader = Reader::new(&tls, &source, &ALL_BUT_SERVICES).await;
    reader.allow("cilium/state/services/").await;
    reader.forbid("cilium/synced/").await;
    reader.forbid("cilium/cluster-config/").await;
    let target = etcd(&tls).start();
    let address = target.address().await;
    write_client_files(&tls, &[&source]);
    let mirror = Mirror::start(&tls, &address, &[]);
    for keys in ["cilium/cluster-config/hk", "cilium/synced/hk/"] {
        eventually("the status names the keys", async || {
            let cluster = status(&mirror).await?;
            let text = cluster["status"].as_str()?;
            text.contains(&format!("the remote forbids reading {keys}: "))
                .then_some(())
        })
        .await;
        let prefix = keys.strip_suffix("hk").or_else(|| keys.strip_suffix("hk/"));
        reader.allow(prefix.unwrap()).await;
    }
    mirror.mirrors(1).await;
}
