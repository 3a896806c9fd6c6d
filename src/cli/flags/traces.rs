//! Flags of traces.

use crate::app::otlp::OtlpConfig;
use crate::cli::variables::Variables;
use crate::util::lifecycle::Lifecycle;
use anyhow::{Context, ensure};
use clap::Args;
use http::Uri;

/// The environment variables of `etcd` and `serve`.
pub const VARIABLES: &[Variables] = &[
    Variables {
        flag: "otlp_endpoint",
        etcd: "ETCD_OTLP_ENDPOINT",
        serve: "CILIUM_OTLP_ENDPOINT",
    },
    Variables {
        flag: "otlp_sample",
        etcd: "ETCD_OTLP_SAMPLE",
        serve: "CILIUM_OTLP_SAMPLE",
    },
];

/// Traces of writes, from their cause to the watchers that receive them.
#[derive(Args, Debug)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// URL of an OpenTelemetry collector (OTLP over gRPC) that gets traces of writes, for example http://localhost:4317. With
    /// https, the system's CAs are trusted. Empty: no traces.
    #[arg(long, env = "CILIUM_OTLP_ENDPOINT", default_value = "", value_name = "URL")]
    otlp_endpoint: String,
    /// Share of all writes that are traced, from 0 to 1. Set the same share in all processes of the mesh: they choose the same
    /// writes. Raise it where little is written, up to 1 for all writes.
    #[arg(long, env = "CILIUM_OTLP_SAMPLE", default_value_t = 0.01, value_parser = share, value_name = "SHARE")]
    otlp_sample: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not a number from 0 to 1"))
}

/// Whether traces can be sent to `endpoint` at all. Otherwise only the first export would tell of the mistake, in the log.
fn is_url(endpoint: &str) -> bool {
    let Ok(url) = endpoint.parse::<Uri>() else {
        return false;
    };
    matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
}

impl TraceArgs {
    /// Begins tracing, if an endpoint is set. `command` and `instance` are the names of this process in traces.
    pub fn start(&self, command: &'static str, instance: &str, life: &Lifecycle) -> anyhow::Result<()> {
        if self.otlp_endpoint.is_empty() {
            return Ok(());
        }
        ensure!(
            is_url(&self.otlp_endpoint),
            "--otlp-endpoint: {:?} is not a URL with http or https, such as http://localhost:4317",
            self.otlp_endpoint
        );
        let config = OtlpConfig {
            endpoint: self.otlp_endpoint.clone(),
            share: self.otlp_sample,
            service: format!("isthmus-{command}"),
            instance: instance.to_owned(),
        };
        config.start(life).context("--otlp-endpoint")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url() {
        for url in [
            "http://localhost:4317",
            "https://[::1]:4317/",
            "http://collector.observability.svc",
        ] {
            assert!(is_url(url), "{url}");
        }
        for wrong in [
            "collector",
            "127.0.0.1:4317",
            "localhost:4317",
            "ftp://x:1",
            "http://",
            "a b",
            "/x",
        ] {
            assert!(!is_url(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_from_zero_to_one() {
        assert_eq!((share("0"), share("0.25"), share("1")), (Ok(0.0), Ok(0.25), Ok(1.0)));
        for wrong in ["-0.1", "1.1", "NaN", "all", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
