//! DNS that hangs or lies.

use super::status;
use crate::support::admin::Admin;
use crate::support::environment::Faults;
use crate::support::mesh::{Mirror, RemoteStore, client_files, mirrored, write_client_files};
use crate::support::tls::etcd;
use crate::support::{Tls, eventually};
use std::fs;

/// Remote clusters whose names are never resolved, each with three names: more names than a runtime has blocking
/// threads (512).
const HANGING: usize = 200;

#[tokio::test]
async fn names_that_hang_or_lie_affect_their_own_remote_clusters_only() {
    let (tls, faults, admin) = (Tls::new(), Faults::new(), Admin::new());
    let good = RemoteStore::start(&tls, "hk").await;
    let _source = good.fill(&tls, 1).await;
    let directory = client_files(&tls);
    for n in 0..HANGING {
        let text = format!("endpoints: [\"http://hangs-{n}-a\", \"http://hangs-{n}-b\", \"http://hangs-{n}-c\"]\n");
        fs::write(directory.join(format!("r{n}")), text).unwrap();
    }
    let address = format!("lies.example:{}", good.port);
    let pair = tls.ca.client("liar", "admin").unwrap();
    tls.client_file(&directory.join("liar"), &address, &pair);
    let target = etcd(&tls).start();
    let target_address = target.address().await;
    let mut command = Mirror::command(&tls, &target_address, &admin);
    for (name, value) in faults.variables() {
        command = command.env(name, value);
    }
    let mirror = command.start();
    eventually("all names are being resolved", async || {
        (status(&mirror, "Threads") > 3 * HANGING as u64).then_some(())
    })
    .await;
    // Finding and reading the client file is blocking work.
    write_client_files(&tls, &[&good]);
    let mut local = tls.client(&target_address, "any").await;
    eventually("the good cluster is mirrored", async || {
        (mirrored(&mut local, "nodes", "hk/").await.len() == 10).then_some(())
    })
    .await;
    eventually("the wrong host is refused by its certificate", async || {
        let log = mirror.log();
        let mut lines = log.lines().filter(|line| line.contains("cluster_name=liar"));
        lines.any(|line| line.contains("certificate")).then_some(())
    })
    .await;
    assert!(mirror.terminate().await.success());
}
