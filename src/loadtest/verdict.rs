//! What an outcome says about the store, and about the test itself, in sentences.

use super::histogram::Measure;
use super::outcome::Outcome;
use super::process::CPU_MIN;
use std::time::Duration;

/// The share of the planned changes below which the rate was not reached.
const REACHED: f64 = 0.95;
/// Fewer planned changes say nothing about the rate.
const PLANNED_MIN: u64 = 20;
/// Writes that are this late are worth a warning.
const LATE: Duration = Duration::from_secs(1);
/// The share of its cores from which on the tester may be what limits.
const BUSY: f64 = 0.85;
/// Parts of errors.
const CLOSED: &str = "closed the connection";
const TOLD: &str = "closed the connection: ";
const REFUSED: &str = "Connection refused";
/// Where a store that closes connections may have a limit.
const CLOSED_BY: &str = "the store closed connections: a store of Isthmus holds --max-connections of them, of which one user may \
    have three quarters, and any store is bounded by its limit of open files; its log and its metrics say which limit it was";

impl Outcome {
    /// Why the store did not pass; empty if it did.
    pub fn faults(&self) -> Vec<String> {
        let (findings, counts) = (&self.findings, &self.counts);
        let count = |n: u64, text: &str| (n > 0).then(|| format!("{n} {text}"));
        // An interrupted run gives agents no time for the last events, and writers none for the last answers.
        let ended = |n: u64| if self.interrupted { 0 } else { n };
        let behind = ended(counts.behind);
        let behind = count(
            behind,
            "connections were lost or had not received everything at the end",
        );
        let behind = behind.map(|text| match (self.errors_with(REFUSED), self.errors_with(CLOSED)) {
            (0, 0) => text,
            (0, _) => format!("{text} ({})", self.last_words().unwrap_or(CLOSED_BY)),
            _ => format!(
                "{text} (nothing listened at the endpoint, for a time or at the end: read the log of the store)"
            ),
        });
        let saw_nothing = self.plan.read_only && counts.listed + counts.foreign + counts.heartbeats == 0;
        let faults = [
            count(findings.missing, "events never came"),
            count(findings.duplicate, "events came twice"),
            count(findings.reordered, "events came out of order"),
            count(
                findings.wrong_state,
                "prefixes of agents did not have the state that was written",
            ),
            behind,
            count(
                ended(counts.unanswered),
                "prefixes were not compared, since the store did not answer the last write to them",
            ),
            count(self.left_behind.len() as u64, "prefixes could not be emptied"),
            (saw_nothing && !self.interrupted)
                .then(|| "agents saw no key: compare --cluster and --prefix with the keys of the store".to_owned()),
        ];
        faults.into_iter().flatten().collect()
    }

    /// What the store has said most often as it closed a connection.
    fn last_words(&self) -> Option<&str> {
        let told = self.errors.iter().filter(|(error, _)| error.contains(TOLD));
        told.max_by_key(|(_, n)| **n).map(|(error, _)| &**error)
    }

    /// How many errors contain a text.
    fn errors_with(&self, text: &str) -> u64 {
        let errors = self.errors.iter().filter(|(error, _)| error.contains(text));
        errors.map(|(_, n)| n).sum()
    }

