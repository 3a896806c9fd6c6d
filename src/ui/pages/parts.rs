//! Parts that several pages have.

use crate::ui::view::{Certificate, Lag, Method, Moment, Remote, State};
use crate::ui::words;
use maud::{Markup, html};

/// The class of a state, by which it is coloured.
pub(super) fn class(remote: &Remote) -> &'static str {
    match remote.state {
        State::InSync if remote.troubles.is_empty() => "good",
        State::InSync => "warn",
        state if state.is_bad() => "bad",
        _ => "busy",
    }
}

/// The state of a remote cluster: a sign and a word.
pub(super) fn state(remote: &Remote) -> Markup {
    let warned = remote.state == State::InSync && !remote.troubles.is_empty();
    html! {
        span class={ "state " (class(remote)) } {
            span.sign aria-hidden="true" { @if warned { "▲" } @else { (remote.state.sign()) } }
            " " (remote.state.word()) @if warned { ", with a warning" }
        }
    }
}

/// A moment as the time of the day.
pub(super) fn time(moment: Moment, now: Moment) -> Markup {
    html! { time datetime=(moment.rfc3339()) { (moment.shown(now)) } }
}

/// Names and values.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// A text as a value of [`facts`].
pub(super) fn text(text: impl AsRef<str>) -> Markup {
    html! { (text.as_ref()) }
}

/// A text that may be unknown.
pub(super) fn known(value: Option<impl AsRef<str>>) -> Markup {
    match value {
        Some(value) => text(value),
        None => html! { span.quiet { "not known yet" } },
    }
}

pub(super) fn number(n: usize) -> Markup {
    text(words::count(n as u64))
}

/// A lag in words.
pub(super) fn lag(lag: Option<&Lag>) -> Markup {
    match lag {
        None => html! { span.quiet { "not measured" } },
        Some(lag) if lag.method == Method::Heartbeat => html! {
            "at most " (words::millis(lag.max_ms)) " " span.quiet { "(upper bound, by the heartbeat)" }
        },
        Some(lag) => html! {
            (words::millis(lag.p50_ms)) " " span.quiet { "p50" } span.wide { ", " (words::millis(lag.p99_ms)) " " span.quiet { "p99" } }
        },
    }
}

/// The certificates in use.
pub(super) fn certificates(certificates: &[Certificate]) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { th { "Certificate" } th { "Subject" } th { "Issuer" } th.number { "Days left" } th { "File" } } }
                tbody {
                    @for certificate in certificates {
                        tr {
                            td { (certificate.role) }
                            td { (certificate.subject) }
                            td { (certificate.issuer) }
                            td.number { (days_left(certificate)) }
                            td.path { @match &certificate.file { Some(file) => (file), None => { span.quiet { "shown by the server" } } } }
                        }
                    }
                }
            }
        }
    }
}

/// The days that are left of a certificate, as a state if they are few.
pub(super) fn days_left(certificate: &Certificate) -> Markup {
    let class = match (certificate.days_left, &certificate.trouble) {
        (..0, _) => "state bad",
        (_, Some(_)) => "state warn",
        _ => "",
    };
    html! {
        span class=(class) {
            @if certificate.days_left < 0 { "expired" } @else { (certificate.days_left) }
        }
    }
}
