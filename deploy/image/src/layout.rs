//! The archive: an OCI image layout in a tar file. With one platform it also has Docker's `manifest.json`, which older
//! versions of `docker load` need.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::contents::Contents;
use crate::hex;
use crate::tree::{NONROOT, Tree};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub const ENTRYPOINT: &str = "/usr/bin/clustermesh-apiserver";
pub const COMMAND: &str = "serve";
/// Clients of the store; health of the publisher and of the mirror.
pub const PORTS: [u16; 3] = [2379, 9880, 9881];
pub const ENVIRONMENT: [&str; 2] = ["PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"];

/// What is said about the image, apart from its files.
pub struct About {
    /// The full name, such as `docker.io/library/isthmus:0.2.0`.
    pub reference: String,
    pub labels: BTreeMap<String, String>,
    pub created: Timestamp,
}

/// The digest of what the archive's index points to, and the size of the archive's layers.
pub struct Written {
    pub digest: String,
    pub compressed: usize,
    pub unpacked: usize,
}

/// Writes the images, one for each architecture, as one archive to `path`.
pub fn write(images: &[Contents], about: &About, path: &Path) -> Result<Written> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    let mut docker = Vec::new();
    for image in images {
        let layer = blobs.layer(&image.tree, about.created)?;
        let config = blobs.json(CONFIG, &config(image, about, &layer))?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer.descriptor],
            "annotations": about.labels,
        });
        let mut descriptor = blobs.json(MANIFEST, &manifest)?;
        descriptor["platform"] = json!({ "architecture": image.arch.name(), "os": "linux" });
        docker.push(json!({
            "Config": blob_path(&config["digest"]),
            "RepoTags": [about.reference],
            "Layers": [blob_path(&layer.descriptor["digest"])],
        }));
        manifests.push(descriptor);
    }
    let mut top = match manifests.as_slice() {
        [single] => single.clone(),
        several => blobs.json(
            INDEX,
            &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": several, "annotations": about.labels }),
        )?,
    };
    top["annotations"] = json!({
        "io.containerd.image.name": about.reference,
        "org.opencontainers.image.ref.name": about.reference.rsplit(':').next(),
    });
    let mut archive = Tree::default();
    archive.file(
        "oci-layout",
        0o644,
        json!({ "imageLayoutVersion": "1.0.0" }).to_string(),
    );
    archive.file(
        "index.json",
        0o644,
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [top] }).to_string(),
    );
    if images.len() == 1 {
        archive.file("manifest.json", 0o644, json!(docker).to_string());
    }
    for (digest, bytes) in blobs.by_digest {
        archive.file(&format!("blobs/sha256/{digest}"), 0o644, bytes);
    }
    let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    archive.write_tar(std::io::BufWriter::new(file), seconds(about.created))?;
    let digest = top["digest"].as_str().unwrap_or_default().to_owned();
    Ok(Written {
        digest,
        compressed: blobs.compressed,
        unpacked: blobs.unpacked,
    })
}

fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or_default()
}

fn blob_path(digest: &Value) -> String {
    format!("blobs/{}", digest.as_str().unwrap_or_default().replace(':', "/"))
}

#[derive(Default)]
struct Blobs {
    by_digest: BTreeMap<String, Vec<u8>>,
    compressed: usize,
    unpacked: usize,
}

struct Layer {
    descriptor: Value,
    /// The digest before compression.
    diff_id: String,
}

impl Blobs {
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = hex(&Sha256::digest(&bytes));
        let descriptor = json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        self.by_digest.insert(digest, bytes);
        descriptor
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Result<Value> {
        Ok(self.add(media_type, serde_json::to_vec(value)?))
    }

    fn layer(&mut self, tree: &Tree, created: Timestamp) -> Result<Layer> {
        let mut tar = Vec::new();
        tree.write_tar(&mut tar, seconds(created))?;
        let diff_id = format!("sha256:{}", hex(&Sha256::digest(&tar)));
        // Without name and time in its header, the stream depends on the content alone.
        let mut gzip: GzEncoder<Vec<u8>> = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        let bytes = gzip.finish()?;
        self.unpacked += tar.len();
        self.compressed += bytes.len();
        Ok(Layer {
            descriptor: self.add(LAYER, bytes),
            diff_id,
        })
    }
}

fn config(image: &Contents, about: &About, layer: &Layer) -> Value {
    let ports: BTreeMap<_, _> = PORTS.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
    json!({
        "created": about.created.to_string(),
        "architecture": image.arch.name(),
        "os": "linux",
        "config": {
            "User": format!("{NONROOT}:{NONROOT}"),
            "Entrypoint": [ENTRYPOINT],
            "Cmd": [COMMAND],
            "Env": ENVIRONMENT,
            "ExposedPorts": ports,
            "WorkingDir": "/",
            "Labels": about.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
        "history": [{ "created": about.created.to_string(), "created_by": "isthmus-image pack" }],
    })
}
