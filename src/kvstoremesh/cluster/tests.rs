use super::*;
use crate::kvstoremesh::reflector::{List, SizeLimit};

const TTL: Duration = Duration::from_secs(600);

fn prefixes(scope: Scope) -> Prefixes {
    let name = ClusterName::new("hk").unwrap();
    Prefixes {
        remote: scope.state_prefix(&name),
        mirror: scope.cache_prefix(&name),
    }
}

fn kv(scope: Scope, name: &str, mod_revision: i64) -> KeyValue {
    KeyValue {
        key: format!("{}{name}", prefixes(scope).remote).into_bytes(),
        value: b"value".to_vec(),
        mod_revision,
        ..KeyValue::default()
    }
}

/// The state machine of a remote cluster, and the time.
struct Life {
    cluster: Cluster,
    now: Instant,
}

impl Life {
    fn new() -> Self {
        let now = Instant::now();
        let mut cluster = Cluster::new(ClusterName::new("hk").unwrap(), now);
        cluster.attempt_begun(now);
        Self { cluster, now }
    }

    fn later(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
    }

    fn phase(&self) -> Phase {
        self.cluster.phase()
    }

    fn attempt(&mut self) {
        self.cluster.attempt_begun(self.now);
        self.cluster.file_read("https://hk:2379".to_owned());
    }

    fn connect(&mut self) {
        self.attempt();
        self.cluster.connected(7);
    }

    fn configure(&mut self) {
        let config = ClusterConfig {
            id: 3,
            ..ClusterConfig::default()
        };
        let exports = Exports::of(&config, true);
        self.cluster.configured(config, &exports);
    }

    /// Lists a scope of one key at revision 9.
    fn list(&mut self, scope: Scope) {
        let page = vec![kv(scope, "a", 5)];
        let mut list = List::default();
        list.page(&page, 1, Some(SizeLimit { keys: 10 })).unwrap();
        self.cluster.list_begun(scope);
        self.cluster.take_page(scope, &prefixes(scope), page);
        let position = Position {
            store_id: 7,
            prefix: prefixes(scope).remote,
            revision: 9,
            witness: list.newest(),
        };
        self.cluster.list_ended(scope, position);
        self.cluster.reflector_synced(scope);
    }

    /// Completes the mirrors of all scopes that the configuration above enables.
    fn follow(&mut self) {
        self.connect();
        self.configure();
        for scope in [Scope::Identities, Scope::Endpoints, Scope::Nodes, Scope::Services] {
            assert_eq!(self.phase(), Phase::Listing);
            self.list(scope);
        }
        assert_eq!(self.phase(), Phase::Following);
    }

    fn fail(&mut self, cause: Cause, error: &str) -> Retry {
        let wall_time = SystemTime::UNIX_EPOCH;
        self.cluster.failed(cause, error.to_owned(), self.now, wall_time)
    }

    fn resumes_at(&self, scope: Scope) -> Option<i64> {
        let point = self.cluster.resume_point(scope, 7, &prefixes(scope).remote);
        point.map(|point| point.revision)
    }
}

#[test]
fn a_remote_is_followed_once_every_scope_is_complete() {
    let mut life = Life::new();
    assert_eq!(life.phase(), Phase::WaitingForFile);
    life.attempt();
    assert_eq!(life.phase(), Phase::Connecting);
    life.cluster.connected(7);
    assert_eq!(life.phase(), Phase::WaitingForConfiguration);
    assert!(life.cluster.is_connected() && !life.cluster.is_registered());
    life.follow();
    assert!(life.cluster.is_registered());
    assert_eq!(life.cluster.counters().connects, 1);
    assert_eq!(life.cluster.endpoints(), "https://hk:2379");
}

#[test]
fn a_file_that_cannot_be_read_is_waited_for() {
    let mut life = Life::new();
    life.fail(Cause::File, "cannot read");
    assert_eq!(life.phase(), Phase::WaitingForFile);
    life.attempt();
    life.fail(Cause::Other, "refused");
    assert_eq!(life.phase(), Phase::Connecting);
    life.fail(Cause::File, "cannot read");
    assert_eq!(life.phase(), Phase::WaitingForFile);
    assert_eq!(life.cluster.counters().attempts_failed, 3);
    assert_eq!(life.cluster.error(), Some("cannot read"));
}

