//! The topology: this cluster, the links to its remote clusters, and a table of them. A large mesh has tiles in place of
//! links.

use super::View;
use super::parts::{class, lag, state, time};
use crate::ui::markup::Main;
use crate::ui::view::{Moment, Overview, Remote};
use crate::ui::words::{self, count, things};
use maud::{Markup, html};
use std::cmp::Ordering;

/// The most remote clusters that are drawn with links.
const LINKS_MAX: usize = 24;
/// The most remote clusters that are drawn on one side.
const ONE_SIDE: usize = 4;

/// The order of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::ui) struct Order {
    pub(in crate::ui) sort: Sort,
    pub(in crate::ui) is_descending: bool,
}

/// The column that the table is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::ui) enum Sort {
    #[default]
    Name,
    Id,
    State,
    Lag,
    Keys,
    LastEvent,
}

pub(super) fn main(overview: &Overview, remotes: &[Remote], order: Order) -> Main {
    let mut main = Main::default();
    main.raw("<h1>Topology</h1>");
    if remotes.is_empty() {
        main.live("none", html! {
            p #none.quiet { "No remote clusters are connected. A client file in the directory of --clustermesh-config connects one." }
        });
        return main;
    }
    let mut sorted: Vec<_> = remotes.iter().collect();
    sorted.sort_by(|a, b| order.compare(a, b));
    main.live("summary", summary(overview));
    main.fixed(filter());
    match remotes.len() <= LINKS_MAX {
        true => links(&mut main, overview, remotes),
        false => tiles(&mut main, remotes),
    }
    main.raw("<div class=\"scroll\"><table class=\"remotes\">")
        .fixed(head(order))
        .raw("<tbody>");
    for remote in sorted {
        main.live(format!("row-{}", remote.name), row(remote, overview.at));
    }
    main.raw("</tbody></table></div>");
    main
}

fn summary(overview: &Overview) -> Markup {
    let totals = &overview.remotes;
    let part = |n: usize, class: &str, sign: &str, word: &str| {
        html! {
            @if n > 0 { span class={ "state " (class) } { span.sign aria-hidden="true" { (sign) } " " (count(n as u64)) " " (word) } " " }
        }
    };
    html! {
        p #summary {
            (things(totals.all, "remote cluster", "remote clusters")) ": "
            (part(totals.in_sync - totals.with_warnings, "good", "●", "in sync"))
            (part(totals.with_warnings, "warn", "▲", "in sync, with a warning"))
            (part(totals.under_way, "busy", "◐", "under way"))
            (part(totals.away, "bad", "✕", "away"))
        }
    }
}

/// Filters what is shown; done by the script, which keeps the filter while the page changes.
fn filter() -> Markup {
    html! {
        form.search role="search" data-filter="" {
            label for="filter" { "Filter by name or state" }
            input #filter type="search" autocomplete="off" spellcheck="false" aria-keyshortcuts="/" placeholder="such as hk, or away";
        }
    }
}

/// This cluster in the middle, and its remote clusters on both sides; a few of them on one side.
fn links(main: &mut Main, overview: &Overview, remotes: &[Remote]) {
    let is_small = remotes.len() <= ONE_SIDE;
    let (left, right) = remotes.split_at(if is_small { 0 } else { remotes.len() / 2 });
    main.raw(if is_small {
        "<div class=\"hub small\">"
    } else {
        "<div class=\"hub\">"
    });
    for (side, remotes) in [("left", left), ("right", right)] {
        if side == "right" {
            main.fixed(html! {
                div.core { strong { (overview.cluster.name) } span { "id " (overview.cluster.id) } span { "this cluster" } }
            });
        }
        main.raw(&format!("<ul class=\"side {side}\">"));
        for remote in remotes {
            main.live(format!("link-{}", remote.name), link(remote));
        }
        main.raw("</ul>");
    }
    main.raw("</div>");
}

fn link(remote: &Remote) -> Markup {
    html! {
        li id={ "link-" (remote.name) } data-name=(searched(remote)) {
            a class={ "link " (class(remote)) } href=(View::Remote(remote.name.clone()).path()) {
                span.box { strong { (remote.name) } (state(remote)) @if let Some(why) = remote.troubles.first() { span.why { (why) } } }
                span.wire { span.label { span.hidden { "lag " } (words::lag(remote.lag.as_ref())) } }
            }
        }
    }
}

