//! What survives the process: every change of the store, of users and of alarms, in a data directory.
//!
//! ```text
//! store ─commit─► journal ─► writer ─ one frame per group ─► engine (log | sled) ─ sync ─► publish, answer
//!                              └─ checkpoint, piece by piece, when the log has grown
//! ```
//!
//! Writers commit in memory and leave what changed in the journal, in order. One thread writes all that has
//! come while it was writing as one group, syncs it, and only then lets it be seen and answered: *group
//! commit*. A start loads the last checkpoint and replays the groups after it.

mod directory;
mod engine;
#[cfg(feature = "fjall")]
mod fjall;
mod frame;
mod journal;
mod keyed;
mod log;
mod metrics;
mod record;
mod sled;
#[cfg(test)]
mod tests;
mod wipe;
mod writer;

pub use directory::Identity;
pub use engine::{EngineKind, Sizes};
pub use journal::{Durable, Refused};
pub use metrics::Metrics;
pub use record::Side;

use crate::auth::State;
use crate::mvcc::{Hooks, Loader, OutOfOrder, Recovery, Store};
use crate::pb::etcdserverpb::AlarmMember;
use directory::Directory;
use engine::{Engine, Load, LoadError};
use frame::{Frame, Kind};
use journal::Journal;
use record::{Group, Head};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Version of what is written; older ones are read, newer ones are refused.
pub const FORMAT: u32 = 1;
/// Length of a log file, in bytes, unless checkpoints are wanted sooner.
const SEGMENT_MAX: u64 = 64 << 20;
const SEGMENT_MIN: u64 = 64 << 10;

/// When an answer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// When it is on the disk.
    Sync,
    /// When it is with the kernel, which is told to sync every so often: a process that crashes loses nothing,
    /// a machine that crashes does. The store is another one then.
    Interval,
    /// When it is with the kernel.
    None,
}

/// What to do with a damaged store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCorruption {
    /// Set it aside, and begin anew as another store.
    Rebuild,
    /// End.
    Fail,
}

/// Where and how to keep data.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory.
    pub directory: PathBuf,
    /// What keeps it; `None` is what did so far, the plain log in a new directory.
    pub engine: Option<EngineKind>,
    /// When an answer leaves.
    pub mode: Mode,
    /// How often to sync in [`Mode::Interval`].
    pub interval: Duration,
    /// What to do with a damaged store.
    pub on_corruption: OnCorruption,
    /// A checkpoint is written once the log has this many bytes, and half of what the last checkpoint has.
    pub checkpoint_bytes: u64,
}

/// Something is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", path.as_ref().map(|p| format!("{}: ", p.display())).unwrap_or_default())]
pub struct Damage {
    path: Option<PathBuf>,
    why: String,
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// It is etcd's.
    #[error(
        "data directory {} holds data of etcd (member/): save a snapshot of it and use `snapshot restore` \
         with another directory",
        .0.display()
    )]
    Foreign(PathBuf),
    /// Something in it is nobody's that keeps data here.
    #[error(
        "data directory {} holds {name:?}, which is neither ours nor etcd's: nothing was changed; use a directory \
         that is empty, or remove it",
        path.display()
    )]
    Stranger {
        /// The directory.
        path: PathBuf,
        /// What it is called.
        name: String,
    },
    /// It was written by a later version.
    #[error(
        "data directory {} has format {format}, and this version reads formats up to {FORMAT}: use the version \
         that wrote it, or a later one",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// Another engine keeps it.
    #[error("data directory {} is kept by the engine {is}, not {asked}", path.display())]
    OtherEngine {
        /// The directory.
        path: PathBuf,
        /// Its engine.
        is: EngineKind,
        /// The one asked for.
        asked: EngineKind,
    },
    /// There is no store in it.
    #[error("there is no store in {}", .0.display())]
    Missing(PathBuf),
    /// There is a store in it.
    #[error("there is a store in {} already", .0.display())]
    Exists(PathBuf),
    /// It is damaged.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// The operating system refuses.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        error: io::Error,
    },
}

/// A store as it was left.
pub struct Loaded {
    /// Who it is.
    pub identity: Identity,
    /// Keys and leases.
    pub store: Arc<Store>,
    /// Users, roles, alarms.
    pub side: Side,
    /// The number of the last group.
    pub groups: u64,
    /// Sizes on disk.
    pub sizes: Sizes,
}

/// The contents of a data directory before the store is opened.
struct Recovered {
    identity: Identity,
    store: Recovery,
    side: Side,
    groups: u64,
    sizes: Sizes,
}

/// A store to be kept in a new directory.
pub struct Import<'a> {
    /// Keys and leases.
    pub store: &'a Arc<Store>,
    /// Users and roles.
    pub auth: &'a State,
    /// Alarms that are on.
    pub alarms: Vec<AlarmMember>,
}

// === impl Config ===

