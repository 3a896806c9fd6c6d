//! Settings that are accepted and change nothing.

use std::fmt;

/// Flags of an original program that have no meaning here.
#[derive(Clone, Copy, Debug)]
pub struct IgnoredFlags {
    /// Flags whose value, if any, comes after `=`.
    pub boolean: &'static [&'static str],
    /// Flags whose value comes after `=` or is the next argument.
    pub with_value: &'static [&'static str],
}

/// A setting that changes nothing. The text is for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IgnoredSetting {
    /// An `ETCD_` variable, or a name in etcd's config file, that etcd does not know either.
    Unknown(String),
    /// A flag of the original program that has no meaning here.
    NoEffect(String),
    /// A flag that etcd itself ignores, with etcd's own words, which tools look for.
    Deprecated(&'static str),
}

impl IgnoredFlags {
    pub const NONE: Self = Self {
        boolean: &[],
        with_value: &[],
    };

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.boolean.iter().chain(self.with_value).copied()
    }

    /// Removes these flags from `args`; returns the remaining arguments and the names of the removed flags.
    pub fn strip(&self, args: Vec<String>) -> (Vec<String>, Vec<String>) {
        let (mut rest, mut removed) = (vec![], vec![]);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let name = arg.strip_prefix("--").unwrap_or_default();
            let (name, has_value) = name.split_once('=').map_or((name, false), |(name, _)| (name, true));
            let with_value = self.with_value.contains(&name);
            if !with_value && !self.boolean.contains(&name) {
                rest.push(arg);
                continue;
            }
            removed.push(name.to_owned());
            if with_value && !has_value {
                args.next();
            }
        }
        (rest, removed)
    }
}

impl IgnoredSetting {
    /// Names a removed flag.
    pub fn of_flag(flag: &str) -> Self {
        match flag {
            "max-snapshots" => {
                Self::Deprecated("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.")
            }
            "v2-deprecation" => Self::Deprecated(
                "--v2-deprecation is deprecated and scheduled for removal in v3.8. \
                 The default value is enforced, ignoring user input.",
            ),
            _ => Self::NoEffect(flag.to_owned()),
        }
    }
}

impl fmt::Display for IgnoredSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "unrecognized setting {name}"),
            Self::NoEffect(flag) => write!(f, "--{flag} is accepted and has no effect"),
            Self::Deprecated(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::IGNORED_BY_DAEMONS;

    #[test]
    fn ignored_flags_are_removed_with_their_values() {
        let args = ["x", "--gops-port", "1", "--pprof", "--gops-port=2", "--cluster-id=3"]
            .map(str::to_owned)
            .to_vec();
        let (rest, removed) = IGNORED_BY_DAEMONS.strip(args);
        assert_eq!(rest, ["x", "--cluster-id=3"]);
        assert_eq!(removed, ["gops-port", "pprof", "gops-port"]);
    }
}
