//! Issues the certificates of one cluster anew. Running servers and clients read changed files, so nothing restarts.

use super::store::{self, Store};
use super::{Method, owner};
use crate::mesh::facts::{Facts, secret};
use crate::mesh::output::Output;
use crate::mesh::pki::{self, Authority, Leaf, Material};
use crate::mesh::rotation;
use jiff::{SignedDuration, Timestamp};

/// Which certificates are issued anew.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only those that end within this time; `None` for all.
    pub before: Option<SignedDuration>,
    /// Names and addresses to add to the server certificate.
    pub names: Vec<String>,
    /// Whether to write Secrets that another tool renders, too.
    pub adopt: bool,
    /// Whether to write nothing.
    pub dry_run: bool,
}

/// Why certificates were not issued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(
        "Secret {namespace}/{name} in context {context:?} is issued by cert-manager, which undoes changes: renew the \
         Certificate {certificate} (cmctl renew -n {namespace} {certificate})"
    )]
    CertManager {
        namespace: String,
        name: String,
        certificate: String,
        context: String,
    },
    #[error(
        "Secret {namespace}/{name} in context {context:?} is rendered by {by}, which issues certificates itself each time it \
         runs: run it, or add --adopt to issue this certificate here until then"
    )]
    Rendered {
        namespace: String,
        name: String,
        by: String,
        context: String,
    },
    #[error(
        "no Secret {namespace}/{} in context {context:?}: certificates can be issued only with their CA and its key",
        secret::CA
    )]
    NoAuthority { namespace: String, context: String },
    #[error(
        "Secret {namespace}/{} in context {context:?} cannot issue certificates: {source}",
        secret::CA
    )]
    Authority {
        namespace: String,
        context: String,
        source: pki::Error,
    },
    #[error(
        "Secret {namespace}/{name} in context {context:?} was issued by {issuer:?}, not by {authority:?} of Secret \
         {namespace}/{}, which peers do not trust: issue the certificate with the tool that has that CA",
        secret::CA
    )]
    OtherIssuer {
        namespace: String,
        name: String,
        context: String,
        issuer: String,
        authority: String,
    },
    #[error(transparent)]
    Issue(#[from] pki::Error),
}

/// The authority of a cluster: the pair `ca.crt` and `ca.key` of its Secret, or `tls.crt` and `tls.key`, as cert-manager writes
/// an intermediate authority.
pub fn authority(facts: &Facts) -> Result<Authority, Error> {
    let (namespace, context) = (facts.namespace.clone(), facts.context.clone());
    let text = |key: &str| facts.secret_text(secret::CA, key);
    let pairs = [("ca.crt", "ca.key"), ("tls.crt", "tls.key")];
    let pair = pairs
        .into_iter()
        .find_map(|(cert, key)| Some((text(cert)?, text(key)?)));
    let Some((cert, key)) = pair.or_else(|| Some((text("ca.crt")?, ""))) else {
        return Err(Error::NoAuthority { namespace, context });
    };
    Authority::parse(cert, key).map_err(|source| Error::Authority {
        namespace,
        context,
        source,
    })
}

/// The certificates beside `due` whose key or trusted certificates cannot be used.
fn broken(facts: &Facts, due: &[Leaf]) -> Vec<Leaf> {
    let is_broken = |leaf: &Leaf| {
        let text = |key: &str| facts.secret_text(leaf.secret(), key).unwrap_or_default();
        let exists = facts.secrets.contains_key(leaf.secret());
        exists
            && (pki::key_fault(text("tls.crt"), text("tls.key")).is_some()
                || pki::certificates(text("ca.crt")).is_err())
    };
    let all = Leaf::ALL.into_iter();
    all.filter(|leaf| !due.contains(leaf) && is_broken(leaf)).collect()
}

/// Refuses to replace certificates that another authority has signed: peers trust that one.
fn check_issuer(facts: &Facts, authority: &Authority, due: &[Leaf]) -> Result<(), Error> {
    let own = authority.certificate()?;
    for leaf in due {
        let text = facts.secret_text(leaf.secret(), "tls.crt").unwrap_or_default();
        let Some(present) = pki::certificates(text).ok().and_then(|all| all.into_iter().next()) else {
            continue;
        };
        if !present.is_signed_by(&own) {
            return Err(Error::OtherIssuer {
                namespace: facts.namespace.clone(),
                name: leaf.secret().to_owned(),
                context: facts.context.clone(),
                issuer: present.issuer,
                authority: own.subject,
            });
        }
    }
    Ok(())
}

