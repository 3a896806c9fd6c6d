//! The list and watch of one kind of objects, repeated for ever: after an error, on a new connection, and when the
//! kind's definition appears.

use super::definitions;
use super::events::Received;
use super::known::{KnownObjects, Step};
use super::status::{Failure, Status};
use super::types::{ApiName, HasMeta, Kind, Object};
use crate::util::backoff::Backoff;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Time between two requests for the definition of a kind that the API does not have.
const UNDEFINED_RETRY: Duration = Duration::from_secs(10);
/// Pause after the API answered that a defined kind does not exist.
const NOT_FOUND_RETRY: Duration = Duration::from_secs(1);
/// The API versions of an optional kind that can be read, in the order of preference: Cilium 1.20 installs the first,
/// earlier releases the second.
const OPTIONAL_VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];

/// One connection to the API.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) lists: ListMode,
}

/// How objects are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ListMode {
    /// In pages.
    Paged,
    /// As a stream of watch events (`sendInitialEvents`).
    Streamed,
}

/// Watches one kind.
pub(super) struct KindWatch {
    pub(super) kind: Kind,
    /// A label selector.
    pub(super) selector: Option<String>,
    pub(super) connections: watch::Receiver<Connection>,
    pub(super) events: mpsc::Sender<Received>,
    pub(super) status: Status,
}

/// Why a stream of events ended.
enum StreamEnd {
    /// The receiver of events is gone.
    Closed,
    /// Another connection has taken the place of this one.
    Reconnected,
    /// The API cannot list as a stream.
    NoStreamedLists,
    /// The API does not have the kind.
    Undefined,
}

/// An object as received: the metadata that the watcher of `kube` needs, beside the fields that we keep.
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

/// The types that objects of a kind are deserialized to.
pub(super) trait Watchable:
    HasMeta + Into<Object> + Clone + serde::de::DeserializeOwned + Debug + Send + 'static
{
}

impl<T> Watchable for T where T: HasMeta + Into<Object> + Clone + serde::de::DeserializeOwned + Debug + Send + 'static {}

impl KindWatch {
    /// Sends events of the kind until their receiver is gone.
    pub(super) async fn run<T: Watchable>(mut self) {
        let mut known = KnownObjects::new(self.kind);
        let mut can_stream = true;
        loop {
            let connection = self.connections.borrow_and_update().clone();
            let Some(version) = self.served_version(&connection.client).await else {
                match self.wait_while_undefined(&mut known).await {
                    StreamEnd::Closed => return,
                    _ => continue,
                }
            };
            let lists = match can_stream {
                true => connection.lists,
                false => ListMode::Paged,
            };
            let ended = self.stream::<T>(connection.client, version, lists, &mut known).await;
            match ended {
                StreamEnd::Closed => return,
                StreamEnd::Reconnected => {}
                StreamEnd::NoStreamedLists => can_stream = false,
                StreamEnd::Undefined => tokio::time::sleep(NOT_FOUND_RETRY).await,
            }
        }
    }

    /// Lists and watches over one connection.
    async fn stream<T: Watchable>(
        &mut self,
        client: Client,
        version: &str,
        lists: ListMode,
        known: &mut KnownObjects,
    ) -> StreamEnd {
        let resource = self.resource(version);
        let api = Api::<Watched<T>>::all_with(client, &resource);
        let mut stream = watcher(api, self.config(lists)).boxed();
        let mut backoff = Backoff::watch();
        loop {
            let event = tokio::select! {
                changed = self.connections.changed() => {
                    return if changed.is_ok() { StreamEnd::Reconnected } else { StreamEnd::Closed };
                }
                event = stream.next() => event,
            };
            let step = match event {
                None => return StreamEnd::Reconnected,
                Some(Ok(watcher::Event::Init)) => {
                    self.status.list_begins(self.kind);
                    Step::ListBegins
                }
                Some(Ok(watcher::Event::InitApply(of) | watcher::Event::Apply(of))) => Step::Apply(of.object.into()),
                Some(Ok(watcher::Event::Delete(of))) => Step::Delete(of.object.into()),
                Some(Ok(watcher::Event::InitDone)) => Step::ListEnds,
                Some(Err(error)) => {
                    match http_code(&error) {
                        Some(422) if lists == ListMode::Streamed => return StreamEnd::NoStreamedLists,
                        Some(404) if self.kind.is_optional() => return StreamEnd::Undefined,
                        // The resource version is too old to resume from. A new list follows by itself.
                        Some(410) => {}
                        _ => self.failed(&error.to_string()),
                    }
                    backoff.wait().await;
                    continue;
                }
            };
            if !matches!(step, Step::ListBegins) {
                backoff.reset();
                if let Some(outage) = self.status.succeeded(self.kind) {
                    tracing::info!(
                        kind = self.kind.name(),
                        secs = outage.as_secs(),
                        "the watch of this kind works again"
                    );
                }
            }
            if self.send(known, step).await.is_err() {
                return StreamEnd::Closed;
            }
        }
    }

