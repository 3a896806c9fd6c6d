//! The tables of ARCHITECTURE.md that say which room may use what.
//!
//! The table "Who may use whom" has the columns `room`, `may use` and `never`; its rows are in topological order.
//! - `room`: one or more names in backticks.
//! - `may use`: `nothing of ours`, `all rooms above`, or names of rooms in backticks.
//! - `never`: names in backticks of rooms, crates or paths, or the keyword `async`. The form ``a` but `a::b` and
//!   `a::c`` makes exceptions for parts of a crate.
//!
//! The table of crates has the columns `crate` and `only in`: a crate in backticks, and the rooms in backticks.

use std::collections::BTreeSet;
use std::path::Path;

/// The tables of ARCHITECTURE.md, and the tests that it names.
pub struct Document {
    pub rooms: Vec<Room>,
    pub crates: Vec<Crate>,
    /// Names in backticks that look like the name of a test: lower-case words, at least four.
    pub tests: BTreeSet<String>,
}

/// A row of the table "Who may use whom".
pub struct Room {
    pub name: String,
    pub may_use: BTreeSet<String>,
    pub never: Vec<Forbidden>,
}

/// A name that a room must not contain.
#[derive(Debug, PartialEq, Eq)]
pub struct Forbidden {
    pub name: String,
    /// Paths below the name that are allowed nevertheless.
    pub except: Vec<String>,
}

/// A crate that only some rooms may name.
pub struct Crate {
    pub name: String,
    pub rooms: BTreeSet<String>,
}

