//! Contexts of kubeconfig files: which cluster a name stands for.
//!
//! The same files serve the source and the destinations of a command. A name that several files define is refused,
//! because kubeadm gives every cluster the same context; `FILE#CONTEXT` says which file is meant.

use crate::k8s::client::{self, KubeContext, ProxyVariables};
use kube::Client;
use kube::config::{Kubeconfig, KubeconfigError};
use std::path::PathBuf;
use std::time::Duration;

/// Separates the file from the context in `FILE#CONTEXT`.
const SEPARATOR: char = '#';
/// Name of the context of a pod's service account.
const IN_CLUSTER: &str = "in-cluster";
/// Limit for establishing a connection to a Kubernetes API.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster that can be talked to.
#[derive(Clone)]
pub struct Context {
    /// The name of the context as it was given, or the current one.
    pub name: String,
    /// The name of the kubeconfig's cluster entry, which `❌` and `✅` lines show.
    pub entry: String,
    /// The URL of the API server.
    pub server: String,
    pub client: Client,
    /// The namespace of Cilium.
    pub namespace: String,
}

/// Who acts, and where Cilium is.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The namespace of Cilium.
    pub namespace: String,
    /// The user to impersonate.
    pub user: Option<String>,
    /// The groups to impersonate.
    pub groups: Vec<String>,
    pub proxies: ProxyVariables,
}

/// The kubeconfig files of a command.
pub struct Kubeconfigs {
    files: Vec<(PathBuf, Kubeconfig)>,
    /// Whether the files form one configuration, as in `$KUBECONFIG`: a name of several files is then the first file's.
    is_list: bool,
    options: Options,
}

/// A context that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The files to read, the one with the context first.
    pub files: Vec<PathBuf>,
    /// The name of the context in its file.
    pub name: String,
    pub entry: String,
    pub server: String,
}

/// Why there is no such context.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the kubeconfig {}: {source}; set --kubeconfig or KUBECONFIG", path.display())]
    Read {
        path: PathBuf,
        source: Box<KubeconfigError>,
    },
    #[error("context {name:?} does not exist in {files}; there are: {}", list(known))]
    Unknown {
        name: String,
        files: String,
        known: Vec<String>,
    },
    #[error(
        "context {name:?} exists in several kubeconfigs; say which one: {}",
        forms.join(" or ")
    )]
    Ambiguous { name: String, forms: Vec<String> },
    #[error("{files} name no current context; set --context to one of: {}", list(known))]
    NoCurrent { files: String, known: Vec<String> },
    #[error("the kubeconfig {} is not among the files of --kubeconfig and KUBECONFIG, and cannot be read: {source}", path.display())]
    OtherFile {
        path: PathBuf,
        source: Box<KubeconfigError>,
    },
    #[error(
        "no kubeconfig: neither --kubeconfig nor KUBECONFIG names a file, ~/.kube/config does not exist, and this is no pod \
         whose service account could be used; set --kubeconfig or KUBECONFIG"
    )]
    Nowhere {
        /// Why the service account cannot be used.
        reason: Box<client::Error>,
    },
    #[error(transparent)]
    Client(#[from] Box<client::Error>),
}

fn list(names: &[String]) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

// === impl Kubeconfigs ===

impl Kubeconfigs {
    /// Reads the files: those that `flags` name, which must exist, or else those of `variable`, the value of
    /// `$KUBECONFIG`, or else `home`.
    pub fn read(flags: &[PathBuf], variable: &str, home: Option<PathBuf>, options: Options) -> Result<Self, Error> {
        let lists = |path: &PathBuf| std::env::split_paths(path).collect::<Vec<_>>();
        let given: Vec<PathBuf> = flags.iter().flat_map(lists).filter(|path| is_named(path)).collect();
        let listed: Vec<PathBuf> = std::env::split_paths(variable).filter(|path| is_named(path)).collect();
        let must_exist = !given.is_empty();
        let (paths, is_list) = match (given.is_empty(), listed.is_empty()) {
            (false, _) => (given, false),
            (true, false) => (listed, true),
            (true, true) => (home.into_iter().collect(), true),
        };
        let mut files: Vec<(PathBuf, Kubeconfig)> = vec![];
        for path in paths {
            if files.iter().any(|(known, _)| *known == path) || (!must_exist && !path.exists()) {
                continue;
            }
            match Kubeconfig::read_from(&path) {
                Ok(file) => files.push((path, file)),
                Err(source) => {
                    let source = Box::new(source);
                    return Err(Error::Read { path, source });
                }
            }
        }
        Ok(Self {
            files,
            is_list,
            options,
        })
    }

