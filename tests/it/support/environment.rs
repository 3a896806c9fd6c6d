//! Environments for the binary: limits and namespaces by wrapping its command line, faults by a preloaded library.

use crate::support::process::{BINARY, Process};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

/// `etcd` without TLS, wrapped in the command `wrapper`, such as `prlimit --nofile=64`.
pub fn etcd_in(wrapper: &[&str], arguments: &[&str]) -> Process {
    let plain = [
        "etcd",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:1",
    ];
    Process::spawn(wrapped(wrapper, &[&plain, arguments].concat()))
}

/// The binary with `arguments`, wrapped in the command `wrapper`.
pub fn wrapped(wrapper: &[&str], arguments: &[&str]) -> Command {
    let mut words = wrapper.iter().chain([&BINARY]).chain(arguments);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// Whether the machine allows the command `wrapper`. Says that the test is skipped if the machine does not.
pub fn allows(wrapper: &[&str]) -> bool {
    let status = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let allowed = status.is_ok_and(|status| status.success());
    if !allowed {
        eprintln!("skipped: this machine does not allow `{}`", wrapper.join(" "));
    }
    allowed
}

/// The library of `environments/faults.c`.
static LIBRARY: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/environments/faults.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(compiler)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl")
        .status();
    assert!(built.unwrap().success());
    (dir, library)
});

/// Faults that a process meets while they are set, and a directory for its data.
pub struct Faults(TempDir);

impl Faults {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("faults")).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `etcd` without TLS, with its data in `data`.
    pub fn etcd(&self, arguments: &[&str]) -> Process {
        let data = format!("--data-dir={}", self.path("data").display());
        let variables = self.variables().map(|(name, value)| format!("{name}={value}"));
        let wrapper: Vec<_> = ["env"].into_iter().chain(variables.iter().map(|v| &**v)).collect();
        etcd_in(&wrapper, &[&[&*data], arguments].concat())
    }

    /// The variables that preload the library.
    pub fn variables(&self) -> [(&'static str, String); 3] {
        let (library, faults, data) = (&LIBRARY.1, self.path("faults"), self.path("data"));
        [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAULTS", faults.display().to_string()),
            ("FAULTS_DATA", data.display().to_string()),
        ]
    }

    /// Sets a fault of `environments/faults.c`. Takes effect at once.
    pub fn set(&self, fault: &str, value: i64) {
        let new = self.path("new");
        std::fs::write(&new, value.to_string()).unwrap();
        std::fs::rename(new, self.path("faults").join(fault)).unwrap();
    }

    /// Ends a fault.
    pub fn clear(&self, fault: &str) {
        std::fs::remove_file(self.path("faults").join(fault)).unwrap();
    }
}