impl Document {
    /// Reads ARCHITECTURE.md.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
        Self::parse(&std::fs::read_to_string(path).unwrap()).unwrap_or_else(|error| panic!("ARCHITECTURE.md: {error}"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let rooms = rooms(&table(text, &["room", "may use", "never"]).ok_or("the table of rooms is missing")?)?;
        let crates = table(text, &["crate", "only in"]).ok_or("the table of crates is missing")?;
        let crates = crates.into_iter().map(|row| Crate {
            name: names(&row[0]).concat().replace('-', "_"),
            rooms: names(&row[1]).into_iter().collect(),
        });
        let is_test = |name: &String| {
            let of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            name.chars().all(of_a_name) && name.matches('_').count() >= 3
        };
        let tests = text.lines().flat_map(names).filter(is_test).collect();
        Ok(Self {
            rooms,
            crates: crates.collect(),
            tests,
        })
    }

    /// The contradictions in the table "Who may use whom".
    pub fn contradictions(&self) -> Vec<String> {
        let mut complaints = vec![];
        for (at, room) in self.rooms.iter().enumerate() {
            let above: BTreeSet<&str> = self.rooms[..at].iter().map(|room| &*room.name).collect();
            for used in room.may_use.iter().filter(|used| !above.contains(&***used)) {
                complaints.push(format!(
                    "ARCHITECTURE.md: `{}` may use `{used}`, which is in no row above it",
                    room.name
                ));
            }
            for Forbidden { name, .. } in room.never.iter().filter(|never| room.may_use.contains(&never.name)) {
                complaints.push(format!("ARCHITECTURE.md: `{}` may use `{name}`, and never", room.name));
            }
        }
        complaints
    }
}

/// The cells of the table with these column titles.
fn table(text: &str, titles: &[&str]) -> Option<Vec<Vec<String>>> {
    let mut lines = text.lines().skip_while(|line| !cells(line).starts_with_all(titles));
    lines.next()?;
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    Some(rows.map(cells).collect())
}

trait StartsWithAll {
    fn starts_with_all(&self, titles: &[&str]) -> bool;
}

impl StartsWithAll for Vec<String> {
    fn starts_with_all(&self, titles: &[&str]) -> bool {
        self.len() >= titles.len() && self.iter().zip(titles).all(|(cell, title)| cell == title)
    }
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The names in backticks.
fn names(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rooms(rows: &[Vec<String>]) -> Result<Vec<Room>, String> {
    let mut rooms: Vec<Room> = vec![];
    for row in rows {
        let [titles, may_use, never] = &row[..] else {
            return Err(format!("this row has not three cells: {row:?}"));
        };
        let above = rooms.iter().map(|room| room.name.clone()).collect();
        let may_use = allowed(may_use, above).map_err(|error| format!("the row of {titles}: {error}"))?;
        let never = forbidden(never).map_err(|error| format!("the row of {titles}: {error}"))?;
        let row = names(titles).into_iter().map(|name| Room {
            name,
            may_use: may_use.clone(),
            never: never.iter().map(Forbidden::copy).collect(),
        });
        rooms.extend(row);
    }
    Ok(rooms)
}

fn allowed(cell: &str, above: BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    match cell {
        "nothing of ours" => Ok(BTreeSet::new()),
        "all rooms above" => Ok(above),
        _ => only_names(cell).map(|names| names.into_iter().collect()),
    }
}

fn forbidden(cell: &str) -> Result<Vec<Forbidden>, String> {
    let mut all = vec![];
    for entry in cell.split(", ").filter(|entry| !entry.is_empty()) {
        let (name, except) = entry.split_once(" but ").unwrap_or((entry, ""));
        let except: Result<Vec<_>, _> = except.split(" and ").map(only_names).collect();
        all.push(Forbidden {
            name: only_names(name)?.concat(),
            except: except?.concat(),
        });
    }
    Ok(all)
}

/// The names in backticks of a cell that consists of such names and commas only.
fn only_names(cell: &str) -> Result<Vec<String>, String> {
    let outside: String = cell.split('`').step_by(2).collect();
    if outside.chars().all(|c| c == ',' || c == ' ') {
        Ok(names(cell))
    } else {
        Err(format!(
            "{cell:?} is neither a list of names in backticks nor a known phrase"
        ))
    }
}

impl Forbidden {
    fn copy(&self) -> Self {
        Self {
            name: self.name.clone(),
            except: self.except.clone(),
        }
    }
}

#[test]
fn the_forms_of_a_row_are_understood() {
    let text = "\
# Title

| room | may use | never |
|---|---|---|
| `a`, `b` | nothing of ours | |
| `c` | `a` | `tokio` but `tokio::time` and `tokio::sync`, `x-y` |
| `d` | all rooms above | |

| crate | only in |
|---|---|
| `x-y` | `c` |
";
    let document = Document::parse(text).unwrap();
    let found: Vec<_> = document
        .rooms
        .iter()
        .map(|room| (&*room.name, room.may_use.len()))
        .collect();
    assert_eq!(found, [("a", 0), ("b", 0), ("c", 1), ("d", 3)]);
    let never = [
        Forbidden {
            name: "tokio".into(),
            except: vec!["tokio::time".into(), "tokio::sync".into()],
        },
        Forbidden {
            name: "x-y".into(),
            except: vec![],
        },
    ];
    assert_eq!(document.rooms[2].never, never);
    assert_eq!(document.crates[0].name, "x_y");
    assert_eq!(document.contradictions(), Vec::<String>::new());
}

#[test]
fn a_row_in_prose_is_refused() {
    let text = "| room | may use | never |\n|---|---|---|\n| `a` | what it likes | |\n";
    let error = Document::parse(text).err().unwrap();
    assert!(error.contains("`a`") && error.contains("what it likes"), "{error}");
}

#[test]
fn a_row_that_looks_down_is_a_contradiction() {
    let text = "| room | may use | never |\n|---|---|---|\n| `a` | `b` | |\n| `b` | nothing of ours | |\n\n\
                | crate | only in |\n|---|---|\n| `x` | `a` |\n";
    let contradictions = Document::parse(text).unwrap().contradictions();
    assert_eq!(contradictions.len(), 1, "{contradictions:?}");
}
