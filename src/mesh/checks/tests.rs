use super::*;
use crate::mesh::pki::{AuthMode, Authority, Leaf, LeafRequest, Owner};
use jiff::SignedDuration;

fn now() -> Timestamp {
    "2026-11-27T12:00:00Z".parse().unwrap()
}

fn cluster(name: &str, id: u32, authority: &Authority) -> Profile {
    let owner = Owner {
        cluster: name.to_owned(),
        namespace: "kube-system".to_owned(),
        auth_mode: AuthMode::Shared,
        extra_names: vec![],
    };
    let issue = |leaf: Leaf| Some(authority.issue(&leaf.request(&owner), now()).unwrap());
    Profile {
        context: format!("{name}-context"),
        name: name.to_owned(),
        id: id.to_string(),
        max_clusters: 255,
        version: "1.20.2".to_owned(),
        modes: BTreeMap::from([
            ("routing-mode", "tunnel".to_owned()),
            ("tunnel-protocol", "vxlan".to_owned()),
        ]),
        pod_cidrs: vec![format!("10.{}.0.0/16", 200 + id).parse().unwrap()],
        nodes: BTreeMap::from([(format!("{name}-1"), vec![format!("10.13.{id}.4").parse().unwrap()])]),
        server: issue(Leaf::Server),
        remote: issue(Leaf::Remote),
        authority: Some(authority.cert().to_owned()),
        ..Profile::default()
    }
}

fn authority() -> Authority {
    Authority::generate("Cilium CA", now()).unwrap()
}

fn texts(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.what.as_str()).collect()
}

#[test]
fn two_clusters_of_one_authority_can_be_connected() {
    let authority = authority();
    let (tokyo, hk) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    assert_eq!(mesh(&[&tokyo, &hk], now()), vec![]);
}

#[test]
fn names_and_ids_are_checked_in_the_words_of_the_original() {
    let authority = authority();
    let (tokyo, hk) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    let found = |local: &Profile, remote: &Profile| {
        let findings = identities(local, remote);
        assert!(
            findings
                .iter()
                .all(|f| f.gravity == Gravity::Fatal && !f.remedy.is_empty())
        );
        findings.into_iter().map(|f| f.what).collect::<Vec<_>>()
    };
    let unnamed = Profile {
        name: "default".to_owned(),
        id: "0".to_owned(),
        ..hk.clone()
    };
    assert_eq!(
        found(&tokyo, &unnamed),
        ["remote cluster has non-unique name (default) and/or ID (0)"]
    );
    assert_eq!(
        found(&unnamed, &tokyo),
        ["local cluster has the default name (cluster name: default) and/or ID 0 (cluster ID: 0)"]
    );
    assert_eq!(
        found(
            &tokyo,
            &Profile {
                id: "two".to_owned(),
                ..hk.clone()
            }
        ),
        ["remote cluster has non-numeric cluster ID two. Only numeric values 1-255 are allowed"]
    );
    assert_eq!(
        found(
            &tokyo,
            &Profile {
                id: "300".to_owned(),
                max_clusters: 511,
                ..hk.clone()
            }
        ),
        [
            "remote cluster has cluster ID 300 out of acceptable range (1-255)",
            "remote and local clusters have different max connected clusters: 511 != 255"
        ]
    );
    assert_eq!(
        found(
            &tokyo,
            &Profile {
                name: "tokyo".to_owned(),
                id: "1".to_owned(),
                ..hk
            }
        ),
        [
            "remote and local cluster have the same, non-unique name: tokyo",
            "remote and local cluster have the same, non-unique ID: 1"
        ]
    );
}

#[test]
fn names_that_cilium_refuses_are_refused() {
    let authority = authority();
    let (tokyo, mut hk) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    for name in ["Hong_Kong", "a/b", "x: y", &"h".repeat(33)] {
        hk.name = name.to_owned();
        for findings in [identities(&tokyo, &hk), identities(&hk, &tokyo), alone(&hk, now())] {
            let found = texts(&findings);
            assert!(
                found.iter().any(|text| text.contains("invalid cluster name")),
                "{name}: {found:?}"
            );
        }
    }
}