/// Refuses to write Secrets that another tool would write back.
pub fn check_methods(facts: &Facts, leaves: &[Leaf], adopt: bool) -> Result<(), Error> {
    for name in leaves.iter().map(|leaf| leaf.secret()) {
        let Some(secret) = facts.secrets.get(name) else {
            continue;
        };
        let (namespace, name, context) = (facts.namespace.clone(), name.to_owned(), facts.context.clone());
        match Method::of(&secret.metadata) {
            Method::CertManager(certificate) => {
                return Err(Error::CertManager {
                    namespace,
                    name,
                    certificate,
                    context,
                });
            }
            Method::Rendered(by) if !adopt => {
                return Err(Error::Rendered {
                    namespace,
                    name,
                    by,
                    context,
                });
            }
            Method::Rendered(_) | Method::Free => {}
        }
    }
    Ok(())
}

/// Issues the certificates that are due. Returns their number.
pub async fn rotate(store: &Store<'_>, options: &Options, now: Timestamp, output: &dyn Output) -> Result<usize, Error> {
    let facts = store.facts().await?;
    let cluster = super::cluster(&facts);
    let due = match options.before {
        Some(before) => {
            let mut due = rotation::leaves_to_renew(&cluster.leaves, &options.names, before, now);
            due.extend(broken(&facts, &due));
            due
        }
        None => cluster.leaves.iter().map(|(leaf, _)| *leaf).collect(),
    };
    if due.is_empty() {
        output.line(&format!("✅ No certificate of cluster {} is due", facts.name()));
        return Ok(0);
    }
    check_methods(&facts, &due, options.adopt)?;
    let authority = authority(&facts)?;
    check_issuer(&facts, &authority, &due)?;
    if !rotation::outlives(&authority, pki::LEAF_LIFETIME, now) {
        output.line(&format!(
            "⚠️  The CA of cluster {} ends on {}, and so will the certificates: replace it with certs rotate --ca",
            facts.name(),
            pki::day(authority.not_after())
        ));
    }
    let verb = if options.dry_run { "Would issue" } else { "Issued" };
    for leaf in &due {
        if !options.dry_run {
            issue(store, &facts, &authority, *leaf, &options.names, now).await?;
        }
        output.line(&format!(
            "🔑 {verb} Secret {}/{} of cluster {}",
            facts.namespace,
            leaf.secret(),
            facts.name()
        ));
    }
    Ok(due.len())
}

/// Issues one certificate, and makes its owner trust the authority that signed it, beside those it trusts.
async fn issue(
    store: &Store<'_>,
    facts: &Facts,
    authority: &Authority,
    leaf: Leaf,
    names: &[String],
    now: Timestamp,
) -> Result<(), Error> {
    let material = authority.issue(&leaf.request(&owner(facts, names)), now)?;
    write(store, facts, leaf, &material).await
}

/// Writes a certificate. What its owner trusts is only written if the signer is missing there.
pub async fn write(store: &Store<'_>, facts: &Facts, leaf: Leaf, material: &Material) -> Result<(), Error> {
    let mut values = vec![("tls.crt", material.cert.as_str()), ("tls.key", material.key.as_str())];
    let present = facts.secret_text(leaf.secret(), "ca.crt").unwrap_or_default();
    let trusted = match pki::certificates(present) {
        Ok(_) if pki::contains(present, &material.ca) => None,
        Ok(_) => Some(pki::bundle(&[present, &material.ca])?),
        Err(_) => Some(material.ca.clone()),
    };
    values.extend(trusted.as_ref().map(|text| ("ca.crt", text.as_str())));
    match facts.secrets.contains_key(leaf.secret()) {
        true => store.set(facts, leaf.secret(), &values).await?,
        false => store.create(leaf.secret(), &values).await?,
    }
    Ok(())
}
