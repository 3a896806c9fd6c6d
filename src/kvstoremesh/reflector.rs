//! The mirror of one prefix of one remote cluster, without IO: its completeness, the position of its watch, and the
//! decision about each key.

use super::position::{Position, ResumePoint};
use super::refusal::{self, Refusal, Refusals};
use super::witness::Witness;
use crate::kvstore::Write;
use crate::kvstore::client::{Changes, KeyValue};
use crate::kvstore::sync_store::PrefixSize;

/// Largest sum of the sizes of the values of one prefix of one remote cluster, in bytes.
const BYTES_MAX: usize = 1 << 30;

/// The prefixes of a scope: in the remote's store, and of its mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefixes {
    pub(super) remote: String,
    pub(super) mirror: String,
}

/// The largest mirror of one prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizeLimit {
    pub(super) keys: usize,
}

/// The completeness of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Completeness {
    /// The scope is not mirrored: the remote does not export the scope, or this mirror does not want it.
    #[default]
    Disabled,
    /// No list has been completed yet.
    Incomplete,
    /// A list was completed. A mirror stays complete while the remote is away and during later lists, since readers
    /// keep the keys that they have.
    Complete,
    /// The prefix exceeds the limits; the text is the reason. The mirror stays as it is, until a later list fits.
    Stopped(String),
    /// The store forbids reading the prefix; the text is the reason. The mirror stays as it is, until a later attempt
    /// is allowed.
    Forbidden(String),
}

/// Counts of reads from a remote cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounters {
    /// Lists begun.
    pub lists: u64,
    /// Watches that resumed without a list.
    pub resumes: u64,
    /// Keys that were accepted for the mirror.
    pub keys: u64,
    /// Bytes of these keys and their values.
    pub bytes: u64,
    /// Keys that were read one by one, because the scope file asked for them.
    pub wanted: u64,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct Reflector {
    completeness: Completeness,
    /// Whether the canary of the first complete, or intentionally empty, mirror is in the local store.
    is_written: bool,
    /// `None`: the next connection must list.
    position: Option<Position>,
    counters: ReadCounters,
}

/// The decision about one key of the remote.
#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    Mirrored(Write),
    Refused(RefusedKey),
}

/// A key that is not mirrored.
#[derive(Debug, PartialEq)]
pub(super) struct RefusedKey {
    pub(super) why: Refusal,
    /// The key, shortened.
    pub(super) key: String,
    pub(super) is_logged: bool,
    /// Removes the mirrored key of the same name, because the remote now has a different value there.
    pub(super) removal: Option<Write>,
}

/// A list that is being read.
#[derive(Debug, Default)]
pub(super) struct List {
    size: PrefixSize,
    /// What the scope file has kept of it.
    pub(super) mirrored: PrefixSize,
    newest: Option<Witness>,
}

// === impl SizeLimit ===

impl SizeLimit {
    /// Fails with the exceeded limit.
    pub(super) fn check(self, PrefixSize { keys, bytes }: PrefixSize) -> Result<(), String> {
        match (keys > self.keys, bytes > BYTES_MAX) {
            (true, _) => Err(format!(
                "{keys} keys, more than the limit of {} (--clustermesh-max-keys)",
                self.keys
            )),
            (_, true) => Err(format!("{bytes} bytes of values, more than the limit of {BYTES_MAX}")),
            _ => Ok(()),
        }
    }
}

// === impl List ===

impl List {
    /// Adds the next page. `announced` is the count in the store's first answer, so that an oversized list is refused
    /// before it is read. A list that turns out longer than announced is refused when it exceeds the limit.
    pub(super) fn page(&mut self, page: &[KeyValue], announced: u64, limit: Option<SizeLimit>) -> Result<(), String> {
        self.size.keys += page.len();
        self.size.bytes += page.iter().map(|kv| kv.value.len()).sum::<usize>();
        let announced = usize::try_from(announced).unwrap_or(usize::MAX);
        let size = PrefixSize {
            keys: announced.max(self.size.keys),
            ..self.size
        };
        limit.map_or(Ok(()), |limit| limit.check(size))?;
        if let Some(kv) = page.iter().max_by_key(|kv| kv.mod_revision)
            && self.newest.as_ref().is_none_or(|w| w.mod_revision() < kv.mod_revision)
        {
            self.newest = Some(Witness::of(kv));
        }
        Ok(())
    }

    /// The key-value that changed last.
    pub(super) fn newest(self) -> Option<Witness> {
        self.newest
    }
}

// === impl Reflector ===

impl Reflector {
    pub(super) fn completeness(&self) -> &Completeness {
        &self.completeness
    }

    /// Whether readiness need not wait for this mirror any more.
    pub(super) fn is_settled(&self) -> bool {
        self.is_written || matches!(self.completeness, Completeness::Stopped(_) | Completeness::Forbidden(_))
    }

    pub(super) fn is_written(&self) -> bool {
        self.is_written
    }

    pub(super) fn counters(&self) -> ReadCounters {
        self.counters
    }

