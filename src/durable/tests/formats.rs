//! The formats of data directories: what is told from damage, and what a later version reads.

use super::*;
use crate::durable::frame::{self, Parsed};

fn log_file(path: &Path) -> PathBuf {
    path.join("store/log-0000000000000001")
}

#[test]
fn a_flipped_bit_in_the_last_group_is_damage_also_in_a_value_of_zeros() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = start(&config(home.path()));
    running.put("before", b"1");
    running.put("zeros", &[0; 5000]);
    crashed(&running, home.path(), other.path());
    let bytes = fs::read(log_file(other.path())).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    let group = (0..end).rfind(|at| bytes[*at..].starts_with(b"IsT\x97")).unwrap();
    // The length, the kind, the number, the value, and the last byte of the last group.
    for at in [
        group + 8,
        group + 9,
        group + 10,
        group + 12,
        group + 16,
        end - 2500,
        end,
    ] {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            fs::write(log_file(other.path()), damaged).unwrap();
            let read = read(other.path()).err().map(|e| e.to_string());
            assert!(read.is_some_and(|e| e.contains("damaged")), "byte {at}, bit {bit}");
        }
    }
}

/// Rewrites the files of a store with the frames of format 1, as an earlier version would have written them.
fn to_format_1(store: &Path, salt: u64) {
    for entry in fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "identity" {
            let text = fs::read_to_string(&path).unwrap();
            let signed: serde_json::Value = serde_json::from_str(&text).unwrap();
            let identity = signed["identity"].to_string().replace(r#""format":2"#, r#""format":1"#);
            let crc = crc32c::crc32c(identity.as_bytes());
            fs::write(&path, format!(r#"{{"identity":{identity},"crc32c":{crc}}}"#)).unwrap();
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let (mut at, mut old) = (0, vec![]);
        while let Parsed::Whole(frame, len) = frame::parse(&bytes[at..], salt, at as u64) {
            old.extend(frame::tests::old_frame(salt, frame.kind, frame.number, &frame.payload));
            at += len;
        }
        if name.starts_with("log-") {
            old.resize(bytes.len(), 0);
        }
        fs::write(&path, old).unwrap();
    }
}

#[test]
fn a_directory_of_format_1_is_read_and_continued_in_format_2() {
    let home = tempfile::tempdir().unwrap();
    let (identity, whole) = sample(home.path());
    to_format_1(&home.path().join("store"), identity.salt);
    let config = config(home.path());
    let old = read(home.path()).unwrap();
    assert_eq!((old.identity.format, content(&old.store)), (1, whole.clone()));
    let running = start(&config);
    assert_eq!(
        (running.loaded.identity, content(&running.loaded.store)),
        (identity, whole)
    );
    assert_eq!(read_format(home.path()), 2);
    // New groups follow old ones in the same file.
    running.put("more", &[0; 3000]);
    let whole = content(&running.loaded.store);
    drop(running);
    assert_eq!(content(&start(&config).loaded.store), whole);
}

fn read_format(path: &Path) -> u64 {
    let text = fs::read_to_string(path.join("store/identity")).unwrap();
    let signed: serde_json::Value = serde_json::from_str(&text).unwrap();
    signed["identity"]["format"].as_u64().unwrap()
}

#[test]
fn many_changes_make_several_groups_and_every_caller_is_told() {
    let home = tempfile::tempdir().unwrap();
    let running = start(&Config::new(home.path().to_owned()));
    running.durable.stall(true);
    for n in 0..60 {
        let put = Put {
            key: format!("k{n}").into(),
            value: vec![7; 1 << 20].into(),
            ..Put::default()
        };
        running.loaded.store.put(put).unwrap();
    }
    let (first, last) = (running.durable.revision(2), running.durable.flushed());
    running.durable.stall(false);
    wait(async { futures::join!(first, last) }).1.unwrap();
    assert!(running.durable.metrics().groups() >= 4);
    let whole = content(&running.loaded.store);
    drop(running);
    assert_eq!(
        content(&start(&Config::new(home.path().to_owned())).loaded.store),
        whole
    );
}
