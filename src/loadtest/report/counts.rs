//! The counts of a report with what they mean.

use super::{Summary, grouped};

/// A line of a report.
pub struct Count {
    pub title: &'static str,
    pub value: String,
    pub meaning: &'static str,
}

/// Whether a count of 0 is worth a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Always,
    UnlessZero,
}

use Shown::{Always, UnlessZero};

impl Summary {
    /// Counters that are worth a line: those of faults always, others unless they are 0.
    pub fn counts(&self) -> Vec<Count> {
        let mut shown = self.events();
        shown.extend(self.connections());
        shown.extend(self.traffic());
        shown.extend(self.memory());
        shown.extend(count(
            "errors",
            self.errors.values().sum(),
            Always,
            "Errors of connections and calls, repeated ones included. They are listed with their number.",
        ));
        shown
    }

    /// What agents have received.
    fn events(&self) -> Vec<Count> {
        let (counts, findings) = (&self.counts, &self.findings);
        let rows = [
            (
                "events received",
                counts.delivered,
                UnlessZero,
                "Events of the test's own keys, at all agents together.",
            ),
            (
                "events missing",
                findings.missing,
                Always,
                "Writes whose event an agent never received.",
            ),
            (
                "events twice",
                findings.duplicate,
                Always,
                "Events that an agent received more than once.",
            ),
            (
                "events out of order",
                findings.reordered,
                Always,
                "Events that an agent received after later ones.",
            ),
            (
                "wrong states",
                findings.wrong_state,
                Always,
                "Prefixes of agents whose keys and values at the end were not those that had been written.",
            ),
        ];
        rows.into_iter()
            .filter_map(|(title, n, shown, meaning)| count(title, n, shown, meaning))
            .collect()
    }

    fn connections(&self) -> Vec<Count> {
        let counts = &self.counts;
        let rows = [
            (
                "connections verified at the end",
                counts.verified,
                Always,
                "Connections whose agents had received every write.",
            ),
            (
                "connections behind or lost at the end",
                counts.behind,
                Always,
                "The other connections, after the time that --settle gives them.",
            ),
            (
                "connections made",
                counts.connects,
                UnlessZero,
                "Connections whose handshakes were complete, also after losses and storms.",
            ),
            (
                "connections lost",
                counts.disconnects,
                Always,
                "Connections that ended before the test did: closed by the store, broken, or given up without an answer.",
            ),
            (
                "connections closed by storms",
                counts.storm_closed,
                UnlessZero,
                "Connections that the test itself closed to make a storm.",
            ),
            (
                "attempts to connect that failed",
                counts.failed_connects,
                UnlessZero,
                "Attempts that did not become a connection, for example while the store restarted.",
            ),
        ];
        rows.into_iter()
            .filter_map(|(title, n, shown, meaning)| count(title, n, shown, meaning))
            .collect()
    }

    fn traffic(&self) -> Vec<Count> {
        let counts = &self.counts;
        let rows = [
            ("keys listed", counts.listed, "Keys in all pages that agents have read."),
            (
                "keys written",
                counts.written,
                "Puts of all writers, with those of transactions.",
            ),
            (
                "changes on schedule",
                counts.changes,
                "Single changes that were made at the moments that --rate sets.",
            ),
            (
                "changes not made",
                counts.skipped,
                "Changes that were due while their writer had no connection.",
            ),
            (
                "writes repeated",
                counts.rewritten,
                "Writes that were sent again, because their answer was lost.",
            ),
            (
                "events before the answer",
                counts.early,
                "Events that came before the answer to their write; their latency counts from the request.",
            ),
            (
                "lists repeated",
                counts.relists,
                "Lists that were read again, because a revision was compacted or the store had lost its data.",
            ),
            (
                "events of others",
                counts.foreign,
                "Events of keys that the test did not write.",
            ),
            ("heartbeats received", counts.heartbeats, "At all agents together."),
            ("pings answered", counts.pings, "Pings of HTTP/2 that agents have sent."),
            (
                "bytes of watches",
                counts.received_bytes,
                "Bytes that agents received on their watch streams.",
            ),
            (
                "readers that stopped reading",
                counts.stalled,
                "Connections that took nothing from the store once they were in sync.",
            ),
            (
                "of them disconnected by the store",
                counts.stalled_closed,
                "Readers that the store did not keep waiting for.",
            ),
        ];
        rows.into_iter()
            .filter_map(|(title, n, meaning)| count(title, n, UnlessZero, meaning))
            .collect()
    }

    fn memory(&self) -> Vec<Count> {
        let of_server = if self.server_memory_is_lower_bound { "≥ " } else { "" };
        let rows = [
            (
                "server memory per connection, bytes",
                of_server,
                self.server_bytes_per_connection,
                "Growth of the process while agents connected, for each connection. Memory of the kernel is not included.",
            ),
            (
                "server memory per key, bytes",
                of_server,
                self.server_bytes_per_key,
                "Growth of the process while keys were written, for each key.",
            ),
            (
                "tester memory per connection, bytes",
                "",
                self.tester_bytes_per_connection,
                "Growth of the tester while agents connected, for each connection.",
            ),
        ];
        let known = rows.into_iter().filter_map(|(title, bound, bytes, meaning)| {
            Some(Count {
                title,
                value: format!("{bound}{}", grouped(bytes?.round() as u64)),
                meaning,
            })
        });
        known.collect()
    }
}

fn count(title: &'static str, n: u64, shown: Shown, meaning: &'static str) -> Option<Count> {
    (shown == Always || n > 0).then(|| Count {
        title,
        value: grouped(n),
        meaning,
    })
}
