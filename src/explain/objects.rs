//! Reads all objects of this cluster once, from manifests or from a Kubernetes API.

use crate::clustermesh::publisher::{Options, Publisher};
use crate::k8s::api::{self, ApiConfig};
use crate::k8s::events::{Event, Received};
use crate::k8s::manifests;
use crate::k8s::status::Status;
use crate::k8s::types::{Kind, Object};
use crate::util::lifecycle::Lifecycle;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Capacity of the queue between the source of objects and the reader.
const EVENTS: usize = 1024;

/// Where the objects of this cluster are.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// A Kubernetes API.
    Api(ApiConfig),
}

/// The objects, as events in the order in which they came.
#[derive(Debug, Default)]
pub struct Objects {
    pub(super) events: Vec<Event>,
}

/// Why the objects could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Manifests(#[from] manifests::Error),
    #[error("{0}; use --manifests for a directory of manifests, or --enable-k8s=false to examine imports alone")]
    Api(#[from] api::Error),
    #[error(
        "{missing} could not be listed in {} s ({reason}); raise --timeout, or check that this user may list and watch these \
         kinds",
        limit.as_secs()
    )]
    Slow {
        missing: String,
        limit: Duration,
        reason: String,
    },
    #[error("the source of objects ended before all objects were listed")]
    Ended,
}

/// Reads all objects that a publisher with these options needs.
pub(super) async fn read(source: &Source, options: &Options, limit: Duration) -> Result<Objects, Error> {
    let kinds = Publisher::kinds(options);
    let (sender, events) = mpsc::channel(EVENTS);
    let (status, life) = (Status::default(), Lifecycle::default());
    let mut missing: BTreeSet<Kind> = kinds.iter().copied().collect();
    let read = {
        let collected = collect(events, &mut missing);
        let run = run(source.clone(), kinds, sender, status.clone(), life.clone());
        let read = async {
            tokio::select! { done = collected => done, ended = run => Err(ended.err().unwrap_or(Error::Ended)) }
        };
        tokio::time::timeout(limit, Box::pin(read)).await
    };
    life.stop();
    read.unwrap_or_else(|_| {
        let names: Vec<_> = missing.iter().map(|kind| kind.name()).collect();
        let reason = status
            .outage()
            .map_or_else(|| "no answer yet".to_owned(), |outage| outage.reason);
        Err(Error::Slow {
            missing: names.join(", "),
            limit,
            reason,
        })
    })
}

async fn run(
    source: Source,
    kinds: Vec<Kind>,
    sender: mpsc::Sender<Received>,
    status: Status,
    life: Lifecycle,
) -> Result<(), Error> {
    match source {
        Source::Manifests(directory) => Ok(manifests::follow(directory, kinds, sender, &status).await?),
        Source::Api(config) => Ok(config.run(kinds, sender, status, life).await?),
    }
}

/// Takes events until no kind is missing.
async fn collect(mut events: mpsc::Receiver<Received>, missing: &mut BTreeSet<Kind>) -> Result<Objects, Error> {
    let mut objects = Objects::default();
    while !missing.is_empty() {
        let Received { event, .. } = events.recv().await.ok_or(Error::Ended)?;
        if let Event::Listed(kind) = &event {
            missing.remove(kind);
        }
        objects.events.push(event);
    }
    Ok(objects)
}

impl Objects {
    /// The names of the namespaces.
    pub(super) fn namespaces(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for event in &self.events {
            match event {
                Event::Apply(key, _) if key.kind == Kind::Namespace => drop(names.insert(key.name.to_string())),
                Event::Delete(key) if key.kind == Kind::Namespace => drop(names.remove(&*key.name)),
                _ => {}
            }
        }
        names
    }

    /// The objects that were applied.
    pub(super) fn applied(&self) -> impl Iterator<Item = &Object> {
        self.events.iter().filter_map(|event| match event {
            Event::Apply(_, object) => Some(&**object),
            _ => None,
        })
    }
}
