//! Which results may be added up: those of different runs with the same settings against the same store.

use super::error::Error;
use super::outcome::Outcome;
use super::plan::Plan;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Settings that differ from machine to machine.
const MAY_DIFFER: [&str; 5] = ["run", "agents", "source_addresses", "existing", "users"];
/// The most differences that an error names.
const NAMED_MAX: usize = 6;

/// Reads results and adds them up.
pub fn merge(files: &[PathBuf]) -> Result<Outcome, Error> {
    let mut read: Vec<(&Path, Outcome)> = vec![];
    for file in files {
        let outcome = Outcome::read(file)?;
        for (other, earlier) in &read {
            if let Some(why) = contradiction(earlier, &outcome) {
                let (one, two) = (other.display(), file.display());
                return Err(Error::Plan(format!("cannot add {one} and {two} up: {why}")));
            }
        }
        read.push((file, outcome));
    }
    let sum = read.into_iter().map(|(_, outcome)| outcome).reduce(|mut sum, outcome| {
        sum.add(outcome);
        sum
    });
    sum.ok_or_else(|| Error::Plan("name the results to add up".to_owned()))
}

/// Why two results cannot be added up.
fn contradiction(one: &Outcome, two: &Outcome) -> Option<String> {
    if let Some(run) = one.members.iter().find(|run| two.members.contains(run)) {
        return Some(format!("both contain the run {:06x}", run & 0xFF_FFFF));
    }
    let differences = differences(&one.plan, &two.plan);
    if !differences.is_empty() {
        return Some(format!(
            "their settings differ: {}",
            differences[..differences.len().min(NAMED_MAX)].join(", ")
        ));
    }
    let known = one.store != 0 && two.store != 0;
    (known && one.store != two.store).then(|| {
        format!(
            "they are of two stores, with the cluster ids {:x} and {:x}",
            one.store, two.store
        )
    })
}

/// The settings that differ, with their values.
fn differences(one: &Plan, two: &Plan) -> Vec<String> {
    let (Ok(Value::Object(one)), Ok(Value::Object(two))) = (serde_json::to_value(one), serde_json::to_value(two))
    else {
        return vec![];
    };
    let different = one
        .iter()
        .filter(|(name, value)| !MAY_DIFFER.contains(&&***name) && two.get(*name) != Some(*value));
    different
        .map(|(name, value)| {
            let other = two.get(name).map_or_else(|| "nothing".to_owned(), setting);
            format!("{} ({} and {other})", name.replace('_', "-"), setting(value))
        })
        .collect()
}

/// The value of a setting as an operator would write it.
fn setting(value: &Value) -> String {
    match (value.get("secs"), value) {
        (Some(secs), _) => format!("{secs}s"),
        (None, Value::String(text)) => text.clone(),
        (None, Value::Null) => "the default".to_owned(),
        (None, value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::scenarios::Scenario;
    use std::time::Duration;

    fn outcome(change: impl FnOnce(&mut Plan)) -> Outcome {
        let mut plan = Scenario::Storm.plan();
        change(&mut plan);
        Outcome::new(&plan, &["https://a:1".to_owned()])
    }

    #[test]
    fn runs_with_other_settings_or_of_another_store_are_refused_with_what_differs() {
        let one = outcome(|_| ());
        assert_eq!(contradiction(&one, &outcome(|plan| plan.agents = 7)), None);
        let why = |two: &Outcome| contradiction(&one, two).unwrap();
        assert!(why(&one).contains("both contain the run"));
        let two = outcome(|plan| (plan.keys, plan.duration) = (5, Duration::from_secs(9)));
        let text = why(&two);
        assert!(
            text.contains("keys (12000 and 5)") && text.contains("duration (120s and 9s)"),
            "{text}"
        );
        let mut other = outcome(|_| ());
        (other.store, other.plan.scenario) = (7, "storm".to_owned());
        assert_eq!(contradiction(&one, &other), None, "the store of the first is not known");
        let mut known = outcome(|_| ());
        known.store = 8;
        let text = contradiction(&known, &other).unwrap();
        assert!(text.contains("two stores") && text.contains("ids 8 and 7"), "{text}");
    }

    #[test]
    fn a_merged_result_contains_its_runs() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, outcome: &Outcome| {
            let path = dir.path().join(name);
            std::fs::write(&path, serde_json::to_string(outcome).unwrap()).unwrap();
            path
        };
        let (a, b) = (write("a", &outcome(|_| ())), write("b", &outcome(|_| ())));
        let sum = merge(&[a.clone(), b.clone()]).unwrap();
        assert_eq!((sum.runs, sum.members.len(), sum.connections), (2, 2, 6000));
        let error = merge(&[a.clone(), b, write("sum", &sum)]).unwrap_err().to_string();
        assert!(
            error.contains("/a and ") && error.contains("/sum up: both contain"),
            "{error}"
        );
        assert_eq!(merge(&[a]).unwrap().runs, 1);
    }
}
