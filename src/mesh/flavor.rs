//! The flavor of a cluster, and the Service that suits it. The order of the tests and the annotations are those of Cilium's
//! CLI.

use super::facts::Facts;

/// Who made the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    Minikube,
    Microk8s,
    RancherDesktop,
    Kind,
    Gke,
    Eks,
    Aks,
    K3s,
    OpenShift,
    Unknown,
}

/// The Service of the store that suits a flavor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Annotations of the Service, which is a LoadBalancer.
    pub annotations: &'static [(&'static str, &'static str)],
    /// The line that says what was found.
    pub line: &'static str,
}

/// There is no Service that suits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot auto-detect service type, please specify using '--service-type' option")]
pub struct Undetected;

const GKE: Exposure = Exposure {
    annotations: &[
        ("networking.gke.io/load-balancer-type", "Internal"),
        ("networking.gke.io/internal-load-balancer-allow-global-access", "true"),
    ],
    line: "🔮 Auto-exposing service within GCP VPC (networking.gke.io/load-balancer-type=Internal)",
};
const AKS: Exposure = Exposure {
    annotations: &[("service.beta.kubernetes.io/azure-load-balancer-internal", "true")],
    line: "🔮 Auto-exposing service within Azure VPC (service.beta.kubernetes.io/azure-load-balancer-internal)",
};
const EKS: Exposure = Exposure {
    annotations: &[("service.beta.kubernetes.io/aws-load-balancer-scheme", "internal")],
    line: "🔮 Auto-exposing service within AWS VPC (service.beta.kubernetes.io/aws-load-balancer-scheme: internal)",
};

/// Finds the flavor of a cluster. Microk8s does not end the search.
pub fn detect(facts: &Facts, has_openshift_routes: bool) -> Flavor {
    let (entry, context, server) = (&*facts.entry, &*facts.context, &*facts.server);
    let is = |name: &str| entry == name || context == name;
    let mut found = Flavor::Unknown;
    if is("minikube") {
        return Flavor::Minikube;
    }
    if entry.starts_with("microk8s-") || context == "microk8s" {
        found = Flavor::Microk8s;
    }
    let rest: [(bool, Flavor); 7] = [
        (is("rancher-desktop"), Flavor::RancherDesktop),
        (entry.starts_with("kind-") || context.starts_with("kind-"), Flavor::Kind),
        (entry.starts_with("gke_"), Flavor::Gke),
        (
            entry.ends_with(".eksctl.io") || server.ends_with("eks.amazonaws.com"),
            Flavor::Eks,
        ),
        (server.ends_with("azmk8s.io:443"), Flavor::Aks),
        (is_k3s(facts), Flavor::K3s),
        (has_openshift_routes, Flavor::OpenShift),
    ];
    let rest = rest.into_iter().find(|(is_it, _)| *is_it);
    rest.map_or(found, |(_, flavor)| flavor)
}

fn is_k3s(facts: &Facts) -> bool {
    facts.nodes.iter().any(|node| {
        let labels = node.metadata.labels.as_ref();
        let has = |name: &str, value: &str| labels.and_then(|labels| labels.get(name)).is_some_and(|v| v == value);
        has("node-role.kubernetes.io/master", "true")
            && (has("node.kubernetes.io/instance-type", "k3s") || has("beta.kubernetes.io/instance-type", "k3s"))
    })
}

// === impl Flavor ===

impl Flavor {
    /// The Service that suits.
    pub fn exposure(self) -> Result<Exposure, Undetected> {
        match self {
            Self::Gke => Ok(GKE),
            Self::Aks => Ok(AKS),
            Self::Eks => Ok(EKS),
            _ => Err(Undetected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flavor(entry: &str, context: &str, server: &str) -> Flavor {
        let facts = Facts {
            entry: entry.to_owned(),
            context: context.to_owned(),
            server: server.to_owned(),
            ..Facts::default()
        };
        detect(&facts, false)
    }

    #[test]
    fn a_flavor_is_known_by_names_and_urls() {
        assert_eq!(flavor("minikube", "x", ""), Flavor::Minikube);
        assert_eq!(flavor("microk8s-cluster", "x", ""), Flavor::Microk8s);
        assert_eq!(flavor("c", "kind-a", ""), Flavor::Kind);
        assert_eq!(flavor("gke_project_zone_a", "a", ""), Flavor::Gke);
        assert_eq!(flavor("a.eu-west-1.eksctl.io", "a", ""), Flavor::Eks);
        assert_eq!(
            flavor("arn", "a", "https://ab.gr7.eu-west-1.eks.amazonaws.com"),
            Flavor::Eks
        );
        assert_eq!(
            flavor("a", "a", "https://a-dns.hcp.westeurope.azmk8s.io:443"),
            Flavor::Aks
        );
        assert_eq!(
            flavor("kubernetes", "tokyo-cluster", "https://10.13.1.243:6443"),
            Flavor::Unknown
        );
        assert_eq!(detect(&Facts::default(), true), Flavor::OpenShift);
    }

    #[test]
    fn only_clouds_with_internal_load_balancers_have_a_service_type() {
        assert_eq!(Flavor::Aks.exposure().unwrap().annotations.len(), 1);
        let error = Flavor::Unknown.exposure().unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot auto-detect service type, please specify using '--service-type' option"
        );
        assert!(Flavor::Kind.exposure().is_err());
    }
}
