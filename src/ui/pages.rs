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
}

/// Renders a view.
pub(super) async fn main(data: &Data, view: &View) -> Rendered {
    let of = |title: &str, main| Rendered {
        title: title.to_owned(),
        main,
        exists: true,
    };
    match view {
        View::Overview => of(
            "Overview",
            overview::main(&*data.overview().await, &data.remotes().await),
        ),
        View::Topology(order) => {
            let (overview, remotes) = (data.overview().await, data.remotes().await);
            of("Topology", topology::main(&overview, &remotes, *order))
        }
        View::Remote(name) => match data.remote(name) {
            Some(detail) => of(name, remote::main(&detail)),
            None => Rendered {
                exists: false,
                ..of("Not found", remote::missing(name))
            },
        },
        View::Services { search, offset, reader } => {
            let all = data.services(*reader).await;
            let page = all.page(search, *offset, SERVICES);
            of("Services", services::main(&page, search, all.clusters().len()))
        }
        View::Clients => of("Clients", clients::main((*data.clients().await).as_deref())),
    }
}

// === impl View ===

impl View {
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
