//! What will break, although it works now.

use crate::mesh::checks::FEW_DAYS;
use crate::mesh::facts::{Facts, secret};
use crate::mesh::pki;
use jiff::Timestamp;

/// The certificates of one cluster that end soon, or have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Certificates that are still valid.
    pub soon: Vec<String>,
    /// Certificates that are not valid any more.
    pub over: Vec<String>,
}

/// Looks at the certificates of a mesh. Certificates that nothing uses are left out.
pub fn expiry(facts: &Facts, tool: &str, now: Timestamp) -> Expiry {
    let mut expiry = Expiry::default();
    let namespace = &facts.namespace;
    for name in [secret::CA, secret::SERVER, secret::ADMIN, secret::REMOTE, secret::LOCAL] {
        // Our pod opens its own store without a certificate.
        if name == secret::ADMIN && facts.runs_isthmus() {
            continue;
        }
        for key in ["tls.crt", "ca.crt"] {
            // The signer may be replaced while what it signed is still used: only what is used matters.
            if name == secret::CA && key == "tls.crt" && facts.secret(name, "ca.crt").is_some() {
                continue;
            }
            let Some(text) = facts.secret_text(name, key) else {
                continue;
            };
            let Ok(certificates) = pki::certificates(text) else {
                expiry.over.push(format!(
                    "Secret {namespace}/{name}, key {key}, holds no certificate in PEM form"
                ));
                continue;
            };
            // A bundle may hold an authority that has ended; the last one to end counts.
            let days = |certificate: &pki::Certificate| certificate.days_left(now);
            let left = match key {
                "ca.crt" => certificates.iter().map(days).max(),
                _ => certificates.iter().map(days).min(),
            };
            let left = left.unwrap_or_default();
            let what = format!("Secret {namespace}/{name}, key {key}");
            let remedy = format!("'{tool} certs' shows all certificates and how to renew them");
            match left {
                i64::MIN..0 => expiry
                    .over
                    .push(format!("{what}: expired {} days ago; {remedy}", -left)),
                0..FEW_DAYS => expiry.soon.push(format!("{what}: expires in {left} days; {remedy}")),
                _ => {}
            }
        }
    }
    expiry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::pki::{Authority, Leaf, Owner};
    use jiff::SignedDuration;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret;

    fn secret_of<const N: usize>(values: [(&str, &str); N]) -> Secret {
        let data = values.map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret {
            data: Some(data.into()),
            ..Secret::default()
        }
    }

    #[test]
    fn certificates_are_reported_a_month_before_their_end() {
        let made = Timestamp::now();
        let authority = Authority::generate("Cilium CA", made).unwrap();
        let owner = Owner {
            cluster: "tokyo".to_owned(),
            namespace: "kube-system".to_owned(),
            ..Owner::default()
        };
        let leaf = authority.issue(&Leaf::Remote.request(&owner), made).unwrap();
        let mut facts = Facts {
            namespace: "kube-system".to_owned(),
            ..Facts::default()
        };
        let pem = secret_of([("tls.crt", &leaf.cert), ("ca.crt", &leaf.ca)]);
        facts.secrets.insert(secret::REMOTE.to_owned(), pem);
        let after = |days: i64| expiry(&facts, "isthmus", made + SignedDuration::from_hours(24 * days));
        assert_eq!(after(300), Expiry::default());
        let soon = after(350).soon;
        assert_eq!(soon.len(), 1);
        let text = "Secret kube-system/clustermesh-apiserver-remote-cert, key tls.crt: expires in ";
        assert!(
            soon[0].starts_with(text) && soon[0].contains("isthmus certs"),
            "{soon:?}"
        );
        assert_eq!(after(370).over.len(), 1);
        assert_eq!(after(2000).over.len(), 2);
        let nonsense = secret_of([("tls.crt", "nonsense")]);
        facts.secrets.insert(secret::LOCAL.to_owned(), nonsense);
        assert!(expiry(&facts, "isthmus", made).over[0].ends_with("holds no certificate in PEM form"));
    }
}
