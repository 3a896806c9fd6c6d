//! Checks of certificates: whom clusters trust, what a handshake would say, what expires, and the names of servers.

use super::{FEW_DAYS, Finding, MESH_DOMAIN, Profile, SHARE, Topic, fatal, warning};
use crate::mesh::handshake::{self, Ends};
use crate::mesh::pki::{self, Material};
use jiff::Timestamp;
use std::net::IpAddr;

/// The certificates that `cluster` trusts in servers and clients: PEM.
fn trusts<'a>(cluster: &'a Profile, material: &'a Material) -> &'a str {
    cluster.bundle.as_deref().unwrap_or(&material.ca)
}

/// A short name of an authority: subject and the first bytes of its key.
fn described(certificate: &pki::Certificate) -> String {
    let key: String = certificate
        .subject_key
        .iter()
        .take(4)
        .map(|b| format!("{b:02x}"))
        .collect();
    match key.is_empty() {
        true => format!("{:?}", certificate.subject),
        false => format!("{:?} (key {key}…)", certificate.subject),
    }
}

pub(super) fn authorities(local: &Profile, remote: &Profile) -> Option<Finding> {
    let first = |of: &Profile| {
        let text = of.authority.as_deref().or(of.remote.as_ref().map(|m| m.ca.as_str()))?;
        pki::certificates(text).ok().map(|mut all| all.swap_remove(0))
    };
    let (l, r) = (first(local)?, first(remote)?);
    // Each cluster trusts the authority of the other by its bundle.
    let trusts = |of: &Profile, other: &pki::Certificate| {
        let bundle = of.bundle.as_deref().map(pki::certificates);
        bundle.is_some_and(|all| all.is_ok_and(|all| all.iter().any(|one| one.der == other.der)))
    };
    if trusts(local, &r) && trusts(remote, &l) {
        return None;
    }
    // Authorities without the identifier of their key are compared whole: they may be different and have none.
    let is_same = match l.subject_key.is_empty() || r.subject_key.is_empty() {
        true => l.der == r.der,
        false => l.subject_key == r.subject_key,
    };
    (!is_same).then(|| {
        warning(
            Topic::Authority,
            format!(
                "Cilium CA certificates do not match between clusters {} and {}: {} and {}",
                local.name,
                remote.name,
                described(&l),
                described(&r)
            ),
            "connect with --share-ca, which makes each cluster trust both authorities, or install both clusters with one CA",
        )
    })
}

/// Whether `client` would get a connection to the store of `server`.
pub(super) fn handshake(client: &Profile, server: &Profile, now: Timestamp) -> Option<Finding> {
    let (own, theirs) = (client.remote.as_ref()?, server.server.as_ref()?);
    let name = format!("{}.{MESH_DOMAIN}", server.name);
    let ends = Ends {
        server: theirs,
        server_name: &name,
        client: own,
        client_trusts: client
            .peer_authorities
            .get(&server.name)
            .map_or_else(|| trusts(client, own), String::as_str),
        server_trusts: trusts(server, theirs),
    };
    let failure = handshake::attempt(&ends, now).err()?;
    let signer = |material: &Material| {
        let all = pki::certificates(&material.cert).ok()?;
        Some(all.into_iter().next()?.issuer)
    };
    let (what, remedy) = match &failure {
        handshake::Failure::ClientRefuses(why) => (
            format!(
                "cluster {} does not accept the server certificate of cluster {}, issued by {:?}: {why}",
                client.name,
                server.name,
                signer(theirs).unwrap_or_default()
            ),
            refused(why, client, server, Some(&name)),
        ),
        handshake::Failure::ServerRefuses(why) => (
            format!(
                "cluster {} does not accept the client certificate of cluster {}, issued by {:?}: {why}",
                server.name,
                client.name,
                signer(own).unwrap_or_default()
            ),
            refused(why, server, client, None),
        ),
        handshake::Failure::Server(why) => (
            format!(
                "Secret clustermesh-apiserver-server-cert of cluster {}: {why}",
                server.name
            ),
            format!("issue it anew: certs rotate --context {}", server.context),
        ),
        handshake::Failure::Client(why) => (
            format!(
                "Secret clustermesh-apiserver-remote-cert of cluster {}: {why}",
                client.name
            ),
            format!("issue it anew: certs rotate --context {}", client.context),
        ),
    };
    Some(fatal(Topic::Handshake, what, remedy))
}

/// What to do about the certificate of `owner` that `judge` refuses.
fn refused(why: &str, judge: &Profile, owner: &Profile, name: Option<&str>) -> String {
    let rotate = format!("certs rotate --context {}", owner.context);
    match (why, name) {
        (handshake::EXPIRED, _) => format!("issue it anew: {rotate}"),
        (handshake::NOT_YET, _) => format!("compare the clocks of the clusters, or issue it anew: {rotate}"),
        (handshake::OTHER_NAME, Some(name)) => format!("add the name {name}: {rotate} --add-name {name}"),
        _ => format!("make cluster {} trust that authority: {SHARE}", judge.name),
    }
}

pub(super) fn expiry(object: &str, key: &str, pem: &str, now: Timestamp) -> Vec<Finding> {
    let certificates = match pki::certificates(pem) {
        Ok(certificates) => certificates,
        Err(error) => {
            let what = format!("{object}, key {key}: {error}");
            return vec![fatal(
                Topic::Expiry,
                what,
                "write a certificate in PEM form, or rotate: certs rotate",
            )];
        }
    };
    let about = |certificate: &pki::Certificate| {
        let (days, until) = (certificate.days_left(now), pki::day(certificate.not_after));
        let of = format!("{object}, key {key}: the certificate of {:?}", certificate.subject);
        let remedy = match certificate.is_authority {
            true => "replace the CA without an outage: certs rotate --ca",
            false => "issue it anew: certs rotate",
        };
        match days {
            ..0 => Some(fatal(Topic::Expiry, format!("{of} expired on {until}"), remedy)),
            0..FEW_DAYS => Some(warning(
                Topic::Expiry,
                format!("{of} expires on {until}, in {days} days"),
                remedy,
            )),
            _ => None,
        }
    };
    certificates.iter().filter_map(about).collect()
}

/// Host names that the server certificate is not valid for. Addresses are dialled under names below the mesh's domain.
pub(super) fn names(cluster: &Profile) -> Vec<Finding> {
    let certificate = cluster
        .server
        .as_ref()
        .and_then(|server| pki::certificates(&server.cert).ok());
    let Some(certificate) = certificate.and_then(|mut all| (!all.is_empty()).then(|| all.swap_remove(0))) else {
        return vec![];
    };
    let hosts = cluster.hosts.iter().filter(|host| host.parse::<IpAddr>().is_err());
    let missing = hosts.filter(|host| !certificate.is_for(host));
    missing
        .map(|host| {
            fatal(
                Topic::Names,
                format!(
                    "the server certificate of cluster {} is not valid for the host name {host}, which other clusters dial \
                     (it is valid for {})",
                    cluster.name,
                    certificate.names.join(", ")
                ),
                format!(
                    "add the name: certs rotate --context {} --add-name {host}, or the value \
                     clustermesh.apiserver.tls.auto.server.extraDnsNames of the chart",
                    cluster.context
                ),
            )
        })
        .collect()
}
