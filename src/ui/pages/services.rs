//! The global services and exports of all clusters.

use super::SERVICES;
use crate::ui::markup::Main;
use crate::ui::view::{Service, ServiceIn, Services};
use crate::ui::words::{count, encoded, things};
use maud::{Markup, html};

/// The path of the page that begins with the service number `offset`.
pub(super) fn path(search: &str, offset: usize) -> String {
    format!("/services?q={}&offset={offset}", encoded(search))
}

pub(super) fn main(page: &Services, search: &str, clusters: usize) -> Main {
    let mut main = Main::default();
    main.raw("<h1>Services</h1>").fixed(html! {
        form.search role="search" method="get" action="/services" {
            label for="q" { "Search by namespace or name" }
            input #q name="q" type="search" value=(search) autocomplete="off" spellcheck="false" aria-keyshortcuts="/" placeholder="such as shop/ or catalog";
            button { "Search" }
        }
    });
    main.live(
        "found",
        html! {
            p #found role="status" {
                (things(page.total, "service", "services")) @if !search.is_empty() { " with “" (search) "”" }
                " in " (things(clusters, "cluster", "clusters"))
                "." @if let Some(why) = &page.incomplete { " Incomplete: " (why) "." }
            }
        },
    );
    main.live("services", table(page));
    main.live("pages", pages(page, search));
    main
}

fn table(page: &Services) -> Markup {
    html! {
        div #services.scroll {
            @if !page.services.is_empty() {
                table.services {
                    thead {
                        tr {
                            th { "Service" } th { "Cluster" } th.number { "Ready" } th.number { "Not ready" } th { "Ports" }
                            th { "Addresses" } th { "Shared" } th { "Exported" } th { "Affinity" }
                        }
                    }
                    @for service in &page.services {
                        tbody { (rows(service)) }
                    }
                }
            }
        }
    }
}

fn rows(service: &Service) -> Markup {
    html! {
        @for (at, here) in service.clusters.iter().enumerate() {
            tr {
                @if at == 0 {
                    th scope="rowgroup" rowspan=(service.clusters.len()) {
                        div.long { span.quiet { (service.namespace) "/" } (service.name) }
                        @for conflict in &service.conflicts {
                            p.reason { span.state.bad { span.sign aria-hidden="true" { "✕" } " conflict" } ": " (conflict) }
                        }
                    }
                }
                (cells(here))
            }
        }
    }
}

fn cells(here: &ServiceIn) -> Markup {
    html! {
        td { (here.cluster) }
        td.number { @if here.ready == 0 { span.state.warn { span.sign aria-hidden="true" { "▲" } " 0" } } @else { (count(here.ready as u64)) } }
        td.number { (count(here.not_ready as u64)) }
        td { div.long { (here.ports.join(", ")) } }
        td.path { div.long { (here.addresses.join(" ")) } }
        td { @match here.shared { Some(true) => "yes", Some(false) => "no", None => { span.quiet { "–" } } } }
        td { @if here.exported { "yes" } @else { span.quiet { "–" } } }
        td { @if let Some(affinity) = &here.session_affinity { (affinity) } @else { span.quiet { "–" } } }
    }
}

fn pages(page: &Services, search: &str) -> Markup {
    let at = |offset| path(search, offset);
    let last = page.offset + page.services.len();
    html! {
        nav #pages.pages aria-label="Pages of services" {
            @if page.offset > 0 { a rel="prev" href=(at(page.offset.saturating_sub(SERVICES))) { "← Previous" } }
            @if page.total > page.services.len() {
                span { (count(page.offset as u64 + 1)) "–" (count(last as u64)) " of " (count(page.total as u64)) }
            }
            @if last < page.total { a rel="next" href=(at(last)) { "Next →" } }
        }
    }
}
