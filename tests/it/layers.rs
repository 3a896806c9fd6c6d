//! Who may use whom: the table of ARCHITECTURE.md, held against the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each room with the rooms it may use. The order is a topological one: no cycles.
const ROOMS: &[(&str, &[&str])] = &[
    ("util", &[]),
    ("model", &[]),
    ("mvcc", &["util"]),
    ("pb", &["mvcc"]),
    ("lease", &["mvcc", "util"]),
    ("auth", &["pb", "util"]),
    ("durable", &["auth", "mvcc", "pb"]),
    ("snapshot", &["auth", "lease", "mvcc", "pb"]),
    (
        "server",
        &["auth", "durable", "lease", "mvcc", "pb", "snapshot", "util"],
    ),
    ("kvstore", &["model", "mvcc", "util"]),
    ("k8s", &["util"]),
    ("clustermesh", &["k8s", "kvstore", "model", "util"]),
    ("kvstoremesh", &["kvstore", "model", "util"]),
    ("users", &["kvstore", "util"]),
    ("coredns", &["k8s"]),
    ("troubleshoot", &["kvstore", "model"]),
    ("admin", &["util"]),
    (
        "app",
        &[
            "admin",
            "auth",
            "clustermesh",
            "durable",
            "k8s",
            "kvstore",
            "kvstoremesh",
            "lease",
            "model",
            "mvcc",
            "server",
            "users",
            "util",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "auth",
            "clustermesh",
            "coredns",
            "durable",
            "k8s",
            "kvstore",
            "kvstoremesh",
            "lease",
            "model",
            "mvcc",
            "server",
            "snapshot",
            "troubleshoot",
            "util",
        ],
    ),
];

/// Crates that only some rooms may name.
const CRATES: &[(&str, &[&str])] = &[
    ("tonic", &["server", "pb", "kvstore", "model"]),
    ("kube", &["k8s", "coredns", "cli"]),
    ("etcd_client", &["kvstore"]),
    ("clap", &["cli"]),
    ("anyhow", &["app", "cli"]),
    ("rcgen", &["app"]),
];

fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, out),
            false => out.push(path),
        }
    }
}

/// (room, path, text without tests) of each file.
fn files() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = vec![];
    sources(&src, &mut paths);
    paths.retain(|p| p.extension().is_some_and(|e| e == "rs") && !p.ends_with("tests.rs"));
    let read = |path: PathBuf| {
        let inside = path.strip_prefix(&src).unwrap();
        let room = inside
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
        let code: String = code
            .lines()
            .filter(|l| !l.trim_start().starts_with("//"))
            .map(|l| l.to_owned() + "\n")
            .collect();
        (room, path, code)
    };
    paths
        .into_iter()
        .map(read)
        .filter(|(room, ..)| room != "lib" && room != "main")
        .collect()
}

/// The rooms that `crate::x` and `crate::{a::…, b::…}` name in `code`.
fn rooms_used(code: &str) -> BTreeSet<String> {
    let word = |s: &str| {
        s.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut used = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        if let Some(list) = after.strip_prefix('{') {
            let (mut depth, mut from) = (0, 0);
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => {
                        used.insert(word(&list[from..at]));
                        break;
                    }
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        used.insert(word(&list[from..at]));
                        from = at + 1;
                    }
                    _ => {}
                }
            }
        } else {
            used.insert(word(after));
        }
    }
    used
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let mut wrong = vec![];
    for (room, path, code) in files() {
        let (_, allowed) = ROOMS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{room} is not in the table"));
        for used in rooms_used(&code).iter().filter(|u| **u != room && !u.is_empty()) {
            if !allowed.contains(&&**used) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    for (at, (name, allowed)) in ROOMS.iter().enumerate() {
        let below: Vec<_> = ROOMS[..at].iter().map(|(n, _)| *n).collect();
        assert!(allowed.iter().all(|a| below.contains(a)), "{name} looks up");
    }
}

#[test]
fn crates_stay_in_their_rooms_and_the_core_is_synchronous() {
    let mut wrong = vec![];
    for (room, path, code) in files() {
        for (name, allowed) in CRATES {
            if !allowed.contains(&&*room) && code.contains(&format!("{name}::")) {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
        if room == "mvcc"
            && ["async ", "tokio::", "std::time", "std::fs"]
                .iter()
                .any(|w| code.contains(w))
        {
            wrong.push(format!("{} is not pure", path.display()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
