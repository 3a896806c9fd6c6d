//! The overview: is everything in sync, and what breaks next?

use super::parts::{days_left, facts, known, number, text, time};
use crate::ui::markup::Main;
use crate::ui::view::{Certificate, KeysOfKind, Overview, PartState, Readiness, Remote, State, StoreFigures, Totals};
use crate::ui::words::{bytes, count, duration, things};
use maud::{Markup, html};

/// Names in the verdict. The topology has the others.
const NAMED: usize = 5;

pub(super) fn main(overview: &Overview, remotes: &[Remote]) -> Main {
    let mut main = Main::default();
    main.raw("<h1>Overview</h1>")
        .live("verdict", verdict(overview, remotes))
        .raw("<div class=\"cards\">")
        .live("cluster", cluster(overview))
        .live("readiness", readiness(&overview.readiness))
        .live("mesh", mesh(&overview.remotes))
        .live("keys", keys(&overview.keys))
        .live("store", store(&overview.store))
        .live("certificate", certificate(overview.next_certificate.as_ref()))
        .live("process", process(overview))
        .raw("</div>");
    main
}

/// The answer to the first question, in one sentence.
fn verdict(overview: &Overview, remotes: &[Remote]) -> Markup {
    let Totals {
        all, away, under_way, ..
    } = overview.remotes;
    let named = |wanted: fn(&Remote) -> bool| {
        let names: Vec<_> = remotes.iter().filter(|r| wanted(r)).map(|r| &*r.name).collect();
        match names.len() {
            n if n > NAMED => format!("{} and {} more", names[..NAMED].join(", "), n - NAMED),
            _ => names.join(", "),
        }
    };
    let clusters = |n| things(n, "remote cluster is", "remote clusters are");
    let (class, sign, sentence) = if !overview.readiness.is_ready {
        let failing = overview
            .readiness
            .parts
            .iter()
            .filter(|p| matches!(p.state, PartState::Failed | PartState::Pending));
        let failing: Vec<_> = failing.map(|part| &*part.name).collect();
        ("bad", "✕", format!("Not ready: {}.", failing.join(", ")))
    } else if away > 0 {
        (
            "bad",
            "✕",
            format!("{} away: {}.", clusters(away), named(|r| r.state.is_bad())),
        )
    } else if under_way > 0 {
        let busy = named(|r| !r.state.is_bad() && r.state != State::InSync);
        ("busy", "◐", format!("{} not in sync yet: {busy}.", clusters(under_way)))
    } else if overview.remotes.with_warnings > 0 {
        let warned = named(|r| !r.troubles.is_empty());
        (
            "warn",
            "▲",
            format!("{} in sync, with warnings for {warned}.", clusters(all)),
        )
    } else if all == 0 {
        ("good", "●", "Ready. No remote clusters are connected.".to_owned())
    } else {
        ("good", "●", format!("{} in sync.", clusters(all)))
    };
    html! {
        p #verdict class={ "verdict " (class) } role="status" { span.sign aria-hidden="true" { (sign) } " " (sentence) }
    }
}

fn cluster(overview: &Overview) -> Markup {
    let cluster = &overview.cluster;
    let mut rows = vec![
        ("Name", text(&cluster.name)),
        (
            "Id",
            html! { (cluster.id) ", in a mesh of up to " (cluster.max_connected_clusters) " clusters" },
        ),
        ("Version", html! { (cluster.version) " (" (cluster.subcommand) ")" }),
        ("Started", time(cluster.started, overview.at)),
        ("Uptime", text(duration(cluster.started.secs_until(overview.at)))),
    ];
    if let Some(is_leader) = cluster.is_leader {
        rows.push((
            "Leader lock",
            text(if is_leader {
                "held by this process"
            } else {
                "held by another process"
            }),
        ));
    }
    html! { section #cluster.card { h2 { "This cluster" } (facts(&rows)) } }
}

fn readiness(readiness: &Readiness) -> Markup {
    let shown = |state: PartState| match state {
        PartState::Ok => ("good", "●", "ok"),
        PartState::Pending => ("busy", "◐", "not finished"),
        PartState::Failed => ("bad", "✕", "failed"),
        PartState::Warning => ("warn", "▲", "warning"),
    };
    html! {
        section #readiness.card {
            h2 { "Readiness" }
            @let (class, sign, word) = if readiness.is_ready { ("good", "●", "ready") } else { ("bad", "✕", "not ready") };
            p { span class={ "state " (class) } { span.sign aria-hidden="true" { (sign) } " " (word) } }
            ul.plain {
                @for part in &readiness.parts {
                    @let (class, sign, word) = shown(part.state);
                    li {
                        span class={ "state " (class) } { span.sign aria-hidden="true" { (sign) } " " (word) } " " (part.name)
                        @if let Some(reason) = &part.reason { p.reason { (reason) } }
                    }
                }
            }
        }
    }
}

