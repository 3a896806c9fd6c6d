//! Numbers and names in the words of the pages.

use super::view::{Lag, Method, State};

pub(super) use crate::util::words::grouped as count;

/// A number of bytes, in the largest unit of which it has one.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (n as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if size < 10.0 => format!("{size:.1} {}", UNITS[unit]),
        _ => format!("{size:.0} {}", UNITS[unit]),
    }
}

/// A time in milliseconds, with two digits that count: more of them would change with every look.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 0.0 => format!("−{}", millis(-ms)),
        ms if ms < 1.0 => "< 1 ms".to_owned(),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 10_000.0 => format!("{:.1} s", ms / 1000.0),
        ms => format!("{:.0} s", ms / 1000.0),
    }
}

/// A duration in its two largest units.
pub(super) fn duration(secs: u64) -> String {
    match (secs / 86_400, secs / 3600 % 24, secs / 60 % 60, secs % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// `n` things, in the singular or in the plural.
pub(super) fn things(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(n as u64), if n == 1 { one } else { many })
}

/// A lag in one word, for the label of a link.
pub(super) fn lag(lag: Option<&Lag>) -> String {
    match lag {
        None => "–".to_owned(),
        Some(lag) if lag.method == Method::Heartbeat => format!("≤ {}", millis(lag.max_ms)),
        Some(lag) => millis(lag.p50_ms),
    }
}

/// A text as a value in the query of a URL.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

// === impl State ===

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::WaitingForFile => "client file unreadable",
            Self::Connecting => "connecting",
            Self::WaitingForConfiguration => "waiting for its configuration",
            Self::Listing => "listing",
            Self::InSync => "in sync",
        }
    }

    /// A sign beside the word, which tells the states apart without colour.
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Away | Self::WaitingForFile => "✕",
            Self::Connecting | Self::WaitingForConfiguration => "○",
            Self::Listing => "◐",
            Self::InSync => "●",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        assert_eq!(
            [count(0), count(999), count(1000), count(12_345_678)],
            ["0", "999", "1,000", "12,345,678"]
        );
        assert_eq!(
            [bytes(1023), bytes(1536), bytes(200 << 20)],
            ["1023 B", "1.5 KiB", "200 MiB"]
        );
        assert_eq!(
            [millis(0.2), millis(4.26), millis(56.4), millis(2345.0)],
            ["< 1 ms", "4.3 ms", "56 ms", "2.3 s"]
        );
        assert_eq!(millis(-30_000.0), "−30 s");
        assert_eq!(
            [duration(59), duration(3700), duration(200_000)],
            ["59 s", "1 h 1 min", "2 d 7 h"]
        );
        assert_eq!(
            [things(1, "key", "keys"), things(2, "key", "keys")],
            ["1 key", "2 keys"]
        );
    }

    #[test]
    fn a_text_in_a_query_cannot_end_the_query() {
        assert_eq!(encoded("a/b &\"<é>"), "a%2Fb%20%26%22%3C%C3%A9%3E");
    }
}
