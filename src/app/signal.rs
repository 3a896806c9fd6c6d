//! SIGTERM and SIGINT stop the process gracefully. A second signal ends the wait for clients that have time to leave; the
//! next one ends the process at once.

use crate::util::lifecycle::Lifecycle;
use tokio::signal::unix::{SignalKind, signal};

/// Lets `life` leave and stop at the first signal. The handlers are installed when this returns.
pub fn stop_on_signals(life: &Lifecycle) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = life.clone();
    #[allow(
        clippy::disallowed_methods,
        reason = "the second signal arrives while the lifecycle waits for its tasks"
    )]
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let signal = next().await;
        tracing::info!(signal, "signal received: stopping");
        tokio::select! {
            biased;
            () = stopping.leave() => {}
            signal = next() => {
                tracing::warn!(signal, "second signal received: no more time for clients to leave");
                stopping.stop();
            }
        }
        let signal = next().await;
        tracing::warn!(signal, "second signal received: exiting without waiting for tasks");
        std::process::exit(1);
    });
    Ok(())
}