    /// What limits the meaning of the figures.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = [self.slow_writers(), self.outages(), self.busy_tester()]
            .into_iter()
            .flatten()
            .collect();
        let restarts: u32 = self
            .phases
            .iter()
            .filter(|p| !p.name.starts_with("storm"))
            .fold(0, |sum, phase| sum + phase.server.map_or(0, |spent| spent.restarts));
        if restarts > 0 {
            warnings.push(format!(
                "the process of the server was replaced {restarts} time(s); its CPU time is that of all its processes, less up to a \
                 second before each end"
            ));
        }
        let has_memory = |name: &str| {
            let phase = self.phases.iter().find(|phase| phase.name == name);
            phase.and_then(|phase| phase.server?.grown()).is_some()
        };
        if self.has_old_memory() && (has_memory("fill") || has_memory("connect")) {
            warnings.push(
                "the process of the server had been in use before, and may have filled memory that it already had: its memory \
                 for each connection and each key is at least what is shown (measure with a fresh process)"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Whether the growth of the server's process is less than what it holds more.
    pub fn has_old_memory(&self) -> bool {
        let gave_back = |name: &str| {
            let phase = self.phases.iter().find(|phase| phase.name == name);
            let spent = phase.and_then(|phase| phase.server);
            spent.is_some_and(|spent| spent.given_back > spent.rss_before / 10)
        };
        self.is_server_used || gave_back("fill") || gave_back("connect")
    }

    fn slow_writers(&self) -> Option<String> {
        let (made, planned) = (self.counts.changes, self.planned_changes);
        let secs = self.phases.iter().find(|phase| phase.name == "live")?.secs;
        if planned < PLANNED_MIN || made as f64 >= planned as f64 * REACHED {
            return None;
        }
        let rate = |n: u64| n as f64 / secs.max(0.001);
        Some(format!(
            "the rate was not reached: {:.1} of {:.1} changes per second were made. Either the store or the tester was too slow \
             (compare their CPU), or --writers is too low for the time of a write",
            rate(made),
            rate(planned)
        ))
    }

    fn outages(&self) -> Option<String> {
        let late = self.histograms.get(&Measure::WriteDelay).map(|delays| delays.at(0.99));
        let skipped = self.counts.skipped;
        match late.filter(|late| *late > LATE) {
            _ if skipped > 0 => Some(format!(
                "{skipped} changes were not made, because their writers had no connection when they were due; the figure \
                 \"writers' delay\" contains them"
            )),
            Some(late) => Some(format!(
                "one of a hundred changes was sent more than {:.1} s later than planned",
                late.as_secs_f64()
            )),
            None => None,
        }
    }

    fn busy_tester(&self) -> Option<String> {
        let live = self.phases.iter().find(|phase| phase.name == "live")?;
        let cores = live.tester.cpu_secs / live.secs.max(0.001);
        let is_limit = live.tester.cpu_secs > CPU_MIN.as_secs_f64() && cores > BUSY * self.tester_cores as f64;
        (is_limit && self.tester_cores > 0).then(|| {
            format!(
                "the tester used {cores:.1} of {} cores: latencies contain its own delay. Use a machine of its own, or several",
                self.tester_cores
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::outcome::{PhaseCosts, Spent};
    use crate::loadtest::report::tests::outcome;

    fn live(outcome: &mut Outcome) -> &mut PhaseCosts {
        outcome.phases.push(PhaseCosts {
            name: "live".to_owned(),
            secs: 10.0,
            ..PhaseCosts::default()
        });
        outcome.phases.last_mut().unwrap()
    }

    #[test]
    fn a_rate_that_was_not_reached_and_a_busy_tester_are_told() {
        let mut outcome = outcome();
        live(&mut outcome).tester.cpu_secs = 38.0;
        (outcome.planned_changes, outcome.counts.changes, outcome.tester_cores) = (200, 150, 4);
        let warnings = outcome.warnings();
        assert!(warnings[0].contains("15.0 of 20.0 changes"), "{warnings:?}");
        assert!(warnings[1].contains("3.8 of 4 cores"), "{warnings:?}");
        (outcome.counts.changes, outcome.tester_cores) = (199, 8);
        assert_eq!(outcome.warnings(), Vec::<String>::new());
        outcome.counts.skipped = 7;
        assert!(outcome.warnings()[0].contains("7 changes were not made"));
    }

    #[test]
    fn memory_of_a_used_process_is_a_lower_bound() {
        let mut outcome = outcome();
        outcome.is_server_used = true;
        assert!(outcome.warnings()[0].contains("at least"), "{:?}", outcome.warnings());
        outcome.phases[0].server = Some(Spent {
            rss_after: 1 << 30,
            restarts: 1,
            ..Spent::default()
        });
        let warnings = outcome.warnings();
        assert!(
            warnings[0].contains("replaced 1 time(s)") && warnings.len() == 1,
            "{warnings:?}"
        );
    }

    #[test]
    fn closed_connections_name_the_limit_of_the_store() {
        let mut outcome = outcome();
        outcome.counts.behind = 3;
        assert!(!outcome.faults()[0].contains("--max-connections"));
        outcome.errors.insert("the store closed the connection".to_owned(), 9);
        assert!(
            outcome.faults()[0].contains("--max-connections"),
            "{:?}",
            outcome.faults()
        );
        let told = "the store closed the connection: too many connections (code 11 of HTTP/2)";
        outcome.errors.insert(told.to_owned(), 7);
        assert!(outcome.faults()[0].contains(told), "{:?}", outcome.faults());
        outcome
            .errors
            .insert("connect: Connection refused (os error 111)".to_owned(), 1);
        assert!(
            outcome.faults()[0].contains("nothing listened"),
            "{:?}",
            outcome.faults()
        );
        outcome.interrupted = true;
        assert_eq!(outcome.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_write_without_an_answer_is_named_and_is_no_wrong_state() {
        let mut outcome = outcome();
        outcome.counts.unanswered = 1;
        let faults = outcome.faults();
        assert!(
            faults.len() == 1 && faults[0].contains("did not answer the last write"),
            "{faults:?}"
        );
        outcome.interrupted = true;
        assert_eq!(outcome.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_read_only_run_that_saw_nothing_fails() {
        let mut outcome = outcome();
        outcome.plan.read_only = true;
        assert!(outcome.faults()[0].contains("saw no key"), "{:?}", outcome.faults());
        outcome.counts.listed = 1;
        assert_eq!(outcome.faults(), Vec::<String>::new());
    }
}