    /// The remote's configuration enables or disables the scope. A complete mirror that stays enabled stays complete.
    pub(super) fn set_enabled(&mut self, is_enabled: bool) {
        match (is_enabled, &self.completeness) {
            (false, _) => self.completeness = Completeness::Disabled,
            (true, Completeness::Disabled) => self.completeness = Completeness::Incomplete,
            (true, _) => {}
        }
    }

    /// The revision that the mirror has reached; `None` if the prefix must be listed.
    pub(super) fn revision(&self) -> Option<i64> {
        Some(self.position.as_ref()?.revision)
    }

    /// Keys were read one by one.
    pub(super) fn wanted_read(&mut self, keys: usize) {
        self.counters.wanted += keys as u64;
    }

    /// The point at which the watch can resume without a list.
    pub(super) fn resume_point(&self, store_id: u64, prefix: &str) -> Option<ResumePoint> {
        self.position.as_ref()?.resume_point(store_id, prefix)
    }

    /// The mirror no longer equals the state that was read: the next connection must list.
    pub(super) fn forget_position(&mut self) {
        self.position = None;
    }

    /// The store still has the witness at the resume point.
    pub(super) fn resumed(&mut self) {
        self.counters.resumes += 1;
    }

    /// A list begins. A list that breaks off leaves a mixture of old and new keys, so the position is dropped.
    pub(super) fn list_begun(&mut self) {
        self.counters.lists += 1;
        self.position = None;
    }

    pub(super) fn list_ended(&mut self, position: Position) {
        self.position = Some(position);
    }

    /// The mirror is complete, and its canary is queued behind it. Returns whether reading was forbidden before.
    pub(super) fn synced(&mut self) -> bool {
        let before = std::mem::replace(&mut self.completeness, Completeness::Complete);
        matches!(before, Completeness::Forbidden(_))
    }

    /// The prefix exceeds the limits.
    pub(super) fn stopped(&mut self, reason: String) {
        self.completeness = Completeness::Stopped(reason);
        self.position = None;
    }

    /// The store forbids reading the prefix. Returns whether the reason is new.
    pub(super) fn forbidden(&mut self, reason: String) -> bool {
        self.position = None;
        let now = Completeness::Forbidden(reason);
        std::mem::replace(&mut self.completeness, now.clone()) != now
    }

    /// The canary, and so everything before it, is in the local store.
    pub(super) fn written(&mut self) {
        self.is_written = true;
    }

    /// Decides about one key, or about its deletion if `value` is `None`.
    pub(super) fn take(
        &mut self,
        prefixes: &Prefixes,
        key: &[u8],
        value: Option<Vec<u8>>,
        refusals: &mut Refusals,
    ) -> Taken {
        let mirrored = |name: &[u8]| [prefixes.mirror.as_bytes(), name].concat();
        let why = match refusal::check(key, &prefixes.remote, value.as_deref().unwrap_or_default()) {
            Ok(name) => {
                let key = mirrored(name);
                return Taken::Mirrored(match value {
                    Some(value) => {
                        self.counters.keys += 1;
                        self.counters.bytes += (key.len() + value.len()) as u64;
                        Write::Put(key.into(), value.into())
                    }
                    None => Write::Delete(key.into()),
                });
            }
            Err(why) => why,
        };
        let shown = String::from_utf8_lossy(&key[..key.len().min(200)]).into_owned();
        let is_logged = refusals.count(why, &shown);
        let name = key.strip_prefix(prefixes.remote.as_bytes());
        let name = name.filter(|name| value.is_some() && crate::model::keys::is_safe_name(name));
        Taken::Refused(RefusedKey {
            why,
            key: shown,
            is_logged,
            removal: name.map(|name| Write::Delete(mirrored(name).into())),
        })
    }

