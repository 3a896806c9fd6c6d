//! The rights that commands need in one cluster.

use super::Check;
use crate::k8s::client::describe;
use crate::mesh::context::Context;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use std::fmt::{Display, Formatter};

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

/// What `connect` and `status` do.
const RIGHTS: [Right; 12] = [
    right("get", "configmaps"),
    right("patch", "configmaps"),
    right("create", "configmaps"),
    right("get", "secrets"),
    right("patch", "secrets"),
    right("create", "secrets"),
    right("get", "services"),
    apps("get", "deployments"),
    Right {
        is_wide: true,
        ..right("list", "nodes")
    },
    right("list", "pods"),
    exec("get"),
    exec("create"),
];

/// Asks the API whether the user of the context has the rights.
pub async fn check(context: &Context, cluster: &str) -> Check {
    let api: Api<SelfSubjectAccessReview> = Api::all(context.client.clone());
    let asked = RIGHTS.iter().map(|right| {
        let review = right.review(&context.namespace);
        let api = &api;
        async move { api.create(&PostParams::default(), &review).await }
    });
    let of = |what: String| Check::ok(&[cluster], "rights", what);
    let answers = match futures::future::try_join_all(asked).await {
        Ok(answers) => answers,
        Err(error) => {
            let what = format!(
                "the rights of the user of context {:?} are not known: {}",
                context.name,
                describe(&error)
            );
            return of(what).warning("Commands say which right they lack.");
        }
    };
    let is_allowed = |review: &SelfSubjectAccessReview| review.status.as_ref().is_some_and(|status| status.allowed);
    let missing = RIGHTS.iter().zip(&answers).filter(|(_, review)| !is_allowed(review));
    let missing: Vec<_> = missing.map(|(right, _)| right.to_string()).collect();
    match missing.is_empty() {
        true => of("the user of the context has the rights that connect and status need".to_owned()),
        false => of(format!("the user of context {:?} may not: {}", context.name, missing.join(", "))).failed(format!(
            "Grant the rights in namespace {} by a Role (nodes: by a ClusterRole); docs/mesh.md has one with all rights.",
            context.namespace
        )),
    }
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
