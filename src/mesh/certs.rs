//! The certificates of one cluster: which there are, who issues them, and how long they last. Without IO.

pub mod authority;
pub mod cronjob;
pub mod leaves;
pub mod store;

use super::facts::{self, BundleKind, Facts, secret};
use super::pki::{self, Certificate, Leaf, Owner};
use super::record::Record;
use super::rotation::{self, ClientFile, Place, PlaceKind};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

/// The annotation of Secrets that cert-manager issues.
const CERT_MANAGER: &str = "cert-manager.io/certificate-name";
/// A certificate with fewer days left is worth a warning.
const FEW_DAYS: i64 = super::checks::FEW_DAYS;

/// A certificate of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The kind of the object: a CA bundle may be a ConfigMap.
    pub kind: BundleKind,
    /// The name of the object.
    pub secret: String,
    pub key: String,
    pub subject: String,
    pub issuer: String,
    /// The last day, as `2026-11-27`.
    pub until: String,
    pub days_left: i64,
    /// Who issues the Secret, unless this program does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_by: Option<String>,
    /// What is wrong with the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The certificates of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    pub cluster: String,
    pub context: String,
    pub certificates: Vec<Row>,
    /// Secrets that a mesh needs and that are absent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// Who issues the certificate of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// cert-manager, for this Certificate. It undoes changes.
    CertManager(String),
    /// A tool that renders the Secret at each of its runs.
    Rendered(String),
    /// Nobody who would undo a change: certgen, this program, or an operator.
    Free,
}

// === impl Method ===

impl Method {
    /// The method of a Secret with this metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        let note = meta.annotations.as_ref().and_then(|notes| notes.get(CERT_MANAGER));
        if let Some(name) = note {
            return Self::CertManager(name.clone());
        }
        match facts::keeper(meta) {
            None | Some(facts::Keeper::Isthmus) => Self::Free,
            Some(keeper) => Self::Rendered(keeper.to_string()),
        }
    }

    pub fn name(&self) -> Option<String> {
        match self {
            Self::CertManager(name) => Some(format!("cert-manager (Certificate {name})")),
            Self::Rendered(by) => Some(by.clone()),
            Self::Free => None,
        }
    }
}

// === impl Inventory ===

impl Inventory {
    /// The certificates of a cluster.
    pub fn of(facts: &Facts, now: Timestamp) -> Self {
        let mut certificates = vec![];
        let mut missing = vec![];
        for name in [secret::CA].into_iter().chain(Leaf::ALL.map(Leaf::secret)) {
            let Some(secret) = facts.secrets.get(name) else {
                if is_needed(facts, name) {
                    missing.push(name.to_owned());
                }
                continue;
            };
            let method = Method::of(&secret.metadata);
            let keys = if name == secret::CA {
                vec!["ca.crt"]
            } else {
                vec!["tls.crt", "ca.crt"]
            };
            for key in keys {
                let text = facts.secret_text(name, key).unwrap_or_default();
                certificates.extend(rows(name, key, text, &method, now));
            }
            certificates.extend(misplaced_key(facts, name, &method));
        }
        for (name, key, text) in trusted_files(facts) {
            certificates.extend(rows(&name, &key, &text, &Method::Free, now));
        }
        if let Some(bundle) = &facts.bundle {
            let (place, method) = (&bundle.place, Method::of(&bundle.metadata));
            let found = rows(
                &place.name,
                &place.key,
                bundle.pem.as_deref().unwrap_or_default(),
                &method,
                now,
            );
            certificates.extend(found.into_iter().map(|row| Row {
                kind: place.kind,
                ..row
            }));
        }
        Self {
            cluster: facts.name().to_owned(),
            context: facts.context.clone(),
            certificates,
            missing,
        }
    }

    /// Whether a certificate is missing, unreadable, or at its end.
    pub fn is_wrong(&self) -> bool {
        self.certificates
            .iter()
            .any(|row| row.days_left < 0 || row.until.is_empty())
            || self.missing.iter().any(|name| name != secret::CA)
    }

    /// The inventory as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "🔑 Certificates of cluster {} (context {}):",
            self.cluster, self.context
        )];
        let heads = ["SECRET", "KEY", "CERTIFICATE OF", "ISSUED BY", "UNTIL", "DAYS LEFT"].map(str::to_owned);
        let cells = self.certificates.iter().map(|row| {
            [
                row.secret.clone(),
                row.key.clone(),
                row.subject.clone(),
                row.issuer.clone(),
                row.until.clone(),
                row.days_left.to_string(),
            ]
        });
        let table: Vec<_> = std::iter::once(heads).chain(cells).collect();
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        lines.extend(table.iter().map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            format!("  {}", cells.collect::<Vec<_>>().join("  "))
                .trim_end()
                .to_owned()
        }));
        for row in &self.certificates {
            let of = format!("{} {}, key {}", row.kind, row.secret, row.key);
            match (&row.problem, row.days_left) {
                (Some(problem), _) => lines.push(format!("❌ {of}: {problem}")),
                (None, ..0) => lines.push(format!("❌ {of}: {} expired on {}", row.subject, row.until)),
                (None, 0..FEW_DAYS) => {
                    lines.push(format!("⚠️  {of}: {} expires in {} days", row.subject, row.days_left))
                }
                (None, _) => {}
            }
        }
        for name in &self.missing {
            lines.push(match name == secret::CA {
                true => format!("ℹ️  Secret {name} is absent: certificates can be rotated only by whoever issues them"),
                false => format!("⚠️  Secret {name} is absent: enable makes it where a mesh needs it"),
            });
        }
        lines
    }
}

