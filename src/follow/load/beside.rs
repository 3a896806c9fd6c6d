//! Loads everything while a watch of the same upstream is buffered, so that nothing is missing between both.

use super::super::error::Error;
use super::super::feed::{Action, Feed, Input, Why};
use super::super::link::{Link, read_from};
use super::super::member::{Member, Purpose};
use super::super::session::{Received, Session};
use super::{Loaded, load, load_from_sister};
use std::path::PathBuf;
use tokio::time::Instant;

/// Whether other replicas are asked for their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::follow) enum Sisters {
    /// Those that have this revision: the others are behind, too.
    From(i64),
    /// They may have the past that is left.
    Never,
}

/// Connects to the upstream for the first time, and loads its users.
pub(in crate::follow) async fn meet(link: &Link) -> Result<(), Error> {
    let member = link.connect_to_any(Purpose::Calls).await?;
    load_users(link, &member).await
}

/// Loads users and roles. Nobody may read keys here before it is known who may read them there.
async fn load_users(link: &Link, member: &Member) -> Result<(), Error> {
    let users = link.people.reload(member).await;
    users.map_err(|status| Error::Users {
        endpoint: member.endpoint.clone(),
        status,
    })
}

/// Loads everything from an upstream that was never followed, while a watch from before the load is buffered.
pub(in crate::follow) async fn load_first(
    link: &Link,
    scratch: Option<PathBuf>,
) -> Result<(Loaded, Feed, Option<Session>), Error> {
    let member = link.connect_to_any(Purpose::Feed).await?;
    // Proves that the member has a leader, and that its answers belong to the cluster.
    let seen = read_from(&member).await?;
    if seen.cluster_id != link.cluster_id() {
        return Err(Error::OtherCluster {
            endpoint: member.endpoint.clone(),
            found: seen.cluster_id,
            expected: link.cluster_id(),
        });
    }
    let mut feed = Feed::new(0);
    let (loaded, session) = load_beside(link, member, &mut feed, (Sisters::From(0), scratch)).await?;
    Ok((loaded, feed, session))
}

/// Opens the watch, and loads while it is buffered.
pub(in crate::follow) async fn load_beside(
    link: &Link,
    member: Member,
    feed: &mut Feed,
    (sisters, scratch): (Sisters, Option<PathBuf>),
) -> Result<(Loaded, Option<Session>), Error> {
    let begun = Instant::now();
    load_users(link, &member).await?;
    // The watch must not wait behind the load.
    let source = link
        .connect(&member.endpoint, Purpose::Feed, member.facts.cluster_id)
        .await?;
    let mut session = Some(Session::open(member, feed.start()).await?);
    let mut loading = Box::pin(async {
        if let Sisters::From(least) = sisters
            && let Some(loaded) = load_from_sister(link, &source, least, scratch.clone()).await
        {
            return Ok(loaded);
        }
        load(&source, scratch).await
    });
    let loaded = loop {
        let received = tokio::select! {
            loaded = &mut loading => break loaded?,
            received = next_of(session.as_mut()) => received,
        };
        match received {
            Received::Input(input) => {
                let asks = feed.input(input).contains(&Action::AskProgress);
                if let Some(session) = session.as_mut().filter(|_| asks) {
                    session.ask_progress();
                }
            }
            Received::Broken(error) => {
                tracing::info!(%error, "the watch ended during the load; it is opened again after the load");
                feed.input(Input::Broken(Why::Broken));
                session = None;
            }
        }
    };
    link.metrics.loaded(loaded.how.label(), begun.elapsed());
    Ok((loaded, session))
}

/// The next of a session; nothing without one.
async fn next_of(session: Option<&mut Session>) -> Received {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}
