//! The threads of a process: whether they can be started, and one that is always there for blocking work.

use std::io;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The runtime ends an idle blocking thread after ten seconds; work at half that interval keeps one.
const INTERVAL: Duration = Duration::from_secs(5);
/// Tasks that a thread of the runtime polls before it looks for network events. A poll may take a millisecond.
const EVENT_INTERVAL: u32 = 16;
/// Threads beside those of the runtime: one for the data directory, and two for blocking work while the directory is
/// opened.
const OTHERS: usize = 3;

/// Keeps a blocking thread of the runtime alive. When no thread can be started, the runtime panics if it has no
/// blocking thread, and otherwise leaves new work to those it has. The work of this task is also what starts a thread
/// for the work that waits, once threads can be started again.
pub async fn keep_a_thread() {
    loop {
        // Fails only while the runtime shuts down.
        let _ = tokio::task::spawn_blocking(|| ()).await;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Makes the runtime of a daemon. The error says what to raise.
pub fn runtime() -> io::Result<Runtime> {
    let threads = available_parallelism().map_or(1, usize::from) + OTHERS;
    // The runtime panics, and then waits for ever, if its threads cannot be started.
    can_start(threads).map_err(|error| {
        let text = format!(
            "cannot start {threads} threads: {error}; raise the limit of processes and threads (ulimit -u, pids.max of \
             the control group) or of memory (ulimit -v)"
        );
        io::Error::new(error.kind(), text)
    })?;
    let made = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build();
    made.map_err(|error| {
        let text = format!("cannot make the runtime: {error}; raise the limit of open files (ulimit -n)");
        io::Error::new(error.kind(), text)
    })
}

/// Starts `count` threads that exist at the same time, and ends them.
fn can_start(count: usize) -> io::Result<()> {
    let gate = Arc::new(parking_lot::Mutex::new(()));
    let closed = gate.lock();
    let started: io::Result<Vec<_>> = (0..count)
        .map(|_| {
            let gate = Arc::clone(&gate);
            std::thread::Builder::new().spawn(move || drop(gate.lock()))
        })
        .collect();
    drop(closed);
    for thread in started? {
        let _ = thread.join();
    }
    // A thread that was joined still counts until the kernel has buried it.
    for _ in 0..1000 {
        match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
            Ok(2..) => std::thread::yield_now(),
            _ => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_can_be_started() {
        can_start(4).unwrap();
    }
}
