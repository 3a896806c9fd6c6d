//! Flags of the data directory, shared by `etcd` and `serve`; `check` and `dump`, which read one.

use super::flags::duration;
use super::variables::Variables;
use crate::durable::{self, EngineKind, Mode, OnCorruption, StoreRole};
use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

pub const VARIABLES: &[Variables] = &[
    Variables {
        flag: "data_dir",
        etcd: "ETCD_DATA_DIR",
        serve: "CILIUM_DATA_DIR",
    },
    Variables {
        flag: "durability",
        etcd: "ETCD_DURABILITY",
        serve: "CILIUM_DURABILITY",
    },
    Variables {
        flag: "durability_interval",
        etcd: "ETCD_DURABILITY_INTERVAL",
        serve: "CILIUM_DURABILITY_INTERVAL",
    },
    Variables {
        flag: "data_engine",
        etcd: "ETCD_DATA_ENGINE",
        serve: "CILIUM_DATA_ENGINE",
    },
    Variables {
        flag: "on_corruption",
        etcd: "ETCD_ON_CORRUPTION",
        serve: "CILIUM_ON_CORRUPTION",
    },
    Variables {
        flag: "checkpoint_bytes",
        etcd: "ETCD_CHECKPOINT_BYTES",
        serve: "CILIUM_CHECKPOINT_BYTES",
    },
];

const MODES: &[(&str, Mode)] = &[("sync", Mode::Sync), ("interval", Mode::Interval), ("none", Mode::None)];
const ON_CORRUPTION: &[(&str, OnCorruption)] = &[("rebuild", OnCorruption::Rebuild), ("fail", OnCorruption::Fail)];

/// The data directory, and how data is written to it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data directory")]
pub struct DataArgs {
    /// Directory of the store's data. Without it, data is kept in memory only and every start makes a new cluster id.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Moment at which a write is acknowledged: sync after fsync; interval after handing it to the kernel, with an
    /// fsync every --durability-interval; none after handing it to the kernel, without fsync. With interval and none,
    /// a crash of the machine may lose the last writes, and the store continues with a new cluster id.
    #[arg(long, default_value = "sync", value_parser = one_of(MODES), value_name = "MODE")]
    durability: Mode,
    /// Interval between fsyncs with --durability=interval.
    #[arg(long, default_value = "100ms", value_parser = duration, value_name = "DURATION")]
    durability_interval: Duration,
    /// Storage engine. Defaults to the directory's current engine, or `log` for a new directory.
    #[arg(long, value_parser = one_of(EngineKind::NAMES), value_name = "ENGINE")]
    data_engine: Option<EngineKind>,
    /// Reaction to damaged data at start: rebuild moves it to damaged-DATE and starts an empty store with a new
    /// cluster id, fail exits with an error.
    #[arg(long, default_value = "rebuild", value_parser = one_of(ON_CORRUPTION), value_name = "REACTION")]
    on_corruption: OnCorruption,
    /// Size of the log, in bytes, from which a checkpoint is written, if it is also at least half the size of the last
    /// checkpoint. Smaller values shorten restarts and write more.
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    checkpoint_bytes: u64,
}

/// Flags of `check` and `dump`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Data directory of a store that is not running.
    data_dir: PathBuf,
}

/// A parser of the names of `names` into their values.
pub fn one_of<T: Copy + Send + Sync>(names: &'static [(&str, T)]) -> impl TypedValueParser<Value = T> {
    let known = PossibleValuesParser::new(names.iter().map(|(name, _)| *name));
    known.map(|given| names.iter().find(|(name, _)| *name == given).expect("a known name").1)
}

impl DataArgs {
    /// Configures the data directory; `None` without one.
    pub fn config(&self) -> Option<durable::Config> {
        let directory = self.data_dir.clone()?;
        Some(durable::Config {
            directory,
            engine: self.data_engine,
            mode: self.durability,
            interval: self.durability_interval,
            on_corruption: self.on_corruption,
            checkpoint_bytes: self.checkpoint_bytes,
            follows: None,
        })
    }
}

impl InspectArgs {
    /// Verifies every record; returns a report.
    pub fn check(&self) -> anyhow::Result<String> {
        let loaded = durable::read(&self.data_dir)?;
        let (stats, auth) = (loaded.store.stats(), loaded.metadata.auth());
        let identity = loaded.identity;
        let mut text = format!(
            "{}: no damage found\n\
             format {}, engine {}, cluster id {:x}{}, member id {:x}\n\
             revision {}, compact revision {}, {} keys, {} leases, {} users, {} roles, {} alarms\n\
             checkpoint of {} bytes; log of {} bytes; {} groups of writes in total\n",
            self.data_dir.display(),
            identity.format,
            identity.engine,
            identity.cluster_id,
            match identity.role {
                StoreRole::Own => "",
                StoreRole::Follower => " (a replica of this cluster)",
            },
            identity.member_id,
            stats.revision,
            stats.compacted,
            stats.keys,
            loaded.store.leases().len(),
            auth.users.len(),
            auth.roles.len(),
            loaded.metadata.alarms.len(),
            loaded.sizes.checkpoint,
            loaded.sizes.log,
            loaded.groups,
        );
        if loaded.sizes.torn > 0 {
            text.push_str(&format!(
                "the last {} bytes are an incomplete group of writes that was never acknowledged; the next start removes \
                 them\n",
                loaded.sizes.torn
            ));
        }
        Ok(text)
    }

    /// Prints every change that compaction has left, oldest first, as JSON lines.
    pub fn dump(&self) -> anyhow::Result<()> {
        let loaded = durable::read(&self.data_dir)?;
        let versions = loaded.store.versions(0)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for version in versions.all {
            let fields = version.kv.fields();
            let mut line = json!({
                "revision": version.main,
                "sub": version.sub,
                "type": if version.tombstone { "delete" } else { "put" },
            });
            text(&mut line, "key", fields.key);
            if !version.tombstone {
                text(&mut line, "value", fields.value);
                line["create_revision"] = fields.create_revision.into();
                line["version"] = fields.version.into();
                line["lease"] = format!("{:x}", fields.lease).into();
            }
            let written = serde_json::to_writer(&mut out, &line).map_err(Into::into);
            match written.and_then(|()| out.write_all(b"\n")) {
                // The reader, such as `head`, has closed the pipe.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("cannot write to standard output")?,
            }
        }
        match out.flush() {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed.context("cannot write to standard output"),
        }
    }
}

/// Sets the field `name` to text, or `<name>_base64` where `bytes` are no UTF-8.
fn text(line: &mut Json, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line[name] = text.into(),
        Err(_) => line[format!("{name}_base64")] = BASE64_STANDARD.encode(bytes).into(),
    }
}
