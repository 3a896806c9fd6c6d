//! Counts the instructions of the store's own operations under valgrind's callgrind, and compares them with the counts of
//! `benches/instructions.json`. Instructions, unlike time, are the same on a busy machine.
//!
//! `isthmus-guard FILE` compares, `isthmus-guard FILE --update` writes the file, and `isthmus-guard --run` is the program
//! that callgrind runs.

mod cases;

/// The store and what it uses, compiled into this crate from Isthmus' sources.
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the guard uses a part of the store"
)]
#[path = "../../../src"]
mod sources {
    pub mod mvcc;
    pub mod util {
        pub mod interval;
    }
}

use anyhow::{Context, bail};
use isthmus_guard::counts::{self, Counts};
use sources::{mvcc, util};
use std::path::{Path, PathBuf};
use std::process::Command;

/// That of the shipped binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The share by which a count may exceed the committed one. Counts of two runs differ by less than 0.5 %: maps are seeded at
/// random, and compilers of another distribution compile the allocator differently.
const TOLERANCE: f64 = 0.05;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--run"] => {
            cases::run();
            Ok(())
        }
        [file] => compare(Path::new(file)),
        [file, "--update"] => update(Path::new(file)),
        _ => bail!("usage: isthmus-guard FILE [--update]"),
    }
}

fn compare(file: &Path) -> anyhow::Result<()> {
    let committed = Counts::read(file)?;
    let measured = measure()?;
    let table = counts::table(&committed, &measured, TOLERANCE);
    println!("{}", table.text);
    if let Some(missing) = table.missing {
        println!("{missing}");
    }
    if table.worse.is_empty() {
        return Ok(());
    }
    bail!(
        "the store executes more instructions than before: {}. If the reason is a good one, run `make guard UPDATE=1` and say \
         the reason in the commit",
        table.worse.join("; ")
    )
}

fn update(file: &Path) -> anyhow::Result<()> {
    let mut counts = Counts::read(file)?;
    let measured = measure()?;
    println!("{}", counts::table(&counts, &measured, TOLERANCE).text);
    counts.replace(measured);
    counts.write(file)
}

/// Runs all cases under callgrind. Returns the instructions of one operation of each.
fn measure() -> anyhow::Result<Vec<(String, u64)>> {
    let dir = tempfile::tempdir().context("cannot create a directory for callgrind's output")?;
    let out: PathBuf = dir.path().join("out");
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--combine-dumps=no"])
        .args([
            format!("--toggle-collect=*{}*", cases::COUNTED),
            format!("--dump-before=*{}*", cases::WRITTEN),
            format!("--callgrind-out-file={}", out.display()),
        ])
        .arg(std::env::current_exe().context("cannot find this program")?)
        .arg("--run")
        // The allocator returns memory by time, which would make counts differ.
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .status()
        .context("cannot run valgrind, which counts instructions: install it with `GUARD=1 ./.ci/setup`")?;
    if !status.success() {
        bail!("the program under valgrind failed: {status}");
    }
    let dump = |(at, case): (usize, &cases::Case)| {
        let file = dir.path().join(format!("out.{}", at + 1));
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("callgrind has not written {}", file.display()))?;
        let total = counts::total(&text).with_context(|| format!("{} has no totals", file.display()))?;
        Ok((case.name.to_owned(), total / case.operations))
    };
    cases::ALL.iter().enumerate().map(dump).collect()
}
