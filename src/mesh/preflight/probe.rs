//! Connections from the nodes of one cluster to another cluster, made by an agent's pod: it uses the network of its node.

use super::Check;
use super::judge::Peers;
use crate::mesh::context::Context;
use crate::mesh::exec::{Command, Exec};
use crate::mesh::facts::Facts;
use crate::mesh::profile;
use crate::mesh::status::{self, Access};
use std::collections::BTreeMap;

/// The port of the agents' health checks, which every node listens on.
const HEALTH_PORT: i32 = 4240;
/// The most nodes of the other cluster that are tried.
const NODES_MAX: usize = 20;
/// Tries each `address/port` for three seconds, all at the same time, and prints the exit code, the address and the error.
/// The agents' image has bash.
const SCRIPT: &str = "try() { e=$(timeout 3 bash -c 'exec 3<>/dev/tcp/$0' \"$1\" 2>&1); c=$?; echo \"$c $1 ${e##*: }\"; }; \
    for a in \"$@\"; do try \"$a\" & done; wait";
/// The exit code of `timeout`.
const TIMED_OUT: &str = "124";

/// Tries the Service and the nodes of `other` from one agent of `local`.
pub async fn check(context: &Context, exec: &Exec, local: &Facts, other: &Facts) -> Vec<Check> {
    let clusters = [local.name(), other.name()];
    let of = |topic, what: String| Check::ok(&clusters, topic, what);
    let services = status::access(other, "")
        .map(|access| targets(&access))
        .unwrap_or_default();
    let nodes: Vec<_> = other
        .ready_nodes()
        .flat_map(profile::internal)
        .take(NODES_MAX)
        .collect();
    let nodes: Vec<_> = nodes.iter().map(|ip| format!("{ip}/{HEALTH_PORT}")).collect();
    let pod = match status::an_agent(context, exec).await {
        Ok(pod) => pod,
        Err(why) => {
            return vec![of("reachability", format!("cannot be probed: {why}")).warning("Start Cilium's agents.")];
        }
    };
    let mut argv = vec!["bash", "-c", SCRIPT, "probe"];
    argv.extend(services.iter().chain(&nodes).map(String::as_str));
    let done = exec.run(&Command::new(&pod, "cilium-agent", &argv)).await;
    let seen = match done {
        Ok(done) if done.failure.is_none() => results(&done.stdout),
        Ok(done) => {
            let why = format!(
                "cannot be probed from pod {pod}: {}",
                done.failure.unwrap_or(done.stderr)
            );
            return vec![of("reachability", why).warning("Try the addresses from a node by hand.")];
        }
        Err(error) => {
            let why = format!("cannot be probed from pod {pod}: {error}");
            return vec![of("reachability", why).warning("Try the addresses from a node by hand.")];
        }
    };
    let mut checks = vec![];
    if !services.is_empty() {
        let fine = format!(
            "the store of {} is reached from pod {pod}: {}",
            other.name(),
            services.join(", ")
        );
        checks.push(judge(
            of("reachability", fine),
            &services,
            &seen,
            &pod,
            "TCP to this port",
        ));
    }
    if !nodes.is_empty() {
        let fine = format!(
            "{} nodes of {} are reached from pod {pod} (TCP {HEALTH_PORT})",
            nodes.len(),
            other.name()
        );
        let need =
            "TCP 4240, ICMP and the port of the tunnel (UDP 8472 for VXLAN, 6081 for Geneve, 51871 for WireGuard)";
        checks.push(judge(of("reachability", fine), &nodes, &seen, &pod, need));
    }
    checks
}

fn targets(access: &Access) -> Vec<String> {
    access
        .service_ips
        .iter()
        .map(|ip| format!("{ip}/{}", access.service_port))
        .collect()
}

/// Turns `fine` into a failure if a target was not reached.
fn judge(fine: Check, targets: &[String], seen: &BTreeMap<String, String>, pod: &str, need: &str) -> Check {
    let unknown = "no result".to_owned();
    let failed = targets.iter().filter_map(|target| {
        let why = seen.get(target).unwrap_or(&unknown);
        (!why.is_empty()).then(|| format!("{target} ({why})"))
    });
    let failed: Vec<_> = failed.collect();
    if failed.is_empty() {
        return fine;
    }
    let what = format!("not reached from pod {pod}: {}", failed.join(", "));
    let remedy = format!(
        "Open the way between the nodes of the two clusters (routes, VPN, firewalls, security groups): {need}."
    );
    Check { what, ..fine }.failed(remedy)
}

/// The targets with the reason why they were not reached; the reason is empty for those that were.
fn results(stdout: &str) -> BTreeMap<String, String> {
    let result = |line: &str| {
        let (code, rest) = line.split_once(' ')?;
        let (target, error) = rest.split_once(' ').unwrap_or((rest, ""));
        let why = match (code, error.trim()) {
            ("0", _) => String::new(),
            (TIMED_OUT, _) => "no answer in 3 s".to_owned(),
            (code, "") => format!("exit code {code}"),
            (_, error) => error.to_owned(),
        };
        Some((target.to_owned(), why))
    };
    stdout.lines().filter_map(result).collect()
}

/// The ids of the clusters that `facts` is connected to; empty if the pods do not tell.
pub async fn peers(context: &Context, exec: &Exec, facts: &Facts) -> Peers {
    match facts.peers().is_empty() {
        true => Peers::new(),
        false => status::peer_ids(context, exec, facts).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_that_are_not_reached_are_named_with_the_reason() {
        let seen = results("0 10.0.0.1/2379 \n124 10.0.0.2/2379 \n1 fd00::1/4240 Connection refused\n");
        let targets = ["10.0.0.1/2379", "10.0.0.2/2379", "fd00::1/4240", "10.0.0.3/2379"].map(str::to_owned);
        let check = judge(
            Check::ok(&["a", "b"], "reachability", "fine"),
            &targets,
            &seen,
            "cilium-x",
            "TCP",
        );
        assert_eq!(
            check.what,
            "not reached from pod cilium-x: 10.0.0.2/2379 (no answer in 3 s), fd00::1/4240 (Connection refused), \
             10.0.0.3/2379 (no result)"
        );
        let check = judge(
            Check::ok(&["a", "b"], "reachability", "fine"),
            &targets[..1],
            &seen,
            "cilium-x",
            "TCP",
        );
        assert_eq!((check.what.as_str(), check.remedy), ("fine", None));
    }

    /// Runs the script with the shell of this machine.
    #[test]
    fn the_script_tells_open_ports_from_closed_ones() {
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = |listener: &std::net::TcpListener| format!("127.0.0.1/{}", listener.local_addr().unwrap().port());
        let (good, bad) = (target(&open), target(&closed));
        drop(closed);
        let ran = std::process::Command::new("bash")
            .args(["-c", SCRIPT, "probe", &good, &bad])
            .output()
            .unwrap();
        let seen = results(&String::from_utf8(ran.stdout).unwrap());
        assert_eq!(seen[&good], "");
        assert_eq!(seen[&bad], "Connection refused");
    }
}
