//! The messages of a watch stream, and their times.

use super::*;
use crate::mvcc::Put;
use crate::server::bodies::{AnswerBody, Budgeted, Span};
use crate::server::farewell::Farewell;
use crate::server::tests::{Bench, PATIENCE};
use axum::body::Body;
use http_body_util::BodyExt;

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

/// The length that a gRPC message states.
fn stated(message: &[u8]) -> usize {
    u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize
}

#[tokio::test]
async fn a_connection_that_moves_ends_its_watch_stream_behind_a_whole_message() {
    let bench = Bench::new().await;
    let caller = Caller::default();
    let connection = Arc::clone(&caller.peer().connection);
    let mut session = WatchSession::new(Arc::clone(&bench.core), caller, None);
    session.create(pb::WatchCreateRequest {
        key: "a".into(),
        ..Default::default()
    });
    let call = Budgeted::new(connection.begin_call());
    let mut body = AnswerBody::new(Body::new(WatchAnswer::new(session)), call, Span::Endless, false, None);
    let created = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(stated(&created), created.len() - 5);
    let put = |bytes: usize| {
        let put = Put {
            key: "a".into(),
            value: vec![7; bytes].into(),
            ..Put::default()
        };
        bench.core.store.put(put).unwrap();
    };
    put(3000);
    let message = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(stated(&message), message.len() - 5);
    assert!(message.ends_with(&[7; 3000]));
    put(5000);
    let head = body.frame().await.unwrap().unwrap().into_data().unwrap();
    connection.leave(Farewell::Age);
    let events = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(stated(&head), head.len() - 5 + events.len());
    assert!(events.ends_with(&[7; 5000]));
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    assert!(body.frame().await.is_none());
}