#[test]
fn ids_are_compared_in_the_whole_mesh() {
    let authority = authority();
    let (a, b, c) = (
        cluster("a", 1, &authority),
        cluster("b", 2, &authority),
        cluster("c", 2, &authority),
    );
    let findings = mesh(&[&a, &b, &c], now());
    let found = texts(&findings);
    assert!(
        found.contains(&"remote and local cluster have the same, non-unique ID: 2"),
        "{found:?}"
    );
}

#[test]
fn versions_may_be_one_minor_release_apart() {
    let authority = authority();
    let (new, mut old) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    for (version, is_fine) in [
        ("1.19.7", true),
        ("v1.20.0-rc.1", true),
        ("1.18.4", false),
        ("2.20.0", false),
        ("", true),
    ] {
        old.version = version.to_owned();
        assert_eq!(versions(&new, &old).is_none(), is_fine, "{version}");
    }
    old.version = "1.18.4".to_owned();
    assert_eq!(
        versions(&new, &old).unwrap().remedy,
        "upgrade Cilium in cluster hk first"
    );
}

#[test]
fn networks_that_overlap_are_found() {
    let authority = authority();
    let (tokyo, hk) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    let pods = Profile {
        pod_cidrs: vec!["10.201.64.0/18".parse().unwrap()],
        ..hk.clone()
    };
    assert_eq!(
        texts(&networks::overlaps(&tokyo, &pods)),
        ["the pod networks 10.201.0.0/16 of cluster tokyo and 10.201.64.0/18 of cluster hk overlap"]
    );
    let nodes = |ip: &str| Profile {
        nodes: BTreeMap::from([("hk-1".to_owned(), vec![ip.parse().unwrap()])]),
        ..hk.clone()
    };
    assert_eq!(
        texts(&networks::overlaps(&tokyo, &nodes("10.201.7.7"))),
        ["the address 10.201.7.7 of node hk-1 of cluster hk is in the pod network 10.201.0.0/16 of cluster tokyo"]
    );
    assert_eq!(
        texts(&networks::overlaps(&tokyo, &nodes("10.13.1.4"))),
        ["node tokyo-1 of cluster tokyo and node hk-1 of cluster hk have the same address 10.13.1.4"]
    );
}

#[test]
fn modes_must_be_equal() {
    let authority = authority();
    let (tokyo, mut hk) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    hk.modes.insert("tunnel-protocol", "geneve".to_owned());
    let findings = modes(&tokyo, &hk);
    assert!(
        findings[0]
            .what
            .starts_with("tunnel-protocol is vxlan in cluster tokyo and geneve in cluster hk: ")
    );
    assert_eq!(findings[0].gravity, Gravity::Fatal);
    // A setting that is unknown in one of the clusters is not compared.
    hk.modes.remove("tunnel-protocol");
    assert_eq!(modes(&tokyo, &hk), vec![]);
}

#[test]
fn different_authorities_are_seen_and_a_shared_bundle_heals_them() {
    let (one, other) = (authority(), authority());
    let (mut tokyo, mut hk) = (cluster("tokyo", 1, &one), cluster("hk", 2, &other));
    let findings = pair(&tokyo, &hk, now());
    let topics: Vec<_> = findings.iter().map(|f| (f.topic, f.gravity)).collect();
    assert_eq!(
        topics,
        [
            (Topic::Authority, Gravity::Warning),
            (Topic::Handshake, Gravity::Fatal),
            (Topic::Handshake, Gravity::Fatal)
        ]
    );
    assert!(
        findings[1]
            .what
            .starts_with("cluster tokyo does not accept the server certificate of cluster hk")
    );
    let bundle = pki::bundle(&[one.cert(), other.cert()]).unwrap();
    tokyo.bundle = Some(bundle.clone());
    // One cluster that trusts both is not enough: the other one's server refuses the client.
    let findings = pair(&tokyo, &hk, now());
    let failed: Vec<_> = findings.iter().filter(|f| f.topic == Topic::Handshake).collect();
    assert!(
        failed[0]
            .what
            .starts_with("cluster hk does not accept the client certificate of cluster tokyo"),
        "{failed:?}"
    );
    hk.bundle = Some(bundle);
    assert_eq!(pair(&tokyo, &hk, now()), []);
}

