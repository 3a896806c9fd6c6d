//! The costs of the store alone: puts, batches, pages with counts, lists.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use isthmus::mvcc::{KeyRange, Put, RangeOptions, Store, Write};
use std::hint::black_box;
use std::sync::Arc;

const KEYS: usize = 100_000;

fn key(i: usize) -> String {
    format!(
        "cilium/cache/ip/v1/c{:03}/10.{}.{}.{}",
        i % 250,
        i >> 16 & 255,
        i >> 8 & 255,
        i & 255
    )
}

fn filled() -> Arc<Store> {
    let store = Store::new();
    let writes: Vec<_> = (0..KEYS)
        .map(|i| Write::Put(key(i).into(), vec![b'x'; 256].into()))
        .collect();
    for chunk in writes.chunks(1000) {
        store.apply(chunk);
    }
    store
}

fn benches(c: &mut Criterion) {
    let store = filled();
    let mut group = c.benchmark_group("store of 100,000 keys of 256 B");
    let mut i = 0;
    group.bench_function("put over an existing key", |b| {
        b.iter(|| {
            i = (i + 7919) % KEYS;
            store.put(Put {
                key: key(i).into(),
                value: vec![b'y'; 256].into(),
                ..Put::default()
            })
        });
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("batch of 1000 puts", |b| {
        let batch = || {
            (0..1000)
                .map(|i| Write::Put(key(i * 97).into(), vec![b'z'; 256].into()))
                .collect::<Vec<_>>()
        };
        b.iter_batched(batch, |batch| store.apply(&batch), BatchSize::SmallInput);
    });
    group.throughput(Throughput::Elements(256));
    group.bench_function("page of 256 keys, with the count of the rest", |b| {
        let options = RangeOptions {
            limit: 256,
            ..RangeOptions::new(KeyRange::prefix("cilium/"))
        };
        b.iter(|| black_box(store.range(&options)));
    });
    group.throughput(Throughput::Elements(KEYS as u64));
    group.sample_size(20);
    group.bench_function("list of all keys at once", |b| {
        let options = RangeOptions::new(KeyRange::prefix("cilium/"));
        b.iter(|| black_box(store.range(&options)));
    });
    group.bench_function("list of all keys by pages of 256", |b| {
        b.iter(|| black_box(paged(&store)))
    });
    group.finish();
}

fn paged(store: &Store) -> usize {
    let (mut from, mut seen, mut revision) = (b"cilium/".to_vec(), 0, 0);
    loop {
        let range = KeyRange::new(from, "cilium0");
        let page = store.range(&RangeOptions {
            limit: 256,
            revision,
            ..RangeOptions::new(range)
        });
        let page = page.expect("the revision is not compacted");
        revision = page.revision;
        seen += page.kvs.len();
        match page.kvs.last().filter(|_| page.more) {
            Some(kv) => from = [kv.key(), &[0]].concat(),
            None => return seen,
        }
    }
}

criterion_group!(mvcc, benches);
criterion_main!(mvcc);
