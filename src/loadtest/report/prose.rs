//! What was tested, in sentences.

use super::grouped;
use crate::loadtest::outcome::Outcome;
use crate::loadtest::plan::{Layout, Plan, SlowReadersAt};
use std::time::Duration;

/// What the test did, one sentence for each subject.
pub fn settings(outcome: &Outcome) -> Vec<String> {
    let plan = &outcome.plan;
    let mut sentences = vec![agents(outcome), connections(plan)];
    if plan.read_only {
        let clusters = plan.existing.join(", ");
        sentences.push(format!("Nothing was written: agents read the clusters {clusters}."));
    } else {
        sentences.push(keys(outcome));
        sentences.push(changes(plan));
    }
    if plan.storms > 0 {
        sentences.push(format!(
            "{} storms, one every {}: all agents closed their connections at once, connected anew and listed everything again.",
            plan.storms,
            time(plan.storm_interval)
        ));
    }
    if plan.slow_readers > 0 {
        let readers = plan.slow_readers;
        let when = match plan.slow_readers_at {
            SlowReadersAt::Start => "",
            SlowReadersAt::Middle => ", in the middle third of the time in which agents watched",
        };
        sentences.push(format!(
            "{readers} further connections stopped reading once they were in sync{when}."
        ));
    }
    let settle = time(plan.settle);
    sentences.push(format!(
        "Agents watched for {}, and had {settle} more for the last events before they were compared with what had been written.",
        time(plan.duration)
    ));
    if outcome.runs > 1 {
        sentences.insert(
            0,
            format!("{} runs were added up; the settings are those of each.", outcome.runs),
        );
    }
    sentences
}

fn agents(outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let clusters = match plan.clusters {
        1 => "one remote cluster".to_owned(),
        n => format!("{n} remote clusters, with a connection for each"),
    };
    format!(
        "{} simulated nodes followed {clusters}: {} connections with {} watches each.",
        grouped(plan.agents as u64),
        grouped(plan.connections() as u64),
        plan.watches
    )
}

fn connections(plan: &Plan) -> String {
    let pace = match plan.connect_rate {
        0.0 => "all at once".to_owned(),
        rate => format!("{rate} per second"),
    };
    let pages = match plan.page {
        0 => "in one page".to_owned(),
        n => format!("in pages of {n} keys"),
    };
    let users = match plan.users {
        0 => String::new(),
        n => format!(" by {n} users in turn"),
    };
    format!("Connections were opened{users} {pace}, and lists were read {pages}.")
}

fn keys(outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let place = match &plan.layout {
        Layout::Cache => "cilium/cache",
        Layout::State => "cilium/state",
        Layout::Own(own) => own,
    };
    format!(
        "{} keys for each cluster with values of {} bytes were written below {place}, and removed at the end.",
        grouped(plan.keys.into()),
        grouped(plan.value_bytes as u64)
    )
}

fn changes(plan: &Plan) -> String {
    let mut text = format!(
        "{} writers changed {} keys per second; {} % of the changes deleted a key and created another one",
        plan.writers, plan.rate, plan.deletes
    );
    if plan.burst > 0 {
        text += &format!(
            ", and {} more were made at once every {}",
            plan.burst,
            time(plan.burst_interval)
        );
    }
    if !plan.bulk_interval.is_zero() {
        text += &format!(
            ". Every {}, clusters were written again as a whole",
            time(plan.bulk_interval)
        );
    }
    text + "."
}

/// A time in the units of people.
fn time(time: Duration) -> String {
    match time.as_secs() {
        secs if secs >= 7200 && secs % 3600 == 0 => format!("{} hours", secs / 3600),
        secs if secs >= 120 && secs % 60 == 0 => format!("{} minutes", secs / 60),
        _ => format!("{} seconds", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::scenarios::Scenario;

    #[test]
    fn settings_are_sentences() {
        let endpoints = ["https://a:1".to_owned()];
        let of = |plan: &Plan| settings(&Outcome::new(plan, &endpoints)).join(" ");
        let soak = of(&Scenario::Soak.plan());
        for part in [
            "1,000 simulated nodes followed 4 remote clusters, with a connection for each: 4,000 connections with 6 watches each.",
            "opened 500 per second",
            "5,000 keys for each cluster",
            "50 keys per second",
            "100 more were made at once every 60 seconds. Every 5 minutes, clusters",
            "5 storms, one every 20 minutes",
            "10 further connections stopped reading",
            "watched for 2 hours",
        ] {
            assert!(soak.contains(part), "no {part:?} in: {soak}");
        }
        let read_only = of(&Plan {
            read_only: true,
            existing: vec!["hk".to_owned()],
            ..Scenario::Storm.plan()
        });
        assert!(
            read_only.contains("read the clusters hk.") && read_only.contains("all at once"),
            "{read_only}"
        );
        assert!(!read_only.contains("written below"), "{read_only}");
    }
}
