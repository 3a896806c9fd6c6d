//! Replaces the authority of a mesh without an outage. Without IO.
//!
//! ```text
//! Trust   every place that trusts the old authority trusts the new one, too
//! Reload  client files change, so that agents, which read trusted authorities once for each client, make new clients
//! Issue   every certificate is issued anew by the new authority, which becomes `cilium-ca`
//! Forget  no place trusts the old authority any more
//! ```
//!
//! Each step is done in all clusters before the next one begins, and rests until running pods have read the change. Which
//! step is due follows from what the clusters hold, so that a rotation that was interrupted goes on.

use super::pki::{self, Authority, Certificate, Error, Leaf};
use jiff::{SignedDuration, Timestamp};

/// Begins the last line of a client file that was changed to be read again.
const MARK: &str = "# trusts the CA ";

/// A place where trusted authorities are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub kind: PlaceKind,
    pub name: String,
    pub key: String,
    /// The trusted certificates, PEM.
    pub pem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    Secret,
    ConfigMap,
    /// The entry of a peer in the record of this program.
    Record,
}

/// A client file of agents or of the mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFile {
    pub secret: String,
    pub key: String,
    pub text: String,
}

/// What a rotation sees of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    pub places: Vec<Place>,
    pub files: Vec<ClientFile>,
    /// `tls.crt` of each certificate's Secret.
    pub leaves: Vec<(Leaf, String)>,
    /// The certificate of `cilium-ca`, PEM.
    pub authority: String,
}

/// The old and the new authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    old: Certificate,
    new: Certificate,
}

/// A step of a rotation. Steps are done in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Trust,
    Reload,
    Issue,
    Forget,
    Done,
}

/// What a step changes in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Places with their new contents.
    pub places: Vec<Place>,
    /// Client files with their new contents.
    pub files: Vec<ClientFile>,
    /// Certificates to issue by the new authority.
    pub leaves: Vec<Leaf>,
    /// Whether `cilium-ca` becomes the new authority.
    pub authority: bool,
}

impl Step {
    /// What the step does, for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Trust => "every cluster trusts the new CA beside the old one",
            Self::Reload => "agents and mirrors read again what they trust",
            Self::Issue => "every certificate is issued anew by the new CA",
            Self::Forget => "no cluster trusts the old CA any more",
            Self::Done => "nothing is left to do",
        }
    }

    /// Time until the step can be done, if the one before was done at `before` and needs `rest` to be read everywhere.
    pub fn rest(before: Timestamp, rest: SignedDuration, now: Timestamp) -> SignedDuration {
        let (rest, limit) = (rest - now.duration_since(before), rest);
        // The time of the step may come from a machine whose clock is ahead.
        rest.clamp(SignedDuration::ZERO, limit)
    }
}

impl Rotation {
    /// A rotation from the first certificate of `old` to that of `new`, both PEM.
    pub fn new(old: &str, new: &str) -> Result<Self, Error> {
        let first = |pem: &str| Ok::<_, Error>(pki::certificates(pem)?.swap_remove(0));
        Ok(Self {
            old: first(old)?,
            new: first(new)?,
        })
    }

    /// The step that is due: the first one that some cluster has not done.
    pub fn due(&self, clusters: &[Cluster]) -> Step {
        let steps = [Step::Trust, Step::Reload, Step::Issue, Step::Forget];
        let is_due = |step: &Step| {
            clusters
                .iter()
                .any(|cluster| self.work(*step, cluster) != Work::default())
        };
        steps.into_iter().find(is_due).unwrap_or(Step::Done)
    }

    /// What `step` changes in `cluster`.
    pub fn work(&self, step: Step, cluster: &Cluster) -> Work {
        match step {
            Step::Trust => Work {
                places: self.changed(cluster, |all| self.trusting(all)),
                ..Work::default()
            },
            Step::Reload => Work {
                files: self.to_reload(cluster),
                ..Work::default()
            },
            Step::Issue => Work {
                leaves: self.to_issue(cluster),
                authority: self.has(&cluster.authority, &self.old) && !self.has(&cluster.authority, &self.new),
                ..Work::default()
            },
            Step::Forget => Work {
                places: self.changed(cluster, |all| self.forgetting(all)),
                ..Work::default()
            },
            Step::Done => Work::default(),
        }
    }

