//! The last step: one read through the etcd client of the mirror and the publisher.

use super::report::Report;
use crate::kvstore::client::{EtcdClient, Options};
use crate::kvstore::config::ClientConfig;
use crate::model::keys::HEARTBEAT;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Limit for the read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two reads that did not reach a store.
const RETRY: Duration = Duration::from_millis(100);
/// Go's words for an operation that the deadline ended.
const TOO_LATE: &str = "context deadline exceeded";

/// Why the read failed.
enum Failure {
    /// The store answered with an error.
    Answered(String),
    /// The store was not reached.
    Unreached(String),
}

/// Reads the heartbeat, which every user may read and which may be missing. `reached` says whether any endpoint was
/// reached before, because the client does not say what a read that timed out waited for.
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
    // The client begins with a random endpoint, so several attempts may be necessary to find a working endpoint.
    let several = config.endpoints.len() > 1 || config.cilium_host_aliases.iter().any(|alias| alias.ips.len() > 1);
    let until = match several {
        true => deadline,
        false => deadline.min(Instant::now() + READ_TIMEOUT),
    };
    let mut failed = None;
    let failure = loop {
        match timeout_at(until, client.get(HEARTBEAT)).await {
            Ok(Ok(_)) => {
                report.line("✅ Etcd connection successfully established")?;
                return report.line(format_args!("ℹ️  Etcd cluster ID: {:x}", client.cluster_id()));
            }
            Ok(Err(why)) => {
                let why = why.to_string();
                // All errors that etcd itself returns begin with this.
                let answered = why.starts_with("etcdserver:");
                let again = Instant::now() + RETRY;
                match answered {
                    true => break Failure::Answered(why),
                    false if !several || again > until => break Failure::Unreached(why),
                    false => {}
                }
                failed = Some(why);
                how.dialer.forget();
                tokio::time::sleep_until(again).await;
            }
            Err(_) => {
                break match failed {
                    // An earlier error says more than the deadline.
                    Some(why) => Failure::Unreached(why),
                    None if reached => Failure::Answered(TOO_LATE.to_owned()),
                    None => Failure::Unreached(TOO_LATE.to_owned()),
                };
            }
        }
    };
    match failure {
        Failure::Answered(why) => report.line(format_args!("❌ Failed to retrieve key from etcd: {why}")),
        Failure::Unreached(why) => report.line(format_args!("❌ Failed to establish connection: {why}")),
    }
}
