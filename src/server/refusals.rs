//! Counts and logs what clients were refused because of a budget: one metric for each budget, and one log line for each
//! budget and client, however often the client is refused.

use super::peer::Peer;
use crate::util::metrics::Labels;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// The time between two log lines about the same budget and client.
const QUIET: Duration = Duration::from_secs(60);
/// Clients whose last log line is remembered. More clients share a line for each budget.
const CLIENTS_MAX: usize = 1024;

/// The budgets, by the effect of their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Budget {
    /// A connection was closed to make room for another.
    Connections,
    /// A handshake took too long.
    Handshake,
    /// A connection was idle for too long.
    Idle,
    /// A request was incomplete for too long.
    Request,
    /// Too many requests of a connection wait for its budget of request bytes, or one waited for too long.
    WaitingRequests,
    /// A client did not take its answers.
    Answers,
    /// An answer was too long.
    LongAnswer,
    /// A watcher was not created.
    Watchers,
    /// A lease was not granted.
    Leases,
    /// A transaction would visit too many keys.
    Transaction,
    /// Too many passwords wait to be checked.
    Passwords,
    /// The user that the certificate names does not exist.
    UnknownUser,
    /// Too many calls of a connection of which no call was admitted yet.
    StrangerCalls,
    /// The certificate of a live connection expired, was revoked, or is no longer trusted.
    Certificate,
}

#[derive(Default)]
pub(super) struct Refusals {
    counts: Family<Labels, Counter>,
    said: Mutex<HashMap<(Budget, String), Said>>,
    /// Refusals of each client since the start.
    clients: Mutex<HashMap<String, u64>>,
}

struct Said {
    at: Instant,
    /// Refusals since then.
    since: u64,
}

impl Budget {
    const ALL: [Self; 14] = [
        Self::Connections,
        Self::Handshake,
        Self::Idle,
        Self::Request,
        Self::WaitingRequests,
        Self::Answers,
        Self::LongAnswer,
        Self::Watchers,
        Self::Leases,
        Self::Transaction,
        Self::Passwords,
        Self::UnknownUser,
        Self::StrangerCalls,
        Self::Certificate,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Request => "request",
            Self::WaitingRequests => "waiting-requests",
            Self::Answers => "answers",
            Self::LongAnswer => "long-answer",
            Self::Watchers => "watchers",
            Self::Leases => "leases",
            Self::Transaction => "transaction",
            Self::Passwords => "passwords",
            Self::UnknownUser => "unknown-user",
            Self::StrangerCalls => "stranger-calls",
            Self::Certificate => "certificate",
        }
    }

    /// What happened, for the log.
    const fn text(self) -> &'static str {
        match self {
            Self::Connections => "too many connections: closed the oldest unfinished or idle connection",
            Self::Handshake => "closed a connection whose handshake took too long",
            Self::Idle => "closed an idle connection",
            Self::Request => "ended a call whose request was incomplete for too long",
            Self::WaitingRequests => {
                "refused a request: too many requests of its connection wait for the budget of request bytes"
            }
            Self::Answers => "closed a connection whose client does not take its answers",
            Self::LongAnswer => "refused an answer that is too long for the budget of long answers",
            Self::Watchers => {
                "refused a watcher: too many watchers, too many different ranges, or a key that is too long"
            }
            Self::Leases => "refused a lease: the user has too many leases",
            Self::Transaction => "refused a transaction that would visit too many keys",
            Self::Passwords => "refused a login: too many passwords wait to be checked",
            Self::UnknownUser => "closed a connection: its certificate names a user that does not exist",
            Self::StrangerCalls => "refused a call: no call of its connection was admitted yet, and too many are open",
            Self::Certificate => "closed a connection whose certificate is not valid any more",
        }
    }

    /// Whether honest clients cause this every day.
    const fn is_routine(self) -> bool {
        matches!(self, Self::Idle | Self::Handshake)
    }
}

impl Refusals {
    /// Registers the counters, at zero.
    pub(super) fn register(&self, registry: &mut Registry) {
        for budget in Budget::ALL {
            drop(self.counts.get_or_create(&vec![("budget", budget.label().to_owned())]));
        }
        registry.register(
            "isthmus_server_refusals",
            "Calls and connections that were refused or closed because a budget was used up; docs/security.md \
             explains each budget",
            Family::clone(&self.counts),
        );
    }

    /// Notes that `peer` was refused.
    pub(super) fn note(&self, budget: Budget, peer: &Peer) {
        self.counts
            .get_or_create(&vec![("budget", budget.label().to_owned())])
            .inc();
        self.count(&peer.owner());
        let user = peer.common_name.as_deref().unwrap_or_default();
        let address = peer.address.map(|a| a.ip().to_string()).unwrap_or_default();
        let Some(more) = self.is_news(budget, format!("{user}@{address}")) else {
            return;
        };
        match budget.is_routine() {
            true => tracing::debug!(
                budget = budget.label(),
                user,
                "remote-addr" = address,
                more,
                "{}",
                budget.text()
            ),
            false => tracing::warn!(
                budget = budget.label(),
                user,
                "remote-addr" = address,
                more,
                "{}",
                budget.text()
            ),
        }
    }

    /// Counts the client, unless too many other clients were refused before.
    fn count(&self, owner: &str) {
        let mut clients = self.clients.lock();
        if let Some(count) = clients.get_mut(owner) {
            *count += 1;
        } else if clients.len() < CLIENTS_MAX {
            clients.insert(owner.to_owned(), 1);
        }
    }

    /// How often each client was refused.
    pub(super) fn by_client(&self) -> Vec<(String, u64)> {
        let clients = self.clients.lock();
        clients.iter().map(|(owner, count)| (owner.clone(), *count)).collect()
    }

    /// The number of refusals that were not logged, if the time for a log line has come.
    fn is_news(&self, budget: Budget, client: String) -> Option<u64> {
        let now = Instant::now();
        let mut said = self.said.lock();
        if said.len() >= CLIENTS_MAX {
            said.retain(|_, said| now.duration_since(said.at) < QUIET);
        }
        let client = if said.len() >= CLIENTS_MAX {
            String::new()
        } else {
            client
        };
        match said.get_mut(&(budget, client.clone())) {
            Some(said) if now.duration_since(said.at) < QUIET => {
                said.since += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.since))
            }
            None => {
                said.insert((budget, client), Said { at: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_refused_often_makes_one_line_a_minute() {
        let refusals = Refusals::default();
        let news = || refusals.is_news(Budget::Leases, "a".to_owned());
        assert_eq!([news(), news(), news()], [Some(0), None, None]);
        assert_eq!(refusals.is_news(Budget::Watchers, "a".to_owned()), Some(0));
        tokio::time::advance(QUIET).await;
        assert_eq!(news(), Some(2));
        for i in 0..2 * CLIENTS_MAX {
            refusals.is_news(Budget::Leases, i.to_string());
        }
        assert!(refusals.said.lock().len() <= CLIENTS_MAX + 1);
    }
}
