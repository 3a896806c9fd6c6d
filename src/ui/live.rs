//! Live pages: server-sent events with the pieces of a page that changed.
//!
//! Pages with the same view share a topic, a task that renders the view again and again as long as somebody looks at it.
//! A page says which version it has; it gets the pieces that changed since, or everything if its pieces are others.
//!
//! The views of a process are few: the fixed pages, and one for each remote cluster. Whoever makes up further ones, by searches
//! for example, can neither keep others from these nor make rendering take more of a core.

use super::data::Data;
use super::markup::{Main, Piece};
use super::pages::{self, View};
use super::reader::Reader;
use crate::util::lifecycle::Lifecycle;
use bytes::Bytes;
use futures::stream::{self, Stream};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How often a view is rendered.
const PERIOD: Duration = Duration::from_secs(1);
/// The longest time between two renderings of a view.
const PERIOD_MAX: Duration = Duration::from_secs(30);
/// A view is rendered again after this many times the time that rendering all views takes, if they take as long.
const TIMES_COST: u32 = 20;
/// Views of one kind of readers that are followed at a time beside those that the process has anyhow: searches, further pages of
/// services, and clusters that do not exist.
const MADE_UP_MAX: usize = 64;
/// Versions that are remembered: a page connects soon after it was loaded.
const VERSIONS: usize = 30;
/// A connection without news gets a comment, so that a page whose connection is dead notices.
const ALIVE: Duration = Duration::from_secs(15);

/// The views that are followed.
pub(super) struct Topics {
    data: Arc<Data>,
    life: Lifecycle,
    running: Running,
}

type Running = Arc<Mutex<HashMap<View, Followed>>>;

type Topic = Arc<watch::Sender<Arc<Frame>>>;

/// A view that is followed.
struct Followed {
    topic: Topic,
    /// The reader that has made the view up; `None` for a view that the process has anyhow.
    made_up_by: Option<Reader>,
}

/// A view as it was rendered last.
#[derive(Default)]
struct Frame {
    /// Counts the frames; 0 before the first.
    tick: u64,
    main: Main,
    version: u64,
    shape: u64,
    /// The first frame of this shape.
    shaped: u64,
    /// For each piece, the frame in which it changed last.
    changed: Vec<u64>,
    /// The last versions, with their frames.
    versions: VecDeque<(u64, u64)>,
    /// The news since the frame before, for most followers.
    step: OnceLock<Bytes>,
}

/// A page that follows a topic.
struct Follower {
    frames: watch::Receiver<Arc<Frame>>,
    /// The version of the page when it connected.
    version: Option<u64>,
    /// The last frame that the page was sent; `None` before the first.
    seen: Option<u64>,
}

// === impl Topics ===

impl Topics {
    pub(super) fn new(data: Arc<Data>, life: Lifecycle) -> Self {
        Self {
            data,
            life,
            running: Arc::default(),
        }
    }

    /// The events for a page that shows `view` in `version`; `None` if too many views that `reader` has made up are followed.
    pub(super) fn follow(
        &self,
        view: View,
        reader: Reader,
        version: Option<u64>,
    ) -> Option<impl Stream<Item = Bytes> + use<>> {
        let made_up_by = (!view.is_of(&self.data)).then_some(reader);
        let mut running = self.running.lock();
        let is_too_many = |running: &HashMap<View, Followed>| {
            let as_this = |followed: &&Followed| followed.made_up_by == made_up_by;
            made_up_by.is_some() && running.values().filter(as_this).count() >= MADE_UP_MAX
        };
        let topic = match running.get(&view) {
            Some(followed) => Arc::clone(&followed.topic),
            None if is_too_many(&running) => return None,
            None => {
                let topic: Topic = Arc::new(watch::Sender::new(Arc::default()));
                let followed = Followed {
                    topic: Arc::clone(&topic),
                    made_up_by,
                };
                running.insert(view.clone(), followed);
                let (data, all, stop) = (
                    Arc::clone(&self.data),
                    Arc::clone(&self.running),
                    self.life.stop_token().clone(),
                );
                let shown = Arc::clone(&topic);
                self.life.spawn_part("live page", async move {
                    tokio::select! { () = stop.cancelled() => {}, () = show(data, view, shown, all) => {} }
                });
                topic
            }
        };
        let follower = Follower::new(&topic, version);
        // The lock is held until here, so that the topic does not end in between.
        drop(running);
        Some(stream::unfold(follower, |mut follower| async move {
            let event = follower.next().await?;
            Some((event, follower))
        }))
    }
}

