//! The counters of a writer equal a recount of its keys, whatever happens.

use super::*;
use crate::kvstore::sync_store::table::PrefixCounts;
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Upsert {
        key: u8,
        value: u8,
    },
    Delete {
        key: u8,
    },
    Canary {
        key: u8,
    },
    BeginList,
    EndList {
        prefix: u8,
    },
    TakeBatch,
    Done,
    Requeue,
    Refuse,
    DeletesFirst,
    /// The store holds these keys, with their first value.
    Adopt {
        keys: Vec<u8>,
    },
}

const PREFIXES: [&str; 2] = ["p/", "q/"];

/// Keys of both prefixes and outside of them.
fn key(n: u8) -> String {
    let prefix = ["p/", "q/", "elsewhere/"][usize::from(n) % 3];
    format!("{prefix}{}", n / 3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12_u8, 0..3_u8).prop_map(|(key, value)| Step::Upsert { key, value }),
        3 => (0..12_u8).prop_map(|key| Step::Delete { key }),
        1 => (0..12_u8).prop_map(|key| Step::Canary { key }),
        1 => Just(Step::BeginList),
        1 => (0..2_u8).prop_map(|prefix| Step::EndList { prefix }),
        3 => Just(Step::TakeBatch),
        3 => Just(Step::Done),
        1 => Just(Step::Requeue),
        1 => Just(Step::Refuse),
        1 => Just(Step::DeletesFirst),
        1 => vec(0..12_u8, 0..6).prop_map(|keys| Step::Adopt { keys }),
    ]
}

struct Bench {
    sync: SyncStore,
    in_flight: Vec<Write>,
    list: List,
}

impl Bench {
    fn apply(&mut self, step: Step) {
        let sync = &self.sync;
        match step {
            Step::Upsert { key: k, value } => sync.upsert(key(k), "v".repeat(value.into())),
            Step::Delete { key: k } => sync.delete(key(k)),
            Step::Canary { key: k } => sync.queue_canary(key(k), "t"),
            Step::BeginList => self.list = sync.begin_list(),
            Step::EndList { prefix } => sync.end_list(PREFIXES[usize::from(prefix)], self.list),
            // A writer takes the next batch only when it knows the outcome of the last one.
            Step::TakeBatch if self.in_flight.is_empty() => self.in_flight = sync.next_batch(),
            Step::TakeBatch => {}
            Step::Done => sync.done(&std::mem::take(&mut self.in_flight)),
            Step::Requeue => {
                let batch = std::mem::take(&mut self.in_flight);
                sync.failed(&batch);
                sync.requeue(&batch);
            }
            Step::Refuse => std::mem::take(&mut self.in_flight)
                .iter()
                .for_each(|write| sync.refused(write, "too large")),
            Step::DeletesFirst => sync.deletes_first(),
            Step::Adopt { keys } => sync.adopted(
                keys.into_iter()
                    .map(|k| StoredKey {
                        key: key(k).into(),
                        value: "v".into(),
                    })
                    .collect(),
            ),
        }
    }

    fn check(&self) {
        let stats = self.sync.prefix_stats();
        let state = self.sync.state.lock();
        for (at, stats) in stats.iter().enumerate() {
            let recounted: PrefixCounts = state.table.recount(at);
            assert_eq!(*state.table.counts(at), recounted);
            // The walk that the counters replace.
            let of_prefix = |key: &[u8]| key.starts_with(PREFIXES[at].as_bytes());
            let entries: Vec<_> = state
                .table
                .iter()
                .filter(|(key, _)| of_prefix(key))
                .map(|(_, e)| e)
                .collect();
            assert_eq!(stats.queued, entries.iter().filter(|e| e.since().is_some()).count());
            assert_eq!(stats.keys, entries.iter().filter(|e| e.desired.is_some()).count());
            assert_eq!(recounted.stored, entries.iter().filter(|e| e.written.is_some()).count());
            assert_eq!(recounted.oldest(), entries.iter().filter_map(|e| e.since()).min());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn counters_equal_a_recount(steps in vec(step(), 1..80), is_lossy in any::<bool>()) {
        let store = Store::new();
        let prefixes = PREFIXES.map(str::to_owned).to_vec();
        let sync = match is_lossy {
            true => SyncStore::new("test", Faulty::new(&store, |_: &[Write]| Ok(())), prefixes),
            false => SyncStore::new("test", Arc::new(LocalBackend::new(Arc::clone(&store))), prefixes),
        };
        let list = sync.begin_list();
        let mut bench = Bench { sync, in_flight: vec![], list };
        for step in steps {
            bench.apply(step);
            bench.check();
        }
    }
}
