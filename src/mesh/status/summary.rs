//! The summary for people: the lines of Cilium's CLI, followed by the paths that are broken.

use super::connectivity::{Connectivity, Kind, Spread, WHOLE_POD};
use super::path::{Hop, Path};
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Write};

/// The most pods whose errors are printed; `-o json` has all.
const PODS_MAX: usize = 20;

/// What the summary is made of.
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a> {
    pub namespace: &'a str,
    pub agents: &'a Connectivity,
    /// `None` if no mirror runs.
    pub mirrors: Option<&'a Connectivity>,
    pub paths: &'a BTreeMap<String, Path>,
}

// === impl Summary ===

impl Display for Summary<'_> {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let mirrors = self.mirrors.filter(|mirrors| !mirrors.is_unsupported);
        out.write_char('\n')?;
        write_connected(out, "nodes", self.agents)?;
        if let Some(mirrors) = mirrors {
            write_connected(out, "KVStoreMesh replicas", mirrors)?;
        }
        out.write_char('\n')?;
        self.write_clusters(out, mirrors)?;
        let Spread { min, avg, max } = self.agents.global_services;
        writeln!(out, "🔀 Global services: [ min:{min} / avg:{avg:.1} / max:{max} ]")?;
        self.write_errors(out)?;
        self.write_paths(out)
    }
}

fn write_connected(out: &mut Formatter<'_>, what: &str, status: &Connectivity) -> std::fmt::Result {
    let (Spread { min, avg, max }, total) = (status.connected, status.total);
    let spread = format!("[min:{min} / avg:{avg:.1} / max:{max}]");
    if status.is_silent() {
        return writeln!(out, "❌ No pod runs for the {what}, and remote clusters are configured");
    }
    match status.not_ready {
        0 if status.clusters.is_empty() => Ok(()),
        0 => writeln!(out, "✅ All {total} {what} are connected to all clusters {spread}"),
        broken => writeln!(
            out,
            "⚠️  {broken}/{total} {what} are not connected to all clusters {spread}"
        ),
    }
}

