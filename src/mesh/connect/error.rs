//! Why clusters were not connected, with the remedy.

use crate::mesh::facts::Keeper;
use crate::mesh::trust::Renewer;
use crate::mesh::{endpoints, objects, pki, read, ready, record};

/// Why clusters were not connected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no destination context specified, use --destination-context to specify the clusters to connect to")]
    NoDestination,
    #[error("contexts {0:?} and {1:?} lead to the same cluster {2}; name each cluster once")]
    Twice(String, String, String),
    #[error(transparent)]
    Read(#[from] read::Error),
    #[error(transparent)]
    Endpoints(#[from] endpoints::Error),
    #[error("{0:?} does not say which destination it belongs to: begin it with the context and '=', as in {1}={0}")]
    WhoseEndpoint(String, String),
    #[error("the endpoint {0:?} is for the context {1:?}, which is no destination; destinations are: {2}")]
    NoSuchDestination(String, String, String),
    #[error(transparent)]
    Record(#[from] record::Invalid),
    #[error(transparent)]
    Users(#[from] objects::BadUsers),
    #[error("the certificates of cluster {cluster} cannot be read: {why}")]
    Authorities { cluster: String, why: pki::Error },
    #[error("{failed} of the checks failed, nothing was changed{}", remedy(*is_about_authorities))]
    Checks { failed: usize, is_about_authorities: bool },
    #[error(
        "{object} in context {context:?} is kept by {keeper}, which would undo the connection: commit the values above there, \
         or take the objects over with --adopt"
    )]
    Kept {
        object: String,
        context: String,
        keeper: Keeper,
    },
    #[error(
        "key {key} of {object} in context {context:?} is written again by {renewer}, which would remove the CAs of the peers: \
         commit the values above, after which connect needs no --share-ca, or write the key with --adopt and run connect \
         again whenever status reports the loss"
    )]
    Renewed {
        object: String,
        key: String,
        context: String,
        renewer: Renewer,
    },
    #[error("{0} of the clusters would not accept the changes, nothing was changed")]
    Refused(usize),
    #[error("other commands change the same clusters again and again: {0}")]
    Raced(String),
    #[error("not all clusters were changed; correct the cause and run the same command again, which continues")]
    Halfway,
    #[error(transparent)]
    Ready(#[from] ready::Error),
    #[error("cannot print YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

fn remedy(is_about_authorities: bool) -> &'static str {
    match is_about_authorities {
        true => ". Use --share-ca (--allow-mismatching-ca) to make the clusters trust each other's CAs",
        false => "; --force connects nevertheless",
    }
}
