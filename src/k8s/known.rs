//! The objects of one kind that are known, to find out which have gone when a new list ends. Pure.

use super::events::Event;
use super::types::{Kind, Object, ObjectKey};
use std::collections::HashSet;

/// One step of a list or a watch.
pub(super) enum Step {
    /// A list begins.
    ListBegins,
    Apply(Object),
    Delete(Object),
    /// A list has ended.
    ListEnds,
}

pub(super) struct KnownObjects {
    kind: Kind,
    keys: HashSet<ObjectKey>,
    /// The objects in the current list; `None` without a current list, or if no objects were known when it began.
    listed: Option<HashSet<ObjectKey>>,
    /// Whether a list has ended at least once.
    is_listed: bool,
}

impl KnownObjects {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            keys: HashSet::new(),
            listed: None,
            is_listed: false,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Applies a step; returns the events that follow. The end of a list deletes the objects that were not in the list.
    pub(super) fn step(&mut self, step: Step) -> Vec<Event> {
        match step {
            Step::ListBegins => {
                // The first list has no earlier objects to compare with, unless a first attempt broke off.
                self.listed = (!self.keys.is_empty()).then(HashSet::new);
                vec![]
            }
            Step::Apply(object) => {
                let key = object.key();
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                self.keys.insert(key.clone());
                vec![Event::Apply(key, Box::new(object))]
            }
            Step::Delete(object) => {
                let key = object.key();
                self.keys.remove(&key);
                vec![Event::Delete(key)]
            }
            Step::ListEnds => {
                let mut events = vec![];
                if let Some(listed) = self.listed.take() {
                    let gone = self.keys.extract_if(|key| !listed.contains(key));
                    events.extend(gone.map(Event::Delete));
                }
                if !std::mem::replace(&mut self.is_listed, true) {
                    events.push(Event::Listed(self.kind));
                }
                events
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_a_new_list_does_not_name_is_deleted() {
        let object = |name: &str| {
            Kind::Node
                .parse(serde_json::json!({"metadata": {"name": name}}))
                .unwrap()
        };
        let mut known = KnownObjects::new(Kind::Node);
        known.step(Step::ListBegins);
        known.step(Step::Apply(object("a")));
        known.step(Step::Apply(object("c")));
        // The first list broke off, and `c` was deleted before the next list began.
        known.step(Step::ListBegins);
        known.step(Step::Apply(object("a")));
        known.step(Step::Apply(object("b")));
        let events = known.step(Step::ListEnds);
        let [Event::Delete(key), Event::Listed(Kind::Node)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(&*key.name, "c");
        known.step(Step::ListBegins);
        known.step(Step::Apply(object("b")));
        let events = known.step(Step::ListEnds);
        let [Event::Delete(key)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(&*key.name, "a");
    }
}
