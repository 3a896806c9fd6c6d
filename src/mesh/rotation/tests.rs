use super::*;
use crate::mesh::handshake::{self, Ends};
use crate::mesh::pki::{AuthMode, Material, Owner};

const REST: SignedDuration = SignedDuration::from_secs(120);

fn now() -> Timestamp {
    "2026-11-27T12:00:00Z".parse().unwrap()
}

/// A cluster with its Secrets, to which the work of each step is applied.
struct Simulated {
    cluster: Cluster,
    owner: Owner,
    keys: Vec<(Leaf, Material)>,
}

impl Simulated {
    fn new(name: &str, authority: &Authority) -> Self {
        let owner = Owner {
            cluster: name.to_owned(),
            namespace: "kube-system".to_owned(),
            auth_mode: AuthMode::Shared,
            extra_names: vec![],
        };
        let keys: Vec<_> = Leaf::ALL
            .into_iter()
            .map(|leaf| (leaf, authority.issue(&leaf.request(&owner), now()).unwrap()))
            .collect();
        let places = Leaf::ALL.into_iter().map(|leaf| Place {
            kind: PlaceKind::Secret,
            name: leaf.secret().to_owned(),
            key: "ca.crt".to_owned(),
            pem: authority.cert().to_owned(),
        });
        let cluster = Cluster {
            name: name.to_owned(),
            places: places.collect(),
            files: vec![ClientFile {
                secret: "cilium-clustermesh".to_owned(),
                key: "peer".to_owned(),
                text: "endpoints: [https://x]".to_owned(),
            }],
            leaves: keys
                .iter()
                .map(|(leaf, material)| (*leaf, material.cert.clone()))
                .collect(),
            authority: authority.cert().to_owned(),
        };
        Self { cluster, owner, keys }
    }

    fn apply(&mut self, work: &Work, new: &Authority) {
        for changed in &work.places {
            let place = self
                .cluster
                .places
                .iter_mut()
                .find(|p| p.name == changed.name && p.key == changed.key);
            *place.unwrap() = changed.clone();
        }
        for changed in &work.files {
            assert!(
                changed.text.starts_with("endpoints: [https://x]\n# trusts the CA "),
                "{changed:?}"
            );
            self.cluster.files = vec![changed.clone()];
        }
        for leaf in &work.leaves {
            let material = new.issue(&leaf.request(&self.owner), now()).unwrap();
            self.cluster.leaves.iter_mut().find(|(l, _)| l == leaf).unwrap().1 = material.cert.clone();
            self.keys.iter_mut().find(|(l, _)| l == leaf).unwrap().1 = material;
        }
        if work.authority {
            self.cluster.authority = new.cert().to_owned();
        }
    }

    fn material(&self, leaf: Leaf) -> &Material {
        &self.keys.iter().find(|(l, _)| *l == leaf).unwrap().1
    }

    fn trusts(&self, leaf: Leaf) -> &str {
        &self
            .cluster
            .places
            .iter()
            .find(|p| p.name == leaf.secret())
            .unwrap()
            .pem
    }
}

/// Whether the mirror of `client` gets a connection to the store of `server`.
fn connects(client: &Simulated, server: &Simulated) -> bool {
    let ends = Ends {
        server: server.material(Leaf::Server),
        server_name: &format!("{}.mesh.cilium.io", server.cluster.name),
        client: client.material(Leaf::Remote),
        client_trusts: client.trusts(Leaf::Remote),
        server_trusts: server.trusts(Leaf::Server),
    };
    handshake::attempt(&ends, now()).is_ok()
}

#[test]
fn clusters_accept_each_other_after_every_single_change_of_a_rotation() {
    let (old, new) = (
        Authority::generate("Cilium CA", now()).unwrap(),
        Authority::generate("Cilium CA", now()).unwrap(),
    );
    let rotation = Rotation::new(old.cert(), new.cert()).unwrap();
    let mut mesh = [Simulated::new("tokyo", &old), Simulated::new("hk", &old)];
    let mut steps = vec![];
    loop {
        let clusters: Vec<_> = mesh.iter().map(|one| one.cluster.clone()).collect();
        let step = rotation.due(&clusters);
        steps.push(step);
        if step == Step::Done {
            break;
        }
        for at in 0..mesh.len() {
            let work = rotation.work(step, &mesh[at].cluster);
            mesh[at].apply(&work, &new);
            let [tokyo, hk] = &mesh;
            assert!(connects(tokyo, hk) && connects(hk, tokyo), "{step:?} in cluster {at}");
        }
    }
    assert_eq!(
        steps,
        [Step::Trust, Step::Reload, Step::Issue, Step::Forget, Step::Done]
    );
    for one in &mesh {
        assert!(one.cluster.places.iter().all(|place| place.pem == new.cert()));
        assert_eq!(one.cluster.authority, new.cert());
    }
}

