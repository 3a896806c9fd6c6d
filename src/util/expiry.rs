//! How long the certificates that a process uses are still valid.
//!
//! A table of files, filled by whoever looks at the files (`app/expiry.rs`), and read by metrics, readiness and status.

use super::metrics::{Labels, Page};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: u64 = 86_400;
/// A certificate is about to expire when less than this is left of it, and less than a fifth of its life: whoever renews
/// certificates does so before.
const SOON: Duration = Duration::from_secs(30 * DAY);

/// What a file of certificates is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// This process shows it to its clients.
    Server,
    /// Issues the certificates of clients of this process.
    ClientCa,
    /// This process shows it to the servers it connects to.
    Client,
    /// Issues the certificates of servers that this process connects to.
    ServerCa,
}

/// A file of certificates in use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateFile {
    pub role: Role,
    pub path: PathBuf,
    /// The remote cluster that the file is for.
    pub cluster: Option<String>,
}

/// The time in which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What operators read of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    pub validity: Validity,
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct Seen {
    pub file: CertificateFile,
    pub subject: String,
    pub issuer: String,
    pub validity: Validity,
}

/// The files that were read last, by the part of the process that uses them. Clones share the table.
#[derive(Clone, Debug, Default)]
pub struct Expiries(Arc<Mutex<BTreeMap<&'static str, Vec<Seen>>>>);

// === impl Role ===

impl Role {
    /// The value of the label `role`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::ClientCa => "client-ca",
            Self::Client => "client",
            Self::ServerCa => "server-ca",
        }
    }

    /// The words for it in a sentence.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Server => "server certificate",
            Self::ClientCa => "CA certificate of clients",
            Self::Client => "client certificate",
            Self::ServerCa => "CA certificate of the server",
        }
    }
}

// === impl Validity ===

impl Validity {
    /// The validity of a certificate; `None` if it does not parse.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let time = |secs: i64| Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(secs).ok()?));
        Some(Self {
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
        })
    }

    /// What is wrong with the validity at `now`, if anything: the end of a sentence about the certificate.
    pub fn trouble(&self, now: SystemTime) -> Option<String> {
        if now < self.not_before {
            let begins = date(self.not_before);
            return Some(format!(
                "is not valid before {begins}: compare the clock of this machine"
            ));
        }
        let ends = date(self.not_after);
        let Ok(left) = self.not_after.duration_since(now) else {
            return Some(format!("expired on {ends}: issue a new one"));
        };
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        if left > SOON || left > life / 5 {
            return None;
        }
        let left = match left.as_secs() {
            secs if secs >= 2 * DAY => format!("{} days", secs / DAY),
            secs if secs >= 2 * 3600 => format!("{} hours", secs / 3600),
            secs => format!("{} minutes", secs / 60),
        };
        Some(format!("expires in {left}, on {ends}: issue a new one"))
    }
}

fn date(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

// === impl Facts ===

impl Facts {
    /// The facts of a DER certificate; `None` if it does not parse.
    pub fn of(der: &[u8]) -> Option<Self> {
        let validity = Validity::of(der)?;
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            validity,
        })
    }
}

// === impl CertificateFile ===

impl CertificateFile {
    /// Reads the certificate of the file that counts: of a chain, until its first certificate expires; of several CAs, until the last
    /// expires, since a former CA stays in the file for a while. `None` if the file cannot be used: whoever uses it
    /// says so.
    fn facts(&self) -> Option<Facts> {
        let certificates = CertificateDer::pem_file_iter(&self.path).ok()?;
        let all = certificates.filter_map(|der| Facts::of(&der.ok()?));
        match self.role {
            Role::Server | Role::Client => all.min_by_key(|facts| facts.validity.not_after),
            Role::ClientCa | Role::ServerCa => all.max_by_key(|facts| facts.validity.not_after),
        }
    }
}

impl fmt::Display for CertificateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {}", self.role.noun(), self.path.display())
    }
}

// === impl Seen ===

impl Seen {
    /// What is wrong with the certificate at `now`: a sentence.
    pub fn trouble(&self, now: SystemTime) -> Option<String> {
        Some(format!("{} {}", self.file, self.validity.trouble(now)?))
    }
}

// === impl Expiries ===

impl Expiries {
    /// Reads the files that a part of the process uses; returns what was read. Blocks.
    pub fn look(&self, part: &'static str, mut files: Vec<CertificateFile>) -> Vec<Seen> {
        files.sort();
        files.dedup();
        let seen = files.into_iter().filter_map(|file| {
            let Facts {
                subject,
                issuer,
                validity,
            } = file.facts()?;
            Some(Seen {
                file,
                subject,
                issuer,
                validity,
            })
        });
        let seen: Vec<_> = seen.collect();
        self.0.lock().insert(part, seen.clone());
        seen
    }

