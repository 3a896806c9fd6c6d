//! One cluster of a rotation.

use super::{Error, Restart, STATE, STEP_AT};
use crate::mesh::certs::leaves;
use crate::mesh::certs::store::Store;
use crate::mesh::certs::{cluster, owner};
use crate::mesh::facts::{Bundle, Facts, RECORD, USERS_KEY, secret};
use crate::mesh::objects;
use crate::mesh::output::Output;
use crate::mesh::pki::{self, Authority, Leaf, Material};
use crate::mesh::ready;
use crate::mesh::record::Record;
use crate::mesh::rotation::{self, ClientFile, Place, PlaceKind, Work};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The annotation of pods with what their store trusts.
const TRUSTS: &str = "isthmus.io/trusts";

/// One cluster of a rotation, as it was read.
pub struct Member<'a> {
    pub store: Store<'a>,
    pub facts: Facts,
    pub state: Option<Secret>,
    pub step_at: Option<Timestamp>,
}

/// What a step writes in one cluster.
pub struct Prepared {
    places: Vec<Place>,
    files: Vec<ClientFile>,
    issued: Vec<(Leaf, Material)>,
    authority: bool,
}

/// One line about what is written in a cluster.
pub fn summary(facts: &Facts, places: usize, files: usize, leaves: usize) -> String {
    let parts = [
        (places, "trusted files"),
        (files, "client files"),
        (leaves, "certificates"),
    ];
    let parts: Vec<_> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let parts = if parts.is_empty() {
        "nothing".to_owned()
    } else {
        parts.join(", ")
    };
    format!("  - cluster {}: {parts}", facts.name())
}

// === impl Member ===

impl<'a> Member<'a> {
    pub async fn read(store: Store<'a>) -> Result<Self, Error> {
        let (facts, state) = tokio::try_join!(store.facts_with_bundle(), store.secret(STATE))?;
        let annotations = state.as_ref().and_then(|state| state.metadata.annotations.as_ref());
        let step_at = annotations.and_then(|notes| notes.get(STEP_AT)?.parse().ok());
        Ok(Self {
            store,
            facts,
            state,
            step_at,
        })
    }

    pub fn cluster(&self) -> rotation::Cluster {
        cluster(&self.facts)
    }

    /// Whether this cluster reads the store of `peer`.
    pub fn reads(&self, peer: &str) -> bool {
        self.facts.peers().contains(peer)
    }

    /// The clusters that this one reads, and those that read this one.
    pub fn connected(&self) -> BTreeSet<String> {
        let mut names = self.facts.peers();
        let record = Record::read(&self.facts).unwrap_or_default();
        names.extend(record.peers.into_keys());
        let users = self
            .facts
            .users
            .as_ref()
            .and_then(|map| map.data.as_ref()?.get(USERS_KEY));
        let words = users
            .map_or("", String::as_str)
            .split(|c: char| c.is_whitespace() || "\"'{},".contains(c));
        names.extend(words.filter_map(|word| word.strip_prefix("remote-")).map(str::to_owned));
        names.remove(self.facts.name());
        names
    }

    /// Fails at a place whose certificates cannot be read: a rotation could not keep what it trusts.
    pub fn check_places(&self) -> Result<(), Error> {
        for place in self.cluster().places {
            pki::certificates(&place.pem).map_err(|why| Error::Place {
                kind: match place.kind {
                    PlaceKind::Secret => "Secret",
                    PlaceKind::ConfigMap | PlaceKind::Record => "ConfigMap",
                },
                name: place.name,
                key: place.key,
                cluster: self.facts.name().to_owned(),
                why: Box::new(why),
            })?;
        }
        Ok(())
    }

    /// Issues the certificates of a step.
    pub fn prepare(&self, work: Work, new: &Authority) -> Result<Prepared, Error> {
        let owner = owner(&self.facts, &[]);
        let issue = |leaf: &Leaf| Ok((*leaf, new.issue(&leaf.request(&owner), Timestamp::now())?));
        Ok(Prepared {
            issued: work.leaves.iter().map(issue).collect::<Result<_, pki::Error>>()?,
            places: work.places,
            files: work.files,
            authority: work.authority,
        })
    }

    /// A certificate and what its owner trusts, before or after the step.
    pub fn seen(&self, leaf: Leaf, after: Option<&Prepared>) -> Option<Material> {
        let text = |key: &str| Some(self.facts.secret_text(leaf.secret(), key)?.to_owned());
        let issued = after.and_then(|after| after.issued.iter().find(|(issued, _)| *issued == leaf));
        let (cert, key) = match issued {
            Some((_, material)) => (material.cert.clone(), material.key.clone()),
            None => (text("tls.crt")?, text("tls.key")?),
        };
        let changed = |name: &str, key: &str| {
            let place = after?
                .places
                .iter()
                .find(|place| place.name == name && place.key == key);
            Some(place?.pem.clone())
        };
        let ca = match &self.facts.bundle {
            Some(Bundle { place, pem, .. }) => changed(&place.name, &place.key).or_else(|| pem.clone())?,
            None => changed(leaf.secret(), "ca.crt").or_else(|| text("ca.crt"))?,
        };
        Some(Material { cert, key, ca })
    }

