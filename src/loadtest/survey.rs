//! The first calls of a test: whether each endpoint answers, whether all are one store, and which clusters there are to read.

use super::dial::{Dialer, Who};
use super::error::Error;
use super::explain::explained;
use super::link::{Call, Link, NEVER_PAUSED};
use super::plan::{Plan, Prefix};
use super::session::prefix_end;
use super::wire::KeyValue;
use crate::model::keys;
use crate::pb::etcdserverpb::RangeRequest;
use bytes::Bytes;

/// The most names of clusters in an error.
const NAMED_MAX: usize = 10;

/// Calls the store. Returns its cluster id; for a read-only run, the plan names the clusters to read afterwards.
pub async fn survey(plan: &mut Plan, dialer: &Dialer) -> Result<u64, Error> {
    let urls: Vec<&str> = dialer.urls().collect();
    let mut first = 0;
    for (at, url) in urls.iter().enumerate() {
        let asked = cluster_id(dialer, at, Who::Writer).await;
        let id = asked.map_err(|error| named(explained_refusal(error, dialer), &urls, url))?;
        if at == 0 {
            first = id;
        } else if id != first {
            return Err(Error::Plan(format!(
                "the endpoints are different stores: {} has the cluster id {first:x}, and {url} has {id:x}. Name endpoints of one \
                 store, and test other stores by themselves",
                urls[0]
            )));
        }
    }
    for (at, name) in dialer.users().enumerate() {
        let asked = cluster_id(dialer, at, Who::Agent(at)).await;
        asked.map_err(|error| Error::User {
            name: name.to_owned(),
            source: Box::new(error),
        })?;
    }
    if plan.read_only {
        clusters(plan, dialer).await?;
    }
    Ok(first)
}

/// An error with the endpoint, if there are several.
fn named(error: Error, urls: &[&str], url: &str) -> Error {
    match urls.len() {
        1 => error,
        _ => Error::Endpoint {
            url: url.to_owned(),
            source: Box::new(error),
        },
    }
}

fn explained_refusal(error: Error, dialer: &Dialer) -> Error {
    match error.is_lasting() {
        true => refused(&error.to_string()),
        false => explained(error, dialer.config()),
    }
}

/// The error of a store that refuses the client, with what to do.
pub fn refused(refusal: &str) -> Error {
    let remedy = match refusal.contains("database space exceeded") {
        true => "the store has reached its quota: lower --keys or --value-bytes, or raise the quota",
        false => {
            "give the certificate of a user who may read and write the prefixes of the test (`loadtest scenarios` names \
             them), or use --read-only with a user who may read"
        }
    };
    Error::Plan(format!("the store refuses the test: {refusal}; {remedy}"))
}

/// Asks an endpoint for its store, by a key that every user of a mesh may read.
async fn cluster_id(dialer: &Dialer, at: usize, who: Who) -> Result<u64, Error> {
    let (link, mut connection) = dialer.connect(at, who).await?;
    let asked = connection.drive(&NEVER_PAUSED, async {
        let request = RangeRequest {
            key: keys::HEARTBEAT.into(),
            ..RangeRequest::default()
        };
        link.call(Call::Range, &request, |_, _| Ok(())).await
    });
    Ok(asked.await?.cluster_id)
}

/// Finds the clusters to read, or looks whether those of the plan exist.
async fn clusters(plan: &mut Plan, dialer: &Dialer) -> Result<(), Error> {
    let (link, mut connection) = dialer.connect(0, Who::Writer).await?;
    let absent = connection.drive(&NEVER_PAUSED, async {
        let configured = configured(&link).await;
        if plan.existing.is_empty() {
            plan.existing = configured?;
            plan.existing.truncate(plan.clusters);
            return Ok(None);
        }
        // The user may be forbidden to read the configurations.
        let configured = configured.unwrap_or_default();
        plan.clusters = plan.existing.len();
        for number in 0..plan.clusters {
            if !configured.contains(&plan.existing[number]) && !has_keys(&link, &plan.watched(number)).await? {
                return Ok(Some((plan.existing[number].clone(), configured)));
            }
        }
        Ok(None)
    });
    let absent = absent.await.map_err(|error: Error| explained_refusal(error, dialer))?;
    if let Some((name, configured)) = absent {
        let known = match configured.len() {
            0 => "no cluster with a configuration".to_owned(),
            n if n > NAMED_MAX => format!("{} and {} others", configured[..NAMED_MAX].join(", "), n - NAMED_MAX),
            _ => configured.join(", "),
        };
        let prefix = plan.prefix(0, 0);
        return Err(Error::Plan(format!(
            "the store has nothing of a cluster {name:?}, neither a configuration nor keys such as {prefix}…; it has {known}: \
             compare --cluster and --prefix"
        )));
    }
    if plan.existing.is_empty() {
        let text = "the store has no cluster configurations: name the clusters to read with --cluster, or let the test write \
                    (without --read-only)";
        return Err(Error::Plan(text.to_owned()));
    }
    plan.clusters = plan.existing.len();
    plan.check()
}

/// The names of the clusters that have a configuration.
async fn configured(link: &Link) -> Result<Vec<String>, Error> {
    let mut names = vec![];
    let request = RangeRequest {
        key: keys::CLUSTER_CONFIGS.into(),
        range_end: prefix_end(keys::CLUSTER_CONFIGS.as_bytes()).into(),
        keys_only: true,
        ..RangeRequest::default()
    };
    let listed = link.call(Call::Range, &request, |tag, field| {
        if tag == 2 {
            let key = String::from_utf8_lossy(KeyValue::read(field.bytes())?.key);
            names.push(key.replacen(keys::CLUSTER_CONFIGS, "", 1));
        }
        Ok(())
    });
    listed.await?;
    Ok(names)
}

/// Whether there is a key with one of these prefixes, the heartbeat aside.
async fn has_keys(link: &Link, prefixes: &[Prefix]) -> Result<bool, Error> {
    for prefix in prefixes.iter().filter(|prefix| **prefix != Prefix::Heartbeat) {
        let mut found = false;
        let request = RangeRequest {
            key: Bytes::from(prefix.text().to_owned()),
            range_end: prefix_end(prefix.text().as_bytes()).into(),
            limit: 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        let looked = link.call(Call::Range, &request, |tag, _| {
            found |= tag == 2;
            Ok(())
        });
        looked.await?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