#[test]
fn a_remote_whose_addresses_refuse_again_and_again_does_not_serve() {
    let mut life = Life::new();
    life.attempt();
    let refuse = |life: &mut Life, times: u32| {
        (0..times).for_each(|_| drop(life.fail(Cause::Refused, "Connection refused")));
        life.cluster.is_refusing()
    };
    assert!(!refuse(&mut life, REFUSING - 1));
    life.fail(Cause::Other, "no connection in 10.0 s");
    assert!(!refuse(&mut life, REFUSING - 1), "only refusals in succession count");
    assert!(refuse(&mut life, 1));
    life.connect();
    assert!(!life.cluster.is_refusing());
}

#[test]
fn a_lost_connection_is_a_failure_and_an_attempt_that_fails_is_none() {
    let mut life = Life::new();
    life.attempt();
    life.fail(Cause::Other, "refused");
    // The store answered, but the configuration never came.
    life.connect();
    life.fail(Cause::Other, "missing");
    assert_eq!(life.phase(), Phase::Away);
    let counters = life.cluster.counters();
    assert_eq!((counters.failures, counters.attempts_failed), (0, 2));
    assert_eq!(life.cluster.last_failure(), None);
    life.follow();
    life.fail(Cause::Other, "broken");
    assert_eq!(life.phase(), Phase::Away);
    life.attempt();
    life.fail(Cause::Other, "refused");
    assert_eq!(life.phase(), Phase::Away);
    let counters = life.cluster.counters();
    assert_eq!(
        (counters.failures, counters.attempts_failed, counters.connects),
        (1, 3, 1)
    );
    assert_eq!(life.cluster.last_failure(), Some(SystemTime::UNIX_EPOCH));
}

#[test]
fn a_remote_that_comes_back_is_complete_while_it_is_read_again() {
    let mut life = Life::new();
    life.follow();
    life.fail(Cause::Other, "broken");
    assert_eq!(*life.cluster.completeness(Scope::Nodes), Completeness::Complete);
    life.connect();
    assert_eq!(life.phase(), Phase::WaitingForConfiguration);
    life.configure();
    assert_eq!(life.phase(), Phase::Following);
    assert_eq!(life.cluster.error(), None);
}

#[test]
fn a_changed_file_keeps_the_phase_until_the_new_connection_is_decided() {
    let mut life = Life::new();
    life.follow();
    life.cluster.file_changed(life.now);
    life.connect();
    assert_eq!(life.phase(), Phase::Following);
    life.configure();
    assert_eq!(life.phase(), Phase::Following);
    life.cluster.file_changed(life.now);
    life.attempt();
    life.fail(Cause::Other, "refused");
    assert_eq!(life.phase(), Phase::Away);
    assert_eq!(life.cluster.counters().failures, 1);
}

#[test]
fn a_changed_configuration_is_no_failure_and_waits_only_if_it_repeats() {
    let mut life = Life::new();
    life.follow();
    life.later(STEADY.as_secs());
    assert_eq!(life.cluster.configuration_changed(life.now), Duration::ZERO);
    assert_eq!(life.phase(), Phase::Connecting);
    life.connect();
    life.configure();
    assert!(life.cluster.configuration_changed(life.now) > Duration::ZERO);
    let counters = life.cluster.counters();
    assert_eq!((counters.failures, counters.attempts_failed), (0, 0));
    assert_eq!(life.cluster.error(), None);
    // A remote that does not come back after that is away like any other.
    assert_eq!(life.cluster.revocation_due(TTL), Some(life.now + TTL));
}

