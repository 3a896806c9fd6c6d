//! Transactions that only read: at the last published revision, in short locks.

use super::Error;
use super::branches::{branch, check_range, path};
use super::range::RangeResult;
use super::reader::Reader;
use super::store::Store;
use super::txn::{Op, OpResult, Txn, TxnResult};

impl Store {
    /// Runs a transaction: either all of it at one revision, or none of it.
    ///
    /// A transaction that only reads holds the lock for at most a few thousand keys at a time and asks `keep_going` in
    /// between, as in [`Store::range_while`]. A transaction that writes runs under one lock and cannot be stopped;
    /// [`Store::work_of_txn`] tells beforehand how long that may take.
    pub fn txn_while(&self, txn: &Txn, keep_going: &mut dyn FnMut() -> bool) -> Result<TxnResult, Error> {
        if !txn.is_read_only() {
            return self.run(txn);
        }
        let state = self.state.read();
        let (revision, compacted) = (state.visible, state.compacted);
        let mut oldest = revision;
        visit_revisions(txn, &mut |r| {
            if r > 0 && r >= compacted {
                oldest = oldest.min(r);
            }
        });
        let mut reader = Reader::new(self, state, oldest, keep_going);
        let mut taken = Vec::new();
        path(txn, &mut |compare| reader.holds(compare, revision), &mut taken)?;
        let mut taken = taken.into_iter();
        check(txn, revision, compacted, &mut taken.clone())?;
        read(txn, revision, &mut reader, &mut taken)
    }
}

fn visit_revisions(txn: &Txn, f: &mut impl FnMut(i64)) {
    for op in txn.ops() {
        match op {
            Op::Range(options) => f(options.revision),
            Op::Txn(nested) => visit_revisions(nested, f),
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
}

fn check(txn: &Txn, revision: i64, compacted: i64, taken: &mut impl Iterator<Item = bool>) -> Result<(), Error> {
    for op in branch(txn, taken.next().unwrap_or_default()) {
        match op {
            Op::Range(options) => check_range(options, revision, compacted)?,
            Op::Txn(nested) => check(nested, revision, compacted, taken)?,
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
    Ok(())
}

fn read(
    txn: &Txn,
    revision: i64,
    reader: &mut Reader<'_>,
    taken: &mut impl Iterator<Item = bool>,
) -> Result<TxnResult, Error> {
    let succeeded = taken.next().unwrap_or_default();
    let mut results = Vec::new();
    for op in branch(txn, succeeded) {
        match op {
            Op::Range(options) => {
                let at = if options.revision <= 0 {
                    revision
                } else {
                    options.revision
                };
                let result = reader.range(options, at)?;
                results.push(OpResult::Range(RangeResult { revision, ..result }));
            }
            Op::Txn(nested) => results.push(OpResult::Txn(read(nested, revision, reader, taken)?)),
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
    Ok(TxnResult {
        succeeded,
        results,
        revision,
    })
}
