//! One remote cluster in full.

use super::parts::{certificates, class, facts, known, lag, number, state, text, time};
use crate::ui::markup::Main;
use crate::ui::view::{
    Configuration, Delivery, Method, Minute, Mirror, MirroredKind, Propagation, RemoteDetail, Scoped, ScopedKind,
};
use crate::ui::words::{bytes, count, millis};
use maud::{Markup, html};

/// The size of the sparkline, in its own units: one for each minute of the last hour.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 64.0;
const MINUTES: f64 = 60.0;

pub(super) fn main(detail: &RemoteDetail) -> Main {
    let mut main = Main::default();
    main.fixed(html! { p.trail { a href="/topology" { "Topology" } " / " } h1 { (detail.remote.name) } })
        .live("state", head(detail))
        .raw("<div class=\"cards\">")
        .live("connection", connection(detail))
        .live("propagation", propagation(detail.propagation.as_ref()))
        .live("delivery", delivery(detail.delivery.as_ref()))
        .live("configuration", configuration(detail.configuration.as_ref()))
        .live("counters", counters(detail))
        .raw("</div>")
        .live("kinds", kinds(&detail.kinds))
        .live("scope", scope(detail.scope.as_ref()))
        .live("refused", refused(detail))
        .live(
            "certificates",
            html! {
                section #certificates {
                    h2 { "Certificates" }
                    @if detail.certificates.is_empty() { p.quiet { "The connection uses no certificates." } }
                    @else { (certificates(&detail.certificates)) }
                }
            },
        )
        .live("changes", changes(detail));
    main
}

pub(super) fn missing(name: &str) -> Main {
    let mut main = Main::default();
    main.live("missing", html! {
        section #missing {
            h1 { "No such cluster" }
            p { "There is no remote cluster " (name) ". It may have left the mesh. " a href="/topology" { "Topology" } }
        }
    });
    main
}

fn head(detail: &RemoteDetail) -> Markup {
    let remote = &detail.remote;
    html! {
        section #state role="status" {
            p class={ "verdict " (class(remote)) } {
                (state(remote))
                @if let Some(since) = remote.since { " since " (time(since, detail.at)) }
            }
            @if !remote.troubles.is_empty() {
                ul.troubles { @for trouble in &remote.troubles { li { (trouble) } } }
            }
        }
    }
}

fn connection(detail: &RemoteDetail) -> Markup {
    let endpoints = html! { @for endpoint in &detail.endpoints { span.path { (endpoint) } " " } };
    let last_event = match detail.remote.last_event {
        Some(at) => time(at, detail.at),
        None => html! { span.quiet { "none yet" } },
    };
    html! {
        section #connection.card {
            h2 { "Connection" }
            (facts(&[
                ("Endpoints", endpoints),
                ("In use", known(detail.endpoint_in_use.as_ref())),
                ("Store's cluster id", known(detail.store_cluster_id.as_ref())),
                ("Last event", last_event),
                ("First complete mirror", match detail.first_sync_ms {
                    Some(ms) => html! { "after " (millis(ms)) },
                    None => html! { span.quiet { "not yet" } },
                }),
            ]))
        }
    }
}

fn propagation(propagation: Option<&Propagation>) -> Markup {
    html! {
        section #propagation.card {
            h2 { "Propagation over the last hour" }
            @match propagation {
                None => p.quiet { "Not measured: the remote cluster has written neither a probe nor a heartbeat since the connection." },
                Some(propagation) => {
                    p.figure { (lag(Some(&propagation.last_hour))) }
                    (sparkline(&propagation.minutes))
                    (facts(&[
                        ("Longest", text(millis(propagation.last_hour.max_ms))),
                        ("Raw, with the clocks' difference", text(millis(propagation.last_hour.raw_ms))),
                        ("Round trip", match propagation.round_trip_ms { Some(ms) => text(millis(ms)), None => known(None::<&str>) }),
                        ("Measured commits", text(count(propagation.last_hour.samples))),
                        ("Method", text(match propagation.last_hour.method {
                            Method::Probe => "probe key, every second",
                            Method::Heartbeat => "heartbeat, every minute: an upper bound",
                        })),
                    ]))
                }
            }
        }
    }
}

fn delivery(delivery: Option<&Delivery>) -> Markup {
    html! {
        section #delivery.card {
            h2 { "Delivery here over the last hour" }
            p.quiet { "From the commit of a mirrored change in this cluster's store to the send to the last watcher." }
            @match delivery {
                None => p.quiet { "Not measured: nobody watches the mirrored keys, nothing has changed, or the store is another process." },
                Some(delivery) => (facts(&[
                    ("p50", text(millis(delivery.p50_ms))),
                    ("p99", text(millis(delivery.p99_ms))),
                    ("Longest", text(millis(delivery.max_ms))),
                    ("Measured commits", text(count(delivery.samples))),
                ])),
            }
        }
    }
}

/// The lines of p50 and p99, and the same in words.
fn sparkline(minutes: &[Minute]) -> Markup {
    let most = minutes.iter().map(|minute| minute.p99_ms).fold(1.0, f64::max);
    let x = |minute: &Minute| WIDTH - WIDTH * f64::from(minute.ago) / (MINUTES - 1.0);
    let y = |ms: f64| HEIGHT - 4.0 - (HEIGHT - 8.0) * (ms.max(0.0) / most);
    let line = |figure: fn(&Minute) -> f64| {
        let point = |minute: &Minute| format!("{:.1},{:.1}", x(minute), y(figure(minute)));
        minutes.iter().map(point).collect::<Vec<_>>().join(" ")
    };
    let (p50, p99) = (line(|m| m.p50_ms), line(|m| m.p99_ms));
    html! {
        @if minutes.len() > 1 {
            figure.spark {
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" preserveAspectRatio="none"
                    aria-label={ "p50 and p99 of each minute of the last hour; the highest p99 is " (millis(most)) } {
                    polyline.p99 points=(p99) fill="none" vector-effect="non-scaling-stroke" {}
                    polyline.p50 points=(p50) fill="none" vector-effect="non-scaling-stroke" {}
                }
                figcaption {
                    span.p50 { "p50" } " and " span.p99 { "p99 (dashed)" } " by minute, up to " (millis(most))
                }
            }
        }
    }
}

