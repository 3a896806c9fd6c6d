//! The server's configuration.

use super::budgets::Budgets;
use super::http::BrowserAccess;
use crate::pb::etcdserverpb as pb;
use crate::util::deliveries::Deliveries;
use crate::util::expiry::Expiries;
use crate::util::net::Keepalive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The identity of the store, which the header of every answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberIdentity {
    /// Never 0. A store that may not have the same data as before gets a new cluster id.
    pub cluster_id: u64,
    /// Never 0.
    pub member_id: u64,
    /// At least 2.
    pub raft_term: u64,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub identity: MemberIdentity,
    /// The name of the member.
    pub name: String,
    /// The client URLs in the member list.
    pub client_urls: Vec<String>,
    /// The peer URLs in the member list. No socket listens at them.
    pub peer_urls: Vec<String>,
    /// The longest write request, in bytes.
    pub max_request_bytes: usize,
    /// The most operations in one transaction.
    pub max_txn_ops: usize,
    /// How often idle watchers get the progress notifications that they asked for.
    pub watch_progress_interval: Duration,
    /// How long a watch may be without a message before it is told its progress, asked for or not; `None` for ever.
    pub quiet_watch_time: Option<Duration>,
    /// Whether a replica cancels watches that begin after everything that its upstream has, as compacted.
    pub cancel_impossible_watches: bool,
    /// The longest time for which the events of a watched range are gathered, once they follow each other closely and
    /// the range has many watchers. Zero sends each event at once.
    pub watch_gather_time: Duration,
    /// The longest time for which the answer to a ping after little data waits for something to go with. Zero answers at once.
    pub ping_answer_delay: Duration,
    /// The time between the wish to end the process and the stop, in which clients are asked to connect elsewhere.
    pub drain_time: Duration,
    /// Bytes that the store may take. A negative number means no limit.
    pub quota_bytes: i64,
    /// As in etcd, a zero interval or a zero timeout disables keepalive pings.
    pub keepalive: Keepalive,
    /// The most concurrent calls on one connection.
    pub max_concurrent_streams: u32,
    /// What clients may make the server hold.
    pub budgets: Budgets,
    /// Whether the JSON gateway serves `/v3/`.
    pub gateway: bool,
    /// The browsers that may use HTTP.
    pub access: BrowserAccess,
    /// Whether metrics contain histograms of the duration of calls.
    pub extensive_metrics: bool,
    /// Directory for the temporary file of a snapshot if the system's directory for temporary files takes none.
    pub scratch: Option<PathBuf>,
    /// Alarms that are active from the start.
    pub alarms: Vec<pb::AlarmMember>,
    /// The certificates that the metrics show.
    pub expiry: Expiries,
    /// Who is told when watchers are sent what.
    pub deliveries: Arc<Deliveries>,
}

impl MemberIdentity {
    /// Random ids, for a new store.
    pub fn random() -> Self {
        let id = || rand::random::<u64>() | 1;
        Self {
            cluster_id: id(),
            member_id: id(),
            raft_term: 2,
        }
    }
}

impl Config {
    /// etcd's defaults, except that silent clients are detected sooner.
    pub fn new(identity: MemberIdentity) -> Self {
        Self {
            identity,
            name: "default".to_owned(),
            client_urls: vec![],
            peer_urls: vec!["http://localhost:2380".to_owned()],
            max_request_bytes: 1_572_864,
            max_txn_ops: 128,
            watch_progress_interval: Duration::from_secs(600),
            quiet_watch_time: None,
            cancel_impossible_watches: false,
            watch_gather_time: Duration::from_millis(4),
            ping_answer_delay: Duration::from_millis(100),
            drain_time: Duration::ZERO,
            quota_bytes: 2 << 30,
            keepalive: Keepalive {
                interval: Duration::from_secs(300),
                timeout: Duration::from_secs(20),
            },
            max_concurrent_streams: 1000,
            budgets: Budgets::default(),
            gateway: true,
            access: BrowserAccess::default(),
            extensive_metrics: false,
            scratch: None,
            alarms: vec![],
            expiry: Expiries::default(),
            deliveries: Arc::default(),
        }
    }
}
