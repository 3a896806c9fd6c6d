//! The rights that commands need in one cluster.

use super::Check;
use crate::k8s::client::describe;
use crate::mesh::context::Context;
use crate::mesh::facts::Facts;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use std::fmt::{Display, Formatter};
use std::time::Duration;
use tokio::time::timeout;

/// A right: a verb on a resource of an API group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    /// Whether the right is for the whole cluster, and not only for Cilium's namespace.
    is_wide: bool,
}

const fn right(verb: &'static str, resource: &'static str) -> Right {
    Right {
        verb,
        group: "",
        resource,
        subresource: "",
        is_wide: false,
    }
}

const fn exec(verb: &'static str) -> Right {
    let subresource = "exec";
    Right {
        subresource,
        ..right(verb, "pods")
    }
}

const fn apps(verb: &'static str, resource: &'static str) -> Right {
    let group = "apps";
    Right {
        group,
        ..right(verb, resource)
    }
}

const fn wide(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right {
        is_wide: true,
        group,
        ..right(verb, resource)
    }
}

/// What `connect` and `disconnect` do.
const CONNECT: [Right; 10] = [
    right("get", "configmaps"),
    right("patch", "configmaps"),
    right("create", "configmaps"),
    right("get", "secrets"),
    right("patch", "secrets"),
    right("create", "secrets"),
    right("get", "services"),
    apps("get", "deployments"),
    apps("get", "daemonsets"),
    wide("list", "", "nodes"),
];
/// What `status` and probes do beside reading the same objects. `connect` asks pods for the ids of clusters that it has not
/// connected itself, and does without.
const ASK: [Right; 3] = [right("list", "pods"), exec("get"), exec("create")];
/// Without it, less is compared.
const NETWORKS: Right = wide("list", "cilium.io", "ciliumnodes");

/// Asks the API whether the user of the context has the rights.
pub async fn check(context: &Context, facts: &Facts, limit: Duration) -> Vec<Check> {
    let of = |what: String| Check::ok(&[facts.name()], "rights", what);
    let asked = timeout(limit, missing(context)).await;
    let why = match asked {
        Ok(Ok(missing)) => return judge(context, &missing, of),
        Ok(Err(error)) => describe(&error),
        Err(_) => format!("no answer in {} s", limit.as_secs()),
    };
    let what = format!(
        "the rights of the user of context {:?} are not known: {why}",
        context.name
    );
    vec![of(what).warning("Commands say which right they lack.")]
}

/// The rights that the user does not have.
async fn missing(context: &Context) -> Result<Vec<Right>, kube::Error> {
    let api: Api<SelfSubjectAccessReview> = Api::all(context.client.clone());
    let api = &api;
    let asked = CONNECT.into_iter().chain(ASK).chain([NETWORKS]).map(async |right| {
        let review = api
            .create(&PostParams::default(), &right.review(&context.namespace))
            .await?;
        let is_allowed = review.status.is_some_and(|status| status.allowed);
        Ok::<_, kube::Error>((right, is_allowed))
    });
    let answers = futures::future::try_join_all(asked).await?;
    let missing = answers.into_iter().filter(|(_, is_allowed)| !is_allowed);
    Ok(missing.map(|(right, _)| right).collect())
}

fn judge(context: &Context, missing: &[Right], of: impl Fn(String) -> Check) -> Vec<Check> {
    let among = |rights: &[Right]| -> Vec<String> {
        let missing = rights.iter().filter(|right| missing.contains(right));
        missing.map(ToString::to_string).collect()
    };
    let may_not = |rights: &[String], what: &str| {
        of(format!(
            "the user of context {:?} may not: {}; {what}",
            context.name,
            rights.join(", ")
        ))
    };
    let grant = format!(
        "Grant the rights in namespace {} by a Role (nodes and ciliumnodes: by a ClusterRole); docs/mesh.md has one with all rights.",
        context.namespace
    );
    let mut checks = vec![];
    let (connect, ask, networks) = (among(&CONNECT), among(&ASK), among(&[NETWORKS]));
    if !connect.is_empty() {
        checks.push(may_not(&connect, "connect needs it").failed(grant.clone()));
    }
    if !ask.is_empty() {
        let what = "status needs it, and preflight for --probe and for the ids of clusters that are connected already; \
            connect works without";
        checks.push(may_not(&ask, what).warning(grant.clone()));
    }
    if !networks.is_empty() {
        let what = "networks of pods are compared only as far as ConfigMap cilium-config names them";
        checks.push(may_not(&networks, what).warning(grant));
    }
    if checks.is_empty() {
        checks.push(of(
            "the user of the context has the rights that connect and status need".to_owned(),
        ));
    }
    checks
}

// === impl Right ===

impl Right {
    fn review(&self, namespace: &str) -> SelfSubjectAccessReview {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let attributes = ResourceAttributes {
            verb: text(self.verb),
            group: text(self.group),
            resource: text(self.resource),
            subresource: text(self.subresource),
            namespace: text(namespace).filter(|_| !self.is_wide),
            ..ResourceAttributes::default()
        };
        SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        }
    }
}

impl Display for Right {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(out, ".{}", self.group)?;
        }
        if !self.subresource.is_empty() {
            write!(out, "/{}", self.subresource)?;
        }
        Ok(())
    }
}
