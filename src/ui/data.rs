//! The values that pages and API share, each looked up only so often.

use super::cache::Cached;
use super::lookup;
use super::reader::{AgentKeys, Reader};
use super::services::{self, AllServices};
use super::source::{Keys, Source, Unreadable};
use super::view::{Client, Findings, Overview, Remote, RemoteDetail};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Look-ups at a time of one kind of readers. A look-up may visit every key of the store. Agents are many, and must not keep
/// operators waiting.
const LOOK_UPS: usize = 1;
/// Look-ups that wait for their turn, of one kind of readers.
const WAITING_MAX: usize = 8;

/// The longest search, in characters.
const SEARCH_MAX: usize = 512;

/// The text of a search. A longer one would take the time of many.
pub(super) fn shortened(text: &str) -> String {
    text.trim().chars().take(SEARCH_MAX).collect()
}

pub(super) struct Data {
    source: Arc<dyn Source>,
    keys: Arc<dyn Keys>,
    agent_keys: Arc<dyn Keys>,
    overview: Cached<Overview>,
    remotes: Cached<Vec<Remote>>,
    clients: Cached<Option<Vec<Client>>>,
    services: Cached<AllServices>,
    agent_services: Cached<AllServices>,
    look_ups: LookUps,
    agent_look_ups: LookUps,
}

/// The look-ups of one kind of readers.
struct LookUps {
    /// Those that wait or run.
    places: Semaphore,
    turns: Semaphore,
}

/// Why a look-up has no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("too many look-ups wait for their turn: try again in a few seconds")]
    Busy,
}

impl Data {
    pub(super) fn new(source: Arc<dyn Source>, keys: Arc<dyn Keys>) -> Self {
        Self {
            source,
            agent_keys: Arc::new(AgentKeys(Arc::clone(&keys))),
            keys,
            overview: Cached::default(),
            remotes: Cached::default(),
            clients: Cached::default(),
            services: Cached::default(),
            agent_services: Cached::default(),
            look_ups: LookUps::default(),
            agent_look_ups: LookUps::default(),
        }
    }

    pub(super) fn cluster(&self) -> String {
        self.source.cluster()
    }

    pub(super) async fn overview(&self) -> Arc<Overview> {
        self.overview.get(async || self.source.overview()).await
    }

    pub(super) async fn remotes(&self) -> Arc<Vec<Remote>> {
        self.remotes.get(async || self.source.remotes()).await
    }

    pub(super) fn remote(&self, name: &str) -> Option<RemoteDetail> {
        self.source.remote(name)
    }

    pub(super) fn has_remote(&self, name: &str) -> bool {
        self.source.has_remote(name)
    }

    pub(super) async fn clients(&self) -> Arc<Option<Vec<Client>>> {
        self.clients.get(async || self.source.clients()).await
    }

    pub(super) async fn services(&self, reader: Reader) -> Arc<AllServices> {
        let read = async || {
            let mut all = services::read(self.keys_of(reader), &self.source.cluster()).await;
            all.incomplete = with_restriction(all.incomplete, reader);
            all
        };
        match reader {
            Reader::Operator => self.services.get(read).await,
            Reader::Agent => self.agent_services.get(read).await,
        }
    }

    pub(super) async fn look_up(&self, text: &str, reader: Reader) -> Result<Findings, NoAnswer> {
        let look_ups = match reader {
            Reader::Operator => &self.look_ups,
            Reader::Agent => &self.agent_look_ups,
        };
        let _place = look_ups.places.try_acquire().map_err(|_| NoAnswer::Busy)?;
        // The semaphore is never closed.
        let _turn = look_ups.turns.acquire().await;
        let names: Vec<_> = self.remotes().await.iter().map(|remote| remote.name.clone()).collect();
        let found = lookup::look_up(self.keys_of(reader), &self.source.cluster(), &names, text).await;
        let found = found?;
        Ok(Findings {
            incomplete: with_restriction(found.incomplete, reader),
            ..found
        })
    }

    fn keys_of(&self, reader: Reader) -> &dyn Keys {
        match reader {
            Reader::Operator => &*self.keys,
            Reader::Agent => &*self.agent_keys,
        }
    }
}

// === impl LookUps ===

impl Default for LookUps {
    fn default() -> Self {
        Self {
            places: Semaphore::new(LOOK_UPS + WAITING_MAX),
            turns: Semaphore::new(LOOK_UPS),
        }
    }
}

/// Why an answer is incomplete, for this reader.
fn with_restriction(incomplete: Option<String>, reader: Reader) -> Option<String> {
    let reasons: Vec<_> = incomplete
        .into_iter()
        .chain(reader.restriction().map(str::to_owned))
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