impl Summary<'_> {
    fn write_clusters(&self, out: &mut Formatter<'_>, mirrors: Option<&Connectivity>) -> std::fmt::Result {
        if self.agents.clusters.is_empty() {
            return writeln!(out, "🔌 No cluster connected");
        }
        writeln!(out, "🔌 Cluster Connections:")?;
        for (name, count) in &self.agents.clusters {
            let total = self.agents.total;
            write!(
                out,
                "  - {name}: {}/{total} configured, {}/{total} connected",
                count.configured, count.connected
            )?;
            match (self.mirrors, mirrors) {
                (None, _) => {}
                (Some(_), None) => out.write_str(" - KVStoreMesh: status not available")?,
                (Some(_), Some(mirrors)) => {
                    let (total, count) = (mirrors.total, mirrors.clusters.get(name).copied().unwrap_or_default());
                    write!(
                        out,
                        " - KVStoreMesh: {}/{total} configured, {}/{total} connected",
                        count.configured, count.connected
                    )?;
                }
            }
            out.write_char('\n')?;
        }
        Ok(())
    }

    fn write_errors(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        let mut pods: Vec<_> = self.agents.errors.iter().map(|pod| (pod, "cilium-agent")).collect();
        let mirrors = self.mirrors.iter().flat_map(|mirrors| &mirrors.errors);
        pods.extend(mirrors.map(|pod| (pod, "kvstoremesh")));
        if pods.is_empty() {
            return Ok(());
        }
        pods.sort_by_key(|((name, _), _)| *name);
        writeln!(out, "\n❌ {} Errors:", pods.len())?;
        for ((pod, clusters), container) in pods.iter().take(PODS_MAX) {
            for (cluster, problems) in *clusters {
                for error in &problems.errors {
                    match &**cluster {
                        WHOLE_POD => writeln!(out, "  ❌ {pod} did not tell its status: {error}")?,
                        _ => writeln!(out, "  ❌ {pod} is not connected to cluster {cluster}: {error}")?,
                    }
                }
                if let Some(hint) = self.hint(pod, container, cluster, problems.kind) {
                    writeln!(out, "     💡 {hint}")?;
                }
            }
        }
        match pods.len().saturating_sub(PODS_MAX) {
            0 => Ok(()),
            more => writeln!(out, "  ❌ {more} more pods have errors: '--output json' lists them all"),
        }
    }

    /// The hints of Cilium's CLI.
    fn hint(&self, pod: &str, container: &str, cluster: &str, kind: Kind) -> Option<String> {
        let exec = format!("kubectl exec -it -n {} {pod} -c {container} --", self.namespace);
        let is_agent = container == "cilium-agent";
        Some(match kind {
            Kind::Other => return None,
            Kind::Unread => {
                "The pod has not read its changed Secret yet: the kubelet passes it on within about two minutes"
                    .to_owned()
            }
            Kind::NotConnected if is_agent => {
                format!("Run '{exec} cilium-dbg troubleshoot clustermesh {cluster}' to investigate the cause")
            }
            Kind::NotConnected => format!(
                "Run '{exec} /usr/bin/clustermesh-apiserver kvstoremesh-dbg troubleshoot {cluster}' to investigate the cause"
            ),
            Kind::NoConfig if is_agent && self.mirrors.is_some() => {
                "This is likely caused by KVStoreMesh not being connected to the given cluster".to_owned()
            }
            Kind::NoConfig => {
                "Double check if the cluster name matches the one configured in the remote cluster".to_owned()
            }
        })
    }

    fn write_paths(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        for (peer, path) in self.paths {
            out.write_str("\n🔎 ")?;
            for hop in path.hops.iter().take_while(|hop| **hop <= path.broken.hop) {
                let name = match hop {
                    Hop::Agent => "agents",
                    Hop::OwnStore => "own store",
                    Hop::Kvstoremesh => "KVStoreMesh",
                    Hop::Remote => peer,
                };
                let mark = if *hop == path.broken.hop { "❌" } else { "✅" };
                let arrow = if *hop == Hop::Agent { "" } else { " → " };
                write!(out, "{arrow}{name} {mark}")?;
            }
            // The stages behind the broken hop are not judged.
            for hop in path.hops.iter().filter(|hop| **hop > path.broken.hop) {
                match hop {
                    Hop::Remote => write!(out, " → {peer}")?,
                    Hop::Kvstoremesh => out.write_str(" → KVStoreMesh")?,
                    Hop::Agent | Hop::OwnStore => out.write_str(" → own store")?,
                }
            }
            let seen = path
                .broken
                .pod
                .as_ref()
                .map_or_else(String::new, |pod| format!(" (seen by pod {pod})"));
            writeln!(out, "\n   ❌ {}{seen}\n   💡 {}", path.broken.cause, path.broken.remedy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::Broken;
    use super::super::remote::{of_agent, of_mirror};
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    const GOOD: &str = r#"{"name": "west", "ready": true, "connected": true, "num-shared-services": 1}"#;

    fn agents(remotes: &[Value], expected: &[&str]) -> Connectivity {
        let answers = remotes.iter().enumerate().map(|(at, remote)| {
            let status = json!({"cluster-mesh": {"clusters": [remote]}});
            (format!("cilium-{at}"), of_agent(&status.to_string()))
        });
        let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        Connectivity::of(&answers.collect(), &expected)
    }

    fn mirrors(remote: &Value) -> Connectivity {
        let answer = of_mirror(&json!([remote]).to_string());
        Connectivity::of(
            &[("clustermesh-apiserver-0".to_owned(), answer)].into(),
            &["west".to_owned()].into(),
        )
    }

    fn text(agents: &Connectivity, mirrors: Option<&Connectivity>, paths: &BTreeMap<String, Path>) -> String {
        let namespace = "kube-system";
        let summary = Summary {
            namespace,
            agents,
            mirrors,
            paths,
        };
        summary.to_string()
    }

    fn good() -> Value {
        serde_json::from_str(GOOD).unwrap()
    }

    /// The walk's step 2, and section A8 of the CLI's description.
    #[test]
    fn without_a_peer_no_cluster_is_connected() {
        let agents = Connectivity::of(&BTreeMap::new(), &BTreeSet::new());
        let expected = "\n\n🔌 No cluster connected\n🔀 Global services: [ min:-1 / avg:0.0 / max:0 ]\n";
        assert_eq!(text(&agents, None, &BTreeMap::new()), expected);
    }

    /// The walk's step 4.
    #[test]
    fn connected_clusters_are_counted_line_for_line() {
        let agents = agents(&[good(), good(), good()], &["west"]);
        let expected = "\n✅ All 3 nodes are connected to all clusters [min:1 / avg:1.0 / max:1]\n\n\
            🔌 Cluster Connections:\n  - west: 3/3 configured, 3/3 connected\n\
            🔀 Global services: [ min:1 / avg:1.0 / max:1 ]\n";
        assert_eq!(text(&agents, None, &BTreeMap::new()), expected);
        let with_mirror = text(&agents, Some(&mirrors(&good())), &BTreeMap::new());
        assert!(
            with_mirror
                .contains("\n✅ All 1 KVStoreMesh replicas are connected to all clusters [min:1 / avg:1.0 / max:1]\n"),
            "{with_mirror}"
        );
        let line = "  - west: 3/3 configured, 3/3 connected - KVStoreMesh: 1/1 configured, 1/1 connected\n";
        assert!(with_mirror.contains(line), "{with_mirror}");
    }

    #[test]
    fn errors_have_the_hints_of_ciliums_tool() {
        let away = json!({"name": "west", "status": "Waiting for initial connection to be established"});
        let waiting = json!({"name": "west", "connected": true, "config": {"required": true}});
        let agents = agents(&[good(), away.clone(), waiting], &["west"]);
        let mirrors = mirrors(&away);
        let broken = Broken {
            hop: Hop::Remote,
            cause: "dial tcp: no route".to_owned(),
            pod: Some("clustermesh-apiserver-0".to_owned()),
            remedy: "Open the way.".to_owned(),
        };
        let hops: &[Hop] = &[Hop::Agent, Hop::OwnStore, Hop::Kvstoremesh, Hop::Remote];
        let paths = [("west".to_owned(), Path { hops, broken })].into();
        let expected = "\n⚠️  2/3 nodes are not connected to all clusters [min:0 / avg:0.3 / max:1]
⚠️  1/1 KVStoreMesh replicas are not connected to all clusters [min:0 / avg:0.0 / max:0]

🔌 Cluster Connections:
  - west: 3/3 configured, 1/3 connected - KVStoreMesh: 1/1 configured, 0/1 connected
🔀 Global services: [ min:0 / avg:0.3 / max:1 ]

❌ 3 Errors:
  ❌ cilium-1 is not connected to cluster west: Waiting for initial connection to be established
     💡 Run 'kubectl exec -it -n kube-system cilium-1 -c cilium-agent -- cilium-dbg troubleshoot clustermesh west' to investigate the cause
  ❌ cilium-2 is not connected to cluster west: remote cluster configuration required but not found
     💡 This is likely caused by KVStoreMesh not being connected to the given cluster
  ❌ clustermesh-apiserver-0 is not connected to cluster west: Waiting for initial connection to be established
     💡 Run 'kubectl exec -it -n kube-system clustermesh-apiserver-0 -c kvstoremesh -- /usr/bin/clustermesh-apiserver kvstoremesh-dbg troubleshoot west' to investigate the cause

🔎 agents ✅ → own store ✅ → KVStoreMesh ✅ → west ❌
   ❌ dial tcp: no route (seen by pod clustermesh-apiserver-0)
   💡 Open the way.
";
        assert_eq!(text(&agents, Some(&mirrors), &paths), expected);
    }

    #[test]
    fn without_a_mirror_a_missing_configuration_means_another_name() {
        let waiting = json!({"name": "west", "connected": true, "config": {"required": true}});
        let text = text(&agents(&[waiting], &["west"]), None, &BTreeMap::new());
        let hint = "     💡 Double check if the cluster name matches the one configured in the remote cluster\n";
        assert!(text.contains(hint), "{text}");
    }

    #[test]
    fn thousands_of_broken_pods_do_not_flood_the_terminal() {
        let away = json!({"name": "west", "status": "no route"});
        let text = text(&agents(&vec![away; 1000], &["west"]), None, &BTreeMap::new());
        assert!(text.contains("❌ 1000 Errors:\n"), "{text}");
        assert!(
            text.ends_with("  ❌ 980 more pods have errors: '--output json' lists them all\n"),
            "{text}"
        );
    }
}
