//! The pages: their frame, and one file for the main part of each.

mod clients;
mod frame;
mod lookup;
mod overview;
mod parts;
mod remote;
mod services;
mod topology;

pub(super) use frame::page;
pub(super) use lookup::main as look_up;
pub(super) use topology::{Order, Sort};

use super::data::Data;
use super::markup::Main;
use super::reader::Reader;
use super::words::encoded;
use std::time::Duration;
use tokio::time::Instant;

/// Services on one page.
pub(super) const SERVICES: usize = 50;

/// What a live page shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum View {
    Overview,
    Topology(Order),
    Remote(String),
    Services {
        search: String,
        offset: usize,
        reader: Reader,
    },
    Clients,
}

/// The main part of a page.
pub(super) struct Rendered {
    pub(super) title: String,
    pub(super) main: Main,
    /// Whether what the view names exists.
    pub(super) exists: bool,
    /// The time that rendering took, once the values were there.
    pub(super) cost: Duration,
}

/// Renders a view.
pub(super) async fn main(data: &Data, view: &View) -> Rendered {
    match view {
        View::Overview => {
            let (overview, remotes) = (data.overview().await, data.remotes().await);
            rendered(|| ("Overview".to_owned(), overview::main(&overview, &remotes)))
        }
        View::Topology(order) => {
            let (overview, remotes) = (data.overview().await, data.remotes().await);
            rendered(|| ("Topology".to_owned(), topology::main(&overview, &remotes, *order)))
        }
        View::Remote(name) => {
            let detail = data.remote(name);
            let exists = detail.is_some();
            let render = || match &detail {
                Some(detail) => (name.clone(), remote::main(detail)),
                None => ("Not found".to_owned(), remote::missing(name)),
            };
            Rendered {
                exists,
                ..rendered(render)
            }
        }
        View::Services { search, offset, reader } => {
            let all = data.services(*reader).await;
            rendered(|| {
                let page = all.page(search, *offset, SERVICES);
                (
                    "Services".to_owned(),
                    services::main(&page, search, all.clusters().len()),
                )
            })
        }
        View::Clients => {
            let clients = data.clients().await;
            rendered(|| ("Clients".to_owned(), clients::main((*clients).as_deref())))
        }
    }
}

/// The title and the main part that `render` makes.
fn rendered(render: impl FnOnce() -> (String, Main)) -> Rendered {
    let begun = Instant::now();
    let (title, main) = render();
    Rendered {
        title,
        main,
        exists: true,
        cost: begun.elapsed(),
    }
}

// === impl View ===

impl View {
    /// Whether the process has this view, whatever readers look for.
    pub(super) fn is_of(&self, data: &Data) -> bool {
        match self {
            Self::Overview | Self::Topology(_) | Self::Clients => true,
            Self::Remote(name) => data.has_remote(name),
            Self::Services { search, offset, .. } => search.is_empty() && *offset == 0,
        }
    }

    /// The path of the page, with its query.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Overview => "/".to_owned(),
            Self::Topology(order) => format!("/topology{}", order.query()),
            Self::Remote(name) => format!("/remote/{}", encoded(name)),
            Self::Services { search, offset, .. } => services::path(search, *offset),
            Self::Clients => "/clients".to_owned(),
        }
    }

    /// The path of the events of the page.
    pub(super) fn live(&self) -> String {
        match self {
            Self::Overview => "/live/overview".to_owned(),
            other => format!("/live{}", other.path()),
        }
    }
}
