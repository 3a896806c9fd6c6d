//! Replaces the authority of a mesh. The steps are those of [`crate::mesh::rotation`]; this shell reads the clusters,
//! rests between the steps, and writes.

use super::leaves::{self, check_methods, issue};
use super::store::{self, Store};
use crate::mesh::context::Context;
use crate::mesh::facts::{Facts, secret};
use crate::mesh::handshake::{self, Ends};
use crate::mesh::output::Output;
use crate::mesh::pki::{self, Authority, Leaf, Material};
use crate::mesh::rotation::{PlaceKind, Rotation, Step};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// The Secret that holds both authorities while a rotation is under way.
const STATE: &str = "isthmus-ca-rotation";
const OLD: &str = "old.crt";
const NEW: &str = "ca.crt";
const NEW_KEY: &str = "ca.key";
/// When the last step was done.
const STEP_AT: &str = "isthmus.io/step-at";

/// How to rotate.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Connected clusters that are not part of the rotation, because they are dead.
    pub without: BTreeSet<String>,
    pub restart: Restart,
    /// Time after a step until all pods have read the change.
    pub rest: SignedDuration,
    /// Whether to write Secrets that another tool renders, too.
    pub adopt: bool,
    /// Whether to write nothing.
    pub dry_run: bool,
}

/// Whether stores are restarted after a change of what they trust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Those that read their trust file only at their start: etcd itself.
    #[default]
    Auto,
    Always,
    Never,
}

/// Why the authority was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Leaves(#[from] leaves::Error),
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error(
        "cluster {cluster} is connected to {missing}, which would not trust the new CA: add --destination-context, or \
         --without={missing} if that cluster is gone for good"
    )]
    Missing { cluster: String, missing: String },
    #[error(
        "the state of the rotation in Secret {STATE} of cluster {0} cannot be used: run the command again with the clusters \
         of the first run, or delete the Secret in all clusters to start anew"
    )]
    State(String),
    #[error(
        "after this step cluster {client} would not get a connection to cluster {server}: {why}; nothing more was changed. \
         Mend the cause and run the command again: the rotation goes on where it is"
    )]
    Broken {
        client: String,
        server: String,
        why: handshake::Failure,
    },
}

/// One cluster of the rotation.
struct Member<'a> {
    store: Store<'a>,
    facts: Facts,
    bundle: Option<String>,
    step_at: Option<Timestamp>,
}

/// Replaces the authority of the first cluster of `contexts`, which are at least one. The others are those that trust it,
/// or have the same one.
pub async fn rotate(contexts: &[Context], options: &Options, output: &dyn Output) -> Result<(), Error> {
    let mut members = read(contexts).await?;
    check(&members, options)?;
    let (rotation, new) = begin(&members, options, output).await?;
    loop {
        let clusters: Vec<_> = members.iter().map(Member::cluster).collect();
        let step = rotation.due(&clusters);
        if step == Step::Done {
            break;
        }
        if options.dry_run {
            output.line(&format!("ℹ️  Would do next: {}", step.describe()));
            for (member, cluster) in members.iter().zip(&clusters) {
                let work = rotation.work(step, cluster);
                output.line(&format!(
                    "  - cluster {}: {} trusted files, {} certificates",
                    member.facts.name(),
                    work.places.len(),
                    work.leaves.len()
                ));
            }
            return Ok(());
        }
        rest(&members, step, options, output).await;
        output.line(&format!("🔑 {}: {}", words(step), step.describe()));
        for member in &members {
            member.perform(&rotation, step, &new, options, output).await?;
        }
        members = read(contexts).await?;
        connected(&members)?;
    }
    rest(&members, Step::Done, options, output).await;
    for member in &members {
        member.store.delete(STATE).await?;
    }
    output.line("✅ The CA has been replaced in all clusters");
    Ok(())
}

fn words(step: Step) -> &'static str {
    match step {
        Step::Trust => "Step 1 of 3",
        Step::Issue => "Step 2 of 3",
        Step::Forget => "Step 3 of 3",
        Step::Done => "Done",
    }
}

async fn read(contexts: &[Context]) -> Result<Vec<Member<'_>>, Error> {
    let one = async |context| {
        let store = Store { context };
        let (facts, bundle) = (store.facts().await?, store.bundle().await?);
        let state = store.secret(STATE).await?;
        let step_at = state.and_then(|state| state.metadata.annotations?.get(STEP_AT)?.parse().ok());
        Ok::<_, Error>(Member {
            store,
            facts,
            bundle,
            step_at,
        })
    };
    let mut members = vec![];
    for context in contexts {
        members.push(one(context).await?);
    }
    Ok(members)
}

