//! Proves that the sources keep to ARCHITECTURE.md: which room may use which room and which crate, that no files of a
//! room import each other in a circle, and that no file grows too long. A *room* is a top-level module of the crate.

mod document;
mod source;

use document::{Document, Forbidden};
use source::{Module, Sources};
use std::collections::BTreeSet;
use std::sync::LazyLock;

static DOCUMENT: LazyLock<Document> = LazyLock::new(Document::read);
static SOURCES: LazyLock<Sources> = LazyLock::new(Sources::read);

/// The most lines of code in one file, without blank lines, comments and unit tests.
const LONGEST_FILE: usize = 500;

/// A deviation that is accepted for a reason.
struct Exception {
    /// The files, relative to `src`.
    files: &'static [&'static str],
    #[expect(dead_code, reason = "for readers")]
    reason: &'static str,
}

/// Circles of imports that are accepted. An import between a module and its own submodule is no circle.
const CIRCLES: &[Exception] = &[];

/// Files that may be longer than [`LONGEST_FILE`].
const LONG_FILES: &[Exception] = &[];

/// Fails with one line for each complaint.
#[track_caller]
fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_room_is_in_the_table_and_uses_only_the_rooms_above_that_it_may_use() {
    let (document, sources) = (&*DOCUMENT, &*SOURCES);
    let mut complaints = document.contradictions();
    for module in &sources.modules {
        let room = module.room();
        let Some(row) = document.rooms.iter().find(|row| row.name == room) else {
            complaints.push(format!(
                "{}: the room `{room}` has no row in the table \"Who may use whom\" of ARCHITECTURE.md",
                module.file
            ));
            continue;
        };
        for used in module.rooms_used().iter().filter(|used| **used != room) {
            if !row.may_use.contains(used) {
                let allowed: Vec<_> = row.may_use.iter().map(String::as_str).collect();
                complaints.push(format!(
                    "{}: uses the room `{used}`; ARCHITECTURE.md allows `{room}` only: {}",
                    module.file,
                    allowed.join(", ")
                ));
            }
        }
    }
    let existing: BTreeSet<&str> = sources.modules.iter().map(Module::room).collect();
    for row in document.rooms.iter().filter(|row| !existing.contains(&*row.name)) {
        complaints.push(format!(
            "ARCHITECTURE.md has a row for `{}`, which is no room",
            row.name
        ));
    }
    report(&complaints);
}

#[test]
fn crates_and_forbidden_names_stay_out_of_rooms() {
    let (document, sources) = (&*DOCUMENT, &*SOURCES);
    let mut complaints = vec![];
    for module in &sources.modules {
        for row in &document.crates {
            if !row.rooms.contains(module.room()) && module.mentions(&row.name) {
                let rooms: Vec<_> = row.rooms.iter().map(String::as_str).collect();
                complaints.push(format!(
                    "{}: names the crate `{}`, which only these rooms may name: {}",
                    module.file,
                    row.name,
                    rooms.join(", ")
                ));
            }
        }
        let row = document.rooms.iter().find(|row| row.name == module.room());
        for Forbidden { name, except } in row.iter().flat_map(|row| &row.never) {
            if module.mentions_other_than(name, except) {
                complaints.push(format!(
                    "{}: names `{name}`, which its room must never name",
                    module.file
                ));
            }
        }
    }
    report(&complaints);
}

#[test]
fn files_of_a_room_do_not_import_each_other_in_a_circle() {
    let sources = &*SOURCES;
    let circles = sources.circles();
    let mut complaints = vec![];
    for circle in &circles {
        if !is_excepted(&circle.files, CIRCLES) {
            complaints.push(format!(
                "these files import each other in a circle: {}\n  {}",
                circle.files.join(", "),
                circle.imports.join("\n  ")
            ));
        }
    }
    for exception in CIRCLES {
        if !circles.iter().any(|circle| exception.covers(&circle.files)) {
            complaints.push(format!(
                "no circle any more: remove the exception for {:?}",
                exception.files
            ));
        }
    }
    report(&complaints);
}

#[test]
fn no_file_is_too_long() {
    let sources = &*SOURCES;
    let mut complaints = vec![];
    for module in &sources.modules {
        let (lines, excepted) = (
            module.lines(),
            is_excepted(std::slice::from_ref(&module.file), LONG_FILES),
        );
        if lines > LONGEST_FILE && !excepted {
            complaints.push(format!(
                "{}: {lines} lines of code, more than {LONGEST_FILE}",
                module.file
            ));
        }
        if lines <= LONGEST_FILE && excepted {
            complaints.push(format!("{}: no longer too long: remove the exception", module.file));
        }
    }
    report(&complaints);
}

impl Exception {
    fn covers(&self, files: &[String]) -> bool {
        files.iter().all(|file| self.files.contains(&&**file))
    }
}

#[test]
fn every_test_that_the_document_names_exists() {
    let mut complaints = vec![];
    for name in &DOCUMENT.tests {
        if !SOURCES.functions.contains(name) {
            complaints.push(format!("ARCHITECTURE.md names the test `{name}`, which does not exist"));
        }
    }
    report(&complaints);
}

fn is_excepted(files: &[String], exceptions: &[Exception]) -> bool {
    exceptions.iter().any(|exception| exception.covers(files))
}
