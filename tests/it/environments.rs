//! Proves what `docs/environments.md` promises about faulty environments.

mod names;
mod output;
mod place;
mod time;

use crate::support::Process;
use crate::support::environment::{Faults, allows, etcd_in};
use crate::support::store::plain_client;
use crate::support::{PATIENCE, eventually, http};
use etcd_client::{Client, GetOptions, WatchOptions};
use nix::errno::Errno;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Sets limits of a running process with `prlimit`.
fn limit(process: &Process, limit: &str) {
    limit_as(&["env"], process, limit);
}

/// Sets limits of a running process, with a wrapper that makes `prlimit` run as the user of that process.
fn limit_as(wrapper: &[&str], process: &Process, limit: &str) {
    let done = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args(["prlimit", "--pid", &process.id().to_string(), limit])
        .status();
    assert!(done.unwrap().success());
}

/// The client of a process that has said where it serves, and the address.
async fn client(process: &Process) -> (Client, String) {
    let address = process.address().await;
    (plain_client(&address).await, address)
}

/// A number in `/proc/PID/status`.
fn status(process: &Process, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// How many keys the store holds.
async fn count(client: &mut Client) -> i64 {
    let all = GetOptions::new().with_prefix().with_count_only();
    client.get("", Some(all.with_all_keys())).await.unwrap().count()
}

/// Fails unless writes are refused with a text that contains `obstacle`, reads answer, and health names the obstacle;
/// and unless writes are accepted after `end`.
async fn refused_until(client: &mut Client, address: &str, obstacle: &str, end: impl FnOnce()) {
    let refused = eventually("a write is refused", async || {
        client
            .put(format!("refused {obstacle}"), vec![7; 100_000], None)
            .await
            .err()
    })
    .await
    .to_string();
    assert!(refused.contains(obstacle), "{refused}");
    let before = count(client).await;
    let health = http::get(&format!("http://{address}/health")).await.unwrap();
    assert_eq!(health.status.as_u16(), 503);
    assert!(health.body.contains(obstacle), "{}", health.body);
    end();
    eventually("writes are accepted again", async || {
        client.put(format!("accepted {obstacle}"), "1", None).await.ok()
    })
    .await;
    assert!(count(client).await > before);
}

#[tokio::test]
async fn clients_that_take_all_descriptors_stop_neither_writes_nor_other_clients() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", dir.path().display());
    let server = etcd_in(&["prlimit", "--nofile=80:80"], &[&data, "--checkpoint-bytes=1000000"]);
    let (mut client, address) = client(&server).await;
    let mut idle = vec![];
    for _ in 0..150 {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    for n in 0..8 {
        // A client whose connection made room for another connects again.
        eventually("a log file is filled", async || {
            client.put(format!("k{n}"), vec![7; 1_000_000], None).await.ok()
        })
        .await;
    }
    let mut late = plain_client(&address).await;
    assert_eq!(count(&mut late).await, 8);
}

#[tokio::test]
async fn a_process_that_cannot_start_for_want_of_descriptors_or_threads_names_the_limit() {
    let server = etcd_in(&["prlimit", "--nofile=8:8"], &[]);
    assert_eq!(server.ended().await.code(), Some(1));
    server.line("raise the limit of open files (ulimit -n)").await;
    // Limits of threads do not bind root.
    let nobody = ["setpriv", "--reuid=64321", "--regid=64321", "--clear-groups"];
    if !allows(&nobody) {
        return;
    }
    let server = etcd_in(&[&nobody[..], &["prlimit", "--nproc=2"]].concat(), &[]);
    assert_eq!(server.ended().await.code(), Some(1));
    server.line("raise the limit of processes and threads (ulimit -u").await;
}

#[tokio::test]
async fn a_store_without_further_threads_does_all_blocking_work_on_those_that_it_has() {
    let nobody = ["setpriv", "--reuid=64322", "--regid=64322", "--clear-groups"];
    if !allows(&nobody) {
        return;
    }
    let server = etcd_in(&nobody, &[]);
    let (client, address) = client(&server).await;
    limit_as(&nobody, &server, "--nproc=1");
    // Hashes of passwords and of the store are blocking work.
    let work = (0..20).map(|n| {
        let mut client = client.clone();
        async move {
            client.user_add(format!("u{n}"), "secret", None).await.unwrap();
            client.hash_kv(0).await.unwrap();
        }
    });
    tokio::time::timeout(PATIENCE, futures::future::join_all(work))
        .await
        .unwrap();
    assert_eq!(
        http::get(&format!("http://{address}/health")).await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn a_process_without_memory_ends_and_keeps_every_write_that_it_has_answered() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", dir.path().display());
    // The allocator reserves less address space at once, in KiB, so that the limit is met soon.
    let small = "MIMALLOC_ARENA_RESERVE=32768";
    let server = etcd_in(&["env", "RUST_BACKTRACE=0", small], &[&data]);
    let (mut client, _) = client(&server).await;
    let kib = status(&server, "VmSize");
    limit(&server, &format!("--as={}", (kib << 10) + (16 << 20)));
    let mut answered = 0;
    while answered < 2000
        && client
            .put(format!("k{answered}"), vec![7; 1_000_000], None)
            .await
            .is_ok()
    {
        answered += 1;
    }
    assert!(answered < 2000, "the limit had no effect");
    let status = server.ended().await;
    assert_eq!(status.signal(), Some(6), "{status}: {}", server.log());
    server.line("memory allocation of").await;
    let again = etcd_in(&["env"], &[&data]);
    let (mut client, _) = self::client(&again).await;
    let found = count(&mut client).await;
    assert!((answered..=answered + 1).contains(&found), "{answered} {found}");
}

#[tokio::test]
async fn a_limit_of_file_sizes_refuses_writes_and_kills_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", dir.path().display());
    let server = etcd_in(&["env"], &[&data, "--checkpoint-bytes=1000000"]);
    let (mut client, address) = client(&server).await;
    limit(&server, "--fsize=500000:");
    let end = || limit(&server, "--fsize=unlimited:");
    refused_until(&mut client, &address, "(EFBIG); raise the limit (ulimit -f)", end).await;
}

#[tokio::test]
async fn an_error_of_the_system_refuses_writes_and_an_error_of_the_disk_ends_the_process() {
    let faults = Faults::new();
    let server = faults.etcd(&["--checkpoint-bytes=1000000"]);
    let (mut client, address) = client(&server).await;
    for (errno, text) in [
        (Errno::ENFILE, "(ENFILE)"),
        (Errno::ENOMEM, "(ENOMEM)"),
        (Errno::EROFS, "(EROFS); remount the file system for writing"),
    ] {
        faults.set("errno", errno as i64);
        refused_until(&mut client, &address, text, || faults.clear("errno")).await;
    }
    let answered = count(&mut client).await;
    faults.set("errno", Errno::EIO as i64);
    client.put("lost", "1", None).await.unwrap_err();
    assert_eq!(server.ended().await.code(), Some(1));
    server.line("Input/output error").await;
    faults.clear("errno");
    let again = faults.etcd(&[]);
    assert!((answered..=answered + 1).contains(&count(&mut self::client(&again).await.0).await));
}

#[tokio::test]
async fn writes_that_the_system_cuts_short_are_completed() {
    let faults = Faults::new();
    let server = faults.etcd(&["--checkpoint-bytes=100000"]);
    let (mut client, _) = client(&server).await;
    faults.set("short", 1001);
    for n in 0..20 {
        client.put(format!("k{n}"), vec![7; 20_000], None).await.unwrap();
    }
    server.line("checkpoint written").await;
    server.kill().await;
    let again = faults.etcd(&["--on-corruption=fail"]);
    assert_eq!(count(&mut self::client(&again).await.0).await, 20);
}

#[tokio::test]
async fn a_disk_that_takes_seconds_for_a_sync_delays_writes_and_nothing_else() {
    let faults = Faults::new();
    let server = faults.etcd(&[]);
    let (mut client, address) = client(&server).await;
    client.put("k", "before", None).await.unwrap();
    let mut watch = client.watch("k", Some(WatchOptions::new())).await.unwrap();
    assert!(watch.message().await.unwrap().unwrap().created());
    faults.set("sync", 3000);
    let begun = Instant::now();
    let mut writer = client.clone();
    let put = tokio::spawn(async move { writer.put("k", "slow", None).await });
    let mut reads = 0;
    while !put.is_finished() {
        let read = Instant::now();
        client.get("k", None).await.unwrap();
        assert_eq!(
            http::get(&format!("http://{address}/health")).await.unwrap().status,
            200
        );
        assert!(read.elapsed() < Duration::from_secs(1), "{:?}", read.elapsed());
        reads += 1;
    }
    put.await.unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(3) && reads > 10, "{reads}");
    assert_eq!(
        watch.message().await.unwrap().unwrap().events()[0]
            .kv()
            .unwrap()
            .value(),
        b"slow"
    );
    faults.clear("sync");
    assert!(server.terminate().await.success());
}
