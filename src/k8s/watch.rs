//! The list and watch of one kind of objects, repeated for ever: after an error, on a new connection, and when the
//! kind's definition appears.

use super::client::describe;
use super::definitions;
use super::events::Received;
use super::known::{KnownObjects, Step};
use super::status::{self, Failure};
use super::types::{ApiName, HasMeta, Kind, Object};
use crate::util::backoff::Backoff;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope, Status};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Time between two requests for the definition of a kind that the API does not have.
const UNDEFINED_RETRY: Duration = Duration::from_secs(10);
/// The first and the longest wait before all objects are listed anew because their watch cannot continue, and the time
/// after which the waits begin again. The values are client-go's.
const RELIST_WAITS: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));
const RELIST_STEADY: Duration = Duration::from_secs(120);
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
    pub(super) status: status::Status,
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
    /// The version that was reached is of no use any more: all objects must be listed.
    Lost,
}

/// What follows from an error of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// The same request again.
    Repeat,
    /// A list of all objects, because the version to continue from is too old, which is usual.
    List,
    /// A list of all objects, and a report of the failure.
    ReportAndList,
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
        let mut relists = Backoff::new(RELIST_WAITS.0, RELIST_WAITS.1);
        loop {
            let begun = Instant::now();
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
                StreamEnd::Lost => {
                    if begun.elapsed() >= RELIST_STEADY {
                        relists.reset();
                    }
                    relists.wait().await;
                }
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
                        _ => {}
                    }
                    match remedy(&error) {
                        Remedy::List => return StreamEnd::Lost,
                        Remedy::ReportAndList => {
                            self.failed(&describe(&error));
                            return StreamEnd::Lost;
                        }
                        Remedy::Repeat => self.failed(&(describe(&error) + &missing_right(self.kind, &error))),
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
                Err(error) => self.failed(&describe(&error)),
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

/// The remedy for a missing right, as the end of a sentence; empty for another error.
fn missing_right(kind: Kind, error: &watcher::Error) -> String {
    let ApiName { group, plural, .. } = kind.api_name();
    let of_group = match group {
        "" => String::new(),
        group => format!(" of the API group {group}"),
    };
    match http_code(error) {
        Some(403) => format!(
            "; give the user or service account of this process the verbs list and watch for {plural}{of_group}, in a \
             ClusterRole and a ClusterRoleBinding"
        ),
        _ => String::new(),
    }
}

/// What follows from an error, as in client-go. The API refuses to continue from the version that was reached with 410
/// (the version is too old) and, after its store was restored from a backup, with 504 (too new). `kube` lists only after
/// the event 410.
fn remedy(error: &watcher::Error) -> Remedy {
    use watcher::Error;
    let status = match error {
        Error::WatchStartFailed(kube::Error::Api(status)) | Error::WatchError(status) => status,
        _ => return Remedy::Repeat,
    };
    match status.code {
        410 => Remedy::List,
        504 if is_version_too_large(status) => Remedy::ReportAndList,
        // The version stays of use: the server is busy or on its way down, or the permission is missing.
        401 | 403 | 429 | 500 | 502..=504 => Remedy::Repeat,
        _ => Remedy::ReportAndList,
    }
}

/// Whether the API does not have the version yet. Old servers say so in the message alone.
fn is_version_too_large(status: &Status) -> bool {
    let is_named = |text: &str| text.contains("Too large resource version");
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut causes = causes.map(|cause| cause.reason == "ResourceVersionTooLarge" || is_named(&cause.message));
    causes.any(|is_cause| is_cause) || is_named(&status.message)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str, cause: Option<&str>) -> Box<Status> {
        let causes: Vec<_> = cause
            .iter()
            .map(|reason| serde_json::json!({"reason": reason}))
            .collect();
        let status = serde_json::json!({
            "status": "Failure", "code": code, "message": message, "reason": "", "details": {"causes": causes},
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_missing_right_is_named_with_its_remedy() {
        use watcher::Error;
        let failed = |code| Error::InitialListFailed(kube::Error::Api(status(code, "x is forbidden", None)));
        assert_eq!(
            missing_right(Kind::Namespace, &failed(403)),
            "; give the user or service account of this process the verbs list and watch for namespaces, in a ClusterRole \
             and a ClusterRoleBinding"
        );
        assert!(missing_right(Kind::Identity, &failed(403)).contains("ciliumidentities of the API group cilium.io,"));
        assert_eq!(missing_right(Kind::Namespace, &failed(500)), "");
    }

    /// Case B1 from the field: all objects are listed, whether the API answers with a status or with an event.
    #[test]
    fn a_version_that_the_api_does_not_take_leads_to_a_list() {
        use watcher::Error;
        let too_large = "Too large resource version: 10, current: 3";
        let cases = [
            (410, "too old resource version", None, Remedy::List),
            (
                504,
                "Timeout: x",
                Some("ResourceVersionTooLarge"),
                Remedy::ReportAndList,
            ),
            (504, too_large, None, Remedy::ReportAndList),
            (400, "invalid resource version", None, Remedy::ReportAndList),
            (404, "not found", None, Remedy::ReportAndList),
            (504, "gateway timeout", None, Remedy::Repeat),
            (500, "internal", Some("x"), Remedy::Repeat),
            (503, "shutting down", None, Remedy::Repeat),
            (429, "too many requests", None, Remedy::Repeat),
            (403, "forbidden", None, Remedy::Repeat),
            (401, "unauthorized", None, Remedy::Repeat),
        ];
        for (code, message, cause, expected) in cases {
            let status = || status(code, message, cause);
            let started = Error::WatchStartFailed(kube::Error::Api(status()));
            assert_eq!(remedy(&started), expected, "{code} {message}");
            assert_eq!(remedy(&Error::WatchError(status())), expected, "{code} {message}");
            // A list has no version to continue from.
            let listed = Error::InitialListFailed(kube::Error::Api(status()));
            assert_eq!(remedy(&listed), Remedy::Repeat);
        }
    }
}
