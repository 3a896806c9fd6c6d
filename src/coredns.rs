//! Configures CoreDNS for the MCS API: the `kubernetes` plugin must answer for the clusterset domain, too.
//!
//! A Corefile is split into words, as in CoreDNS, so that a domain is found only as a name of its own, not in a
//! comment, a longer name or quotes. The rest of the Corefile stays byte for byte.

pub mod apply;

use std::ops::Range;

/// The oldest CoreDNS whose `kubernetes` plugin knows `multicluster`.
const OLDEST: [u64; 3] = [1, 12, 2];
/// The plugin's option for clusterset domains.
const OPTION: &str = "multicluster";

/// The domains to answer for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains {
    /// The cluster's own domain: `cluster.local`.
    pub cluster: String,
    /// The clusterset's domain: `clusterset.local`.
    pub clusterset: String,
}

/// The change of a Corefile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Leave the Corefile, which already names the clusterset or configures the option.
    Keep,
    /// Replace the Corefile by this text.
    Write(String),
}

/// Why a Corefile cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the Corefile has no kubernetes plugin with a block for the domain {0:?}")]
    NotConfigured(String),
    #[error("{0:?} is not a domain")]
    NoDomain(String),
}

/// The version of CoreDNS, according to the tag of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    Supported,
    /// The version.
    TooOld(String),
    /// The reason.
    Unknown(String),
}

/// A word of a Corefile.
struct Word<'a> {
    text: &'a str,
    /// The bytes of the Corefile.
    at: Range<usize>,
    /// Whether the word is the first of its line.
    first: bool,
    quoted: bool,
}

/// Text around a domain in a word.
struct Around<'a> {
    /// The scheme.
    before: &'a str,
    /// The final dot, the port and a comma.
    after: &'a str,
}

/// Text to insert into a Corefile.
struct Insertion {
    at: usize,
    text: String,
}

/// Decides how to change a Corefile.
pub fn plan(domains: &Domains, corefile: &str) -> Result<Plan, Error> {
    for domain in [&domains.cluster, &domains.clusterset] {
        if domain.is_empty() || domain.contains(|c: char| c.is_whitespace() || "{}\"#".contains(c)) {
            return Err(Error::NoDomain(domain.clone()));
        }
    }
    let words = words(corefile);
    let known = |word: &Word<'_>| (word.first && word.text == OPTION) || word.is_within(&domains.clusterset);
    if words.iter().any(known) {
        return Ok(Plan::Keep);
    }
    let lines = words.chunk_by(|_, next| !next.first);
    let plugins: Vec<_> = lines.filter(|line| is_plugin(line, &domains.cluster)).collect();
    if plugins.is_empty() {
        return Err(Error::NotConfigured(domains.cluster.clone()));
    }
    let mut insertions: Vec<Insertion> = vec![];
    for word in &words {
        if let Some(name) = word.clusterset_name(domains) {
            insertions.push(Insertion {
                at: word.at.end,
                text: format!(" {name}"),
            });
        }
    }
    for line in plugins {
        let start = corefile[..line[0].at.start].rfind('\n').map_or(0, |at| at + 1);
        let indent = &corefile[start..line[0].at.start];
        let brace = line[line.len() - 1].at.end;
        // At the end of the line, after any comment.
        let rest = corefile[brace..].split('\n').next().unwrap_or_default();
        let end = brace + rest.trim_end_matches('\r').len();
        insertions.push(Insertion {
            at: end,
            text: format!("\n{indent}   {OPTION} {}", domains.clusterset),
        });
    }
    insertions.sort_by_key(|insertion| insertion.at);
    let (mut out, mut from) = (String::new(), 0);
    for Insertion { at, text } in insertions {
        out.push_str(&corefile[from..at]);
        out.push_str(&text);
        from = at;
    }
    out.push_str(&corefile[from..]);
    Ok(Plan::Write(out))
}

