//! The crates whose code is in the binary, from `cargo metadata` and `Cargo.lock`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind};

use crate::libraries::Arch;

pub struct Crate {
    pub name: String,
    pub version: String,
    pub licence: String,
    pub authors: Vec<String>,
    pub description: Option<String>,
    pub repository: Option<String>,
    pub directory: PathBuf,
    /// SHA-256 of the package in the registry; `None` for Isthmus itself.
    pub checksum: Option<String>,
    /// Package URLs of the crates that this crate uses.
    pub uses: Vec<String>,
}

impl Crate {
    /// The package URL, which identifies a crate in an SBOM.
    pub fn purl(&self) -> String {
        purl(&self.name, &self.version)
    }
}

pub struct Crates {
    pub root: Crate,
    /// All but the root, by name and version.
    pub dependencies: Vec<Crate>,
}

/// The crates that are linked into the binary of `manifest` on `arch`. Build scripts and procedural macros run while
/// building and are not part of it.
pub fn linked(manifest: &Path, arch: Arch) -> Result<Crates> {
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(["--locked".to_owned(), format!("--filter-platform={}", arch.target())])
        .exec()
        .with_context(|| format!("cannot read the dependencies of {}", manifest.display()))?;
    let root = metadata
        .root_package()
        .context("the manifest has no package of its own")?
        .id
        .clone();
    let uses = reachable(&metadata, &root);
    let lock = metadata.workspace_root.join("Cargo.lock");
    let checksums = checksums(&fs::read_to_string(&lock).with_context(|| format!("cannot read {lock}"))?);
    let mut dependencies: Vec<Crate> = Vec::new();
    for (id, used) in &uses {
        if *id != &root {
            dependencies.push(describe(&metadata, id, used, &checksums));
        }
    }
    dependencies.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(Crates {
        root: describe(&metadata, &root, &uses[&root], &checksums),
        dependencies,
    })
}

/// Each linked package with the linked packages that it uses.
fn reachable<'a>(metadata: &'a Metadata, root: &'a PackageId) -> BTreeMap<&'a PackageId, BTreeSet<&'a PackageId>> {
    let nodes: BTreeMap<_, _> = metadata
        .resolve
        .iter()
        .flat_map(|resolve| &resolve.nodes)
        .map(|node| (&node.id, node))
        .collect();
    let mut found = BTreeMap::new();
    let mut wanted = vec![root];
    while let Some(id) = wanted.pop() {
        if found.contains_key(id) {
            continue;
        }
        let normal = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let normal = normal.filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
        let uses: BTreeSet<_> = normal
            .map(|dep| &dep.pkg)
            .filter(|id| !is_macro(&metadata[id]))
            .collect();
        wanted.extend(&uses);
        found.insert(id, uses);
    }
    found
}

fn is_macro(package: &Package) -> bool {
    package
        .targets
        .iter()
        .any(|target| target.kind.contains(&TargetKind::ProcMacro))
}

fn describe(
    metadata: &Metadata,
    id: &PackageId,
    uses: &BTreeSet<&PackageId>,
    checksums: &BTreeMap<(String, String), String>,
) -> Crate {
    let package = &metadata[id];
    let (name, version) = (package.name.to_string(), package.version.to_string());
    let mut uses: Vec<_> = uses
        .iter()
        .map(|id| &metadata[*id])
        .map(|p| purl(&p.name, &p.version.to_string()))
        .collect();
    uses.sort();
    Crate {
        // Old manifests separate alternatives with a slash, which SPDX does not know.
        licence: package
            .license
            .as_deref()
            .unwrap_or("NOASSERTION")
            .replace('/', " OR ")
            .replace("  ", " "),
        authors: package.authors.clone(),
        description: package
            .description
            .as_ref()
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")),
        repository: package.repository.clone(),
        directory: package
            .manifest_path
            .parent()
            .map_or_else(PathBuf::new, |path| path.as_std_path().to_owned()),
        checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
        uses,
        name,
        version,
    }
}

fn purl(name: &str, version: &str) -> String {
    // A plus in a version, as in 1.0.0+2, has a meaning of its own in a URL.
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

/// The checksums in the text of a `Cargo.lock`, whose format is generated and fixed.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |stanza: &str, key: &str| {
        let found = stanza
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
        found.map(str::to_owned)
    };
    let stanzas = lock.split("[[package]]").skip(1);
    stanzas
        .filter_map(|s| Some(((value(s, "name")?, value(s, "version")?), value(s, "checksum")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_by_name_and_version() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"own\"\n\
                    version = \"0.1.0\"\n";
        let found = checksums(lock);
        assert_eq!(found.get(&("a".to_owned(), "1.0.0".to_owned())), Some(&"ab".to_owned()));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_plus_in_a_version_is_escaped() {
        assert_eq!(
            purl("zstd-sys", "2.0.16+zstd.1.5.7"),
            "pkg:cargo/zstd-sys@2.0.16%2Bzstd.1.5.7"
        );
    }
}