fn configuration(configuration: Option<&Configuration>) -> Markup {
    let yes = |is_set: bool| text(if is_set { "yes" } else { "no" });
    html! {
        section #configuration.card {
            h2 { "Configuration" }
            @match configuration {
                None => p.quiet { "Not read yet." },
                Some(c) => (facts(&[
                    ("Cluster id", html! { (c.cluster_id) }),
                    ("Largest mesh", html! { (c.max_connected_clusters) " clusters" }),
                    ("Canaries", yes(c.sync_canaries)),
                    ("Its keys come from a mirror", yes(c.cached)),
                    ("Service exports", text(&c.service_exports)),
                    ("Endpoint slices", text(&c.endpoint_slices)),
                ])),
            }
        }
    }
}

fn counters(detail: &RemoteDetail) -> Markup {
    let c = &detail.counters;
    html! {
        section #counters.card {
            h2 { "Since the client file was found" }
            (facts(&[
                ("Connections", text(count(c.connections))),
                ("Connections lost", text(count(c.connections_lost))),
                ("Failed attempts", text(count(c.attempts_failed))),
                ("Lists", text(count(c.lists))),
                ("Watches resumed", text(count(c.resumes))),
                ("Read", html! { (count(c.keys_read)) " keys, " (bytes(c.bytes_read)) }),
                ("Services revoked", html! { (count(c.revocations)) " times" }),
            ]))
        }
    }
}

fn kinds(kinds: &[MirroredKind]) -> Markup {
    let shown = |mirror: Mirror| match mirror {
        Mirror::Off => ("quiet", "–", "not exported"),
        Mirror::Incomplete => ("state busy", "◐", "incomplete"),
        Mirror::Complete => ("state good", "●", "complete"),
        Mirror::Stopped => ("state bad", "✕", "stopped"),
        Mirror::Forbidden => ("state bad", "✕", "forbidden"),
    };
    html! {
        section #kinds {
            h2 { "Mirrored keys" }
            div.scroll {
                table {
                    thead { tr { th { "Kind" } th { "Mirror" } th.number { "Mirrored here" } th.number { "Announced" } } }
                    tbody {
                        @for kind in kinds {
                            @let (class, sign, word) = shown(kind.mirror);
                            tr {
                                th scope="row" { (kind.kind) }
                                td {
                                    span class=(class) { span.sign aria-hidden="true" { (sign) } " " (word) }
                                    @if let Some(reason) = &kind.reason { p.reason { (reason) } }
                                }
                                td.number { (number(kind.mirrored)) }
                                td.number { @if let Some(n) = kind.announced { (count(n)) } @else { span.quiet { "–" } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn scope(scope: Option<&Scoped>) -> Markup {
    html! {
        section #scope {
            @if let Some(scope) = scope {
                h2 { "Scope" }
                p {
                    "The scope file limits what is mirrored of this cluster"
                    @if let Some(entry) = &scope.entry { ", by the entry " strong { (entry) } }
                    @if let Some(region) = &scope.region { "; its region is " strong { (region) } }
                    "."
                }
                div.scroll {
                    table {
                        thead {
                            tr { th { "Kind" } th.number { "Kept" } th.number { "Left out" } th.number { "Pending" } th.number { "Spared" } th { "Decided by" } }
                        }
                        tbody { @for kind in &scope.kinds { (scoped_kind(kind)) } }
                    }
                }
            }
        }
    }
}

fn scoped_kind(kind: &ScopedKind) -> Markup {
    html! {
        tr {
            th scope="row" { (kind.kind) }
            @if kind.off {
                td colspan="5" { span.quiet { "not mirrored, and not read" } }
            } @else {
                td.number { (number(kind.kept)) }
                td.number { (number(kind.left_out)) }
                td.number { (number(kind.pending)) }
                td.number { (bytes(kind.bytes_left_out)) }
                td {
                    ul.plain {
                        @for rule in &kind.rules { li { (rule.rule) ": " (number(rule.keys)) " " (rule.decision) } }
                    }
                }
            }
        }
    }
}

fn refused(detail: &RemoteDetail) -> Markup {
    html! {
        section #refused {
            h2 { "Refused keys" }
            @if detail.refused.is_empty() {
                p.quiet { "No key was refused." }
            } @else {
                div.scroll {
                    table {
                        thead { tr { th { "Reason" } th.number { "Keys" } th { "Last one" } } }
                        tbody {
                            @for refused in &detail.refused {
                                tr { td { (refused.reason) } td.number { (count(refused.count)) } td.path { (refused.example) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn changes(detail: &RemoteDetail) -> Markup {
    html! {
        section #changes {
            h2 { "Last changes of the state" }
            ol.plain.changes {
                @for change in &detail.changes {
                    li {
                        (time(change.at, detail.at)) " " strong { (change.state.word()) }
                        @if let Some(cause) = &change.cause { p.reason { (cause) } }
                    }
                }
            }
            @if detail.changes.is_empty() { p.quiet { "None yet." } }
        }
    }
}
