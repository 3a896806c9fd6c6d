//! The users that simulated agents are spread over, from certificates that exist or are issued for the test.

use crate::loadtest::User;
use crate::loadtest::plan::USERS_MAX;
use crate::mesh::pki::{Authority, LeafRequest, certificates, encode, key_fault};
use anyhow::{Context, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use std::path::{Path, PathBuf};

/// How long issued certificates are valid: longer than the longest test.
const LIFETIME: SignedDuration = SignedDuration::from_hours(25);

/// The users of the agents.
#[derive(Args, Debug)]
pub struct UserArgs {
    /// Users that agents are spread over, since a store gives one user only a part of its connections. Their certificates, for
    /// loadtest-1 to loadtest-N, are issued with --ca-key and never written to a file. The test writes as the user of --cert.
    #[arg(long, value_name = "N", requires = "ca_key",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(USERS_MAX)))]
    users: Option<u32>,
    /// Key of the CA of --cacert, or of one of them, to issue certificates of --users with.
    #[arg(long, value_name = "FILE", requires = "users")]
    ca_key: Option<PathBuf>,
    /// Directory with certificates of existing users that agents are spread over: NAME.crt with NAME.key for each.
    #[arg(long, value_name = "DIR", conflicts_with = "users")]
    user_certs: Option<PathBuf>,
}

impl UserArgs {
    /// The users; none if no flag asks for any.
    pub fn users(&self, cacert: Option<&Path>) -> anyhow::Result<Vec<User>> {
        match (self.users, &self.ca_key, &self.user_certs) {
            (Some(count), Some(key), _) => {
                let Some(cacert) = cacert else {
                    bail!("--users needs the certificate of the CA that --ca-key belongs to: give --cacert");
                };
                issued(count, &authority(cacert, key)?)
            }
            (_, _, Some(dir)) => {
                existing(dir).with_context(|| format!("cannot use the certificates of --user-certs={}", dir.display()))
            }
            _ => Ok(vec![]),
        }
    }

    /// The files that are read.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.ca_key.iter()
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The authority of a key, whose certificate is one of a bundle.
fn authority(cacert: &Path, key: &Path) -> anyhow::Result<Authority> {
    let (bundle, secret) = (read(cacert)?, read(key)?);
    let all = certificates(&bundle).with_context(|| format!("cannot use {}", cacert.display()))?;
    let own = all
        .iter()
        .map(|one| encode(&one.der))
        .find(|pem| key_fault(pem, &secret).is_none());
    let Some(own) = own else {
        bail!(
            "{} is not the key of a certificate in {}: give the key of the CA that the store trusts",
            key.display(),
            cacert.display()
        );
    };
    Authority::parse(&own, &secret).with_context(|| format!("cannot issue certificates with {}", key.display()))
}

fn issued(count: u32, authority: &Authority) -> anyhow::Result<Vec<User>> {
    let now = Timestamp::now();
    let issue = |number| {
        let name = format!("loadtest-{number}");
        let request = LeafRequest {
            common_name: name.clone(),
            names: vec![],
            is_server: false,
            lifetime: LIFETIME,
        };
        let material = authority.issue(&request, now)?;
        Ok(User {
            name,
            cert: material.cert,
            key: material.key,
        })
    };
    (1..=count).map(issue).collect()
}

fn existing(dir: &Path) -> anyhow::Result<Vec<User>> {
    let mut users = vec![];
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let (Some(name), Some("crt")) = (name, path.extension().and_then(|e| e.to_str())) else {
            continue;
        };
        users.push(User {
            name: name.to_owned(),
            cert: read(&path)?,
            key: read(&path.with_extension("key"))?,
        });
    }
    if users.is_empty() {
        bail!("it has no file NAME.crt: put a certificate NAME.crt and its key NAME.key there for each user");
    }
    users.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_issued_by_the_authority_of_the_key_and_found_again_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let [one, two] = ["one", "two"].map(|name| Authority::generate(name, Timestamp::now()).unwrap());
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        write("ca.pem", &(one.cert().to_owned() + two.cert()));
        write("two.pem", two.key());
        let args = |users, ca_key, user_certs| UserArgs {
            users,
            ca_key,
            user_certs,
        };
        let issuing = args(Some(2), Some(path("two.pem")), None);
        let users = issuing.users(Some(&path("ca.pem"))).unwrap();
        let names: Vec<_> = users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["loadtest-1", "loadtest-2"]);
        let certificate = certificates(&users[0].cert).unwrap().swap_remove(0);
        assert!(certificate.is_signed_by(&two.certificate().unwrap()));
        assert!(issuing.users(None).err().unwrap().to_string().contains("--cacert"));
        write("ca.pem", one.cert());
        let error = issuing.users(Some(&path("ca.pem"))).err().unwrap().to_string();
        assert!(error.contains("two.pem is not the key of a certificate in"), "{error}");

        let given = args(None, None, Some(path("users")));
        std::fs::create_dir(path("users")).unwrap();
        let error = format!("{:#}", given.users(None).err().unwrap());
        assert!(error.contains("--user-certs") && error.contains("NAME.crt"), "{error}");
        for user in &users {
            write(&format!("users/{}.crt", user.name), &user.cert);
            write(&format!("users/{}.key", user.name), &user.key);
        }
        let found = given.users(None).unwrap();
        assert!(
            found
                .iter()
                .zip(&users)
                .all(|(one, two)| (&one.name, &one.key) == (&two.name, &two.key))
        );
        assert_eq!(found.len(), 2);
        assert!(args(None, None, None).users(None).unwrap().is_empty());
    }
}
