//! Resolves host names on threads of their own.
//!
//! The system's resolver blocks for as long as its servers do not answer: with the search domains of a pod, up to a
//! minute for one name. On the blocking threads of the runtime, the names of a few hundred remote clusters would delay
//! password checks, long reads and looks at followed directories. Here a name that hangs delays nobody but those who ask
//! for it, and a name has one thread at most, however often it is asked for.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use tokio::sync::watch;

/// The most names that are resolved at once: several names for each of the most remote clusters that a mesh can have.
const NAMES_MAX: usize = 2048;
/// Stack of a thread, in bytes. The resolver of glibc puts buffers of up to 64 KiB on the stack.
const STACK: usize = 512 << 10;

/// The outcome of a lookup, for everyone who waits for it. An error is its kind and its text.
type Outcome = Result<Vec<IpAddr>, (io::ErrorKind, Arc<str>)>;
type Lookups = Mutex<HashMap<String, watch::Receiver<Option<Outcome>>>>;

static LOOKUPS: LazyLock<Lookups> = LazyLock::new(Lookups::default);

/// The addresses of `host`, in the order of the system's resolver. An address resolves to itself.
pub async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = joined(&LOOKUPS, host, system).await?;
    Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Asks the system's resolver. Blocks.
fn system(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// Joins the lookup of `host` that is going on, or begins one.
async fn joined(
    lookups: &'static Lookups,
    host: &str,
    resolve: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
) -> io::Result<Vec<IpAddr>> {
    let mut outcome = begin(lookups, host, resolve)?;
    let outcome = outcome.wait_for(Option::is_some).await.map(|found| found.clone());
    match outcome.ok().flatten() {
        Some(Ok(found)) => Ok(found),
        Some(Err((kind, text))) => Err(io::Error::new(kind, &*text)),
        None => Err(io::Error::other("the resolver panicked")),
    }
}

fn begin(
    lookups: &'static Lookups,
    host: &str,
    resolve: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
) -> io::Result<watch::Receiver<Option<Outcome>>> {
    let mut table = lookups.lock();
    if let Some(running) = table.get(host) {
        return Ok(running.clone());
    }
    if table.len() >= NAMES_MAX {
        let text = format!("{NAMES_MAX} other names are being resolved: does the DNS server answer?");
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    let (sender, receiver) = watch::channel(None);
    let name = host.to_owned();
    let work = move || {
        let running = Running { lookups, host: name };
        let found = resolve(&running.host).map_err(|error| (error.kind(), error.to_string().into()));
        // The next caller asks anew.
        drop(running);
        sender.send_replace(Some(found));
    };
    let thread = std::thread::Builder::new().name("resolver".to_owned());
    thread.stack_size(STACK).spawn(work).map_err(|error| {
        let text = format!("cannot start a thread for the resolver: {error}; raise the limit of threads (ulimit -u)");
        io::Error::new(error.kind(), text)
    })?;
    // The thread cannot remove the entry before, because this function holds the lock.
    table.insert(host.to_owned(), receiver.clone());
    Ok(receiver)
}

/// Lists a lookup as running until dropped.
struct Running {
    lookups: &'static Lookups,
    host: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.lookups.lock().remove(&self.host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn table() -> &'static Lookups {
        Box::leak(Box::default())
    }

    #[tokio::test]
    async fn an_address_resolves_to_itself_and_localhost_to_loopback() {
        for ip in ["10.0.0.1", "fd00::1"] {
            let found = lookup(ip, 7).await.unwrap();
            assert_eq!(found, [SocketAddr::new(ip.parse().unwrap(), 7)]);
        }
        let found = lookup("localhost", 7).await.unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 7), "{found:?}");
    }

    #[tokio::test]
    async fn a_name_that_hangs_has_one_thread_and_delays_no_other_name() {
        let table = table();
        let (answer, question) = mpsc::channel::<()>();
        let hangs = move |_: &str| {
            let _ = question.recv();
            Ok(vec!["10.0.0.1".parse().unwrap()])
        };
        let mut first = Box::pin(joined(table, "hangs", hangs));
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = Box::pin(joined(table, "hangs", |_| unreachable!("the name is being resolved")));
        assert!(futures::poll!(&mut second).is_pending());
        let other = joined(table, "other", |_| Ok(vec!["10.0.0.2".parse().unwrap()])).await;
        assert_eq!(other.unwrap()[0].to_string(), "10.0.0.2");
        answer.send(()).unwrap();
        assert_eq!(first.await.unwrap()[0].to_string(), "10.0.0.1");
        assert_eq!(second.await.unwrap()[0].to_string(), "10.0.0.1");
        assert!(table.lock().is_empty());
        let unknown = |_: &str| Err(io::Error::new(io::ErrorKind::NotFound, "no such name"));
        let error = joined(table, "hangs", unknown).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (io::ErrorKind::NotFound, "no such name".to_owned())
        );
        let error = joined(table, "hangs", |_| panic!("a test of panics"))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "the resolver panicked");
        assert!(table.lock().is_empty());
    }
}