impl Config {
    /// Everything that is answered is on the disk.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            engine: None,
            mode: Mode::Sync,
            interval: Duration::from_millis(100),
            on_corruption: OnCorruption::Rebuild,
            checkpoint_bytes: 64 << 20,
        }
    }

    fn segment(&self) -> u64 {
        self.checkpoint_bytes.clamp(SEGMENT_MIN, SEGMENT_MAX)
    }
}

// === impl Recovered ===

impl Recovered {
    fn open(self, hooks: Hooks) -> Loaded {
        Loaded {
            identity: self.identity,
            store: self.store.open(hooks),
            side: self.side,
            groups: self.groups,
            sizes: self.sizes,
        }
    }
}

// === impl Damage ===

impl Damage {
    fn new(why: impl Into<String>) -> Self {
        Self {
            path: None,
            why: why.into(),
        }
    }

    fn of(path: &Path, why: &str) -> Self {
        Self::new(why).at(path)
    }

    fn at(self, path: &Path) -> Self {
        Self {
            path: self.path.or_else(|| Some(path.to_owned())),
            ..self
        }
    }
}

impl From<OutOfOrder> for Damage {
    fn from(error: OutOfOrder) -> Self {
        Self::new(error.to_string())
    }
}

// === impl Error ===

impl Error {
    fn io(what: impl Into<String>, error: io::Error) -> Self {
        let what = what.into();
        Self::Io { what, error }
    }

    fn load(path: &Path, error: LoadError) -> Self {
        match error {
            LoadError::Damage(damage) => Self::Damaged(damage.at(path)),
            LoadError::Io(e) => Self::read(path, e),
        }
    }

    /// What cannot be read will not get better by trying again, unless it is for want of permission or memory.
    fn read(path: &Path, error: io::Error) -> Self {
        use io::ErrorKind as K;
        let unreadable = error.raw_os_error() == Some(nix::errno::Errno::EIO as i32);
        match error.kind() {
            K::IsADirectory | K::NotADirectory | K::NotFound | K::UnexpectedEof | K::InvalidData => {
                Self::Damaged(Damage::of(path, &error.to_string()))
            }
            _ if unreadable => Self::Damaged(Damage::of(path, &error.to_string())),
            _ => Self::io(format!("cannot read {}", path.display()), error),
        }
    }
}

// === opening ===

/// Opens the store of a data directory, or makes a new one, and keeps its changes there from now on. The journal of
/// `hooks` is set here. Reading takes seconds for millions of keys: call from a thread that may block.
pub fn open(config: &Config, hooks: Hooks) -> Result<(Durable, Loaded), Error> {
    let directory = Directory::lock(&config.directory)?;
    let (recovered, engine) = match load(&directory, config) {
        Err(Error::Damaged(damage)) if config.on_corruption == OnCorruption::Rebuild => {
            let aside = directory.set_aside()?;
            tracing::error!(
                %damage, aside = %aside.display(),
                "THE DATA IS DAMAGED: it was set aside, and the store begins anew, empty and as another cluster"
            );
            load(&directory, config)?
        }
        loaded => loaded?,
    };
    directory.begin_run(config.mode)?;
    if recovered.identity.engine == EngineKind::Sled && config.mode == Mode::Sync {
        tracing::warn!("sled can lose writes that were answered when the machine stops: the log does not");
    }
    let journal = Arc::new(Journal::default());
    let loaded = recovered.open(Hooks {
        journal: Some(Arc::clone(&journal) as _),
        ..hooks
    });
    let durable = Durable::start(config, directory, engine, &loaded, journal);
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
    let how = Load {
        repair: false,
        lenient: directory.may_have_lost(),
    };
    let (recovered, _) = recover(&directory, identity, how, SEGMENT_MAX)?;
    Ok(recovered.open(Hooks::default()))
}

/// Makes a data directory that holds what is imported, as a cluster of its own.
pub fn import(path: &Path, engine: EngineKind, import: Import<'_>) -> Result<Identity, Error> {
    let directory = Directory::lock(path)?;
    if directory.store().exists() {
        return Err(Error::Exists(path.to_owned()));
    }
    fill(&directory, engine, import)
}

/// As [`import`], in a directory that is there; what we or etcd kept in it goes. Nothing is changed if it
/// holds anything else, or is in use.
pub fn replace(path: &Path, engine: EngineKind, import: Import<'_>) -> Result<Identity, Error> {
    fill(&wipe::empty(path)?, engine, import)
}

fn fill(directory: &Directory, engine: EngineKind, import: Import<'_>) -> Result<Identity, Error> {
    let identity = Identity::new(engine);
    directory.create(&identity, |store| {
        engine.create(store, identity.salt, SEGMENT_MAX)?;
        let mut engine = engine.open(store, identity.salt, SEGMENT_MAX)?;
        let how = Load {
            repair: true,
            lenient: false,
        };
        engine.load(how, &mut |_| Ok(()))?;
        let side = Side::of(import.auth, import.alarms);
        let (frozen, ()) = import.store.freeze(|| ());
        // As if a group had made it: a log without its checkpoint cannot be taken for a whole one.
        engine.begin(1)?;
        let mut pieces = writer::Pieces::new(frozen, side, 1, identity.salt);
        while let Some(piece) = pieces.next() {
            engine.add(piece)?;
        }
        engine.finish()?;
        engine.close(2)
    })?;
    Ok(identity)
}

