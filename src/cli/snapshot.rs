//! `snapshot`: the snapshot commands of etcdctl and etcdutl.

use super::data::one_of;
use super::flags::EndpointArgs;
use crate::auth::{self, AuthStore};
use crate::durable::{self, EngineKind, Import, Loaded, StoreRole};
use crate::kvstore::client::{self, EtcdClient};
use crate::kvstore::config::ClientConfig;
use crate::lease;
use crate::server;
use crate::snapshot::{Content, Member, Reader, Snapshot, Status};
use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes copied at once.
const PIECE: usize = 1 << 20;
/// The time that writers have to take over the leases of a store that was made of a replica's copy: that of mirrors' keys.
const DETACHED_LEASE_SECS: i64 = 900;

/// Commands of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save a snapshot of a running store, or of the data directory of a stopped one
    Save(SaveArgs),
    /// Make a data directory from a snapshot of this program or of etcd, with a new cluster id
    Restore(RestoreArgs),
    /// Make a store of its own, with a new cluster id, of the data directory of a stopped replica
    Detach(DetachArgs),
    /// Print hash, revision, number of keys and size of a snapshot
    Status(StatusArgs),
}

/// Flags of `snapshot save`.
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// File to write.
    file: PathBuf,
    /// Data directory of a stopped store, to save instead of a running store.
    #[arg(long, value_name = "DIR", conflicts_with = "endpoints")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    store: EndpointArgs,
    /// User name and password, for stores with password authentication.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
}

/// Flags of `snapshot restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// Snapshot file to read.
    file: PathBuf,
    /// Data directory to make.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Storage engine of the new data directory.
    #[arg(long, default_value = "log", value_parser = one_of(EngineKind::NAMES), value_name = "ENGINE")]
    data_engine: EngineKind,
    /// Accept a file without a hash, such as a copy of etcd's member/snap/db.
    #[arg(long)]
    skip_hash_check: bool,
}

/// Flags of `snapshot detach`.
#[derive(Args, Debug)]
pub struct DetachArgs {
    /// Data directory of a stopped replica, which is not changed.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Data directory to make.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Storage engine of the new data directory.
    #[arg(long, default_value = "log", value_parser = one_of(EngineKind::NAMES), value_name = "ENGINE")]
    data_engine: EngineKind,
}

/// Flags of `snapshot status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Snapshot file to read.
    file: PathBuf,
    /// Format of the output.
    #[arg(long, short, default_value = "simple", value_parser = ["simple", "table", "json"], value_name = "FORMAT")]
    write_out: String,
}

impl SnapshotCommand {
    /// Runs the command; returns the text to print.
    pub fn run(self) -> anyhow::Result<String> {
        match self {
            Self::Save(args) => args.run(),
            Self::Restore(args) => args.run(),
            Self::Detach(args) => args.run(),
            Self::Status(args) => args.run(),
        }
    }
}

impl SaveArgs {
    fn run(self) -> anyhow::Result<String> {
        let part = self.file.with_added_extension("part");
        let failed = || format!("cannot write {}", part.display());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut out = options.open(&part).with_context(failed)?;
        let saved = match &self.data_dir {
            Some(directory) => durable::read(directory)
                .map_err(Into::into)
                .and_then(|loaded| save_loaded(&loaded, &mut out, &part)),
            None => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(self.save_running(&mut out))
            }
        };
        let kept = saved.and_then(|()| {
            out.sync_all()?;
            Ok(fs::rename(&part, &self.file)?)
        });
        if kept.is_err() {
            let _ = fs::remove_file(&part);
        }
        kept?;
        Ok(format!("Snapshot saved at {}\n", self.file.display()))
    }

    async fn save_running(&self, out: &mut File) -> anyhow::Result<()> {
        let user = self.user.as_deref().map(|user| {
            let pair = user.split_once(':');
            pair.with_context(|| format!("--user={user} has no password: write NAME:PASSWORD"))
        });
        let (username, password) = user.transpose()?.unzip();
        let config = ClientConfig {
            username: username.map(str::to_owned),
            password: password.map(str::to_owned),
            ..self.store.config()
        };
        let client = EtcdClient::connect(&config).await;
        let client = client.map_err(remedy);
        let client = client.with_context(|| format!("cannot connect to {}", config.endpoints.join(", ")))?;
        let (mut sum, mut last) = (Sha256::new(), vec![]);
        let pieces = client.snapshot(|piece| {
            out.write_all(piece)?;
            // The last piece is the SHA-256 sum of all pieces before it.
            sum.update(&last);
            last = piece.to_vec();
            Ok(())
        });
        let urls = config.endpoints.join(", ");
        pieces
            .await
            .map_err(remedy)
            .with_context(|| format!("cannot save a snapshot of {urls}"))?;
        ensure!(
            sum.finalize()[..] == last[..],
            "the snapshot is damaged: its SHA-256 sum does not match; save it again"
        );
        Ok(())
    }
}

