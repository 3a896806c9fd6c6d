//! Costs of each storage engine: writes keys of 50 + 400 bytes in groups of 1,000, then a third of the keys again,
//! then restarts.
//!
//! Run `cargo bench --bench durable -- 1000000` (with `--features fjall` to include fjall). Each engine runs in a
//! process of its own, so that its memory can be measured.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that prints a table"
)]

use isthmus::durable::{self, Config, EngineKind};
use isthmus::mvcc::{Hooks, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

const GROUP: usize = 1000;
const VALUE: usize = 400;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(at) = args.iter().position(|a| a == "--engine") {
        return run(&args[at + 1], args[at + 2].parse().unwrap());
    }
    let keys = args.first().cloned().unwrap_or_else(|| "100000".to_owned());
    println!(
        "{:<8}{:>10}{:>12}{:>24}{:>10}{:>14}{:>10}{:>10}",
        "engine", "write s", "CPU µs/key", "group ms p50/p99/max", "start s", "disk MB (end)", "RSS MB", "peak MB"
    );
    for (name, _) in EngineKind::NAMES {
        let me = std::env::current_exe().unwrap();
        let ran = Command::new(me).args(["--engine", name, &keys]).status().unwrap();
        assert!(ran.success(), "{name}: {ran}");
    }
}

fn run(name: &str, keys: usize) {
    let kind = EngineKind::NAMES.iter().find(|(n, _)| *n == name).unwrap().1;
    let home = tempfile::tempdir_in(std::env::var("BENCH_DIR").unwrap_or_else(|_| ".".to_owned())).unwrap();
    let config = Config {
        engine: Some(kind),
        ..Config::new(home.path().to_owned())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (durable, loaded) = durable::open(&config, Hooks::default()).unwrap();
    let store = loaded.store;
    let mut took = vec![];
    let (begun, cpu) = (Instant::now(), cpu());
    // Keys in random order, as from many clusters.
    let places = (0..keys).map(|i| i.wrapping_mul(7_368_787) % keys);
    let again = (0..keys / 3).map(|i| i.wrapping_mul(15_485_863) % keys);
    let all: Vec<usize> = places.chain(again).collect();
    for group in all.chunks(GROUP) {
        let put = |i: &usize| {
            let key = format!("cilium/state/ip/v1/default/{i:023}");
            Write::Put(key.into(), vec![*i as u8 | 1; VALUE].into())
        };
        let writes: Vec<_> = group.iter().map(put).collect();
        let at = Instant::now();
        let revision = store.apply(&writes);
        runtime.block_on(durable.revision(revision)).unwrap();
        took.push(at.elapsed());
        if revision > 100 {
            store.compact(revision - 50).unwrap();
            while store.purge() {}
        }
    }
    let (seconds, cpu) = (begun.elapsed(), self::cpu() - cpu);
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    let rss = memory("VmRSS:");
    drop((durable, store));
    let begun = Instant::now();
    let (durable, loaded) = durable::open(&config, Hooks::default()).unwrap();
    let start = begun.elapsed();
    assert_eq!(loaded.store.stats().keys, keys);
    drop(durable);
    println!(
        "{name:<8}{:>10.1}{:>12.1}{:>24}{:>10.2}{:>14}{:>10}{:>10}",
        seconds.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / all.len() as f64,
        format!("{:.1} / {:.1} / {:.0}", at(0.5), at(0.99), at(1.0)),
        start.as_secs_f64(),
        disk(home.path()) >> 20,
        rss >> 10,
        memory("VmHWM:") >> 10,
    );
}

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|f| f.parse().unwrap())
        .collect();
    Duration::from_millis((fields[0] + fields[1]) * 10)
}

/// The value of the field `name` of `/proc/self/status`, in KiB.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Blocks taken below a path, in bytes.
fn disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(path).unwrap();
    if !meta.is_dir() {
        return meta.blocks() * 512;
    }
    std::fs::read_dir(path).unwrap().map(|e| disk(&e.unwrap().path())).sum()
}