    fn has(&self, pem: &str, authority: &Certificate) -> bool {
        pki::certificates(pem).is_ok_and(|all| all.iter().any(|one| one.der == authority.der))
    }

    /// The places whose certificates `change` changes. A place that cannot be read is left as it is: a check has
    /// named it before.
    fn changed(&self, cluster: &Cluster, change: impl Fn(&[Certificate]) -> Option<Vec<Certificate>>) -> Vec<Place> {
        let change = |place: &Place| {
            let all = pki::certificates(&place.pem).ok()?;
            let pem = change(&all)?.iter().map(|one| pki::encode(&one.der)).collect();
            Some(Place { pem, ..place.clone() })
        };
        cluster.places.iter().filter_map(change).collect()
    }

    fn trusting(&self, all: &[Certificate]) -> Option<Vec<Certificate>> {
        let holds = |wanted: &Certificate| all.iter().any(|one| one.der == wanted.der);
        (holds(&self.old) && !holds(&self.new)).then(|| [all, std::slice::from_ref(&self.new)].concat())
    }

    fn forgetting(&self, all: &[Certificate]) -> Option<Vec<Certificate>> {
        let kept: Vec<_> = all.iter().filter(|one| one.der != self.old.der).cloned().collect();
        (kept.len() < all.len() && !kept.is_empty()).then_some(kept)
    }

    /// The client files without the mark of the new authority, marked. The mark is a comment: what a file says stays.
    fn to_reload(&self, cluster: &Cluster) -> Vec<ClientFile> {
        let key: String = self
            .new
            .subject_key
            .iter()
            .take(8)
            .map(|b| format!("{b:02x}"))
            .collect();
        let mark = format!("{MARK}{key}");
        let marked = |file: &ClientFile| {
            let lines = file.text.lines().filter(|line| !line.starts_with(MARK));
            let text: String = lines.map(|line| format!("{line}\n")).collect();
            ClientFile {
                text: format!("{text}{mark}\n"),
                ..file.clone()
            }
        };
        let unmarked = cluster
            .files
            .iter()
            .filter(|file| !file.text.lines().any(|line| line == mark));
        unmarked.map(marked).collect()
    }

    /// The certificates that the old authority has signed. Those of other authorities are not this rotation's.
    fn to_issue(&self, cluster: &Cluster) -> Vec<Leaf> {
        let is_old = |pem: &String| {
            let leaf = pki::certificates(pem).ok().and_then(|all| all.into_iter().next());
            leaf.is_some_and(|leaf| self.signed_by_old(&leaf))
        };
        let old = cluster.leaves.iter().filter(|(_, pem)| is_old(pem));
        old.map(|(leaf, _)| *leaf).collect()
    }

    fn signed_by_old(&self, leaf: &Certificate) -> bool {
        // Authorities may have the same name, and no identifiers of their keys: the signature tells.
        leaf.is_signed_by(&self.old) && !leaf.is_signed_by(&self.new)
    }
}

/// The certificates of `leaves` that `authority` has to issue anew, because they end within `before`, cannot be read, or
/// do not follow `names`, the names that the server certificate must have.
pub fn leaves_to_renew(
    leaves: &[(Leaf, String)],
    names: &[String],
    before: SignedDuration,
    now: Timestamp,
) -> Vec<Leaf> {
    let must = |(leaf, pem): &&(Leaf, String)| {
        let Some(certificate) = pki::certificates(pem).ok().and_then(|all| all.into_iter().next()) else {
            return true;
        };
        let lacks_name = *leaf == Leaf::Server && names.iter().any(|name| !certificate.is_for(name));
        certificate.not_after < now + before || lacks_name
    };
    leaves.iter().filter(must).map(|(leaf, _)| *leaf).collect()
}

/// Whether `authority` lives long enough for the certificates that it issues.
pub fn outlives(authority: &Authority, lifetime: SignedDuration, now: Timestamp) -> bool {
    authority.not_after() >= now + lifetime
}

#[cfg(test)]
mod tests;