impl Identity {
    /// Of a store whose data begins now: nobody may take it for another.
    fn new(engine: EngineKind) -> Self {
        let id = || rand::random::<u64>() | 1;
        Self {
            format: FORMAT,
            engine,
            salt: id(),
            cluster_id: id(),
            member_id: id(),
        }
    }
}

fn load(directory: &Directory, config: &Config) -> Result<(Recovered, Box<dyn Engine>), Error> {
    let identity = match directory.identity()? {
        Some(identity) => identity,
        None => {
            let engine = config.engine.unwrap_or(EngineKind::Log);
            let identity = Identity::new(engine);
            directory.create(&identity, |store| engine.create(store, identity.salt, config.segment()))?;
            identity
        }
    };
    if let Some(asked) = config.engine.filter(|asked| *asked != identity.engine) {
        let (path, is) = (directory.path().to_owned(), identity.engine);
        return Err(Error::OtherEngine { path, is, asked });
    }
    let lenient = directory.may_have_lost();
    let how = Load { repair: true, lenient };
    let (mut recovered, engine) = recover(directory, identity, how, config.segment())?;
    if recovered.sizes.torn > 0 {
        tracing::warn!(
            bytes = recovered.sizes.torn,
            "the last group had been written in part, and was not answered: cut off"
        );
    }
    if lenient {
        recovered.identity.cluster_id = Identity::new(identity.engine).cluster_id;
        directory.change_identity(&recovered.identity)?;
        tracing::warn!(
            cluster_id = %format_args!("{:x}", recovered.identity.cluster_id),
            "the machine stopped before everything was synced: the store goes on as another cluster"
        );
    }
    Ok((recovered, engine))
}

fn recover(
    directory: &Directory,
    identity: Identity,
    how: Load,
    segment: u64,
) -> Result<(Recovered, Box<dyn Engine>), Error> {
    let path = directory.store();
    let failed = |e| Error::load(&path, e);
    let mut engine = identity.engine.open(&path, identity.salt, segment).map_err(failed)?;
    let mut replayer = Replayer::default();
    let sizes = engine.load(how, &mut |frame| replayer.take(frame)).map_err(failed)?;
    let (store, side, groups) = replayer.finish().map_err(|d| failed(d.into()))?;
    let recovered = Recovered {
        identity,
        store,
        side,
        groups,
        sizes,
    };
    Ok((recovered, engine))
}

/// Makes the store again, frame by frame.
#[derive(Default)]
struct Replayer {
    loading: Option<Loading>,
    replaying: Option<(Recovery, Side)>,
    /// Number of the last group.
    groups: u64,
}

/// A checkpoint that has not ended.
struct Loading {
    loader: Loader,
    side: Side,
    chunks: u64,
}

impl Replayer {
    fn take(&mut self, frame: Frame<'_>) -> Result<(), Damage> {
        match (frame.kind, &mut self.loading) {
            (Kind::Head, None) if self.replaying.is_none() => {
                let (loader, side) = Head::read(frame.payload)?;
                self.groups = frame.number;
                self.loading = Some(Loading {
                    loader,
                    side,
                    chunks: 0,
                });
            }
            (Kind::Chunk, Some(loading)) if frame.number == loading.chunks => {
                loading.chunks += 1;
                record::read_chunk(frame.payload, &mut loading.loader)?;
            }
            (Kind::End, Some(loading)) if frame.number == loading.chunks => {
                let Some(loading) = self.loading.take() else {
                    return Ok(());
                };
                self.replaying = Some((loading.loader.finish()?, loading.side));
            }
            // A log file may begin with groups that the checkpoint holds.
            (Kind::Group, None) if frame.number <= self.groups => {}
            (Kind::Group, None) if frame.number == self.groups + 1 => {
                let (store, side) = self.replaying.get_or_insert_with(|| (Recovery::empty(), Side::new()));
                Group::read(frame.payload)?.apply(store, side)?;
                self.groups = frame.number;
            }
            (Kind::Group, None) => {
                let (expected, found) = (self.groups + 1, frame.number);
                return Err(Damage::new(format!("group {found} where {expected} should be")));
            }
            _ => return Err(Damage::new("a frame is out of place")),
        }
        Ok(())
    }

    fn finish(self) -> Result<(Recovery, Side, u64), Damage> {
        if self.loading.is_some() {
            return Err(Damage::new("a checkpoint has no end"));
        }
        let (store, side) = self.replaying.unwrap_or_else(|| (Recovery::empty(), Side::new()));
        Ok((store, side, self.groups))
    }
}