#[test]
fn a_missing_configuration_is_news_once() {
    let mut life = Life::new();
    life.connect();
    assert!(life.cluster.configuration_missing("missing".to_owned()));
    assert!(!life.cluster.configuration_missing("missing".to_owned()));
    assert!(life.cluster.configuration_missing("nonsense".to_owned()));
    life.configure();
    assert_eq!(life.cluster.error(), None);
    life.cluster.configuration_lost("missing".to_owned());
    assert_eq!(life.cluster.error(), Some("missing"));
    assert!(life.cluster.is_registered());
    life.cluster.configuration_confirmed();
    assert_eq!(life.cluster.error(), None);
}

#[test]
fn repeated_failures_wait_longer_and_are_logged_less() {
    let mut life = Life::new();
    life.attempt();
    let retries: Vec<_> = (0..21).map(|_| life.fail(Cause::Other, "refused")).collect();
    let warnings: Vec<_> = (0..21).filter(|n| retries[*n].loudness == Loudness::Warning).collect();
    assert_eq!(warnings, [0, 10, 20]);
    assert!(retries.iter().all(|retry| retry.forget_address));
    assert!(retries[0].wait <= Duration::from_millis(200));
    assert!(retries[20].wait >= Duration::from_secs(4));
    assert_eq!(life.fail(Cause::Other, "another").loudness, Loudness::Warning);
    // The file changed: the first attempt is made soon, and its failure is logged.
    life.cluster.file_changed(life.now);
    let retry = life.fail(Cause::Other, "another");
    assert!(retry.wait <= Duration::from_millis(200));
    assert_eq!(retry.loudness, Loudness::Warning);
}

#[test]
fn only_a_connection_that_held_is_made_again_soon_and_at_the_same_address() {
    let mut life = Life::new();
    for _ in 0..10 {
        life.attempt();
        life.fail(Cause::Other, "refused");
    }
    life.follow();
    life.later(STEADY.as_secs() - 1);
    let short = life.fail(Cause::Other, "broken");
    assert!(short.forget_address && short.wait >= Duration::from_secs(4));
    assert_eq!(short.loudness, Loudness::Warning);
    life.connect();
    life.configure();
    life.later(STEADY.as_secs());
    let long = life.fail(Cause::Other, "broken");
    assert!(!long.forget_address && long.wait <= Duration::from_millis(200));
}

#[test]
fn a_remote_with_too_many_canaries_is_left_alone_for_a_while() {
    let mut life = Life::new();
    life.connect();
    life.configure();
    assert_eq!(life.fail(Cause::TooMuch, "too much").wait, TOO_MUCH_WAIT);
}

#[test]
fn a_connection_that_ends_without_a_word_hints_at_tls() {
    let mut life = Life::new();
    life.attempt();
    let refused = life.fail(Cause::ConnectionLost, "the store closed the connection");
    assert!(refused.error.ends_with("do both ends use TLS?"), "{}", refused.error);
    assert_eq!(life.cluster.error(), Some(&*refused.error));
    // After a successful connection, TLS is known to be configured correctly.
    life.follow();
    let lost = life.fail(Cause::ConnectionLost, "the store closed the connection");
    assert_eq!(lost.error, "the store closed the connection");
}

#[test]
fn each_absence_is_revoked_once_after_the_cache_ttl() {
    let mut life = Life::new();
    life.follow();
    life.later(1000);
    assert_eq!(life.cluster.revocation_due(TTL), None);
    life.fail(Cause::Other, "broken");
    life.later(TTL.as_secs() - 1);
    // Attempts that fail do not begin another absence.
    life.attempt();
    life.fail(Cause::Other, "refused");
    assert!(!life.cluster.revoke(TTL, life.now));
    life.later(1);
    assert!(life.cluster.revoke(TTL, life.now));
    assert_eq!(life.resumes_at(Scope::Services), None, "what was revoked is listed");
    assert_eq!(life.resumes_at(Scope::Nodes), Some(9), "the rest is resumed");
    life.later(1000);
    assert!(!life.cluster.revoke(TTL, life.now));
    assert_eq!(life.cluster.revocation_due(TTL), None);
    life.connect();
    life.configure();
    life.fail(Cause::Other, "broken");
    life.later(TTL.as_secs());
    assert!(life.cluster.revoke(TTL, life.now));
    assert_eq!(life.cluster.counters().revocations, 2);
}

