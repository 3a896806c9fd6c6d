//! Flags of the local store, of the subcommands that write to an etcd.

use super::duration;
use crate::kvstore::client::KEEPALIVE;
use crate::kvstore::config::ConfigSource;
use crate::kvstore::etcd;
use crate::kvstore::limiter::Limits;
use anyhow::{Context, bail};
use clap::Args;
use std::time::Duration;

/// The etcd that keys are written to.
#[derive(Args, Debug)]
#[command(next_help_heading = "Local etcd")]
pub struct KvstoreArgs {
    /// Kind of the local store. Only etcd is supported.
    #[arg(long, env = "CILIUM_KVSTORE", default_value = "etcd", value_name = "KIND")]
    kvstore: String,
    /// Options of the local store, repeatable: etcd.config=FILE (an etcd client configuration) or etcd.address=URL is
    /// required. Limits: etcd.qps (keys per second, 20), etcd.bootstrapQps (keys per second until everything is
    /// published once), etcd.maxInflight (concurrent requests), etcd.limit (keys per page of a list, 256). Pings:
    /// etcd.keepaliveHeartbeat (interval, 15s), etcd.keepaliveTimeout (25s).
    #[arg(long, env = "CILIUM_KVSTORE_OPT", value_name = "KEY=VALUE,...")]
    kvstore_opt: Vec<String>,
    /// Time that written keys outlive this process, 25s to 24h: the TTL of their leases.
    #[arg(long, env = "CILIUM_KVSTORE_LEASE_TTL", default_value = "15m0s", value_parser = duration,
          value_name = "DURATION")]
    kvstore_lease_ttl: Duration,
}

impl KvstoreArgs {
    /// Configures the client of the store.
    pub fn config(&self) -> anyhow::Result<etcd::Config> {
        match &*self.kvstore {
            "etcd" => {}
            "" => bail!("KVStore client not configured, cannot continue"),
            other => bail!("--kvstore: unsupported key-value store {other:?}: only etcd is supported"),
        }
        let (mut config, mut address) = (None, None);
        let (mut limits, mut keepalive) = (Limits::default(), KEEPALIVE);
        let time = |key: &str, value: &str| duration(value).map_err(|e| anyhow::anyhow!("--kvstore-opt {key}: {e}"));
        for (key, value) in options(&self.kvstore_opt)? {
            match &*key {
                "etcd.config" => config = Some(value),
                "etcd.address" => address = Some(value),
                "etcd.qps" | "etcd.bootstrapQps" | "etcd.maxInflight" | "etcd.limit" => {
                    let number = value.parse::<u32>();
                    let number =
                        number.with_context(|| format!("--kvstore-opt {key}={value} is not a number of at least 0"))?;
                    match &*key {
                        "etcd.qps" => limits.qps = number,
                        "etcd.bootstrapQps" => limits.bootstrap_qps = Some(number).filter(|n| *n > 0),
                        "etcd.maxInflight" => limits.max_inflight = Some(number).filter(|n| *n > 0),
                        _ => limits.page = number.into(),
                    }
                }
                "etcd.keepaliveHeartbeat" => keepalive.interval = time(&key, &value)?,
                "etcd.keepaliveTimeout" => keepalive.timeout = time(&key, &value)?,
                _ => bail!(
                    "invalid kvstore configuration: {key:?} is not one of etcd.address, etcd.config, etcd.qps, \
                     etcd.bootstrapQps, etcd.maxInflight, etcd.limit, etcd.keepaliveHeartbeat, etcd.keepaliveTimeout"
                ),
            }
        }
        let source = match (config, address) {
            (Some(file), _) => ConfigSource::File(file.into()),
            (None, Some(address)) => ConfigSource::Address(address),
            (None, None) => {
                bail!(
                    "no address of the local store: set --kvstore-opt=etcd.config=FILE or --kvstore-opt=etcd.address=URL"
                )
            }
        };
        let ttl = self.kvstore_lease_ttl;
        if !(Duration::from_secs(25)..=Duration::from_secs(86_400)).contains(&ttl) {
            bail!("kvstore-lease-ttl does not lie in required range (25s - 24h0m0s)");
        }
        Ok(etcd::Config {
            source,
            lease_ttl: ttl,
            limits,
            keepalive,
        })
    }
}

/// Parses lists of `key=value`, or JSON objects. As in Cilium, a part without `=` belongs to the value before it:
/// `etcd.address=x:1,y:2`.
fn options(given: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut out: Vec<(String, String)> = vec![];
    for text in given {
        if text.starts_with('{') {
            let map: std::collections::BTreeMap<String, String> = serde_json::from_str(text)
                .with_context(|| format!("--kvstore-opt: {text:?} is not a JSON object of strings"))?;
            out.extend(map);
            continue;
        }
        for part in text.split(',').filter(|p| !p.is_empty()) {
            match (part.split_once('='), out.last_mut()) {
                (Some((key, value)), _) => out.push((key.to_owned(), value.to_owned())),
                (None, Some((_, value))) => *value += &format!(",{part}"),
                (None, None) => bail!("--kvstore-opt: {part:?} is not of the form key=value"),
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_as_lists_or_json_and_keep_commas() {
        let read = |texts: &[&str]| options(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            read(&["a=1,b=2", "c=3"]).unwrap(),
            [pair("a", "1"), pair("b", "2"), pair("c", "3")]
        );
        assert_eq!(
            read(&["etcd.address=x:1,y:2,z=3"]).unwrap(),
            [pair("etcd.address", "x:1,y:2"), pair("z", "3")]
        );
        assert_eq!(read(&[r#"{"a":"1"}"#]).unwrap(), [pair("a", "1")]);
        assert!(read(&["nothing"]).is_err());
    }
}
