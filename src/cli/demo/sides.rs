//! The two clusters of the demo, each of which the user can stop and start again.

use super::{Addresses, CLUSTERS, Cluster, DemoArgs, Running, run};
use crate::app::certs::Ca;
use crate::cli::{GRACE, print};
use crate::util::lifecycle::Lifecycle;
use anyhow::bail;
use futures::future::select_all;
use std::io::BufRead;
use std::path::Path;
use tokio::sync::mpsc;

/// One cluster.
pub(super) enum Side {
    Up(Box<Running>),
    /// A cluster that the user has stopped. It starts again at the same addresses, with an empty store.
    Down {
        name: &'static str,
        id: u32,
        addresses: Addresses,
    },
}

/// The clusters, and what is needed to start them again.
pub(super) struct Sides<'a> {
    pub(super) demo: &'a DemoArgs,
    pub(super) ca: &'a Ca,
    pub(super) work: &'a Path,
    pub(super) sides: Vec<Side>,
}

/// What a line of the user asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Stop(usize),
    Start(usize),
}

impl Wish {
    fn parse(line: &str) -> Result<Self, String> {
        let names = CLUSTERS.map(|(name, _)| name);
        let usage = || {
            format!(
                "Type `stop NAME` or `start NAME`; the names are {}.\n",
                names.join(" and ")
            )
        };
        let (verb, name) = line.trim().split_once(' ').ok_or_else(usage)?;
        let at = names.iter().position(|known| *known == name.trim()).ok_or_else(usage)?;
        match verb {
            "stop" => Ok(Self::Stop(at)),
            "start" => Ok(Self::Start(at)),
            _ => Err(usage()),
        }
    }
}

impl Sides<'_> {
    /// Does what the user types, until `life` stops or a cluster fails.
    pub(super) async fn run(&mut self, life: &Lifecycle) -> anyhow::Result<()> {
        let mut lines = lines();
        loop {
            let line = tokio::select! {
                () = life.stop_token().cancelled() => break,
                () = self.one_failed() => {
                    let failures = self.stop_all().await;
                    bail!("{}", failures.join("; "));
                }
                Some(line) = lines.recv() => line,
            };
            match Wish::parse(&line) {
                Ok(Wish::Stop(at)) => self.stop(at).await?,
                Ok(Wish::Start(at)) => self.start(at).await?,
                Err(usage) => print::answer(&usage)?,
            }
        }
        self.stop_all().await;
        Ok(())
    }

    async fn one_failed(&self) {
        let lives = self.up().flat_map(|cluster| [&cluster.life, &cluster.mirroring]);
        let stops: Vec<_> = lives.map(|life| Box::pin(life.stop_token().cancelled())).collect();
        match stops.is_empty() {
            true => std::future::pending().await,
            false => drop(select_all(stops).await),
        }
    }

    /// The clusters that run.
    fn up(&self) -> impl Iterator<Item = &Cluster> {
        self.sides.iter().filter_map(|side| match side {
            Side::Up(running) => Some(&running.cluster),
            Side::Down { .. } => None,
        })
    }

    async fn stop(&mut self, at: usize) -> anyhow::Result<()> {
        let (name, id) = CLUSTERS[at];
        let Side::Up(running) = &self.sides[at] else {
            return print::answer(&format!("{name} is stopped already.\n"));
        };
        let mut addresses = Addresses::default();
        if let Some(store) = running.cluster.etcd.addresses.first() {
            addresses.store = store.to_string();
        }
        if let Some(page) = running.page {
            addresses.page = page.to_string();
        }
        stop([&running.cluster.mirroring]).await;
        stop([&running.cluster.life]).await;
        self.sides[at] = Side::Down { name, id, addresses };
        print::answer(&format!(
            "{name} is stopped: its mirrored keys stay in the other cluster. `start {name}` starts it again.\n"
        ))
    }

    async fn start(&mut self, at: usize) -> anyhow::Result<()> {
        let Side::Down { name, id, addresses } = &self.sides[at] else {
            return print::answer(&format!("{} runs already.\n", CLUSTERS[at].0));
        };
        let cluster = self.demo.cluster(name, *id, addresses, self.ca, self.work).await?;
        print::answer(&format!(
            "{name} is started, with an empty store: the other cluster compares and writes only what differs.\n"
        ))?;
        self.sides[at] = Side::Up(Box::new(run(cluster).await?));
        Ok(())
    }

    /// Stops the clusters that run; returns why clusters failed before. All mirrors have ended before the first store ends, so
    /// that no mirror reports the end of the other cluster's store.
    pub(super) async fn stop_all(&mut self) -> Vec<String> {
        let mut failures = stop(self.up().map(|cluster| &cluster.mirroring)).await;
        failures.extend(stop(self.up().map(|cluster| &cluster.life)).await);
        failures
    }
}

/// Stops the tasks of all `lives`, and waits for their end; returns why some failed before.
async fn stop<'a>(lives: impl IntoIterator<Item = &'a Lifecycle>) -> Vec<String> {
    let lives: Vec<_> = lives.into_iter().collect();
    lives.iter().for_each(|life| life.stop());
    let mut failures = vec![];
    for life in lives {
        failures.extend(life.stopped(GRACE).await);
    }
    failures
}

/// The lines of standard input. A full queue holds the reader up.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    // A thread of its own, since reading blocks, also at the end of the process.
    let reader = std::thread::Builder::new().name("standard input".to_owned());
    let spawned = reader.spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot read standard input: clusters cannot be stopped and started");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_wish_and_a_cluster() {
        assert_eq!(Wish::parse(" stop hk-cluster "), Ok(Wish::Stop(1)));
        assert_eq!(Wish::parse("start tokyo-cluster"), Ok(Wish::Start(0)));
        for wrong in ["", "stop", "stop osaka", "kill hk-cluster"] {
            assert!(
                Wish::parse(wrong).unwrap_err().contains("tokyo-cluster and hk-cluster"),
                "{wrong}"
            );
        }
    }
}
