//! The cost of one write with many watchers of one prefix: the commit, and the delivery to every watcher.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isthmus::mvcc::{KeyRange, Put, Store, Wake, WatchFilter, Watcher};
use std::hint::black_box;
use std::sync::Arc;

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan-out");
    for watchers in [1usize, 100, 10_000] {
        let store = Store::new();
        let watch = |_| store.watch(WatchFilter::new(KeyRange::prefix("p/")), 0, Arc::new(NoWake));
        let mut all: Vec<Watcher> = (0..watchers).map(watch).collect();
        let mut i = 0;
        let mut put = || {
            i += 1;
            let key = format!("p/{}", i % 1000);
            store.put(Put {
                key: key.into(),
                value: vec![b'x'; 256].into(),
                ..Put::default()
            })
        };
        group.throughput(Throughput::Elements(watchers as u64));
        group.bench_with_input(
            BenchmarkId::new("a commit and its reading by", watchers),
            &watchers,
            |b, _| {
                b.iter(|| {
                    put().expect("a put without a lease");
                    for watcher in &mut all {
                        black_box(watcher.take(1 << 20));
                    }
                });
            },
        );
    }
    group.finish();
}

criterion_group!(fanout, benches);
criterion_main!(fanout);
