//! Proves that clients are moved between replicas without losing anything: a replica that is told to end asks them one after
//! the other to connect elsewhere, and a replica with an age for connections does so all the time.

use crate::support::files::free_port;
use crate::support::http;
use crate::support::store::{message, next, plain_client, plain_etcd};
use crate::support::{PATIENCE, Process, Signal, eventually};
use etcd_client::*;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Time for clients to leave, of which a sixth is for load balancers.
const DRAIN: Duration = Duration::from_secs(6);

struct Replica {
    process: Process,
    address: String,
    health: String,
}

async fn replica(file: &Path, args: &[&str]) -> Replica {
    let health = format!("http://127.0.0.1:{}", free_port());
    let process = plain_etcd()
        .arg(format!("--follow={}", file.display()))
        .arg(format!("--listen-metrics-urls={health}"))
        .args(args)
        .start();
    Replica {
        address: process.address().await,
        process,
        health,
    }
}

impl Replica {
    /// A client with a connection of its own, which watches everything from revision 2 on.
    async fn agent(&self, from: i64) -> Agent {
        let mut client = plain_client(&self.address).await;
        let options = WatchOptions::new().with_all_keys().with_start_revision(from);
        let mut stream = client.watch("", Some(options)).await.unwrap();
        assert!(message(&mut stream).await.created());
        Agent {
            client,
            stream,
            next: from,
        }
    }

