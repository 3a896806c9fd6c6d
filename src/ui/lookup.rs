//! The question of every debugging session: what is known here of an address, a pod, an identity or a key?

use super::decode::{Budget, Decoded, decoded};
use super::source::{Entry, Keys, Stopped, Unreadable, each};
use super::view::{Finding, Findings};
use crate::model::keys::{CLUSTER_CONFIGS, SYNCED, Scope};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// The most findings.
const FINDINGS_MAX: usize = 100;
/// Bytes of the values of all findings. The keys of a mesh have about a kilobyte each.
const VALUES_MAX: usize = 512 << 10;
/// The longest time that keys are searched.
const LONGEST: Duration = Duration::from_secs(5);

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Address(IpAddr),
    Identity(u32),
    /// A key, or the beginning of keys.
    Key(String),
    /// A pod or a service, with its namespace; without a name, all of them.
    InNamespace {
        namespace: String,
        name: String,
    },
    /// A node, a pod, a service or a cluster.
    Name(String),
}

/// The answer, as long as it is being found.
struct Search<'a> {
    keys: &'a dyn Keys,
    /// This cluster.
    own: &'a str,
    /// The clusters that are mirrored.
    remotes: &'a [String],
    found: Vec<Finding>,
    budget: Budget,
    until: Instant,
    incomplete: Option<String>,
}

/// Answers a question from the keys of this cluster and of those that are mirrored.
pub(super) async fn look_up(
    keys: &dyn Keys,
    own: &str,
    remotes: &[String],
    text: &str,
) -> Result<Findings, Unreadable> {
    let question = Question::parse(text);
    let mut search = Search {
        keys,
        own,
        remotes,
        found: vec![],
        budget: Budget(VALUES_MAX),
        until: Instant::now() + LONGEST,
        incomplete: None,
    };
    search.answer(&question).await?;
    Ok(Findings {
        looked_for: question.words(),
        findings: search.found,
        incomplete: search.incomplete,
    })
}

// === impl Question ===

impl Question {
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        let unbracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = unbracketed.unwrap_or(text).parse() {
            return Self::Address(address);
        }
        if let Ok(identity) = text.parse() {
            return Self::Identity(identity);
        }
        if text.starts_with("cilium/") {
            return Self::Key(text.to_owned());
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => Self::InNamespace {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            Some(_) => Self::Key(text.to_owned()),
            None => Self::Name(text.to_owned()),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Address(address) => format!("the address {address}"),
            Self::Identity(identity) => format!("the identity {identity}"),
            Self::Key(key) => format!("keys that begin with {key}"),
            Self::InNamespace { namespace, name } if name.is_empty() => format!("the namespace {namespace}"),
            Self::InNamespace { namespace, name } => format!("{name} in the namespace {namespace}"),
            Self::Name(name) => format!("nodes, pods, services and clusters whose name contains {name}"),
        }
    }
}

// === impl Search ===

