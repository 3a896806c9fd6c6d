//! Metrics of the scope file and of what it decided.

use super::exported::Exported;
use super::follow::FileState;
use crate::util::metrics::Page;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// The scope file of one process, if it has one. Clones share it.
#[derive(Clone, Default)]
pub struct ScopeMetrics(Arc<Mutex<Option<Arc<FileState>>>>);

impl fmt::Debug for ScopeMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScopeMetrics")
    }
}

impl ScopeMetrics {
    /// Shows the state of a scope file.
    pub fn follow(&self, file: &Arc<FileState>) {
        *self.0.lock() = Some(Arc::clone(file));
    }

    /// The scope file; `None` in a process without one.
    pub fn file(&self) -> Option<Arc<FileState>> {
        self.0.lock().clone()
    }
}

impl Collector for ScopeMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let file = self.file();
        let mut page = Page(encoder);
        let one = |value: Option<f64>| value.into_iter().map(|value| (vec![], value)).collect();
        let valid = file.as_ref().map(|f| f64::from(u8::from(f.problem().is_none())));
        page.gauges(
            "isthmus_scope_file_valid",
            "Whether the scope file can be used (1); if not (0), the scope that was read last stays",
            one(valid),
        )?;
        let errors = file.iter().map(|f| (vec![], f.errors())).collect();
        page.counters(
            "isthmus_scope_file_errors",
            "Number of times that the scope file could not be used, by its content or because it could not be read",
            errors,
        )?;
        let loaded = file.as_ref().and_then(|f| f.loaded());
        let loaded = loaded.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        page.gauges(
            "isthmus_scope_file_loaded_timestamp_seconds",
            "When a valid scope file was read last, in seconds since 1970",
            one(loaded.map(|d| d.as_secs_f64())),
        )?;
        let exported = file.as_ref().and_then(|f| f.export());
        let rows: Vec<_> = exported.iter().flat_map(Exported::rows).collect();
        page.gauges(
            "isthmus_scope_exported_keys",
            "Number of keys of this cluster by kind, by what the scope file decided (kept, left-out or pending), and by the rule",
            rows.iter().map(|(labels, t)| (labels.clone(), t.keys as f64)).collect(),
        )?;
        page.gauges(
            "isthmus_scope_exported_bytes",
            "Bytes of the keys and values that isthmus_scope_exported_keys counts: what each reader is spared of those left out",
            rows.into_iter().map(|(labels, t)| (labels, t.bytes as f64)).collect(),
        )
    }
}
