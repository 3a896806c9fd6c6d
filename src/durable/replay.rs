//! Makes the store again, frame by frame: first a checkpoint, then the groups after it.

use super::damage::Damage;
use super::directory::StoreRole;
use super::frame::{Frame, Kind};
use super::record::{self, Group, Head, Metadata};
use crate::mvcc::{Loader, Recovery};

/// The contents of a data directory, once all of its frames were replayed.
pub(super) struct Replayed {
    pub(super) store: Recovery,
    pub(super) metadata: Metadata,
    /// The number of the last group.
    pub(super) groups: u64,
    /// The store is empty because what the directory holds does not count.
    pub(super) is_void: bool,
}

/// Takes the frames that an engine visits, in order.
pub(super) struct Replayer {
    role: StoreRole,
    /// The checkpoint, until it ends.
    loading: Option<Loading>,
    /// The contents after the checkpoint.
    recovered: Option<Recovered>,
    /// The number of the last group.
    groups: u64,
}

/// A checkpoint that has not ended.
struct Loading {
    loader: Loader,
    metadata: Metadata,
    chunks: u64,
}

struct Recovered {
    store: Recovery,
    metadata: Metadata,
    /// Another state was put into place, and no checkpoint holds it.
    is_void: bool,
}

impl Recovered {
    fn empty(role: StoreRole) -> Self {
        Self {
            store: empty(role),
            metadata: Metadata::new(),
            is_void: false,
        }
    }
}

fn empty(role: StoreRole) -> Recovery {
    match role {
        StoreRole::Own => Recovery::empty(),
        StoreRole::Follower => Recovery::following(),
    }
}

impl Replayer {
    pub(super) fn new(role: StoreRole) -> Self {
        Self {
            role,
            loading: None,
            recovered: None,
            groups: 0,
        }
    }

    pub(super) fn take(&mut self, frame: Frame<'_>) -> Result<(), Damage> {
        match (frame.kind, &mut self.loading) {
            (Kind::Head, None) if self.recovered.is_none() => {
                let (loader, metadata) = Head::read(&frame.payload, self.role)?;
                self.groups = frame.number;
                self.loading = Some(Loading {
                    loader,
                    metadata,
                    chunks: 0,
                });
            }
            (Kind::Chunk, Some(loading)) if frame.number == loading.chunks => {
                loading.chunks += 1;
                record::read_chunk(&frame.payload, &mut loading.loader)?;
            }
            (Kind::End, Some(loading)) if frame.number == loading.chunks => {
                let Some(Loading { loader, metadata, .. }) = self.loading.take() else {
                    return Ok(());
                };
                let store = loader.finish()?;
                self.recovered = Some(Recovered {
                    store,
                    metadata,
                    is_void: false,
                });
            }
            // A log file may begin with groups that the checkpoint holds.
            (Kind::Group, None) if frame.number <= self.groups => {}
            (Kind::Group, None) if frame.number == self.groups + 1 => {
                let recovered = self.recovered.get_or_insert_with(|| Recovered::empty(self.role));
                let Recovered {
                    store,
                    metadata,
                    is_void,
                } = recovered;
                Group::read(&frame.payload)?.apply(store, metadata, is_void)?;
                self.groups = frame.number;
            }
            (Kind::Group, None) => {
                let (expected, found) = (self.groups + 1, frame.number);
                return Err(Damage::new(format!("found group {found}, expected group {expected}")));
            }
            _ => return Err(Damage::new("a frame is out of place")),
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Replayed, Damage> {
        if self.loading.is_some() {
            return Err(Damage::new("the checkpoint has no end"));
        }
        let recovered = self.recovered.unwrap_or_else(|| Recovered::empty(self.role));
        let Recovered {
            store,
            metadata,
            is_void,
        } = recovered;
        Ok(Replayed {
            store: if is_void { empty(self.role) } else { store },
            metadata,
            groups: self.groups,
            is_void,
        })
    }
}
