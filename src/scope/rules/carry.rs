//! What former rules said about an identity, for rules that ask for the same labels.

use super::{Bits, RULES_MAX, Rules};

impl Rules {
    /// The rules whose conditions on an identity hold, if those of the `former` rules are `bits`; `None` if that depends on
    /// labels that the former rules do not ask for.
    pub fn carry(&self, former: &Self, bits: Bits) -> Option<Bits> {
        if self.of_identity == 0 {
            return Some(Bits::ALL);
        }
        let mut carried = u128::MAX;
        for (at, rule) in self.rules.iter().take(RULES_MAX).enumerate() {
            let Some(selector) = &rule.identity else { continue };
            let mut known = former.rules.iter().take(RULES_MAX);
            let from = known.position(|rule| rule.identity.as_ref() == Some(selector))?;
            if bits.0 >> from & 1 == 0 {
                carried &= !(1 << at);
            }
        }
        Some(Bits(carried))
    }
}

#[cfg(test)]
mod tests {
    use crate::scope::file::ScopeFile;
    use crate::scope::rules::Rules;
    use crate::scope::selector::IdentityLabels;

    fn rules(apps: &[Option<&str>]) -> Rules {
        let rules = apps.iter().enumerate().map(|(at, app)| match app {
            Some(app) => {
                serde_json::json!({"name": at.to_string(), "action": "include", "identity": {"matchLabels": {"app": app}}})
            }
            None => serde_json::json!({"name": at.to_string(), "action": "exclude", "namespaces": {"names": ["x"]}}),
        });
        let rules: Vec<_> = rules.collect();
        let file = serde_json::json!({
            "apiVersion": "scope.isthmus.io/v1", "kind": "Scope", "export": {"endpoints": {"rules": rules}},
        });
        ScopeFile::parse(file.to_string().as_bytes()).unwrap().export.endpoints
    }

    #[test]
    fn what_is_carried_is_what_the_labels_say() {
        let lists = [
            vec![],
            vec![None],
            vec![Some("a")],
            vec![Some("b"), None, Some("a")],
            vec![None, Some("a"), Some("a"), Some("b")],
        ];
        for labels in ["k8s:app=a;", "k8s:app=b;", "k8s:app=c;"] {
            let labels = IdentityLabels::parse(labels.as_bytes()).unwrap();
            for (former, new) in lists
                .iter()
                .flat_map(|former| lists.iter().map(move |new| (former, new)))
            {
                let is_known = new.iter().flatten().all(|app| former.contains(&Some(app)));
                let (former, new) = (rules(former), rules(new));
                let carried = new.carry(&former, former.identity(&labels));
                match is_known {
                    true => {
                        // Bits beyond the rules mean nothing.
                        let verdict = |bits| new.endpoint(new.namespace("", Default::default()), Some(bits), false);
                        assert_eq!(carried.map(verdict), Some(verdict(new.identity(&labels))));
                    }
                    false => assert_eq!(carried, None),
                }
            }
        }
    }
}
