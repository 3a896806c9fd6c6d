//! Tries a scope file before it is applied: what would change, and why a key is kept or left out.
//!
//! Nothing is decided here. The objects of this cluster go through the publisher's state machine, with and without the
//! scope, and the keys of remote clusters through the mirror's filter ([`Trial`](crate::kvstoremesh::trial::Trial)). This
//! room reads the sources, counts, and finds traps.
//!
//! ```text
//! objects ─► export ──┐
//! remotes ─► import ──┼─ one Judged for each key ─► summary ─► report ─► text, JSON
//! snapshot ─► import ─┘                         └─► search (`why`)
//! ```

mod export;
mod import;
mod judged;
pub mod objects;
mod remotes;
mod report;
mod search;
mod sentence;
mod snapshot;
mod summary;
#[cfg(test)]
mod tests;
mod text;
mod traps;
mod values;

pub use report::Report;
pub use search::Answer;
pub use text::warnings;
pub use traps::file_traps;

use crate::clustermesh::publisher::Options;
use crate::model::cluster::ClusterName;
use crate::scope::ScopeFile;
use futures::StreamExt as _;
use import::{Head, Surroundings};
use judged::Visitor;
use search::{Query, Search};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use summary::Summary;

/// Remote clusters that are read at the same time.
const REMOTES_AT_ONCE: usize = 8;

/// A scope file with its name.
#[derive(Clone, Debug)]
pub struct NamedFile {
    pub name: String,
    pub file: Arc<ScopeFile>,
}

/// The files to compare.
#[derive(Clone, Debug)]
pub struct Files {
    pub new: NamedFile,
    /// The present scope; `None`: everything is exported and imported.
    pub present: Option<NamedFile>,
}

/// What the files are tried on.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The options of the publisher of this cluster.
    pub options: Options,
    /// The objects of this cluster.
    pub objects: Option<objects::Source>,
    /// The directory of the remote clusters' client files.
    pub remotes: Option<PathBuf>,
    /// A snapshot of a store.
    pub snapshot: Option<PathBuf>,
    /// Limit for reading all objects, and for the first answer of a remote cluster.
    pub timeout: Duration,
}

/// What was found in one cluster.
struct Examined<V> {
    cluster: ClusterName,
    /// The visitor that has seen every key, or why the keys could not be read.
    outcome: Result<(Head, V), String>,
}

/// What was found in all sources.
struct Everything<V> {
    export: Option<Result<(export::Head, V), String>>,
    import: Vec<Examined<V>>,
    /// The names of the namespaces of this cluster, if they are known.
    knows_namespaces: bool,
}

/// Reports what the new file would change.
pub async fn explain(files: &Files, sources: &Sources) -> Result<Report, Error> {
    let everything = examine(files, sources, Summary::default).await?;
    Ok(Report::new(files, sources, everything))
}

/// Says what decides about the keys that `query` names: a key, a pod as `namespace/name`, an address, or the number of an
/// identity.
pub async fn why(files: &Files, sources: &Sources, query: &str) -> Result<Answer, Error> {
    let query = Query::parse(query).ok_or_else(|| Error::Query(query.to_owned()))?;
    let everything = examine(files, sources, || Search::new(query.clone())).await?;
    Ok(Answer::new(files, &query, everything))
}

/// Why nothing could be examined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Remotes(#[from] remotes::DirectoryError),
    #[error("cannot read the snapshot {}: {source}", path.display())]
    Snapshot {
        path: PathBuf,
        source: crate::snapshot::Error,
    },
    #[error(
        "{0:?} is no key, pod, address or identity: write a key (cilium/state/…), NAMESPACE/POD, an IP address, or the number \
         of an identity"
    )]
    Query(String),
}

async fn examine<V: Visitor>(
    files: &Files,
    sources: &Sources,
    visitor: impl Fn() -> V,
) -> Result<Everything<V>, Error> {
    let (mut export, mut namespaces) = (None, None);
    if let Some(source) = &sources.objects {
        let read = objects::read(source, &sources.options, sources.timeout).await;
        export = Some(read.map_err(|error| error.to_string()).map(|objects| {
            namespaces = Some(Arc::new(objects.namespaces()));
            let mut visitor = visitor();
            let head = export::examine(&objects, &sources.options, files, &mut visitor);
            (head, visitor)
        }));
    }
    let knows_namespaces = namespaces.is_some();
    let surroundings = Surroundings { files, namespaces };
    let mut import = match &sources.remotes {
        Some(directory) => of_remotes(directory, sources, &surroundings, &visitor).await?,
        None => vec![],
    };
    if let Some(path) = &sources.snapshot {
        let read = snapshot::examine(path, &surroundings, &visitor);
        let read = read.map_err(|source| Error::Snapshot {
            path: path.clone(),
            source,
        })?;
        import.extend(read);
    }
    import.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    Ok(Everything {
        export,
        import,
        knows_namespaces,
    })
}

async fn of_remotes<V: Visitor>(
    directory: &std::path::Path,
    sources: &Sources,
    surroundings: &Surroundings<'_>,
    visitor: &impl Fn() -> V,
) -> Result<Vec<Examined<V>>, Error> {
    let clusters = remotes::clusters(directory, &sources.options.cluster.name)?;
    let examined = clusters.into_iter().map(|(cluster, path)| async move {
        let examined = remotes::examine(&cluster, &path, sources, surroundings, visitor()).await;
        Examined {
            outcome: examined.map_err(|error| error.to_string()),
            cluster,
        }
    });
    Ok(futures::stream::iter(examined)
        .buffer_unordered(REMOTES_AT_ONCE)
        .collect()
        .await)
}
