//! Proves that the command line speaks as Cilium's does, which cobra makes: help, versions, completion, and the words
//! for flags and commands that do not exist.

use crate::support::isthmus;
use crate::support::process::Finished;

const NAME: &str = "clustermesh-apiserver";

#[test]
fn a_command_without_a_task_prints_its_help() {
    for args in [&[][..], &["help"], &["--help"], &["-h"]] {
        let Finished {
            code,
            stdout: out,
            stderr: err,
        } = isthmus(args).run();
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
        let Finished {
            code,
            stdout: out,
            stderr: err,
        } = isthmus(args).run();
        assert_eq!((code, &*err), (Some(0), ""), "{args:?}");
        assert!(out.contains("\n  troubleshoot "), "{args:?}: {out}");
    }
    let Finished { code, stdout: out, .. } = isthmus(["help", "kvstoremesh-dbg", "troubleshoot"]).run();
    assert_eq!(code, Some(0));
    assert!(out.contains("--include-local") && out.contains("[CLUSTERS]"), "{out}");
    let Finished {
        code,
        stdout: out,
        stderr: err,
    } = isthmus(["help", "x"]).run();
    assert_eq!((code, &*out), (Some(0), ""));
    assert!(err.starts_with("Unknown help topic [`x`]\n"), "{err}");
}

#[test]
fn a_wrong_command_line_is_refused_in_cobras_words_on_both_outputs() {
    let wrong: &[(&[&str], &str)] = &[
        (&["--bogus"], "unknown flag: --bogus"),
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
            "invalid argument \"x\" for \"--cluster-id\" flag: not a whole number",
        ),
        (
            &["clustermesh", "--debug=maybe"],
            "invalid argument \"maybe\" for \"-D, --debug\" flag: \"maybe\" is not a boolean",
        ),
        (
            &["clustermesh-dbg", "troubleshoot", "--timeout"],
            "flag needs an argument: --timeout",
        ),
    ];
    for &(args, message) in wrong {
        let Finished {
            code,
            stdout: out,
            stderr: err,
        } = isthmus(args).run();
        assert_eq!(code, Some(1), "{args:?}");
        assert_eq!(out, format!("{message}\n"), "{args:?}");
        assert!(err.starts_with(&format!("Error: {message}\n")), "{args:?}: {err}");
        let usage = match args {
            ["bogus"] => format!("Run '{NAME} --help' for usage.\n"),
            _ => "Usage:\n  clustermesh-apiserver".to_owned(),
        };
        assert!(err.contains(&usage), "{args:?}: {err}");
    }
    let err = isthmus(["clustermesh-dbg", "troubleshoot", "--bogus"]).run().stderr;
    assert!(
        err.contains("Usage:\n  clustermesh-apiserver clustermesh-dbg troubleshoot") && err.contains("--etcd-config"),
        "{err}"
    );
    let Finished { code, stdout: out, .. } = isthmus(["versio"]).run();
    assert_eq!(code, Some(1));
    assert!(
        out.starts_with("unknown command \"versio\" for") && out.contains("\n\nDid you mean this?\n\tversion\n"),
        "{out}"
    );
}

#[test]
fn an_invalid_variable_is_reported_under_the_name_of_its_flag() {
    let Finished { code, stdout: out, .. } = isthmus(["clustermesh"]).env("CILIUM_CLUSTER_ID", "x").run();
    assert_eq!(code, Some(1));
    assert!(
        out.starts_with("invalid argument \"x\" for \"--cluster-id\" flag: "),
        "{out}"
    );
}

#[test]
fn version_prints_the_own_and_the_etcd_version() {
    let Finished {
        code,
        stdout: out,
        stderr: err,
    } = isthmus(["version"]).run();
    assert_eq!((code, &*err), (Some(0), ""));
    let lines: Vec<_> = out.lines().collect();
    let [own, etcd] = lines[..] else { panic!("{out}") };
    assert!(own.starts_with("Isthmus clustermesh-apiserver: "), "{out}");
    assert!(etcd.starts_with("etcd: 3.7."), "{out}");
}

#[test]
fn completion_scripts_know_commands_and_flags() {
    for shell in ["bash", "fish", "powershell", "zsh"] {
        let Finished {
            code,
            stdout: out,
            stderr: err,
        } = isthmus(["completion", shell]).run();
        assert_eq!((code, &*err), (Some(0), ""), "{shell}");
        assert!(
            out.contains("mcsapi-coredns-cfg") && out.contains("include-local"),
            "{shell}"
        );
    }
}

#[test]
fn the_program_isthmus_has_the_subcommands_of_mesh_at_its_top_level() {
    let run = |args: &[&str]| isthmus(args).called("/usr/local/bin/isthmus").run();
    let help = run(&[]).stdout;
    for command in ["enable", "connect", "disconnect", "disable", "status", "mesh", "serve"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    assert!(help.contains("Usage: isthmus "), "{help}");
    for (args, typed) in [
        (&["connect", "--bogus"][..], "isthmus connect"),
        (&["mesh", "connect", "--bogus"], "isthmus mesh connect"),
        (&["serve", "--bogus"], "isthmus serve"),
    ] {
        let Finished { code, stdout, stderr } = run(args);
        let expected = format!("Error: unknown flag: --bogus. See `{typed} --help`\n");
        assert_eq!((code, &*stdout, &*stderr), (Some(1), "", &*expected), "{args:?}");
    }
    let mistyped = run(&["conect"]).stderr;
    assert!(
        mistyped.starts_with("Error: unknown command \"conect\" for \"isthmus\". Did you mean ")
            && mistyped.contains("connect"),
        "{mistyped}"
    );
    let script = run(&["completion", "bash"]).stdout;
    assert!(
        script.contains("isthmus__subcmd__connect") && script.contains("--destination-context"),
        "no completion of connect"
    );
    // By its usual name, the program has them below `mesh` alone.
    let usual = isthmus(["connect"]).run();
    assert_eq!(
        usual.stdout.lines().next().unwrap(),
        "unknown command \"connect\" for \"clustermesh-apiserver\""
    );
    let missing = isthmus(["mesh", "connect"]).run();
    assert_eq!(
        missing.stderr,
        "Error: required flag(s) \"destination-context\" not set. See `clustermesh-apiserver mesh connect --help`\n"
    );
}
