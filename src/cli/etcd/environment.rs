//! The sources of etcd's settings: flags and `ETCD_` variables, or a config file instead of both.

use crate::util::yaml;
use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::collections::BTreeMap;

/// Groups of settings in a config file: the name of the group, and for each of its settings the name of the flag.
const GROUPS: &[(&str, &[(&str, &str)])] = &[
    (
        "client-transport-security",
        &[
            ("cert-file", "cert-file"),
            ("key-file", "key-file"),
            ("client-cert-auth", "client-cert-auth"),
            ("trusted-ca-file", "trusted-ca-file"),
            ("auto-tls", "auto-tls"),
            ("crl-file", "client-crl-file"),
            ("allowed-hostname", "client-cert-allowed-hostname"),
        ],
    ),
    ("peer-transport-security", &[]),
];

/// Durations, which a config file contains as nanoseconds.
const NANOSECONDS: &[&str] = &[
    "watch-progress-notify-interval",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "grpc-keepalive-min-time",
    "grpc-keepalive-interval",
    "grpc-keepalive-timeout",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "compact-hash-check-time",
    "downgrade-check-time",
    "backend-batch-interval",
];

/// The name of the environment variable of a flag.
pub fn variable(flag: &str) -> String {
    format!("ETCD_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// Refuses settings that are both in `args` and in the environment; returns the unknown `ETCD_` variables.
pub fn check(args: &[String], flags: &[String], environment: &BTreeMap<String, String>) -> anyhow::Result<Vec<String>> {
    let given = |flag: &str| {
        let long = format!("--{flag}");
        args.iter().any(|arg| {
            arg.strip_prefix(&long)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    for flag in flags {
        let name = variable(flag);
        if environment.get(&name).is_some_and(|v| !v.is_empty()) && given(flag) {
            bail!(
                "conflicting environment variable {name:?} is shadowed by corresponding command-line flag (either unset environment variable or disable flag)"
            );
        }
    }
    let known = |name: &str| name == "ETCD_VERSION" || flags.iter().any(|flag| variable(flag) == name);
    let unknown = environment
        .keys()
        .filter(|name| name.starts_with("ETCD_") && !known(name));
    Ok(unknown.cloned().collect())
}

/// The config file named in `args` or in the environment.
pub fn config_file(args: &[String], environment: &BTreeMap<String, String>) -> Option<String> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--config-file") {
            Some("") => return args.next().cloned(),
            Some(rest) => {
                if let Some(path) = rest.strip_prefix('=') {
                    return Some(path.to_owned());
                }
            }
            None => {}
        }
    }
    environment
        .get("ETCD_CONFIG_FILE")
        .filter(|path| !path.is_empty())
        .cloned()
}

/// The settings of a config file (YAML or JSON) as flags.
pub fn flags_of_file(path: &str) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the config file {path}"))?;
    flags_of(&text).with_context(|| format!("cannot use the config file {path}"))
}

/// The settings of a config file's text as flags.
pub fn flags_of(text: &str) -> anyhow::Result<Vec<String>> {
    let settings = serde_saphyr::from_str::<BTreeMap<String, Value>>(text);
    let settings = settings.map_err(|e| anyhow!("{}", yaml::first_line(&e.to_string())))?;
    let mut flags = vec![];
    for (name, value) in &settings {
        let Some((_, names)) = GROUPS.iter().find(|(group, _)| group == name) else {
            flags.extend(flag(name, value)?);
            continue;
        };
        for (name, value) in value.as_object().into_iter().flatten() {
            if let Some((_, name)) = names.iter().find(|(key, _)| key == name) {
                flags.extend(flag(name, value)?);
            }
        }
    }
    Ok(flags)
}

fn flag(name: &str, value: &Value) -> anyhow::Result<Option<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => bail!("{name}: {value} is not a string, number or boolean, nor a list of those"),
    };
    let text = match value {
        Value::Null => return Ok(None),
        Value::Number(n) if NANOSECONDS.contains(&name) => format!("{n}ns"),
        Value::Array(list) => list.iter().map(scalar).collect::<anyhow::Result<Vec<_>>>()?.join(","),
        value => scalar(value)?,
    };
    // As in Go, an empty value means the default.
    Ok((!text.is_empty()).then(|| format!("--{name}={text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_setting_given_twice_is_refused_and_an_unknown_one_is_named() {
        let args = ["--name=a", "--data-dir", "x"].map(str::to_owned);
        let flags = ["name", "data-dir", "wal-dir"].map(str::to_owned);
        let twice = check(&args, &flags, &environment(&[("ETCD_NAME", "b")]));
        assert!(twice.unwrap_err().to_string().contains("\"ETCD_NAME\" is shadowed"));
        let fine = environment(&[
            ("ETCD_NAME", ""),
            ("ETCD_WAL_DIR", "w"),
            ("ETCD_VERSION", "1"),
            ("ETCD_NO", ""),
        ]);
        assert_eq!(check(&args, &flags, &fine).unwrap(), ["ETCD_NO"]);
    }

    #[test]
    fn a_config_file_becomes_flags() {
        let text = "name: m1\ndata-dir: /d\nwatch-progress-notify-interval: 5000000000\n\
            listen-client-urls: http://127.0.0.1:1,http://127.0.0.1:2\nlog-outputs: [stderr, stdout]\n\
            quota-backend-bytes: 0\nwal-dir:\ncors: ''\n\
            client-transport-security:\n  cert-file: /c\n  client-cert-auth: true\n\
            peer-transport-security:\n  cert-file: /p\n";
        let mut flags = flags_of(text).unwrap();
        flags.sort();
        assert_eq!(
            flags,
            [
                "--cert-file=/c",
                "--client-cert-auth=true",
                "--data-dir=/d",
                "--listen-client-urls=http://127.0.0.1:1,http://127.0.0.1:2",
                "--log-outputs=stderr,stdout",
                "--name=m1",
                "--quota-backend-bytes=0",
                "--watch-progress-notify-interval=5000000000ns",
            ]
        );
        assert!(flags_of("name: {a: b}").is_err());
    }

    #[test]
    fn the_config_file_is_found_in_flags_and_environment() {
        let args = ["--config-file", "a.yml"].map(str::to_owned);
        assert_eq!(config_file(&args, &environment(&[])).as_deref(), Some("a.yml"));
        assert_eq!(
            config_file(&["--config-file=b".to_owned()], &environment(&[])).as_deref(),
            Some("b")
        );
        let variable = environment(&[("ETCD_CONFIG_FILE", "c")]);
        assert_eq!(config_file(&[], &variable).as_deref(), Some("c"));
        assert_eq!(config_file(&[], &environment(&[])), None);
    }
}
