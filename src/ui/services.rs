//! The global services and exports of all clusters, put together from the keys of the store.

use super::source::{Entry, Keys, Stopped, Unreadable, each};
use super::view::{Service, ServiceIn, Services};
use crate::model::keys::Scope;
use crate::model::slices;
use crate::util::words::shortened;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// The most keys that are read. A mesh with more services shows the first ones.
const KEYS_MAX: usize = 200_000;
/// The longest time that keys are read.
const LONGEST: Duration = Duration::from_secs(10);
/// Addresses, ports and port conflicts of one service that are shown. A value of a remote cluster may have any number.
const LISTED_MAX: usize = 100;
/// Characters of a text of a value, such as the name of a port, that are shown. Names of Kubernetes have no more.
const TEXT_MAX: usize = 253;
/// The session affinity of an export that names none, in the words of Kubernetes.
const NO_AFFINITY: &str = "None";
/// The label of an endpoint slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// All services, with what is in the way of a complete list.
#[derive(Debug, Default)]
pub(super) struct AllServices {
    pub(super) services: Vec<Service>,
    pub(super) incomplete: Option<String>,
}

/// Where a key of a scope belongs: its cluster, and its name after the cluster.
struct Place<'a> {
    cluster: &'a str,
    namespace: &'a str,
    name: &'a str,
}

/// A service that is being put together.
#[derive(Default)]
struct Gathered {
    clusters: BTreeMap<String, InCluster>,
}

#[derive(Default)]
struct InCluster {
    view: ServiceIn,
    /// The backends of the legacy service.
    backends: usize,
    has_slices: bool,
    /// Name of a port → number and protocol.
    ports: BTreeMap<String, String>,
}

