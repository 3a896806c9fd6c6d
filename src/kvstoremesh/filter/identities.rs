//! The identities of a remote cluster: what the rules say about their labels, and how many mirrored endpoints have them.

use super::archive::Archive;
use super::classes::Tally;
use crate::scope::rules::{Bits, Cause, Decision, Rules, Verdict};
use crate::scope::selector::IdentityLabels;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};

/// What is known of one identity.
#[derive(Debug, Default)]
struct Identity {
    /// What the rules for endpoints say about its labels; `None` while the labels are not known.
    bits: Option<Bits>,
    /// The number of mirrored endpoints that have it.
    users: u32,
    /// Whether the value of its key is known, which is mirrored only while endpoints use the identity.
    has_value: bool,
    /// Whether the remote cluster has its key.
    is_there: bool,
    is_kept: bool,
    /// Whether the present list of the remote has contained the key.
    is_seen: bool,
}

/// Which identities are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// Those of mirrored endpoints.
    Used,
    /// None: their labels are read for the rules about endpoints.
    Labels,
}

/// What decides about identities.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) wanted: Wanted,
    /// The rules for endpoints.
    pub(super) rules: &'a Rules,
    /// Whether all mirrored endpoints are known.
    pub(super) knows_users: bool,
}

/// A change of the mirror: the number of an identity, and its value unless it is left out.
pub(super) type Change = (u32, Option<Bytes>);

/// The identities of a remote cluster, by number.
#[derive(Debug, Default)]
pub(super) struct Identities {
    identities: HashMap<u32, Identity>,
    /// The values, where identities are mirrored only while endpoints use them.
    values: Archive,
    /// Mirrored identities that may have no user.
    idle: BTreeSet<u32>,
    /// Identities of which the rules may say something else than before.
    changed: BTreeSet<u32>,
    left_out: Sizes,
    /// The number of identities that the remote cluster has, and how many of them are mirrored.
    tally: Tally,
}

/// The sizes of values that were left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    values: u64,
    bytes: u64,
}

// === impl Sizes ===

impl Sizes {
    pub(super) fn add(&mut self, bytes: usize) {
        self.values += 1;
        self.bytes += bytes as u64;
    }

    /// An estimate for this number of values.
    pub(super) fn of(self, values: usize) -> u64 {
        (self.bytes as f64 / self.values.max(1) as f64 * values as f64) as u64
    }
}

/// The number that the name of a key is.
pub(super) fn number(name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(name).ok()?;
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

impl Identity {
    /// Sets whether the remote cluster has the key, and whether the mirror has.
    fn set(&mut self, is_there: bool, is_kept: bool, tally: &mut Tally) {
        tally.keys = tally.keys + usize::from(is_there) - usize::from(self.is_there);
        tally.kept = tally.kept + usize::from(is_kept) - usize::from(self.is_kept);
        (self.is_there, self.is_kept) = (is_there, is_kept);
    }
}

fn bits_of(rules: &Rules, value: &[u8]) -> Option<Bits> {
    Some(rules.identity(&IdentityLabels::parse(value)?))
}

// === impl Judge ===

impl Judge<'_> {
    /// Decides about an identity, whose value is known or not.
    fn verdict(self, identity: &Identity) -> Verdict {
        match self.wanted {
            Wanted::All => Verdict::new(Decision::Keep, Cause::Default),
            Wanted::Labels => Verdict::new(Decision::LeaveOut, Cause::Kind),
            Wanted::Used if identity.users > 0 => Verdict::new(Decision::Keep, Cause::Default),
            // What is mirrored already stays until it is certain that nothing uses it, and until its value is known for
            // the moment at which something does.
            Wanted::Used if !self.knows_users || !identity.has_value => Verdict::new(Decision::Pending, Cause::Unused),
            Wanted::Used => Verdict::new(Decision::LeaveOut, Cause::Unused),
        }
    }
}

// === impl Identities ===

impl Identities {
    /// What the rules for endpoints say about the labels of an identity; `None` if they are not known.
    pub(super) fn bits(&self, rules: &Rules, number: u32) -> Option<Bits> {
        if !rules.need_identities() {
            return Some(Bits::ALL);
        }
        match IdentityLabels::reserved(number) {
            Some(labels) => Some(rules.identity(&labels)),
            None => self.identities.get(&number)?.bits,
        }
    }

    /// The remote cluster has this value. `is_stored` says whether the mirror holds the key. Returns the value to mirror.
    pub(super) fn put(
        &mut self,
        judge: Judge<'_>,
        number: u32,
        value: &Bytes,
        is_stored: impl FnOnce() -> bool,
    ) -> Option<Change> {
        let identity = self.identities.entry(number).or_default();
        let bits = bits_of(judge.rules, value);
        if identity.bits != bits {
            identity.bits = bits;
            self.changed.insert(number);
        }
        let is_new = !identity.is_there;
        identity.is_seen = true;
        identity.has_value = judge.wanted == Wanted::Used;
        if identity.has_value {
            self.values.put(number, value);
        }
        let was_kept = identity.is_kept;
        let is_kept = match judge.verdict(identity).decision {
            Decision::Keep => true,
            Decision::LeaveOut => false,
            Decision::Pending => was_kept || is_new && is_stored(),
        };
        identity.set(true, is_kept, &mut self.tally);
        if is_kept && identity.users == 0 {
            self.idle.insert(number);
        }
        if self.values.is_loose() {
            self.pack();
        }
        match (is_kept, was_kept) {
            (true, _) => Some((number, Some(value.clone()))),
            (false, true) => Some((number, None)),
            (false, false) => {
                self.left_out.add(value.len());
                None
            }
        }
    }