    /// The authorities that the store of `peer` must be certified by: those of a file for this peer alone, or the common
    /// ones.
    pub fn trusts(&self, peer: &str, own: &Material, after: Option<&Prepared>) -> String {
        let file = objects::authorities_key(peer);
        let changed = after.and_then(|after| after.places.iter().find(|place| place.key == file));
        let present = [secret::MIRROR, secret::AGENTS]
            .into_iter()
            .find_map(|name| self.facts.secret_text(name, &file));
        let alone = changed.map(|place| place.pem.as_str()).or(present);
        alone.unwrap_or(&own.ca).to_owned()
    }

    /// Writes what was prepared.
    pub async fn perform(&self, prepared: &Prepared, new: &Authority, output: &dyn Output) -> Result<(), Error> {
        self.note_step().await?;
        let mut secrets: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for place in &prepared.places {
            match place.kind {
                PlaceKind::Secret => secrets.entry(&place.name).or_default().push((&place.key, &place.pem)),
                PlaceKind::ConfigMap => self.store.set_map(&place.name, &place.key, &place.pem).await?,
                PlaceKind::Record => self.remember(place).await?,
            }
        }
        for file in &prepared.files {
            secrets.entry(&file.secret).or_default().push((&file.key, &file.text));
        }
        for (name, values) in secrets {
            self.store.set(&self.facts, name, &values).await?;
        }
        for (leaf, material) in &prepared.issued {
            leaves::write(&self.store, &self.facts, *leaf, material).await?;
        }
        if prepared.authority {
            let keys = match self.facts.secret_text(secret::CA, "ca.key") {
                Some(_) => ["ca.crt", "ca.key"],
                None => ["tls.crt", "tls.key"],
            };
            let mut values = vec![(keys[0], new.cert()), (keys[1], new.key())];
            if keys[0] != "ca.crt" {
                values.push(("ca.crt", new.cert()));
            }
            self.store.set(&self.facts, secret::CA, &values).await?;
        }
        self.note_step().await?;
        let (places, files) = (prepared.places.len(), prepared.files.len());
        output.line(&summary(&self.facts, places, files, prepared.issued.len()));
        Ok(())
    }

    async fn note_step(&self) -> Result<(), Error> {
        Ok(self
            .store
            .annotate(STATE, STEP_AT, &Timestamp::now().to_string())
            .await?)
    }

    /// Changes the authorities of a peer in the record.
    async fn remember(&self, place: &Place) -> Result<(), Error> {
        let mut record = Record::read(&self.facts).unwrap_or_default();
        if let Some(peer) = record.peers.get_mut(&place.key) {
            peer.authorities = Some(place.pem.clone());
            let text = record.data().remove(&place.key).unwrap_or_default();
            self.store.set_map(RECORD, &place.key, &text).await?;
        }
        Ok(())
    }

    /// Restarts a store that does not know yet what it is to trust, and waits until it serves again.
    pub async fn serve_trust(&self, restart: Restart, output: &dyn Output) -> Result<(), Error> {
        let Some(trusted) = self.facts.trusted().filter(|_| self.restarts(restart)) else {
            return Ok(());
        };
        let hash: String = Sha256::digest(trusted)
            .iter()
            .take(8)
            .map(|b| format!("{b:02x}"))
            .collect();
        let template = self
            .facts
            .deployment
            .as_ref()
            .and_then(|d| Some(&d.spec.as_ref()?.template));
        let notes = template.and_then(|template| template.metadata.as_ref()?.annotations.as_ref());
        if notes.and_then(|notes| notes.get(TRUSTS)) == Some(&hash) {
            return Ok(());
        }
        output.line(&format!(
            "  - cluster {}: restarting the store, which reads trusted CAs at its start only",
            self.facts.name()
        ));
        self.store.annotate_pods(TRUSTS, &hash).await?;
        let done = ready::wait(self.store.context, super::ROLLOUT, output).await;
        Ok(done.map_err(Box::new)?)
    }

    /// Whether the store has to be restarted to trust other authorities.
    fn restarts(&self, restart: Restart) -> bool {
        match restart {
            _ if self.facts.deployment.is_none() => false,
            Restart::Always => true,
            Restart::Never => false,
            Restart::Auto => !self.facts.follows_trust(),
        }
    }
}
