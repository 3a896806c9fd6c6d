//! What to do about the cause of a broken connection.

/// The connection whose cause is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// How the commands of this tool are typed.
    pub tool: &'a str,
    pub namespace: &'a str,
    /// The cluster that connects.
    pub local: &'a str,
    /// The cluster whose store is connected to; `None` for the own store.
    pub peer: Option<&'a str>,
}

/// Words of a cause, in lower case, with what they mean.
struct Rule {
    words: &'static [&'static str],
    meaning: Meaning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Name,
    Refused,
    Unreachable,
    UnknownCa,
    Refusal,
    WrongName,
    Expired,
    Permission,
    File,
    ClusterName,
    Id,
}

/// The first rule that applies counts: the words of a refused certificate are found in longer texts, too.
const RULES: &[Rule] = &[
    rule(
        &[
            "no such host",
            "cannot resolve",
            "name resolution",
            "server misbehaving",
        ],
        Meaning::Name,
    ),
    rule(&["connection refused"], Meaning::Refused),
    rule(
        &[
            "i/o timeout",
            "no route to host",
            "network is unreachable",
            "deadline",
            "timed out",
            "no answer in",
        ],
        Meaning::Unreachable,
    ),
    rule(
        &[
            "has expired",
            "expired certificate",
            "certificate expired",
            "notvalidyet",
        ],
        Meaning::Expired,
    ),
    rule(
        &[
            "not signed by any acceptable ca",
            "remote error: tls",
            "received fatal alert",
            "authentication failed",
        ],
        Meaning::Refusal,
    ),
    rule(
        &["unknown authority", "unknownissuer", "badsignature"],
        Meaning::UnknownCa,
    ),
    rule(
        &[
            "certificate is valid for",
            "not valid for",
            "any ip sans",
            "notvalidforname",
        ],
        Meaning::WrongName,
    ),
    rule(
        &["permission denied", "user name not found", "user name is empty"],
        Meaning::Permission,
    ),
    rule(
        &["no such file", "configuration not found", "cannot read"],
        Meaning::File,
    ),
    rule(
        &[
            "is missing; is the cluster called",
            "configuration required but not found",
        ],
        Meaning::ClusterName,
    ),
    rule(&["cluster id"], Meaning::Id),
];

const fn rule(words: &'static [&'static str], meaning: Meaning) -> Rule {
    Rule { words, meaning }
}

fn meaning(cause: &str) -> Option<Meaning> {
    let cause = cause.to_lowercase();
    let applies = |rule: &&Rule| rule.words.iter().any(|words| cause.contains(words));
    Some(RULES.iter().find(applies)?.meaning)
}

// === impl Connection ===

impl Connection<'_> {
    /// What to do about this cause.
    pub fn remedy(&self, cause: &str) -> String {
        let Self {
            tool,
            namespace,
            local,
            peer,
        } = *self;
        let whose = peer.map_or_else(|| "this cluster".to_owned(), |peer| format!("cluster {peer}"));
        let service = format!("Service {namespace}/clustermesh-apiserver of {whose}");
        let again = match peer {
            Some(peer) => format!("run '{tool} connect' again to write the present addresses of {peer}"),
            None => format!("run '{tool} enable' to write what is missing"),
        };
        match meaning(cause) {
            Some(Meaning::Name) => format!("Make the name resolvable where the pod runs, or {again}."),
            Some(Meaning::Refused) => format!(
                "Nothing listens at the address: look at the pods behind {service}; if its address or port changed, {again}."
            ),
            Some(Meaning::Unreachable) => format!(
                "Packets do not arrive: open the way (routes, VPN, firewalls, security groups) from the nodes of {local} to \
                 {service}; if its address changed, {again}."
            ),
            Some(Meaning::Expired) => {
                format!("Issue the certificate again: '{tool} certs' shows each certificate with the days left.")
            }
            Some(Meaning::Refusal) => format!(
                "The store of {whose} does not trust the client certificate of {local}: '{tool} preflight' shows the CAs, and \
                 '{tool} connect --share-ca' makes both clusters trust both."
            ),
            Some(Meaning::UnknownCa) => format!(
                "{local} does not trust the CA that signed the server certificate of {whose}: '{tool} preflight' shows the CAs, \
                 and '{tool} connect --share-ca' makes both clusters trust both."
            ),
            Some(Meaning::WrongName) => format!(
                "Issue Secret {namespace}/clustermesh-apiserver-server-cert of {whose} with the name or address that is missing \
                 (chart: clustermesh.apiserver.tls.server.extraDnsNames, extraIpAddresses)."
            ),
            Some(Meaning::Permission) => format!(
                "The store of {whose} has no user for {local}: ConfigMap {namespace}/clustermesh-remote-users there needs the user \
                 remote-{local} with the role remote; {again}."
            ),
            Some(Meaning::File) => format!("A key of a Secret that the pod mounts is missing: {again}."),
            Some(Meaning::ClusterName) => format!(
                "Compare the name under which {whose} is configured here with cluster-name in its ConfigMap \
                 {namespace}/cilium-config, and see whether its publisher is ready."
            ),
            Some(Meaning::Id) => {
                "Give each cluster of the mesh its own cluster.id; changing one means restarting all its workloads."
                    .to_owned()
            }
            None => format!("Run '{tool} preflight' to check everything between the clusters."),
        }
    }
}

