//! Verifies what one agent receives of one prefix: every write once, in order, and at the end the state that was written.
//!
//! The writes of a lane have dense sequence numbers, so one number per lane finds a lost, repeated or reordered event at
//! once. A fingerprint, the sum of the shares of all present keys, is the state: a value tells which share it replaces. So
//! an agent needs no memory per key, and a machine can simulate tens of thousands of agents.

use super::stamp::{NO_KEY, Stamp, share};
use std::ops::AddAssign;

/// What was wrong with the events of one prefix, as counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Findings {
    /// Events that never came.
    pub missing: u64,
    /// Events that came again.
    pub duplicate: u64,
    /// Events that came after later ones.
    pub reordered: u64,
    /// Prefixes whose state at the end was not what had been written.
    pub wrong_state: u64,
}

impl Findings {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn total(&self) -> u64 {
        self.missing + self.duplicate + self.reordered + self.wrong_state
    }
}

impl AddAssign for Findings {
    fn add_assign(&mut self, other: Self) {
        self.missing += other.missing;
        self.duplicate += other.duplicate;
        self.reordered += other.reordered;
        self.wrong_state += other.wrong_state;
    }
}

/// The state of a prefix: what its writer has written, or what its reader has received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The last sequence number of each lane; 0 for none.
    pub lanes: Vec<u64>,
    pub keys: i64,
    pub fingerprint: u64,
}

/// What an agent has received of one prefix.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    /// The position of the watch: everything up to this revision has been received.
    revision: i64,
    state: State,
    /// Bit by bit the lanes whose last sequence number is not known, because a list contained none of their keys.
    unknown: u64,
    /// Events that are missing so far: late ones may still fill the gap.
    gaps: u64,
    /// Deletions that values announced, less the deletions that came.
    deletions: i64,
}

/// The most lanes of a prefix, for the bits of a number.
pub const LANES_MAX: usize = 64;

impl Follower {
    /// A reader that has received nothing yet.
    pub fn new(lanes: usize) -> Self {
        let mut new = Self::default();
        new.state.lanes = vec![0; lanes];
        new.begin_list();
        new
    }

    /// The position of the watch.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Forgets everything, because the prefix is listed anew.
    pub fn begin_list(&mut self) {
        self.state.lanes.fill(0);
        (self.state.keys, self.state.fingerprint) = (0, 0);
        (self.revision, self.gaps, self.deletions) = (0, 0, 0);
        self.unknown = u64::MAX;
    }

    /// Takes a key of the list.
    pub fn listed(&mut self, stamp: &Stamp) {
        let share = share(stamp.lane, stamp.key, stamp.sequence);
        self.state.fingerprint = self.state.fingerprint.wrapping_add(share);
        self.state.keys += 1;
        if let Some(last) = self.state.lanes.get_mut(usize::from(stamp.lane)) {
            *last = (*last).max(stamp.sequence);
            self.unknown &= !(1 << stamp.lane);
        }
    }

    /// The list is complete as of `revision`.
    pub fn end_list(&mut self, revision: i64) {
        self.revision = revision;
    }