/// Whether a line begins the `kubernetes` plugin's block for a domain.
fn is_plugin(line: &[Word<'_>], domain: &str) -> bool {
    let [first, zones @ .., last] = line else {
        return false;
    };
    first.text == "kubernetes" && last.text == "{" && zones.iter().any(|word| word.around(domain).is_some())
}

/// Splits a Corefile into words, without its comments.
fn words(text: &str) -> Vec<Word<'_>> {
    let (mut words, mut first) = (vec![], true);
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        match c {
            '\n' => first = true,
            '#' => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            _ if c.is_whitespace() => {}
            _ => {
                let quoted = c == '"';
                let mut escaped = false;
                let inside = |c: char, escaped: bool| match quoted {
                    true => escaped || c != '"',
                    false => !c.is_whitespace(),
                };
                while let Some((_, c)) = chars.next_if(|(_, c)| inside(*c, escaped)) {
                    escaped = c == '\\' && !escaped;
                }
                if quoted {
                    chars.next();
                }
                let end = chars.peek().map_or(text.len(), |(at, _)| *at);
                words.push(Word {
                    text: &text[start..end],
                    at: start..end,
                    first: std::mem::take(&mut first),
                    quoted,
                });
            }
        }
    }
    words
}

impl<'a> Word<'a> {
    /// The text around the domain, if the word is that domain, perhaps with a scheme, the final dot, a port or a comma, as
    /// in the names of server blocks.
    fn around(&self, domain: &str) -> Option<Around<'a>> {
        if self.quoted {
            return None;
        }
        let start = self.text.find("://").map_or(0, |at| at + 3);
        let name = &self.text[start..];
        if !name.get(..domain.len())?.eq_ignore_ascii_case(domain) {
            return None;
        }
        let after = &name[domain.len()..];
        let port = after.strip_prefix('.').unwrap_or(after).trim_end_matches(',');
        let is_port = port
            .strip_prefix(':')
            .is_some_and(|port| port.chars().all(|c| c.is_ascii_digit()));
        let before = &self.text[..start];
        (port.is_empty() || is_port).then_some(Around { before, after })
    }

    /// The same word for the clusterset's domain, if the word is the cluster's domain.
    fn clusterset_name(&self, domains: &Domains) -> Option<String> {
        let Around { before, after } = self.around(&domains.cluster)?;
        Some(format!("{before}{}{after}", domains.clusterset))
    }

    /// Whether the word is the domain, or a name in the domain.
    fn is_within(&self, domain: &str) -> bool {
        let labels = self.text.match_indices('.').map(|(at, _)| &self.text[at + 1..]);
        let name = self.text.split("://").last().unwrap_or_default();
        let part = |text| Word {
            text,
            at: 0..0,
            first: false,
            quoted: self.quoted,
        };
        std::iter::once(name)
            .chain(labels)
            .any(|text| part(text).around(domain).is_some())
    }
}

/// Reads the version of CoreDNS from its image. The part of a tag after a dash names a vendor's build of that version.
pub fn version(image: &str) -> Version {
    let unknown = |why: &str| Version::Unknown(format!("{why} in image {image:?}"));
    let name = image.split('@').next().unwrap_or_default();
    // A registry may have a port.
    let Some((_, tag)) = name.rsplit('/').next().and_then(|last| last.split_once(':')) else {
        return unknown("no tag");
    };
    let text = tag.split('-').next().unwrap_or_default().trim_start_matches('v');
    let number = |text: &str| {
        let canonical = text == "0" || !text.starts_with('0');
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| canonical && digits)
    };
    let core = text.split('+').next().unwrap_or_default();
    let numbers: Option<Vec<u64>> = core.split('.').map(number).collect();
    match numbers.as_deref() {
        Some(numbers @ [_, _, _]) if numbers < &OLDEST[..] => Version::TooOld(text.to_owned()),
        Some([_, _, _]) => Version::Supported,
        _ => unknown("no version"),
    }
}

#[cfg(test)]
mod tests;