fn tiles(main: &mut Main, remotes: &[Remote]) {
    main.raw("<ul class=\"tiles\" aria-label=\"Remote clusters\">");
    for remote in remotes {
        main.live(
            format!("tile-{}", remote.name),
            html! {
                li id={ "tile-" (remote.name) } data-name=(searched(remote)) {
                    a class={ "tile " (class(remote)) } href=(View::Remote(remote.name.clone()).path())
                        title={ (remote.name) ": " (remote.state.word()) } {
                        span.sign aria-hidden="true" { (remote.state.sign()) } " " (remote.name)
                        span.hidden { " " (remote.state.word()) }
                    }
                }
            },
        );
    }
    main.raw("</ul>");
}

fn searched(remote: &Remote) -> String {
    format!("{} {}", remote.name, remote.state.word())
}

fn head(order: Order) -> Markup {
    let column = |sort: Sort, name: &str, class: &str| {
        let is_this = order.sort == sort;
        let next = Order {
            sort,
            is_descending: is_this && !order.is_descending,
        };
        let sorted = is_this.then_some(if order.is_descending { "descending" } else { "ascending" });
        html! {
            th scope="col" class=(class) aria-sort=[sorted] {
                a href={ "/topology" (next.query()) } {
                    (name) @if let Some(sorted) = sorted { span aria-hidden="true" { @if sorted == "ascending" { " ↑" } @else { " ↓" } } }
                }
            }
        }
    };
    html! {
        thead {
            tr {
                (column(Sort::Name, "Cluster", ""))
                (column(Sort::Id, "Id", "number"))
                (column(Sort::State, "State", ""))
                (column(Sort::Lag, "Lag", ""))
                (column(Sort::Keys, "Keys", "number"))
                th.number.wide scope="col" { "Nodes" }
                th.number.wide scope="col" { "Addresses" }
                th.number.wide scope="col" { "Services" }
                (column(Sort::LastEvent, "Last event", "wide"))
            }
        }
    }
}

fn row(remote: &Remote, now: Moment) -> Markup {
    html! {
        tr id={ "row-" (remote.name) } data-name=(searched(remote)) {
            th scope="row" { a href=(View::Remote(remote.name.clone()).path()) { (remote.name) } }
            td.number { @if let Some(id) = remote.id { (id) } @else { "–" } }
            td { (state(remote)) @for why in &remote.troubles { p.reason { (why) } } }
            td.nowrap { (lag(remote.lag.as_ref())) }
            td.number { (count(remote.keys.total() as u64)) }
            td.number.wide { (count(remote.keys.nodes as u64)) }
            td.number.wide { (count(remote.keys.addresses as u64)) }
            td.number.wide { (count(remote.keys.services as u64)) }
            td.wide.nowrap { @if let Some(at) = remote.last_event { (time(at, now)) } @else { span.quiet { "none yet" } } }
        }
    }
}

// === impl Order ===

impl Order {
    /// The query that asks for this order.
    pub(super) fn query(self) -> String {
        let sort = self.sort.word();
        match self.is_descending {
            true => format!("?sort={sort}&order=descending"),
            false => format!("?sort={sort}"),
        }
    }

    fn compare(self, a: &Remote, b: &Remote) -> Ordering {
        let lag = |remote: &Remote| remote.lag.map_or(-1.0, |lag| lag.p50_ms);
        let by = match self.sort {
            Sort::Name => Ordering::Equal,
            Sort::Id => a.id.cmp(&b.id),
            Sort::State => a.state.cmp(&b.state).then(b.troubles.len().cmp(&a.troubles.len())),
            Sort::Lag => lag(a).total_cmp(&lag(b)),
            Sort::Keys => a.keys.total().cmp(&b.keys.total()),
            Sort::LastEvent => a.last_event.cmp(&b.last_event),
        };
        let by = by.then_with(|| a.name.cmp(&b.name));
        match self.is_descending {
            true => by.reverse(),
            false => by,
        }
    }
}

// === impl Sort ===

impl Sort {
    const ALL: [Self; 6] = [
        Self::Name,
        Self::Id,
        Self::State,
        Self::Lag,
        Self::Keys,
        Self::LastEvent,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Id => "id",
            Self::State => "state",
            Self::Lag => "lag",
            Self::Keys => "keys",
            Self::LastEvent => "event",
        }
    }

    /// The column of this word.
    pub(in crate::ui) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.word() == word)
    }
}
