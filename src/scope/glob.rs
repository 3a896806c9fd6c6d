//! Names with wildcards.

use std::fmt;

/// A pattern for whole names: `*` stands for any characters, also for none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(Box<str>);

impl Glob {
    /// Takes any text; the caller checks the characters.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern stands for one name only.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// The number of characters that a name must have: of two patterns that match, the one with more is closer.
    pub fn literals(&self) -> usize {
        self.0.bytes().filter(|b| *b != b'*').count()
    }

    pub fn matches(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return *self.0 == *name;
        };
        let Some(mut name) = name.strip_prefix(first) else {
            return false;
        };
        // What stands between two wildcards is taken at its first place, which leaves the most to what follows.
        let mut parts = rest.split('*');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            match name.find(part) {
                Some(at) => name = &name[at + part.len()..],
                None => return false,
            }
        }
        name.ends_with(last)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, character by character.
    fn model(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => model(rest, name) || name.split_first().is_some_and(|(_, n)| model(pattern, n)),
            (Some((p, rest)), Some((n, name))) => p == n && model(rest, name),
            _ => false,
        }
    }

    #[test]
    fn a_wildcard_stands_for_any_characters_of_the_whole_name() {
        for (pattern, name, is_match) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("batch-*", "batch-1", true),
            ("batch-*", "my-batch-1", false),
            ("*-db", "prod-db", true),
            ("*-db", "prod-dbs", false),
            ("a*b*c", "abc", true),
            ("a*a", "a", false),
            ("*ab*ab", "ab", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), is_match, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn every_pattern_matches_what_its_definition_says(pattern in "[ab*]{0,8}", name in "[ab]{0,8}") {
            let expected = model(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Glob::new(&pattern).matches(&name), expected);
        }
    }
}
