//! Reads that give way to writers and can be stopped.
//!
//! A read visits at most [`READ_CHUNK`] keys under one lock. A longer read continues under the next lock at the revision
//! at which it began, which a pin keeps readable. Between two locks the caller is asked whether the read shall go on. A
//! read during which another state was swapped in fails as compacted.

use super::Error;
use super::encoded::Kv;
use super::key_history::KeyHistory;
use super::pages::Rest;
use super::pins::Pin;
use super::range::{KeyRange, RangeOptions, RangeResult};
use super::state::{State, undone};
use super::store::{READ_CHUNK, Store};
use super::txn::Compare;
use parking_lot::RwLockReadGuard;
use smallvec::SmallVec;

/// Keys that a visitor is given at a time, at most.
const AT_ONCE: usize = if cfg!(test) { 3 } else { 16 };

/// One read, which may consist of several ranges and compares.
pub(super) struct Reader<'a> {
    store: &'a Store,
    /// The lock, unless the reader pauses.
    lock: Option<RwLockReadGuard<'a, State>>,
    /// Keys that may still be visited under this lock.
    left: usize,
    /// The oldest revision that the read looks at.
    oldest: i64,
    /// The generation of the state at the beginning: another one has another past.
    generation: u64,
    /// Protects `oldest` once the reader has paused.
    pin: Option<Pin<'a>>,
    keep_going: &'a mut dyn FnMut() -> bool,
}

impl<'a> Reader<'a> {
    /// A read of revisions from `oldest` on, which are readable under `lock`.
    pub(super) fn new(
        store: &'a Store,
        lock: RwLockReadGuard<'a, State>,
        oldest: i64,
        keep_going: &'a mut dyn FnMut() -> bool,
    ) -> Self {
        Self {
            store,
            generation: lock.generation,
            lock: Some(lock),
            left: READ_CHUNK,
            oldest,
            pin: None,
            keep_going,
        }
    }

    /// Reads a range at revision `at`. The caller has checked the revision, and fills in the revision of the result.
    pub(super) fn range(&mut self, options: &RangeOptions, at: i64) -> Result<RangeResult, Error> {
        if options.range.is_single() {
            self.step()?;
            return Ok(self.state()?.single(options, at));
        }
        let mut result = RangeResult {
            count: self.count(&options.range, at)?,
            ..RangeResult::default()
        };
        let needed = options.needed().unwrap_or(usize::MAX).min(result.count);
        if options.count_only || needed == 0 {
            return Ok(result);
        }
        let mut kvs = Vec::with_capacity(needed);
        self.visit(&options.range, needed, |histories| {
            // Key-values are spread over the memory. Looking at several before the first is cloned, which is an atomic
            // operation, lets the processor fetch them at the same time.
            let found: SmallVec<[&Kv; AT_ONCE]> = histories.iter().filter_map(|history| history.at(at)).collect();
            kvs.extend(found.into_iter().cloned());
            needed - kvs.len()
        })?;
        if kvs.len() > READ_CHUNK {
            // Sorting takes a while, too.
            self.pause()?;
        }
        (result.kvs, result.more) = options.finish(kvs);
        if let Some(last) = result.kvs.last().filter(|_| result.more && options.needed().is_some()) {
            let rest = Rest {
                range: options.range.after(last.key()),
                revision: at,
                generation: self.generation,
            };
            self.store.pages.lock().put(&rest, result.count - result.kvs.len());
        }
        Ok(result)
    }

    /// Whether a compare holds at revision `at`.
    pub(super) fn holds(&mut self, compare: &Compare, at: i64) -> Result<bool, Error> {
        if compare.range.is_single() {
            self.step()?;
            let kv = self.state()?.index.get(compare.range.start()).and_then(|h| h.at(at));
            return Ok(compare.holds_for(kv));
        }
        let (mut any, mut all) = (false, true);
        self.visit(&compare.range, usize::MAX, |histories| {
            for kv in histories.iter().filter_map(|history| history.at(at)) {
                any = true;
                all &= compare.holds_for(Some(kv));
            }
            if all { usize::MAX } else { 0 }
        })?;
        Ok(if any { all } else { compare.holds_for(None) })
    }

    /// Keys in `range` that were live at revision `at`.
    fn count(&mut self, range: &KeyRange, at: i64) -> Result<usize, Error> {
        self.step()?;
        let page = Rest {
            range: range.clone(),
            revision: at,
            generation: self.generation,
        };
        let known = self.store.pages.lock().get(&page);
        if let Some(known) = known {
            return Ok(known);
        }
        let left = self.left;
        let state = self.state()?;
        let work = state.work_of_count(range, at);
        if work <= left {
            let count = state.count(range, at, &[]);
            self.left -= work;
            return Ok(count);
        }
        if state.log.events_after(at) > work as u64 {
            let mut count = 0;
            self.visit(range, usize::MAX, |histories| {
                count += histories.iter().filter(|history| history.at(at).is_some()).count();
                usize::MAX
            })?;
            return Ok(count);
        }
        let (now, current) = (state.index.count(range), state.current);
        let (mut next, mut delta) = (at + 1, 0);
        while next <= current {
            let mut changes: Vec<Kv> = Vec::new();
            let first = next;
            for revision in self.state()?.log.since(next) {
                let all = changes.len() + revision.len();
                if revision.revision > current || (next > first && all > READ_CHUNK) {
                    break;
                }
                changes.extend(revision.changes().cloned());
                next = revision.revision + 1;
            }
            self.pause()?;
            if next == first {
                break;
            }
            delta += undone(changes.iter(), range);
        }
        Ok(usize::try_from(now as i64 + delta).unwrap_or(0))
    }

    /// Calls `f` for the keys in `range`, in order, a few at a time: no more than `wanted`, and then no more than `f` returns.
    fn visit(
        &mut self,
        range: &KeyRange,
        mut wanted: usize,
        mut f: impl FnMut(&[&KeyHistory]) -> usize,
    ) -> Result<(), Error> {
        self.step()?;
        let mut rest = None;
        loop {
            let mut left = self.left;
            let range = rest.as_ref().unwrap_or(range);
            let mut histories = self.state()?.index.range(range);
            let next = loop {
                let most = wanted.min(left).min(AT_ONCE);
                let few: SmallVec<[&KeyHistory; AT_ONCE]> = histories.by_ref().take(most).collect();
                left -= few.len();
                wanted = f(&few);
                if wanted == 0 || few.len() < most {
                    break None;
                }
                if left == 0 {
                    break histories.next().map(|history| range.from(history.key()));
                }
            };
            self.left = left;
            let Some(next) = next else { return Ok(()) };
            rest = Some(next);
            self.pause()?;
        }
    }

    fn state(&mut self) -> Result<&State, Error> {
        let state = self.lock.get_or_insert_with(|| self.store.state.read());
        match state.generation == self.generation {
            true => Ok(state),
            false => Err(Error::Compacted),
        }
    }

    /// Counts one look-up.
    fn step(&mut self) -> Result<(), Error> {
        if self.left == 0 {
            self.pause()?;
        }
        self.left -= 1;
        Ok(())
    }

    /// Lets writers run.
    fn pause(&mut self) -> Result<(), Error> {
        self.pin.get_or_insert_with(|| self.store.pins.pin(self.oldest));
        self.lock = None;
        self.left = READ_CHUNK;
        match (self.keep_going)() {
            true => Ok(()),
            false => Err(Error::Stopped),
        }
    }
}