    async fn moves(&self, why: &str) -> Option<f64> {
        let page = http::get(&format!("{}/metrics", self.health)).await.ok()?.body;
        let series = format!("isthmus_server_moves_total{{why=\"{why}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series))?.parse().ok()
    }
}

struct Agent {
    client: Client,
    stream: WatchStream,
    /// The revision to resume from.
    next: i64,
}

impl Agent {
    /// Takes events, each revision once and in order, until the watch ends. Returns the error that ended it.
    async fn until_moved(&mut self) -> String {
        loop {
            match timeout(PATIENCE, self.stream.message())
                .await
                .expect("the watch goes on")
            {
                Ok(Some(response)) => {
                    assert!(!response.canceled(), "{response:?}");
                    for event in response.events() {
                        assert_eq!(event.kv().unwrap().mod_revision(), self.next);
                        self.next += 1;
                    }
                }
                Ok(None) => return "the end".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }

    /// Takes events until `last` has come.
    async fn until(&mut self, last: i64) {
        while self.next <= last {
            for event in next(&mut self.stream).await.events() {
                assert_eq!(event.kv().unwrap().mod_revision(), self.next);
                self.next += 1;
            }
        }
    }
}

fn upstream_file(dir: &Path, address: &str) -> std::path::PathBuf {
    let file = dir.join("upstream.yaml");
    std::fs::write(&file, format!("endpoints: [\"http://{address}\"]\n")).unwrap();
    file
}

#[tokio::test]
async fn clients_of_a_replica_that_leaves_are_moved_over_time_and_resume_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = plain_etcd().start();
    let address = upstream.address().await;
    let file = upstream_file(dir.path(), &address);
    let (leaves, stays) = tokio::join!(replica(&file, &["--drain-time=6s"]), replica(&file, &[]));
    let mut up = plain_client(&address).await;
    let mut agents = vec![];
    for _ in 0..24 {
        agents.push(leaves.agent(2).await);
    }
    let mut lease_holder = plain_client(&leaves.address).await;
    let lease = lease_holder.lease_grant(60, None).await.unwrap().id();
    let (mut keeper, mut answers) = lease_holder.lease_keep_alive(lease).await.unwrap();
    keeper.keep_alive().await.unwrap();
    answers.message().await.unwrap().unwrap();
    leaves.process.signal(Signal::SIGTERM);
    let begun = Instant::now();
    let ready = format!("{}/readyz", leaves.health);
    eventually("the replica is not ready", async || {
        let answer = http::get(&ready).await.ok()?;
        (answer.status.as_u16() == 503 && answer.body.contains("in_service")).then_some(())
    })
    .await;
    // Clients that come meanwhile are served, and so are the others until it is their turn.
    let mut late = plain_client(&leaves.address).await;
    late.put("late", "1", None).await.unwrap();
    assert!(
        begun.elapsed() < DRAIN / 6,
        "the replica still waits for load balancers"
    );
    let moving: Vec<_> = agents
        .into_iter()
        .map(|mut agent| {
            tokio::spawn(async move {
                let why = agent.until_moved().await;
                assert!(why.contains("server stopped"), "{why}");
                (begun.elapsed(), agent)
            })
        })
        .collect();
    let writer = tokio::spawn(async move {
        let mut last = 0;
        while begun.elapsed() < DRAIN {
            last = up.put("k", "v", None).await.unwrap().header().unwrap().revision();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        last
    });
    let mut moved = vec![];
    for agent in moving {
        let (at, agent) = agent.await.unwrap();
        // The agent resumes on the other replica what it has not seen.
        let resumed = stays.agent(agent.next).await;
        moved.push((at, resumed));
    }
    let last = writer.await.unwrap();
    let mut times: Vec<_> = moved.iter().map(|(at, _)| *at).collect();
    times.sort();
    let between = |part: usize| times[times.len() * part / 4];
    assert!(times[0] >= DRAIN / 6 - Duration::from_millis(100), "{times:?}");
    // A quarter of the agents after a quarter of the time, and so on; the machine may be slow.
    for (part, least) in [(1, 1.7), (2, 2.9), (3, 4.0)] {
        assert!(between(part) >= Duration::from_secs_f64(least), "{times:?}");
    }
    assert!(between(2) <= Duration::from_secs(5), "{times:?}");
    let renewals = async { while let Ok(Some(_)) = answers.message().await {} };
    timeout(PATIENCE, renewals).await.expect("renewals end, too");
    for (_, agent) in &mut moved {
        agent.until(last).await;
    }
    let status = leaves.process.ended_within(DRAIN + Duration::from_secs(5)).await;
    assert!(status.success(), "{}", leaves.process.log());
    assert!(begun.elapsed() >= DRAIN.mul_f64(0.9) || late.get("late", None).await.is_err());
    let times = stays.moves("stop").await;
    assert_eq!(times, Some(0.0), "nobody left the other replica");
}

#[tokio::test]
async fn a_replica_that_nobody_uses_ends_soon_and_a_second_signal_ends_the_wait() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = plain_etcd().start();
    let file = upstream_file(dir.path(), &upstream.address().await);
    let args = ["--drain-time=60s"];
    let (unused, used) = tokio::join!(replica(&file, &args), replica(&file, &args));
    let agent = used.agent(2).await;
    unused.process.signal(Signal::SIGTERM);
    used.process.signal(Signal::SIGTERM);
    used.process.line("leaving").await;
    used.process.signal(Signal::SIGTERM);
    let limit = Duration::from_secs(5);
    assert!(used.process.ended_within(limit).await.success());
    drop(agent);
    // Load balancers have their time.
    assert!(unused.process.ended_within(2 * limit).await.success());
}

#[tokio::test]
async fn an_old_connection_is_moved_and_its_calls_end_as_usual() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = plain_etcd().start();
    let address = upstream.address().await;
    let file = upstream_file(dir.path(), &address);
    let here = replica(&file, &["--max-connection-age=4s"]).await;
    let mut holder = plain_client(&address).await;
    let held = holder.lock("lock", None).await.unwrap();
    // This call takes longer than the connection lives.
    let mut waits = plain_client(&here.address).await;
    let waiting = tokio::spawn(async move { waits.lock("lock", None).await.map(|got| got.key().to_vec()) });
    let begun = Instant::now();
    let mut agents = vec![];
    for _ in 0..8 {
        agents.push(here.agent(2).await);
    }
    let mut times = vec![];
    for agent in &mut agents {
        let why = agent.until_moved().await;
        assert!(why.contains("server stopped"), "{why}");
        times.push(begun.elapsed());
        // The client's next call takes a new connection.
        agent.client.get("k", None).await.unwrap();
    }
    assert!(times[0] >= Duration::from_millis(1900), "{times:?}");
    eventually("all connections of the beginning were moved", async || {
        (here.moves("age").await? >= 9.0).then_some(())
    })
    .await;
    assert!(!waiting.is_finished(), "the call goes on");
    holder.unlock(held.key()).await.unwrap();
    let got = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(got.is_ok(), "{got:?}");
}
