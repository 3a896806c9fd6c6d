//! What each user's connections hold and have had, for operators.

use super::Core;
use super::connection::Connection;
use std::collections::BTreeMap;
use std::time::Duration;

/// The connections of one user together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFigures {
    pub connections: usize,
    pub watchers: usize,
    /// How long the oldest events that are ready have waited for the client.
    pub slowest_watcher: Duration,
    /// Bytes of answers that the client has not taken yet.
    pub unsent_bytes: usize,
    /// Bytes of answers that open connections have taken.
    pub sent_bytes: u64,
    /// Refusals because of a budget since the start.
    pub refused: u64,
}

impl Core {
    /// The figures of each user: `user <name>` by the certificate, or else an address.
    pub fn clients(&self) -> BTreeMap<String, ClientFigures> {
        let mut clients: BTreeMap<String, ClientFigures> = BTreeMap::new();
        self.connections.each(|owner, connection| match clients.get_mut(owner) {
            Some(figures) => figures.add(connection),
            None => clients.entry(owner.to_owned()).or_default().add(connection),
        });
        for (owner, refused) in self.refusals.by_client() {
            clients.entry(owner).or_default().refused = refused;
        }
        clients
    }

    /// The number of open connections.
    pub fn open_connections(&self) -> usize {
        self.connections.totals().open
    }

    /// The identity of the store.
    pub fn cluster_id(&self) -> u64 {
        self.config.identity.cluster_id
    }
}

impl ClientFigures {
    fn add(&mut self, connection: &Connection) {
        self.connections += 1;
        self.watchers += connection.watchers();
        self.slowest_watcher = self.slowest_watcher.max(connection.backlog());
        self.unsent_bytes += connection.answers.held();
        self.sent_bytes += connection.answers.sent();
    }
}