    fn resource(&self, version: &str) -> ApiResource {
        let ApiName { group, plural, .. } = self.kind.api_name();
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: match group.is_empty() {
                true => version.to_owned(),
                false => format!("{group}/{version}"),
            },
            kind: self.kind.name().to_owned(),
            plural: plural.to_owned(),
        }
    }

    fn config(&self, lists: ListMode) -> watcher::Config {
        let mut config = watcher::Config::default();
        if lists == ListMode::Streamed {
            config = config.streaming_lists();
        }
        match &self.selector {
            Some(selector) => config.labels(selector),
            None => config,
        }
    }

    /// Sends the events of a step. Fails if their receiver is gone.
    async fn send(&self, known: &mut KnownObjects, step: Step) -> Result<(), mpsc::error::SendError<Received>> {
        for event in known.step(step) {
            self.status.count_event(&event);
            self.events.send(event.into()).await?;
        }
        self.status.set_objects(self.kind, known.count());
        Ok(())
    }

    fn failed(&self, error: &str) {
        if self.status.failed(self.kind, error.to_owned()) == Failure::News {
            tracing::warn!(kind = self.kind.name(), error, "cannot watch this kind; trying again");
        }
    }

    /// The version of the kind to request; `None` while the API does not have the kind. Asks for the definition, since
    /// "not found" for the kind itself may also mean that the API server has just started.
    async fn served_version(&self, client: &Client) -> Option<&'static str> {
        let default = self.kind.api_name().version;
        if !self.kind.is_optional() {
            return Some(default);
        }
        let mut backoff = Backoff::watch();
        loop {
            match definitions::served_versions(client, self.kind).await {
                Ok(None) => return None,
                Ok(Some(served)) => {
                    let is_served = |version: &&str| served.iter().any(|s| s == version);
                    let found = OPTIONAL_VERSIONS.into_iter().find(is_served);
                    if found.is_none() {
                        self.failed(&format!("the API serves none of {}", OPTIONAL_VERSIONS.join(", ")));
                    }
                    return found;
                }
                // Reading definitions is forbidden. The kind may be defined all the same.
                Err(kube::Error::Api(status)) if status.code == 403 => return Some(default),
                Err(error) => self.failed(&error.to_string()),
            }
            backoff.wait().await;
        }
    }

    /// The API does not have the kind, so no objects of the kind exist. Returns when the definition is worth another
    /// request.
    async fn wait_while_undefined(&mut self, known: &mut KnownObjects) -> StreamEnd {
        if !known.is_listed() {
            tracing::warn!(
                kind = self.kind.name(),
                "the Kubernetes API does not define the kind yet: waiting for its definition"
            );
        }
        for step in [Step::ListBegins, Step::ListEnds] {
            if self.send(known, step).await.is_err() {
                return StreamEnd::Closed;
            }
        }
        tokio::select! {
            () = self.events.closed() => StreamEnd::Closed,
            () = tokio::time::sleep(UNDEFINED_RETRY) => StreamEnd::Undefined,
        }
    }
}

/// The status code of the API's answer to a list or watch that failed.
fn http_code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error;
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}
