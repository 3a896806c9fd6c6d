//! The flag of the scope file.

use crate::app;
use crate::app::metrics::DaemonMetrics;
use crate::scope::Watcher;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::Ready;
use clap::Args;
use std::path::PathBuf;

/// Which keys are exported and imported.
#[derive(Args, Debug)]
#[command(next_help_heading = "Scope")]
pub struct ScopeArgs {
    /// File that says which keys this cluster exports to the mesh, and which keys of remote clusters it imports. Changes of
    /// the file are followed. Without it, everything is exported and imported. The format is in docs/scope.md.
    #[arg(long, env = "CILIUM_SCOPE", value_name = "FILE")]
    scope: Option<PathBuf>,
}

impl ScopeArgs {
    /// Follows the file; `None` without one.
    pub fn start(&self, metrics: &DaemonMetrics, ready: &Ready, life: &Lifecycle) -> Option<Watcher> {
        let path = self.scope.clone().filter(|path| !path.as_os_str().is_empty())?;
        Some(app::start_scope(path, metrics, ready, life))
    }
}
