//! `/LICENSE.all`: the licence of Isthmus, and of everything that is linked into the binary or beside it in the image.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::crates::{Crate, Crates};
use crate::packages::Package;

/// What a crate that has several licences is taken under when it ships no text: the first of these that it offers.
const PREFERRED: [&str; 8] = [
    "Apache-2.0",
    "MIT",
    "BSD-3-Clause",
    "BSD-2-Clause",
    "ISC",
    "Zlib",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
];
const RULE: &str = "================================================================================";

/// The whole file. Equal texts are printed once, with all the crates that have them.
pub fn all(crates: &Crates, packages: &[Package]) -> Result<String> {
    let own = crates.root.directory.join("LICENSE");
    let own = fs::read_to_string(&own).with_context(|| format!("cannot read {}", own.display()))?;
    let mut out = String::new();
    writeln!(
        out,
        "Isthmus {} is distributed under this licence:\n\n{}",
        crates.root.version,
        own.trim_end()
    )?;
    writeln!(out, "\n{RULE}\nThe binary contains these crates:\n")?;
    for dependency in &crates.dependencies {
        writeln!(
            out,
            "{} {}: {}",
            dependency.name, dependency.version, dependency.licence
        )?;
    }
    for (text, names) in texts(&crates.dependencies)? {
        writeln!(out, "\n{RULE}\nLicence of {}:\n\n{text}", names.join(", "))?;
    }
    writeln!(
        out,
        "\n{RULE}\nLicence of the Rust standard library:\n\n{}",
        standard_library()?
    )?;
    for package in packages {
        let libraries = package.libraries.join(", ");
        writeln!(
            out,
            "\n{RULE}\nCopyright file of the Debian package {} ({libraries}):\n",
            package.name
        )?;
        writeln!(out, "{}", package.copyright.trim_end())?;
    }
    writeln!(
        out,
        "\n{RULE}\nThe list of certificate authorities in /etc/ssl/certs is Mozilla's:\n\n{}",
        text("CDLA-Permissive-2.0")?
    )?;
    Ok(out)
}

fn texts(crates: &[Crate]) -> Result<Vec<(String, Vec<String>)>> {
    let mut by_text: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for dependency in crates {
        let mut found = files(&dependency.directory)?;
        if found.is_empty() {
            found.push(standard(dependency)?);
        }
        for text in found {
            by_text
                .entry(text)
                .or_default()
                .push(format!("{} {}", dependency.name, dependency.version));
        }
    }
    let mut texts: Vec<_> = by_text.into_iter().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    Ok(texts)
}

/// The texts of the files that hold licences and notices, by the names that crates use.
fn files(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let licence = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"]
            .iter()
            .any(|start| name.starts_with(start));
        if licence && entry.path().is_file() && ![".RS", ".HTML", ".TOML"].iter().any(|end| name.ends_with(end)) {
            names.push(entry.path());
        }
    }
    names.sort();
    let mut texts = Vec::new();
    for path in names {
        let text = String::from_utf8_lossy(&fs::read(&path)?).replace("\r\n", "\n");
        texts.push(text.trim().to_owned());
    }
    Ok(texts)
}

/// For a crate without a licence file: the standard text of the licence that its manifest names, and its authors.
fn standard(dependency: &Crate) -> Result<String> {
    let expression = spdx::Expression::parse(&dependency.licence).with_context(|| {
        format!(
            "the licence of {} {} is not an SPDX expression",
            dependency.name, dependency.version
        )
    })?;
    let offered: Vec<_> = expression
        .requirements()
        .filter_map(|req| req.req.license.id())
        .map(|id| id.name)
        .collect();
    let Some(chosen) = PREFERRED.iter().find(|name| offered.contains(name)) else {
        bail!(
            "{} has no licence file, and {} is not in the list of preferred licences",
            dependency.purl(),
            dependency.licence
        );
    };
    let authors = match dependency.authors.is_empty() {
        true => format!("the authors of {}", dependency.name),
        false => dependency.authors.join(", "),
    };
    Ok(format!("Copyright: {authors}\n\n{}", text(chosen)?))
}

fn text(licence: &str) -> Result<String> {
    let id = spdx::license_id(licence).with_context(|| format!("{licence} is not a licence of SPDX"))?;
    Ok(id.text().trim().to_owned())
}

/// The toolchain carries the notices of the standard library and of the crates in it, as HTML.
fn standard_library() -> Result<String> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustc")?;
    ensure!(
        output.status.success(),
        "rustc --print sysroot failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let sysroot = String::from_utf8(output.stdout)?;
    match fs::read_to_string(Path::new(sysroot.trim()).join("share/doc/rust/COPYRIGHT-library.html")) {
        Ok(html) => Ok(without_tags(&html)),
        Err(_) => Ok(format!("{}\n\n{}", text("Apache-2.0")?, text("MIT")?)),
    }
}

fn without_tags(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    for (at, piece) in html.split('<').enumerate() {
        let shown = if at == 0 {
            Some(piece)
        } else {
            piece.split_once('>').map(|(_, shown)| shown)
        };
        text.push_str(shown.unwrap_or_default());
    }
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&amp;", "&");
    let mut out = String::with_capacity(text.len());
    for line in text.lines().map(str::trim_end) {
        if !(line.is_empty() && out.ends_with("\n\n")) {
            out.push_str(line);
            out.push('\n');
        }
    }
    out.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_repeated_empty_lines_are_dropped() {
        assert_eq!(
            without_tags("<p>A &amp; B</p>\n\n\n\n<a href=\"x\">C</a> \n"),
            "A & B\n\nC"
        );
    }
}