    fn pack(&mut self) {
        let identities = &self.identities;
        let has_value = |number| identities.get(&number).is_some_and(|identity| identity.has_value);
        self.values.pack(has_value);
    }

    /// The remote cluster does not have the key any more.
    pub(super) fn remove(&mut self, number: u32) {
        let Some(identity) = self.identities.get_mut(&number) else {
            return;
        };
        if identity.bits.take().is_some() {
            self.changed.insert(number);
        }
        identity.has_value = false;
        self.values.remove(number);
        identity.set(false, false, &mut self.tally);
        self.forget_if_unknown(number);
    }

    fn forget_if_unknown(&mut self, number: u32) {
        let is_known = |identity: &Identity| identity.is_there || identity.users > 0;
        if self.identities.get(&number).is_some_and(|identity| !is_known(identity)) {
            self.identities.remove(&number);
        }
    }

    /// An endpoint with this identity is mirrored from now on. Returns the identity, if it must be mirrored first.
    pub(super) fn begin_use(&mut self, judge: Judge<'_>, number: u32) -> Option<Change> {
        let identity = self.identities.entry(number).or_default();
        identity.users += 1;
        if judge.wanted != Wanted::Used || identity.is_kept || !identity.has_value {
            return None;
        }
        let value = self.values.get(number)?;
        identity.set(true, true, &mut self.tally);
        Some((number, Some(value)))
    }

    /// A mirrored endpoint has this identity no more. The identity stays until [`Self::settle`].
    pub(super) fn end_use(&mut self, number: u32) {
        if let Some(identity) = self.identities.get_mut(&number) {
            identity.users -= 1;
            if identity.users == 0 {
                self.idle.insert(number);
            }
        }
    }

    /// Nothing is known of the remote's keys any more.
    pub(super) fn forget_keys(&mut self) {
        for identity in self.identities.values_mut() {
            (identity.bits, identity.has_value) = (None, false);
            identity.set(false, false, &mut self.tally);
        }
        self.values = Archive::default();
        self.identities.retain(|_, identity| identity.users > 0);
    }

    /// No endpoint is known any more.
    pub(super) fn forget_users(&mut self) {
        for (number, identity) in &mut self.identities {
            if std::mem::take(&mut identity.users) > 0 {
                self.idle.insert(*number);
            }
        }
    }

    /// A list of the remote begins.
    pub(super) fn list_begun(&mut self) {
        self.left_out = Sizes::default();
        for identity in self.identities.values_mut() {
            identity.is_seen = false;
        }
    }

    /// The list has ended: removes the identities that it did not contain. Returns their numbers.
    pub(super) fn list_ended(&mut self) -> Vec<u32> {
        let gone = self.identities.iter().filter(|(_, i)| i.is_there && !i.is_seen);
        let gone: Vec<u32> = gone.map(|(number, _)| *number).collect();
        gone.iter().for_each(|number| self.remove(*number));
        self.pack();
        gone
    }

    /// The rules for endpoints have changed. Returns whether they ask for other labels, so that all must be read again.
    pub(super) fn rules_changed(&mut self, former: &Rules, rules: &Rules) -> bool {
        let mut is_blind = false;
        for identity in self.identities.values_mut() {
            if let Some(bits) = identity.bits {
                identity.bits = rules.carry(former, bits);
                is_blind |= identity.bits.is_none();
            }
        }
        is_blind
    }

    /// Decides about all identities again. Returns those that enter the mirror; [`Self::settle`] finds those that leave it.
    pub(super) fn judge_all(&mut self, judge: Judge<'_>) -> Vec<Change> {
        self.idle = self.identities.keys().copied().collect();
        let mut wanted = BTreeSet::new();
        for (number, identity) in &mut self.identities {
            let wants = judge.verdict(identity).decision == Decision::Keep;
            if wants && !identity.is_kept && identity.has_value {
                wanted.insert(*number);
                identity.set(true, true, &mut self.tally);
            }
        }
        let found = self.values.get_all(&wanted);
        if judge.wanted != Wanted::Used {
            self.values = Archive::default();
            self.identities
                .values_mut()
                .for_each(|identity| identity.has_value = false);
        }
        found.into_iter().map(|(number, value)| (number, Some(value))).collect()
    }

    /// Leaves out what lost its last user. Returns the changes of the mirror.
    pub(super) fn settle(&mut self, judge: Judge<'_>) -> Vec<Change> {
        let mut changes = vec![];
        for number in std::mem::take(&mut self.idle) {
            let Some(identity) = self.identities.get_mut(&number) else {
                continue;
            };
            let is_out = judge.verdict(identity).decision == Decision::LeaveOut;
            if is_out && identity.is_kept {
                identity.set(identity.is_there, false, &mut self.tally);
                changes.push((number, None));
            }
            self.forget_if_unknown(number);
        }
        changes
    }

    /// The identities whose labels say something else than before.
    pub(super) fn take_changed(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// Bytes that are remembered, about.
    pub(super) fn bytes(&self) -> usize {
        self.identities.len() * size_of::<(u32, Identity)>() + self.values.bytes()
    }

    /// The verdict about one identity; `None` if the remote cluster does not have the identity.
    pub(super) fn verdict(&self, judge: Judge<'_>, number: u32) -> Option<Verdict> {
        let identity = self.identities.get(&number).filter(|identity| identity.is_there)?;
        Some(judge.verdict(identity))
    }

    /// The number of identities that the remote cluster has, and how many of them are mirrored.
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    pub(super) fn left_out(&self) -> Sizes {
        self.left_out
    }
}
