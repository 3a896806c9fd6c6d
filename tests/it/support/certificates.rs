//! The Secrets of the certificates of a mesh, as a chart makes them.

use isthmus::mesh::pki::{Authority, Leaf, Owner};

/// The keys of a Secret with their texts.
type Values = Vec<(&'static str, String)>;

/// The Secrets of the certificates of a cluster, which `authority` has issued, and that of the authority.
pub fn certificates(cluster: &str, authority: &Authority) -> Vec<(String, Values)> {
    let owner = Owner {
        cluster: cluster.to_owned(),
        namespace: "kube-system".to_owned(),
        ..Owner::default()
    };
    let issued = Leaf::ALL.into_iter().map(|leaf| {
        let made = authority.issue(&leaf.request(&owner), jiff::Timestamp::now()).unwrap();
        let values = vec![("tls.crt", made.cert), ("tls.key", made.key), ("ca.crt", made.ca)];
        (leaf.secret().to_owned(), values)
    });
    let own = vec![
        ("ca.crt", authority.cert().to_owned()),
        ("ca.key", authority.key().to_owned()),
    ];
    issued.chain([("cilium-ca".to_owned(), own)]).collect()
}
