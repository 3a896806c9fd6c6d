//! The namespaces of this cluster, for the rules of a scope file that ask for them.

use super::ObjectSource;
use crate::k8s::events::{Event, Received};
use crate::k8s::manifests;
use crate::k8s::status::Status;
use crate::k8s::types::Kind;
use crate::kvstoremesh::Imports;
use crate::scope::Watcher;
use crate::util::lifecycle::Lifecycle;
use crate::util::readiness::{Ready, Requirement};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Capacity of the queue between the source of objects and the names.
const EVENTS: usize = 64;
/// Pause before a source that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

type Names = watch::Sender<Option<Arc<BTreeSet<String>>>>;

/// What decides about the keys of remote clusters: the scope file, and the namespaces in `source`, which are followed as soon
/// as the file asks for them.
pub fn start_imports(file: Watcher, source: ObjectSource, status: &Status, ready: &Ready, life: &Lifecycle) -> Imports {
    let (names, namespaces) = watch::channel(None);
    let (stop, follow) = (
        life.stop_token().clone(),
        run(file.clone(), source, names, status.clone(), life.clone()),
    );
    life.spawn_vital("namespaces for the scope file", async move {
        tokio::select! { () = stop.cancelled() => {}, () = follow => {} }
    });
    let (asking, known, status) = (file.clone(), namespaces.clone(), status.clone());
    ready.condition("namespaces", Requirement::Informative, move || {
        let asks = asking.current().is_some_and(|scope| scope.import.need_existing());
        (asks && known.borrow().is_none()).then(|| {
            let why = status.trouble(Kind::Namespace);
            let why = why.as_deref().unwrap_or("they have not been listed yet");
            format!(
                "the scope file asks for the namespaces of this cluster, which are not known, so that keys that depend on them \
                 stay as they are: {why}"
            )
        })
    });
    Imports { file, namespaces }
}

/// Follows the namespaces from the moment on at which the file asks for them.
async fn run(mut file: Watcher, source: ObjectSource, names: Names, status: Status, life: Lifecycle) {
    let mut scope = file.usable().await;
    while !scope.import.need_existing() {
        scope = file.changed().await;
    }
    tracing::info!("the scope file asks for the namespaces of this cluster: following them");
    loop {
        let ended = follow(source.clone(), &names, &status, &life).await;
        if let Err(error) = ended {
            tracing::error!(%error, "cannot follow the namespaces that the scope file asks for; trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(source: ObjectSource, names: &Names, status: &Status, life: &Lifecycle) -> anyhow::Result<()> {
    let (sender, events) = mpsc::channel(EVENTS);
    let kinds = vec![Kind::Namespace];
    let watch = async {
        match source {
            ObjectSource::Manifests(directory) => {
                let ended = manifests::follow(directory, kinds, sender, status).await;
                ended.map_err(anyhow::Error::from)
            }
            ObjectSource::Api(config) => Ok(config.run(kinds, sender, status.clone(), life.clone()).await?),
        }
    };
    tokio::select! { ended = watch => ended, () = collect(events, names) => Ok(()) }
}

/// Keeps the names up to date with the events of their source.
async fn collect(mut events: mpsc::Receiver<Received>, names: &Names) {
    let (mut present, mut is_listed, mut is_news) = (BTreeSet::new(), false, false);
    while let Some(received) = events.recv().await {
        is_news |= match received.event {
            Event::Apply(key, _) => present.insert(key.name.to_string()),
            Event::Delete(key) => present.remove(&*key.name),
            Event::Listed(_) => !std::mem::replace(&mut is_listed, true),
        };
        // Changes that are already there become known at once.
        if is_news && is_listed && events.is_empty() {
            names.send_replace(Some(Arc::new(present.clone())));
            is_news = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::manifests::parse;

    #[tokio::test]
    async fn names_are_known_after_the_first_list_and_follow_the_source() {
        let (sender, events) = mpsc::channel(EVENTS);
        let (names, mut namespaces) = watch::channel(None);
        let apply = |name: &str| {
            let text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
            parse(&text).pop().expect("a manifest is an event")
        };
        let Event::Apply(gone, _) = apply("a") else {
            panic!("an object is applied")
        };
        let is = |expected: &[&str]| {
            let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
            move |names: &Option<Arc<BTreeSet<String>>>| names.as_deref() == Some(&expected)
        };
        let source = async {
            for event in [apply("a"), apply("b"), Event::Listed(Kind::Namespace)] {
                sender.send(event.into()).await.unwrap();
            }
            namespaces.wait_for(is(&["a", "b"])).await.unwrap();
            sender.send(apply("c").into()).await.unwrap();
            sender.send(Event::Delete(gone).into()).await.unwrap();
            namespaces.wait_for(is(&["b", "c"])).await.unwrap();
        };
        tokio::select! { () = source => {}, () = collect(events, &names) => panic!("the source is there") }
    }
}
