//! What the MCS API asks of CoreDNS: that the `kubernetes` plugin answers for the clusterset domain, too.
//!
//! A Corefile is read as CoreDNS reads it, as words, so a domain is found where it is a name of its own: not in
//! a comment, not within a longer name, not in quotes. What is not changed stays byte for byte.

pub mod apply;

use std::ops::Range;

/// The oldest CoreDNS whose `kubernetes` plugin knows `multicluster`.
const OLDEST: [u64; 3] = [1, 12, 2];
/// The plugin's option.
const OPTION: &str = "multicluster";

/// The domains to answer for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains {
    /// The cluster's own, `cluster.local`.
    pub cluster: String,
    /// The clusterset's, `clusterset.local`.
    pub clusterset: String,
}

/// What is to be done with a Corefile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: it says something about the clusterset already.
    Keep,
    /// Write this instead.
    Write(String),
}

/// Why a Corefile cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing to add to.
    #[error("the Corefile has no kubernetes plugin with a block for the domain {0:?}")]
    NotConfigured(String),
    /// A domain is not one.
    #[error("{0:?} is not a domain")]
    NoDomain(String),
}

/// What an image's tag tells of CoreDNS' version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// New enough.
    Supported,
    /// Not new enough; the version.
    TooOld(String),
    /// It does not tell; why not.
    Unknown(String),
}

/// A word of a Corefile.
struct Word<'a> {
    text: &'a str,
    /// Where it is.
    at: Range<usize>,
    /// Whether it is the first of its line.
    first: bool,
    quoted: bool,
}

/// Finds out what to do with a Corefile.
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
    let mut inserts: Vec<(usize, String)> = vec![];
    for word in &words {
        if let Some(beside) = word.beside(domains) {
            inserts.push((word.at.end, format!(" {beside}")));
        }
    }
    for line in plugins {
        let start = corefile[..line[0].at.start].rfind('\n').map_or(0, |at| at + 1);
        let indent = &corefile[start..line[0].at.start];
        let brace = line[line.len() - 1].at.end;
        // Behind a comment, if there is one.
        let rest = corefile[brace..].split('\n').next().unwrap_or_default();
        let end = brace + rest.trim_end_matches('\r').len();
        inserts.push((end, format!("\n{indent}   {OPTION} {}", domains.clusterset)));
    }
    inserts.sort_by_key(|(at, _)| *at);
    let (mut out, mut from) = (String::new(), 0);
    for (at, text) in inserts {
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

/// Takes a Corefile apart, without its comments.
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
    /// What is around the domain if the word is that domain, perhaps with a scheme, the final dot, a port or
    /// a comma, as the names of server blocks are.
    fn around(&self, domain: &str) -> Option<(&'a str, &'a str)> {
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
        (port.is_empty() || is_port).then(|| (&self.text[..start], after))
    }

    /// The same for the clusterset, if the word is the cluster's domain.
    fn beside(&self, domains: &Domains) -> Option<String> {
        let (before, after) = self.around(&domains.cluster)?;
        Some(format!("{before}{}{after}", domains.clusterset))
    }

    /// Whether the word is the domain, or a name in it.
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

/// Reads CoreDNS' version from its image. What follows a dash is somebody's own build of that version.
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