    /// Everything that was read last.
    pub fn all(&self) -> Vec<Seen> {
        self.0.lock().values().flatten().cloned().collect()
    }

    /// What is wrong with the certificates that this process uses itself, and not for one remote cluster.
    pub fn own_trouble(&self, now: SystemTime) -> Option<String> {
        let seen = self.all();
        let own = seen.iter().filter(|seen| seen.file.cluster.is_none());
        let troubles: Vec<_> = own.filter_map(|seen| seen.trouble(now)).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// What is wrong with the certificates for a remote cluster.
    pub fn troubles_of(&self, cluster: &str, now: SystemTime) -> Vec<String> {
        let seen = self.all();
        let of_cluster = seen.iter().filter(|seen| seen.file.cluster.as_deref() == Some(cluster));
        of_cluster.filter_map(|seen| seen.trouble(now)).collect()
    }
}

impl Collector for Expiries {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = SystemTime::now();
        let series = self.all().into_iter().map(|Seen { file, validity, .. }| {
            let left = match validity.not_after.duration_since(now) {
                Ok(left) => left.as_secs_f64(),
                Err(past) => -past.duration().as_secs_f64(),
            };
            let mut labels: Labels = vec![("role", file.role.label().to_owned()), ("file", shown(&file.path))];
            labels.extend(file.cluster.map(|cluster| ("target_cluster", cluster)));
            (labels, left.floor())
        });
        let help = "Seconds until the certificate in the file expires; negative once it has";
        Page(encoder).gauges("isthmus_certificate_expiry_seconds", help, series.collect())
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;
    use rcgen::{CertificateParams, KeyPair};

    fn validity(life_days: u64, left_days: i64) -> (Validity, SystemTime) {
        let now = UNIX_EPOCH + Duration::from_secs(20_000 * DAY);
        let left = Duration::from_secs(left_days.unsigned_abs() * DAY);
        let not_after = if left_days < 0 { now - left } else { now + left };
        let not_before = not_after - Duration::from_secs(life_days * DAY);
        (Validity { not_before, not_after }, now)
    }

    #[test]
    fn trouble_begins_in_the_last_fifth_of_a_life_and_in_the_last_month() {
        let trouble = |life, left| {
            let (validity, now) = validity(life, left);
            validity.trouble(now)
        };
        assert_eq!((trouble(3650, 31), trouble(10, 3), trouble(90, 19)), (None, None, None));
        assert_eq!(
            trouble(3650, 29).as_deref(),
            Some("expires in 29 days, on 2024-11-02 00:00 UTC: issue a new one")
        );
        assert!(trouble(10, 1).unwrap().starts_with("expires in 24 hours, on "));
        assert!(trouble(10, -1).unwrap().starts_with("expired on 2024-10-03"));
        let (later, now) = validity(1, 3);
        assert!(
            later
                .trouble(now)
                .unwrap()
                .starts_with("is not valid before 2024-10-06")
        );
    }

    fn certificate(year: i32) -> String {
        let mut params = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_chain_ends_with_its_first_certificate_and_a_file_of_cas_with_its_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("both.pem");
        std::fs::write(&path, certificate(2100) + &certificate(2002)).unwrap();
        let file = |role, cluster: Option<&str>| CertificateFile {
            role,
            path: path.clone(),
            cluster: cluster.map(str::to_owned),
        };
        let missing = CertificateFile {
            path: dir.path().join("missing"),
            ..file(Role::Server, None)
        };
        let table = Expiries::default();
        table.look(
            "test",
            vec![
                file(Role::ClientCa, None),
                missing,
                file(Role::Client, Some("hk")),
                file(Role::Client, Some("hk")),
            ],
        );
        let now = SystemTime::now();
        assert_eq!(table.own_trouble(now), None);
        let expected = format!(
            "the client certificate {} expired on 2002-01-01 00:00 UTC: issue a new one",
            path.display()
        );
        assert_eq!(table.troubles_of("hk", now), [expected]);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(table));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let series = format!(
            "{{role=\"client\",file=\"{}\",target_cluster=\"hk\"}} -",
            path.display()
        );
        assert!(page.contains(&series), "{page}");
        assert_eq!(page.matches("isthmus_certificate_expiry_seconds{").count(), 2, "{page}");
    }
}
