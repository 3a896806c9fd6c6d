//! Shows on standard error how far a load test is: a bar on a terminal, otherwise lines from time to time.

use crate::cli::logging;
use crate::loadtest::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Time between two lines about the same phase.
const LINE: Duration = Duration::from_secs(10);
const TEMPLATE: &str = "{prefix:16} {wide_bar} {pos}/{len}  {msg}";

/// Shows progress until the test ends. Returns only if the progress cannot be shown.
pub async fn show(progress: watch::Receiver<Progress>) -> anyhow::Error {
    let shown = match std::io::stderr().is_terminal() {
        true => show_bar(progress).await,
        false => {
            show_lines(progress).await;
            Ok(())
        }
    };
    match shown {
        // The test has ended, and the caller is about to notice.
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn show_bar(mut progress: watch::Receiver<Progress>) -> anyhow::Result<()> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(TEMPLATE)?);
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update().clone();
        bar.set_prefix(now.phase);
        bar.set_length(now.total);
        bar.set_position(now.done);
        bar.set_message(now.detail);
    }
    bar.finish_and_clear();
    Ok(())
}

async fn show_lines(mut progress: watch::Receiver<Progress>) {
    let (mut phase, mut last) = ("", Instant::now());
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update().clone();
        if now.phase == phase && last.elapsed() < LINE {
            continue;
        }
        (phase, last) = (now.phase, Instant::now());
        logging::complain(&line(&now));
    }
}

fn line(progress: &Progress) -> String {
    let mut line = progress.phase.to_owned();
    if progress.total > 0 {
        line += &format!(": {} of {}", progress.done, progress.total);
    }
    if !progress.detail.is_empty() {
        line += &format!(", {}", progress.detail);
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_is_known() {
        let mut progress = Progress {
            phase: "connecting",
            ..Progress::default()
        };
        assert_eq!(line(&progress), "connecting\n");
        (progress.done, progress.total) = (5, 10);
        progress.detail = "1 event".to_owned();
        assert_eq!(line(&progress), "connecting: 5 of 10, 1 event\n");
    }
}
