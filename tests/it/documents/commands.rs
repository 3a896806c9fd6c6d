//! Who runs the commands of the documents.

/// A test, or a step of CI, that runs commands as they are written.
#[derive(Debug)]
pub enum Runner {
    /// All commands of a section.
    Section {
        document: &'static str,
        section: &'static str,
        file: &'static str,
        test: &'static str,
    },
    /// Commands that begin so, wherever they are.
    Command {
        beginning: &'static str,
        file: &'static str,
        test: &'static str,
    },
}

const fn section(document: &'static str, section: &'static str, file: &'static str, test: &'static str) -> Runner {
    Runner::Section {
        document,
        section,
        file,
        test,
    }
}

const fn command(beginning: &'static str, file: &'static str, test: &'static str) -> Runner {
    Runner::Command { beginning, file, test }
}

const BY_HAND: &str = "tests/it/documents/by_hand.rs";
const MIGRATION: &str = "tests/interop/deploy_migration_test.go";
const CI: &str = ".ci/check";
const MAKEFILE: &str = "Makefile";

pub const TESTED: &[Runner] = &[
    // Sections that a test takes from the document and runs.
    section(
        "docs/installing.md",
        "Two machines",
        "tests/interop/deploy_process_test.go",
        "TestDeployTwoMachines",
    ),
    section(
        "docs/migration.md",
        "To one container",
        MIGRATION,
        "TestKubeAPIServerHelmTakesOverFromCiliumAndBack",
    ),
    section(
        "docs/migration.md",
        "Back",
        MIGRATION,
        "TestKubeAPIServerHelmTakesOverFromCiliumAndBack",
    ),
    section(
        "docs/operations.md",
        "A mesh by hand",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    section(
        "docs/operations.md",
        "Data directory",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    section(
        "docs/operations.md",
        "Readiness",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    section(
        "docs/page.md",
        "The API",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    section(
        "docs/scope.md",
        "Before you apply a file",
        "tests/it/scope_explain.rs",
        "the_commands_in_the_document_print_what_it_says",
    ),
    // Steps of CI.
    command("make demo", CI, "demo"),
    command("make test", CI, "test"),
    command("make deny", CI, "deny"),
    command("make guard", CI, "guard"),
    command("make image", CI, "image-test"),
    command("make e2e-short", CI, "e2e-short"),
    command("make adversary", CI, "adversary"),
    command("go run -C tests/adversary", MAKEFILE, "adversary"),
    // Long targets, which people run before a release.
    command("make bench-replicas", MAKEFILE, "bench-replicas"),
    command("make bench", MAKEFILE, "bench"),
    command("make e2e", MAKEFILE, "e2e"),
    command("make release", MAKEFILE, "release"),
    // Commands that tests run with other values.
    command(
        "curl 'http://localhost:9880/readyz",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    command(
        "curl -s http://localhost:9890/api/v1/",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    command(
        "clustermesh-apiserver kvstoremesh-dbg status",
        BY_HAND,
        "the_mesh_by_hand_works_as_it_is_written",
    ),
    command(
        "clustermesh-apiserver kvstoremesh-dbg troubleshoot",
        "tests/it/troubleshoot.rs",
        "each_remote_cluster_is_reported_by_name_and_reached_through_its_alias",
    ),
    command(
        "clustermesh-apiserver serve … --ui-addr",
        "tests/it/page.rs",
        "over_tls_the_page_asks_for_a_certificate_or_a_token",
    ),
    command(
        "clustermesh-apiserver serve … --otlp-endpoint",
        "tests/it/traces.rs",
        "a_write_is_followed_from_the_manifest_to_the_watcher_of_the_other_cluster",
    ),
    command(
        "clustermesh-apiserver loadtest storm",
        "tests/it/loadtest.rs",
        "a_test_with_storms_bursts_and_slow_readers_passes_and_reports",
    ),
    command(
        "clustermesh-apiserver loadtest soak",
        "tests/it/loadtest.rs",
        "one_user_with_too_many_connections_is_told_why_and_several_users_have_room",
    ),
    command(
        "clustermesh-apiserver loadtest slow-readers",
        "tests/it/loadtest.rs",
        "the_others_are_compared_without_with_and_after_slow_readers",
    ),
    command(
        "clustermesh-apiserver loadtest agents-10k",
        "tests/it/loadtest.rs",
        "results_of_two_machines_add_up_once",
    ),
    command(
        "clustermesh-apiserver loadtest merge",
        "tests/it/loadtest.rs",
        "results_of_two_machines_add_up_once",
    ),
    command(
        "clustermesh-apiserver serve --scope",
        "tests/it/scope.rs",
        "a_scope_that_changes_deletes_no_key_that_stays_wanted",
    ),
    command(
        "clustermesh-apiserver snapshot detach",
        "tests/it/follow.rs",
        "a_person_can_make_a_store_of_its_own_of_the_copy_of_a_replica",
    ),
    command(
        "clustermesh-apiserver serve --data-dir=/var/lib/isthmus/own",
        "tests/it/follow.rs",
        "a_person_can_make_a_store_of_its_own_of_the_copy_of_a_replica",
    ),
    command(
        "cat > upstream.yaml",
        "tests/it/follow.rs",
        "a_replica_shows_the_history_of_its_upstream_and_passes_writes_on",
    ),
    command(
        "clustermesh-apiserver etcd --follow",
        "tests/it/follow.rs",
        "a_replica_shows_the_history_of_its_upstream_and_passes_writes_on",
    ),
    command(
        "ln -s clustermesh-apiserver isthmus",
        "tests/e2e/walk_test.go",
        "TestWalkWithOurCLI",
    ),
    command(
        "isthmus enable",
        "tests/it/mesh_cli.rs",
        "the_walk_from_nothing_to_connected_clusters",
    ),
    command(
        "isthmus connect --context tokyo --destination-context hk,",
        "tests/it/mesh_cli.rs",
        "many_clusters_form_a_mesh_or_a_star_in_one_call",
    ),
    command(
        "isthmus connect --context tokyo --destination-context hk --print",
        "tests/it/mesh_cli.rs",
        "no_helm_release_is_needed_and_values_and_manifests_can_be_printed",
    ),
    command(
        "isthmus connect",
        "tests/it/mesh_cli.rs",
        "the_walk_from_nothing_to_connected_clusters",
    ),
    command(
        "isthmus status",
        "tests/it/mesh_cli.rs",
        "the_walk_from_nothing_to_connected_clusters",
    ),
    command(
        "isthmus certs rotate --ca",
        "tests/it/mesh_certs.rs",
        "the_ca_of_a_mesh_is_replaced_without_a_moment_in_which_clusters_refuse_each_other",
    ),
    command(
        "isthmus certs rotate",
        "tests/it/mesh_certs.rs",
        "certificates_are_issued_anew_and_what_they_trust_and_are_named_stays",
    ),
    command(
        "isthmus certs cronjob",
        "tests/it/mesh_certs.rs",
        "the_cronjob_is_printed_for_git",
    ),
    command(
        "isthmus certs",
        "tests/it/mesh_certs.rs",
        "every_certificate_is_shown_with_its_days_and_a_broken_one_fails_the_command",
    ),
    command(
        "helm upgrade cilium cilium/cilium --namespace kube-system --reuse-values --set clustermesh.apiserver.image.override",
        "tests/e2e/matrix_test.go",
        "TestChartMatrix",
    ),
    command(
        "helm upgrade cilium cilium/cilium --namespace kube-system --reuse-values --set clustermesh.useAPIServer=false",
        MIGRATION,
        "TestKubeAPIServerHelmTakesOverFromCiliumAndBack",
    ),
    command(
        "helm install mesh deploy/helm/isthmus",
        "tests/interop/deploy_kubernetes_test.go",
        "TestKubeAPIServerTakesTheDeployment",
    ),
    command(
        "helm upgrade mesh deploy/helm/isthmus",
        "tests/interop/deploy_kubernetes_test.go",
        "TestKubeAPIServerHelmKeepsCertificates",
    ),
    command(
        "helm install trial deploy/helm/isthmus",
        "tests/interop/deploy_test.go",
        "TestDeployChartRenders",
    ),
    command(
        "helm --kube-context hk install mesh deploy/helm/isthmus",
        "tests/interop/deploy_process_test.go",
        "TestDeployReleasesFormAMesh",
    ),
    command(
        "kubectl --namespace kube-system exec deployment/",
        "tests/e2e/connect_test.go",
        "TestChartConnectsTwoClusters",
    ),
    command(
        "kubectl --namespace kube-system rollout status",
        "tests/e2e/matrix_test.go",
        "TestChartMatrix",
    ),
    command(
        "kubectl --context tokyo-cluster -n kube-system get secret cilium-ca",
        "tests/e2e/walk_test.go",
        "TestWalkWithOurCLI",
    ),
];

/// Beginnings of commands that no test runs, and why.
pub const NOBODY: &[(&str, &str)] = &[
    ("ctr ", "needs the containerd of a node"),
    (
        "docker ",
        "needs Docker, which the machines of CI do not have; `make image-test` runs the same archive under runc",
    ),
    ("skopeo ", "needs a registry"),
    ("git checkout vVERSION", "needs a release"),
    (
        "kubectl -n monitoring ",
        "needs Grafana's sidecar; the dashboards themselves are tested",
    ),
    (
        "kubectl -n kube-system port-forward",
        "needs a pod that runs; the page behind it is tested",
    ),
    (
        "kubectl -n kube-system create secret generic mesh-page",
        "needs a cluster; the chart with such a Secret is rendered and applied by tests",
    ),
    (
        "kubectl --context tokyo --namespace kube-system get secret cilium-ca",
        "needs two clusters; the values it makes are those of TestDeployReleasesFormAMesh",
    ),
    (
        "kubectl get namespaces,",
        "needs a cluster with objects; lists in this form are read by the tests of manifests",
    ),
    (
        "kubectl --namespace kube-system patch service",
        "needs two installations in one cluster; TestMigration moves a Service in the same way",
    ),
    (
        "for object in secret/cilium-clustermesh",
        "gives objects to a release of Helm, whose ownership TestKubeAPIServerHelmTakesOverFromCiliumAndBack tests",
    ),
];
