//! The alarms that are active.
//!
//! An alarm stays active until an operator disarms it, even after its cause is gone, and also over a restart.

use super::commit::Durability;
use crate::pb::etcdserverpb::{AlarmMember, AlarmType};
use parking_lot::RwLock;
use std::collections::BTreeSet;

/// An active alarm of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Alarm {
    kind: AlarmType,
    member_id: u64,
}

/// The set of active alarms, kept in the data directory.
pub(super) struct Alarms {
    active: RwLock<BTreeSet<Alarm>>,
    durability: Durability,
}

impl From<&AlarmMember> for Alarm {
    fn from(alarm: &AlarmMember) -> Self {
        Self {
            kind: alarm.alarm(),
            member_id: alarm.member_id,
        }
    }
}

impl From<Alarm> for AlarmMember {
    fn from(Alarm { kind, member_id }: Alarm) -> Self {
        Self {
            member_id,
            alarm: kind.into(),
        }
    }
}

impl Alarms {
    /// Starts with the alarms that the last run left active.
    pub(super) fn new(active: &[AlarmMember], durability: Durability) -> Self {
        Self {
            active: RwLock::new(active.iter().map(Alarm::from).collect()),
            durability,
        }
    }

    /// The active alarms of one kind, or all of them for [`AlarmType::None`].
    pub(super) fn list(&self, kind: AlarmType) -> Vec<AlarmMember> {
        let active = self.active.read();
        let wanted = active
            .iter()
            .filter(|alarm| kind == AlarmType::None || alarm.kind == kind);
        wanted.map(|alarm| (*alarm).into()).collect()
    }

    /// Whether an alarm of `kind` is active for any member.
    pub(super) fn has(&self, kind: AlarmType) -> bool {
        self.active.read().iter().any(|alarm| alarm.kind == kind)
    }

    /// Activates an alarm.
    pub(super) fn raise(&self, kind: AlarmType, member_id: u64) -> AlarmMember {
        let alarm = Alarm { kind, member_id };
        let mut active = self.active.write();
        if active.insert(alarm) {
            self.record(&active);
            tracing::error!(alarm = kind.as_str_name(), member_id = %format_args!("{member_id:x}"), "alarm raised");
        }
        alarm.into()
    }

    /// Disarms an alarm; `None` if it was not active.
    pub(super) fn disarm(&self, kind: AlarmType, member_id: u64) -> Option<AlarmMember> {
        let alarm = Alarm { kind, member_id };
        let mut active = self.active.write();
        if !active.remove(&alarm) {
            return None;
        }
        self.record(&active);
        tracing::warn!(alarm = kind.as_str_name(), member_id = %format_args!("{member_id:x}"), "alarm disarmed");
        Some(alarm.into())
    }

    /// Writes the set to the data directory. The caller holds the lock, so that the records are in the order of
    /// the changes.
    fn record(&self, active: &BTreeSet<Alarm>) {
        if let Some(disk) = self.durability.disk() {
            disk.alarms_changed(active.iter().map(|alarm| (*alarm).into()).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_raised_once_and_listed_by_kind() {
        let alarms = Alarms::new(&[], Durability::new(None));
        alarms.raise(AlarmType::Nospace, 7);
        alarms.raise(AlarmType::Nospace, 7);
        alarms.raise(AlarmType::Corrupt, 8);
        assert_eq!(alarms.list(AlarmType::None).len(), 2);
        assert_eq!(alarms.list(AlarmType::Nospace)[0].member_id, 7);
        assert!(alarms.disarm(AlarmType::Corrupt, 7).is_none());
        assert!(alarms.disarm(AlarmType::Corrupt, 8).is_some());
        assert!(!alarms.has(AlarmType::Corrupt));
    }
}