/// Renders a view as long as a page follows it.
async fn show(data: Arc<Data>, view: View, topic: Topic, all: Running) {
    let _ending = Ending {
        view: view.clone(),
        topic: Arc::clone(&topic),
        all: Arc::clone(&all),
    };
    loop {
        let rendered = pages::main(&data, &view).await;
        let frame = Arc::clone(&topic.borrow());
        if let Some(next) = frame.next(rendered.main) {
            topic.send_replace(Arc::new(next));
        }
        let views = all.lock().len();
        tokio::time::sleep(period(rendered.cost, views)).await;
        let mut running = all.lock();
        if topic.receiver_count() == 0 {
            running.remove(&view);
            return;
        }
    }
}

/// The time until a view is rendered again that took `cost`, one of so many.
fn period(cost: Duration, views: usize) -> Duration {
    let views = u32::try_from(views).unwrap_or(u32::MAX);
    let all = cost.saturating_mul(views).saturating_mul(TIMES_COST);
    all.clamp(PERIOD, PERIOD_MAX)
}

/// Ends a topic when its task ends, however that happens.
struct Ending {
    view: View,
    topic: Topic,
    all: Running,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut running = self.all.lock();
        if running
            .get(&self.view)
            .is_some_and(|followed| Arc::ptr_eq(&followed.topic, &self.topic))
        {
            running.remove(&self.view);
        }
    }
}

// === impl Frame ===

impl Frame {
    /// The frame after this one; `None` if nothing has changed.
    fn next(&self, main: Main) -> Option<Self> {
        let (version, shape, tick) = (main.version(), main.shape(), self.tick + 1);
        if self.tick > 0 && version == self.version {
            return None;
        }
        let same_shape = self.tick > 0 && shape == self.shape;
        let changed = match same_shape {
            true => {
                let pieces = main.pieces.iter().zip(&self.main.pieces).zip(&self.changed);
                pieces
                    .map(|((now, before), at)| if now == before { *at } else { tick })
                    .collect()
            }
            false => vec![tick; main.pieces.len()],
        };
        let mut versions = self.versions.clone();
        versions.push_back((version, tick));
        while versions.len() > VERSIONS {
            versions.pop_front();
        }
        Some(Self {
            tick,
            main,
            version,
            shape,
            shaped: if same_shape { self.shaped } else { tick },
            changed,
            versions,
            step: OnceLock::new(),
        })
    }

    /// The frame in which the view had this version.
    fn of_version(&self, version: u64) -> Option<u64> {
        let mut versions = self.versions.iter().rev();
        versions.find(|(known, _)| *known == version).map(|(_, tick)| *tick)
    }

    /// The event for a page that has seen the frame `seen`.
    fn news(&self, seen: Option<u64>) -> Bytes {
        match seen {
            Some(seen) if seen >= self.shaped && seen + 1 == self.tick => {
                self.step.get_or_init(|| self.pieces_since(seen)).clone()
            }
            Some(seen) if seen >= self.shaped => self.pieces_since(seen),
            _ => self.event("all", &json!(self.main.html().0)),
        }
    }

    fn pieces_since(&self, seen: u64) -> Bytes {
        let news = self.main.pieces.iter().zip(&self.changed).filter(|(_, at)| **at > seen);
        let pieces = news.filter_map(|(piece, _)| match piece {
            Piece::Live { id, html } => Some(json!([id, html])),
            Piece::Fixed(_) => None,
        });
        self.event("pieces", &pieces.collect())
    }

