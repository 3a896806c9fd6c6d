//! Following one kind of objects: list, watch, and what to do when either fails.

use super::events::{Event, Received};
use super::status::Status;
use super::types::{HasMeta, Kind, Object, ObjectKey};
use crate::util::backoff::Backoff;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often it is looked whether a kind that the API does not have has come.
const ABSENT: Duration = Duration::from_secs(10);

/// One connection to the API.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// Whether the API can send a list as a stream.
    pub(super) streams_lists: bool,
}

/// What is needed to follow a kind.
pub(super) struct Feed {
    pub(super) kind: Kind,
    pub(super) selector: Option<String>,
    pub(super) connections: watch::Receiver<Connection>,
    pub(super) events: mpsc::Sender<Received>,
    pub(super) status: Status,
}

/// An object on its way from the API: the metadata that the watcher needs, beside what we keep.
#[derive(Clone, Debug)]
struct Watched<T> {
    meta: ObjectMeta,
    object: T,
}

impl<'de, T: Deserialize<'de> + HasMeta> Deserialize<'de> for Watched<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = T::deserialize(deserializer)?;
        let version = std::mem::take(&mut object.meta_mut().resource_version);
        let meta = ObjectMeta {
            resource_version: Some(version).filter(|v| !v.is_empty()),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, object })
    }
}

impl<T> kube::Resource for Watched<T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        (&*of.kind).into()
    }
    fn group(of: &ApiResource) -> Cow<'_, str> {
        (&*of.group).into()
    }
    fn version(of: &ApiResource) -> Cow<'_, str> {
        (&*of.version).into()
    }
    fn plural(of: &ApiResource) -> Cow<'_, str> {
        (&*of.plural).into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Why a stream was left.
enum Left {
    /// Nobody wants to hear more.
    Closed,
    /// There is another connection.
    Reconnected,
    /// The API cannot send a list as a stream.
    NoStreams,
    /// The API does not have the kind.
    Absent,
}

