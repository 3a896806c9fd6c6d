package interop

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// What deploy/ renders: the Helm chart with many values, the kustomize base with its components, and that both describe the
// same pod. `make deploy` builds Helm and kustomize. deploy_kubernetes_test.go applies the result to a kube-apiserver.

const (
	chart     = "../../deploy/helm/isthmus"
	kustomize = "../../deploy/kustomize"
)

// valueSets are values of the chart that must render, be accepted by Kubernetes, and run in a restricted namespace.
var valueSets = map[string]string{
	"existing":     `{tls: {method: existing}}`,
	"generate":     `{cluster: {name: tokyo, id: 1}}`,
	"bundle":       `{tls: {method: existing, caBundle: {enabled: true}}}`,
	"cert-manager": `{cluster: {name: tokyo, id: 1}, tls: {method: certManager, certManager: {issuerRef: {kind: ClusterIssuer, name: mesh-ca}}}}`,
	"cluster users": `{cluster: {name: tokyo, id: 1}, tls: {authMode: cluster},
		config: {enabled: true, clusters: {hk: {ips: [10.14.1.128, "fd00::1"], port: 32379}, osaka: {address: osaka.example.org, port: 2379}, gone: {enabled: false}}}}`,
	"legacy":                `{tls: {method: existing, authMode: legacy}}`,
	"list":                  `{tls: {method: existing}, config: {enabled: true, clusters: [{name: hk, ips: [10.14.1.128], port: 32379, tls: {cert: Yw==, key: aw==, caCert: YQ==}}]}}`,
	"persistent":            `{tls: {method: existing}, storage: {type: persistent, persistent: {size: 8Gi, storageClassName: fast}}}`,
	"claim":                 `{tls: {method: existing}, storage: {type: persistent, persistent: {existingClaim: mine}}}`,
	"memory":                `{tls: {method: existing}, storage: {type: memory}}`,
	"tmpfs":                 `{tls: {method: existing}, storage: {emptyDir: {medium: Memory, sizeLimit: 1Gi}}}`,
	"replicas":              `{tls: {method: existing}, replicas: 2, podDisruptionBudget: {minAvailable: 1, maxUnavailable: null}}`,
	"follow":                `{cluster: {name: tokyo, id: 1}, replicas: 3, follow: {enabled: true, endpoints: ["https://etcd-0.etcd:2379", "https://etcd-1.etcd:2379"]}}`,
	"follow, certificates":  `{cluster: {name: tokyo, id: 1}, tls: {method: certManager, certManager: {issuerRef: {kind: ClusterIssuer, name: mesh-ca}}}, replicas: 2, follow: {enabled: true, existingConfigMap: mine, drainTime: 1m30s, maxConnectionAge: 0s}, terminationGracePeriodSeconds: 120}`,
	"follow, policy":        `{tls: {method: existing}, replicas: 2, follow: {enabled: true, existingConfigMap: mine}, networkPolicy: {enabled: true, from: [{ipBlock: {cidr: 10.0.0.0/8}}]}}`,
	"balancer":              `{tls: {method: existing}, service: {type: LoadBalancer, loadBalancerClass: example.org/lb, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local, annotations: {a: b}}}`,
	"cluster IP":            `{tls: {method: existing}, service: {type: ClusterIP, internalTrafficPolicy: Local, enableSessionAffinity: Always}}`,
	"beside":                `{fullnameOverride: isthmus, tls: {method: existing}, service: {type: ClusterIP}}`,
	"monitoring":            `{tls: {method: existing}, metrics: {serviceMonitor: {enabled: true, labels: {release: p}}, prometheusRule: {enabled: true}}}`,
	"no metrics":            `{tls: {method: existing}, metrics: {enabled: false}, podDisruptionBudget: {enabled: false}}`,
	"scope":                 `{tls: {method: existing}, scope: {file: "apiVersion: scope.isthmus.io/v1\nkind: Scope\n"}}`,
	"scope elsewhere":       `{tls: {method: existing}, scope: {existingConfigMap: mine}}`,
	"policy":                `{tls: {method: existing}, networkPolicy: {enabled: true, from: [{ipBlock: {cidr: 10.0.0.0/8}}], egress: [{ports: [{port: 443}]}]}}`,
	"page":                  `{tls: {method: existing}, ui: {expose: service, tlsSecret: page, tokenSecret: {name: page-token}}, networkPolicy: {enabled: true}}`,
	"no page":               `{tls: {method: existing}, ui: {expose: none}}`,
	"traces":                `{tls: {method: existing}, ui: {port: 8080}, traces: {otlpEndpoint: "http://collector:4317", sample: 1}}`,
	"without cilium-config": `{ciliumConfig: "", cluster: {name: tokyo, id: 1}, tls: {method: existing}}`,
	"everything else": `{tls: {method: existing}, image: {digest: "sha256:` + strings.Repeat("0", 64) + `"}, imagePullSecrets: [{name: s}],
		healthPort: 9999, commonLabels: {team: mesh}, commonAnnotations: {a: b}, podLabels: {x: z}, podAnnotations: {x: z}, extraArgs: [--debug],
		extraEnv: [{name: CILIUM_HISTORY, value: 1h}], extraVolumes: [{name: tmp, emptyDir: {}}], extraVolumeMounts: [{name: tmp, mountPath: /tmp}],
		tolerations: [{operator: Exists}], serviceAccount: {annotations: {a: b}}}`,
}

