//! The messages of a watch stream, and their times.

use super::*;
use crate::server::tests::{Bench, PATIENCE};

#[tokio::test]
async fn a_denial_is_told_once_the_users_that_it_rests_on_are_durable() {
    let bench = Bench::new().await;
    let mut session = WatchSession::new(Arc::clone(&bench.core), Caller::default(), None);
    bench.disk.stall(true);
    bench.core.auth.enable().unwrap();
    session.create(pb::WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    });
    let told = tokio::time::timeout(PATIENCE, session.next()).await;
    assert!(told.is_err(), "the denial did not wait for the disk");
    bench.disk.stall(false);
    let head = session.next().await.unwrap().unwrap().head;
    assert!(head.created && head.canceled);
    assert!(
        head.cancel_reason.ends_with("user name is empty"),
        "{}",
        head.cancel_reason
    );
}
