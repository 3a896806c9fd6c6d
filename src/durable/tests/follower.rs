//! The directories of replicas.

use super::*;
use crate::mvcc::{Followed, Kv, Recovery};
use std::time::Duration;

const CLUSTER: u64 = 0xc1;

fn following(path: &Path) -> Config {
    Config {
        follows: Some(CLUSTER),
        mode: Mode::None,
        ..config(path)
    }
}

/// A store that others follow, with a key on a lease.
fn leader(past: &str, revisions: usize) -> Arc<Store> {
    let store = Store::new();
    store.grant(7, 60);
    for n in 0..revisions {
        let put = Put {
            key: format!("k{:02}", n % 40).into(),
            value: format!("{past} {n}").into(),
            lease: if n % 40 == 0 { 7 } else { 0 },
            ..Put::default()
        };
        store.put(put).unwrap();
    }
    store
}

fn state_of(leader: &Store) -> Recovery {
    let mut recovery = Recovery::following();
    for batch in leader.batches(2, usize::MAX) {
        let events = batch.events.iter().map(|e| (e.kind, e.kv.clone()));
        recovery.commit(batch.revision, events, None).unwrap();
    }
    recovery
}

fn catch_up(follower: &Store, leader: &Store) {
    for batch in leader.batches(follower.revision() + 1, usize::MAX) {
        let events = batch.events.iter().map(Followed::from).collect();
        follower.adopt(batch.revision, events).unwrap();
    }
}