// refusals are values that the chart refuses, and words of the reason.
var refusals = map[string]string{
	`{tls: {method: existing}, replicas: 2, storage: {type: persistent}}`:                                   "allows one replica",
	`{tls: {method: existing}, follow: {enabled: true}}`:                                                    "follow.endpoints",
	`{tls: {method: existing}, follow: {enabled: true, endpoints: ["https://a:1"], existingConfigMap: b}}`:  "follow.endpoints",
	`{tls: {method: existing}, follow: {enabled: true, endpoints: ["http://a:1"]}}`:                         "endpoints",
	`{tls: {method: existing}, follow: {enabled: true, existingConfigMap: b, drainTime: 30}}`:               "drainTime",
	`{tls: {method: existing}, follow: {enabled: true, existingConfigMap: b}, storage: {type: persistent}}`: "excludes storage.type=persistent",
	`{tls: {method: existing}, storage: {typ: memory}}`:                                                     "typ",
	`{tls: {method: existing}, ui: {tokenSecret: {name: t}}}`:                                               "ui.expose=service",
	`{tls: {method: existing}, ui: {expose: everywhere}}`:                                                   "expose",
	`{tls: {method: existing}, traces: {otlpEndpoint: "collector:4317"}}`:                                   "otlpEndpoint",
	`{tls: {method: helm}}`:                          "method",
	`{tls: {method: existing}, podLabels: {x: yes}}`: "podLabels",
	`{}`:                                "set cluster.name",
	`{cluster: {name: default, id: 1}}`: "name",
	`{ciliumConfig: "", tls: {method: existing}}`:                                                          "cluster.name and cluster.id",
	`{cluster: {name: tokyo, id: 1}, tls: {method: certManager}}`:                                          "issuerRef",
	`{cluster: {name: tokyo, id: 1}, tls: {ca: {cert: Yw==}}}`:                                             "tls.ca.key",
	`{tls: {method: existing}, config: {enabled: true, clusters: {hk: {port: 2379}}}}`:                     "neither ips nor address",
	`{tls: {method: existing}, config: {enabled: true, clusters: {hk: {ips: [10.0.0.1]}}}}`:                "no port",
	`{tls: {method: existing}, config: {enabled: true, clusters: {hk: {ips: [lb.example.org], port: 1}}}}`: "ips",
	`{tls: {method: existing}, config: {enabled: true, clusters: {HK: {ips: [10.0.0.1], port: 2379}}}}`:    "lower case",
	`{tls: {method: existing}, podDisruptionBudget: {minAvailable: 1}}`:                                    "maxUnavailable=null",
	`{tls: {method: existing}, scope: {file: a, existingConfigMap: b}}`:                                    "exclude each other",
}

// rendered has the objects by kind and name.
type rendered map[string]dict

func parse(t testing.TB, text []byte) rendered {
	t.Helper()
	all := rendered{}
	for _, document := range regexp.MustCompile(`(?m)^---\s*$`).Split(string(text), -1) {
		var object dict
		if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
			t.Fatalf("%v:\n%s", err, document)
		}
		if object == nil {
			continue
		}
		key := object["kind"].(string) + "/" + meta(object, "name")
		if all[key] != nil {
			t.Fatalf("%s is rendered twice", key)
		}
		all[key] = object
	}
	return all
}