impl Search<'_> {
    async fn answer(&mut self, question: &Question) -> Result<(), Unreadable> {
        match question {
            Question::Address(address) => self.address(*address).await,
            Question::Identity(identity) => self.identity(*identity, None).await,
            Question::Key(key) => self.scan(key.clone(), |_| true).await,
            Question::InNamespace { namespace, name } if name.is_empty() => self.namespace(namespace).await,
            Question::InNamespace { namespace, name } => {
                let (space, pod) = (field("K8sNamespace", namespace), field("K8sPodName", name));
                let is_pod = |entry: &Entry| contains(&entry.value, &space) && contains(&entry.value, &pod);
                self.scan_scope(Scope::Endpoints, is_pod).await?;
                let end = format!("/{namespace}/{name}");
                for scope in [Scope::Services, Scope::ServiceExports] {
                    self.scan_scope(scope, |entry| entry.key.ends_with(end.as_bytes()))
                        .await?;
                }
                let slice = format!("/{namespace}/{name}-");
                self.scan_scope(Scope::EndpointSlices, |entry| contains(&entry.key, slice.as_bytes()))
                    .await
            }
            Question::Name(name) if name.is_empty() => Ok(()),
            Question::Name(name) => {
                let named = |entry: &Entry| contains(last_segment(&entry.key), name.as_bytes());
                self.scan(CLUSTER_CONFIGS.to_owned(), named).await?;
                for scope in [Scope::Nodes, Scope::Services, Scope::ServiceExports] {
                    self.scan_scope(scope, named).await?;
                }
                let begin = &b"\"K8sPodName\":\""[..];
                let is_pod = |entry: &Entry| {
                    let pod = find(&entry.value, begin).map(|at| &entry.value[at + begin.len()..]);
                    let pod = pod.and_then(|rest| rest.split(|&b| b == b'"').next());
                    pod.is_some_and(|pod| contains(pod, name.as_bytes()))
                };
                self.scan_scope(Scope::Endpoints, is_pod).await
            }
        }
    }

    /// The pods and services of a namespace.
    async fn namespace(&mut self, namespace: &str) -> Result<(), Unreadable> {
        let space = field("K8sNamespace", namespace);
        self.scan_scope(Scope::Endpoints, |entry| contains(&entry.value, &space))
            .await?;
        // cilium/cache/services/v1/cluster/namespace/name
        let segment = |entry: &Entry| entry.key.split(|&b| b == b'/').nth(5) == Some(namespace.as_bytes());
        for scope in [Scope::Services, Scope::ServiceExports, Scope::EndpointSlices] {
            self.scan_scope(scope, segment).await?;
        }
        Ok(())
    }

    /// The key of the address with its identity, and the nodes and services that mention the address.
    async fn address(&mut self, address: IpAddr) -> Result<(), Unreadable> {
        let mut identities = vec![];
        for key in self.keys_of(Scope::Endpoints, &address.to_string()) {
            if let Some(entry) = self.keys.get(&key).await? {
                let finding = finding(&entry, &mut self.budget);
                identities.push((finding.value["ID"].as_u64(), finding.cluster.clone()));
                self.found.push(finding);
            }
        }
        for (id, cluster) in identities {
            if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
                self.identity(id, cluster.as_deref()).await?;
            }
        }
        let quoted = format!("\"{address}\"");
        let mentions = |entry: &Entry| contains(&entry.value, quoted.as_bytes());
        self.scan_scope(Scope::Nodes, mentions).await?;
        self.scan_scope(Scope::Services, mentions).await
    }

    /// The labels of an identity, in `cluster` or in all clusters.
    async fn identity(&mut self, identity: u32, cluster: Option<&str>) -> Result<(), Unreadable> {
        for key in self.keys_of(Scope::Identities, &identity.to_string()) {
            if let Some(entry) = self.keys.get(&key).await? {
                let finding = finding(&entry, &mut self.budget);
                let is_wanted = match (cluster, &finding.cluster) {
                    (Some(wanted), Some(found)) => wanted == found,
                    (Some(wanted), None) => wanted == self.own,
                    (None, _) => true,
                };
                if is_wanted && !self.found.iter().any(|other| other.key == finding.key) {
                    self.found.push(finding);
                }
            }
        }
        Ok(())
    }

    /// The key of `name` in each cluster.
    fn keys_of(&self, scope: Scope, name: &str) -> Vec<String> {
        let (own, between) = match scope {
            Scope::Identities => ("cilium/state/identities/v1/id/".to_owned(), "/id/"),
            Scope::Endpoints => ("cilium/state/ip/v1/default/".to_owned(), "/"),
            _ => (format!("cilium/state/{}/v1/{}/", scope.word(), self.own), "/"),
        };
        let mirrored = |cluster: &String| format!("cilium/cache/{}/v1/{cluster}{between}{name}", scope.word());
        std::iter::once(own + name)
            .chain(self.remotes.iter().map(mirrored))
            .collect()
    }

    async fn scan_scope(&mut self, scope: Scope, wanted: impl Fn(&Entry) -> bool) -> Result<(), Unreadable> {
        for place in ["state", "cache"] {
            self.scan(format!("cilium/{place}/{}/v1/", scope.word()), &wanted)
                .await?;
        }
        Ok(())
    }

    /// Adds the keys below `prefix` that are wanted.
    async fn scan(&mut self, prefix: String, wanted: impl Fn(&Entry) -> bool) -> Result<(), Unreadable> {
        let (found, budget) = (&mut self.found, &mut self.budget);
        let stopped = each(self.keys, &prefix, self.until, |entry| {
            if wanted(entry) {
                if found.len() >= FINDINGS_MAX {
                    return false;
                }
                found.push(finding(entry, budget));
            }
            true
        });
        if let Some(stopped) = stopped.await? {
            self.incomplete = Some(match stopped {
                Stopped::Enough => format!("only the first {FINDINGS_MAX} are shown"),
                Stopped::Late => format!("the search was stopped after {} seconds", LONGEST.as_secs()),
            });
        }
        Ok(())
    }
}

