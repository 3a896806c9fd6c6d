//! Writes the log without ever waiting for its reader. A pipe that nobody reads, or a disk that is full, must cost log
//! lines and nothing else: a thread of the runtime that waited would stop requests, watches and lease renewals.
//!
//! A line is written at once if the output takes it. Otherwise it joins a backlog, which a thread writes until nothing
//! is left; a full backlog drops lines and counts them.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Bytes of lines that may wait for the output.
const BACKLOG_MAX: usize = 1 << 20;
/// The most bytes that a pipe with any room takes without blocking (`PIPE_BUF` of Linux).
const AT_ONCE: usize = 4096;

/// One output of the log.
pub struct Sink {
    fd: fn() -> BorrowedFd<'static>,
    backlog: Mutex<Backlog>,
    drained: Condvar,
    /// Makes the line that reports lost lines.
    report: fn(u64) -> String,
}

struct Backlog {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    /// A thread writes the backlog.
    draining: bool,
}

/// A sink as a writer of `tracing_subscriber`, which writes each line with one call.
pub struct Lines(pub &'static Sink);

/// Standard output as a descriptor.
pub fn stdout() -> BorrowedFd<'static> {
    // Closing the handle does not close the descriptor, and nothing in this process closes the descriptor.
    static STDOUT: std::sync::LazyLock<io::Stdout> = std::sync::LazyLock::new(io::stdout);
    STDOUT.as_fd()
}

/// Standard error as a descriptor.
pub fn stderr() -> BorrowedFd<'static> {
    static STDERR: std::sync::LazyLock<io::Stderr> = std::sync::LazyLock::new(io::stderr);
    STDERR.as_fd()
}

impl Sink {
    pub const fn new(fd: fn() -> BorrowedFd<'static>, report: fn(u64) -> String) -> Self {
        Self {
            fd,
            backlog: Mutex::new(Backlog {
                lines: VecDeque::new(),
                bytes: 0,
                lost: 0,
                draining: false,
            }),
            drained: Condvar::new(),
            report,
        }
    }

    /// Writes `line`, or keeps it for later. Never blocks.
    pub fn write(&'static self, line: &[u8]) {
        let mut backlog = self.backlog.lock();
        if !backlog.draining {
            let mut text = self.report_lost(&mut backlog);
            text.extend_from_slice(line);
            match write_ready((self.fd)(), &text) {
                Ok([]) => return,
                Ok(rest) => backlog.push(rest),
                Err(_) => return backlog.lost += 1,
            }
            self.drain_on_thread(&mut backlog);
        } else if backlog.bytes + line.len() > BACKLOG_MAX {
            backlog.lost += 1;
        } else {
            backlog.push(line);
        }
    }

    /// Waits until the backlog is written, for at most `limit`.
    pub fn finish(&self, limit: Duration) {
        let mut backlog = self.backlog.lock();
        self.drained
            .wait_while_for(&mut backlog, |backlog| backlog.draining, limit);
    }

    /// The report of the lines that were lost since the last report; empty if no line was lost.
    fn report_lost(&self, backlog: &mut Backlog) -> Vec<u8> {
        match std::mem::take(&mut backlog.lost) {
            0 => vec![],
            lost => (self.report)(lost).into_bytes(),
        }
    }

    fn drain_on_thread(&'static self, backlog: &mut MutexGuard<'_, Backlog>) {
        let thread = std::thread::Builder::new().name("log".to_owned());
        backlog.draining = thread.spawn(|| self.drain()).is_ok();
        if !backlog.draining {
            backlog.lost += backlog.lines.len() as u64;
            backlog.lines.clear();
            backlog.bytes = 0;
        }
    }

    /// Writes the backlog, waiting for the output.
    fn drain(&self) {
        let mut backlog = self.backlog.lock();
        loop {
            let text = match backlog.lines.pop_front() {
                Some(line) => line,
                None => self.report_lost(&mut backlog),
            };
            if text.is_empty() {
                break;
            }
            backlog.bytes = backlog.bytes.saturating_sub(text.len());
            let written = MutexGuard::unlocked(&mut backlog, || write_all((self.fd)(), &text));
            if written.is_err() {
                // Whatever waits would fail, too. The next line tries again.
                backlog.lost += 1 + backlog.lines.len() as u64;
                backlog.lines.clear();
                backlog.bytes = 0;
                break;
            }
        }
        backlog.draining = false;
        self.drained.notify_all();
    }
}

impl Backlog {
    fn push(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.to_owned());
    }
}

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for at most `timeout` until `fd` takes bytes, or reports an error.
fn is_ready(fd: BorrowedFd<'_>, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// Writes as much of `text` as `fd` takes without blocking; returns the rest.
fn write_ready<'a>(fd: BorrowedFd<'_>, mut text: &'a [u8]) -> nix::Result<&'a [u8]> {
    while !text.is_empty() && is_ready(fd, PollTimeout::ZERO) {
        match write(fd, &text[..text.len().min(AT_ONCE)]) {
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

fn write_all(fd: BorrowedFd<'_>, mut text: &[u8]) -> nix::Result<()> {
    while !text.is_empty() {
        match write(fd, text) {
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            // Whoever started the process may have made the output non-blocking.
            Err(Errno::EAGAIN) => drop(is_ready(fd, PollTimeout::NONE)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, PipeWriter, Read, pipe};
    use std::sync::LazyLock;

    static PIPE: LazyLock<(Mutex<Option<PipeReader>>, PipeWriter)> = LazyLock::new(|| {
        let (reader, writer) = pipe().unwrap();
        (Mutex::new(Some(reader)), writer)
    });
    static SINK: Sink = Sink::new(|| PIPE.1.as_fd(), |lost| format!("lost {lost}\n"));

    #[test]
    fn a_reader_that_sleeps_costs_lines_and_no_time_and_is_told_how_many() {
        let line = [&[b'x'; 999][..], b"\n"].concat();
        // A pipe holds 64 KiB, and the backlog 1 MiB.
        for _ in 0..2000 {
            SINK.write(&line);
        }
        let mut reader = PIPE.0.lock().take().unwrap();
        let (mut text, mut buffer) = (String::new(), [0; 1 << 16]);
        while !text.ends_with("lost 0\n") && !text.lines().last().is_some_and(|l| l.starts_with("lost ")) {
            let read = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        SINK.finish(Duration::from_secs(60));
        let whole = text.lines().filter(|l| l.len() == 999).count();
        assert!(text.ends_with(&format!("lost {}\n", 2000 - whole)), "{whole}");
        assert!((1000..1200).contains(&whole), "{whole}");
        SINK.write(b"next\n");
        let read = reader.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"next\n");
        // Lines for nobody are lost, and the process lives on.
        drop(reader);
        SINK.write(b"never read\n");
        SINK.write(b"never read\n");
        SINK.finish(Duration::from_secs(60));
    }
}
