//! The command line as cobra has it: help, versions, and what is said of what it does not understand.

use crate::troubleshoot::run;

const NAME: &str = "clustermesh-apiserver";

#[test]
fn help_is_printed_where_nothing_is_asked_for() {
    for args in [&[][..], &["help"], &["--help"], &["-h"]] {
        let (code, out, err) = run(&[], args);
        assert_eq!((code, &*err), (Some(0), ""), "{args:?}");
        for command in [
            "clustermesh-dbg",
            "kvstoremesh-dbg",
            "mcsapi-coredns-cfg",
            "completion",
            "version",
        ] {
            assert!(out.contains(&format!("\n  {command} ")), "{args:?}: {out}");
        }
    }
    for args in [
        &["clustermesh-dbg"][..],
        &["help", "clustermesh-dbg"],
        &["clustermesh-dbg", "help"],
        &["kvstoremesh-dbg"],
        &["kvstoremesh-dbg", "-H", "x:1"],
    ] {
        let (code, out, err) = run(&[], args);
        assert_eq!((code, &*err), (Some(0), ""), "{args:?}");
        assert!(out.contains("\n  troubleshoot "), "{args:?}: {out}");
    }
    let (code, out, _) = run(&[], &["help", "kvstoremesh-dbg", "troubleshoot"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("--include-local") && out.contains("[CLUSTERS]"), "{out}");
    let (code, out, err) = run(&[], &["help", "x"]);
    assert_eq!((code, &*out), (Some(0), ""));
    assert!(err.starts_with("Unknown help topic [`x`]\n"), "{err}");
}

#[test]
fn what_is_not_understood_is_said_twice_in_cobras_words() {
    let wrong: &[(&[&str], &str)] = &[
        (&["--bogus"], "unknown flag: --bogus"),
        (&["serve", "--bogus=1"], "unknown flag: --bogus"),
        (&["clustermesh", "--bogus"], "unknown flag: --bogus"),
        (&["kvstoremesh", "-x"], "unknown shorthand flag: 'x' in -x"),
        (&["kvstoremesh", "-xyz"], "unknown shorthand flag: 'x' in -xyz"),
        (&["clustermesh", "--=a"], "bad flag syntax: --=a"),
        (&["clustermesh-dbg", "troubleshoot", "--pprof"], "unknown flag: --pprof"),
        (&["bogus"], "unknown command \"bogus\" for \"clustermesh-apiserver\""),
        (
            &["clustermesh-dbg", "x"],
            "unknown command \"x\" for \"clustermesh-apiserver clustermesh-dbg\"",
        ),
        (
            &["version", "x"],
            "unknown command \"x\" for \"clustermesh-apiserver version\"",
        ),
        (
            &["completion", "x"],
            "unknown command \"x\" for \"clustermesh-apiserver completion\"",
        ),
        (
            &["clustermesh", "--cluster-id=x"],
            "invalid argument \"x\" for \"--cluster-id\" flag: invalid digit found in string",
        ),
        (
            &["clustermesh", "--debug=maybe"],
            "invalid argument \"maybe\" for \"-D, --debug\" flag: \"maybe\" is not a boolean",
        ),
        (
            &["clustermesh-dbg", "troubleshoot", "--timeout"],
            "flag needs an argument: --timeout",
        ),
        (
            &["snapshot", "status", "-w", "x", "f"],
            "invalid argument \"x\" for \"-w, --write-out\" flag: must be one of simple, table, json",
        ),
        (&["check"], "requires <DATA_DIR>"),
        (&["snapshot", "restore", "f"], "required flag(s) \"data-dir\" not set"),
    ];
    for (args, message) in wrong {
        let (code, out, err) = run(&[], args);
        assert_eq!(code, Some(1), "{args:?}");
        assert_eq!(out, format!("{message}\n"), "{args:?}");
        assert!(err.starts_with(&format!("Error: {message}\n")), "{args:?}: {err}");
        let usage = match args {
            ["bogus"] => format!("Run '{NAME} --help' for usage.\n"),
            _ => "Usage:\n  clustermesh-apiserver".to_owned(),
        };
        assert!(err.contains(&usage), "{args:?}: {err}");
    }
    let (_, _, err) = run(&[], &["clustermesh-dbg", "troubleshoot", "--bogus"]);
    assert!(
        err.contains("Usage:\n  clustermesh-apiserver clustermesh-dbg troubleshoot") && err.contains("--etcd-config"),
        "{err}"
    );
    let (code, out, _) = run(&[], &["versio"]);
    assert_eq!(code, Some(1));
    assert!(
        out.starts_with("unknown command \"versio\" for") && out.contains("\n\nDid you mean this?\n\tversion\n"),
        "{out}"
    );
}

#[test]
fn a_variable_that_is_wrong_is_named_as_its_flag() {
    let (code, out, _) = run(&[("CILIUM_CLUSTER_ID", "x")], &["clustermesh"]);
    assert_eq!(code, Some(1));
    assert!(
        out.starts_with("invalid argument \"x\" for \"--cluster-id\" flag: "),
        "{out}"
    );
}

#[test]
fn both_versions_are_printed() {
    let (code, out, err) = run(&[], &["version"]);
    assert_eq!((code, &*err), (Some(0), ""));
    let lines: Vec<_> = out.lines().collect();
    let [own, etcd] = lines[..] else { panic!("{out}") };
    assert!(own.starts_with("Isthmus clustermesh-apiserver: "), "{out}");
    assert!(etcd.starts_with("etcd: 3.6."), "{out}");
}

#[test]
fn shells_complete_flags_and_commands() {
    for shell in ["bash", "fish", "powershell", "zsh"] {
        let (code, out, err) = run(&[], &["completion", shell]);
        assert_eq!((code, &*err), (Some(0), ""), "{shell}");
        assert!(
            out.contains("mcsapi-coredns-cfg") && out.contains("include-local"),
            "{shell}"
        );
    }
}
