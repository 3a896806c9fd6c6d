//! Opening, reading and making data directories.

use super::checkpoint::Pieces;
use super::directory::{Directory, StoreIdentity, StoreRole};
use super::engine::{Engine, LoadOptions, Sizes};
use super::engines::EngineKind;
use super::error::Error;
use super::handle::Durable;
use super::queue::WriteQueue;
use super::record::Metadata;
use super::replay::{Replayed, Replayer};
use super::{Config, FORMAT, Loaded, Mode, OnCorruption, SEGMENT_MAX, wipe};
use crate::auth::AuthState;
use crate::mvcc::{Hooks, Store};
use crate::pb::etcdserverpb::AlarmMember;
use std::path::Path;
use std::sync::Arc;

/// The contents of a new data directory.
pub struct Import<'a> {
    /// Keys and leases.
    pub store: &'a Arc<Store>,
    /// Users and roles.
    pub auth: &'a AuthState,
    /// Raised alarms.
    pub alarms: Vec<AlarmMember>,
}

/// A data directory that was read, but whose store is not open yet.
struct Recovered {
    identity: StoreIdentity,
    contents: Replayed,
    sizes: Sizes,
    engine: Box<dyn Engine>,
}

impl Recovered {
    fn open(self, hooks: Hooks) -> (Loaded, Box<dyn Engine>) {
        let loaded = Loaded {
            identity: self.identity,
            store: self.contents.store.open(hooks),
            metadata: self.contents.metadata,
            groups: self.contents.groups,
            sizes: self.sizes,
            is_void: self.contents.is_void,
        };
        (loaded, self.engine)
    }
}

/// Opens the store of a data directory, or makes a new one, and keeps all changes there from now on. The journal of
/// `hooks` is set here. Reading millions of keys takes seconds: call from a thread that may block.
pub fn open(config: &Config, hooks: Hooks) -> Result<(Durable, Loaded), Error> {
    open_with(config, hooks, |engine| engine)
}

/// Like [`open`], with the engine that `wrap` makes of the directory's engine.
pub(super) fn open_with(
    config: &Config,
    hooks: Hooks,
    wrap: impl FnOnce(Box<dyn Engine>) -> Box<dyn Engine>,
) -> Result<(Durable, Loaded), Error> {
    let directory = Directory::lock(&config.directory)?;
    let recovered = match load(&directory, config) {
        Err(Error::Damaged(damage)) if config.on_corruption == OnCorruption::Rebuild => {
            let aside = directory.set_aside()?;
            match config.follows {
                None => tracing::error!(
                    %damage, aside = %aside.display(),
                    "THE DATA IS DAMAGED: the store was set aside, and an empty store begins as another cluster"
                ),
                Some(_) => tracing::error!(
                    %damage, aside = %aside.display(),
                    "the replica's copy is damaged: it was set aside, and the state is loaded from upstream again"
                ),
            }
            load(&directory, config)?
        }
        recovered => recovered?,
    };
    directory.begin_run(config.mode)?;
    if recovered.identity.engine == EngineKind::Sled && config.mode == Mode::Sync {
        tracing::warn!(
            "the engine sled can lose answered writes when the machine stops; --data-engine=log does not lose any"
        );
    }
    let queue = Arc::new(match config.follows {
        None => WriteQueue::default(),
        Some(_) => WriteQueue::behind(),
    });
    let (loaded, engine) = recovered.open(Hooks {
        journal: Some(Arc::clone(&queue) as _),
        ..hooks
    });
    let durable = Durable::start(config, directory, wrap(engine), &loaded, queue);
    Ok((durable, loaded))
}

/// Reads the store of a data directory, and changes nothing.
pub fn read(path: &Path) -> Result<Loaded, Error> {
    if !path.join("store").exists() {
        return Err(Error::Missing(path.to_owned()));
    }
    let directory = Directory::lock(path)?;
    let identity = directory.identity()?;
    let identity = identity.ok_or_else(|| Error::Missing(path.to_owned()))?;
    let options = LoadOptions {
        repair: false,
        lenient: directory.may_have_lost(),
    };
    let recovered = recover(&directory, identity, options, SEGMENT_MAX)?;
    Ok(recovered.open(Hooks::default()).0)
}

/// Makes a data directory with the imported contents, as a new cluster.
pub fn import(path: &Path, engine: EngineKind, import: Import<'_>) -> Result<StoreIdentity, Error> {
    let directory = Directory::lock(path)?;
    if directory.store().exists() {
        return Err(Error::Exists(path.to_owned()));
    }
    fill(&directory, engine, import)
}

/// Like [`import`], in a directory that exists: data of this program or of etcd in it is removed. A directory that
/// is in use, or holds anything else, is not changed.
pub fn replace(path: &Path, engine: EngineKind, import: Import<'_>) -> Result<StoreIdentity, Error> {
    fill(&wipe::empty(path)?, engine, import)
}

