//! Proves that the documents are right: every command in them is run by a test, by CI, or, for a stated reason, by nobody; flags
//! and targets exist; links lead somewhere; and the sections about a mesh by hand and its data directory work as they are written.

mod by_hand;
mod commands;
mod text;

use crate::support::isthmus;
use commands::{NOBODY, Runner, TESTED};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use text::{Block, Document};

/// The directories whose documents are not looked at.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "proptest-regressions"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn documents() -> Vec<Document> {
    let (mut found, mut directories) = (vec![], vec![PathBuf::new()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(root().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let (name, path) = (
                entry.file_name().into_string().unwrap(),
                directory.join(entry.file_name()),
            );
            if entry.file_type().unwrap().is_dir() {
                if !SKIPPED.contains(&&*name) {
                    directories.push(path);
                }
            } else if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
                let path = path.to_str().unwrap().to_owned();
                let text = read(&path);
                found.push(Document { path, text });
            }
        }
    }
    assert!(found.len() > 40, "only {} documents were found", found.len());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The blocks of commands of all documents.
fn blocks() -> Vec<(String, Block)> {
    let of = |document: Document| {
        let blocks = document.shell_blocks();
        blocks.into_iter().map(move |block| (document.path.clone(), block))
    };
    documents().into_iter().flat_map(of).collect()
}

#[track_caller]
fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_tests_that_prove_a_promise_exist() {
    let text = read("docs/replicas.md");
    let (_, section) = text.split_once("\n## What proves it\n").expect("a section");
    let sources = ["src/follow", "src/mvcc", "src/server", "tests/it", "tests/interop"]
        .map(|directory| all_of(Path::new(directory)));
    let sources = sources.concat();
    let mut complaints = vec![];
    for name in section.split('`').skip(1).step_by(2) {
        let is_go = name.starts_with("Test");
        let is_rust = name.contains('_') && !name.contains(['/', ' ', '-']);
        let function = match is_go {
            true => format!("func {name}("),
            false => format!("fn {name}("),
        };
        if (is_go || is_rust) && name != "Test" && !sources.contains(&function) {
            complaints.push(format!("docs/replicas.md: there is no test {name}"));
        }
    }
    report(&complaints);
}

/// All sources in a directory of the repository.
fn all_of(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(root().join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = directory.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            text += &all_of(&path);
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "go") {
            text += &read(path.to_str().unwrap());
        }
    }
    text
}

#[test]
fn every_command_is_run_by_a_test_or_nobody_can_run_it() {
    let (mut complaints, mut used) = (vec![], BTreeSet::new());
    for (path, block) in blocks() {
        for command in block.commands() {
            let runner = TESTED.iter().position(|row| row.runs(&path, &block.section, &command));
            let nobody = NOBODY.iter().position(|(beginning, _)| command.starts_with(beginning));
            match (runner, nobody) {
                (Some(row), _) => drop(used.insert(("TESTED", row))),
                (None, Some(row)) => drop(used.insert(("NOBODY", row))),
                (None, None) => complaints.push(format!("{path}:{}: nobody runs {command:?}", block.line)),
            }
        }
    }
    for (at, row) in TESTED.iter().enumerate() {
        if !used.contains(&("TESTED", at)) {
            complaints.push(format!("no document has what {row:?} is about"));
        }
        let tested = row.is_there(&read);
        complaints.extend(tested.err());
    }
    for (at, (beginning, reason)) in NOBODY.iter().enumerate() {
        if !used.contains(&("NOBODY", at)) {
            complaints.push(format!("no document has {beginning:?}, which nobody runs: {reason}"));
        }
    }
    report(&complaints);
}

/// The help of the subcommand that begins with `words`, and whether there is one.
fn help(words: &[&str], known: &mut BTreeMap<String, Option<String>>) -> Option<String> {
    (1..=words.len()).rev().find_map(|n| {
        let key = words[..n].join(" ");
        let help = known.entry(key).or_insert_with(|| {
            let finished = isthmus(words[..n].iter().copied().chain(["--help"])).run();
            finished.succeeded().then_some(finished.stdout)
        });
        help.clone()
    })
}