    /// The context of this name, or the current one.
    pub async fn context(&self, name: Option<&str>) -> Result<Context, Error> {
        let namespace = self.options.namespace.clone();
        if self.files.is_empty() && name.is_none() {
            let made = client::in_cluster(self.options.proxies.clone(), CONNECT_TIMEOUT).await;
            let client = made.map_err(|reason| Error::Nowhere {
                reason: Box::new(reason),
            })?;
            return Ok(Context {
                name: IN_CLUSTER.to_owned(),
                entry: IN_CLUSTER.to_owned(),
                server: String::new(),
                client,
                namespace,
            });
        }
        let found = self.find(name)?;
        let context = KubeContext {
            files: found.files,
            name: found.name.clone(),
            user: self.options.user.clone(),
            groups: self.options.groups.clone(),
        };
        let made = context.client(self.options.proxies.clone(), CONNECT_TIMEOUT).await;
        Ok(Context {
            name: name.unwrap_or(&found.name).to_owned(),
            entry: found.entry,
            server: found.server,
            client: made.map_err(Box::new)?,
            namespace,
        })
    }

    /// Finds the context of this name, or the current one of the first file that names one.
    pub fn find(&self, name: Option<&str>) -> Result<Found, Error> {
        let Some(name) = name else {
            let current = |(_, file): &(PathBuf, Kubeconfig)| file.current_context.clone().filter(|c| !c.is_empty());
            let at = self.files.iter().position(|file| current(file).is_some());
            let at = at.ok_or_else(|| Error::NoCurrent {
                files: self.file_names(),
                known: self.known(),
            })?;
            let name = current(&self.files[at]).unwrap_or_default();
            // The current context of a list may be defined in a later file.
            let at = if defines(&self.files[at].1, &name) {
                at
            } else {
                self.only(&name)?
            };
            return self.found(at, &name);
        };
        match self.only(name) {
            Ok(at) => self.found(at, name),
            Err(Error::Unknown { .. }) if name.contains(SEPARATOR) => self.find_in_file(name),
            Err(error) => Err(error),
        }
    }

    /// Finds `FILE#CONTEXT`.
    fn find_in_file(&self, name: &str) -> Result<Found, Error> {
        let (file, context) = name.rsplit_once(SEPARATOR).unwrap_or((name, ""));
        let path = PathBuf::from(file);
        if let Some(at) = self.files.iter().position(|(known, _)| *known == path) {
            return match defines(&self.files[at].1, context) {
                true => self.found(at, context),
                false => Err(unknown(context, &path, &self.files[at].1)),
            };
        }
        let file = Kubeconfig::read_from(&path).map_err(|source| Error::OtherFile {
            path: path.clone(),
            source: Box::new(source),
        })?;
        match defines(&file, context) {
            true => Ok(found(&file, context, vec![path])),
            false => Err(unknown(context, &path, &file)),
        }
    }

    /// The index of the only file that defines the context.
    fn only(&self, name: &str) -> Result<usize, Error> {
        let files = self.files.iter().enumerate();
        let with: Vec<usize> = files
            .filter(|(_, (_, file))| defines(file, name))
            .map(|(at, _)| at)
            .collect();
        match with[..] {
            [] => Err(Error::Unknown {
                name: name.to_owned(),
                files: self.file_names(),
                known: self.known(),
            }),
            [at] => Ok(at),
            _ => Err(Error::Ambiguous {
                name: name.to_owned(),
                forms: with
                    .iter()
                    .map(|at| format!("{}{SEPARATOR}{name}", self.files[*at].0.display()))
                    .collect(),
            }),
        }
    }

    fn found(&self, at: usize, name: &str) -> Result<Found, Error> {
        let (path, file) = &self.files[at];
        let mut files = vec![path.clone()];
        if self.is_list {
            let others = self.files.iter().map(|(path, _)| path).filter(|other| *other != path);
            files.extend(others.cloned());
        }
        let mut found = found(file, name, files);
        if found.server.is_empty() {
            // The entry of a list may be defined in another file.
            let others = self.files.iter().filter(|_| self.is_list);
            found.server = others
                .map(|(_, file)| server(file, &found.entry))
                .find(|s| !s.is_empty())
                .unwrap_or_default();
        }
        Ok(found)
    }

