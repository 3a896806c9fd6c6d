//! Which branches a transaction takes, and what both kinds of transactions check: those that write, and those that read.

use super::Error;
use super::encoded::Kv;
use super::range::RangeOptions;
use super::txn::{Compare, CompareResult, Op, Target, Txn};
use std::cmp::Ordering;

impl Compare {
    /// Whether the compare holds for one key-value, or for an absent key.
    pub(super) fn holds_for(&self, kv: Option<&Kv>) -> bool {
        let f = kv.map(Kv::fields).unwrap_or_default();
        let ordering = match &self.target {
            Target::Value(_) if kv.is_none() => return false,
            Target::Value(v) => f.value.cmp(v),
            Target::Version(n) => f.version.cmp(n),
            Target::Create(n) => f.create_revision.cmp(n),
            Target::Mod(n) => f.mod_revision.cmp(n),
            Target::Lease(n) => f.lease.cmp(n),
        };
        match self.result {
            CompareResult::Equal => ordering == Ordering::Equal,
            CompareResult::Greater => ordering == Ordering::Greater,
            CompareResult::Less => ordering == Ordering::Less,
            CompareResult::NotEqual => ordering != Ordering::Equal,
            CompareResult::Unknown => true,
        }
    }
}

/// Evaluates the compares of a transaction and of the nested transactions in the branches to take. `taken` gets one
/// result for each, in order of evaluation.
pub(super) fn path(
    txn: &Txn,
    holds: &mut impl FnMut(&Compare) -> Result<bool, Error>,
    taken: &mut Vec<bool>,
) -> Result<(), Error> {
    let mut succeeded = true;
    for compare in &txn.compares {
        if !holds(compare)? {
            succeeded = false;
            break;
        }
    }
    taken.push(succeeded);
    for op in branch(txn, succeeded) {
        if let Op::Txn(nested) = op {
            path(nested, holds, taken)?;
        }
    }
    Ok(())
}

pub(super) fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// Checks the revision of a range inside a transaction.
///
/// Parity: there, a negative revision does not mean "now".
pub(super) fn check_range(options: &RangeOptions, current: i64, compacted: i64) -> Result<(), Error> {
    match options.revision {
        r if r > current => Err(Error::FutureRevision),
        r if r != 0 && r < compacted => Err(Error::Compacted),
        _ => Ok(()),
    }
}
