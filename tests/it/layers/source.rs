//! The modules of the crate, and what each of them imports. The sources are read as text; no macro is expanded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// All modules, without unit tests.
pub struct Sources {
    pub modules: Vec<Module>,
    /// The names of all functions of the crate and of the black-box tests, unit tests included.
    pub functions: BTreeSet<String>,
}

/// A source file.
pub struct Module {
    /// The path relative to `src`.
    pub file: String,
    /// The path as a module: `["mvcc", "store"]`.
    path: Vec<String>,
    /// The code with the contents of comments and strings blanked, without unit tests.
    code: String,
    uses: Vec<Use>,
}

/// A name that a `use` item imports.
struct Use {
    path: Vec<String>,
    /// The name in the importing file; `*` for a glob.
    name: String,
}

/// Files that import each other.
pub struct Circle {
    pub files: Vec<String>,
    /// Each import inside the circle.
    pub imports: Vec<String>,
}

impl Sources {
    pub fn read() -> Self {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut paths, mut tests) = (vec![], vec![]);
        let root = repository.join("src");
        find(&root, &mut paths);
        find(&repository.join("tests/it"), &mut tests);
        let texts = paths
            .iter()
            .chain(&tests)
            .map(|path| std::fs::read_to_string(path).unwrap());
        let functions = texts.flat_map(|text| function_names(&text)).collect();
        let mut modules: Vec<Module> = paths.iter().map(|path| Module::read(&root, path)).collect();
        let test_modules: BTreeSet<Vec<String>> = modules.iter().flat_map(Module::test_modules).collect();
        modules.retain(|module| {
            let is_test = (1..=module.path.len()).any(|length| test_modules.contains(&module.path[..length]));
            !is_test && module.file != "lib.rs" && module.file != "main.rs"
        });
        for module in &mut modules {
            module.code = without_tests(&module.code);
            module.uses = uses(&module.code);
        }
        modules.sort_by(|a, b| a.file.cmp(&b.file));
        Self { modules, functions }
    }

    /// Circles of imports inside of rooms. An import between a module and one of its ancestors does not count.
    pub fn circles(&self) -> Vec<Circle> {
        let by_path: BTreeMap<&[String], usize> = self
            .modules
            .iter()
            .enumerate()
            .map(|(at, module)| (&*module.path, at))
            .collect();
        let edges: Vec<BTreeSet<usize>> = self
            .modules
            .iter()
            .map(|module| self.imports(module, &by_path))
            .collect();
        let reachable: Vec<BTreeSet<usize>> = (0..edges.len()).map(|at| reachable(at, &edges)).collect();
        let mut seen = BTreeSet::new();
        let mut circles = vec![];
        for at in 0..edges.len() {
            let members: Vec<usize> = reachable[at]
                .iter()
                .copied()
                .filter(|to| reachable[*to].contains(&at))
                .collect();
            if members.len() < 2 || !seen.insert(members.clone()) {
                continue;
            }
            let inside = members.iter().flat_map(|from| {
                let targets = edges[*from].iter().filter(|to| members.contains(to));
                targets.map(move |to| format!("{} → {}", self.modules[*from].file, self.modules[*to].file))
            });
            circles.push(Circle {
                imports: inside.collect(),
                files: members
                    .iter()
                    .map(|member| self.modules[*member].file.clone())
                    .collect(),
            });
        }
        circles
    }

    /// The modules of the same room that a module imports, except for its ancestors and descendants.
    fn imports(&self, module: &Module, by_path: &BTreeMap<&[String], usize>) -> BTreeSet<usize> {
        let mut targets = BTreeSet::new();
        for path in module.paths() {
            if let Some(target) = self.resolve(&module.path, &path, by_path, 8) {
                let other = &self.modules[target].path;
                let related = other.starts_with(&module.path) || module.path.starts_with(other);
                if !related && other[0] == module.path[0] {
                    targets.insert(target);
                }
            }
        }
        targets
    }

    /// The module that defines what `path` names in the module `from`. Re-exports are followed.
    fn resolve(
        &self,
        from: &[String],
        path: &[String],
        by_path: &BTreeMap<&[String], usize>,
        depth: usize,
    ) -> Option<usize> {
        let mut at: Vec<String> = from.to_vec();
        let mut rest = path;
        match &*path[0] {
            "crate" => (at, rest) = (vec![], &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            child => {
                let child = [from, &[child.to_owned()]].concat();
                by_path.get(&*child)?;
            }
        }
        while let Some(segment) = rest.first() {
            at.push(segment.clone());
            if !by_path.contains_key(&*at) {
                at.pop();
                break;
            }
            rest = &rest[1..];
        }
        let module = *by_path.get(&*at)?;
        let reexport = rest.first().and_then(|item| {
            let mut uses = self.modules[module].uses.iter();
            uses.find(|import| import.name == *item)
        });
        match reexport {
            Some(import) if depth > 0 => {
                let defined = self.resolve(&at, &import.path, by_path, depth - 1);
                defined.or(Some(module))
            }
            _ => Some(module),
        }
    }
}

