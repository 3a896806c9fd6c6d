//! The notes of a release: its section of the changelog.

use anyhow::{Result, bail};

/// The text below the heading `## [version]`, up to the next heading of that level.
pub fn cut(changelog: &str, version: &str) -> Result<String> {
    let heading = format!("## [{version}]");
    let mut lines = changelog.lines().skip_while(|line| !line.starts_with(&heading));
    if lines.next().is_none() {
        bail!("the changelog has no heading `{heading}`: rename `## [Unreleased]` before the release");
    }
    let section: Vec<_> = lines.take_while(|line| !line.starts_with("## ")).collect();
    let text = section.join("\n").trim().to_owned();
    if text.is_empty() {
        bail!("the changelog says nothing below `{heading}`");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str =
        "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-11-27\n\n### Added\n- The image.\n\n## [0.1.0]\n- All.\n";

    #[test]
    fn a_section_ends_at_the_next_version() {
        assert_eq!(cut(CHANGELOG, "0.2.0").unwrap(), "### Added\n- The image.");
        assert_eq!(cut(CHANGELOG, "0.1.0").unwrap(), "- All.");
    }

    #[test]
    fn a_missing_or_empty_section_is_an_error() {
        assert!(
            cut(CHANGELOG, "0.3.0")
                .unwrap_err()
                .to_string()
                .contains("no heading `## [0.3.0]`")
        );
        assert!(
            cut(CHANGELOG, "Unreleased")
                .unwrap_err()
                .to_string()
                .contains("nothing below")
        );
    }
}
