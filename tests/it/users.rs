//! Proves which users a store has: those that `etcdinit` creates, and those that a users file lists, for `serve` and for
//! a publisher that writes into an etcd.

use crate::support::admin::Admin;
use crate::support::files::example;
use crate::support::store::{add_user, message, prefix};
use crate::support::tls::etcd;
use crate::support::{CommandLine, Process, Tls, eventually, http, isthmus};
use etcd_client::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn etcdinit(directory: &Path, flags: &[&str]) -> CommandLine {
    isthmus(["etcdinit"])
        .arg(format!("--etcd-data-dir={}", directory.display()))
        .args(flags)
}

/// Runs `etcdinit`, which must succeed, and returns its log.
fn initialized(directory: &Path, flags: &[&str]) -> String {
    let finished = etcdinit(directory, flags).run();
    let text = finished.text();
    assert!(finished.succeeded(), "{text}");
    text
}

/// Runs `etcdinit`, which must exit with 255, and returns the only line at level fatal.
fn refused(directory: &Path, flags: &[&str]) -> String {
    let finished = etcdinit(directory, flags).run();
    assert_eq!(finished.code, Some(255));
    let log = finished.stdout;
    let fatal: Vec<_> = log.lines().filter(|line| line.contains("level=fatal")).collect();
    assert_eq!(fatal.len(), 1, "{log}");
    fatal[0].to_owned()
}

/// Starts `etcd` with the flags of Cilium's Helm chart.
fn chart_etcd(tls: &Tls, directory: &Path) -> Process {
    let flags = [
        "--name=clustermesh-apiserver",
        "--initial-cluster-token=0de1-uid",
        "--auto-compaction-retention=1",
        "--enable-grpc-gateway=false",
        "--listen-metrics-urls=http://127.0.0.1:0",
        "--metrics=basic",
    ];
    etcd(tls)
        .arg(format!("--data-dir={}", directory.display()))
        .args(flags)
        .start()
}