/// Refuses to begin where the mesh would break.
fn check(members: &[Member<'_>], options: &Options) -> Result<(), Error> {
    let names: BTreeSet<_> = members.iter().map(|member| member.facts.name().to_owned()).collect();
    for member in members {
        check_methods(&member.facts, &Leaf::ALL, options.adopt)?;
        let missing = member
            .facts
            .peers()
            .into_iter()
            .find(|peer| !names.contains(peer) && !options.without.contains(peer));
        if let Some(missing) = missing {
            let cluster = member.facts.name().to_owned();
            return Err(Error::Missing { cluster, missing });
        }
    }
    Ok(())
}

/// The rotation that is under way, or a new one.
async fn begin(members: &[Member<'_>], options: &Options, output: &dyn Output) -> Result<(Rotation, Authority), Error> {
    let mut state = None;
    for member in members {
        if let Some(found) = member.store.secret(STATE).await? {
            let text = |key: &str| {
                let value = found.data.as_ref()?.get(key)?;
                String::from_utf8(value.0.clone()).ok()
            };
            let parts = (text(OLD), text(NEW), text(NEW_KEY));
            let (Some(old), Some(new), Some(key)) = parts else {
                return Err(Error::State(member.facts.name().to_owned()));
            };
            if state.as_ref().is_some_and(|(_, known, _)| *known != new) {
                return Err(Error::State(member.facts.name().to_owned()));
            }
            state = Some((old, new, key));
        }
    }
    let (old, new) = match state {
        Some((old, new, key)) => {
            output.line("ℹ️  A rotation is under way and goes on");
            (old, Authority::parse(&new, &key)?)
        }
        None => {
            let old = leaves::authority(&members[0].facts)?.cert().to_owned();
            let name = pki::certificates(&old)?.swap_remove(0).common_name;
            (old, Authority::generate(&name, Timestamp::now())?)
        }
    };
    if !options.dry_run {
        for member in members {
            if member.store.secret(STATE).await?.is_none() {
                let values = [(OLD, old.as_str()), (NEW, new.cert()), (NEW_KEY, new.key())];
                member.store.create(STATE, &values).await?;
            }
        }
    }
    Ok((Rotation::new(&old, new.cert())?, new))
}

/// Waits until the pods of all members have read the last step's changes.
async fn rest(members: &[Member<'_>], step: Step, options: &Options, output: &dyn Output) {
    let now = Timestamp::now();
    let waits = members
        .iter()
        .filter_map(|member| member.step_at)
        .map(|at| Step::rest(at, options.rest, now));
    let longest = waits.max().unwrap_or(SignedDuration::ZERO);
    if longest > SignedDuration::ZERO {
        let seconds = longest.as_secs();
        let next = words(step);
        output.line(&format!(
            "⌛ Waiting {seconds}s until all pods have read the last change, before: {next}"
        ));
        tokio::time::sleep(longest.unsigned_abs()).await;
    }
}

/// Fails if a member would not get a connection to another one by the files that they have now.
fn connected(members: &[Member<'_>]) -> Result<(), Error> {
    for client in members {
        for server in members {
            let is_peer = client.facts.peers().contains(server.facts.name());
            if let (true, Some(own), Some(theirs)) =
                (is_peer, client.material(Leaf::Remote), server.material(Leaf::Server))
            {
                let name = format!("{}.mesh.cilium.io", server.facts.name());
                let peer = format!("{}.etcd-client-ca.crt", server.facts.name());
                let trusts = client.facts.secret_text(secret::MIRROR, &peer).unwrap_or(&own.ca);
                let ends = Ends {
                    server: &theirs,
                    server_name: &name,
                    client: &own,
                    client_trusts: trusts,
                    server_trusts: &theirs.ca,
                };
                handshake::attempt(&ends, Timestamp::now()).map_err(|why| Error::Broken {
                    client: client.facts.name().to_owned(),
                    server: server.facts.name().to_owned(),
                    why,
                })?;
            }
        }
    }
    Ok(())
}

// === impl Member ===

impl Member<'_> {
    fn cluster(&self) -> crate::mesh::rotation::Cluster {
        super::cluster(&self.facts, self.bundle.as_deref())
    }

    fn material(&self, leaf: Leaf) -> Option<Material> {
        let text = |key: &str| Some(self.facts.secret_text(leaf.secret(), key)?.to_owned());
        let (cert, key, ca) = (text("tls.crt")?, text("tls.key")?, text("ca.crt")?);
        let ca = self.bundle.clone().unwrap_or(ca);
        Some(Material { cert, key, ca })
    }

    /// Does one step in this cluster.
    async fn perform(
        &self,
        rotation: &Rotation,
        step: Step,
        new: &Authority,
        options: &Options,
        output: &dyn Output,
    ) -> Result<(), Error> {
        let work = rotation.work(step, &self.cluster());
        let name = self.facts.name();
        for place in &work.places {
            match place.kind {
                PlaceKind::Secret => self.store.set(&place.name, &[(&place.key, &place.pem)]).await?,
                PlaceKind::ConfigMap => self.store.set_map(&place.name, &place.key, &place.pem).await?,
            }
        }
        for leaf in &work.leaves {
            issue(&self.store, &self.facts, new, *leaf, &[], Timestamp::now()).await?;
        }
        if work.authority {
            self.store
                .set(secret::CA, &[("ca.crt", new.cert()), ("ca.key", new.key())])
                .await?;
        }
        output.line(&format!(
            "  - cluster {name}: {} trusted files, {} certificates",
            work.places.len(),
            work.leaves.len()
        ));
        if !work.places.is_empty() && self.restarts(options.restart) {
            output.line(&format!(
                "  - cluster {name}: restarting the store, which reads trusted CAs at its start only"
            ));
            self.store.restart(&Timestamp::now().to_string()).await?;
        }
        self.store
            .annotate(STATE, STEP_AT, &Timestamp::now().to_string())
            .await?;
        Ok(())
    }

    /// Whether the store has to be restarted to trust other authorities.
    fn restarts(&self, restart: Restart) -> bool {
        let is_ours = |image: &str| image.contains("isthmus");
        let images = self
            .facts
            .containers()
            .iter()
            .filter_map(|container| container.image.as_deref());
        match restart {
            Restart::Always => true,
            Restart::Never => false,
            Restart::Auto => {
                self.facts.deployment.is_some() && !self.facts.runs_isthmus() && !images.into_iter().any(is_ours)
            }
        }
    }
}
