//! The shared libraries that a binary needs, read from its ELF headers, so that a binary of another architecture can be
//! packed, too. Libraries that are opened at run time by name are not seen; glibc 2.34 and later opens none for the files
//! and DNS that Isthmus resolves names with.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use goblin::elf::Elf;
use goblin::elf::header::{EM_AARCH64, EM_X86_64};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// The name that Go, OCI and Debian share.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The target of Rust.
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    fn of(machine: u16) -> Option<Self> {
        match machine {
            EM_X86_64 => Some(Self::Amd64),
            EM_AARCH64 => Some(Self::Arm64),
            _ => None,
        }
    }

    /// Where libraries are below a root, in the order of the loader of Debian and of Red Hat.
    fn directories(self) -> [String; 6] {
        let triplet = match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        };
        [
            format!("lib/{triplet}"),
            format!("usr/lib/{triplet}"),
            "lib64".to_owned(),
            "usr/lib64".to_owned(),
            "lib".to_owned(),
            "usr/lib".to_owned(),
        ]
    }
}

/// What the headers of a binary say.
pub struct Binary {
    pub bytes: Vec<u8>,
    pub arch: Arch,
    needs: Vec<String>,
    loader: Option<String>,
}

impl Binary {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read the binary {}", path.display()))?;
        let elf = Elf::parse(&bytes).with_context(|| format!("{} is not an ELF binary", path.display()))?;
        let Some(arch) = Arch::of(elf.header.e_machine) else {
            bail!(
                "{} is for ELF machine {}: images are made for amd64 and arm64",
                path.display(),
                elf.header.e_machine
            );
        };
        let needs = elf.libraries.iter().map(|name| (*name).to_owned()).collect();
        let loader = elf.interpreter.map(str::to_owned);
        Ok(Self {
            arch,
            needs,
            loader,
            bytes,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Library {
    /// The name that binaries ask for, such as `libc.so.6`.
    pub name: String,
    /// Where the loader finds it in the image, without leading slash.
    pub path: String,
    pub bytes: Vec<u8>,
}

/// All libraries that `binary` needs, and those that these need, from below `root`.
pub fn needed(binary: &Binary, root: &Path) -> Result<Vec<Library>> {
    let mut found = BTreeMap::new();
    let mut wanted: VecDeque<String> = binary.needs.iter().cloned().collect();
    if let Some(loader) = &binary.loader {
        // The kernel opens the loader by its path, so that the path in the image is given.
        let path = loader.trim_start_matches('/').to_owned();
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let (_, bytes, _) = find(
            &name,
            binary.arch,
            root,
            path.rsplit_once('/').map_or("", |(directory, _)| directory),
        )?;
        found.insert(name.clone(), Library { name, path, bytes });
    }
    while let Some(name) = wanted.pop_front() {
        if found.contains_key(&name) {
            continue;
        }
        let (path, bytes, needs) = find(&name, binary.arch, root, "")?;
        wanted.extend(needs);
        found.insert(name.clone(), Library { name, path, bytes });
    }
    Ok(found.into_values().collect())
}

/// The path below the root, the content, and the needs of the library `name`.
fn find(name: &str, arch: Arch, root: &Path, first: &str) -> Result<(String, Vec<u8>, Vec<String>)> {
    let mut seen: Vec<PathBuf> = Vec::new();
    let directories = arch.directories();
    for directory in std::iter::once(first)
        .filter(|first| !first.is_empty())
        .chain(directories.iter().map(String::as_str))
    {
        let file = root.join(directory).join(name);
        let Ok(bytes) = fs::read(&file) else {
            seen.push(file);
            continue;
        };
        let elf = Elf::parse(&bytes).with_context(|| format!("{} is not an ELF library", file.display()))?;
        if Arch::of(elf.header.e_machine) != Some(arch) {
            seen.push(file);
            continue;
        }
        let needs = elf.libraries.iter().map(|name| (*name).to_owned()).collect();
        return Ok((format!("{directory}/{name}"), bytes, needs));
    }
    let seen: Vec<_> = seen.iter().map(|path| path.display().to_string()).collect();
    bail!(
        "the library {name} for {} is in none of {}: name the directory that has it with --lib-root",
        arch.name(),
        seen.join(", ")
    )
}