/// An error of the store, with the flags that help.
fn remedy(error: client::Error) -> anyhow::Error {
    let text = error.to_string();
    let remedy = match error {
        client::Error::NotPlain => "give --cacert, and --cert with --key if the store asks for them",
        client::Error::ConnectionClosed | client::Error::ConnectionBroken => {
            "does the store ask for a client certificate (--cert, --key), and does it speak TLS (--cacert)?"
        }
        _ if text.contains("user name is empty") => {
            "authentication is on: give --user=NAME:PASSWORD, or the certificate of a user (--cert, --key), with the role \
             root"
        }
        _ if error.is_permission_denied() => "a snapshot needs a user with the role root",
        _ if text.contains("CertificateRequired") => "the store asks for a client certificate: give --cert and --key",
        _ if text.contains("Connection refused") => "does a store run there?",
        client::Error::Endpoint(_) => "write https://HOST:PORT, http://HOST:PORT or HOST:PORT",
        _ if text.contains("authentication failed") => "compare the name and the password of --user",
        _ => return error.into(),
    };
    anyhow!("{text}; {remedy}")
}

/// Writes a snapshot of what a data directory holds, with its SHA-256. Leases that a replica knows by their keys only get
/// [`DETACHED_LEASE_SECS`]. `beside` is the path of `out`.
fn save_loaded(loaded: &Loaded, out: &mut File, beside: &Path) -> anyhow::Result<()> {
    let store = &loaded.store;
    let granted = store.leases().into_iter().map(|granted| (granted.id, granted.ttl_secs));
    let implied = store.implied_leases().into_iter().map(|id| (id, DETACHED_LEASE_SECS));
    let leases = granted.chain(implied).map(|(id, secs)| {
        let info = lease::LeaseInfo {
            granted_secs: secs,
            left_secs: secs,
        };
        (id, info)
    });
    let snapshot = Snapshot {
        versions: store.versions(0)?,
        leases: leases.collect(),
        auth: Arc::new(loaded.metadata.auth()),
        alarms: loaded.metadata.alarms.clone(),
        member: Member {
            id: loaded.identity.member_id,
            name: "default".to_owned(),
            peer_urls: loaded.metadata.peer_urls.clone(),
            client_urls: vec![],
            term: loaded.metadata.raft_term,
            index: store.revision().unsigned_abs(),
            version: server::SNAPSHOT_VERSION.to_owned(),
        },
    };
    let (mut file, mut left) = snapshot.write(Some(parent(beside)))?;
    let (mut sum, mut piece) = (Sha256::new(), vec![0; PIECE]);
    while left > 0 {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        sum.update(&piece[..n]);
        out.write_all(&piece[..n])?;
        left -= n as u64;
    }
    out.write_all(&sum.finalize())?;
    Ok(())
}

