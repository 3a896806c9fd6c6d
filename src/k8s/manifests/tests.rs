use super::*;
use crate::k8s::manifests::defaults::set_defaults;
use follow_dir::{File, FileChange};

/// A directory of manifests, of which only the changes exist.
#[derive(Default)]
struct Dir {
    manifests: Manifests,
    changes: Vec<FileChange>,
}

impl Dir {
    fn write(&mut self, name: &str, text: &str) {
        self.changes.push(FileChange::Content(File {
            path: name.into(),
            content: text.into(),
            modified: SystemTime::UNIX_EPOCH,
        }));
    }

    fn remove(&mut self, name: &str) {
        self.changes.push(FileChange::Removed(name.into()));
    }

    /// The events that follow from the changes since the last call.
    fn scan(&mut self) -> Vec<String> {
        let text = |e: Event| match e {
            Event::Apply(key, _) => format!("+{key}"),
            Event::Delete(k) => format!("-{k}"),
            Event::Listed(_) => unreachable!(),
        };
        let changes = std::mem::take(&mut self.changes);
        self.manifests.update(changes).into_iter().map(text).collect()
    }

    fn warned(&self, part: &str) -> bool {
        self.manifests.has_warned(part)
    }
}

fn node(name: &str) -> String {
    format!("apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata:\n  name: {name}\n")
}

#[test]
fn objects_come_go_and_change_with_their_files() {
    let mut dir = Dir::default();
    dir.write("a.yaml", &format!("{}---\n{}", node("n1"), node("n2")));
    assert_eq!(dir.scan(), ["+CiliumNode n1", "+CiliumNode n2"]);
    assert_eq!(dir.scan(), Vec::<String>::new());
    dir.write("a.yaml", &format!("{}spec: {{bootid: x}}\n", node("n1")));
    assert_eq!(dir.scan(), ["+CiliumNode n1", "-CiliumNode n2"]);
    dir.remove("a.yaml");
    assert_eq!(dir.scan(), ["-CiliumNode n1"]);
}

#[test]
fn a_document_that_does_not_parse_is_named_and_loses_nothing() {
    let mut dir = Dir::default();
    dir.write("a.yaml", &format!("{}---\n{}", node("n1"), node("n2")));
    dir.scan();
    dir.write(
        "a.yaml",
        &format!("{}---\nkind: [broken\n---\n{}", node("n1"), node("n3")),
    );
    assert_eq!(dir.scan(), ["+CiliumNode n3"]);
    assert!(dir.warned("a.yaml: does not parse: line "));
    dir.write("a.yaml", &node("n1"));
    let mut gone = dir.scan();
    gone.sort();
    assert_eq!(gone, ["-CiliumNode n2", "-CiliumNode n3"]);
    assert!(!dir.warned("does not parse"));
}

#[test]
fn a_file_that_is_not_text_keeps_its_objects() {
    let mut dir = Dir::default();
    dir.write("a.yaml", &node("n1"));
    dir.scan();
    dir.changes.push(FileChange::Content(File {
        path: "a.yaml".into(),
        content: vec![0xff],
        modified: SystemTime::UNIX_EPOCH,
    }));
    assert_eq!(dir.scan(), Vec::<String>::new());
    dir.remove("a.yaml");
    assert_eq!(dir.scan(), ["-CiliumNode n1"]);
}

#[test]
fn an_object_of_the_wrong_shape_keeps_its_published_version() {
    let mut dir = Dir::default();
    dir.write("a.yaml", &node("n1"));
    dir.scan();
    dir.write("a.yaml", &format!("{}spec: {{addresses: 5}}\n", node("n1")));
    assert_eq!(dir.scan(), Vec::<String>::new());
    assert!(dir.warned("a.yaml: CiliumNode n1 is not valid"));
}

