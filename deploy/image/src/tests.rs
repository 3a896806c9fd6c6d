//! Tests of whole images and archives. A small binary of the system stands in for Isthmus'.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::contents::{Contents, Source};
use crate::layout::{self, About};
use crate::libraries::{Arch, Binary, needed};
use crate::tree::{Content, Tree};
use crate::{full_name, hex};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn gathered() -> Contents {
    let source = Source {
        binary: "/bin/true".into(),
        root: "/".into(),
        manifest: repository().join("Cargo.toml"),
        created: Timestamp::UNIX_EPOCH,
    };
    Contents::gather(&source).unwrap()
}

/// An image with few files, for tests of the archive.
fn small(arch: Arch) -> Contents {
    let mut tree = Tree::default();
    tree.file("usr/bin/clustermesh-apiserver", 0o755, arch.name());
    tree.link("usr/bin/etcd", "clustermesh-apiserver");
    tree.directory("tmp", 0o1777, 0);
    Contents {
        arch,
        tree,
        version: "1.2.3".to_owned(),
        sbom: String::new(),
        licences: String::new(),
    }
}

fn about() -> About {
    let labels = BTreeMap::from([("org.opencontainers.image.version".to_owned(), "1.2.3".to_owned())]);
    About {
        reference: full_name("isthmus:1.2.3"),
        labels,
        created: Timestamp::from_second(1_764_000_000).unwrap(),
    }
}

/// The files of an archive by path.
fn unpacked(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(std::fs::File::open(archive).unwrap())
        .entries()
        .unwrap()
    {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), bytes);
    }
    files
}

/// The blob that a descriptor points to, after checking its digest and size.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let bytes = &files[&format!("blobs/sha256/{digest}")];
    assert_eq!(hex(&Sha256::digest(bytes)), digest);
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Checks the blobs of one image down to the layer, and returns its configuration.
fn checked_image(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
    let manifest = json(blob(files, descriptor));
    let config = json(blob(files, &manifest["config"]));
    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(blob(files, &manifest["layers"][0]))
        .read_to_end(&mut layer)
        .unwrap();
    assert_eq!(
        config["rootfs"]["diff_ids"][0],
        format!("sha256:{}", hex(&Sha256::digest(&layer)))
    );
    assert_eq!(config["architecture"], descriptor["platform"]["architecture"]);
    config
}

#[test]
fn an_archive_of_one_platform_is_read_as_oci_layout_and_by_docker() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    let written = layout::write(&[small(Arch::Amd64)], &about(), &path).unwrap();
    let files = unpacked(&path);
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = json(&files["index.json"]);
    let top = &index["manifests"][0];
    assert_eq!(top["digest"], written.digest);
    assert_eq!(
        top["annotations"]["io.containerd.image.name"],
        "docker.io/library/isthmus:1.2.3"
    );
    assert_eq!(top["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
    let config = checked_image(&files, top);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "1.2.3");
    assert_eq!(config["created"], "2025-11-24T16:00:00Z");
    let docker = json(&files["manifest.json"]);
    assert_eq!(docker[0]["RepoTags"][0], "docker.io/library/isthmus:1.2.3");
    assert_eq!(json(&files[docker[0]["Config"].as_str().unwrap()]), config);
    assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
}

#[test]
fn an_archive_of_two_platforms_has_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    layout::write(&[small(Arch::Amd64), small(Arch::Arm64)], &about(), &path).unwrap();
    let files = unpacked(&path);
    assert!(
        !files.contains_key("manifest.json"),
        "Docker's manifest cannot tell platforms apart"
    );
    let index = json(blob(&files, &json(&files["index.json"])["manifests"][0]));
    let manifests = index["manifests"].as_array().unwrap();
    let architectures: Vec<_> = manifests
        .iter()
        .map(|one| checked_image(&files, one)["architecture"].clone())
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_another_time_gives_others() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, about: &About| {
        let path = directory.path().join(name);
        layout::write(&[gathered()], about, &path).unwrap();
        std::fs::read(path).unwrap()
    };
    let first = write("first", &about());
    assert!(
        first == write("second", &about()),
        "two archives of the same inputs differ"
    );
    let later = About {
        created: Timestamp::from_second(1_764_000_001).unwrap(),
        ..about()
    };
    assert!(first != write("later", &later));
}