#[test]
fn certificates_that_expire_are_named_with_their_date() {
    let authority = authority();
    let (tokyo, hk) = (cluster("tokyo", 1, &authority), cluster("hk", 2, &authority));
    let soon = now() + SignedDuration::from_hours(24 * 345);
    let found = alone(&tokyo, soon);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        found[0].what,
        "Secret clustermesh-apiserver-server-cert of cluster tokyo, key tls.crt: the certificate of \
         \"CN=clustermesh-apiserver.kube-system.svc\" expires on 2027-11-27, in 20 days"
    );
    assert_eq!(found[0].gravity, Gravity::Warning);
    let late = now() + SignedDuration::from_hours(24 * 366);
    assert!(alone(&tokyo, late).iter().all(|f| f.gravity == Gravity::Fatal));
    let refused = pair(&tokyo, &hk, late);
    assert!(refused[0].what.ends_with("it has expired"), "{refused:?}");
}

#[test]
fn an_authority_in_a_bundle_that_ends_is_a_warning_and_the_key_that_nobody_reads_is_none() {
    let authority = authority();
    let mut tokyo = cluster("tokyo", 1, &authority);
    tokyo.server.as_mut().unwrap().ca = "nonsense".to_owned();
    tokyo.remote.as_mut().unwrap().ca = "nonsense".to_owned();
    assert_eq!(alone(&tokyo, now()).len(), 2);
    tokyo.bundle = Some(authority.cert().to_owned());
    assert_eq!(alone(&tokyo, now()), []);
    let late = now() + SignedDuration::from_hours(24 * 1096);
    let found = alone(&tokyo, late);
    let of_bundle: Vec<_> = found
        .iter()
        .filter(|f| f.what.starts_with("CA bundle of cluster tokyo"))
        .collect();
    assert_eq!(
        (of_bundle.len(), of_bundle[0].gravity),
        (1, Gravity::Warning),
        "{found:?}"
    );
    tokyo.bundle = Some("nonsense".to_owned());
    assert_eq!(alone(&tokyo, now())[0].gravity, Gravity::Fatal);
}

#[test]
fn a_host_name_that_the_certificate_lacks_is_named() {
    let mut tokyo = cluster("tokyo", 1, &authority());
    tokyo.hosts = vec!["192.0.2.7".to_owned(), "lb.example.com".to_owned()];
    let found = alone(&tokyo, now());
    assert!(found[0].what.contains("lb.example.com"), "{found:?}");
    assert!(
        found[0]
            .remedy
            .starts_with("add the name: certs rotate --context tokyo-context --add-name lb.example.com")
    );
    tokyo.hosts = vec!["tokyo.mesh.cilium.io".to_owned()];
    assert_eq!(alone(&tokyo, now()), vec![]);
}

#[test]
fn the_remedy_of_a_refused_certificate_follows_from_the_refusal() {
    let ca = authority();
    let (local, remote) = (cluster("tokyo", 1, &ca), cluster("hk", 2, &ca));
    let remedies = |remote: &Profile, now: Timestamp| -> Vec<String> {
        let found = pair(&local, remote, now);
        let refused = found.into_iter().filter(|finding| finding.topic == Topic::Handshake);
        refused.map(|finding| finding.remedy).collect()
    };
    assert_eq!(remedies(&remote, now()), [""; 0]);
    let later = now() + SignedDuration::from_hours(24 * 365 * 4);
    let expired = remedies(&remote, later);
    assert!(expired[0].contains("certs rotate --context hk-context"), "{expired:?}");
    let other = Profile {
        server: cluster("hk", 2, &authority()).server,
        ..remote.clone()
    };
    assert!(remedies(&other, now())[0].ends_with(SHARE));
    let owner = Owner {
        cluster: "hk".to_owned(),
        namespace: "kube-system".to_owned(),
        auth_mode: AuthMode::Shared,
        extra_names: vec![],
    };
    let request = LeafRequest {
        names: vec!["other.example.com".to_owned()],
        ..Leaf::Server.request(&owner)
    };
    let nameless = Profile {
        server: Some(ca.issue(&request, now()).unwrap()),
        ..remote.clone()
    };
    let found = remedies(&nameless, now());
    let expected = "add the name hk.mesh.cilium.io: certs rotate --context hk-context --add-name hk.mesh.cilium.io";
    assert_eq!(found, [expected]);
}
