//! The Debian packages that the libraries of an image come from: their versions for the SBOM and for scanners, and their
//! copyright files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::libraries::{Arch, Library};

pub struct Package {
    pub name: &'static str,
    /// `None` where the root has no database of packages.
    pub version: Option<String>,
    /// The stanza of the database, as scanners read it from an image.
    pub stanza: Option<String>,
    pub copyright: String,
    pub libraries: Vec<String>,
}

/// Which package a library belongs to, by the beginning of its name.
const OWNERS: [(&str, &str); 4] = [
    ("libc.so", "libc6"),
    ("libm.so", "libc6"),
    ("ld-linux", "libc6"),
    ("libgcc_s", "libgcc-s1"),
];

/// The packages of `libraries`, which were found below `root`.
pub fn of(libraries: &[Library], arch: Arch, root: &Path) -> Result<Vec<Package>> {
    let status = fs::read_to_string(root.join("var/lib/dpkg/status")).unwrap_or_default();
    let mut packages: Vec<Package> = Vec::new();
    for library in libraries {
        let Some((_, name)) = OWNERS.iter().find(|(prefix, _)| library.name.starts_with(prefix)) else {
            bail!(
                "the licence of {} is not known: add the library to OWNERS in deploy/image/src/packages.rs",
                library.name
            );
        };
        if let Some(package) = packages.iter_mut().find(|package| package.name == *name) {
            package.libraries.push(library.name.clone());
            continue;
        }
        let stanza = stanza(&status, name, arch);
        packages.push(Package {
            name,
            version: stanza
                .as_deref()
                .and_then(|stanza| field(stanza, "Version"))
                .map(str::to_owned),
            stanza,
            copyright: copyright(name, root)?,
            libraries: vec![library.name.clone()],
        });
    }
    packages.sort_by_key(|package| package.name);
    Ok(packages)
}

/// The fields that identify a package, in a fixed order.
fn stanza(status: &str, name: &str, arch: Arch) -> Option<String> {
    let found = status
        .split("\n\n")
        .find(|stanza| field(stanza, "Package") == Some(name) && field(stanza, "Architecture") == Some(arch.name()))?;
    let fields = [
        "Package",
        "Status",
        "Architecture",
        "Source",
        "Version",
        "Maintainer",
        "Homepage",
    ];
    let lines = fields
        .iter()
        .filter_map(|key| field(found, key).map(|value| format!("{key}: {value}\n")));
    Some(lines.collect())
}

fn field<'a>(stanza: &'a str, key: &str) -> Option<&'a str> {
    stanza
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
}

/// A root that holds only libraries has no copyright files. Those of this machine then serve: they are the same for all
/// architectures.
fn copyright(name: &str, root: &Path) -> Result<String> {
    let relative = format!("usr/share/doc/{name}/copyright");
    let paths = [root.join(&relative), PathBuf::from("/").join(&relative)];
    match paths.iter().find_map(|path| fs::read_to_string(path).ok()) {
        Some(text) => Ok(text),
        None => bail!(
            "the copyright file of the package {name} is at none of {}: install the package, or copy the file there",
            paths.map(|path| path.display().to_string()).join(", ")
        ),
    }
}