fn fill(directory: &Directory, engine: EngineKind, import: Import<'_>) -> Result<StoreIdentity, Error> {
    let identity = StoreIdentity::random(engine);
    directory.create(&identity, |store| {
        engine.create(store, identity.salt, SEGMENT_MAX)?;
        let mut engine = engine.open(store, identity.salt, SEGMENT_MAX)?;
        let options = LoadOptions {
            repair: true,
            lenient: false,
        };
        engine.load(options, &mut |_| Ok(()))?;
        let metadata = Metadata::of(import.auth, import.alarms);
        let (frozen, ()) = import.store.freeze(|| ());
        // The checkpoint pretends to hold group 1: a log that begins with group 2 is incomplete without it.
        engine.begin(1)?;
        let mut pieces = Pieces::new(frozen, metadata, 1, identity.salt);
        while let Some(piece) = pieces.next().map_err(std::io::Error::other)? {
            engine.add(piece)?;
        }
        engine.finish()?;
        engine.close(2)
    })?;
    Ok(identity)
}

/// Reads the store of a directory, or makes an empty one, ready to be written to.
fn load(directory: &Directory, config: &Config) -> Result<Recovered, Error> {
    let identity = identity(directory, config)?;
    if let Some(asked) = config.engine.filter(|asked| *asked != identity.engine) {
        let (path, is) = (directory.path().to_owned(), identity.engine);
        return Err(Error::OtherEngine { path, is, asked });
    }
    let lenient = directory.may_have_lost();
    let options = LoadOptions { repair: true, lenient };
    let mut recovered = recover(directory, identity, options, config.segment())?;
    if recovered.sizes.torn > 0 {
        tracing::warn!(
            bytes = recovered.sizes.torn,
            "the last group was written only in part, and its writes were not answered: the group is cut off"
        );
    }
    if identity.format < FORMAT && identity.role == StoreRole::Own {
        // Earlier versions must not take the frames that follow for damage.
        recovered.identity.format = FORMAT;
        directory.change_identity(&recovered.identity)?;
        tracing::info!(
            format = FORMAT,
            "the data directory has a new format: earlier versions do not read it"
        );
    }
    if lenient && identity.role == StoreRole::Follower {
        tracing::info!("the machine stopped before all changes were synced: what is missing comes again from upstream");
    } else if lenient {
        recovered.identity.cluster_id = StoreIdentity::random(identity.engine).cluster_id;
        directory.change_identity(&recovered.identity)?;
        tracing::warn!(
            etcd_cluster_id = %format_args!("{:x}", recovered.identity.cluster_id),
            "the machine stopped before all writes were synced: the store continues as another cluster"
        );
    }
    Ok(recovered)
}

/// The identity of the store in a directory, which is made if it is missing.
fn identity(directory: &Directory, config: &Config) -> Result<StoreIdentity, Error> {
    let path = || directory.path().to_owned();
    match (directory.identity()?, config.follows) {
        (None, _) => {}
        (
            Some(StoreIdentity {
                role: StoreRole::Follower,
                cluster_id,
                ..
            }),
            None,
        ) => {
            return Err(Error::Follower {
                path: path(),
                cluster_id,
            });
        }
        (
            Some(StoreIdentity {
                role: StoreRole::Own, ..
            }),
            Some(_),
        ) => return Err(Error::NotFollower(path())),
        (Some(identity), Some(cluster)) if identity.cluster_id != cluster => {
            tracing::warn!(
                data_dir = %directory.path().display(),
                was = %format_args!("{:x}", identity.cluster_id),
                is = %format_args!("{cluster:x}"),
                "upstream is another cluster than the one in the data directory: the copy is removed"
            );
            directory.remove()?;
        }
        (Some(identity), _) => return Ok(identity),
    }
    let engine = config.engine.unwrap_or(EngineKind::Log);
    let identity = match config.follows {
        None => StoreIdentity::random(engine),
        Some(cluster) => StoreIdentity::follower_of(cluster, engine),
    };
    directory.create(&identity, |store| engine.create(store, identity.salt, config.segment()))?;
    Ok(identity)
}

fn recover(
    directory: &Directory,
    identity: StoreIdentity,
    options: LoadOptions,
    segment: u64,
) -> Result<Recovered, Error> {
    let path = directory.store();
    let failed = |e| Error::load(&path, e);
    let mut engine = identity.engine.open(&path, identity.salt, segment).map_err(failed)?;
    let mut replayer = Replayer::new(identity.role);
    let sizes = engine
        .load(options, &mut |frame| replayer.take(frame))
        .map_err(failed)?;
    let contents = replayer.finish().map_err(|damage| failed(damage.into()))?;
    Ok(Recovered {
        identity,
        contents,
        sizes,
        engine,
    })
}
