//! What is in the image: the list that Cilium's chart, its CLI and its agents rely on. docs/image.md explains each file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use jiff::Timestamp;

use crate::libraries::{Arch, Binary, Library, needed};
use crate::packages::Package;
use crate::tree::{NONROOT, Tree};
use crate::{crates, licences, packages, sbom};

/// The client configuration of the pod's own etcd, which publisher and mirror read unless the chart mounts another.
const ETCD_CONFIG: &str = "\
endpoints:
- https://127.0.0.1:2379
trusted-ca-file: /var/lib/cilium/etcd-secrets/ca.crt
key-file: /var/lib/cilium/etcd-secrets/tls.key
cert-file: /var/lib/cilium/etcd-secrets/tls.crt
";

pub struct Source {
    pub binary: PathBuf,
    /// Where the shared libraries are.
    pub root: PathBuf,
    pub manifest: PathBuf,
    pub created: Timestamp,
}

/// Everything that is known about the image of one architecture.
pub struct Contents {
    pub arch: Arch,
    pub tree: Tree,
    pub version: String,
    pub sbom: String,
    pub licences: String,
}

impl Contents {
    pub fn gather(source: &Source) -> Result<Self> {
        let binary = Binary::read(&source.binary)?;
        let arch = binary.arch;
        let libraries = needed(&binary, &source.root)?;
        let packages = packages::of(&libraries, arch, &source.root)?;
        let crates = crates::linked(&source.manifest, arch)?;
        let distribution = Distribution::read(&source.root);
        let sbom = sbom::cyclonedx(&crates, &packages, arch, &distribution.id, source.created);
        let sbom = format!(
            "{}\n",
            serde_json::to_string_pretty(&sbom).context("cannot write the SBOM")?
        );
        let licences = licences::all(&crates, &packages)?;
        let mut tree = Tree::default();
        base(&mut tree);
        program(&mut tree, binary.bytes, libraries);
        describe_packages(&mut tree, &packages, &distribution);
        tree.file("LICENSE.all", 0o644, licences.clone());
        tree.file("usr/share/doc/isthmus/sbom.json", 0o644, sbom.clone());
        Ok(Self {
            arch,
            tree,
            version: crates.root.version,
            sbom,
            licences,
        })
    }
}

fn program(tree: &mut Tree, binary: Vec<u8>, libraries: Vec<Library>) {
    tree.file("usr/bin/clustermesh-apiserver", 0o755, binary);
    // The binary looks at the name that it was started by.
    tree.link("usr/bin/etcd", "clustermesh-apiserver");
    tree.link("usr/bin/isthmus", "clustermesh-apiserver");
    for library in libraries {
        tree.file(&library.path, 0o755, library.bytes);
    }
}

fn base(tree: &mut Tree) {
    for directory in ["dev", "etc", "proc", "sys"] {
        tree.directory(directory, 0o755, 0);
    }
    tree.directory("tmp", 0o1777, 0);
    tree.directory("home/nonroot", 0o700, NONROOT);
    // Any user may make the socket of a debug shell here, as in the original image.
    tree.directory("var/run/cilium", 0o777, 0);
    tree.directory("var/run/etcd", 0o700, NONROOT);
    tree.file("var/lib/cilium/etcd-config.yaml", 0o644, ETCD_CONFIG);
    tree.file("etc/nsswitch.conf", 0o644, "hosts: files dns\n");
    tree.file(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n\
         nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
    );
    tree.file("etc/group", 0o644, "root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n");
    tree.file("etc/ssl/certs/ca-certificates.crt", 0o644, authorities());
}

/// Mozilla's roots as PEM.
fn authorities() -> String {
    let mut text = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate.as_ref());
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Where the libraries come from. Scanners look vulnerabilities up by it.
struct Distribution {
    id: String,
    release: Option<String>,
}

impl Distribution {
    fn read(root: &Path) -> Self {
        let release = std::fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
        let field = |key: &str| {
            release
                .lines()
                .find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.trim_matches('"').to_owned()))
        };
        Self {
            id: field("ID").unwrap_or_else(|| "debian".to_owned()),
            release: field("VERSION_ID"),
        }
    }
}

/// The files by which scanners find the packages of an image without a package manager.
fn describe_packages(tree: &mut Tree, packages: &[Package], distribution: &Distribution) {
    let version = distribution
        .release
        .as_deref()
        .map(|release| format!("VERSION_ID=\"{release}\"\n"));
    let id = &distribution.id;
    tree.file(
        "etc/os-release",
        0o644,
        format!("ID={id}\nNAME=\"Isthmus on {id}\"\n{}", version.unwrap_or_default()),
    );
    for package in packages {
        if let Some(stanza) = &package.stanza {
            tree.file(
                &format!("var/lib/dpkg/status.d/{}", package.name),
                0o644,
                stanza.as_str(),
            );
        }
    }
}
