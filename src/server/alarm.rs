//! Alarms, and the quota that raises one.
//!
//! An alarm stays until it is disarmed by hand, even if its cause is gone: somebody has to have looked.

use super::{Core, status};
use crate::pb::etcdserverpb::{AlarmMember, AlarmType};
use parking_lot::RwLock;
use std::collections::BTreeSet;
use tonic::{Request, Status};

/// What a put costs beside its key and value, in bytes (etcd: server/storage/quota.go).
const PUT_OVERHEAD: usize = 256;
/// What a lease costs, in bytes.
pub(super) const LEASE_COST: usize = 64;

/// The alarms that are on: (type, member).
#[derive(Default)]
pub(super) struct Alarms(RwLock<BTreeSet<(i32, u64)>>);

impl Alarms {
    /// With these on.
    pub(super) fn new(alarms: &[AlarmMember]) -> Self {
        Self(RwLock::new(alarms.iter().map(|a| (a.alarm, a.member_id)).collect()))
    }

    /// Those of one kind; all of them for `None`.
    pub(super) fn list(&self, kind: AlarmType) -> Vec<AlarmMember> {
        let wanted = |alarm: &i32| kind == AlarmType::None || *alarm == i32::from(kind);
        let alarms = self.0.read();
        let alarms = alarms.iter().filter(|(alarm, _)| wanted(alarm));
        alarms
            .map(|&(alarm, member_id)| AlarmMember { member_id, alarm })
            .collect()
    }

    /// Whether any of a kind is on.
    pub(super) fn has(&self, kind: AlarmType) -> bool {
        self.0.read().iter().any(|(alarm, _)| *alarm == i32::from(kind))
    }

    /// Turns one on.
    pub(super) fn raise(&self, kind: AlarmType, member_id: u64) -> AlarmMember {
        let alarm = i32::from(kind);
        if self.0.write().insert((alarm, member_id)) {
            tracing::error!(alarm = kind.as_str_name(), member_id = %format_args!("{member_id:x}"), "alarm raised");
        }
        AlarmMember { member_id, alarm }
    }

    /// Turns one off, if it is on.
    pub(super) fn disarm(&self, kind: AlarmType, member_id: u64) -> Option<AlarmMember> {
        let alarm = i32::from(kind);
        let was = self.0.write().remove(&(alarm, member_id));
        if was {
            tracing::warn!(alarm = kind.as_str_name(), member_id = %format_args!("{member_id:x}"), "alarm disarmed");
        }
        was.then_some(AlarmMember { member_id, alarm })
    }
}

/// What a put of these would cost, in bytes.
pub(super) fn put_cost(key: &[u8], value: &[u8]) -> usize {
    PUT_OVERHEAD + key.len() + value.len()
}

impl Core {
    /// Fails while the disk takes no more.
    pub(super) fn check_disk(&self) -> Result<(), Status> {
        match &self.durable {
            Some(durable) => Ok(durable.admit()?),
            None => Ok(()),
        }
    }

    /// Fails while the data is known to be corrupt.
    pub(super) fn check_intact(&self) -> Result<(), Status> {
        match self.alarms.has(AlarmType::Corrupt) {
            true => Err(status::corrupt()),
            false => Ok(()),
        }
    }

    /// Fails while an alarm forbids a write; `grows` says whether it takes room.
    ///
    /// Parity: a token that is none is refused first, and after that alarms, before permissions.
    pub(super) fn check_alarms<T>(&self, request: &Request<T>, grows: bool) -> Result<(), Status> {
        if self.alarms.0.read().is_empty() {
            return Ok(());
        }
        self.identity_of(request)?;
        self.check_intact()?;
        match grows {
            true => self.check_alarm(),
            false => Ok(()),
        }
    }

    /// Fails if there was no room some time, and nobody has disarmed the alarm since.
    pub(super) fn check_alarm(&self) -> Result<(), Status> {
        match self.alarms.has(AlarmType::Nospace) {
            true => Err(status::no_space()),
            false => Ok(()),
        }
    }

    /// Turns an alarm on.
    pub(super) fn raise(&self, kind: AlarmType, member_id: u64) -> AlarmMember {
        self.change_alarms(|alarms| alarms.raise(kind, member_id))
    }

    /// Turns an alarm off, if it is on.
    pub(super) fn disarm(&self, kind: AlarmType, member_id: u64) -> Option<AlarmMember> {
        self.change_alarms(|alarms| alarms.disarm(kind, member_id))
    }

    /// Changes alarms, and takes down what has changed, in the same order.
    fn change_alarms<T>(&self, change: impl FnOnce(&Alarms) -> T) -> T {
        let _order = self.changing.lock();
        let before = self.alarms.list(AlarmType::None);
        let done = change(&self.alarms);
        let after = self.alarms.list(AlarmType::None);
        if let Some(durable) = self.durable.as_ref().filter(|_| before != after) {
            durable.alarms_changed(after);
        }
        done
    }

    /// Fails, and raises the alarm, if `cost` more bytes do not fit.
    pub(super) fn check_space(&self, cost: usize) -> Result<(), Status> {
        let quota = usize::try_from(self.config.quota_bytes).unwrap_or(usize::MAX);
        if self.store.size() + cost >= quota {
            self.raise(AlarmType::Nospace, self.config.identity.member_id);
            return Err(status::no_space());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_raised_once_and_listed_by_kind() {
        let alarms = Alarms::default();
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
