//! The size of a store, as a metric.

use crate::mvcc::Store;
use crate::util::metrics::Page;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::Arc;

/// The size of the store, under etcd's names.
pub(super) struct StoreSize {
    pub(super) store: Arc<Store>,
    pub(super) quota_bytes: usize,
}

impl fmt::Debug for StoreSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreSize")
    }
}

impl Collector for StoreSize {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (mut page, stats) = (Page(encoder), self.store.stats());
        for (name, help, value) in [
            (
                "etcd_mvcc_db_total_size_in_bytes",
                "Bytes of the store with its history",
                stats.bytes as f64,
            ),
            (
                "etcd_server_quota_backend_bytes",
                "Bytes from which the store takes deletions only",
                self.quota_bytes as f64,
            ),
            ("etcd_debugging_mvcc_keys_total", "Keys in the store", stats.keys as f64),
        ] {
            page.gauges(name, help, vec![(vec![], value)])?;
        }
        Ok(())
    }
}
