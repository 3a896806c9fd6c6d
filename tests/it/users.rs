//! Who may connect: the users that `etcdinit` makes, and those that a file lists.

use crate::support::{PATIENCE, Process, Tls, etcd, eventually, free_port};
use etcd_client::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `etcdinit` to its end.
fn etcdinit(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"))
        .arg("etcdinit")
        .arg(format!("--etcd-data-dir={}", directory.display()))
        .args(args)
        .output()
        .unwrap()
}

fn prepared(directory: &Path, args: &[&str]) -> String {
    let out = etcdinit(directory, args);
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    assert!(out.status.success(), "{text}");
    text
}

/// Why `etcdinit` ends with 255.
fn refused(directory: &Path, args: &[&str]) -> String {
    let out = etcdinit(directory, args);
    assert_eq!(out.status.code(), Some(255));
    let log = String::from_utf8(out.stdout).unwrap();
    let fatal: Vec<_> = log.lines().filter(|line| line.contains("level=fatal")).collect();
    assert_eq!(fatal.len(), 1, "{log}");
    fatal[0].to_owned()
}

/// Starts `etcd` as Cilium's chart does.
fn chart_etcd(tls: &Tls, directory: &Path) -> Process {
    let data = format!("--data-dir={}", directory.display());
    let flags = [
        &*data,
        "--name=clustermesh-apiserver",
        "--initial-cluster-token=0de1-uid",
        "--auto-compaction-retention=1",
        "--enable-grpc-gateway=false",
        "--listen-metrics-urls=http://127.0.0.1:0",
        "--metrics=basic",
    ];
    etcd(tls, &flags)
}

fn prefix() -> Option<GetOptions> {
    Some(GetOptions::new().with_prefix())
}

/// Whether the store answers, rather than deny.
async fn may(client: &mut Client, key: &str) -> bool {
    match client.get(key, prefix()).await {
        Ok(_) => true,
        Err(error) if error.to_string().contains("etcdserver: permission denied") => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn etcdinit_leaves_what_etcd_then_serves() {
    let tls = Tls::new();
    let path = tls.path("data");
    fs::create_dir(&path).unwrap();
    let args = [
        "--cluster-name=tokyo",
        "--etcd-initial-cluster-token=0de1-uid",
        "--timeout=1m",
    ];
    let log = prepared(&path, &args);
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

    let mut server = chart_etcd(&tls, &path);
    let address = server.address();
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
    assert_eq!(first.1, 1, "there are no keys");
    let metrics = server.line("metrics are here");
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    let url = format!("http://{}/metrics", metrics["address"].as_str().unwrap());
    let out = Command::new("curl").args(["-s", &url]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.contains("\netcd_debugging_auth_revision 19\n"),
        "as after etcd's own"
    );

    admin.put("cilium/state/nodes/v1/tokyo/n1", "1", None).await.unwrap();
    let mut remote = tls.client(&address, "remote").await;
    assert!(may(&mut remote, "cilium/state/").await && !may(&mut remote, "cilium/cache/").await);
    let mut local = tls.client(&address, "local-tokyo").await;
    assert!(may(&mut local, "cilium/cache/").await && !may(&mut local, "cilium/state/").await);
    assert!(!may(&mut tls.client(&address, "remote-hk").await, "cilium/state/").await);

    let error = refused(&path, &args);
    assert!(error.contains("--etcd-data-dir") && error.contains("in use"), "{error}");
    assert!(may(&mut remote, "cilium/state/").await, "it was let alone");
    server.signal("-TERM");
    server.ended().await;
    // An init container that is run again begins anew, and nobody can take it for what was there.
    prepared(&path, &args);
    let server = chart_etcd(&tls, &path);
    let mut admin = tls.client(&server.address(), "admin-tokyo").await;
    let found = admin.get("cilium/", prefix()).await.unwrap();
    assert_eq!((found.count(), found.header().unwrap().revision()), (0, 1));
    assert_ne!(found.header().unwrap().cluster_id(), first.0);
}

#[test]
fn etcdinit_refuses_what_it_cannot_do_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let error = refused(&path, &[]);
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(!path.exists());
    fs::create_dir(&path).unwrap();
    let error = refused(&path, &["--cluster-name=Tokyo_1"]);
    assert!(error.contains("--cluster-name=Tokyo_1"), "{error}");
    assert!(refused(&path, &["--timeout=0s"]).contains("--timeout=0s"));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing was touched");
    prepared(&path, &[]);
    fs::write(path.join("thesis.odt"), "years of work").unwrap();
    let error = refused(&path, &[]);
    assert!(error.contains("thesis.odt") && error.lines().count() == 1, "{error}");
    assert!(path.join("store/identity").exists() && path.join("thesis.odt").exists());
    fs::remove_file(path.join("thesis.odt")).unwrap();
    fs::create_dir_all(path.join("member/snap")).unwrap();
    fs::create_dir(path.join("lost+found")).unwrap();
    let empty = Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"))
        .arg("etcdinit")
        .envs([
            ("CILIUM_ETCD_DATA_DIR", path.as_os_str()),
            ("CILIUM_DEBUG", "true".as_ref()),
        ])
        .output()
        .unwrap();
    assert!(empty.status.success(), "flags come from variables, too");
    assert!(!path.join("member").exists() && path.join("lost+found").exists());
}

/// A mounted ConfigMap with `users.yaml`: a link through `..data`, which is swapped.
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

/// A watch that has begun.
async fn watch(client: &mut Client, key: &str) -> WatchStream {
    let mut stream = client.watch(key, None).await.unwrap();
    assert!(next(&mut stream).await.created());
    stream
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message());
    message.await.expect("a message").unwrap().unwrap()
}

