//! Warnings that follow from a file alone.

use super::Trap;
use crate::scope::{ClusterRules, Glob, Rules, ScopeFile};

/// What a file says in vain, whatever the keys are.
pub fn file_traps(file: &ScopeFile) -> Vec<Trap> {
    let mut traps = vec![];
    let export = &file.export;
    list("export.endpoints", &export.endpoints, &mut traps);
    list("export.services", &export.services, &mut traps);
    list("export.serviceExports", &export.service_exports, &mut traps);
    let entries = &file.import.clusters;
    for (at, entry) in entries.iter().enumerate() {
        let place = format!("import.clusters[{at}] ({})", entry.name);
        if let Some(before) = entries[..at].iter().find(|before| takes_all_of(before, entry)) {
            let problem = format!(
                "the entry is never used: the entry {:?} before it matches every cluster that it matches",
                before.name
            );
            traps.push(Trap::new(
                &*place,
                problem,
                "put the entry before that one, since the first entry that matches counts",
            ));
        }
        list(&format!("{place}.endpoints"), &entry.endpoints, &mut traps);
        list(&format!("{place}.services"), &entry.services, &mut traps);
        list(&format!("{place}.serviceExports"), &entry.service_exports, &mut traps);
    }
    traps
}

/// A list of rules of which none can make a difference.
fn list(place: &str, rules: &Rules, traps: &mut Vec<Trap>) {
    if rules.list().is_empty() {
        return;
    }
    let (is_kept, what) = (rules.keep_all(), rules.leave_out_all());
    let word = match (is_kept, what) {
        (true, _) => "includes",
        (_, true) => "excludes",
        _ => return,
    };
    let problem = format!("every rule {word}, and so does the default: the rules make no difference");
    traps.push(Trap::new(
        place,
        problem,
        "set default to the opposite action, or remove the rules",
    ));
}

/// Whether every cluster that `later` matches is matched by `before`, as far as the patterns show.
fn takes_all_of(before: &ClusterRules, later: &ClusterRules) -> bool {
    let is_any = |globs: &[Glob]| globs.is_empty() || globs.iter().any(|glob| glob.as_str() == "*");
    let names = is_any(&before.clusters)
        || !later.clusters.is_empty() && later.clusters.iter().all(|glob| before.clusters.contains(glob));
    let regions = before.regions.is_empty()
        || !later.regions.is_empty() && later.regions.iter().all(|region| before.regions.contains(region));
    names && regions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(sections: &str) -> Vec<String> {
        let text = format!("apiVersion: scope.isthmus.io/v1\nkind: Scope\n{sections}");
        let file = ScopeFile::parse(text.as_bytes()).unwrap();
        file_traps(&file)
            .into_iter()
            .map(|trap| format!("{}: {}", trap.place, trap.problem))
            .collect()
    }

    #[test]
    fn rules_that_make_no_difference_are_told() {
        let rule = |action: &str| format!("rules: [{{name: a, action: {action}, namespaces: {{names: [x]}}}}]");
        let lists = |default: &str, action: &str| {
            told(&format!(
                "export: {{endpoints: {{default: {default}, {}}}}}",
                rule(action)
            ))
        };
        assert!(lists("include", "exclude").is_empty() && lists("exclude", "include").is_empty());
        assert!(lists("include", "include")[0].starts_with("export.endpoints: every rule includes"));
        assert!(lists("exclude", "exclude")[0].starts_with("export.endpoints: every rule excludes"));
        assert!(told("export: {endpoints: {default: exclude}}").is_empty());
    }

    #[test]
    fn entries_that_are_never_used_are_told() {
        let entries = |entries: &str| told(&format!("import: {{clusters: [{entries}]}}"));
        let found = entries("{name: all, clusters: ['*']}, {name: hk, clusters: [hk]}");
        assert!(
            found[0].starts_with("import.clusters[1] (hk): the entry is never used: the entry \"all\""),
            "{found:?}"
        );
        assert_eq!(
            entries("{name: a, regions: [x]}, {name: b, regions: [x], clusters: [hk]}").len(),
            1
        );
        assert!(entries("{name: hk, clusters: [hk]}, {name: all, clusters: ['*']}").is_empty());
        assert!(entries("{name: a, regions: [x]}, {name: b, clusters: ['*']}").is_empty());
        assert!(entries("{name: a, clusters: [hk], regions: [x]}, {name: b, clusters: [hk]}").is_empty());
    }
}