/// An earlier process may have left a mirror of this remote cluster.
#[test]
fn a_remote_that_never_came_is_revoked_too() {
    let mut life = Life::new();
    life.later(TTL.as_secs());
    // A store without a configuration does not end the absence.
    life.connect();
    assert!(life.cluster.revoke(TTL, life.now));
}

#[test]
fn too_many_keys_stop_one_scope_alone() {
    let mut life = Life::new();
    life.follow();
    life.cluster.reflector_stopped(Scope::Nodes, "too many".to_owned());
    assert_eq!(life.phase(), Phase::Listing);
    assert_eq!(life.cluster.stopped().collect::<Vec<_>>(), ["too many"]);
    assert_eq!(life.resumes_at(Scope::Nodes), None);
    assert_eq!(life.resumes_at(Scope::Services), Some(9));
    assert_eq!(*life.cluster.completeness(Scope::Services), Completeness::Complete);
    // A new connection tries again; until then the status shows the error.
    life.fail(Cause::Other, "broken");
    life.connect();
    life.configure();
    assert_eq!(life.cluster.stopped().count(), 1);
    life.list(Scope::Nodes);
    assert_eq!(life.cluster.stopped().count(), 0);
    assert_eq!(life.phase(), Phase::Following);
}

/// Case D1 from the field: the other scopes continue, also on the next connection, and readiness does not wait.
#[test]
fn a_forbidden_scope_is_named_and_stops_alone() {
    let mut life = Life::new();
    life.follow();
    assert!(life.cluster.reflector_forbidden(Scope::Nodes, "denied".to_owned()));
    assert!(!life.cluster.reflector_forbidden(Scope::Nodes, "denied".to_owned()));
    assert_eq!(life.phase(), Phase::Listing);
    assert!(life.cluster.is_registered() && life.cluster.is_forbidden(Scope::Nodes));
    assert_eq!(life.cluster.forbidden().collect::<Vec<_>>(), ["denied"]);
    assert_eq!(
        (life.resumes_at(Scope::Nodes), life.resumes_at(Scope::Services)),
        (None, Some(9))
    );
    life.fail(Cause::Other, "broken");
    life.connect();
    life.configure();
    assert!(life.cluster.is_forbidden(Scope::Nodes));
    for scope in Scope::ALL.into_iter().filter(|scope| *scope != Scope::Nodes) {
        assert!(!life.cluster.is_mirrored());
        life.cluster.reflector_written(scope, life.now);
    }
    assert!(life.cluster.is_mirrored());
    life.list(Scope::Nodes);
    assert_eq!(life.cluster.forbidden().count(), 0);
    assert_eq!(life.phase(), Phase::Following);
    assert!(!life.cluster.reflector_synced(Scope::Nodes));
}

#[test]
fn forbidden_canaries_are_named_until_they_are_read() {
    let mut life = Life::new();
    life.connect();
    life.configure();
    assert!(life.cluster.canaries_forbidden(Some("denied".to_owned())));
    assert!(!life.cluster.canaries_forbidden(Some("denied".to_owned())));
    assert_eq!(life.cluster.forbidden().collect::<Vec<_>>(), ["denied"]);
    assert!(life.cluster.is_registered());
    assert!(life.cluster.canaries_forbidden(None));
    assert_eq!(life.cluster.forbidden().count(), 0);
}