/// The first failed step in the output of `troubleshoot`, ours or Cilium's.
pub fn first_failure(output: &str) -> Option<String> {
    let line = output.lines().find_map(|line| line.split_once('❌'))?;
    Some(line.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_recognised_in_the_words_of_go_and_rust() {
        for (cause, expected) in [
            (
                "dial tcp: lookup hk.mesh.cilium.io on 10.96.0.10:53: no such host",
                Meaning::Name,
            ),
            (
                "dial tcp 10.14.1.128:32379: connect: connection refused",
                Meaning::Refused,
            ),
            ("cannot connect to 10.0.0.1:2379: Connection refused", Meaning::Refused),
            ("dial tcp 10.14.1.128:32379: i/o timeout", Meaning::Unreachable),
            (
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                Meaning::UnknownCa,
            ),
            ("invalid peer certificate: UnknownIssuer", Meaning::UnknownCa),
            (
                "client certificate is not signed by any acceptable CA",
                Meaning::Refusal,
            ),
            ("remote error: tls: unknown certificate authority", Meaning::Refusal),
            ("remote error: tls: expired certificate", Meaning::Expired),
            ("x509: certificate is valid for a, b, not x.y", Meaning::WrongName),
            (
                "x509: certificate has expired or is not yet valid: current time",
                Meaning::Expired,
            ),
            ("etcdserver: permission denied", Meaning::Permission),
            (
                "open /var/lib/cilium/clustermesh/local-etcd-client.key: no such file or directory",
                Meaning::File,
            ),
            (
                "cilium/cluster-config/hk is missing; is the cluster called hk?",
                Meaning::ClusterName,
            ),
        ] {
            assert_eq!(meaning(cause), Some(expected), "{cause}");
        }
        assert_eq!(meaning("something else"), None);
    }

    #[test]
    fn a_remedy_names_the_clusters_and_the_command() {
        let connection = Connection {
            tool: "isthmus",
            namespace: "kube-system",
            local: "tokyo",
            peer: Some("hk"),
        };
        let text = connection.remedy("etcdserver: permission denied");
        assert!(text.contains("cluster hk") && text.contains("remote-tokyo"), "{text}");
        let text = connection.remedy("tls: x509: certificate signed by unknown authority");
        assert!(text.contains("isthmus connect --share-ca"), "{text}");
        let own = Connection {
            peer: None,
            ..connection
        };
        let text = own.remedy("connection refused");
        assert!(
            text.contains("Service kube-system/clustermesh-apiserver of this cluster"),
            "{text}"
        );
    }

    #[test]
    fn the_first_failed_step_of_troubleshoot_is_found() {
        let output = "Found 1 cluster configurations\n\nCluster \"hk\":\n🔌 Endpoints:\n   - https://hk:2379\n     \
            ✅ Hostname resolved to: 10.0.0.9\n     ❌ Cannot establish TCP connection to hk:2379: dial tcp: refused\n❌ later\n";
        let found = first_failure(output);
        assert_eq!(
            found.as_deref(),
            Some("Cannot establish TCP connection to hk:2379: dial tcp: refused")
        );
        assert_eq!(first_failure("✅ all right"), None);
    }
}