#[test]
fn a_rotation_that_was_interrupted_goes_on_where_it_was() {
    let (old, new) = (
        Authority::generate("Cilium CA", now()).unwrap(),
        Authority::generate("Cilium CA", now()).unwrap(),
    );
    let rotation = Rotation::new(old.cert(), new.cert()).unwrap();
    let (mut tokyo, hk) = (Simulated::new("tokyo", &old), Simulated::new("hk", &old));
    tokyo.apply(&rotation.work(Step::Trust, &tokyo.cluster), &new);
    let clusters = [tokyo.cluster.clone(), hk.cluster.clone()];
    assert_eq!(rotation.due(&clusters), Step::Trust);
    assert_eq!(rotation.work(Step::Trust, &tokyo.cluster), Work::default());
    assert_eq!(rotation.work(Step::Trust, &hk.cluster).places.len(), 4);
}

#[test]
fn places_that_trust_other_authorities_stay_as_they_are() {
    let [old, new, other] = ["old", "new", "other"].map(|name| Authority::generate(name, now()).unwrap());
    let rotation = Rotation::new(old.cert(), new.cert()).unwrap();
    let mut cluster = Simulated::new("tokyo", &old).cluster;
    cluster.places[0].pem = other.cert().to_owned();
    cluster.places[1].pem = pki::bundle(&[other.cert(), old.cert()]).unwrap();
    let work = rotation.work(Step::Trust, &cluster);
    assert_eq!(work.places.len(), 3);
    assert_eq!(
        work.places[0].pem,
        pki::bundle(&[other.cert(), old.cert(), new.cert()]).unwrap()
    );
    let forgotten = rotation.work(
        Step::Forget,
        &Cluster {
            places: work.places,
            ..cluster
        },
    );
    assert_eq!(
        forgotten.places[0].pem,
        pki::bundle(&[other.cert(), new.cert()]).unwrap()
    );
}

#[test]
fn a_step_rests_until_pods_have_read_their_secrets() {
    let rest = |now| Step::rest(self::now(), REST, now);
    assert_eq!(rest(now()), REST);
    assert_eq!(
        rest(now() + SignedDuration::from_secs(90)),
        SignedDuration::from_secs(30)
    );
    assert_eq!(rest(now() + SignedDuration::from_hours(1)), SignedDuration::ZERO);
    // The clock of the machine that did the step was ahead.
    assert_eq!(rest(now() - SignedDuration::from_hours(1)), REST);
}

#[test]
fn certificates_near_their_end_and_without_a_wanted_name_are_renewed() {
    let authority = Authority::generate("Cilium CA", now()).unwrap();
    let leaves = Simulated::new("tokyo", &authority).cluster.leaves;
    let month = SignedDuration::from_hours(24 * 30);
    assert_eq!(leaves_to_renew(&leaves, &[], month, now()), []);
    let named = ["lb.example.com".to_owned()];
    assert_eq!(leaves_to_renew(&leaves, &named, month, now()), [Leaf::Server]);
    let late = now() + SignedDuration::from_hours(24 * 340);
    assert_eq!(leaves_to_renew(&leaves, &[], month, late), Leaf::ALL);
    assert!(outlives(&authority, pki::LEAF_LIFETIME, now()));
    assert!(!outlives(
        &authority,
        pki::LEAF_LIFETIME,
        now() + SignedDuration::from_hours(24 * 800)
    ));
}

#[test]
fn a_cluster_with_another_authority_changes_what_it_trusts_and_keeps_its_certificates() {
    let [old, new, other] = ["old", "new", "other"].map(|name| Authority::generate(name, now()).unwrap());
    let rotation = Rotation::new(old.cert(), new.cert()).unwrap();
    let mut hk = Simulated::new("hk", &other).cluster;
    for place in &mut hk.places {
        place.pem = pki::bundle(&[other.cert(), old.cert()]).unwrap();
    }
    assert_eq!(rotation.work(Step::Trust, &hk).places.len(), 4);
    assert_eq!(rotation.work(Step::Issue, &hk), Work::default());
}
