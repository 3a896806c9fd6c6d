//! What the filter has decided about single keys, for reports.

use super::addresses::Name;
use super::identities::{self, Wanted};
use super::{Filter, Mode, endpoints_judge, identities_judge, object_at};
use crate::model::keys::Scope;
use crate::scope::rules::{Cause, Decision, Rules, Verdict};

impl Filter {
    /// The verdict about a key that the filter was told of; `name` is the part after the prefix.
    pub(in super::super) fn verdict(&self, kind: Scope, name: &[u8]) -> Verdict {
        match self.mode(kind) {
            Mode::Pass => Verdict::new(Decision::Keep, Cause::Default),
            Mode::Off => Verdict::new(Decision::LeaveOut, self.cause_of_nothing(kind)),
            Mode::Filtered => self
                .found(kind, name)
                .unwrap_or(Verdict::new(Decision::Pending, Cause::Default)),
        }
    }

    fn found(&self, kind: Scope, name: &[u8]) -> Option<Verdict> {
        if let Some(at) = object_at(kind) {
            return self.objects[at].verdict(self.setup.judge(kind), name);
        }
        if kind == Scope::Endpoints {
            let judge = endpoints_judge(
                &self.setup,
                &self.progress,
                &self.objects,
                (&self.identities, &self.backends),
            );
            return self.endpoints.verdict(judge, &Name::new(name));
        }
        let judge = identities_judge(&self.setup, &self.progress, (&self.objects, &self.endpoints));
        match identities::number(name) {
            Some(number) => self.identities.verdict(judge, number),
            // No endpoint can use a name that is no number.
            None => Some(match judge.wanted {
                Wanted::All => Verdict::new(Decision::Keep, Cause::Default),
                Wanted::Used => Verdict::new(Decision::LeaveOut, Cause::Unused),
                Wanted::Labels => Verdict::new(Decision::LeaveOut, Cause::Kind),
            }),
        }
    }

    /// Why no key of a kind is mirrored.
    fn cause_of_nothing(&self, kind: Scope) -> Cause {
        let is_imported = self.setup.entry().is_none_or(|entry| entry.kinds.contains(&kind));
        match (is_imported, kind) {
            (false, _) => Cause::Kind,
            (true, Scope::Identities) => Cause::Unused,
            (true, _) => Cause::Default,
        }
    }

    /// The rules for a kind of keys of this cluster.
    pub(in super::super) fn rules(&self, kind: Scope) -> &Rules {
        self.setup.rules(kind)
    }

    /// The region of the remote cluster.
    pub(in super::super) fn region(&self) -> Option<&str> {
        self.setup.region()
    }

    /// Whether the rules see an endpoint as a backend; `None` if no rule asks.
    pub(in super::super) fn is_backend(&self, name: &[u8]) -> Option<bool> {
        let asks = self.setup.needs_backends();
        asks.then(|| self.endpoints.is_backend(&Name::new(name)))
    }
}