/// What an entry says.
fn finding(entry: &Entry, budget: &mut Budget) -> Finding {
    let key = String::from_utf8_lossy(&entry.key).into_owned();
    let Decoded {
        value,
        encoding,
        is_cut,
    } = decoded(&entry.value, budget);
    let (kind, cluster, is_mirrored) = origin(&key);
    // The keys of this cluster's own addresses and identities do not name a cluster.
    Finding {
        kind,
        cluster,
        is_mirrored,
        since_revision: entry.create_revision,
        changed_revision: entry.mod_revision,
        version: entry.version,
        bytes: entry.value.len(),
        encoding: encoding.to_owned(),
        is_cut,
        value,
        key,
    }
}

/// The kind of a key, the cluster that it names, and whether it is mirrored.
fn origin(key: &str) -> (String, Option<String>, bool) {
    if let Some(cluster) = key.strip_prefix(CLUSTER_CONFIGS) {
        return ("cluster configuration".to_owned(), Some(cluster.to_owned()), false);
    }
    if let Some(rest) = key.strip_prefix(SYNCED) {
        let cluster = rest.split('/').next().map(str::to_owned);
        return ("canary".to_owned(), cluster, rest.contains("/cilium/cache/"));
    }
    let mut segments = key.split('/');
    let (_, place, kind) = (segments.next(), segments.next(), segments.next());
    let cluster = segments
        .nth(1)
        .filter(|_| segments.next().is_some() || kind == Some("probe"));
    match (place, kind) {
        (Some("cache"), Some(kind)) => (kind.to_owned(), cluster.map(str::to_owned), true),
        (Some("state"), Some(kind @ ("ip" | "identities"))) => (kind.to_owned(), None, false),
        (Some("state"), Some(kind)) => (kind.to_owned(), cluster.map(str::to_owned), false),
        _ => ("other".to_owned(), None, false),
    }
}

/// The text of a field of a JSON object without spaces, as Cilium and this program write them.
fn field(name: &str, value: &str) -> Vec<u8> {
    format!("\"{name}\":{}", serde_json::Value::from(value)).into_bytes()
}

