//! Outputs that nobody reads, or that take nothing.

use crate::support::environment::wrapped;
use crate::support::files::free_port;
use crate::support::store::plain_client;
use crate::support::{eventually, isthmus};
use etcd_client::{AlarmAction, AlarmType, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::process::{Child, Stdio};
use tokio::net::TcpStream;

/// `etcd` whose log goes to `log`, and its client.
async fn etcd_logging_to(log: impl Into<Stdio>) -> (Child, Client) {
    let url = format!("127.0.0.1:{}", free_port());
    let arguments = [
        "etcd".to_owned(),
        format!("--listen-client-urls=http://{url}"),
        format!("--advertise-client-urls=http://{url}"),
    ];
    let mut command = wrapped(&["env"], &arguments.each_ref().map(|a| &**a));
    let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    // The handle of the log is closed with the command.
    drop(command);
    eventually("etcd listens", async || TcpStream::connect(&url).await.ok()).await;
    let client = plain_client(&url).await;
    (child, client)
}

async fn ends_well(mut child: Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let ended = tokio::time::timeout(crate::support::PATIENCE, ended).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
}

/// Makes the store log.
async fn log_something(client: &mut Client) {
    for action in [AlarmAction::Activate, AlarmAction::Deactivate] {
        client.alarm(action, AlarmType::Nospace, None).await.unwrap();
    }
    client.put("k", "v", None).await.unwrap();
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing_and_is_complete_once_it_is_read() {
    let (mut reader, writer) = pipe().unwrap();
    let filler = writer.try_clone().unwrap();
    let (child, mut client) = etcd_logging_to(writer).await;
    fill(filler);
    for _ in 0..3 {
        log_something(&mut client).await;
    }
    let log = std::thread::spawn(move || read_all(&mut reader));
    ends_well(child).await;
    let log = log.join().unwrap();
    assert!(log.contains("signal received: stopping"), "{}", log.trim_matches('x'));
}

/// Fills a pipe until it takes nothing more.
fn fill(writer: std::io::PipeWriter) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    while poll(&mut fds, PollTimeout::ZERO).unwrap() > 0 {
        nix::unistd::write(&writer, &[b'x'; 4096]).unwrap();
    }
}

fn read_all(reader: &mut PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for log in [Stdio::from(writer), Stdio::from(full)] {
        let (child, mut client) = etcd_logging_to(log).await;
        log_something(&mut client).await;
        ends_well(child).await;
    }
}

#[test]
fn an_answer_that_cannot_be_printed_is_an_error_unless_its_reader_has_enough() {
    let run = |output: Stdio| {
        let mut command = wrapped(&["env"], &["version"]);
        let done = command.stdout(output).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, text) = run(full.into());
    assert_eq!(code, Some(1));
    assert!(
        text.contains("cannot write to standard output: No space left"),
        "{text}"
    );
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), (Some(0), String::new()));
    assert!(isthmus(["version"]).run().succeeded());
}
