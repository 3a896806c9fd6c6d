//! What documents consist of: blocks of commands, headings, links, tables.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

pub struct Document {
    /// Relative to the repository.
    pub path: String,
    pub text: String,
}

/// A block of commands.
#[derive(Debug)]
pub struct Block {
    pub line: usize,
    /// The heading of the second level above it.
    pub section: String,
    pub text: String,
}

impl Document {
    /// The lines outside of blocks of code, with their numbers, and each block of code with its language.
    fn parts(&self) -> (Vec<&str>, Vec<(String, Block)>) {
        let (mut lines, mut blocks) = (vec![], vec![]);
        let (mut section, mut open) = (String::new(), None::<(String, Block)>);
        for (at, line) in self.text.lines().enumerate() {
            if let Some((_, block)) = &mut open {
                if line.trim_start().starts_with("```") {
                    blocks.extend(open.take());
                } else {
                    block.text += line;
                    block.text.push('\n');
                }
            } else if let Some(language) = line.trim_start().strip_prefix("```") {
                let block = Block {
                    line: at + 1,
                    section: section.clone(),
                    text: String::new(),
                };
                open = Some((language.trim().to_owned(), block));
            } else {
                if let Some(heading) = line.strip_prefix("## ") {
                    heading.clone_into(&mut section);
                }
                lines.push(line);
            }
        }
        (lines, blocks)
    }

    pub fn shell_blocks(&self) -> Vec<Block> {
        let (_, blocks) = self.parts();
        let shell = blocks.into_iter().filter(|(language, _)| language == "sh");
        shell.map(|(_, block)| block).collect()
    }

    /// Texts in backticks outside of blocks.
    fn quotes(line: &str) -> impl Iterator<Item = &str> {
        line.split('`').skip(1).step_by(2)
    }

    /// Commands of ours in running text.
    pub fn inline_commands(&self) -> Vec<String> {
        let programs = [
            "clustermesh-apiserver ",
            "isthmus ",
            "kvstoremesh-dbg ",
            "clustermesh-dbg ",
            "make ",
        ];
        let (lines, _) = self.parts();
        let quotes = lines.into_iter().flat_map(Self::quotes);
        let commands = quotes.filter(|quote| programs.iter().any(|program| quote.starts_with(program)));
        commands.map(str::to_owned).collect()
    }

    /// Quotes in the first cells of tables.
    pub fn first_cells(&self) -> Vec<String> {
        let (lines, _) = self.parts();
        let cells = lines
            .into_iter()
            .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        cells.flat_map(Self::quotes).map(str::to_owned).collect()
    }

    /// Links to files and headings of the repository.
    pub fn links(&self) -> Vec<String> {
        let (lines, _) = self.parts();
        let text = lines.join("\n");
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let local = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
        local
            .map(|target| target.replace('\n', ""))
            .filter(|target| !target.contains(' '))
            .collect()
    }

    /// The anchors that GitHub makes of headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let (lines, _) = self.parts();
        let headings = lines.into_iter().filter(|line| line.starts_with('#'));
        let mut anchors = BTreeSet::new();
        for heading in headings {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor = kept.collect::<String>().replace(' ', "-");
            let numbered = (1..).map(|n| format!("{anchor}-{n}"));
            let free = std::iter::once(anchor.clone()).chain(numbered);
            let new = free.into_iter().find(|anchor| !anchors.contains(anchor));
            anchors.extend(new);
        }
        anchors
    }
}

impl Block {
    /// The commands, without comments, each in one line. The text of a here-document belongs to its command; lines of functions
    /// and loops are one command.
    pub fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ").replace("|\n", "| ");
        let (mut commands, mut end, mut depth) = (vec![], None, 0_usize);
        for line in joined.lines() {
            if let Some(word) = end {
                if line == word {
                    end = None;
                }
                continue;
            }
            let line = line.split("  #").next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if depth == 0 {
                commands.push(words(line).join(" "));
            }
            let opens = line.ends_with("() {") || line == "{" || line.ends_with("; do");
            let closes = line.starts_with('}') || line == "done";
            depth = (depth + usize::from(opens)).saturating_sub(usize::from(closes));
            end = line
                .split_once("<<")
                .map(|(_, word)| word)
                .map(|word| if word == "END" { "END" } else { "EOF" });
        }
        commands
    }
}

/// The words of a command, up to a pipe or a comment.
pub fn words(command: &str) -> Vec<&str> {
    let words = command.split_whitespace();
    words
        .take_while(|word| *word != "|" && !word.starts_with('#'))
        .collect()
}

/// The path to `file` in `directory`, without `..`.
pub fn joined(directory: &Path, file: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in directory.join(file).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}