// at is the value at a path of fields and indices.
func at(object any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			fields, _ := object.(dict)
			object = fields[step]
		case int:
			object = object.([]any)[step]
		}
	}
	return object
}

// renderer runs Helm or kustomize with the input.
func renderer(t testing.TB, input, name string, args ...string) (string, error) {
	t.Helper()
	bin := peerBin(t, name)
	if _, err := os.Stat(bin); err != nil {
		t.Skipf("%v: run `make deploy`", err)
	}
	cmd := exec.Command(bin, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err != nil {
		return complaint.String(), err
	}
	return out.String(), nil
}

func render(t testing.TB, values string) rendered {
	t.Helper()
	out, err := renderer(t, values, "helm", "template", "mesh", chart, "--kube-version=1.36.0", "--namespace=kube-system", "--values=-")
	if err != nil {
		t.Fatalf("values %s: %s", values, out)
	}
	return parse(t, []byte(out))
}

// build renders the base with components.
func build(t testing.TB, components ...string) rendered {
	t.Helper()
	return overlay(t, []string{"../base"}, components...)
}

// overlay renders directories of deploy/kustomize with components.
func overlay(t testing.TB, resources []string, components ...string) rendered {
	t.Helper()
	// kustomize takes relative paths only.
	dir := try(os.MkdirTemp(kustomize, ".test-")).or(t)
	defer os.RemoveAll(dir)
	overlay := dict{"resources": resources}
	var paths []string
	for _, component := range components {
		paths = append(paths, "../components/"+component)
	}
	if paths != nil {
		overlay["components"] = paths
	}
	text := try(json.Marshal(overlay)).or(t)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := renderer(t, "", "kustomize", "build", dir)
	if err != nil {
		t.Fatal(out)
	}
	return parse(t, []byte(out))
}

func TestDeployChartRenders(t *testing.T) {
	if out, err := renderer(t, valueSets["existing"], "helm", "lint", "--strict", chart, "--values=-"); err != nil {
		t.Fatal(out)
	}
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			for key, object := range render(t, values) {
				if at(object, "metadata", "labels", "app.kubernetes.io/part-of") != "cilium" {
					t.Errorf("%s has not the labels of the chart", key)
				}
			}
		})
	}
	for values, words := range refusals {
		out, err := renderer(t, values, "helm", "template", "mesh", chart, "--kube-version=1.36.0", "--namespace=kube-system", "--values=-")
		if err == nil || !strings.Contains(out, words) {
			t.Errorf("values %s: %q is not in: %s", values, words, out)
		}
	}
}

func TestDeployChartConfiguresTheMesh(t *testing.T) {
	got := render(t, valueSets["cluster users"])
	text := func(object, key string) string {
		var decoded string
		blob := at(got[object], "data", key)
		if err := yaml.Unmarshal([]byte(`!!binary "`+blob.(string)+`"`), &decoded); err != nil {
			t.Fatal(err)
		}
		return decoded
	}
	const files = "trusted-ca-file: /var/lib/cilium/clustermesh/common-etcd-client-ca.crt\n" +
		"key-file: /var/lib/cilium/clustermesh/common-etcd-client.key\n" +
		"cert-file: /var/lib/cilium/clustermesh/common-etcd-client.crt\n"
	want := map[[2]string]string{
		{"Secret/cilium-kvstoremesh", "hk"}: "endpoints:\n- https://hk.mesh.cilium.io:32379\n" + files +
			"cilium-host-aliases:\n- hostname: hk.mesh.cilium.io\n  ips:\n  - 10.14.1.128\n  - fd00::1\n",
		{"Secret/cilium-kvstoremesh", "osaka"}: "endpoints:\n- https://osaka.example.org:2379\n" + files,
		{"Secret/cilium-clustermesh", "hk"}: "endpoints:\n- https://clustermesh-apiserver.kube-system.svc:2379\n" +
			strings.ReplaceAll(files, "common-", "local-"),
	}
	for place, content := range want {
		if text(place[0], place[1]) != content {
			t.Errorf("%v is\n%s, not\n%s", place, text(place[0], place[1]), content)
		}
	}
	users := at(got["ConfigMap/clustermesh-remote-users"], "data", "users.yaml")
	if users != "users:\n- name: remote-hk\n  role: remote\n- name: remote-osaka\n  role: remote\n" {
		t.Errorf("users.yaml is %q", users)
	}
	if len(at(got["Secret/cilium-kvstoremesh"], "data").(dict)) != 2 {
		t.Error("a disabled cluster is configured")
	}
}

