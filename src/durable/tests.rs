mod follower;
mod formats;
mod obstacles;

use super::engine::LoadOptions;
use super::frame::{Frame, Kind};
use super::replay::{Replayed, Replayer};
use super::*;
use crate::auth::AuthState;
use crate::mvcc::{GrantedLease, Hooks, KeyRange, Put, RangeOptions, Write};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

/// A store with its data directory open.
struct Running {
    durable: Durable,
    loaded: Loaded,
}

fn wait<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(f)
}

impl Running {
    fn put(&self, key: &str, value: &[u8]) -> i64 {
        self.put_with(key, value, 0)
    }

    fn put_with(&self, key: &str, value: &[u8], lease: i64) -> i64 {
        let put = Put {
            key: key.to_owned().into(),
            value: value.to_vec().into(),
            lease,
            ..Put::default()
        };
        let revision = self.loaded.store.put(put).unwrap().revision;
        wait(self.durable.revision(revision)).unwrap();
        revision
    }

    fn flushed(&self) {
        wait(self.durable.flushed()).unwrap();
    }

    fn value(&self, key: &str) -> Option<Vec<u8>> {
        self.loaded.store.get(key.as_bytes()).map(|kv| kv.value().to_vec())
    }
}

fn config(path: &Path) -> Config {
    Config {
        checkpoint_bytes: 64 << 10,
        ..Config::new(path.to_owned())
    }
}

fn start(config: &Config) -> Running {
    let (durable, loaded) = open(config, Hooks::default()).unwrap();
    Running { durable, loaded }
}

/// Copies the files of a running store, as a crash of the process would leave them.
fn crashed(running: &Running, from: &Path, to: &Path) {
    running.flushed();
    copy(&from.join("store"), &to.join("store"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
        match entry.is_dir() {
            true => copy(&entry, &to.join(name)),
            // A checkpoint may remove a file at the same time.
            false => drop(fs::copy(entry, to.join(name))),
        }
    }
}

fn engines() -> Vec<EngineKind> {
    vec![
        EngineKind::Log,
        EngineKind::Sled,
        #[cfg(feature = "fjall")]
        EngineKind::Fjall,
    ]
}

#[test]
fn everything_is_there_after_a_restart_and_after_a_crash() {
    for engine in engines() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = Config {
            engine: Some(engine),
            ..config(home.path())
        };
        let running = start(&config);
        assert!(running.loaded.store.grant(7, 60) && running.loaded.store.grant(8, 60));
        running.put_with("leased", b"1", 7);
        running.put_with("revoked", b"1", 8);
        running.loaded.store.revoke(8).unwrap();
        for i in 0..300 {
            running.put(&format!("k{}", i % 40), &vec![i as u8; 1000]);
        }
        running.loaded.store.compact(200).unwrap();
        let auth = crate::auth::AuthStore::new(crate::auth::Config::default()).unwrap();
        let before = auth.state();
        auth.user_add("somebody", None).unwrap();
        running.durable.auth_changed(&before, &auth.state());
        running.durable.peer_urls_changed(vec!["http://a".to_owned()]);
        running.flushed();
        crashed(&running, home.path(), other.path());
        let (revision, identity) = (running.loaded.store.revision(), running.loaded.identity);
        assert!(
            running.durable.metrics().checkpoints.get() > 0,
            "{engine:?}: the log has grown enough"
        );
        drop(running);
        for path in [home.path(), other.path()] {
            let again = start(&Config {
                directory: path.to_owned(),
                ..config.clone()
            });
            assert_eq!(again.loaded.identity, identity, "{engine:?}");
            assert_eq!(
                (again.loaded.store.revision(), again.loaded.store.compacted()),
                (revision, 200)
            );
            assert_eq!(again.loaded.store.leases(), [GrantedLease { id: 7, ttl_secs: 60 }]);
            assert_eq!(again.loaded.store.lease_keys(7).unwrap(), ["leased"]);
            assert_eq!(again.value("k39"), Some(vec![279_u32 as u8; 1000]));
            assert_eq!(again.value("revoked"), None);
            assert!(again.loaded.metadata.auth().users.contains_key("somebody"));
            assert_eq!(again.loaded.metadata.peer_urls, ["http://a"]);
            assert_eq!(again.put("after", b"1"), revision + 1);
        }
    }
}