fn last_segment(key: &[u8]) -> &[u8] {
    key.rsplit(|&b| b == b'/').next().unwrap_or_default()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    find(text, part).is_some()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    let first = *part.first()?;
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|&b| b == first) {
        if text[from + at..].starts_with(part) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ui::source::Page;
    use bytes::Bytes;
    use std::collections::BTreeMap;

    /// A store of a few keys.
    pub(in crate::ui) struct Table(BTreeMap<String, Vec<u8>>);

    impl Table {
        pub(in crate::ui) fn of<'a>(keys: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
            Self(
                keys.into_iter()
                    .map(|(key, value)| (key.to_owned(), value.to_vec()))
                    .collect(),
            )
        }
    }

    fn entry(key: &str, value: &[u8]) -> Entry {
        Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
        }
    }

    #[async_trait::async_trait]
    impl Keys for Table {
        async fn page(&self, prefix: &str, after: Option<&[u8]>, limit: usize) -> Result<Page, Unreadable> {
            let all = self.0.iter().filter(|(key, _)| key.starts_with(prefix));
            let mut rest = all.filter(|(key, _)| after.is_none_or(|after| key.as_bytes() > after));
            Ok(Page {
                entries: rest
                    .by_ref()
                    .take(limit)
                    .map(|(key, value)| entry(key, value))
                    .collect(),
                more: rest.next().is_some(),
            })
        }

        async fn get(&self, key: &str) -> Result<Option<Entry>, Unreadable> {
            Ok(self.0.get(key).map(|value| entry(key, value)))
        }
    }

    #[test]
    fn a_question_is_recognised_by_its_form() {
        let in_namespace = |namespace: &str, name: &str| Question::InNamespace {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        for (text, question) in [
            (" 10.0.0.1 ", Question::Address("10.0.0.1".parse().unwrap())),
            ("[fd00::1]", Question::Address("fd00::1".parse().unwrap())),
            ("132079", Question::Identity(132_079)),
            ("cilium/cache/nodes", Question::Key("cilium/cache/nodes".to_owned())),
            ("shop/web", in_namespace("shop", "web")),
            ("a/b/c", Question::Key("a/b/c".to_owned())),
            ("/x", Question::Key("/x".to_owned())),
            ("hkg-node-1", Question::Name("hkg-node-1".to_owned())),
        ] {
            assert_eq!(Question::parse(text), question);
        }
    }

    async fn keys_found(text: &str) -> Vec<String> {
        let table = Table::of([
            ("cilium/cache/identities/v1/hk/id/7", &b"k8s:app=web;"[..]),
            (
                "cilium/cache/ip/v1/hk/10.2.0.1",
                br#"{"IP":"10.2.0.1","ID":7,"K8sNamespace":"shop","K8sPodName":"web-1"}"#,
            ),
            (
                "cilium/cache/nodes/v1/hk/hkg-1",
                br#"{"IPAddresses":[{"Type":"InternalIP","IP":"172.18.2.11"}]}"#,
            ),
            (
                "cilium/cache/services/v1/hk/shop/web",
                br#"{"backends":{"10.2.0.1":{}}}"#,
            ),
            ("cilium/cluster-config/hk", br#"{"id":2}"#),
            ("cilium/state/identities/v1/id/7", b"k8s:app=other;"),
            (
                "cilium/state/ip/v1/default/10.1.0.1",
                br#"{"IP":"10.1.0.1","ID":9,"K8sPodName":"web-2"}"#,
            ),
        ]);
        let found = look_up(&table, "tokyo", &["hk".to_owned()], text).await.unwrap();
        assert_eq!(found.incomplete, None);
        found.findings.into_iter().map(|finding| finding.key).collect()
    }

    #[tokio::test]
    async fn everything_that_is_known_of_a_thing_is_found() {
        let address = [
            "cilium/cache/ip/v1/hk/10.2.0.1",
            "cilium/cache/identities/v1/hk/id/7",
            "cilium/cache/services/v1/hk/shop/web",
        ];
        assert_eq!(keys_found("10.2.0.1").await, address);
        assert_eq!(keys_found("172.18.2.11").await, ["cilium/cache/nodes/v1/hk/hkg-1"]);
        let identities = ["cilium/state/identities/v1/id/7", "cilium/cache/identities/v1/hk/id/7"];
        assert_eq!(keys_found("7").await, identities);
        assert_eq!(keys_found("shop/web-1").await, ["cilium/cache/ip/v1/hk/10.2.0.1"]);
        assert_eq!(keys_found("shop/web").await, ["cilium/cache/services/v1/hk/shop/web"]);
        let of_namespace = ["cilium/cache/ip/v1/hk/10.2.0.1", "cilium/cache/services/v1/hk/shop/web"];
        assert_eq!(keys_found("shop/").await, of_namespace);
        assert_eq!(keys_found("hk/").await, [""; 0], "hk is a cluster");
        assert_eq!(keys_found("web-").await.len(), 2);
        assert_eq!(
            keys_found("hk").await,
            ["cilium/cluster-config/hk", "cilium/cache/nodes/v1/hk/hkg-1"]
        );
        assert_eq!(keys_found("cilium/state/").await.len(), 2);
        assert_eq!(keys_found("").await, [""; 0]);
    }

    #[test]
    fn the_key_says_where_it_comes_from() {
        let of = |key: &str| {
            let (kind, cluster, is_mirrored) = origin(key);
            (kind, cluster.unwrap_or_default(), is_mirrored)
        };
        let row = |kind: &str, cluster: &str, is_mirrored| (kind.to_owned(), cluster.to_owned(), is_mirrored);
        assert_eq!(of("cilium/cache/ip/v1/hk/10.0.0.1"), row("ip", "hk", true));
        assert_eq!(of("cilium/cache/identities/v1/hk/id/7"), row("identities", "hk", true));
        assert_eq!(of("cilium/state/nodes/v1/tokyo/n1"), row("nodes", "tokyo", false));
        assert_eq!(of("cilium/state/ip/v1/default/10.0.0.1"), row("ip", "", false));
        assert_eq!(
            of("cilium/cluster-config/hk"),
            row("cluster configuration", "hk", false)
        );
        assert_eq!(of("cilium/synced/hk/cilium/cache/ip/v1"), row("canary", "hk", true));
        assert_eq!(of("cilium/.heartbeat"), row("other", "", false));
        assert_eq!(of("x"), row("other", "", false));
    }
}