impl RestoreArgs {
    fn run(self) -> anyhow::Result<String> {
        let named = || format!("cannot restore {}", self.file.display());
        let reader = Reader::open(&self.file).with_context(named)?;
        if !reader.has_hash() && !self.skip_hash_check {
            bail!(
                "cannot verify {}: the file ends without a SHA-256 sum, so it may be incomplete; use --skip-hash-check if it \
                 is a copy of etcd's member/snap/db",
                self.file.display()
            );
        }
        let content = Content::read(&reader).with_context(named)?;
        let store = content.store().with_context(named)?;
        let import = Import {
            store: &store,
            auth: &content.auth(),
            alarms: vec![],
        };
        let identity = durable::import(&self.data_dir, self.data_engine, import)?;
        Ok(format!(
            "Snapshot restored to {}: revision {}, {} keys, cluster id {:x}\n",
            self.data_dir.display(),
            store.revision(),
            store.stats().keys,
            identity.cluster_id,
        ))
    }
}

impl DetachArgs {
    fn run(self) -> anyhow::Result<String> {
        let from = self.data_dir.display();
        let loaded = durable::read(&self.data_dir)?;
        ensure!(
            loaded.identity.role == StoreRole::Follower,
            "{from} has a store of its own already: start `etcd` or `serve` with it"
        );
        ensure!(
            !loaded.is_void && loaded.store.revision() > 1,
            "{from} has no complete copy: the replica that wrote it was loading, and its log says from whom"
        );
        // A snapshot has everything that a store of its own needs, and leases, which the copy knows by its keys only.
        let made = tempfile::Builder::new()
            .prefix(".detach-")
            .tempdir_in(parent(&self.to))?;
        let path = made.path().join("snapshot.db");
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        save_loaded(&loaded, &mut file, &path)?;
        drop((file, loaded));
        let store = Content::read(&Reader::open(&path)?)?.store()?;
        let auth = AuthStore::new(auth::Config::default())?.state();
        let import = Import {
            store: &store,
            auth: &auth,
            alarms: vec![],
        };
        let identity = durable::import(&self.to, self.data_engine, import)?;
        Ok(format!(
            "Detached to {}: revision {}, {} keys, {} leases of {} s, no users, cluster id {:x}\n",
            self.to.display(),
            store.revision(),
            store.stats().keys,
            store.leases().len(),
            DETACHED_LEASE_SECS,
            identity.cluster_id,
        ))
    }
}

/// The directory that a path is in.
fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

impl StatusArgs {
    fn run(self) -> anyhow::Result<String> {
        let read = Reader::open(&self.file)
            .map_err(Into::into)
            .and_then(|r| Status::read(&r));
        let status = read.with_context(|| format!("cannot read {}", self.file.display()))?;
        if self.write_out == "json" {
            return Ok(serde_json::to_string(&status)? + "\n");
        }
        let columns = [
            ("HASH", format!("{:x}", status.hash)),
            ("REVISION", status.revision.to_string()),
            ("TOTAL KEYS", status.total_key.to_string()),
            ("TOTAL SIZE", size(status.total_size)),
            ("STORAGE VERSION", status.version),
        ];
        if self.write_out == "simple" {
            let values: Vec<_> = columns.into_iter().map(|(_, value)| value).collect();
            return Ok(values.join(", ") + "\n");
        }
        Ok(table(&columns))
    }
}

/// A number of bytes in the format of etcdutl.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value < 10.0) {
        (0, _) => format!("{bytes} B"),
        (_, true) => format!("{value:.1} {}", UNITS[unit]),
        (_, false) => format!("{value:.0} {}", UNITS[unit]),
    }
}

fn table(columns: &[(&str, String)]) -> String {
    let widths = columns.iter().map(|(name, value)| name.len().max(value.len()));
    let widths: Vec<_> = widths.collect();
    let line: String = widths.iter().map(|w| format!("+{:-<1$}", "", w + 2)).collect();
    let row = |cells: Vec<&str>| -> String {
        let cells = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("| {cell:>width$} "));
        cells.collect()
    };
    let names = row(columns.iter().map(|(name, _)| *name).collect());
    let values = row(columns.iter().map(|(_, value)| &**value).collect());
    format!("{line}+\n{names}|\n{line}+\n{values}|\n{line}+\n")
}
