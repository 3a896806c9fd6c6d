//! Flags of the data directory, the same for `etcd` and `serve`, and the tools that look into one.

use super::flags::duration;
use crate::durable::{self, EngineKind, Mode, OnCorruption};
use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Command};
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Name, and the variables of `etcd` and of `serve`.
const VARIABLES: &[(&str, &str, &str)] = &[
    ("data_dir", "ETCD_DATA_DIR", "CILIUM_DATA_DIR"),
    ("durability", "ETCD_DURABILITY", "CILIUM_DURABILITY"),
    (
        "durability_interval",
        "ETCD_DURABILITY_INTERVAL",
        "CILIUM_DURABILITY_INTERVAL",
    ),
    ("data_engine", "ETCD_DATA_ENGINE", "CILIUM_DATA_ENGINE"),
    ("on_corruption", "ETCD_ON_CORRUPTION", "CILIUM_ON_CORRUPTION"),
    ("checkpoint_bytes", "ETCD_CHECKPOINT_BYTES", "CILIUM_CHECKPOINT_BYTES"),
];

const MODES: &[(&str, Mode)] = &[("sync", Mode::Sync), ("interval", Mode::Interval), ("none", Mode::None)];
const ON_CORRUPTION: &[(&str, OnCorruption)] = &[("rebuild", OnCorruption::Rebuild), ("fail", OnCorruption::Fail)];

/// Where and how data is kept.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Where data is kept; without, it is in memory only, and every start is another cluster
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// When a write is answered: once it is on the disk (sync), or with the kernel, which then syncs at an
    /// interval, or when it likes (none)
    #[arg(long, default_value = "sync", value_parser = one_of(MODES))]
    durability: Mode,
    /// How often to sync with --durability=interval
    #[arg(long, default_value = "100ms", value_parser = duration)]
    durability_interval: Duration,
    /// What keeps the data; by default what did so far, and the log in a new directory
    #[arg(long, value_parser = one_of(EngineKind::NAMES))]
    data_engine: Option<EngineKind>,
    /// With damaged data: set it aside and begin anew as another cluster (rebuild), or end (fail)
    #[arg(long, default_value = "rebuild", value_parser = one_of(ON_CORRUPTION))]
    on_corruption: OnCorruption,
    /// A checkpoint is written once the log has this many bytes, and half of what the last checkpoint has
    #[arg(long, default_value_t = 64 << 20)]
    checkpoint_bytes: u64,
}

/// Flags of `check` and `dump`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The data directory, of a store that does not run
    data_dir: PathBuf,
}

/// Takes one of the names, for what it stands for.
pub fn one_of<T: Copy + Send + Sync>(names: &'static [(&str, T)]) -> impl TypedValueParser<Value = T> {
    let known = PossibleValuesParser::new(names.iter().map(|(name, _)| *name));
    known.map(|given| names.iter().find(|(name, _)| *name == given).expect("one of them").1)
}

impl DataArgs {
    /// How to keep data, if at all; `no_sync` is etcd's --unsafe-no-fsync.
    pub fn config(&self, no_sync: bool) -> Option<durable::Config> {
        let directory = self.data_dir.clone()?;
        Some(durable::Config {
            directory,
            engine: self.data_engine,
            mode: if no_sync { Mode::None } else { self.durability },
            interval: self.durability_interval,
            on_corruption: self.on_corruption,
            checkpoint_bytes: self.checkpoint_bytes,
        })
    }
}

/// Gives the flags their variables, which differ between the subcommands.
pub fn with_variables(command: Command) -> Command {
    let set = |command: Command, name: &str, of: fn(&(&str, &'static str, &'static str)) -> &'static str| {
        command.mut_subcommand(name, |sub| {
            VARIABLES.iter().fold(sub, |sub, variable| {
                sub.mut_arg(variable.0, |arg| arg.env(of(variable)))
            })
        })
    };
    set(set(command, "etcd", |v| v.1), "serve", |v| v.2)
}

impl InspectArgs {
    /// Verifies every record; returns what was found.
    pub fn check(&self) -> anyhow::Result<String> {
        let loaded = durable::read(&self.data_dir)?;
        let (stats, auth) = (loaded.store.stats(), loaded.side.auth());
        let identity = loaded.identity;
        let mut text = format!(
            "{}: good\n\
             format {}, engine {}, cluster id {:x}, member id {:x}\n\
             revision {}, compact revision {}, {} keys, {} leases, {} users, {} roles, {} alarms\n\
             checkpoint of {} bytes, {} groups, of which the log holds {} bytes\n",
            self.data_dir.display(),
            identity.format,
            identity.engine,
            identity.cluster_id,
            identity.member_id,
            stats.revision,
            stats.compacted,
            stats.keys,
            loaded.store.leases().len(),
            auth.users.len(),
            auth.roles.len(),
            loaded.side.alarms.len(),
            loaded.sizes.checkpoint,
            loaded.groups,
            loaded.sizes.log,
        );
        if loaded.sizes.torn > 0 {
            text.push_str(&format!(
                "the last {} bytes are a group that was written in part and not answered: the next start cuts them off\n",
                loaded.sizes.torn
            ));
        }
        Ok(text)
    }

    /// Prints every change kept, oldest first, as JSON lines.
    pub fn dump(&self) -> anyhow::Result<()> {
        let loaded = durable::read(&self.data_dir)?;
        let history = loaded.store.history(0)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for change in history.changes {
            let fields = change.kv.fields();
            let mut line = json!({
                "revision": change.main,
                "sub": change.sub,
                "type": if change.tombstone { "delete" } else { "put" },
            });
            text(&mut line, "key", fields.key);
            if !change.tombstone {
                text(&mut line, "value", fields.value);
                line["create_revision"] = fields.create_revision.into();
                line["version"] = fields.version.into();
                line["lease"] = format!("{:x}", fields.lease).into();
            }
            let written = serde_json::to_writer(&mut out, &line).map_err(Into::into);
            match written.and_then(|()| out.write_all(b"\n")) {
                // Whoever reads has seen enough.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("cannot print")?,
            }
        }
        match out.flush() {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed.context("cannot print"),
        }
    }
}

/// Sets a field to bytes: as they are if they are text, else in base64 under a name that says so.
fn text(line: &mut Json, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line[name] = text.into(),
        Err(_) => line[format!("{name}_base64")] = BASE64_STANDARD.encode(bytes).into(),
    }
}
