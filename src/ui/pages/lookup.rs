//! The look-up: a question, and what is known here.

use super::parts::{facts, text};
use crate::ui::data::NoAnswer;
use crate::ui::markup::Main;
use crate::ui::view::{Finding, Findings};
use crate::ui::words::{bytes, count, things};
use maud::{Markup, html};
use serde_json::Value;

/// The page without a question, or with the answer to `question`.
pub(in crate::ui) fn main(own: &str, question: &str, answer: Option<&Result<Findings, NoAnswer>>) -> Main {
    let mut main = Main::default();
    main.raw("<h1>Look up</h1>").fixed(html! {
        form.search role="search" method="get" action="/look-up" {
            label for="q" { "An IP address, a pod (namespace/name), a namespace (with a / at its end), an identity, a key or a name" }
            input #q name="q" type="search" value=(question) autofocus autocomplete="off" spellcheck="false" aria-keyshortcuts="/"
                placeholder="such as 10.2.0.21, shop/catalog or cilium/cache/nodes/";
            button { "Look up" }
        }
    });
    match answer {
        None => {}
        Some(Err(error)) => {
            main.fixed(html! { p.verdict.bad role="alert" { span.sign aria-hidden="true" { "✕" } " " (error) } });
        }
        Some(Ok(findings)) => {
            main.fixed(found(own, findings));
        }
    }
    main
}

fn found(own: &str, findings: &Findings) -> Markup {
    html! {
        p role="status" {
            "Looked for " (findings.looked_for) ": " (things(findings.findings.len(), "key", "keys")) " found."
            @if let Some(why) = &findings.incomplete { " Incomplete: " (why) "." }
        }
        @for finding in &findings.findings { (one(own, finding)) }
    }
}

fn one(own: &str, finding: &Finding) -> Markup {
    let value = match &finding.value {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    let cluster = finding.cluster.as_deref().unwrap_or(own);
    html! {
        article.finding {
            h2.path { (finding.key) }
            (facts(&[
                ("Kind", text(&finding.kind)),
                ("From", html! { (cluster) @if finding.is_mirrored { " (mirrored)" } @else if cluster == own { " (this cluster)" } }),
                ("Since revision", text(count(finding.since_revision.unsigned_abs()))),
                ("Last change", html! { "revision " (count(finding.changed_revision.unsigned_abs())) ", version " (finding.version) }),
                ("Value", html! {
                    (bytes(finding.bytes as u64)) ", " (finding.encoding) @if finding.is_cut { ", of which the beginning is shown" }
                }),
            ]))
            pre tabindex="0" { (value) }
        }
    }
}