// TestDeployChartFollows renders pods that follow an etcd: the names of files, hosts and certificates fit together, and clients may
// move between the pods.
func TestDeployChartFollows(t *testing.T) {
	got := render(t, valueSets["follow"])
	client := func(names, endpoints string) string {
		const dir = "/var/lib/isthmus/upstream/"
		return "endpoints:\n" + endpoints + "trusted-ca-file: " + dir + names + "-ca.crt\ncert-file: " + dir + names + ".crt\nkey-file: " + dir + names + ".key\n"
	}
	files := at(got["ConfigMap/clustermesh-apiserver-upstream"], "data").(dict)
	for file, want := range map[string]string{
		"upstream.yaml": client("upstream", "- https://etcd-0.etcd:2379\n- https://etcd-1.etcd:2379\n"),
		"peers.yaml":    client("peers", "- https://clustermesh-apiserver-peers.kube-system.svc:2379\n"),
	} {
		if files[file] != want {
			t.Errorf("%s is\n%v, not\n%s", file, files[file], want)
		}
	}
	if affinity := at(got["Service/clustermesh-apiserver"], "spec", "sessionAffinity"); affinity != nil {
		t.Errorf("clients stay with a pod: %v", affinity)
	}
	rollouts(t, got)
	names := at(render(t, valueSets["follow, certificates"])["Certificate/clustermesh-apiserver-server-cert"], "spec", "dnsNames")
	if !slices.Contains(list(names), any("clustermesh-apiserver-peers.kube-system.svc")) {
		t.Errorf("the pods do not trust each other: the server's certificate has the names %v", names)
	}
}

// comparable removes what Helm and kustomize must not agree on: the labels of a release.
func comparable(object dict) dict {
	text, _ := json.Marshal(object)
	var copied dict
	_ = json.Unmarshal(text, &copied)
	metadata := copied["metadata"].(dict)
	for _, label := range []string{"app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"} {
		delete(metadata["labels"].(dict), label)
	}
	// The same labels are on every object of the chart.
	delete(metadata["labels"].(dict), "k8s-app")
	delete(metadata, "annotations")
	sortByName(copied)
	return copied
}

// sortByName orders lists of named items, whose order has no meaning: kustomize puts patched items first.
func sortByName(value any) {
	switch value := value.(type) {
	case dict:
		for _, field := range value {
			sortByName(field)
		}
	case []any:
		slices.SortStableFunc(value, func(a, b any) int {
			x, _ := at(a, "name").(string)
			y, _ := at(b, "name").(string)
			return strings.Compare(x, y)
		})
		for _, item := range value {
			sortByName(item)
		}
	}
}

func TestDeployChartAndManifestsAgree(t *testing.T) {
	for values, components := range map[string][]string{
		`{tls: {method: existing}}`:                                                                                nil,
		`{tls: {method: existing}, storage: {type: persistent}}`:                                                   {"persistent"},
		`{tls: {method: existing}, storage: {type: memory}}`:                                                       {"memory"},
		`{tls: {method: existing}, ui: {expose: service}}`:                                                         {"ui"},
		`{tls: {method: existing}, replicas: 3, follow: {enabled: true, existingConfigMap: clustermesh-upstream}}`: {"replicas"},
		`{tls: {method: existing}, networkPolicy: {enabled: true}}`:                                                {"network-policy"},
		`{tls: {method: existing}, scope: {file: "apiVersion: scope.isthmus.io/v1\nkind: Scope\n"}}`:               {"scope"},
		`{tls: {method: existing}, metrics: {prometheusRule: {enabled: true}, serviceMonitor: {enabled: true}}}`:   {"prometheus-rule", "service-monitor"},
	} {
		helm, plain := render(t, values), build(t, components...)
		for key, object := range plain {
			if helm[key] == nil {
				t.Errorf("%v: the chart has no %s", components, key)
			} else if a, b := comparable(object), comparable(helm[key]); !reflect.DeepEqual(a, b) {
				x, y := try(yaml.Marshal(a)).or(t), try(yaml.Marshal(b)).or(t)
				t.Errorf("%v: %s differs: kustomize\n%s\nHelm\n%s", components, key, x, y)
			}
		}
		if len(plain) != len(helm) {
			t.Errorf("%v: %d objects of kustomize, %d of Helm", components, len(plain), len(helm))
		}
	}
}