/// The nodes that can be reached from a node, the node included.
fn reachable(from: usize, edges: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let (mut seen, mut todo) = (BTreeSet::from([from]), vec![from]);
    while let Some(at) = todo.pop() {
        todo.extend(edges[at].iter().filter(|to| seen.insert(**to)));
    }
    seen
}

fn function_names(text: &str) -> Vec<String> {
    let after = text.split("fn ").skip(1);
    let names = after.filter_map(|code| code.split_once('(').map(|(name, _)| name.to_owned()));
    names.collect()
}

fn find(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

impl Module {
    fn read(root: &Path, path: &Path) -> Self {
        let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let path = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        let code = blanked(&std::fs::read_to_string(root.join(&file)).unwrap());
        Self {
            file,
            path,
            code,
            uses: vec![],
        }
    }

    pub fn room(&self) -> &str {
        &self.path[0]
    }

    /// Submodules that exist only for unit tests.
    fn test_modules(&self) -> Vec<Vec<String>> {
        let after = self.code.split("#[cfg(test)]").skip(1).map(str::trim_start);
        let declared = after.filter_map(|code| Some(code.strip_prefix("mod ")?.split_once([';', ' '])?.0));
        declared
            .map(|name| [&self.path[..], &[name.to_owned()]].concat())
            .collect()
    }

    /// Lines of code.
    pub fn lines(&self) -> usize {
        self.code.lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// The rooms that paths beginning with `crate` name.
    pub fn rooms_used(&self) -> BTreeSet<String> {
        let from_root = self.paths().into_iter().filter(|path| path[0] == "crate");
        from_root.filter_map(|path| path.get(1).cloned()).collect()
    }

    /// Whether a path of the code begins with `name`.
    pub fn mentions(&self, name: &str) -> bool {
        self.mentions_other_than(name, &[])
    }

    /// Whether the code contains the keyword `async`, or a path that begins with `name` and with none of `except`.
    pub fn mentions_other_than(&self, name: &str, except: &[String]) -> bool {
        if name == "async" {
            return self.code.contains("async ");
        }
        let begins_with = |path: &[String], name: &str| {
            let name: Vec<String> = name.split("::").map(|segment| segment.replace('-', "_")).collect();
            path.starts_with(&name)
        };
        let mut paths = self.paths().into_iter();
        paths.any(|path| begins_with(&path, name) && !except.iter().any(|allowed| begins_with(&path, allowed)))
    }

    /// All paths of the code: those of `use`, one for each name, and those in expressions and types.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut paths: Vec<_> = self.uses.iter().map(|import| import.path.clone()).collect();
        paths.extend(inline_paths(&without_uses(&self.code)));
        paths
    }
}

/// Code in which the contents of comments, strings and characters are blanks. Lines stay as they are.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = vec![];
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if end > at {
            out.extend(bytes[at..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
            at = end;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// The length of the comment, string or character literal that `rest` begins with, or 0.
fn literal(rest: &[u8], before: Option<u8>) -> usize {
    let until = |end: &[u8], from: usize| {
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |found| from + found + end.len())
    };
    if rest.starts_with(b"//") {
        return until(b"\n", 2).saturating_sub(1);
    }
    if rest.starts_with(b"/*") {
        return until(b"*/", 2);
    }
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if rest[0] == b'r' && !in_word {
        let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let end = [b"\"", "#".repeat(hashes).as_bytes()].concat();
            return until(&end, 2 + hashes);
        }
    }
    if rest[0] == b'"' {
        return quoted(rest, b'"');
    }
    // A lifetime has no closing quote.
    let is_char = rest[0] == b'\'' && (rest.get(1) == Some(&b'\\') || rest.iter().skip(2).take(4).any(|b| *b == b'\''));
    let is_lifetime = rest.get(2) != Some(&b'\'') && rest.get(1).is_some_and(u8::is_ascii_alphabetic);
    if is_char && !is_lifetime {
        quoted(rest, b'\'')
    } else {
        0
    }
}

/// The length of a literal with escapes, both quotes included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Code up to its unit tests, which come last in a file.
fn without_tests(code: &str) -> String {
    let tests = code.match_indices("#[cfg(test)]").find(|(at, attribute)| {
        let after = code[at + attribute.len()..].trim_start();
        after.starts_with("mod ")
            && after
                .split_once('\n')
                .is_some_and(|(line, _)| line.trim_end().ends_with('{'))
    });
    tests.map_or(code, |(at, _)| &code[..at]).to_owned()
}

/// The ranges of the `use` items.
fn use_items(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut items = vec![];
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        let is_item = line.is_empty() || line == "pub" || (line.starts_with("pub(") && line.ends_with(')'));
        if is_item && let Some(length) = code[at..].find(';') {
            items.push(at..at + length);
        }
    }
    items
}

fn without_uses(code: &str) -> String {
    let mut rest = code.to_owned();
    for item in use_items(code).into_iter().rev() {
        rest.replace_range(item, "");
    }
    rest
}

fn uses(code: &str) -> Vec<Use> {
    let mut all = vec![];
    for item in use_items(code) {
        expand(vec![], code[item].trim_start_matches("use ").trim(), &mut all);
    }
    all
}

/// Adds each name of a `use` tree such as `a::{b, c::{d as e, *}}`.
fn expand(prefix: Vec<String>, tree: &str, out: &mut Vec<Use>) {
    if let Some((head, group)) = tree.split_once('{') {
        let head = head.split("::").map(str::trim).filter(|segment| !segment.is_empty());
        let prefix: Vec<String> = prefix.into_iter().chain(head.map(str::to_owned)).collect();
        let group = group.trim().strip_suffix('}').unwrap_or(group);
        for part in split_group(group) {
            expand(prefix.clone(), part.trim(), out);
        }
        return;
    }
    let (path, alias) = tree
        .split_once(" as ")
        .map_or((tree, None), |(path, alias)| (path, Some(alias)));
    let mut path: Vec<String> = prefix
        .into_iter()
        .chain(path.split("::").map(|segment| segment.trim().to_owned()))
        .filter(|segment| !segment.is_empty())
        .collect();
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    if let Some(last) = path.last().cloned() {
        out.push(Use {
            name: alias.map_or(last, |alias| alias.trim().to_owned()),
            path,
        });
    }
}

/// The parts of a group, split at the commas that are in no nested group.
fn split_group(group: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// Paths of at least two segments outside of `use` items.
fn inline_paths(code: &str) -> Vec<Vec<String>> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c| !is_part(c)).filter(|word| word.contains("::"));
    let segments = words.map(|word| word.split("::").map(|segment| segment.trim_matches(':').to_owned()));
    let paths = segments.map(|segments| segments.filter(|segment| !segment.is_empty()).collect::<Vec<_>>());
    paths.filter(|path| !path.is_empty()).collect()
}

#[test]
fn nested_use_trees_are_expanded() {
    let all = uses("use crate::{a::{B, C as D, self}, e::*};\npub use super::f;\n");
    let found: Vec<_> = all
        .iter()
        .map(|import| format!("{} = {}", import.name, import.path.join("::")))
        .collect();
    let expected = [
        "B = crate::a::B",
        "D = crate::a::C",
        "a = crate::a",
        "* = crate::e::*",
        "f = super::f",
    ];
    assert_eq!(found, expected);
}

#[test]
fn comments_strings_and_characters_are_blanked() {
    let text = "let a = \"x::y\"; // z::w\nlet b = r#\"\"v::u\"#; let c = '\"'; let d: &'static str = e::f;\n";
    let found = inline_paths(&blanked(text));
    assert_eq!(found, [["e", "f"]]);
}