    fn event(&self, name: &str, data: &serde_json::Value) -> Bytes {
        // JSON has no line breaks of its own, as an event needs it.
        format!("event: {name}\nid: {:x}\ndata: {data}\n\n", self.version).into()
    }
}

// === impl Follower ===

impl Follower {
    fn new(topic: &watch::Sender<Arc<Frame>>, version: Option<u64>) -> Self {
        let mut frames = topic.subscribe();
        // The present frame is news, too.
        frames.mark_changed();
        Self {
            frames,
            version,
            seen: None,
        }
    }

    /// The next event; `None` when the topic has ended.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match timeout(ALIVE, self.frames.changed()).await {
                Err(_) => return Some(Bytes::from_static(b":\n\n")),
                Ok(Err(_)) => return None,
                Ok(Ok(())) => {}
            }
            let frame = Arc::clone(&self.frames.borrow_and_update());
            if frame.tick == 0 {
                continue;
            }
            if self.seen.is_none() {
                self.seen = self.version.and_then(|version| frame.of_version(version));
            }
            let seen = self.seen.replace(frame.tick);
            if seen != Some(frame.tick) {
                return Some(frame.news(seen));
            }
        }
    }
}

/// The version that a page names.
pub(super) fn parse_version(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use maud::html;

    fn main(rows: &[(&str, &str)]) -> Main {
        let mut main = Main::default();
        main.raw("<ul>");
        for (id, text) in rows {
            main.live(*id, html! { li id=(id) { (text) } });
        }
        main.raw("</ul>");
        main
    }

    fn text(event: Bytes) -> String {
        String::from_utf8(event.to_vec()).unwrap()
    }

    #[test]
    fn a_page_gets_the_pieces_that_changed_since_its_version() {
        let first = Frame::default().next(main(&[("a", "1"), ("b", "1")])).unwrap();
        assert!(first.next(main(&[("a", "1"), ("b", "1")])).is_none());
        let second = first.next(main(&[("a", "1"), ("b", "2\n")])).unwrap();
        let third = second.next(main(&[("a", "3"), ("b", "2\n")])).unwrap();
        assert_eq!(third.of_version(first.version), Some(1));
        let news = text(third.news(Some(1)));
        let expected = format!(
            "event: pieces\nid: {:x}\ndata: [[\"a\",\"<li id=\\\"a\\\">3</li>\"],[\"b\",\"<li id=\\\"b\\\">2\\n</li>\"]]\n\n",
            third.version
        );
        assert_eq!(news, expected);
        assert!(!text(third.news(Some(2))).contains("\"b\""));
        let other = third.next(main(&[("a", "3")])).unwrap();
        for seen in [None, Some(3)] {
            assert!(text(other.news(seen)).starts_with("event: all\n"));
        }
    }

    #[test]
    fn all_views_together_take_a_twentieth_of_a_core() {
        let (short, long) = (Duration::from_micros(500), Duration::from_millis(40));
        assert_eq!([period(short, 1), period(short, 50)], [PERIOD, PERIOD]);
        assert_eq!(period(short, 500), Duration::from_secs(5));
        assert_eq!(
            [period(long, 10), period(long, 500)],
            [Duration::from_secs(8), PERIOD_MAX]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_up_to_date_waits_for_news() {
        let topic = watch::Sender::new(Arc::new(Frame::default()));
        let show = |frame: Frame| topic.send_replace(Arc::new(frame));
        let follow = |version| Follower::new(&topic, version);
        let first = Frame::default().next(main(&[("a", "1")])).unwrap();
        let (version, second) = (first.version, first.next(main(&[("a", "2")])).unwrap());
        let (mut current, mut stranger) = (follow(Some(version)), follow(None));
        show(first);
        assert!(text(stranger.next().await.unwrap()).starts_with("event: all\n"));
        let waits = timeout(ALIVE / 2, current.next()).await;
        assert!(waits.is_err(), "nothing is new");
        show(second);
        for follower in [&mut current, &mut stranger] {
            assert!(text(follower.next().await.unwrap()).starts_with("event: pieces\n"));
        }
        assert_eq!(text(current.next().await.unwrap()), ":\n\n");
    }
}