#[test]
fn a_store_with_another_past_is_listed_and_the_same_resumes() {
    let mut life = Life::new();
    life.follow();
    assert_eq!(life.resumes_at(Scope::Nodes), Some(9));
    let other_store = life
        .cluster
        .resume_point(Scope::Nodes, 8, &prefixes(Scope::Nodes).remote);
    assert_eq!(other_store, None);
    let changes = Changes {
        events: vec![Event::Put(kv(Scope::Nodes, "b", 12))],
        revision: 15,
    };
    let taken = life
        .cluster
        .take_changes(Scope::Nodes, &prefixes(Scope::Nodes), &changes.events);
    assert_eq!(taken.len(), 1);
    assert_eq!(life.resumes_at(Scope::Nodes), Some(9), "not before the mirror holds it");
    life.cluster.advanced(Scope::Nodes, &changes);
    assert_eq!(life.resumes_at(Scope::Nodes), Some(12));
    life.cluster.relisting(Scope::Services);
    assert_eq!(life.resumes_at(Scope::Services), None);
    life.cluster.past_differs();
    assert_eq!(life.resumes_at(Scope::Nodes), None);
    let read = life.cluster.read_counters();
    assert_eq!((read.lists, read.resumes, read.keys), (4, 0, 5));
    life.cluster.resumed(Scope::Nodes);
    assert_eq!(life.cluster.read_counters().resumes, 1);
}

#[test]
fn refusals_are_counted_over_all_scopes() {
    let mut life = Life::new();
    life.follow();
    for scope in [Scope::Nodes, Scope::Services] {
        let taken = life
            .cluster
            .take_page(scope, &prefixes(scope), vec![kv(scope, "..", 1)]);
        assert!(matches!(&taken[..], [Taken::Refused(_)]));
    }
    let counts: Vec<_> = life
        .cluster
        .refusals()
        .iter()
        .map(|(_, refused)| refused.count)
        .collect();
    assert_eq!(counts, [2]);
}

#[test]
fn nothing_is_waited_for_once_every_scope_is_written_or_stopped() {
    let mut life = Life::new();
    life.follow();
    life.later(2);
    for scope in Scope::ALL {
        assert!(!life.cluster.is_mirrored());
        match scope {
            Scope::Nodes => life.cluster.reflector_stopped(scope, "too many".to_owned()),
            _ => life.cluster.reflector_written(scope, life.now),
        }
    }
    assert!(life.cluster.is_mirrored());
    assert_eq!(life.cluster.first_sync(), None);
    life.cluster.reflector_written(Scope::Nodes, life.now);
    life.later(5);
    life.cluster.reflector_written(Scope::Nodes, life.now);
    assert_eq!(life.cluster.first_sync(), Some(Duration::from_secs(2)));
}

#[test]
fn a_silent_heartbeat_is_news_once_until_it_changes() {
    let mut life = Life::new();
    life.follow();
    let beat = kv(Scope::Nodes, "heartbeat", 20);
    life.cluster.heartbeat_changed(&beat);
    assert_eq!(life.cluster.last_heartbeat(), Some(&Witness::of(&beat)));
    assert!(life.cluster.heartbeat_silent(life.now));
    assert!(!life.cluster.heartbeat_silent(life.now));
    assert_eq!(life.cluster.silent_since(), Some(life.now));
    // A new connection reads the same heartbeat again.
    life.cluster.heartbeat_read(&beat);
    assert!(life.cluster.silent_since().is_some());
    life.cluster.heartbeat_changed(&beat);
    assert_eq!(life.cluster.silent_since(), None);
}

#[test]
fn a_cluster_that_left_stays_so_whatever_its_tasks_still_report() {
    let mut life = Life::new();
    life.follow();
    life.cluster.file_removed();
    life.connect();
    life.configure();
    life.fail(Cause::Other, "broken");
    life.cluster.configuration_changed(life.now);
    life.list(Scope::Nodes);
    assert_eq!(life.phase(), Phase::Leaving);
    assert!(!life.cluster.is_connected());
}

/// A cluster whose client file returns begins with new counters.
#[test]
fn a_removed_cluster_that_returns_begins_anew() {
    let mut life = Life::new();
    life.follow();
    life.cluster.file_removed();
    life.later(60);
    let returned = Cluster::new(ClusterName::new("hk").unwrap(), life.now);
    assert_eq!(returned.phase(), Phase::WaitingForFile);
    assert_eq!(returned.counters(), Counters::default());
    assert_eq!(
        returned.resume_point(Scope::Nodes, 7, &prefixes(Scope::Nodes).remote),
        None
    );
    assert_eq!(returned.revocation_due(TTL), Some(life.now + TTL));
}