#[test]
fn a_second_process_a_newer_format_and_a_foreign_directory_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let config = config(home.path());
    let running = start(&config);
    let refused = |config: &Config| open(config, Hooks::default()).err().unwrap().to_string();
    assert!(refused(&config).contains("is in use by another process"));
    drop(running);
    let other = Config {
        engine: Some(EngineKind::Sled),
        ..config.clone()
    };
    assert!(refused(&other).contains("is kept by the engine log, not sled"));
    let identity = fs::read_to_string(home.path().join("store/identity")).unwrap();
    let text = r#"{"format":99,"more":"than we know"}"#;
    let newer = format!(r#"{{"identity":{text},"crc32c":{}}}"#, crc32c::crc32c(text.as_bytes()));
    fs::write(home.path().join("store/identity"), newer).unwrap();
    assert!(refused(&config).contains("has format 99, and this version reads formats up to 3"));
    assert!(home.path().join("store").exists(), "nothing is set aside");
    fs::write(home.path().join("store/identity"), identity).unwrap();
    drop(start(&config));
    let foreign = tempfile::tempdir().unwrap();
    fs::create_dir(foreign.path().join("member")).unwrap();
    assert!(refused(&Config::new(foreign.path().to_owned())).contains("holds data of etcd"));
}

#[test]
fn only_a_partly_written_group_is_cut_off() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = start(&config(home.path()));
    for i in 0..5 {
        running.put(&format!("k{i}"), &[1; 3000]);
    }
    crashed(&running, home.path(), other.path());
    let identity = running.loaded.identity;
    let log = other.path().join("store/log-0000000000000001");
    let mut bytes = fs::read(&log).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    // A sector in the middle of the last group.
    let sector = (end - 1500) / 512 * 512;
    bytes[sector..sector + 512].fill(0);
    fs::write(&log, bytes).unwrap();
    let torn = read(other.path()).unwrap();
    assert!(torn.sizes.torn > 0);
    let again = start(&config(other.path()));
    assert_eq!(again.loaded.identity, identity);
    assert_eq!((again.value("k3").is_some(), again.value("k4")), (true, None));
    again.put("k5", b"1");
    drop(again);
    let again = start(&config(other.path()));
    assert_eq!((again.value("k4"), again.value("k5")), (None, Some(b"1".to_vec())));
}

#[test]
fn a_machine_that_crashed_before_a_sync_makes_another_cluster() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let interval = |path: &Path| Config {
        mode: Mode::Interval,
        ..config(path)
    };
    let running = start(&interval(home.path()));
    running.put("a", b"1");
    crashed(&running, home.path(), other.path());
    let identity = running.loaded.identity;
    drop(running);
    // The process ended in order.
    assert_eq!(start(&interval(home.path())).loaded.identity, identity);
    // The process was killed, but the machine was not restarted.
    let path = other.path().join("store/running");
    let marker = fs::read_to_string(&path).unwrap();
    assert_eq!(read(other.path()).unwrap().identity, identity);
    let boot = marker.replace(r#""boot":""#, r#""boot":"another"#);
    fs::write(&path, boot).unwrap();
    let again = start(&interval(other.path()));
    assert_ne!(again.loaded.identity.cluster_id, identity.cluster_id);
    assert_eq!(again.value("a"), Some(b"1".to_vec()));
    let identity = again.loaded.identity;
    drop(again);
    assert_eq!(start(&config(other.path())).loaded.identity, identity);
}

#[test]
fn an_imported_store_is_a_cluster_of_its_own() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::new();
        store.apply(&[Write::Put("a".into(), "1".into()), Write::Put("b".into(), "2".into())]);
        let auth = AuthState::of(true, 3, vec![], vec![]);
        let what = || Import {
            store: &store,
            auth: &auth,
            alarms: vec![],
        };
        let made = import(home.path(), engine, what()).unwrap();
        assert!(import(home.path(), engine, what()).is_err(), "not over another one");
        let running = start(&config(home.path()));
        assert_eq!(running.loaded.identity, made);
        assert!(running.loaded.metadata.auth().enabled);
        assert_eq!(running.value("b"), Some(b"2".to_vec()));
        assert_eq!(running.put("c", b"3"), 3);
    }
}

type Content = (i64, Vec<(Vec<u8>, Vec<u8>)>);

