//! The mesh page: what operators see of a cluster and its mesh in a browser, and the same as a JSON API. Read-only.
//!
//! The room knows no room with state. A [`Source`] hands in snapshots of the process, and [`Keys`] reads the store that
//! the process writes to; `app` implements both. From there the values of [`view`] go to the API (`api`) as JSON, and
//! to the pages (`pages`) as HTML, whose live parts follow by server-sent events (`live`).

pub mod access;
mod api;
mod asked;
mod assets;
mod cache;
mod data;
mod decode;
mod live;
mod lookup;
mod markup;
mod pages;
mod reader;
mod services;
mod site;
pub mod source;
pub mod view;
mod words;

pub use site::router;
pub use source::{Entry, Keys, Page, Source};