impl Running {
    /// Waits until `done` holds for the number of checkpoints.
    fn checkpoints(&self, done: impl Fn(u64) -> bool) {
        let written = async {
            while !done(self.durable.metrics().checkpoints.get()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let written = async { tokio::time::timeout(Duration::from_secs(30), written).await };
        wait(written).expect("a checkpoint is written");
    }
}

#[test]
fn a_replica_restarts_where_its_copy_ends_under_the_ids_of_its_cluster() {
    for engine in engines() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = |path: &Path| Config {
            engine: Some(engine),
            ..following(path)
        };
        let leader = leader("a", 100);
        let running = start(&config(home.path()));
        let identity = running.loaded.identity;
        assert_eq!((identity.cluster_id, identity.format), (CLUSTER, FOLLOWER_FORMAT));
        let store = &running.loaded.store;
        assert_eq!((store.revision(), store.floor()), (1, 1));
        store.swap(state_of(&leader));
        running.checkpoints(|n| n > 0);
        for n in 0..50 {
            let (key, value) = (format!("later{}", n % 10).into(), "v".into());
            leader.apply(&[
                Write::Put(key, value),
                Write::Delete(format!("later{}", n % 10 + 1).into()),
            ]);
        }
        catch_up(store, &leader);
        let mut paths = vec![home.path()];
        if engine == EngineKind::Log {
            // sled keeps groups that were not synced in the process.
            crashed(&running, home.path(), other.path());
            paths.push(other.path());
            // The machine was restarted.
            let path = other.path().join("store/running");
            let marker = fs::read_to_string(&path).unwrap();
            fs::write(&path, marker.replace(r#""boot":""#, r#""boot":"another"#)).unwrap();
        }
        drop(running);
        let (expected, hash) = (content(&leader), leader.versions(0).unwrap().hash());
        for path in paths {
            let again = start(&config(path));
            assert_eq!(again.loaded.identity, identity, "{engine:?}");
            let store = &again.loaded.store;
            assert_eq!(content(store), expected, "{engine:?}");
            assert_eq!(store.versions(0).unwrap().hash(), hash);
            assert_eq!(store.lease_keys(7), leader.lease_keys(7));
            assert!(store.leases().is_empty());
            // It goes on.
            leader.apply(&[Write::Put("more".into(), "v".into())]);
            catch_up(store, &leader);
            drop(again);
            assert_eq!(content(&start(&config(path)).loaded.store), content(&leader));
        }
    }
}

#[test]
fn directories_of_replicas_and_of_stores_are_not_mixed_up() {
    let (replica, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = start(&following(replica.path()));
    running.loaded.store.swap(state_of(&leader("a", 10)));
    running.checkpoints(|n| n > 0);
    drop(running);
    let refused = |config: &Config| open(config, Hooks::default()).err().unwrap().to_string();
    let text = refused(&config(replica.path()));
    assert!(
        text.contains("is a replica's copy of cluster c1: start the replica with --follow"),
        "{text}"
    );
    assert_eq!(
        read(replica.path()).unwrap().store.revision(),
        11,
        "it can be inspected"
    );
    drop(start(&config(own.path())));
    let identity = read(own.path()).unwrap().identity;
    let text = refused(&following(own.path()));
    assert!(text.contains("holds a store of its own"), "{text}");
    assert_eq!(
        start(&config(own.path())).loaded.identity,
        identity,
        "nothing was changed"
    );
    // Nothing of a copy is carried over to another cluster.
    let other = Config {
        follows: Some(0xc2),
        ..following(replica.path())
    };
    let running = start(&other);
    assert_eq!(
        (running.loaded.identity.cluster_id, running.loaded.store.revision()),
        (0xc2, 1)
    );
    drop(running);
    assert_eq!(start(&other).loaded.identity.cluster_id, 0xc2);
}

#[test]
fn a_directory_whose_state_was_swapped_is_void_until_the_next_checkpoint() {
    let (home, between, after) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let config = following(home.path());
    let (running, fault) = obstacles::start_faulty(&config);
    let (first, second) = (leader("a", 60), leader("b", 60));
    running.loaded.store.swap(state_of(&first));
    running.checkpoints(|n| n > 0);
    assert_eq!(
        content(&read_copy(&running, home.path(), after.path())),
        content(&first)
    );

    // No checkpoint can be written.
    *fault.lock() = Some((files::Step::CreateCheckpoint, nix::errno::Errno::ENOSPC));
    let former = running.durable.metrics().checkpoints.get();
    running.loaded.store.swap(state_of(&second));
    // These revisions would fit the former past as well.
    second.apply(&[Write::Put("later".into(), "v".into())]);
    catch_up(&running.loaded.store, &second);
    assert_eq!(read_copy(&running, home.path(), between.path()).revision(), 1);
    assert_eq!(running.durable.metrics().checkpoints.get(), former);
    drop(running);

    // A restart loads anew, and its state is in the next checkpoint.
    let again = start(&following(between.path()));
    assert_eq!(again.loaded.store.revision(), 1);
    again.loaded.store.adopt_from(&state_of(&second)).unwrap();
    again.flushed();
    again.checkpoints(|n| n > 0);
    drop(again);
    assert_eq!(
        content(&start(&following(between.path())).loaded.store),
        content(&second)
    );
}

/// The store that a crash would leave.
fn read_copy(running: &Running, from: &Path, to: &Path) -> Arc<Store> {
    crashed(running, from, to);
    read(to).unwrap().store
}

#[test]
fn a_disk_that_hangs_delays_nobody_and_too_many_changes_are_replaced_by_a_mark() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = start(&following(home.path()));
    let store = &running.loaded.store;
    store.swap(state_of(&leader("a", 10)));
    running.checkpoints(|n| n > 0);
    let written = running.durable.metrics().checkpoints.get();
    running.durable.stall(true);
    let leader = leader("a", 10);
    for n in 0..80 {
        leader.apply(&[Write::Put(
            format!("big{}", n % 3).into(),
            vec![n as u8; 1 << 20].into(),
        )]);
    }
    catch_up(store, &leader);
    assert_eq!(store.revision(), 91, "what upstream has committed is visible");
    running.durable.stall(false);
    running.checkpoints(|n| n > written);
    leader.apply(&[Write::Put("last".into(), "v".into())]);
    catch_up(store, &leader);
    assert_eq!(
        content(&read_copy(&running, home.path(), other.path())),
        content(&leader)
    );
}

#[test]
fn damage_of_a_copy_is_set_aside_and_the_cluster_id_stays() {
    let home = tempfile::tempdir().unwrap();
    let running = start(&following(home.path()));
    running.loaded.store.swap(state_of(&leader("a", 60)));
    running.checkpoints(|n| n > 0);
    drop(running);
    let checkpoint = fs::read_dir(home.path().join("store")).unwrap();
    let mut paths = checkpoint.map(|entry| entry.unwrap().path());
    let path = paths
        .find(|path| path.to_string_lossy().contains("checkpoint"))
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let again = start(&following(home.path()));
    assert_eq!(
        (again.loaded.identity.cluster_id, again.loaded.store.revision()),
        (CLUSTER, 1)
    );
}

#[test]
fn an_incomplete_first_revision_stays_incomplete_over_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let leader = leader("a", 60);
    leader.apply(&[Write::Delete("k03".into())]);
    let listed = || {
        let all = leader.range(&RangeOptions::new(KeyRange::all())).unwrap();
        let mut loader = crate::mvcc::Loader::listed(all.revision);
        all.kvs.into_iter().for_each(|kv: Kv| assert!(loader.push_listed(kv)));
        loader.finish().unwrap()
    };
    let running = start(&following(home.path()));
    running.loaded.store.swap(listed());
    running.checkpoints(|n| n > 0);
    drop(running);
    let again = start(&following(home.path()));
    let store = &again.loaded.store;
    assert_eq!((store.revision(), store.floor()), (62, 63));
    assert!(!store.versions(0).unwrap().is_exact());
    store.complete(62, &leader.events_of(62).unwrap()).unwrap();
    assert_eq!(store.floor(), 62);
}
