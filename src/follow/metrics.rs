//! Figures of a replica.

use super::feed::Why;
use super::people::People;
use crate::util::metrics::{Labels, Page};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The figures of one replica.
pub struct Metrics {
    /// Whether the feed is connected.
    connected: Gauge,
    /// The last revision that was taken over.
    pub(super) revision: Gauge,
    /// The last revision that the upstream told.
    pub(super) index_revision: Gauge,
    index_seconds: Histogram,
    forward_seconds: Histogram,
    reconnects: Family<Labels, Counter>,
    loads: Family<Labels, Counter>,
    load_seconds: Gauge<f64, AtomicU64>,
    pub(super) gaps: Counter,
    pub(super) divergences: Counter,
    pub(super) compared: Counter,
    /// The reason why the upstream is not followed at the moment.
    trouble: Mutex<Option<String>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        Self {
            connected: Gauge::default(),
            revision: Gauge::default(),
            index_revision: Gauge::default(),
            index_seconds: seconds(),
            forward_seconds: seconds(),
            reconnects: Family::default(),
            loads: Family::default(),
            load_seconds: Gauge::default(),
            gaps: Counter::default(),
            divergences: Counter::default(),
            compared: Counter::default(),
            trouble: Mutex::default(),
        }
    }
}

/// The time since users were known to be those of the upstream, computed at each scrape.
struct AuthAge(Arc<People>);

impl fmt::Debug for AuthAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthAge")
    }
}

impl Collector for AuthAge {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Page(encoder).gauges(
            "isthmus_follow_auth_age_seconds",
            "Seconds since the users and roles here were known to be those of the upstream",
            vec![(vec![], self.0.age().as_secs_f64())],
        )
    }
}

impl Metrics {
    /// The feed follows the upstream.
    pub(super) fn connected(&self) {
        self.connected.set(1);
        *self.trouble.lock() = None;
    }

    /// The feed does not follow the upstream at the moment.
    pub(super) fn disconnected(&self, why: String) {
        self.connected.set(0);
        *self.trouble.lock() = Some(why);
    }

    /// Why the upstream is not followed at the moment.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// The last revision that is visible here, and how many more the upstream has told.
    pub fn position(&self) -> (i64, i64) {
        let revision = self.revision.get();
        (revision, (self.index_revision.get() - revision).max(0))
    }

    pub(super) fn index(&self, took: Duration, revision: i64) {
        self.index_seconds.observe(took.as_secs_f64());
        self.index_revision.set(revision);
    }

    pub(super) fn forwarded(&self, took: Duration) {
        self.forward_seconds.observe(took.as_secs_f64());
    }

    pub(super) fn reconnected(&self, why: &'static str) {
        self.reconnects.get_or_create(&vec![("why", why.to_owned())]).inc();
    }

    pub(super) fn loaded(&self, how: &'static str, took: Duration) {
        self.loads.get_or_create(&vec![("how", how.to_owned())]).inc();
        self.load_seconds.set(took.as_secs_f64());
    }

    /// Registers everything. `hows` are the labels of all ways of loading.
    pub(super) fn register<'a>(
        &self,
        people: &Arc<People>,
        hows: impl IntoIterator<Item = &'a str>,
        registry: &mut Registry,
    ) {
        registry.register_collector(Box::new(AuthAge(Arc::clone(people))));
        // An increase can only be seen from zero.
        for how in hows {
            drop(self.loads.get_or_create(&vec![("how", how.to_owned())]));
        }
        for why in Why::ALL {
            drop(self.reconnects.get_or_create(&vec![("why", why.as_str().to_owned())]));
        }
        let ours = registry.sub_registry_with_prefix("isthmus_follow");
        let help = "1 while the changes of the upstream are followed";
        ours.register("connected", help, self.connected.clone());
        let help = "The last revision of the upstream that is visible here";
        ours.register("revision", help, self.revision.clone());
        let help = "The last revision that the upstream told, for linearizable reads";
        ours.register("index_revision", help, self.index_revision.clone());
        let help = "Duration of reads of the upstream's revision";
        ours.register_with_unit("index", help, Unit::Seconds, self.index_seconds.clone());
        let help = "Duration of calls that were forwarded to the upstream";
        ours.register_with_unit("forward", help, Unit::Seconds, self.forward_seconds.clone());
        let help = "Connections for changes that were given up, by reason";
        ours.register("reconnects", help, self.reconnects.clone());
        ours.register("loads", "Loads of all keys, by the way of loading", self.loads.clone());
        let help = "Duration of the last load of all keys";
        ours.register_with_unit("load", help, Unit::Seconds, self.load_seconds.clone());
        let help = "Revisions that the upstream left out and that were asked for again";
        ours.register("gaps", help, self.gaps.clone());
        let help = "Proofs that the upstream has another past than this replica";
        ours.register("divergences", help, self.divergences.clone());
        let help = "Revisions that the upstream sent again and that were compared with the ones here";
        ours.register("compared", help, self.compared.clone());
    }
}