/// Whether the pods of the mesh use a Secret. Our own pod has no administrator's certificate, and agents need their own
/// only where a mirror runs.
fn is_needed(facts: &Facts, secret: &str) -> bool {
    match secret {
        secret::ADMIN => facts.deployment.is_some() && !facts.runs_isthmus(),
        secret::LOCAL => facts.mirror() == facts::MirrorMode::On,
        secret::SERVER => facts.deployment.is_some(),
        _ => true,
    }
}

/// A row about a private key that is not the certificate's.
fn misplaced_key(facts: &Facts, name: &str, method: &Method) -> Option<Row> {
    let text = |key: &str| facts.secret_text(name, key);
    let (cert, key) = (text("tls.crt")?, text("tls.key").unwrap_or_default());
    // An unreadable certificate has a row of its own.
    pki::certificates(cert).ok()?;
    Some(unusable(name, "tls.key", &pki::key_fault(cert, key)?, method))
}

/// A row about what cannot be used.
fn unusable(secret: &str, key: &str, why: &pki::Error, method: &Method) -> Row {
    Row {
        kind: BundleKind::Secret,
        secret: secret.to_owned(),
        key: key.to_owned(),
        subject: String::new(),
        issuer: String::new(),
        until: String::new(),
        days_left: 0,
        issued_by: method.name(),
        problem: Some(why.to_string()),
    }
}

fn rows(secret: &str, key: &str, text: &str, method: &Method, now: Timestamp) -> Vec<Row> {
    let row = |certificate: &Certificate| Row {
        kind: BundleKind::Secret,
        secret: secret.to_owned(),
        key: key.to_owned(),
        subject: certificate.subject.clone(),
        issuer: certificate.issuer.clone(),
        until: pki::day(certificate.not_after),
        days_left: certificate.days_left(now),
        issued_by: method.name(),
        problem: None,
    };
    match pki::certificates(text) {
        Ok(all) => all.iter().map(row).collect(),
        Err(error) => vec![unusable(secret, key, &error, method)],
    }
}

/// The trusted certificates beside client files: Secret, key and text.
fn trusted_files(facts: &Facts) -> Vec<(String, String, String)> {
    let mut files = vec![];
    for name in [secret::MIRROR, secret::AGENTS] {
        let data = facts.secrets.get(name).and_then(|secret| secret.data.as_ref());
        for (key, value) in data.into_iter().flatten().filter(|(key, _)| key.ends_with("-ca.crt")) {
            if let Ok(text) = std::str::from_utf8(&value.0) {
                files.push((name.to_owned(), key.clone(), text.to_owned()));
            }
        }
    }
    files
}

/// The client files of agents and mirror.
fn client_files(facts: &Facts) -> Vec<ClientFile> {
    let mut files = vec![];
    for name in [secret::MIRROR, secret::AGENTS] {
        let data = facts.secrets.get(name).and_then(|secret| secret.data.as_ref());
        for (key, value) in data.into_iter().flatten() {
            if let Some(text) = std::str::from_utf8(&value.0)
                .ok()
                .filter(|text| text.contains("endpoints:"))
            {
                files.push(ClientFile {
                    secret: name.to_owned(),
                    key: key.clone(),
                    text: text.to_owned(),
                });
            }
        }
    }
    files
}

/// What a rotation sees of a cluster.
pub fn cluster(facts: &Facts) -> rotation::Cluster {
    let own = Leaf::ALL.into_iter().filter_map(|leaf| {
        let text = facts.secret_text(leaf.secret(), "ca.crt")?;
        Some((leaf.secret().to_owned(), "ca.crt".to_owned(), text.to_owned()))
    });
    let secrets = own.chain(trusted_files(facts)).map(|(name, key, pem)| Place {
        kind: PlaceKind::Secret,
        name,
        key,
        pem,
    });
    let bundle = facts.bundle.iter().filter_map(|bundle| {
        Some(Place {
            kind: match bundle.place.kind {
                BundleKind::ConfigMap => PlaceKind::ConfigMap,
                BundleKind::Secret => PlaceKind::Secret,
            },
            name: bundle.place.name.clone(),
            key: bundle.place.key.clone(),
            pem: bundle.pem.clone()?,
        })
    });
    let record = Record::read(facts).unwrap_or_default();
    let known = record.peers.into_iter().filter_map(|(peer, entry)| {
        Some(Place {
            kind: PlaceKind::Record,
            name: facts::RECORD.to_owned(),
            key: peer,
            pem: entry.authorities?,
        })
    });
    let leaf = |leaf: Leaf| Some((leaf, facts.secret_text(leaf.secret(), "tls.crt")?.to_owned()));
    rotation::Cluster {
        name: facts.name().to_owned(),
        places: secrets.chain(bundle).chain(known).collect(),
        files: client_files(facts),
        leaves: Leaf::ALL.into_iter().filter_map(leaf).collect(),
        authority: facts.secret_text(secret::CA, "ca.crt").unwrap_or_default().to_owned(),
    }
}

/// The cluster as the owner of certificates, as its present certificates describe it: names that were added to the
/// server certificate stay, and so does the way in which clients are named.
pub fn owner(facts: &Facts, extra_names: &[String]) -> Owner {
    let first = |leaf: Leaf| {
        let text = facts.secret_text(leaf.secret(), "tls.crt")?;
        pki::certificates(text).ok()?.into_iter().next()
    };
    let named = first(Leaf::Server).map(|server| server.names).unwrap_or_default();
    let per_cluster = first(Leaf::Remote).is_some_and(|remote| remote.common_name != "remote");
    Owner {
        cluster: facts.name().to_owned(),
        namespace: facts.namespace.clone(),
        auth_mode: match per_cluster {
            true => pki::AuthMode::PerCluster,
            false => pki::AuthMode::Shared,
        },
        extra_names: named.iter().chain(extra_names).cloned().collect(),
    }
}

#[cfg(test)]
mod tests;
