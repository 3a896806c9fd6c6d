//! Packs the container image of Isthmus from a built binary, without a container engine, a registry, root or network.
//! The same inputs give the same archive, byte for byte.

mod contents;
mod crates;
mod layout;
mod libraries;
mod licences;
mod notes;
mod packages;
mod sbom;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;

use contents::{Contents, Source};
use libraries::Binary;

#[derive(Parser)]
#[command(
    name = "isthmus-image",
    about = "Packs the container image of Isthmus without a container engine."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the image as an OCI archive. With several binaries, one for each architecture, the archive has an index.
    Pack(Pack),
    /// Write the files of the image into an empty directory, as the Dockerfile does.
    Tree(Tree),
    /// Write the software bill of materials of a binary, as CycloneDX JSON.
    Sbom(Text),
    /// Write the licences of everything in the image.
    Licences(Text),
    /// Print the section of the changelog for a version.
    Notes(Notes),
}

#[derive(Args)]
struct Inputs {
    /// Binary to pack. Its ELF header tells the architecture. May be repeated, once for each architecture.
    #[arg(long, required = true)]
    binary: Vec<PathBuf>,
    /// Directory below which the shared libraries of an architecture are, as `ARCH=DIR`; for example
    /// `arm64=target/arm64-root`. Defaults to `/`.
    #[arg(long, value_name = "ARCH=DIR", value_parser = pair)]
    lib_root: Vec<(String, String)>,
    /// Manifest of the crate that the binary was built from.
    #[arg(long, default_value = "Cargo.toml")]
    manifest: PathBuf,
    /// Time of creation in seconds since 1970, which all files get as well. Set the time of the commit, so that a later
    /// build of the same commit gives the same image.
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    epoch: i64,
}

impl Inputs {
    fn created(&self) -> Result<Timestamp> {
        Timestamp::from_second(self.epoch)
            .with_context(|| format!("{} is not a number of seconds since 1970", self.epoch))
    }

    fn gather(&self) -> Result<Vec<Contents>> {
        let mut images: Vec<Contents> = Vec::new();
        for binary in &self.binary {
            let arch = Binary::read(binary)?.arch;
            if images.iter().any(|image| image.arch == arch) {
                bail!("two binaries are for {}: give one for each architecture", arch.name());
            }
            let root = self
                .lib_root
                .iter()
                .find(|(name, _)| name == arch.name())
                .map_or("/", |(_, root)| root);
            images.push(Contents::gather(&Source {
                binary: binary.clone(),
                root: root.into(),
                manifest: self.manifest.clone(),
                created: self.created()?,
            })?);
        }
        images.sort_by_key(|image| image.arch);
        Ok(images)
    }

    fn single(&self) -> Result<Contents> {
        match <[Contents; 1]>::try_from(self.gather()?) {
            Ok([image]) => Ok(image),
            Err(_) => bail!("this subcommand takes one --binary"),
        }
    }
}

#[derive(Args)]
struct Pack {
    #[command(flatten)]
    inputs: Inputs,
    /// Name of the image. A name without a registry gets `docker.io/library/` in front, as everywhere. Defaults to
    /// `isthmus` with the version as the tag.
    #[arg(long)]
    tag: Option<String>,
    /// Label and annotation of the image, as `KEY=VALUE`; for example
    /// `org.opencontainers.image.revision=$(git rev-parse HEAD)`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// File to write the archive to.
    #[arg(long)]
    output: PathBuf,
}

#[derive(Args)]
struct Tree {
    #[command(flatten)]
    inputs: Inputs,
    /// Directory to write the files to. It must be empty or missing.
    #[arg(long)]
    output: PathBuf,
}

#[derive(Args)]
struct Text {
    #[command(flatten)]
    inputs: Inputs,
    /// File to write.
    #[arg(long)]
    output: PathBuf,
}

#[derive(Args)]
struct Notes {
    /// Version, such as 0.2.0.
    version: String,
    /// Changelog to read.
    #[arg(long, default_value = "CHANGELOG.md")]
    changelog: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` has no `=` between key and value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Pack(pack) => pack_image(&pack),
        Command::Tree(tree) => tree.inputs.single()?.tree.write_directory(&tree.output),
        Command::Sbom(text) => write_text(&text.output, &text.inputs.single()?.sbom),
        Command::Licences(text) => write_text(&text.output, &text.inputs.single()?.licences),
        Command::Notes(notes) => {
            let changelog = fs::read_to_string(&notes.changelog)
                .with_context(|| format!("cannot read the changelog {}", notes.changelog.display()))?;
            println!("{}", notes::cut(&changelog, &notes.version)?);
            Ok(())
        }
    }
}

fn pack_image(pack: &Pack) -> Result<()> {
    let images = pack.inputs.gather()?;
    let version = images
        .first()
        .map(|image| image.version.clone())
        .context("no binary was given")?;
    let created = pack.inputs.created()?;
    let mut labels: BTreeMap<String, String> = [
        ("created", created.to_string()),
        (
            "description",
            "etcd-v3 store, publisher and KVStoreMesh of a Cilium Cluster Mesh in one binary".to_owned(),
        ),
        ("licenses", "Apache-2.0".to_owned()),
        ("title", "Isthmus".to_owned()),
        ("version", version.clone()),
    ]
    .into_iter()
    .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
    .collect();
    labels.extend(pack.label.iter().cloned());
    let tag = pack.tag.clone().unwrap_or_else(|| format!("isthmus:{version}"));
    let about = layout::About {
        reference: full_name(&tag),
        labels,
        created,
    };
    if let Some(parent) = pack.output.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let written = layout::write(&images, &about, &pack.output)?;
    let names: Vec<_> = images.iter().map(|image| image.arch.name()).collect();
    println!(
        "{}: {} for {}, {}, layers of {:.1} MB ({:.1} MB unpacked)",
        pack.output.display(),
        about.reference,
        names.join(" and "),
        written.digest,
        written.compressed as f64 / 1e6,
        written.unpacked as f64 / 1e6,
    );
    Ok(())
}

/// The name with registry and tag, as container runtimes complete it.
fn full_name(tag: &str) -> String {
    let name = match tag.rsplit('/').next() {
        Some(last) if last.contains(':') => tag.to_owned(),
        _ => format!("{tag}:latest"),
    };
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name,
        Some(_) => format!("docker.io/{name}"),
    }
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