fn mesh(totals: &Totals) -> Markup {
    let row = |class: &str, sign: &str, n: usize, words: &str| {
        html! {
            li { span class={ "state " (class) } { span.sign aria-hidden="true" { (sign) } " " (count(n as u64)) } " " (words) }
        }
    };
    html! {
        section #mesh.card {
            h2 { "Remote clusters" }
            p.figure { (count(totals.all as u64)) }
            ul.plain {
                (row("good", "●", totals.in_sync, "in sync"))
                @if totals.with_warnings > 0 { (row("warn", "▲", totals.with_warnings, "of them with a warning")) }
                @if totals.under_way > 0 { (row("busy", "◐", totals.under_way, "under way")) }
                @if totals.away > 0 { (row("bad", "✕", totals.away, "away")) }
            }
            p { a href="/topology" { "Topology" } }
        }
    }
}

fn keys(keys: &[KeysOfKind]) -> Markup {
    let has_own = keys.iter().any(|kind| kind.own.is_some());
    html! {
        section #keys.card {
            h2 { "Keys" }
            table {
                thead { tr { th { "Kind" } @if has_own { th.number { "Own" } } th.number { "Mirrored" } } }
                tbody {
                    @for kind in keys {
                        tr {
                            td { (kind.kind) }
                            @if has_own { td.number { @if let Some(own) = kind.own { (count(own as u64)) } @else { "–" } } }
                            td.number { (count(kind.mirrored as u64)) }
                        }
                    }
                }
            }
        }
    }
}

fn store(store: &StoreFigures) -> Markup {
    let mut rows = vec![
        ("Place", text(&store.place)),
        ("Cluster id", known(store.cluster_id.as_ref())),
    ];
    rows.extend(
        store
            .revision
            .map(|revision| ("Revision", text(count(revision.unsigned_abs())))),
    );
    rows.extend(
        store
            .compacted
            .filter(|at| *at > 0)
            .map(|at| ("Compacted to", text(count(at.unsigned_abs())))),
    );
    rows.extend(store.keys.map(|keys| ("Keys", number(keys))));
    rows.extend(store.bytes.map(|size| {
        let quota = store.quota_bytes.map(|quota| html! { " of " (bytes(quota as u64)) });
        ("Size", html! { (bytes(size as u64)) (quota.unwrap_or_default()) })
    }));
    rows.extend(
        store
            .connections
            .map(|n| ("Connections", html! { (number(n)) " " a href="/clients" { "by user" } })),
    );
    rows.extend(store.watchers.map(|n| ("Watchers", number(n))));
    html! { section #store.card { h2 { "Store" } (facts(&rows)) } }
}

fn certificate(certificate: Option<&Certificate>) -> Markup {
    html! {
        section #certificate.card {
            h2 { "Next certificate to expire" }
            @match certificate {
                None => p.quiet { "No certificates are in use." },
                Some(next) => {
                    p.figure { (days_left(next)) @if next.days_left >= 0 { " days left" } }
                    (facts(&[
                        ("Used as", html! { (next.role) @if let Some(cluster) = &next.cluster { " for " (cluster) } }),
                        ("Subject", text(&next.subject)),
                        ("Issuer", text(&next.issuer)),
                        ("Expires", text(next.not_after.rfc3339())),
                        ("File", html! { span.path { (next.file.as_deref().unwrap_or("shown by the server")) } }),
                    ]))
                    @if let Some(trouble) = &next.trouble { p.reason { (trouble) } }
                }
            }
        }
    }
}

fn process(overview: &Overview) -> Markup {
    let process = &overview.process;
    let of = |n: i64| count(n.unsigned_abs());
    html! {
        section #process.card {
            h2 { "Process" }
            (facts(&[
                ("Memory", text(bytes(process.resident_bytes.unsigned_abs()))),
                ("CPU time", html! { (format!("{:.1}", process.cpu_seconds)) " s" }),
                ("Open files", html! { (of(process.open_files)) " of " (of(process.max_open_files)) }),
            ]))
        }
    }
}
