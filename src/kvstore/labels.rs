//! Labels that several metrics have in common.

/// Whether a request succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    Success,
    Failure,
}

impl RequestOutcome {
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Success,
            Err(_) => Self::Failure,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "fail",
        }
    }
}

/// The scope and version of a key, such as `nodes/v1`, or the first 12 characters of a key without them. As in Cilium
/// (pkg/kvstore/metrics.go, `getScopeFromKey`).
pub fn scope_of(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    let parts: Vec<&str> = text.splitn(5, '/').collect();
    match &parts[..] {
        [_, _, kind, version, ..] => format!("{kind}/{version}"),
        _ => text.chars().take(12).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_ciliums() {
        for (key, scope) in [
            ("cilium/state/nodes/v1/c3/n1", "nodes/v1"),
            ("cilium/state/ip/v1/default/10.0.0.1", "ip/v1"),
            ("cilium/synced/c3/cilium/state/ip/v1", "c3/cilium"),
            ("cilium/cluster-config/c3", "cilium/clust"),
            ("cilium/.heartbeat", "cilium/.hear"),
        ] {
            assert_eq!(scope_of(key.as_bytes()), scope);
        }
    }
}
