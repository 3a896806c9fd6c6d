//! The last step: one read through the client that the mirror and the publisher use.

use super::report::Report;
use crate::kvstore::client::{EtcdClient, Options};
use crate::kvstore::config::ClientConfig;
use crate::model::keys::HEARTBEAT;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// For the read, if there is as much time left.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Between reads that did not reach a store.
const RETRY: Duration = Duration::from_millis(100);
/// Go's words for what the deadline ended.
const TOO_LATE: &str = "context deadline exceeded";

/// Reads the heartbeat, which everybody may; whether it is there does not matter. `reached`: whether an
/// endpoint was, since a client does not say what it waited for.
pub(super) async fn report(
    config: &ClientConfig,
    deadline: Instant,
    reached: bool,
    report: &mut Report<'_>,
) -> io::Result<()> {
    if config.endpoints.is_empty() {
        return report.line("❌ Failed to create etcd client: etcdclient: no available endpoints");
    }
    let how = Options::default();
    let client = match timeout_at(deadline, EtcdClient::connect_with(config, &how)).await {
        Ok(Ok(client)) => client,
        Ok(Err(why)) => return report.line(format_args!("❌ Failed to create etcd client: {why}")),
        Err(_) => return report.line(format_args!("❌ Failed to establish connection: {TOO_LATE}")),
    };
    // The client begins with any endpoint: it may take a while until a good one is found.
    let several = config.endpoints.len() > 1 || config.cilium_host_aliases.iter().any(|alias| alias.ips.len() > 1);
    let until = match several {
        true => deadline,
        false => deadline.min(Instant::now() + READ_TIMEOUT),
    };
    let mut failed = None;
    let (answered, why) = loop {
        match timeout_at(until, client.get(HEARTBEAT)).await {
            Ok(Ok(_)) => {
                report.line("✅ Etcd connection successfully established")?;
                return report.line(format_args!("ℹ️  Etcd cluster ID: {:x}", client.cluster_id()));
            }
            Ok(Err(why)) => {
                let why = why.to_string();
                // All of etcd's own errors begin so.
                let answered = why.starts_with("etcdserver:");
                let again = Instant::now() + RETRY;
                if answered || !several || again > until {
                    break (answered, why);
                }
                failed = Some(why);
                how.dialer.forget();
                tokio::time::sleep_until(again).await;
            }
            // What went wrong before says more.
            Err(_) => {
                break (
                    reached && failed.is_none(),
                    failed.unwrap_or_else(|| TOO_LATE.to_owned()),
                );
            }
        }
    };
    match answered {
        true => report.line(format_args!("❌ Failed to retrieve key from etcd: {why}")),
        false => report.line(format_args!("❌ Failed to establish connection: {why}")),
    }
}
