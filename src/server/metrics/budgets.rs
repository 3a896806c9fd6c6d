//! What clients hold of the budgets, looked up at each scrape.

use crate::server::connections::{Connections, Totals};
use crate::util::metrics::Page;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The figures of all connections.
pub(super) struct Held(pub(super) Arc<Connections>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

impl Collector for Held {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Totals {
            open,
            handshakes,
            answer_bytes,
        } = self.0.totals();
        let mut page = Page(encoder);
        let state = |state: &str, n: usize| (vec![("state", state.to_owned())], n as f64);
        page.gauges(
            "isthmus_server_connections",
            "Client connections, by state: open, or handshake while the TLS handshake is unfinished",
            vec![state("open", open), state("handshake", handshakes)],
        )?;
        page.gauges(
            "isthmus_server_connections_max",
            "Connections from which on a new one closes the oldest handshake or an idle connection",
            vec![(vec![], self.0.budgets.connections as f64)],
        )?;
        page.gauges(
            "isthmus_server_answer_bytes",
            "Bytes of answers and events that were produced and that clients have not taken yet",
            vec![(vec![], answer_bytes as f64)],
        )?;
        let mut longest = Duration::ZERO;
        self.0.each(|_, connection| longest = longest.max(connection.backlog()));
        page.gauges(
            "isthmus_server_watch_wait_seconds",
            "Longest time that events of a watcher have been ready and were not taken by its client",
            vec![(vec![], longest.as_secs_f64())],
        )
    }
}