    /// The mirror holds these changes.
    pub(super) fn advance(&mut self, changes: &Changes) {
        if let Some(position) = &mut self.position {
            position.advance(changes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvstore::client::Event;

    fn prefixes() -> Prefixes {
        Prefixes {
            remote: "cilium/state/nodes/v1/hk/".to_owned(),
            mirror: "cilium/cache/nodes/v1/hk/".to_owned(),
        }
    }

    fn kv(name: &str, value: &str, mod_revision: i64) -> KeyValue {
        KeyValue {
            key: format!("{}{name}", prefixes().remote).into_bytes(),
            value: value.into(),
            mod_revision,
            ..KeyValue::default()
        }
    }

    fn position(revision: i64, witness: Option<Witness>) -> Position {
        Position {
            store_id: 7,
            prefix: prefixes().remote,
            revision,
            witness,
        }
    }

    fn resumes_at(reflector: &Reflector) -> Option<i64> {
        reflector.resume_point(7, &prefixes().remote).map(|at| at.revision)
    }

    #[test]
    fn a_key_is_written_under_the_mirrors_prefix_and_counted() {
        let (mut reflector, mut refusals) = (Reflector::default(), Refusals::default());
        let kv = kv("n1", "node", 3);
        let taken = reflector.take(&prefixes(), &kv.key, Some(kv.value), &mut refusals);
        let key = "cilium/cache/nodes/v1/hk/n1";
        assert_eq!(taken, Taken::Mirrored(Write::Put(key.into(), "node".into())));
        let counters = reflector.counters();
        assert_eq!((counters.keys, counters.bytes), (1, key.len() as u64 + 4));
        let taken = reflector.take(&prefixes(), &kv.key, None, &mut refusals);
        assert_eq!(taken, Taken::Mirrored(Write::Delete(key.into())));
        assert_eq!(reflector.counters(), counters, "deletions are not counted");
        assert_eq!(refusals.iter().count(), 0);
    }

    #[test]
    fn a_refused_value_removes_the_value_before_it() {
        let (mut reflector, mut refusals) = (Reflector::default(), Refusals::default());
        let mut take = |name: &str, value| {
            let key = format!("{}{name}", prefixes().remote);
            match reflector.take(&prefixes(), key.as_bytes(), value, &mut refusals) {
                Taken::Refused(refused) => refused,
                Taken::Mirrored(write) => panic!("{write:?}"),
            }
        };
        let large = take("n1", Some(vec![0; refusal::VALUE_MAX + 1]));
        assert_eq!((large.why, large.is_logged), (Refusal::ValueTooLarge, true));
        assert_eq!(large.removal, Some(Write::Delete("cilium/cache/nodes/v1/hk/n1".into())));
        // A key with an unsafe name was never mirrored, so nothing has to be removed.
        assert_eq!(take("../other", Some(vec![])).removal, None);
        assert_eq!(take("a//b", None).removal, None);
        let counts: Vec<_> = refusals.iter().map(|(why, refused)| (why, refused.count)).collect();
        assert_eq!(counts, [(Refusal::UnsafeKey, 2), (Refusal::ValueTooLarge, 1)]);
        assert_eq!(reflector.counters(), ReadCounters::default());
    }

    #[test]
    fn a_list_makes_a_position_and_a_broken_one_leaves_none() {
        let mut reflector = Reflector::default();
        assert_eq!(resumes_at(&reflector), None);
        let mut list = List::default();
        let limit = SizeLimit { keys: 10 };
        list.page(&[kv("a", "1", 5), kv("b", "2", 3)], 3, Some(limit)).unwrap();
        list.page(&[kv("c", "3", 4)], 3, Some(limit)).unwrap();
        let newest = list.newest();
        assert_eq!(newest, Some(Witness::of(&kv("a", "1", 5))));
        reflector.list_begun();
        reflector.list_ended(position(9, newest));
        assert_eq!(resumes_at(&reflector), Some(9));
        reflector.advance(&Changes {
            events: vec![Event::Put(kv("d", "4", 12))],
            revision: 20,
        });
        assert_eq!(resumes_at(&reflector), Some(12));
        reflector.list_begun();
        assert_eq!(resumes_at(&reflector), None);
        assert_eq!(reflector.counters().lists, 2);
    }

    #[test]
    fn an_empty_list_is_not_resumed() {
        let mut reflector = Reflector::default();
        reflector.list_begun();
        reflector.list_ended(position(9, List::default().newest()));
        assert_eq!(resumes_at(&reflector), None);
    }

    #[test]
    fn a_list_is_refused_by_what_is_announced_and_by_what_comes() {
        let limit = SizeLimit { keys: 2 };
        let page = [kv("a", "1", 1)];
        let announced = List::default().page(&page, 3, Some(limit)).unwrap_err();
        assert_eq!(announced, "3 keys, more than the limit of 2 (--clustermesh-max-keys)");
        let mut list = List::default();
        list.page(&page, 1, Some(limit)).unwrap();
        list.page(&page, 1, Some(limit)).unwrap();
        assert!(list.page(&page, 1, Some(limit)).is_err());
        let bytes = limit.check(PrefixSize {
            keys: 1,
            bytes: BYTES_MAX + 1,
        });
        assert!(
            bytes
                .unwrap_err()
                .ends_with(" bytes of values, more than the limit of 1073741824")
        );
    }

    #[test]
    fn completeness_survives_a_new_connection_and_a_new_list() {
        let mut reflector = Reflector::default();
        reflector.set_enabled(true);
        assert_eq!(*reflector.completeness(), Completeness::Incomplete);
        reflector.synced();
        reflector.set_enabled(true);
        reflector.list_begun();
        assert_eq!(*reflector.completeness(), Completeness::Complete);
        reflector.set_enabled(false);
        reflector.set_enabled(true);
        assert_eq!(*reflector.completeness(), Completeness::Incomplete);
    }

    #[test]
    fn a_stopped_mirror_is_settled_and_must_list_again() {
        let mut reflector = Reflector::default();
        reflector.set_enabled(true);
        reflector.list_ended(position(9, Some(Witness::of(&kv("a", "1", 5)))));
        assert!(!reflector.is_settled());
        reflector.stopped("too much".to_owned());
        reflector.set_enabled(true);
        assert_eq!(*reflector.completeness(), Completeness::Stopped("too much".to_owned()));
        assert!(reflector.is_settled() && !reflector.is_written());
        assert_eq!(resumes_at(&reflector), None);
        reflector.synced();
        assert_eq!(*reflector.completeness(), Completeness::Complete);
    }
}