/// The last revision, and every key with its value.
fn content(store: &Store) -> Content {
    let all = store.range(&RangeOptions::new(KeyRange::all())).unwrap();
    let pair = |kv: &crate::mvcc::Kv| (kv.key().to_vec(), kv.value().to_vec());
    (all.revision, all.kvs.iter().map(pair).collect())
}

/// Fills `aside` with a checkpoint and several log files, as a crash leaves them; returns the identity and the content.
fn sample(aside: &Path) -> (StoreIdentity, Content) {
    let home = tempfile::tempdir().unwrap();
    let running = start(&config(home.path()));
    for i in 0..200u32 {
        let value: Vec<u8> = (0..900).map(|n| (n + i) as u8 | 1).collect();
        running.put(&format!("k{}", i % 50), &value);
    }
    // Write until the checkpoint is complete.
    while running.durable.metrics().checkpoints.get() == 0 || running.durable.metrics().log_bytes.get() > 60_000 {
        running.put("more", &[7; 2000]);
    }
    for i in 0..8 {
        // Values that look like space that was never written.
        running.put(&format!("last{i}"), &[0; 5000]);
    }
    crashed(&running, home.path(), aside);
    (running.loaded.identity, content(&running.loaded.store))
}

/// The payloads of a checkpoint and of groups.
fn payloads() -> Vec<(Kind, u64, Vec<u8>)> {
    let home = tempfile::tempdir().unwrap();
    let running = start(&config(home.path()));
    assert!(running.loaded.store.grant(7, 60));
    for i in 0..120 {
        running.put_with(&format!("k{}", i % 9), &[3; 600], 7 * i64::from(i % 2 == 0));
    }
    running.loaded.store.compact(50).unwrap();
    running.loaded.store.revoke(7).unwrap();
    running.flushed();
    let (salt, mut all) = (running.loaded.identity.salt, vec![]);
    drop(running);
    let mut engine = EngineKind::Log
        .open(&home.path().join("store"), salt, SEGMENT_MAX)
        .unwrap();
    let options = LoadOptions {
        repair: false,
        lenient: false,
    };
    let mut keep = |frame: Frame<'_>| {
        all.push((frame.kind, frame.number, frame.payload.to_vec()));
        Ok(())
    };
    engine.load(options, &mut keep).unwrap();
    assert!(all[0].0 == Kind::Head && all.last().unwrap().0 == Kind::Group);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Payloads with good checksums and bad content yield a store or damage, and never a panic.
    #[test]
    fn replaying_any_payload_does_not_panic(
        changes in proptest::collection::vec((0usize..1000, 0usize..1_000_000, 0u8..), 1..6), cut in 0usize..200,
    ) {
        static PAYLOADS: std::sync::OnceLock<Vec<(Kind, u64, Vec<u8>)>> = std::sync::OnceLock::new();
        let mut payloads = PAYLOADS.get_or_init(payloads).clone();
        for (frame, at, to) in changes {
            let len = payloads.len();
            let payload = &mut payloads[frame % len].2;
            if payload.is_empty() {
                continue;
            }
            let at = at % payload.len();
            match to {
                0 => payload.truncate(at),
                1 => drop(payload.remove(at)),
                to => payload[at] = to,
            }
        }
        payloads.truncate(payloads.len().saturating_sub(cut / 100));
        let mut replayer = Replayer::new(StoreRole::Own);
        let all = payloads.iter().try_for_each(|(kind, number, payload)| {
            let (kind, number) = (*kind, *number);
            replayer.take(Frame { kind, number, payload: payload.into() })
        });
        if let Ok(Replayed { store, metadata, .. }) = all.and_then(|()| replayer.finish()) {
            let store = store.open(Hooks::default());
            let _ = (content(&store), metadata.auth(), store.versions(0).map(|v| v.hash()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    /// After bit flips, truncations, and swapped, missing or partly written files, the store starts: either with its
    /// data, or empty as another cluster, with the damaged store set aside once. Either way the store accepts writes.
    #[test]
    fn damage_is_never_silent_and_never_in_the_way(
        kind in 0u8..6, file in 0usize..8, at in 0usize..1_000_000, bit in 0u8..8,
    ) {
        static SAMPLE: std::sync::OnceLock<(tempfile::TempDir, StoreIdentity, Content)> = std::sync::OnceLock::new();
        let (sample, identity, whole) = SAMPLE.get_or_init(|| {
            let aside = tempfile::tempdir().unwrap();
            let (identity, whole) = sample(aside.path());
            (aside, identity, whole)
        });
        let home = tempfile::tempdir().unwrap();
        copy(&sample.path().join("store"), &home.path().join("store"));
        let store = home.path().join("store");
        let mut files: Vec<PathBuf> = fs::read_dir(&store).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let path = &files[file % files.len()];
        let mut bytes = fs::read(path).unwrap();
        let written = bytes.iter().rposition(|b| *b != 0).map_or(1, |n| n + 1);
        match kind {
            0 | 1 => bytes[at % written] ^= 1 << bit,
            2 => bytes.truncate(at % bytes.len()),
            3 => bytes = fs::read(&files[at % files.len()]).unwrap(),
            4 => fs::remove_file(path).unwrap(),
            _ => {
                let from = at % written;
                let to = (from + 4096).min(bytes.len());
                bytes[from..to].fill(0);
            }
        }
        if kind != 4 {
            fs::write(path, &bytes).unwrap();
        }
        let again = start(&config(home.path()));
        let found = content(&again.loaded.store);
        if again.loaded.identity.cluster_id == identity.cluster_id {
            // Only a zeroed end of the log may be missing: it looks like a partly written group.
            prop_assert!(found == *whole || (kind == 5 && found.0 < whole.0), "{kind} {path:?}: {} {}", found.0, whole.0);
        } else {
            prop_assert_eq!(found, (1, vec![]));
            let aside = fs::read_dir(home.path()).unwrap().filter_map(|e| e.ok());
            prop_assert_eq!(aside.filter(|e| e.file_name().to_string_lossy().starts_with("damaged-")).count(), 1);
        }
        again.put("goes on", b"1");
        let identity = again.loaded.identity;
        drop(again);
        let again = start(&config(home.path()));
        prop_assert_eq!(again.loaded.identity, identity);
        prop_assert_eq!(again.value("goes on"), Some(b"1".to_vec()));
    }
}

#[test]
fn a_missing_checkpoint_or_database_is_damage_even_if_nothing_came_after() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::new();
        store.apply(&[Write::Put("a".into(), "1".into())]);
        let import = Import {
            store: &store,
            auth: &AuthState::of(false, 1, vec![], vec![]),
            alarms: vec![],
        };
        super::import(home.path(), engine, import).unwrap();
        let files = || {
            fs::read_dir(home.path().join("store"))
                .unwrap()
                .map(|e| e.unwrap().path())
        };
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let data = files()
            .find(|p| name(p).starts_with("checkpoint-") || p.is_dir())
            .unwrap();
        match data.is_dir() {
            true => fs::remove_dir_all(data).unwrap(),
            false => fs::remove_file(data).unwrap(),
        }
        let refused = read(home.path()).err().unwrap();
        assert!(matches!(refused, Error::Damaged(_)), "{engine}: {refused}");
        // A directory instead of a file is damage, too.
        let identity = home.path().join("store/identity");
        fs::remove_file(&identity).unwrap();
        fs::create_dir(&identity).unwrap();
        assert!(matches!(read(home.path()).err().unwrap(), Error::Damaged(_)));
        assert_eq!(start(&config(home.path())).loaded.store.revision(), 1);
    }
}

#[test]
fn a_start_changes_nothing_that_a_crash_in_it_could_leave_half_done() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = start(&config(home.path()));
    running.put("a", &[1; 3000]);
    crashed(&running, home.path(), other.path());
    let log = other.path().join("store/log-0000000000000001");
    let before = fs::read(&log).unwrap();
    let options = LoadOptions {
        repair: true,
        lenient: false,
    };
    let engine = EngineKind::Log.open(&other.path().join("store"), running.loaded.identity.salt, SEGMENT_MIN);
    engine.unwrap().load(options, &mut |_| Ok(())).unwrap();
    assert_eq!(fs::read(&log).unwrap(), before);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&log).unwrap().len(), before.len() as u64);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let store = home.path().join("store");
    assert_eq!((mode(&store), mode(&store.join("identity"))), (0o700, 0o600));
    assert_eq!(mode(&store.join("log-0000000000000001")), 0o600);
}
