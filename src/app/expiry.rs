//! Looks at the certificates that the process uses, and warns while one of them expires soon or has expired.

use crate::kvstore::config::{ClientConfig, ConfigSource};
use crate::kvstoremesh::metrics::MeshMetrics;
use crate::util::expiry::{CertificateFile, Expiries, Role, Seen, Validity};
use crate::util::lifecycle::Lifecycle;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The waits after the first looks: the mesh knows its files soon after the start.
const FIRST: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// How often the files are read after that.
const PERIOD: Duration = Duration::from_secs(60);
/// The time between two warnings of one file.
const QUIET: Duration = Duration::from_secs(86_400);

/// Looks at the files that `source` names, now and again and again, and keeps the table up to date. `part` names the user
/// of the files; each part has a source of its own.
pub(super) fn watch(
    table: Expiries,
    part: &'static str,
    source: impl Fn() -> Vec<CertificateFile> + Send + Sync + 'static,
    life: &Lifecycle,
) {
    let source = Arc::new(source);
    life.spawn_forever(format!("certificates of the {part}"), async move {
        let mut warnings = Warnings::default();
        for wait in FIRST.into_iter().chain(std::iter::repeat(PERIOD)) {
            let (table, source) = (table.clone(), Arc::clone(&source));
            let seen = tokio::task::spawn_blocking(move || table.look(part, source())).await;
            for warning in warnings.due(&seen.unwrap_or_default(), SystemTime::now(), Instant::now()) {
                tracing::warn!("{warning}");
            }
            tokio::time::sleep(wait).await;
        }
    });
}

/// The files that the client of a store uses at present.
pub(super) fn of_store(source: &ConfigSource) -> Vec<CertificateFile> {
    match source {
        ConfigSource::File(path) => of_client_file(path.clone(), None),
        ConfigSource::Address(_) => vec![],
    }
}

/// The files that the clients of the remote clusters use at present.
pub(super) fn of_mesh(mesh: &MeshMetrics) -> Vec<CertificateFile> {
    let files = mesh.mesh().map(|mesh| mesh.client_files()).unwrap_or_default();
    let of_cluster = |(name, path)| of_client_file(path, Some(name));
    files.into_iter().flat_map(of_cluster).collect()
}

fn of_client_file(path: PathBuf, cluster: Option<String>) -> Vec<CertificateFile> {
    // Whoever connects reports a file that cannot be used.
    let Ok(config) = ClientConfig::read(&path) else {
        return vec![];
    };
    let named = |role, path: Option<PathBuf>| {
        path.map(|path| CertificateFile {
            cluster: cluster.clone(),
            ..file(role, path)
        })
    };
    let ca = named(Role::ServerCa, config.trusted_ca_file);
    ca.into_iter().chain(named(Role::Client, config.cert_file)).collect()
}

pub(super) fn file(role: Role, path: PathBuf) -> CertificateFile {
    let cluster = None;
    CertificateFile { role, path, cluster }
}

/// The warnings that were given.
#[derive(Default)]
struct Warnings(BTreeMap<CertificateFile, Warned>);

struct Warned {
    validity: Validity,
    expired: bool,
    at: Instant,
}

impl Warnings {
    /// The warnings to give at `now`: of a file that was not known to be in trouble, and daily.
    fn due(&mut self, seen: &[Seen], time: SystemTime, now: Instant) -> Vec<String> {
        let mut due = vec![];
        let mut last = std::mem::take(&mut self.0);
        for each in seen {
            let Some(trouble) = each.trouble(time) else { continue };
            let (validity, expired) = (each.validity, each.validity.not_after < time);
            let at = match last.remove(&each.file) {
                Some(warned) if warned.validity == validity && warned.expired == expired && now - warned.at < QUIET => {
                    warned.at
                }
                _ => {
                    due.push(match &each.file.cluster {
                        Some(cluster) => format!("{trouble} (remote cluster {cluster})"),
                        None => trouble,
                    });
                    now
                }
            };
            self.0.insert(each.file.clone(), Warned { validity, expired, at });
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_is_warned_of_daily_and_when_it_expires() {
        let hour = Duration::from_secs(3600);
        let (time, now) = (SystemTime::UNIX_EPOCH + 1_000_000 * hour, Instant::now());
        let seen = [Seen {
            file: file(Role::Server, "/tls.crt".into()),
            subject: String::new(),
            issuer: String::new(),
            validity: Validity {
                not_before: time - 1000 * hour,
                not_after: time + 30 * hour,
            },
        }];
        let mut warnings = Warnings::default();
        let mut due = |hours| warnings.due(&seen, time + hours * hour, now + hours * hour);
        assert!(due(0)[0].starts_with("the server certificate /tls.crt expires in 30 hours, on "));
        assert!(due(1).is_empty() && due(23).is_empty());
        assert_eq!((due(25).len(), due(29).len()), (1, 0));
        assert!(due(31)[0].contains("/tls.crt expired on "));
        assert!(due(32).is_empty());
    }
}