#[test]
fn the_image_has_what_the_chart_expects_and_no_shell() {
    let tree = gathered().tree;
    let modes = [
        ("LICENSE.all", 0o644, 0),
        ("etc/group", 0o644, 0),
        ("etc/nsswitch.conf", 0o644, 0),
        ("etc/passwd", 0o644, 0),
        ("etc/ssl/certs/ca-certificates.crt", 0o644, 0),
        ("tmp", 0o1777, 0),
        ("usr/bin/clustermesh-apiserver", 0o755, 0),
        ("usr/share/doc/isthmus/sbom.json", 0o644, 0),
        ("var/lib/cilium/etcd-config.yaml", 0o644, 0),
        ("var/run/cilium", 0o777, 0),
        ("var/run/etcd", 0o700, 65532),
    ];
    for (path, mode, owner) in modes {
        let entry = tree.entries.get(path).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!((entry.mode, entry.owner), (mode, owner), "{path}");
    }
    for link in ["usr/bin/etcd", "usr/bin/isthmus"] {
        assert_eq!(
            tree.entries[link].content,
            Content::Link("clustermesh-apiserver".to_owned()),
            "{link}"
        );
    }
    let in_bin: Vec<_> = tree
        .entries
        .keys()
        .filter(|path| path.starts_with("usr/bin/") || path.starts_with("bin"))
        .collect();
    assert_eq!(
        in_bin,
        ["usr/bin/clustermesh-apiserver", "usr/bin/etcd", "usr/bin/isthmus"]
    );
    for (path, entry) in &tree.entries {
        let parent = path.rsplit_once('/').map(|(parent, _)| parent);
        assert!(
            parent.is_none_or(|parent| tree.entries[parent].content == Content::Directory),
            "{path} has no parent"
        );
        let writable = entry.mode & 0o022 != 0 && !matches!(entry.content, Content::Link(_));
        assert!(
            !writable || ["tmp", "var/run/cilium"].contains(&path.as_str()),
            "{path} is writable for others"
        );
    }
}

#[test]
fn the_loader_and_all_libraries_are_found_by_the_headers() {
    let binary = Binary::read(Path::new("/proc/self/exe")).unwrap();
    let names: Vec<_> = needed(&binary, Path::new("/"))
        .unwrap()
        .into_iter()
        .map(|library| library.name)
        .collect();
    assert!(names.contains(&"libc.so.6".to_owned()), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("ld-linux-")), "{names:?}");
    let empty = tempfile::tempdir().unwrap();
    let error = needed(&binary, empty.path()).unwrap_err().to_string();
    assert!(
        error.contains("ld-linux-") && error.ends_with("name the directory that has it with --lib-root"),
        "{error}"
    );
}

#[test]
fn the_sbom_names_the_linked_crates_and_libraries_and_every_reference_is_known() {
    let sbom = json(gathered().sbom.as_bytes());
    assert_eq!(
        (sbom["bomFormat"].as_str(), sbom["specVersion"].as_str()),
        (Some("CycloneDX"), Some("1.6"))
    );
    let components = sbom["components"].as_array().unwrap();
    let names: BTreeSet<_> = components.iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["tokio", "rustls", "libc6"] {
        assert!(names.contains(name), "{name} is missing");
    }
    for name in ["serde_derive", "criterion", "tonic-prost-build"] {
        assert!(!names.contains(name), "{name} is not linked");
    }
    for crates in components
        .iter()
        .filter(|one| one["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:cargo/")))
    {
        assert_eq!(
            crates["hashes"][0]["content"].as_str().map(str::len),
            Some(64),
            "{crates}"
        );
        assert!(crates["licenses"][0]["expression"].is_string(), "{crates}");
    }
    let root = &sbom["metadata"]["component"];
    let known: BTreeSet<_> = components
        .iter()
        .chain([root])
        .map(|one| one["bom-ref"].as_str().unwrap())
        .collect();
    assert_eq!(
        known.len(),
        components.len() + 1,
        "two components have the same reference"
    );
    for node in sbom["dependencies"].as_array().unwrap() {
        for reference in node["dependsOn"].as_array().unwrap().iter().chain([&node["ref"]]) {
            assert!(
                known.contains(reference.as_str().unwrap()),
                "{reference} is not a component"
            );
        }
    }
}

