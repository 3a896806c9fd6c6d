//! The software bill of materials, in CycloneDX 1.6: crates and Debian packages, with the graph of who uses what.

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::crates::{Crate, Crates};
use crate::hex;
use crate::libraries::Arch;
use crate::packages::Package;

pub fn cyclonedx(crates: &Crates, packages: &[Package], arch: Arch, distribution: &str, created: Timestamp) -> Value {
    let mut root = component(&crates.root, "application");
    root["properties"] = json!([{ "name": "isthmus:architecture", "value": arch.name() }]);
    let mut components: Vec<_> = crates
        .dependencies
        .iter()
        .map(|dependency| component(dependency, "library"))
        .collect();
    components.extend(packages.iter().map(|package| debian(package, arch, distribution)));
    let mut graph: Vec<_> = crates
        .dependencies
        .iter()
        .map(|dependency| uses(dependency, &[]))
        .collect();
    let linked: Vec<_> = packages
        .iter()
        .map(|package| package_url(package, arch, distribution))
        .collect();
    graph.insert(0, uses(&crates.root, &linked));
    let mut document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": created.to_string(),
            "tools": { "components": [{ "type": "application", "name": "isthmus-image" }] },
            "component": root,
        },
        "components": components,
        "dependencies": graph,
    });
    document["serialNumber"] = json!(serial(&document));
    document
}

/// A UUID from the content, so that the same content has the same number.
fn serial(document: &Value) -> String {
    let mut bytes = Sha256::digest(document.to_string().as_bytes())[..16].to_vec();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

fn component(of: &Crate, kind: &str) -> Value {
    let mut component = json!({
        "type": kind,
        "bom-ref": of.purl(),
        "name": of.name,
        "version": of.version,
        "purl": of.purl(),
        "licenses": [{ "expression": of.licence }],
    });
    if let Some(description) = &of.description {
        component["description"] = json!(description);
    }
    if let Some(checksum) = &of.checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(repository) = &of.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

fn uses(of: &Crate, more: &[String]) -> Value {
    json!({ "ref": of.purl(), "dependsOn": of.uses.iter().chain(more).collect::<Vec<_>>() })
}

fn debian(package: &Package, arch: Arch, distribution: &str) -> Value {
    let url = package_url(package, arch, distribution);
    let mut component = json!({ "type": "library", "bom-ref": url, "name": package.name, "purl": url });
    if let Some(version) = &package.version {
        component["version"] = json!(version);
    }
    component["properties"] = json!([{ "name": "isthmus:libraries", "value": package.libraries.join(" ") }]);
    component
}

fn package_url(package: &Package, arch: Arch, distribution: &str) -> String {
    let version = package
        .version
        .as_deref()
        .map(|version| format!("@{}", version.replace('+', "%2B").replace(':', "%3A")));
    format!(
        "pkg:deb/{distribution}/{}{}?arch={}",
        package.name,
        version.unwrap_or_default(),
        arch.name()
    )
}