#[test]
fn of_an_object_in_two_files_the_first_counts_and_both_are_named() {
    let mut dir = Dir::default();
    dir.write("a.yaml", &node("n1"));
    dir.write("b.yaml", &node("n1"));
    assert_eq!(dir.scan(), ["+CiliumNode n1"]);
    assert!(dir.warned("b.yaml: CiliumNode n1 is also in"));
    dir.remove("a.yaml");
    assert_eq!(
        dir.scan(),
        Vec::<String>::new(),
        "the same content from another file is no change"
    );
}

#[test]
fn a_namespace_outlives_its_manifest_while_objects_name_it() {
    let mut dir = Dir::default();
    dir.write("ns.yaml", "kind: Namespace\nmetadata: {name: ns}\n");
    dir.write("s.yaml", "kind: Service\nmetadata: {name: s, namespace: ns}\n");
    assert_eq!(dir.scan(), ["+Namespace ns", "+Service ns/s"]);
    dir.remove("ns.yaml");
    assert_eq!(dir.scan(), ["+Namespace ns"], "as if it had no annotations");
    dir.remove("s.yaml");
    assert_eq!(dir.scan(), ["-Service ns/s", "-Namespace ns"]);
}

#[test]
fn defaults_of_an_api_server_are_set() {
    let mut value = serde_json::json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    set_defaults(Kind::Service, &mut value, "");
    assert_eq!(value["metadata"]["namespace"], "default");
    let spec =
        serde_json::json!({"clusterIP": "None", "sessionAffinity": "None", "ports": [{"port": 80, "protocol": "TCP"}]});
    assert_eq!(value["spec"], spec);
    let mut export = serde_json::json!({"metadata": {"name": "s"}});
    set_defaults(Kind::ServiceExport, &mut export, "2026-11-01T09:00:00Z");
    assert_eq!(export["metadata"]["creationTimestamp"], "2026-11-01T09:00:00Z");
}

#[test]
fn lists_and_json_are_read_and_namespaces_are_implied() {
    let mut dir = Dir::default();
    dir.write(
        "a.json",
        r#"{"kind":"List","items":[{"kind":"Service","metadata":{"name":"s","namespace":"ns"}}]}"#,
    );
    dir.write(
        "b.yaml",
        "kind: Deployment\nmetadata: {name: d}\n---\nmetadata: {name: x}\n---\nkind: Service\n",
    );
    assert_eq!(dir.scan(), ["+Namespace ns", "+Service ns/s"]);
    assert!(dir.warned("line 4 has no kind") && dir.warned("the Service at line 6 has no name"));
}

#[tokio::test]
async fn a_directory_is_listed_once_and_must_be_readable_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let (kinds, status) = (vec![Kind::Node, Kind::Service], Status::default());
    let absent = follow(dir.path().join("absent"), kinds.clone(), sender.clone(), &status).await;
    assert!(absent.unwrap_err().to_string().contains("absent: No such file"));
    for (name, text) in [
        ("a.yaml", node("n1")),
        ("ignored.txt", node("n9")),
        (".hidden.yaml", node("n9")),
        (
            "identity.json",
            r#"{"kind": "CiliumIdentity", "metadata": {"name": "7"}}"#.to_owned(),
        ),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let told = async {
        let mut told = vec![];
        for _ in 0..3 {
            told.push(match events.recv().await.unwrap().event {
                Event::Apply(key, _) => format!("+{key}"),
                Event::Delete(key) => format!("-{key}"),
                Event::Listed(kind) => format!("listed {}", kind.name()),
            });
        }
        told
    };
    tokio::select! {
        ended = follow(dir.path().to_owned(), kinds, sender, &status) => panic!("{ended:?}"),
        told = told => assert_eq!(told, ["+CiliumNode n1", "listed CiliumNode", "listed Service"]),
    }
}

#[test]
fn kinds_that_are_not_published_are_named_once() {
    let mut dir = Dir::default();
    dir.write(
        "a.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n---\nkind: CiliumNodez\nmetadata: {name: n}\n",
    );
    assert_eq!(dir.scan(), Vec::<String>::new());
    dir.write("b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: q}\n");
    dir.scan();
    assert_eq!(dir.manifests.ignored_kinds(), ["CiliumNodez", "Pod (v1)"]);
}