impl Feed {
    /// Follows the kind until nobody listens.
    pub(super) async fn follow<T>(mut self)
    where
        T: HasMeta + Into<Object> + Clone + serde::de::DeserializeOwned + Debug + Send + 'static,
    {
        let mut known = Known::new(self.kind);
        let mut streams = true;
        loop {
            let connection = self.connections.borrow_and_update().clone();
            let Some(version) = self.version(&connection.client).await else {
                match self.without(&mut known).await {
                    Left::Closed => return,
                    _ => continue,
                }
            };
            let streaming = streams && connection.streams_lists;
            match self
                .connected::<T>(connection.client, version, streaming, &mut known)
                .await
            {
                Left::Closed => return,
                Left::Reconnected => {}
                Left::NoStreams => streams = false,
                // Its definition is asked for again.
                Left::Absent => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// One stream of the kind.
    async fn connected<T>(&mut self, client: Client, version: &str, streaming: bool, known: &mut Known) -> Left
    where
        T: HasMeta + Into<Object> + Clone + serde::de::DeserializeOwned + Debug + Send + 'static,
    {
        let (group, _, plural) = self.kind.resource();
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: if group.is_empty() {
                version.to_owned()
            } else {
                format!("{group}/{version}")
            },
            kind: self.kind.name().to_owned(),
            plural: plural.to_owned(),
        };
        let mut config = watcher::Config::default();
        if streaming {
            config = config.streaming_lists();
        }
        if let Some(selector) = &self.selector {
            config = config.labels(selector);
        }
        let mut stream = watcher(Api::<Watched<T>>::all_with(client, &resource), config).boxed();
        let mut backoff = Backoff::watch();
        loop {
            let event = tokio::select! {
                changed = self.connections.changed() => {
                    return if changed.is_ok() { Left::Reconnected } else { Left::Closed };
                }
                event = stream.next() => event,
            };
            let step = match event {
                None => return Left::Reconnected,
                Some(Ok(watcher::Event::Init)) => {
                    self.status.lists(self.kind);
                    Step::Begin
                }
                Some(Ok(watcher::Event::InitApply(of) | watcher::Event::Apply(of))) => Step::Apply(of.object.into()),
                Some(Ok(watcher::Event::Delete(of))) => Step::Delete(of.object.into()),
                Some(Ok(watcher::Event::InitDone)) => Step::End,
                Some(Err(error)) => {
                    match code(&error) {
                        Some(422) if streaming => return Left::NoStreams,
                        Some(404) if self.kind.is_optional() => return Left::Absent,
                        // It is too old to go on from, which a new list mends.
                        Some(410) => {}
                        _ => self.failed(&error.to_string()),
                    }
                    backoff.wait().await;
                    continue;
                }
            };
            if !matches!(step, Step::Begin) {
                backoff.reset();
                if let Some(after) = self.status.works(self.kind) {
                    tracing::info!(kind = self.kind.name(), secs = after.as_secs(), "watching works again");
                }
            }
            if !self.say(known, step).await {
                return Left::Closed;
            }
        }
    }

    async fn say(&self, known: &mut Known, step: Step) -> bool {
        for event in known.step(step) {
            self.status.happened(&event);
            if self.events.send(event.into()).await.is_err() {
                return false;
            }
        }
        self.status.counted(self.kind, known.keys.len());
        true
    }

    fn failed(&self, error: &str) {
        if self.status.fails(self.kind, error.to_owned()) {
            tracing::warn!(kind = self.kind.name(), error, "watching fails, trying again");
        }
    }

    /// The version of the API to use; none while it does not have the kind.
    async fn version(&self, client: &Client) -> Option<&'static str> {
        if !self.kind.is_optional() {
            return Some(self.kind.resource().1);
        }
        let mut backoff = Backoff::watch();
        loop {
            // Its definition is asked for: that a resource is not found may also mean that the API server has
            // just started.
            match super::api::definition(client, self.kind).await {
                Ok(None) => return None,
                Ok(Some(served)) => {
                    // Cilium 1.20 wants the newer, older ones the other.
                    let known = ["v1beta1", "v1alpha1"];
                    let found = known.into_iter().find(|v| served.iter().any(|s| s == v));
                    if found.is_none() {
                        self.failed(&format!("the API serves none of {}", known.join(", ")));
                        return None;
                    }
                    return found;
                }
                // Nobody is allowed to look: what is watched may be there.
                Err(kube::Error::Api(status)) if status.code == 403 => return Some(self.kind.resource().1),
                Err(error) => self.failed(&error.to_string()),
            }
            backoff.wait().await;
        }
    }

    /// The API does not have the kind, so there are no objects of it. Returns when it is worth another look.
    async fn without(&mut self, known: &mut Known) -> Left {
        if known.first {
            tracing::warn!(
                kind = self.kind.name(),
                "the API does not have it yet: waiting for its definition"
            );
        }
        for step in [Step::Begin, Step::End] {
            if !self.say(known, step).await {
                return Left::Closed;
            }
        }
        tokio::select! {
            () = self.events.closed() => Left::Closed,
            () = tokio::time::sleep(ABSENT) => Left::Absent,
        }
    }
}

/// The API's answer to what failed.
fn code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error;
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

enum Step {
    Begin,
    Apply(Object),
    Delete(Object),
    End,
}

/// The objects of a kind that are known, to find out after a new list which have gone.
struct Known {
    kind: Kind,
    keys: HashSet<ObjectKey>,
    /// Named by the list that goes on, if one does.
    listed: Option<HashSet<ObjectKey>>,
    first: bool,
}

impl Known {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            keys: HashSet::new(),
            listed: None,
            first: true,
        }
    }

    fn step(&mut self, step: Step) -> Vec<Event> {
        match step {
            Step::Begin => {
                // A first list has nothing to compare with, unless it is begun again.
                self.listed = (!self.keys.is_empty()).then(HashSet::new);
                vec![]
            }
            Step::Apply(object) => {
                let key = object.key();
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                self.keys.insert(key.clone());
                vec![Event::Apply(key, Box::new(object))]
            }
            Step::Delete(object) => {
                let key = object.key();
                self.keys.remove(&key);
                vec![Event::Delete(key)]
            }
            Step::End => {
                let mut events = vec![];
                if let Some(listed) = self.listed.take() {
                    let gone = self.keys.extract_if(|key| !listed.contains(key));
                    events.extend(gone.map(Event::Delete));
                }
                if std::mem::take(&mut self.first) {
                    events.push(Event::Listed(self.kind));
                }
                events
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_list_does_not_name_is_gone() {
        let object = |name: &str| {
            Kind::Node
                .parse(serde_json::json!({"metadata": {"name": name}}))
                .unwrap()
        };
        let mut known = Known::new(Kind::Node);
        known.step(Step::Begin);
        known.step(Step::Apply(object("a")));
        known.step(Step::Apply(object("c")));
        // The first list broke off, and something went before the next.
        known.step(Step::Begin);
        known.step(Step::Apply(object("a")));
        known.step(Step::Apply(object("b")));
        let events = known.step(Step::End);
        let [Event::Delete(key), Event::Listed(Kind::Node)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(&*key.name, "c");
        known.step(Step::Begin);
        known.step(Step::Apply(object("b")));
        let events = known.step(Step::End);
        let [Event::Delete(key)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(&*key.name, "a");
    }
}
