//! What all pages have: the head, the navigation, and the note that says whether the page is live.

use super::View;
use crate::ui::assets;
use crate::ui::markup::Main;
use maud::{DOCTYPE, Markup, html};

/// The entries of the navigation.
const NAVIGATION: [(&str, &str); 5] = [
    ("/", "Overview"),
    ("/topology", "Topology"),
    ("/services", "Services"),
    ("/clients", "Clients"),
    ("/look-up", "Look up"),
];

/// A page. With a view, the page follows it.
pub(in crate::ui) fn page(cluster: &str, title: &str, main: &Main, view: Option<&View>) -> Markup {
    let here = match view {
        Some(View::Overview) => "/",
        Some(View::Topology(_) | View::Remote(_)) => "/topology",
        Some(View::Services { .. }) => "/services",
        Some(View::Clients) => "/clients",
        None => "/look-up",
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – " (cluster) " – Isthmus" }
                link rel="icon" type="image/svg+xml" href=(assets::ICON.url());
                link rel="stylesheet" href=(assets::STYLE.url());
                script src=(assets::SCRIPT.url()) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href="/" { span.mark aria-hidden="true" {} span { "Isthmus" } }
                    span.cluster { (cluster) }
                    nav aria-label="Pages" {
                        @for (path, name) in NAVIGATION {
                            a href=(path) aria-current=[(path == here).then_some("page")] { (name) }
                        }
                    }
                }
                @if let Some(view) = view {
                    main #main tabindex="-1" data-live=(view.live()) data-version=(format!("{:x}", main.version())) {
                        (main.html())
                    }
                } @else {
                    main #main tabindex="-1" { (main.html()) }
                }
                footer {
                    @if view.is_some() {
                        span #live role="status" { noscript { "Scripts are off: load the page again to see changes." } }
                    }
                    span { "Read-only. " a href="/api/v1/openapi.json" { "JSON API" } }
                }
            }
        }
    }
}