    /// Everything up to `revision` has been received.
    pub fn reached(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// Takes the event of a key that a writer put. `is_new` says whether the store had no such key before.
    pub fn put(&mut self, stamp: &Stamp, revision: i64, is_new: bool) -> Findings {
        let mut findings = self.in_order(revision);
        let Some(last) = self.state.lanes.get_mut(usize::from(stamp.lane)) else {
            return findings;
        };
        let bit = 1 << stamp.lane;
        if self.unknown & bit != 0 {
            self.unknown &= !bit;
            *last = stamp.sequence.saturating_sub(1);
        }
        if stamp.sequence <= *last {
            match () {
                // The event of a repeated write is no fault of the store.
                () if stamp.attempt > 0 => return findings,
                () if self.gaps > 0 && stamp.sequence < *last => {
                    self.gaps -= 1;
                    findings.reordered += 1;
                }
                () => {
                    findings.duplicate += 1;
                    return findings;
                }
            }
        } else {
            self.gaps += stamp.sequence - *last - 1;
            *last = stamp.sequence;
        }
        self.state.keys += i64::from(is_new);
        let mut fingerprint = self.state.fingerprint;
        fingerprint = fingerprint.wrapping_add(share(stamp.lane, stamp.key, stamp.sequence));
        if stamp.replaces > 0 {
            fingerprint = fingerprint.wrapping_sub(share(stamp.lane, stamp.key, stamp.replaces));
        }
        if stamp.deletes != NO_KEY {
            fingerprint = fingerprint.wrapping_sub(share(stamp.lane, stamp.deletes, stamp.deleted_sequence));
            self.deletions += 1;
        }
        self.state.fingerprint = fingerprint;
        findings
    }

    /// Takes the event of a deleted key.
    pub fn deleted(&mut self, revision: i64) -> Findings {
        self.state.keys -= 1;
        self.deletions -= 1;
        self.in_order(revision)
    }

    /// Revisions never go back. All events of a transaction have the same one.
    fn in_order(&mut self, revision: i64) -> Findings {
        let is_late = revision < self.revision;
        self.revision = self.revision.max(revision);
        Findings {
            reordered: u64::from(is_late),
            ..Findings::default()
        }
    }

    /// Whether the last write of every lane has been received.
    pub fn has_all(&self, written: &State) -> bool {
        let mut lanes = self.state.lanes.iter().zip(&written.lanes);
        lanes.all(|(received, written)| received >= written) && self.deletions == 0
    }

    /// Compares with what was written, and ends the account of missing events.
    pub fn check(&mut self, written: &State) -> Findings {
        let behind = self.state.lanes.iter().zip(&written.lanes);
        let never_came: u64 = behind
            .map(|(received, written)| written.saturating_sub(*received))
            .sum();
        let is_wrong = (self.state.keys, self.state.fingerprint) != (written.keys, written.fingerprint);
        Findings {
            missing: std::mem::take(&mut self.gaps) + never_came,
            wrong_state: u64::from(is_wrong || self.deletions != 0),
            ..Findings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a lane that writes three keys in turn; every fifth write also deletes a key.
    struct Writes {
        present: [u64; 3],
        events: Vec<(Stamp, i64, bool)>,
    }

    fn writes(n: u64) -> Writes {
        let (mut present, mut events) = ([0; 3], vec![]);
        for sequence in 1..=n {
            let key = usize::try_from(sequence % 3).unwrap();
            let victim = (key + 1) % 3;
            let deletes = sequence % 5 == 0 && present[victim] > 0;
            let stamp = Stamp {
                run: 1,
                lane: 0,
                attempt: 0,
                key: u32::try_from(key).unwrap(),
                sequence,
                replaces: present[key],
                deletes: if deletes {
                    u32::try_from(victim).unwrap()
                } else {
                    NO_KEY
                },
                deleted_sequence: if deletes { present[victim] } else { 0 },
                sent_nanos: 0,
                prefix: 0,
            };
            events.push((stamp, i64::try_from(sequence).unwrap(), present[key] == 0));
            present[key] = sequence;
            if deletes {
                present[victim] = 0;
            }
        }
        Writes { present, events }
    }

    impl Writes {
        fn state(&self) -> State {
            let shares = self.present.iter().enumerate().filter(|(_, sequence)| **sequence > 0);
            let shares = shares.map(|(key, sequence)| share(0, u32::try_from(key).unwrap(), *sequence));
            State {
                lanes: vec![u64::try_from(self.events.len()).unwrap()],
                keys: i64::try_from(shares.clone().count()).unwrap(),
                fingerprint: shares.fold(0, u64::wrapping_add),
            }
        }

        /// What a reader finds that receives the events with these sequence numbers.
        fn received(&self, order: impl IntoIterator<Item = usize>) -> Findings {
            let mut reader = Follower::new(1);
            reader.unknown = 0;
            let mut findings = Findings::default();
            for sequence in order {
                let (stamp, revision, is_new) = &self.events[sequence - 1];
                // A reordering stub of a store would not give revisions away.
                let revision = reader.revision().max(*revision);
                findings += reader.put(stamp, revision, *is_new);
                if stamp.deletes != NO_KEY {
                    findings += reader.deleted(revision);
                }
            }
            findings += reader.check(&self.state());
            findings
        }
    }

    #[test]
    fn all_events_in_order_leave_nothing_to_find() {
        assert_eq!(writes(50).received(1..=50), Findings::default());
    }

    #[test]
    fn a_missing_a_repeated_and_a_reordered_event_are_found() {
        let writes = writes(50);
        let missing = writes.received((1..=50).filter(|n| *n != 17));
        assert_eq!((missing.missing, missing.duplicate, missing.reordered), (1, 0, 0));
        assert_eq!(missing.wrong_state, 1);
        let repeated = writes.received((1..=50).flat_map(|n| if n == 17 { vec![n, n] } else { vec![n] }));
        assert_eq!((repeated.missing, repeated.duplicate, repeated.reordered), (0, 1, 0));
        let swapped = |n| match n {
            17 => 18,
            18 => 17,
            n => n,
        };
        let reordered = writes.received((1..=50).map(swapped));
        assert_eq!((reordered.missing, reordered.duplicate, reordered.reordered), (0, 0, 1));
        let last = writes.received(1..=49);
        assert_eq!((last.missing, last.wrong_state), (1, 1));
    }

    #[test]
    fn a_deletion_that_does_not_come_is_a_wrong_state() {
        let writes = writes(50);
        let mut reader = Follower::new(1);
        reader.unknown = 0;
        for (at, (stamp, revision, is_new)) in writes.events.iter().enumerate() {
            reader.put(stamp, *revision, *is_new);
            if stamp.deletes != NO_KEY && at > 20 {
                reader.deleted(*revision);
            }
        }
        assert!(!reader.has_all(&writes.state()));
        assert_eq!(reader.check(&writes.state()).wrong_state, 1);
    }

    #[test]
    fn a_revision_that_goes_back_is_found() {
        let writes = writes(2);
        let mut reader = Follower::new(1);
        reader.end_list(10);
        assert_eq!(reader.put(&writes.events[0].0, 9, true).reordered, 1);
        assert_eq!(reader.put(&writes.events[1].0, 11, true), Findings::default());
    }

    #[test]
    fn a_list_is_the_state_and_a_watch_continues_it() {
        let writes = writes(50);
        let mut reader = Follower::new(1);
        for round in 0..2 {
            reader.begin_list();
            for (stamp, _, _) in &writes.events {
                let key = usize::try_from(stamp.key).unwrap();
                if writes.present[key] == stamp.sequence {
                    reader.listed(stamp);
                }
            }
            reader.end_list(50);
            assert!(reader.has_all(&writes.state()), "round {round}");
            assert_eq!(reader.check(&writes.state()), Findings::default());
        }
    }

    /// The writer did not get the answer and repeated the write.
    #[test]
    fn the_event_of_a_repeated_write_is_no_duplicate() {
        let writes = writes(3);
        let mut reader = Follower::new(1);
        for (stamp, revision, is_new) in &writes.events {
            reader.put(stamp, *revision, *is_new);
        }
        let again = Stamp {
            attempt: 1,
            ..writes.events[2].0
        };
        assert_eq!(reader.put(&again, 4, false), Findings::default());
        assert_eq!(reader.check(&writes.state()), Findings::default());
    }
}
