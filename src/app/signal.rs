//! SIGTERM and SIGINT ask the process to stop; a second one ends it at once.

use crate::util::lifecycle::Lifecycle;
use tokio::signal::unix::{SignalKind, signal};

/// Stops `life` at the first signal. Takes effect when this returns.
pub fn stop_on_signals(life: &Lifecycle) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = life.clone();
    #[allow(clippy::disallowed_methods, reason = "it must outlive the lifecycle's tasks")]
    tokio::spawn(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if first {
                tracing::info!(signal = name, "stopping");
                stopping.stop();
            } else {
                tracing::warn!(signal = name, "stopping at once");
                std::process::exit(1);
            }
        }
    });
    Ok(())
}
