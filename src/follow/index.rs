//! The read index: a revision that the upstream had after a call began, for however many calls at a time.
//!
//! At most one read of the upstream is on its way. Whoever comes meanwhile shares the next one, because the present one may
//! have been answered from before. Reads are spaced, so that readers here cannot load the upstream, whatever they do.

use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// Time between the beginnings of two reads.
const SPACING: Duration = Duration::from_millis(2);
/// Limit for the answer to a call.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// Time between attempts while the upstream does not answer.
const AGAIN: Duration = Duration::from_millis(100);

/// Why there is no index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the upstream did not say its revision in {} s: {why}", LIMIT.as_secs())]
    Silent { why: String },
}

/// The number of a read, and its outcome.
#[derive(Clone, Debug)]
struct Done {
    number: u64,
    outcome: Result<i64, String>,
}

/// The numbers of reads: the last one that has begun, and the last one that somebody waits for.
#[derive(Default)]
struct Numbers {
    begun: u64,
    wanted: u64,
}

/// Reads the upstream's revision for all callers.
pub struct Index {
    numbers: Mutex<Numbers>,
    wanted: Notify,
    done: watch::Sender<Done>,
    /// The time since when reads fail.
    failing: Mutex<Option<Instant>>,
}

impl Index {
    pub(super) fn new() -> Self {
        let nothing = Done {
            number: 0,
            outcome: Ok(0),
        };
        Self {
            numbers: Mutex::default(),
            wanted: Notify::new(),
            done: watch::Sender::new(nothing),
            failing: Mutex::default(),
        }
    }

    /// For how long reads have failed.
    pub(super) fn outage(&self) -> Option<Duration> {
        self.failing.lock().map(|since| since.elapsed())
    }

    /// Asks for a read that begins after this call; returns its number.
    pub(super) fn ask(&self) -> u64 {
        let mut numbers = self.numbers.lock();
        let next = numbers.begun + 1;
        numbers.wanted = next;
        drop(numbers);
        self.wanted.notify_one();
        next
    }

    /// The number of the next read, if somebody waits for it. The read begins now.
    fn begin(&self) -> Option<u64> {
        let mut numbers = self.numbers.lock();
        (numbers.wanted > numbers.begun).then(|| {
            numbers.begun += 1;
            numbers.begun
        })
    }

    /// A revision that the upstream had after this call began.
    pub async fn get(&self) -> Result<i64, Error> {
        let mut done = self.done.subscribe();
        let reached = async {
            loop {
                let next = self.ask();
                let found = done.wait_for(|done| done.number >= next).await;
                // Fails never: the sender lives as long as this index. Another read may be in time after one that failed.
                if let Ok(Ok(revision)) = found.map(|done| done.outcome.clone()) {
                    return revision;
                }
            }
        };
        match timeout(LIMIT, reached).await {
            Ok(revision) => Ok(revision),
            Err(_) => Err(Error::Silent {
                why: match &self.done.borrow().outcome {
                    Err(why) => why.clone(),
                    Ok(_) => "no answer".to_owned(),
                },
            }),
        }
    }

    /// Reads with `read` whenever somebody waits.
    pub(super) async fn run<'a>(&self, read: impl Fn() -> BoxFuture<'a, Result<i64, String>>) {
        let mut next = Instant::now();
        loop {
            self.wanted.notified().await;
            sleep_until(next).await;
            let Some(number) = self.begin() else { continue };
            next = Instant::now() + SPACING;
            let outcome = read().await;
            match outcome {
                Ok(_) => *self.failing.lock() = None,
                Err(_) => {
                    next += AGAIN;
                    self.failing.lock().get_or_insert_with(Instant::now);
                }
            }
            self.done.send_replace(Done { number, outcome });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Runs `test` beside the task of an index whose reads take 10 ms, and say the number of reads so far.
    async fn beside<T>(fails: u64, test: impl AsyncFnOnce(&Index) -> T) -> (T, u64) {
        let (index, reads) = (Index::new(), AtomicU64::new(0));
        let read = || {
            let number = reads.fetch_add(1, Ordering::Relaxed) + 1;
            let answer = async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                match number <= fails {
                    true => Err(format!("failure {number}")),
                    false => Ok(number as i64),
                }
            };
            answer.boxed()
        };
        let done = tokio::select! {
            done = test(&index) => done,
            () = index.run(read) => unreachable!("it reads for ever"),
        };
        (done, reads.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_shares_only_reads_that_begin_after_its_call() {
        let ((first, second, third), reads) = beside(0, async |index| {
            let late = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                index.get().await
            };
            let later = async {
                tokio::time::sleep(Duration::from_millis(6)).await;
                index.get().await
            };
            tokio::join!(index.get(), late, later)
        })
        .await;
        assert_eq!((first, second, third, reads), (Ok(1), Ok(2), Ok(2), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_read_is_repeated_until_the_limit() {
        let (found, reads) = beside(2, async |index| index.get().await).await;
        assert_eq!((found, reads), (Ok(3), 3));
        let begun = Instant::now();
        let (found, _) = beside(u64::MAX, async |index| index.get().await).await;
        let error = found.unwrap_err().to_string();
        assert!(
            error.starts_with("the upstream did not say its revision in 2 s: failure"),
            "{error}"
        );
        assert_eq!(begun.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_spaced() {
        let begun = Instant::now();
        let index = Index::new();
        let test = async {
            for _ in 0..100 {
                index.get().await.unwrap();
            }
        };
        tokio::select! {
            () = test => {}
            () = index.run(|| async { Ok(1) }.boxed()) => unreachable!("it reads for ever"),
        }
        assert!(begun.elapsed() >= 99 * SPACING, "{:?}", begun.elapsed());
    }
}