/// Waits until the store answers so.
async fn becomes(client: &mut Client, allowed: bool) {
    eventually(if allowed { "allowed" } else { "refused" }, async || {
        (may(client, "cilium/state/").await == allowed).then_some(())
    })
    .await;
}

#[tokio::test]
async fn serve_lets_in_who_is_listed_and_nobody_else() {
    let tls = Tls::new();
    let mut map = ConfigMap::new(&tls);
    let data = format!("--data-dir={}", tls.path("data").display());
    let (flags, users, port) = (tls.flags(), map.flags(), format!("--health-port={}", free_port()));
    let mut args = vec![
        "serve",
        "--cluster-name=hk-cluster",
        "--cluster-id=2",
        &port,
        "--manifests=examples/tokyo-hk/hk-cluster",
        &data,
    ];
    args.extend(flags.iter().chain(&users).map(String::as_str));
    let mut first = Process::start(&args);
    let address = first.address();
    first.line("there is no users file yet");
    let mut tokyo = tls.client(&address, "remote-tokyo").await;
    assert!(!may(&mut tokyo, "cilium/state/").await);
    map.list(&["remote-tokyo", "remote-osaka", "root"]);
    becomes(&mut tokyo, true).await;
    first.line("\\\"root\\\" is a user of this cluster's own");
    assert!(!may(&mut tokyo, "cilium/cache/").await);
    let error = tokyo.put("cilium/state/x", "1", None).await.unwrap_err().to_string();
    assert!(error.contains("permission denied"), "{error}");
    let mut osaka = tls.client(&address, "remote-osaka").await;
    becomes(&mut osaka, true).await;
    let mut admin = tls.client(&address, "admin-hk-cluster").await;
    let mut tokyos = watch(&mut tokyo, "cilium/state/x").await;
    let mut osakas = watch(&mut osaka, "cilium/state/x").await;
    admin.put("cilium/state/x", "1", None).await.unwrap();
    assert_eq!(next(&mut tokyos).await.events().len(), 1);

    map.list(&["remote-osaka"]);
    becomes(&mut tokyo, false).await;
    assert!(may(&mut osaka, "cilium/state/").await);
    // What was begun before ends, too.
    admin.put("cilium/state/x", "2", None).await.unwrap();
    let ended = next(&mut tokyos).await;
    assert!(ended.canceled() && ended.events().is_empty());
    assert!(ended.cancel_reason().contains("permission denied"));
    let mut seen = vec![];
    while seen.len() < 2 {
        let message = next(&mut osakas).await;
        seen.extend(message.events().iter().map(|e| e.kv().unwrap().value().to_vec()));
    }
    assert_eq!(seen, [b"1", b"2"], "others go on");
    map.set("users: {");
    first.line("the users file is not as it should be");
    assert!(may(&mut osaka, "cilium/state/").await, "users stay as they are");
    first.signal("-TERM");
    assert!(first.ended().await.0.success());

    // What was listed before this process is taken back, too.
    map.list(&["remote-tokyo"]);
    let again = Process::start(&args);
    let mut osaka = tls.client(&again.address(), "remote-osaka").await;
    becomes(&mut osaka, false).await;
    becomes(&mut tls.client(&again.address(), "remote-tokyo").await, true).await;
    admin = tls.client(&again.address(), "admin-hk-cluster").await;
    let own = ["admin-hk-cluster", "local-hk-cluster", "remote", "root"];
    let mut listed = vec!["remote-tokyo"];
    listed.extend(own);
    listed.sort_unstable();
    assert_eq!(admin.user_list().await.unwrap().users(), listed);
    map.list(&[]);
    eventually("an empty list removes all", async || {
        (admin.user_list().await.unwrap().users() == own).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_publisher_keeps_the_users_of_the_etcd_it_writes_to() {
    let tls = Tls::new();
    let mut map = ConfigMap::new(&tls);
    let path = tls.path("data");
    fs::create_dir(&path).unwrap();
    prepared(&path, &["--cluster-name=hk-cluster"]);
    let server = chart_etcd(&tls, &path);
    let address = server.address();
    let mut admin = tls.client(&address, "admin-hk-cluster").await;
    for user in ["remote-old", "alice"] {
        let certificate = UserAddOptions::new().with_no_pwd();
        admin.user_add(user, "", Some(certificate)).await.unwrap();
        admin.user_grant_role(user, "remote").await.unwrap();
    }
    admin.user_grant_role("alice", "local").await.unwrap();
    let config = tls.path("etcd-config.yaml");
    tls.client_file(&config, &address, &tls.ca.client("admin", "admin-hk-cluster").unwrap());
    map.set("users:\n- {name: remote-lost, role: nothing}\n- {name: remote-tokyo, role: remote}\n- {name: alice, role: remote}\n");
    let users = map.flags();
    let publisher = Process::start(&[
        "clustermesh",
        "--cluster-name=hk-cluster",
        "--cluster-id=2",
        "--manifests=examples/tokyo-hk/hk-cluster",
        &format!("--health-port={}", free_port()),
        &format!("--kvstore-opt=etcd.config={}", config.display()),
        &users[0],
        &users[1],
    ]);
    let mut tokyo = tls.client(&address, "remote-tokyo").await;
    becomes(&mut tokyo, true).await;
    publisher.line("etcdserver: role name not found");
    eventually("the earlier user is gone", async || {
        let users = admin.user_list().await.unwrap();
        (!users.users().contains(&"remote-old".to_owned())).then_some(())
    })
    .await;
    assert_eq!(
        admin.user_get("alice").await.unwrap().roles(),
        ["remote"],
        "no more than it says"
    );
    map.list(&[]);
    becomes(&mut tokyo, false).await;
    assert!(!publisher.log().contains("has no effect"), "{}", publisher.log());
}