/// Whether the client may read below `path`.
async fn may_read(client: &mut Client, path: &str) -> bool {
    loop {
        let error = match client.get(path, prefix()).await {
            Ok(_) => return true,
            Err(error) => error.to_string(),
        };
        match error {
            error if error.contains("etcdserver: permission denied") => return false,
            // The server closes the connection of a user that it has just refused. This client does not try again by itself.
            error if error.contains("connection closed") => {}
            error => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn etcd_serves_the_users_and_roles_that_etcdinit_creates() {
    let tls = Tls::new();
    let path = tls.path("data");
    fs::create_dir(&path).unwrap();
    let args = [
        "--cluster-name=tokyo",
        "--etcd-initial-cluster-token=0de1-uid",
        "--timeout=1m",
    ];
    let log = initialized(&path, &args);
    let options = [
        "cluster-name='tokyo'",
        "debug='false'",
        "etcd-cluster-name='clustermesh-apiserver'",
        &format!("etcd-data-dir='{}'", path.display()),
        "etcd-initial-cluster-token='0de1-uid'",
        "timeout='1m0s'",
    ];
    let lines: Vec<_> = log.lines().collect();
    for (line, option) in lines.iter().zip(options) {
        let message = format!("level=info msg=\"  --{option}\" subsys=etcdinit");
        assert!(line.contains(&message), "{message} is not in {line}");
    }
    assert!(lines[options.len()].contains("version="), "{log}");

    let server = chart_etcd(&tls, &path);
    let address = server.address().await;
    let mut admin = tls.client(&address, "admin-tokyo").await;
    let users = admin.user_list().await.unwrap();
    assert_eq!(users.users(), ["admin-tokyo", "local-tokyo", "remote", "root"]);
    assert_eq!(admin.role_list().await.unwrap().roles(), ["local", "remote"]);
    for (role, ranges) in [
        (
            "local",
            [
                ("cilium/.heartbeat", "cilium/.heartbeau"),
                ("cilium/cache/", "cilium/cache0"),
                ("cilium/cluster-config/", "cilium/cluster-config0"),
                ("cilium/synced/", "cilium/synced0"),
            ],
        ),
        (
            "remote",
            [
                ("cilium/.heartbeat", "cilium/.heartbeau"),
                ("cilium/cluster-config/tokyo", ""),
                ("cilium/state/", "cilium/state0"),
                ("cilium/synced/tokyo/", "cilium/synced/tokyo0"),
            ],
        ),
    ] {
        let permissions = admin.role_get(role).await.unwrap().permissions();
        assert!(
            permissions.iter().all(|p| p.get_type() == PermissionType::Read as i32),
            "{role}"
        );
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let found: Vec<_> = permissions
            .iter()
            .map(|p| (text(p.key()), text(p.range_end())))
            .collect();
        assert_eq!(
            found,
            ranges.map(|(key, end)| (key.to_owned(), end.to_owned())),
            "{role}"
        );
    }
    let status = admin.status().await.unwrap();
    let first = (
        status.header().unwrap().cluster_id(),
        status.header().unwrap().revision(),
    );
    assert_eq!(first.1, 1, "etcdinit must not create keys");
    let metrics = server.line("serving metrics and health").await;
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    let url = format!("http://{}/metrics", metrics["address"].as_str().unwrap());
    let text = http::get(&url).await.unwrap().body;
    assert!(
        text.contains("\netcd_debugging_auth_revision 19\n"),
        "the auth revision differs from that after Cilium's etcdinit"
    );

    admin.put("cilium/state/nodes/v1/tokyo/n1", "1", None).await.unwrap();
    let mut remote = tls.client(&address, "remote").await;
    assert!(may_read(&mut remote, "cilium/state/").await && !may_read(&mut remote, "cilium/cache/").await);
    let mut local = tls.client(&address, "local-tokyo").await;
    assert!(may_read(&mut local, "cilium/cache/").await && !may_read(&mut local, "cilium/state/").await);
    assert!(!may_read(&mut tls.client(&address, "remote-hk").await, "cilium/state/").await);

    let error = refused(&path, &args);
    assert!(error.contains("--etcd-data-dir") && error.contains("in use"), "{error}");
    assert!(
        may_read(&mut remote, "cilium/state/").await,
        "etcdinit must not touch a directory in use"
    );
    server.terminate().await;
    // An init container that runs again makes a new store, with a cluster id that tells it from the old one.
    initialized(&path, &args);
    let server = chart_etcd(&tls, &path);
    let mut admin = tls.client(&server.address().await, "admin-tokyo").await;
    let found = admin.get("cilium/", prefix()).await.unwrap();
    assert_eq!((found.count(), found.header().unwrap().revision()), (0, 1));
    assert_ne!(found.header().unwrap().cluster_id(), first.0);
}

#[test]
fn etcdinit_refuses_invalid_settings_and_directories_with_foreign_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let error = refused(&path, &[]);
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    let error = refused(&path, &["--cluster-name=Tokyo_1"]);
    assert!(error.contains("--cluster-name=Tokyo_1"), "{error}");
    assert!(refused(&path, &["--timeout=0s"]).contains("--timeout=0s"));
    assert_eq!(
        fs::read_dir(&path).unwrap().count(),
        0,
        "a refused etcdinit must not touch the directory"
    );
    initialized(&path, &[]);
    fs::write(path.join("thesis.odt"), "years of work").unwrap();
    let error = refused(&path, &[]);
    assert!(error.contains("thesis.odt") && error.lines().count() == 1, "{error}");
    assert!(path.join("store/identity").exists() && path.join("thesis.odt").exists());
    fs::remove_file(path.join("thesis.odt")).unwrap();
    fs::create_dir_all(path.join("member/snap")).unwrap();
    fs::create_dir(path.join("lost+found")).unwrap();
    let with_variables = isthmus(["etcdinit"])
        .env("CILIUM_ETCD_DATA_DIR", &path)
        .env("CILIUM_DEBUG", "true")
        .run();
    assert!(with_variables.succeeded(), "flags may come from variables");
    assert!(!path.join("member").exists() && path.join("lost+found").exists());
}

/// A mounted ConfigMap with `users.yaml`. As in Kubernetes, the file is a link through the link `..data`, and an update
/// replaces `..data`.
struct ConfigMap {
    directory: PathBuf,
    version: u32,
}

impl ConfigMap {
    fn new(tls: &Tls) -> Self {
        let directory = tls.path("etcd-config");
        fs::create_dir(&directory).unwrap();
        symlink("..data/users.yaml", directory.join("users.yaml")).unwrap();
        Self { directory, version: 0 }
    }

    fn flags(&self) -> [String; 2] {
        let path = self.directory.join("users.yaml");
        [
            "--cluster-users-enabled".to_owned(),
            format!("--cluster-users-config-path={}", path.display()),
        ]
    }

    fn set(&mut self, text: &str) {
        self.version += 1;
        let version = format!("..{}", self.version);
        let at = |name: &str| self.directory.join(name);
        fs::create_dir(at(&version)).unwrap();
        fs::write(at(&version).join("users.yaml"), text).unwrap();
        symlink(&version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    }

    fn list(&mut self, users: &[&str]) {
        let lines = users.iter().map(|user| format!("- name: {user}\n  role: remote\n"));
        self.set(&format!("users:\n{}", lines.collect::<String>()));
    }
}

/// A watch stream whose watcher the server has confirmed.
async fn watch(client: &mut Client, key: &str) -> WatchStream {
    let mut stream = client.watch(key, None).await.unwrap();
    assert!(message(&mut stream).await.created());
    stream
}

/// Waits until the client may read what its cluster publishes.
async fn is_admitted(client: &mut Client) {
    eventually("the user is admitted", async || {
        may_read(client, "cilium/state/").await.then_some(())
    })
    .await;
}

/// Waits until the client may no longer read what its cluster publishes.
async fn is_refused(client: &mut Client) {
    eventually("the user is refused", async || {
        (!may_read(client, "cilium/state/").await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn serve_admits_exactly_the_users_that_the_file_lists() {
    let tls = Tls::new();
    let mut map = ConfigMap::new(&tls);
    let admin_flag = Admin::new().health_flag();
    let users = map.flags();
    let serve = || {
        isthmus(["serve", "--cluster-name=hk-cluster", "--cluster-id=2"])
            .arg(format!("--manifests={}", example("hk-cluster").display()))
            .arg(format!("--data-dir={}", tls.path("data").display()))
            .arg(&admin_flag)
            .args(tls.flags())
            .args(&users)
            .start()
    };
    let first = serve();
    let address = first.address().await;
    first.line("the users file does not exist yet").await;
    let mut tokyo = tls.client(&address, "remote-tokyo").await;
    assert!(!may_read(&mut tokyo, "cilium/state/").await);
    map.list(&["remote-tokyo", "remote-osaka", "root"]);
    is_admitted(&mut tokyo).await;
    first.line("\\\"root\\\" is one of this cluster's own users").await;
    assert!(!may_read(&mut tokyo, "cilium/cache/").await);
    let error = tokyo.put("cilium/state/x", "1", None).await.unwrap_err().to_string();
    assert!(error.contains("permission denied"), "{error}");
    let mut osaka = tls.client(&address, "remote-osaka").await;
    is_admitted(&mut osaka).await;
    let mut admin = tls.client(&address, "admin-hk-cluster").await;
    let mut tokyos = watch(&mut tokyo, "cilium/state/x").await;
    let mut osakas = watch(&mut osaka, "cilium/state/x").await;
    admin.put("cilium/state/x", "1", None).await.unwrap();
    assert_eq!(message(&mut tokyos).await.events().len(), 1);

    map.list(&["remote-osaka"]);
    is_refused(&mut tokyo).await;
    assert!(may_read(&mut osaka, "cilium/state/").await);
    // Watches that the user began before are cancelled.
    admin.put("cilium/state/x", "2", None).await.unwrap();
    let ended = message(&mut tokyos).await;
    assert!(ended.canceled() && ended.events().is_empty());
    assert!(ended.cancel_reason().contains("permission denied"));
    let mut seen = vec![];
    while seen.len() < 2 {
        let message = message(&mut osakas).await;
        seen.extend(message.events().iter().map(|e| e.kv().unwrap().value().to_vec()));
    }
    assert_eq!(seen, [b"1", b"2"], "the watches of other users must continue");
    map.set("users: {");
    first.line("the users file is invalid or unreadable").await;
    assert!(
        may_read(&mut osaka, "cilium/state/").await,
        "an invalid file must not change users"
    );
    assert!(first.terminate().await.success());

    // The next process removes the users of an earlier file.
    map.list(&["remote-tokyo"]);
    let again = serve();
    let mut osaka = tls.client(&again.address().await, "remote-osaka").await;
    is_refused(&mut osaka).await;
    is_admitted(&mut tls.client(&again.address().await, "remote-tokyo").await).await;
    admin = tls.client(&again.address().await, "admin-hk-cluster").await;
    let own = ["admin-hk-cluster", "local-hk-cluster", "remote", "root"];
    let mut listed = vec!["remote-tokyo"];
    listed.extend(own);
    listed.sort_unstable();
    assert_eq!(admin.user_list().await.unwrap().users(), listed);
    map.list(&[]);
    eventually("an empty list removes all listed users", async || {
        (admin.user_list().await.unwrap().users() == own).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_publisher_manages_the_users_of_the_etcd_it_writes_to() {
    let tls = Tls::new();
    let mut map = ConfigMap::new(&tls);
    let path = tls.path("data");
    fs::create_dir(&path).unwrap();
    initialized(&path, &["--cluster-name=hk-cluster"]);
    let server = chart_etcd(&tls, &path);
    let address = server.address().await;
    let mut admin = tls.client(&address, "admin-hk-cluster").await;
    for user in ["remote-old", "alice"] {
        add_user(&mut admin, user).await;
        admin.user_grant_role(user, "remote").await.unwrap();
    }
    admin.user_grant_role("alice", "local").await.unwrap();
    let config = tls.path("etcd-config.yaml");
    tls.client_file(&config, &address, &tls.ca.client("admin", "admin-hk-cluster").unwrap());
    map.set("users:\n- {name: remote-lost, role: nothing}\n- {name: remote-tokyo, role: remote}\n- {name: alice, role: remote}\n");
    let users = map.flags();
    let publisher = isthmus(["clustermesh", "--cluster-name=hk-cluster", "--cluster-id=2"])
        .arg(format!("--manifests={}", example("hk-cluster").display()))
        .arg(Admin::new().health_flag())
        .arg(format!("--kvstore-opt=etcd.config={}", config.display()))
        .args(users)
        .start();
    let mut tokyo = tls.client(&address, "remote-tokyo").await;
    is_admitted(&mut tokyo).await;
    publisher.line("etcdserver: role name not found").await;
    eventually("the user that the file does not list is removed", async || {
        let users = admin.user_list().await.unwrap();
        (!users.users().contains(&"remote-old".to_owned())).then_some(())
    })
    .await;
    assert_eq!(
        admin.user_get("alice").await.unwrap().roles(),
        ["remote"],
        "the user must have exactly the listed role"
    );
    map.list(&[]);
    is_refused(&mut tokyo).await;
    assert!(!publisher.log().contains("has no effect"), "{}", publisher.log());
}

#[tokio::test]
async fn etcdinit_prepares_an_etcd_that_runs_and_the_replica_that_publishes_manages_its_users() {
    let tls = Tls::new();
    let mut map = ConfigMap::new(&tls);
    let server = etcd(&tls).start();
    let address = server.address().await;
    let file = tls.path("upstream.yaml");
    tls.client_file(&file, &address, &tls.ca.client("root", "root").unwrap());
    let prepare = || {
        isthmus(["etcdinit", "--cluster-name=hk-cluster"])
            .arg(format!("--etcd-config={}", file.display()))
            .run()
    };
    let prepared = prepare();
    assert!(prepared.succeeded(), "{}", prepared.text());
    let mut root = tls.client(&address, "root").await;
    let own = ["admin-hk-cluster", "local-hk-cluster", "remote", "root"];
    assert_eq!(root.user_list().await.unwrap().users(), own);
    let mut local = tls.client(&address, "local-hk-cluster").await;
    assert!(may_read(&mut local, "cilium/cache/").await && !may_read(&mut local, "cilium/state/").await);
    // A second time changes nothing: what somebody has added stays, and tokens stay valid.
    add_user(&mut root, "alice").await;
    let before = root.role_get("remote").await.unwrap();
    let again = prepare();
    assert!(again.succeeded(), "{}", again.text());
    let after = root.role_get("remote").await.unwrap();
    assert_eq!(before.permissions().len(), after.permissions().len());
    assert_eq!(before.header().unwrap().revision(), after.header().unwrap().revision());
    assert!(root.user_list().await.unwrap().users().contains(&"alice".to_owned()));
    let refused = isthmus(["etcdinit", "--timeout=1s", "--etcd-config=/nonexistent/upstream.yaml"]).run();
    assert_eq!(refused.code, Some(255));
    assert!(
        refused.text().contains("/nonexistent/upstream.yaml"),
        "{}",
        refused.text()
    );

    map.list(&["remote-tokyo"]);
    let replica = isthmus(["serve", "--cluster-name=hk-cluster", "--cluster-id=2"])
        .arg(format!("--manifests={}", example("hk-cluster").display()))
        .arg(format!("--follow={}", file.display()))
        .arg(Admin::new().health_flag())
        .args(tls.flags())
        .args(map.flags())
        .start();
    is_admitted(&mut tls.client(&replica.address().await, "remote-tokyo").await).await;
    map.list(&[]);
    eventually("the user that the file does not list is removed", async || {
        let users = root.user_list().await.unwrap();
        (!users.users().contains(&"remote-tokyo".to_owned())).then_some(())
    })
    .await;
    let left = root.user_list().await.unwrap();
    assert!(own.iter().all(|own| left.users().contains(&(*own).to_owned())));
}
