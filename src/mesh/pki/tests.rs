use super::*;

fn now() -> Timestamp {
    "2026-11-27T12:00:00Z".parse().unwrap()
}

fn owner() -> Owner {
    Owner {
        cluster: "tokyo".to_owned(),
        namespace: "kube-system".to_owned(),
        auth_mode: AuthMode::Shared,
        extra_names: vec!["lb.example.com".to_owned(), "192.0.2.7".to_owned()],
    }
}

#[test]
fn certificates_have_the_names_and_ends_of_the_chart() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let ca = &certificates(authority.cert()).unwrap()[0];
    assert!(ca.is_authority && ca.subject == "CN=Cilium CA" && !ca.subject_key.is_empty());
    assert_eq!(ca.days_left(now()), 1095);
    let issue = |leaf: Leaf, owner: &Owner| {
        let material = authority.issue(&leaf.request(owner), now()).unwrap();
        assert_eq!(material.ca, authority.cert());
        certificates(&material.cert).unwrap().swap_remove(0)
    };
    let server = issue(Leaf::Server, &owner());
    assert_eq!(server.common_name, "clustermesh-apiserver.kube-system.svc");
    assert_eq!(
        server.names,
        [
            "clustermesh-apiserver.kube-system.svc",
            "*.mesh.cilium.io",
            "127.0.0.1",
            "::1",
            "lb.example.com",
            "192.0.2.7"
        ]
    );
    assert_eq!((server.days_left(now()), &server.authority_key), (365, &ca.subject_key));
    let names = [Leaf::Admin, Leaf::Remote, Leaf::Local].map(|leaf| issue(leaf, &owner()).common_name);
    assert_eq!(names, ["admin-tokyo", "remote", "local-tokyo"]);
    let per_cluster = Owner {
        auth_mode: AuthMode::PerCluster,
        ..owner()
    };
    assert_eq!(issue(Leaf::Remote, &per_cluster).common_name, "remote-tokyo");
}

#[test]
fn a_certificate_does_not_outlive_its_authority_and_an_expired_authority_issues_none() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let late = now() + SignedDuration::from_hours(24 * 1000);
    let material = authority.issue(&Leaf::Local.request(&owner()), late).unwrap();
    assert_eq!(
        certificates(&material.cert).unwrap()[0].not_after,
        authority.not_after()
    );
    let error = authority
        .issue(
            &Leaf::Local.request(&owner()),
            now() + SignedDuration::from_hours(24 * 1096),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the authority \"CN=Cilium CA\" expired on 2029-11-26"
    );
}

#[test]
fn an_authority_is_read_from_its_secret_and_a_wrong_key_is_named() {
    let (one, other) = (
        Authority::generate("one", now()).unwrap(),
        Authority::generate("other", now()).unwrap(),
    );
    assert!(Authority::parse(one.cert(), one.key()).is_ok());
    let error = |cert: &str, key: &str| Authority::parse(cert, key).unwrap_err().to_string();
    assert_eq!(
        error(one.cert(), other.key()),
        "the private key does not belong to the certificate of \"CN=one\""
    );
    let leaf = one.issue(&Leaf::Local.request(&owner()), now()).unwrap();
    assert_eq!(
        error(&leaf.cert, &leaf.key),
        "the certificate of \"CN=local-tokyo\" is not an authority's"
    );
    assert_eq!(error("", one.key()), "no certificate in PEM form");
}

/// The forms in which the chart (PKCS#1) and certgen (SEC1) keep the key of their authority.
#[test]
fn authorities_of_helm_and_certgen_can_issue() {
    for (cert, key) in [
        (
            include_str!("../../../tests/testdata/mesh/helm-ca.crt"),
            include_str!("../../../tests/testdata/mesh/helm-ca.key"),
        ),
        (
            include_str!("../../../tests/testdata/mesh/certgen-ca.crt"),
            include_str!("../../../tests/testdata/mesh/certgen-ca.key"),
        ),
    ] {
        let authority = Authority::parse(cert, key).unwrap();
        let material = authority.issue(&Leaf::Server.request(&owner()), now()).unwrap();
        let ends = crate::mesh::handshake::Ends {
            server: &material,
            server_name: "tokyo.mesh.cilium.io",
            client: &material,
            client_trusts: cert,
            server_trusts: cert,
        };
        assert_eq!(crate::mesh::handshake::attempt(&ends, now()), Ok(()));
    }
}

#[test]
fn bundles_have_each_certificate_once_and_refuse_what_cannot_be_read() {
    let (one, other) = (
        Authority::generate("one", now()).unwrap(),
        Authority::generate("other", now()).unwrap(),
    );
    let both = bundle(&[one.cert(), other.cert(), one.cert()]).unwrap();
    assert_eq!(certificates(&both).unwrap().len(), 2);
    assert!(contains(&both, one.cert()) && contains(&both, other.cert()));
    assert!(!contains(one.cert(), &both));
    assert!(
        bundle(&[
            one.cert(),
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        ])
        .is_err()
    );
}

#[test]
fn a_wildcard_stands_for_one_label() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let material = authority.issue(&Leaf::Server.request(&owner()), now()).unwrap();
    let server = certificates(&material.cert).unwrap().swap_remove(0);
    for (host, is_for) in [
        ("hk.mesh.cilium.io", true),
        ("HK.mesh.cilium.io.", true),
        ("a.hk.mesh.cilium.io", false),
        ("mesh.cilium.io", false),
        ("lb.example.com", true),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
    ] {
        assert_eq!(server.is_for(host), is_for, "{host}");
    }
}