/// The fields of a service that are looked at. The key says the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireService {
    frontends: BTreeMap<String, BTreeMap<String, WirePort>>,
    backends: BTreeMap<String, serde::de::IgnoredAny>,
    shared: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WirePort {
    protocol: String,
    port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireExport {
    session_affinity: Option<String>,
    ports: Vec<WireExportPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireExportPort {
    name: String,
    protocol: String,
    port: i32,
}

type Map = BTreeMap<(String, String), Gathered>;

/// Reads the services of the cluster `own` and those that are mirrored from others.
pub(super) async fn read(keys: &dyn Keys, own: &str) -> AllServices {
    let (mut map, mut left, until) = (Map::new(), KEYS_MAX, Instant::now() + LONGEST);
    let mut incomplete = None;
    'scopes: for scope in [Scope::Services, Scope::EndpointSlices, Scope::ServiceExports] {
        for (prefix, cluster) in prefixes(scope, own) {
            let mut take = |entry: &Entry| {
                left -= 1;
                if let Some(place) = place(&entry.key, &prefix, cluster) {
                    gather(&mut map, scope, &place, &entry.value);
                }
                left > 0
            };
            incomplete = match each(keys, &prefix, until, &mut take).await {
                Ok(None) => continue,
                Ok(Some(Stopped::Enough)) => Some(format!("there are more than {KEYS_MAX} keys of services")),
                Ok(Some(Stopped::Late)) => Some(format!("reading takes longer than {} seconds", LONGEST.as_secs())),
                Err(Unreadable(why)) => Some(format!("the store cannot be read: {why}")),
            };
            break 'scopes;
        }
    }
    let services = map
        .into_iter()
        .map(|((namespace, name), gathered)| gathered.finish(namespace, name));
    AllServices {
        services: services.collect(),
        incomplete,
    }
}

/// The prefixes of a scope; with the cluster, if the keys below do not begin with it.
fn prefixes(scope: Scope, own: &str) -> [(String, Option<&str>); 2] {
    let word = scope.word();
    [
        (format!("cilium/state/{word}/v1/{own}/"), Some(own)),
        (format!("cilium/cache/{word}/v1/"), None),
    ]
}

fn place<'a>(key: &'a [u8], prefix: &str, cluster: Option<&'a str>) -> Option<Place<'a>> {
    let rest = std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()?;
    let (cluster, rest) = match cluster {
        Some(cluster) => (cluster, rest),
        None => rest.split_once('/')?,
    };
    let (namespace, name) = rest.split_once('/')?;
    Some(Place {
        cluster,
        namespace,
        name,
    })
}

fn gather(map: &mut Map, scope: Scope, place: &Place<'_>, value: &[u8]) {
    let mut at = |name: &str, change: &mut dyn FnMut(&mut InCluster)| {
        let service = map.entry((place.namespace.to_owned(), name.to_owned())).or_default();
        let in_cluster = service.clusters.entry(place.cluster.to_owned()).or_default();
        place.cluster.clone_into(&mut in_cluster.view.cluster);
        change(in_cluster);
    };
    match scope {
        Scope::Services => {
            let wire: WireService = serde_json::from_slice(value).unwrap_or_default();
            at(place.name, &mut |service| service.legacy(&wire));
        }
        Scope::ServiceExports => {
            let wire: WireExport = serde_json::from_slice(value).unwrap_or_default();
            at(place.name, &mut |service| service.export(&wire));
        }
        Scope::EndpointSlices => {
            let Some(slice) = slices::decode(value) else { return };
            let Some(name) = slice.labels.get(SERVICE_NAME).filter(|name| name.len() <= TEXT_MAX) else {
                return;
            };
            let ready = |conditions: Option<&crate::model::values::slice::EndpointConditions>| {
                conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
            };
            let (mut well, mut badly) = (0, 0);
            for endpoint in &slice.endpoints {
                match ready(endpoint.conditions.as_ref()) {
                    true => well += endpoint.addresses.len(),
                    false => badly += endpoint.addresses.len(),
                }
            }
            at(name, &mut |service| service.slice(well, badly));
        }
        _ => {}
    }
}

// === impl InCluster ===

impl InCluster {
    fn legacy(&mut self, wire: &WireService) {
        self.view.shared = Some(wire.shared);
        self.view.addresses = listed(
            wire.frontends.keys().map(|address| short(address)),
            wire.frontends.len(),
        );
        self.backends = wire.backends.len();
        for (name, port) in wire.frontends.values().flatten() {
            self.port(name, format!("{}/{}", port.port, short(&port.protocol)));
        }
    }

    /// Notes the port of a name; the first ones, if there are too many.
    fn port(&mut self, name: &str, port: String) {
        let name = short(name);
        if self.ports.len() < LISTED_MAX || self.ports.contains_key(&name) {
            self.ports.insert(name, port);
        }
    }

    fn export(&mut self, wire: &WireExport) {
        self.view.exported = true;
        let affinity = wire.session_affinity.as_deref().filter(|affinity| !affinity.is_empty());
        self.view.session_affinity = affinity.map(short);
        for port in &wire.ports {
            let protocol = if port.protocol.is_empty() {
                "TCP"
            } else {
                &*short(&port.protocol)
            };
            self.port(&port.name, format!("{}/{protocol}", port.port));
        }
    }

    fn slice(&mut self, ready: usize, not_ready: usize) {
        self.has_slices = true;
        self.view.ready += ready;
        self.view.not_ready += not_ready;
    }

    fn finish(mut self) -> ServiceIn {
        // The legacy form has the ready backends only, and the same as the slices where there are both.
        if !self.has_slices {
            self.view.ready = self.backends;
        }
        let port = |(name, port): (&String, &String)| match &**name {
            "" => port.clone(),
            name => format!("{name} {port}"),
        };
        self.view.ports = self.ports.iter().map(port).collect();
        self.view
    }
}

// === impl Gathered ===

impl Gathered {
    fn finish(self, namespace: String, name: String) -> Service {
        let conflicts = self.conflicts();
        Service {
            namespace,
            name,
            clusters: self.clusters.into_values().map(InCluster::finish).collect(),
            conflicts,
        }
    }

    /// Ports of one name that differ between clusters: traffic to a backend elsewhere goes to the wrong port, or nowhere. The
    /// session affinity, too.
    fn conflicts(&self) -> Vec<String> {
        let mut ports: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
        for (cluster, service) in &self.clusters {
            for (name, port) in &service.ports {
                ports.entry(name).or_default().entry(port).or_default().push(cluster);
            }
        }
        let differing: Vec<_> = ports.into_iter().filter(|(_, numbers)| numbers.len() > 1).collect();
        let affinity = self.affinity_conflict();
        let all = differing.len() + usize::from(affinity.is_some());
        let text = |(name, numbers): (&str, BTreeMap<&str, Vec<&str>>)| {
            let of = |(port, clusters): (&&str, &Vec<&str>)| format!("{port} in {}", clusters.join(", "));
            let all: Vec<_> = numbers.iter().map(of).collect();
            match name {
                "" => format!("the port is {}", all.join(" and ")),
                name => format!("port {name} is {}", all.join(" and ")),
            }
        };
        listed(affinity.into_iter().chain(differing.into_iter().map(text)), all)
    }

    /// Exports whose session affinity differs: readers choose one of them.
    fn affinity_conflict(&self) -> Option<String> {
        let mut affinities: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (cluster, service) in self.clusters.iter().filter(|(_, service)| service.view.exported) {
            let affinity = service.view.session_affinity.as_deref().unwrap_or(NO_AFFINITY);
            affinities.entry(affinity).or_default().push(cluster);
        }
        let of = |(affinity, clusters): (&&str, &Vec<&str>)| format!("{affinity} in {}", clusters.join(", "));
        let all: Vec<_> = affinities.iter().map(of).collect();
        (all.len() > 1).then(|| format!("the session affinity is {}", all.join(" and ")))
    }
}

/// Whether `namespace/name` of a service contains `search`.
fn is_in(search: &str, service: &Service) -> bool {
    let Service { namespace, name, .. } = service;
    // A namespace has no slash. There may be many services: no text is put together for each.
    namespace.contains(search)
        || name.contains(search)
        || search
            .split_once('/')
            .is_some_and(|(end, begin)| namespace.ends_with(end) && name.starts_with(begin))
}

/// The beginning of a text of a value, which may have any length.
fn short(text: &str) -> String {
    shortened(text, TEXT_MAX).into_owned()
}

/// The first ones of `all` texts, and how many are left out.
fn listed(texts: impl Iterator<Item = String>, all: usize) -> Vec<String> {
    let more = all.saturating_sub(LISTED_MAX);
    let left_out = (more > 0).then(|| format!("and {more} more"));
    texts.take(LISTED_MAX).chain(left_out).collect()
}

// === impl AllServices ===

impl AllServices {
    /// The services whose namespace or name contains `search`, from `offset` on.
    pub(super) fn page(&self, search: &str, offset: usize, limit: usize) -> Services {
        let matches = |service: &&Service| is_in(search, service);
        let matching: Vec<_> = self.services.iter().filter(matches).collect();
        let offset = offset.min(matching.len());
        Services {
            total: matching.len(),
            offset,
            services: matching.into_iter().skip(offset).take(limit).cloned().collect(),
            incomplete: self.incomplete.clone(),
        }
    }

    /// The clusters that have services.
    pub(super) fn clusters(&self) -> BTreeSet<&str> {
        let all = self.services.iter().flat_map(|service| &service.clusters);
        all.map(|service| &*service.cluster).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::lookup::tests::Table;

    #[tokio::test]
    async fn a_service_is_put_together_from_all_clusters_and_forms() {
        let slice = |ready: bool| {
            use crate::model::values::slice::{ClusterEndpointSlice, Endpoint, EndpointConditions};
            use prost::Message as _;
            let slice = ClusterEndpointSlice {
                labels: [(SERVICE_NAME.to_owned(), "web".to_owned())].into(),
                endpoints: vec![Endpoint {
                    addresses: vec!["10.0.0.1".to_owned()],
                    conditions: Some(EndpointConditions {
                        ready: Some(ready),
                        ..EndpointConditions::default()
                    }),
                    ..Endpoint::default()
                }],
                ..ClusterEndpointSlice::default()
            };
            zstd::encode_all(&*slice.encode_to_vec(), 0).unwrap()
        };
        let own = br#"{"frontends":{"10.96.0.1":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.0.0.1":{},"10.0.0.2":{}},"shared":true}"#;
        let theirs =
            br#"{"frontends":{"10.97.0.1":{"http":{"Protocol":"TCP","Port":8080}}},"backends":{},"shared":false}"#;
        let export = br#"{"sessionAffinity":"ClientIP","ports":[{"name":"http","port":8080,"protocol":"TCP"}]}"#;
        let table = Table::of([
            ("cilium/state/services/v1/here/shop/web", &own[..]),
            ("cilium/cache/services/v1/there/shop/web", &theirs[..]),
            ("cilium/cache/services/v1/there/shop/api", b"not JSON"),
            ("cilium/cache/endpointslices/v1/there/shop/web-1", &slice(true)),
            ("cilium/cache/endpointslices/v1/there/shop/web-2", &slice(false)),
            ("cilium/cache/serviceexports/v1/there/shop/web", &export[..]),
        ]);
        let all = read(&table, "here").await;
        let names: Vec<_> = all.services.iter().map(|s| &*s.name).collect();
        assert_eq!((names, all.incomplete.clone()), (vec!["api", "web"], None));
        let web = &all.services[1];
        assert_eq!(web.conflicts, ["port http is 80/TCP in here and 8080/TCP in there"]);
        let [here, there] = &web.clusters[..] else {
            panic!("{web:?}")
        };
        assert_eq!((here.ready, here.not_ready, here.shared), (2, 0, Some(true)));
        assert_eq!((there.ready, there.not_ready, there.exported), (1, 1, true));
        assert_eq!(there.session_affinity.as_deref(), Some("ClientIP"));
        assert_eq!(there.ports, ["http 8080/TCP"]);
        assert!(all.clusters().into_iter().eq(["here", "there"]));
    }

    #[test]
    fn a_page_has_what_matches_from_its_offset_on() {
        let service = |name: &str| Service {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            clusters: vec![],
            conflicts: vec![],
        };
        let all = AllServices {
            services: ["a1", "a2", "b"].map(service).into(),
            incomplete: None,
        };
        let page = all.page("shop/a", 1, 5);
        assert_eq!((page.total, page.services.len(), &*page.services[0].name), (2, 1, "a2"));
        assert_eq!(all.page("", 0, 2).total, 3);
        for (search, total) in [
            ("op/a2", 1),
            ("/a", 2),
            ("sh", 3),
            ("2", 1),
            ("hop/", 3),
            ("shop//", 0),
            ("a/", 0),
        ] {
            assert_eq!(all.page(search, 0, 5).total, total, "{search}");
        }
        assert_eq!(all.page("", usize::MAX, 2).offset, 3);
    }

    #[tokio::test]
    async fn a_service_with_any_number_of_addresses_and_ports_lists_a_hundred() {
        let service = |port: usize| {
            let ports: Vec<_> = (0..500)
                .map(|n| format!(r#""p{n:03}":{{"Protocol":"TCP","Port":{port}}}"#))
                .collect();
            let frontends: Vec<_> = (0..500)
                .map(|n| format!(r#""a{n:03}":{{{}}}"#, ports.join(",")))
                .collect();
            format!(r#"{{"frontends":{{{}}},"backends":{{}}}}"#, frontends.join(","))
        };
        let (one, two) = (service(1), service(2));
        let table = Table::of([
            ("cilium/state/services/v1/here/shop/web", one.as_bytes()),
            ("cilium/cache/services/v1/there/shop/web", two.as_bytes()),
        ]);
        let all = read(&table, "here").await;
        let [web] = &all.services[..] else { panic!("{all:?}") };
        for here in &web.clusters {
            assert_eq!((here.addresses.len(), here.ports.len()), (LISTED_MAX + 1, LISTED_MAX));
            assert_eq!(here.addresses[LISTED_MAX], "and 400 more");
        }
        assert_eq!(web.conflicts.len(), LISTED_MAX);
    }

    #[tokio::test]
    async fn exports_with_different_affinities_conflict() {
        let (ip, none) = (br#"{"sessionAffinity":"ClientIP"}"#, br#"{"sessionAffinity":"None"}"#);
        let conflicts = async |exports: &[(&str, &[u8])]| {
            let key = |cluster: &str| format!("cilium/cache/serviceexports/v1/{cluster}/shop/web");
            let keys: Vec<_> = exports.iter().map(|(cluster, value)| (key(cluster), *value)).collect();
            let table = Table::of(keys.iter().map(|(key, value)| (&**key, *value)));
            read(&table, "here").await.services.remove(0).conflicts
        };
        assert_eq!(conflicts(&[("a", none), ("b", b"{}")]).await, [""; 0]);
        assert_eq!(
            conflicts(&[("a", ip), ("b", none), ("c", b"{}")]).await,
            ["the session affinity is ClientIP in a and None in b, c"]
        );
    }

    #[tokio::test]
    async fn texts_of_any_length_are_shortened() {
        let long = "x".repeat(100_000);
        let service =
            format!(r#"{{"frontends":{{"{long}":{{"{long}":{{"Protocol":"{long}","Port":1}}}}}},"backends":{{}}}}"#);
        let export = format!(r#"{{"sessionAffinity":"{long}","ports":[{{"name":"{long}a","protocol":"{long}"}}]}}"#);
        let table = Table::of([
            ("cilium/cache/services/v1/there/shop/web", service.as_bytes()),
            ("cilium/cache/serviceexports/v1/there/shop/web", export.as_bytes()),
        ]);
        let all = read(&table, "here").await;
        let shown = serde_json::to_string(&all.page("", 0, 9)).unwrap();
        assert!(shown.contains("xxx…") && shown.len() < 10 * TEXT_MAX, "{shown}");
    }
}