#[test]
fn flags_and_targets_of_commands_exist() {
    let (mut complaints, mut known, makefile) = (vec![], BTreeMap::new(), read("Makefile"));
    let mut checked = 0;
    for document in documents() {
        // A changelog tells of former versions, and records of decisions of what was rejected.
        if document.path == "CHANGELOG.md" || document.path.starts_with("docs/decisions/") {
            continue;
        }
        let commands = document.shell_blocks().into_iter().flat_map(|block| block.commands());
        for command in commands.chain(document.inline_commands()) {
            let words = text::words(&command);
            let (program, rest) = words.split_first().unwrap();
            if *program == "make" {
                let target = rest.iter().find(|word| !word.contains('=') && !word.starts_with('-'));
                if let Some(target) = target.filter(|target| !makefile.contains(&format!("\n{target}:"))) {
                    complaints.push(format!(
                        "{}: the Makefile has no target {target}: {command}",
                        document.path
                    ));
                }
                continue;
            }
            let prefix: &[&str] = match *program {
                "isthmus" => &["mesh"],
                "clustermesh-apiserver" => &[],
                "kvstoremesh-dbg" => &["kvstoremesh-dbg"],
                "clustermesh-dbg" => &["clustermesh-dbg"],
                _ => continue,
            };
            let names = rest.iter().take_while(|word| !word.starts_with('-'));
            let path: Vec<&str> = prefix.iter().copied().chain(names.copied()).collect();
            if path.is_empty() {
                continue;
            }
            let Some(help) = help(&path, &mut known) else {
                complaints.push(format!("{}: there is no such subcommand: {command}", document.path));
                continue;
            };
            for flag in rest.iter().filter(|word| word.starts_with('-') && word.len() > 1) {
                let flag = flag.split('=').next().unwrap();
                checked += 1;
                let is_there = help
                    .split(|c: char| c.is_whitespace() || "=,[<".contains(c))
                    .any(|word| word == flag);
                if !is_there {
                    complaints.push(format!("{}: no flag {flag}: {command}", document.path));
                }
            }
        }
    }
    assert!(checked > 60, "only {checked} flags were checked");
    report(&complaints);
}

#[test]
fn links_lead_to_files_and_headings() {
    let documents = documents();
    let anchors: BTreeMap<&str, BTreeSet<String>> = documents.iter().map(|d| (&*d.path, d.anchors())).collect();
    let mut complaints = vec![];
    for document in &documents {
        for link in document.links() {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => PathBuf::from(&document.path),
                file => text::joined(Path::new(&document.path).parent().unwrap(), file),
            };
            if !root().join(&target).exists() {
                complaints.push(format!("{}: no file {link}", document.path));
            } else if !anchor.is_empty()
                && let Some(anchors) = anchors.get(target.to_str().unwrap())
                && !anchors.contains(anchor)
            {
                complaints.push(format!("{}: no heading {link}", document.path));
            }
        }
    }
    report(&complaints);
}

/// Words in `docs/troubleshooting.md` that others say, not this program.
const OF_OTHERS: [&str; 6] = [
    "no route to host",
    "OOMKilled",
    "ContainerCreating",
    "memory allocation of",
    "UnknownIssuer",
    "invalid peer certificate",
];

#[test]
fn troubleshooting_quotes_what_the_program_says() {
    let mut sources = String::new();
    let mut directories = vec![root().join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => sources += &std::fs::read_to_string(path).unwrap(),
            }
        }
    }
    // Strings that are continued in the next line.
    let sources = sources.split("\\\n").map(str::trim_start).collect::<String>();
    let document = Document {
        path: "docs/troubleshooting.md".to_owned(),
        text: read("docs/troubleshooting.md"),
    };
    let mut complaints = vec![];
    let mut checked = 0;
    for quote in document.first_cells() {
        for part in quote
            .split(['…', '[', ']'])
            .flat_map(|part| part.split(" N "))
            .flat_map(|part| part.split(" M"))
        {
            let part = part
                .trim_matches([' ', ':', '-', '!'])
                .trim_end_matches(" is not finished")
                .trim_end_matches(" failed");
            if part.len() < 6 || part.starts_with("--") || OF_OTHERS.iter().any(|other| part.starts_with(other)) {
                continue;
            }
            checked += 1;
            if !sources.contains(part) {
                complaints.push(format!("the program does not say {part:?} ({quote:?})"));
            }
        }
    }
    assert!(checked > 15, "only {checked} texts were checked");
    report(&complaints);
}

impl Runner {
    fn runs(&self, path: &str, section: &str, command: &str) -> bool {
        match *self {
            Self::Section {
                document, section: of, ..
            } => path == document && section == of,
            Self::Command { beginning, .. } => command.starts_with(beginning),
        }
    }

    /// Whether the test exists.
    fn is_there(&self, read: &impl Fn(&str) -> String) -> Result<(), String> {
        let (Self::Section { file, test, .. } | Self::Command { file, test, .. }) = *self;
        let text = read(file);
        let names = [
            format!("fn {test}("),
            format!("func {test}("),
            format!("\n{test}:"),
            format!("make --no-print-directory {test}"),
        ];
        match names.iter().any(|name| text.contains(name)) {
            true => Ok(()),
            false => Err(format!("{file} has no {test}, which is to run commands of documents")),
        }
    }
}
