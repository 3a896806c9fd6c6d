//! A lane: the keys that one writer writes one after the other, each write with the next sequence number.

use super::stamp::{NO_KEY, Stamp, share};
use super::verify::State;
use std::collections::VecDeque;

/// The next write of a lane. The lane changes once the store has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: u32,
    pub sequence: u64,
    pub replaces: u64,
    /// The key that is deleted in the same transaction, and its sequence number.
    pub deletes: Option<(u32, u64)>,
}

/// The keys of one lane as they were written last.
#[derive(Debug)]
pub struct Lane {
    /// Number of the prefix within the run.
    pub prefix: usize,
    /// Number of the lane within the prefix.
    pub number: u16,
    sequence: u64,
    /// The sequence number of each key's value; 0 for a key that the store does not have.
    keys: Vec<u64>,
    /// Keys that are to be in the store, and are not yet.
    to_fill: VecDeque<u32>,
    /// Keys that are not to be in the store.
    spare: VecDeque<u32>,
    /// The key that is written next.
    at: u32,
    /// Whether a write was sent and not answered, so that the store may or may not have it.
    is_open: bool,
}

impl Lane {
    /// A lane with `count` keys to be written.
    pub fn new(prefix: usize, number: u16, count: u32) -> Self {
        // Spare keys take part in deletions: a key is deleted, and another one is made.
        let spare = if count < 2 { 0 } else { (count / 20).clamp(1, 64) };
        Self {
            prefix,
            number,
            sequence: 0,
            keys: vec![0; (count + spare) as usize],
            to_fill: (0..count).collect(),
            spare: (count..count + spare).collect(),
            at: 0,
            is_open: false,
        }
    }

    /// A write is sent.
    pub fn sent(&mut self) {
        self.is_open = true;
    }

    /// Whether the store has all that this lane says, and nothing else: no write is without an answer.
    pub fn is_known(&self) -> bool {
        !self.is_open
    }

    /// How many keys the lane has, those that are not to be in the store included.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The first `count` writes of keys that the store does not have yet.
    pub fn fill(&self, count: usize) -> Vec<Write> {
        let keys = self.to_fill.iter().take(count).zip(self.sequence + 1..);
        keys.map(|(key, sequence)| Write {
            key: *key,
            sequence,
            replaces: 0,
            deletes: None,
        })
        .collect()
    }

    /// The next changes of keys that the store has, at most one of each key. `delete` asks for a deletion and a new key instead.
    pub fn change(&self, count: usize, delete: bool) -> Vec<Write> {
        let total = self.keys.len() as u32;
        let present = (0..total)
            .map(|i| (self.at + i) % total)
            .filter(|key| self.keys[*key as usize] > 0);
        if delete && let (Some(victim), Some(new)) = (present.clone().next(), self.spare.front()) {
            return vec![Write {
                key: *new,
                sequence: self.sequence + 1,
                replaces: 0,
                deletes: Some((victim, self.keys[victim as usize])),
            }];
        }
        let keys = present.take(count).zip(self.sequence + 1..);
        keys.map(|(key, sequence)| Write {
            key,
            sequence,
            replaces: self.keys[key as usize],
            deletes: None,
        })
        .collect()
    }

    /// The store has these writes.
    pub fn written(&mut self, writes: &[Write]) {
        self.is_open = false;
        for write in writes {
            self.sequence = write.sequence;
            self.keys[write.key as usize] = write.sequence;
            self.at = (write.key + 1) % self.keys.len() as u32;
            if self.to_fill.front() == Some(&write.key) {
                self.to_fill.pop_front();
            }
            if let Some((deleted, _)) = write.deletes {
                self.keys[deleted as usize] = 0;
                self.at = (deleted + 1) % self.keys.len() as u32;
                self.spare.pop_front();
                self.spare.push_back(deleted);
            }
        }
    }

    /// The store has lost everything, so that all keys are to be written again. Sequence numbers go on.
    pub fn lost(&mut self) {
        self.is_open = false;
        for (key, sequence) in self.keys.iter_mut().enumerate().filter(|(_, sequence)| **sequence > 0) {
            *sequence = 0;
            self.to_fill.push_back(key as u32);
        }
    }

    /// The stamp of a write.
    pub fn stamp(&self, write: &Write, run: u32, attempt: u16, sent_nanos: u64) -> Stamp {
        let (deletes, deleted_sequence) = write.deletes.unwrap_or((NO_KEY, 0));
        Stamp {
            run,
            lane: self.number,
            attempt,
            key: write.key,
            sequence: write.sequence,
            replaces: write.replaces,
            deletes,
            deleted_sequence,
            sent_nanos,
            prefix: self.prefix as u32,
        }
    }

    /// Adds what was written to the state of the prefix.
    pub fn add_to(&self, state: &mut State) {
        state.lanes[usize::from(self.number)] = self.sequence;
        for (key, sequence) in self.keys.iter().enumerate().filter(|(_, sequence)| **sequence > 0) {
            state.keys += 1;
            state.fingerprint = state
                .fingerprint
                .wrapping_add(share(self.number, key as u32, *sequence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::verify::Follower;

    fn state(lane: &Lane) -> State {
        let mut state = State {
            lanes: vec![0],
            ..State::default()
        };
        lane.add_to(&mut state);
        state
    }

    /// A reader of all writes agrees with the lane, also after the store has lost everything and the reader listed nothing.
    #[test]
    fn a_reader_of_every_write_has_the_state_of_the_lane() {
        let (mut lane, mut reader, mut revision) = (Lane::new(0, 0, 10), Follower::new(1), 0);
        let mut apply = |lane: &mut Lane, reader: &mut Follower, writes: Vec<Write>| {
            assert!(!writes.is_empty());
            revision += 1;
            for write in &writes {
                let stamp = lane.stamp(write, 1, 0, 0);
                assert!(reader.put(&stamp, revision, write.replaces == 0).is_empty());
                if write.deletes.is_some() {
                    assert!(reader.deleted(revision).is_empty());
                }
            }
            lane.written(&writes);
        };
        for _ in 0..2 {
            while !lane.fill(1).is_empty() {
                let writes = lane.fill(4);
                apply(&mut lane, &mut reader, writes);
            }
            for i in 0..100 {
                let writes = lane.change(1 + i % 3, i % 4 == 0);
                apply(&mut lane, &mut reader, writes);
            }
            assert_eq!(state(&lane).keys, 10);
            assert!(reader.has_all(&state(&lane)));
            assert!(reader.check(&state(&lane)).is_empty());
            lane.lost();
            assert_eq!((lane.fill(99).len(), state(&lane).keys), (10, 0));
            reader.begin_list();
        }
    }

    #[test]
    fn a_lane_is_not_known_while_a_write_has_no_answer() {
        let mut lane = Lane::new(0, 0, 3);
        assert!(lane.is_known());
        lane.sent();
        assert!(!lane.is_known());
        // The same write is repeated, and answered.
        lane.sent();
        let writes = lane.fill(1);
        lane.written(&writes);
        assert!(lane.is_known());
    }

    #[test]
    fn all_keys_are_changed_in_turn() {
        let mut lane = Lane::new(0, 0, 3);
        let all = lane.fill(9);
        lane.written(&all);
        let keys = (0..6).map(|_| {
            let writes = lane.change(1, false);
            lane.written(&writes);
            writes[0].key
        });
        let keys: Vec<_> = keys.collect();
        assert_eq!(keys, [0, 1, 2, 0, 1, 2]);
    }
}
