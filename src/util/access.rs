//! Errors of files, with what the system leaves out: who asked, and whose the file is.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The text of an error of the file or directory at `path`.
pub fn explain(error: &io::Error, path: &Path) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => match (process_user(), owner(path)) {
            (Some(user), Some(owner)) => format!("{error}: this process runs as user {user}, and {owner}"),
            (Some(user), None) => format!("{error}: this process runs as user {user}"),
            (None, _) => error.to_string(),
        },
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists if path.is_file() => {
            format!("{} is a file, and a directory is needed", path.display())
        }
        io::ErrorKind::IsADirectory => format!("{} is a directory, and a file is needed", path.display()),
        _ => error.to_string(),
    }
}

/// The same error with the text of [`explain`].
pub fn explained(error: io::Error, path: &Path) -> io::Error {
    let text = explain(&error, path);
    match text == error.to_string() {
        true => error,
        false => io::Error::new(error.kind(), text),
    }
}

/// The effective user of this process.
fn process_user() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// Whose the nearest part of the path is that the process can see.
fn owner(path: &Path) -> Option<String> {
    let absolute: PathBuf = std::path::absolute(path).ok()?;
    let (seen, metadata) = absolute
        .ancestors()
        .find_map(|part| Some((part, std::fs::metadata(part).ok()?)))?;
    Some(format!(
        "{} belongs to user {} with mode {:o}",
        seen.display(),
        metadata.uid(),
        metadata.mode() & 0o7777
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_permission_names_the_users() {
        let dir = tempfile::tempdir().unwrap();
        let uid = std::fs::metadata(dir.path()).unwrap().uid();
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let text = explain(&denied, &dir.path().join("missing"));
        let owner = format!("{} belongs to user {uid} with mode ", dir.path().display());
        assert!(
            text.contains("this process runs as user ") && text.contains(&owner),
            "{text}"
        );
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let exists = io::Error::from(io::ErrorKind::AlreadyExists);
        assert!(explain(&exists, &file).ends_with("is a file, and a directory is needed"));
        let other = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(explain(&other, &file), other.to_string());
    }
}