#[test]
fn the_licences_cover_every_component() {
    let contents = gathered();
    let sbom = json(contents.sbom.as_bytes());
    for component in sbom["components"].as_array().unwrap() {
        let name = component["name"].as_str().unwrap();
        assert!(contents.licences.contains(name), "{name} has no licence in LICENSE.all");
    }
    for text in [
        "Apache License",
        "GNU LESSER GENERAL PUBLIC LICENSE",
        "The Rust Standard Library",
        "Community Data License",
    ] {
        let text = text.to_lowercase();
        assert!(
            contents.licences.to_lowercase().contains(&text),
            "LICENSE.all lacks {text}"
        );
    }
}

#[test]
fn the_dockerfile_says_the_same_as_the_archive() {
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let last = dockerfile.rsplit("\nFROM ").next().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    layout::write(&[small(Arch::Amd64)], &about(), &path).unwrap();
    let files = unpacked(&path);
    let config = checked_image(&files, &json(&files["index.json"])["manifests"][0])["config"].clone();
    let list = |value: &Value| {
        value
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let ports: Vec<_> = layout::PORTS.iter().map(u16::to_string).collect();
    assert!(
        ports
            .iter()
            .all(|port| config["ExposedPorts"].get(format!("{port}/tcp")).is_some())
    );
    for line in [
        format!("USER {}", config["User"].as_str().unwrap()),
        format!("ENTRYPOINT {}", config["Entrypoint"]),
        format!("CMD {}", config["Cmd"]),
        format!("ENV {}", list(&config["Env"]).join(" ")),
        format!("EXPOSE {}", ports.join(" ")),
        format!("WORKDIR {}", config["WorkingDir"].as_str().unwrap()),
    ] {
        assert!(
            last.lines().any(|found| found == line),
            "the Dockerfile has no line `{line}`"
        );
    }
    // Directories that are not root's need a COPY of their own.
    for (path, entry) in gathered().tree.entries.iter().filter(|(_, entry)| entry.owner != 0) {
        let line = format!("COPY --from=build --chown={0}:{0} /out/{path} /{path}", entry.owner);
        assert!(
            last.lines().any(|found| found == line),
            "the Dockerfile has no line `{line}`"
        );
    }
}

#[test]
fn names_are_completed_as_container_runtimes_do() {
    for (given, full) in [
        ("isthmus", "docker.io/library/isthmus:latest"),
        ("isthmus:0.2.0", "docker.io/library/isthmus:0.2.0"),
        ("me/isthmus:0.2.0", "docker.io/me/isthmus:0.2.0"),
        ("localhost/isthmus:a", "localhost/isthmus:a"),
        ("registry:5000/isthmus", "registry:5000/isthmus:latest"),
        ("ghcr.io/me/isthmus:0.2.0", "ghcr.io/me/isthmus:0.2.0"),
    ] {
        assert_eq!(full_name(given), full);
    }
}

#[test]
fn a_tree_is_written_to_an_empty_directory_only() {
    let directory = tempfile::tempdir().unwrap();
    let image = small(Arch::Amd64);
    image.tree.write_directory(directory.path()).unwrap();
    let mode = |path: &str| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(directory.path().join(path)).unwrap().permissions())
            & 0o7777
    };
    assert_eq!((mode("tmp"), mode("usr/bin/etcd")), (0o1777, 0o755));
    let error = image.tree.write_directory(directory.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("is not empty: remove its content, or name another one"),
        "{error}"
    );
}
