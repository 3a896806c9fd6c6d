use super::*;

fn domains() -> Domains {
    Domains {
        cluster: "mycluster.local".to_owned(),
        clusterset: "myclusterset.local".to_owned(),
    }
}

/// A Corefile around the lines of its `kubernetes` plugin.
fn corefile(kubernetes: &str, cached: &str) -> String {
    format!(
        "
.:53 {{
    errors
    health {{
       lameduck 5s
    }}
    ready
{kubernetes}    prometheus :9153
    forward . 1.1.1.1 {{
       max_concurrent 1000
    }}
    cache 30 {{
       disable success {cached}
       disable denial {cached}
    }}
    loop
    reload
    loadbalance
    log
}}
"
    )
}

fn plugin(head: &str) -> String {
    format!(
        "    kubernetes {head} {{\n       pods insecure\n       fallthrough in-addr.arpa ip6.arpa\n       ttl 30\n    }}\n"
    )
}

const ARPA: &str = "in-addr.arpa ip6.arpa";

fn planned(text: &str) -> Result<Plan, Error> {
    plan(&domains(), text)
}

#[test]
fn a_corefile_answers_for_the_clusterset_too() {
    let before = corefile(&plugin(&format!("mycluster.local {ARPA}")), "mycluster.local");
    let block = plugin(&format!("mycluster.local myclusterset.local {ARPA}"));
    let block = block.replacen("{\n", "{\n       multicluster myclusterset.local\n", 1);
    let after = corefile(&block, "mycluster.local myclusterset.local");
    assert_eq!(planned(&before), Ok(Plan::Write(after.clone())));
    assert_eq!(planned(&after), Ok(Plan::Keep), "a second time");
}

#[test]
fn without_a_plugin_block_for_the_domain_nothing_can_be_added() {
    let refused = Err(Error::NotConfigured("mycluster.local".to_owned()));
    let other = corefile(&plugin(&format!("cluster.local {ARPA}")), "cluster.local");
    assert_eq!(planned(&other), refused);
    assert_eq!(planned(&corefile("", "cluster.local")), refused);
    let commented = "# kubernetes mycluster.local {\n#}\n";
    assert_eq!(planned(commented), refused);
    assert_eq!(planned("kubernetes mycluster.local\n"), refused, "no block");
    assert_eq!(planned("kubernetes myclusterXlocal {\n}\n"), refused);
}

#[test]
fn a_corefile_that_names_the_clusterset_is_left_alone() {
    let block = plugin(&format!("mycluster.local {ARPA}"));
    let option = block.replacen("{\n", "{\n       multicluster helloworld\n", 1);
    assert_eq!(planned(&corefile(&option, "cluster.local")), Ok(Plan::Keep));
    let zone = plugin(&format!("mycluster.local myclusterset.local {ARPA}"));
    assert_eq!(planned(&corefile(&zone, "cluster.local")), Ok(Plan::Keep));
    for more in ["svc.myclusterset.local:53 {\n}\n", "dns://MYCLUSTERSET.local. {\n}\n"] {
        assert_eq!(planned(&(corefile(&block, "x") + more)), Ok(Plan::Keep), "{more}");
    }
}

#[test]
fn only_the_domain_itself_is_changed() {
    let before = "\
mycluster.local:53, dns://mycluster.local. {
\tkubernetes mycluster.local { # for multicluster, see mycluster.local and myclusterset.local
\t}
\trewrite name exact a.mycluster.local b.mycluster.localdomain
\ttemplate IN A mycluster.local.example {
\t\tanswer \"{{ .Name }} mycluster.local \\\" mycluster.local\"
\t}
\tkubernetes other.local {
\t}
}
";
    let after = "\
mycluster.local:53, myclusterset.local:53, dns://mycluster.local. dns://myclusterset.local. {
\tkubernetes mycluster.local myclusterset.local { # for multicluster, see mycluster.local and myclusterset.local
\t   multicluster myclusterset.local
\t}
\trewrite name exact a.mycluster.local b.mycluster.localdomain
\ttemplate IN A mycluster.local.example {
\t\tanswer \"{{ .Name }} mycluster.local \\\" mycluster.local\"
\t}
\tkubernetes other.local {
\t}
}
";
    assert_eq!(planned(before), Ok(Plan::Write(after.to_owned())));
}

#[test]
fn a_domain_is_no_pattern() {
    let odd = Domains {
        cluster: "my(cluster.local".to_owned(),
        clusterset: "$1.local".to_owned(),
    };
    let written = "kubernetes my(cluster.local $1.local {\n   multicluster $1.local\n}";
    let planned = plan(&odd, "kubernetes my(cluster.local {\n}");
    assert_eq!(planned, Ok(Plan::Write(written.to_owned())));
    for bad in ["", "a b", "{", "x#"] {
        let domains = Domains {
            cluster: bad.to_owned(),
            ..domains()
        };
        assert_eq!(plan(&domains, ""), Err(Error::NoDomain(bad.to_owned())));
    }
}

#[test]
fn the_version_is_in_the_images_tag() {
    let old = Version::TooOld("1.12.0".to_owned());
    assert_eq!(version("registry.k8s.io/coredns/coredns:v1.12.0"), old);
    assert_eq!(version("localhost:5000/coredns:v1.12.0"), old);
    let digest = "sha256:af8c8d35a5d184b386c4a6d1a012c8b218d40d1376474c7d071bb6c07201f47d";
    for good in [
        "registry.k8s.io/coredns/coredns:v1.12.2",
        &format!("registry.k8s.io/coredns/coredns:v1.12.2@{digest}"),
        "registry.k8s.io/coredns/coredns:v1.13.0",
        "public.ecr.aws/eks-distro/coredns/coredns:v1.12.2-eks-1-33-latest",
        "mycompany.org/coredns:v1.12.2+1",
        "coredns:10.0.0",
    ] {
        assert_eq!(version(good), Version::Supported, "{good}");
    }
    for unknown in [
        "mycompany.org/coredns:mycustomversion",
        "coredns",
        "",
        "registry:5000/coredns",
        &format!("coredns@{digest}"),
        "coredns:1.12",
        "coredns:1.012.3",
        "coredns:1.12.2.1",
    ] {
        assert!(matches!(version(unknown), Version::Unknown(_)), "{unknown}");
    }
}