    /// The names of all contexts.
    fn known(&self) -> Vec<String> {
        let contexts = self.files.iter().flat_map(|(_, file)| &file.contexts);
        let mut names: Vec<_> = contexts.map(|context| context.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn file_names(&self) -> String {
        let names: Vec<_> = self.files.iter().map(|(path, _)| path.display().to_string()).collect();
        match names.is_empty() {
            true => "the kubeconfigs".to_owned(),
            false => names.join(", "),
        }
    }
}

fn is_named(path: &std::path::Path) -> bool {
    !path.as_os_str().is_empty()
}

fn unknown(context: &str, path: &std::path::Path, file: &Kubeconfig) -> Error {
    Error::Unknown {
        name: context.to_owned(),
        files: path.display().to_string(),
        known: file.contexts.iter().map(|context| context.name.clone()).collect(),
    }
}

fn defines(file: &Kubeconfig, name: &str) -> bool {
    file.contexts.iter().any(|context| context.name == name)
}

/// The URL of the cluster entry.
fn server(file: &Kubeconfig, entry: &str) -> String {
    let named = file.clusters.iter().find(|cluster| cluster.name == entry);
    let server = named.and_then(|named| named.cluster.as_ref()?.server.clone());
    server.unwrap_or_default()
}

fn found(file: &Kubeconfig, name: &str, files: Vec<PathBuf>) -> Found {
    let context = file.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|named| named.context.as_ref());
    let entry = context.map(|context| context.cluster.clone()).unwrap_or_default();
    Found {
        files,
        name: name.to_owned(),
        server: server(file, &entry),
        entry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &tempfile::TempDir, file: &str, current: &str, contexts: &[(&str, &str)]) -> PathBuf {
        let mut text = format!("apiVersion: v1\nkind: Config\ncurrent-context: {current:?}\ncontexts:\n");
        for (name, cluster) in contexts {
            text += &format!("- {{name: {name}, context: {{cluster: {cluster}, user: u}}}}\n");
        }
        text += "clusters:\n";
        for (_, cluster) in contexts {
            text += &format!("- {{name: {cluster}, cluster: {{server: 'https://{cluster}.{file}:6443'}}}}\n");
        }
        text += "users: [{name: u, user: {token: t}}]\n";
        let path = directory.path().join(file);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(flags: &[PathBuf], variable: &str) -> Kubeconfigs {
        Kubeconfigs::read(flags, variable, None, Options::default()).unwrap()
    }

    #[test]
    fn a_context_is_found_in_any_file_and_its_form_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let tokyo = write(
            &directory,
            "tokyo",
            "admin",
            &[("admin", "kubernetes"), ("tokyo", "tokyo")],
        );
        let hk = write(&directory, "hk", "admin", &[("admin", "kubernetes"), ("hk", "hk")]);
        let files = read(&[tokyo.clone(), hk.clone()], "/not/used");
        let found = files.find(Some("hk")).unwrap();
        assert_eq!((&*found.entry, &*found.server), ("hk", "https://hk.hk:6443"));
        assert_eq!(found.files, std::slice::from_ref(&hk));
        assert_eq!(files.find(None).unwrap().server, "https://kubernetes.tokyo:6443");
        let error = files.find(Some("admin")).unwrap_err().to_string();
        let form = format!("{}#admin", hk.display());
        assert!(error.contains(&form), "{error}");
        assert_eq!(files.find(Some(&form)).unwrap().server, "https://kubernetes.hk:6443");
        let error = files.find(Some("paris")).unwrap_err().to_string();
        assert!(error.ends_with("there are: admin, hk, tokyo"), "{error}");
        let error = files
            .find(Some(&format!("{}#paris", hk.display())))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("hk; there are: admin, hk"), "{error}");
        // A file that no flag names.
        let one = read(&[tokyo], "");
        assert_eq!(one.find(Some(&form)).unwrap().server, "https://kubernetes.hk:6443");
    }

    #[test]
    fn the_variable_is_a_list_whose_missing_files_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let tokyo = write(&directory, "tokyo", "", &[("tokyo", "tokyo")]);
        let hk = write(&directory, "hk", "hk", &[("hk", "hk")]);
        let list = format!("{}:/missing:{}", tokyo.display(), hk.display());
        let files = read(&[], &list);
        assert_eq!(files.find(None).unwrap().name, "hk");
        assert_eq!(files.find(Some("tokyo")).unwrap().files, [tokyo.clone(), hk]);
        // A flag with a list, as in kubectl's variable.
        assert!(
            read(&[list.replace(":/missing", "").into()], "")
                .find(Some("hk"))
                .is_ok()
        );
        let missing = Kubeconfigs::read(&["/missing".into()], "", None, Options::default());
        let error = missing.err().unwrap().to_string();
        assert!(
            error.contains("/missing") && error.contains("set --kubeconfig"),
            "{error}"
        );
        let error = read(&[tokyo], "").find(None).unwrap_err().to_string();
        assert!(
            error.contains("no current context") && error.ends_with("one of: tokyo"),
            "{error}"
        );
    }
}
