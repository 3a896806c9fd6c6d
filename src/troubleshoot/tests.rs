use super::*;
use crate::app::certs::{Ca, Pair};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn text_of(path: &Path) -> String {
    let mut out = vec![];
    file(path, TIMEOUT, &mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

/// The output for a configuration.
async fn found(dir: &Path, config: &str) -> String {
    let path = dir.join("etcd.yaml");
    std::fs::write(&path, config).unwrap();
    text_of(&path).await
}

fn tls_files(ca: &Path, pair: &Pair) -> String {
    format!(
        "trusted-ca-file: {}\ncert-file: {}\nkey-file: {}\n",
        ca.display(),
        pair.cert.display(),
        pair.key.display()
    )
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let expected = format!(
        "📄 Configuration path: {0}\n❌ Cannot parse etcd configuration: open {0}: no such file or directory\n",
        absent.display()
    );
    assert_eq!(text_of(&absent).await, expected);
    let ca = Ca::new(dir.path(), "CA").unwrap();
    let (one, two) = (ca.client("one", "one").unwrap(), ca.client("two", "two").unwrap());
    let endpoint = "endpoints: ['https://127.0.0.1:1']\n";
    let mixed = Pair {
        cert: one.cert.clone(),
        key: two.key.clone(),
    };
    let text = found(dir.path(), &format!("{endpoint}{}", tls_files(&ca.path(), &mixed))).await;
    assert!(
        text.contains("configuration: tls: private key does not match public key\n"),
        "{text}"
    );
    let swapped = Pair {
        cert: one.key,
        key: one.cert,
    };
    let text = found(dir.path(), &format!("{endpoint}{}", tls_files(&ca.path(), &swapped))).await;
    assert!(text.contains("one.key holds no certificate\n"), "{text}");
    let text = found(
        dir.path(),
        &format!("{endpoint}trusted-ca-file: {}\n", absent.display()),
    )
    .await;
    assert!(text.contains("absent: no such file or directory\n"), "{text}");
    for broken in ["endpoints: [", "endpoints: 7", "cilium-host-aliases: [{hostname: a}]"] {
        let text = found(dir.path(), broken).await;
        assert!(text.contains("❌ Cannot parse etcd configuration: "), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}

#[tokio::test]
async fn nothing_configured_is_said_step_by_step() {
    let dir = tempfile::tempdir().unwrap();
    let text = found(dir.path(), "").await;
    let (_, text) = text.split_once('\n').unwrap();
    let expected = "
❌ No available endpoints

🔑 Digital certificates:
   ⚠️ Root CA unset: using system pool
   ⚠️ No available TLS client certificates

⚙️ Etcd client:
   ❌ Failed to create etcd client: etcdclient: no available endpoints
";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn an_endpoint_fails_at_the_first_step_that_does() {
    let dir = tempfile::tempdir().unwrap();
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    let hang_up = async {
        loop {
            let (mut stream, _) = plain.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1000]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = format!(
        "endpoints: ['https://{address}', 'https://{closed}', '{closed}', 'https://127.0.0.1', 'http://{address}']\n\
         username: joe\n"
    );
    let text = tokio::select! {
        text = found(dir.path(), &config) => text,
        () = hang_up => unreachable!(),
    };
    for expected in [
        format!(
            "   - https://{address}\n     ✅ TCP connection successfully established to {address}\n     ❌ Cannot establish TLS connection to {address}: tls: first record does not look like a TLS handshake\n"
        ),
        format!(
            "     ❌ Cannot establish TCP connection to {closed}: dial tcp {closed}: connect: connection refused\n"
        ),
        format!("     ❌ Cannot parse endpoint: parse \"{closed}\": missing protocol scheme\n"),
        "     ❌ Cannot establish TCP connection to 127.0.0.1: dial tcp: address 127.0.0.1: missing port in address\n"
            .to_owned(),
        format!("   - http://{address}\n     ✅ TCP connection successfully established to {address}\n\n"),
        "   ✅ Username set to joe, password is unset\n".to_owned(),
    ] {
        assert!(text.contains(&expected), "no {expected} in {text}");
    }
    assert!(!text.contains("Negotiated"), "{text}");
}

#[tokio::test]
async fn without_tls_an_https_endpoint_is_only_connected_to() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config =
        format!("endpoints: ['https://{address}']\ninsecure-transport: true\ncert-file: /absent\nkey-file: /absent\n");
    let text = found(dir.path(), &config).await;
    let expected = format!(
        "established to {address}\n\n🔑 Digital certificates:\n   ⚠️ TLS is off: insecure-transport is set\n\n⚙️ Etcd client:\n   ❌ Failed to "
    );
    assert!(text.contains(&expected), "{text}");
}

#[tokio::test]
async fn clusters_are_taken_from_a_directory_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::create_dir(dir.path().join("endpoints:")).unwrap();
    write("b", "endpoints: []");
    write("Bad_Name", "endpoints: []");
    write("a", "endpoints: [");
    write("noips", "endpoints: []\ncilium-host-aliases: [{hostname: x}]");
    write(
        "twice",
        "endpoints: []\ncilium-host-aliases: [{hostname: x, ips: [1.2.3.4]}, {hostname: x, ips: ['::1']}]",
    );
    write("ca.crt", "something else");
    let mut options = Mesh {
        directory: dir.path().to_owned(),
        clusters: vec![],
        local: Some("b".to_owned()),
        timeout: TIMEOUT,
    };
    let of = async |options: &Mesh| {
        let mut out = vec![];
        mesh(options, &mut out).await.unwrap();
        String::from_utf8(out).unwrap()
    };
    let text = of(&options).await;
    let heads: Vec<_> = text.lines().filter(|l| l.starts_with("Cluster")).collect();
    let clusters = ["Bad_Name", "a", "b", "noips", "twice"].map(|name| format!("Cluster {name:?}:"));
    assert_eq!(heads, clusters);
    for expected in [
        "Found 5 cluster configurations\n\nCluster \"Bad_Name\":\n❌ Invalid cluster name: must consist of lower case",
        "Cluster \"a\":\n❌ Could not parse Cilium config: failed to parse config file: ",
        "Cluster \"b\":\nℹ️  This entry corresponds to the local cluster\n📄 Configuration path: ",
        "config file: cilium-host-aliases entry for hostname \"x\" has no IPs\n",
        "config file: cilium-host-aliases has duplicate hostname \"x\"\n",
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    options.clusters = ["z", "", "b"].map(str::to_owned).to_vec();
    let text = of(&options).await;
    assert!(text.contains("\nTroubleshooting filtered subset of clusters: z, , b\n\nCluster \"\":\n❌ Invalid cluster name: must not be empty\n"), "{text}");
    assert!(text.contains("Cluster \"z\":\n❌ Configuration not found\n"), "{text}");
    options.directory = dir.path().join("absent");
    let expected = format!(
        "Unable to retrieve cluster configurations: open {}: no such file or directory\nThis is expected when Cluster Mesh is disabled\n",
        options.directory.display()
    );
    assert_eq!(of(&options).await, expected);
}
