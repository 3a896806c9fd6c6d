package interop

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"isthmus.dev/interop/peer"
)

// The rights that docs/scope.md says a mirror needs for the condition `existing`, on a kube-apiserver that checks rights: with
// the service account of Cilium's chart and its ClusterRole, without it, and with the one of the document.

const (
	meshRole    = "ClusterRole/clustermesh-apiserver"
	meshBinding = "ClusterRoleBinding/clustermesh-apiserver"
	meshAccount = "ServiceAccount/clustermesh-apiserver"
)

// meshChart are the service account of the mesh in Cilium's chart and its rights.
func meshChart(t testing.TB, values ...string) rendered {
	t.Helper()
	args := []string{"template", "cilium", filepath.Join(moduleDir(t, ciliumModule), "install/kubernetes/cilium"),
		"--kube-version=1.36.0", "--namespace=kube-system",
		"--set=cluster.name=tokyo,cluster.id=1,clustermesh.useAPIServer=true,clustermesh.config.enabled=true,envoy.enabled=false"}
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	out, err := renderer(t, "", "helm", args...)
	if err != nil {
		t.Fatalf("%v: %s", values, out)
	}
	rights := rendered{}
	for document := range strings.SplitSeq(out, "\n---\n") {
		var object dict
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatalf("%v:\n%s", err, document)
		}
		kind, _ := object["kind"].(string)
		if name := kind + "/" + meta(object, "name"); slices.Contains([]string{meshRole, meshBinding, meshAccount}, name) {
			rights[name] = object
		}
	}
	return rights
}

// create makes an object of a chart or a document.
func (a *apiserver) create(object dict) {
	a.t.Helper()
	a.expect(201, "POST", path(a.t, object["kind"].(string), meta(object, "namespace")), object)
}

// tokenOf is a token of a service account in kube-system, as a kubelet mounts it.
func (a *apiserver) tokenOf(account string) string {
	a.t.Helper()
	answer := a.expect(201, "POST", path(a.t, "ServiceAccount", "kube-system")+"/"+account+"/token", dict{"spec": dict{}})
	return at(answer, "status", "token").(string)
}

// remoteWithNamespaces is a remote cluster with an address in each of two namespaces, of which one exists here.
func remoteWithNamespaces(t testing.TB) *server {
	t.Helper()
	source := ours(t)
	store := source.client(t)
	defer store.Close()
	put := func(key, value string) { try(store.Put(ctx(t), key, value)).or(t) }
	put("cilium/cluster-config/c3", `{"id":3,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}`)
	put("cilium/.heartbeat", "now")
	for address, namespace := range map[string]string{"10.3.0.1": "shop", "10.3.0.2": "batch"} {
		value, _ := json.Marshal(dict{"IP": address, "HostIP": "192.0.2.1", "ID": 1, "K8sNamespace": namespace, "K8sPodName": "p"})
		put("cilium/state/ip/v1/default/"+address, string(value))
	}
	for _, kind := range []string{"identities", "ip", "nodes", "services", "serviceexports", "endpointslices"} {
		put("cilium/synced/c3/cilium/state/"+kind+"/v1", "now")
	}
	return source
}

// existingMirror is a mirror with the condition `existing` that asks a kube-apiserver with a token.
type existingMirror struct {
	*peer.Process
	store  *clientv3.Client
	health string
}

func (a *apiserver) existingMirror(source *server, token string) *existingMirror {
	t := a.t
	t.Helper()
	target, remotes, health := ours(t), t.TempDir(), peer.FreePort()
	clientFile(t, remotes, "c3", source.address)
	scope := filepath.Join(t.TempDir(), "scope.yaml")
	scopeFile(t, scope, "import: {clusters: [{name: all, clusters: [\"*\"], endpoints: {default: exclude, rules: ["+
		"{name: ours, action: include, namespaces: {existing: true}}]}}]}\n")
	p := process(t, "kvstoremesh", isthmusBin(t), "kvstoremesh", "--cluster-name=tokyo", "--cluster-id=1", "--clustermesh-config="+remotes,
		"--kvstore-opt=etcd.config="+clientFile(t, t.TempDir(), "etcd.yaml", target.address), "--health-port="+peer.PortOf(health),
		"--api-serve-addr="+peer.FreePort(), "--scope="+scope, "--k8s-kubeconfig-path="+a.kubeconfigOf(token))
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	m := &existingMirror{p, target.client(t), health}
	t.Cleanup(func() { m.store.Close() })
	return m
}

// readiness is the detailed readiness report.
func (m *existingMirror) readiness() string {
	answer, err := http.Get("http://" + m.health + "/readyz?verbose")
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	return string(text)
}

// saysWhatIsMissing waits until log and readiness name the right, its object, and the remedy.
func (m *existingMirror) saysWhatIsMissing(t testing.TB) {
	t.Helper()
	named := []string{`User "system:serviceaccount:kube-system:clustermesh-apiserver" cannot watch resource "namespaces"`,
		"the verbs list and watch for namespaces, in a ClusterRole and a ClusterRoleBinding"}
	says := func(text string) bool {
		for _, part := range named {
			// The log quotes.
			if !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), part) {
				return false
			}
		}
		return true
	}
	defer func() {
		if t.Failed() {
			t.Logf("readiness: %s", m.readiness())
		}
	}()
	eventually(t, "the readiness names the right and the remedy", func() bool { return says(m.readiness()) })
	eventually(t, "the log names the right and the remedy", func() bool { return says(m.Tail(1000)) })
	hasKeys(t, m.store, cachedIPs)
}

func TestKubeAPIServerRightsForExisting(t *testing.T) {
	a := startAPIServerWith(t, ours(t).address, "RBAC")
	a.expect(201, "POST", namespacePath, dict{"metadata": dict{"name": "shop"}})
	source := remoteWithNamespaces(t)
	all := meshChart(t)
	a.create(all[meshAccount])
	token := a.tokenOf("clustermesh-apiserver")

	// No rights, as with kvstoreMode=external; then those of the document, which the running mirror uses.
	for _, values := range []string{"identityAllocationMode=kvstore,etcd.enabled=true,etcd.managed=false,etcd.endpoints={http://192.0.2.1:2379}",
		"clustermesh.apiserver.kvstoremesh.kvstoreMode=external,identityAllocationMode=kvstore,etcd.enabled=true,etcd.endpoints={http://192.0.2.1:2379}", "rbac.create=false"} {
		if there := meshChart(t, values); there[meshRole] != nil || there[meshBinding] != nil {
			t.Errorf("%s: the chart makes a ClusterRole, which docs/scope.md denies", values)
		}
	}
	m := a.existingMirror(source, token)
	m.saysWhatIsMissing(t)
	document := string(try(os.ReadFile("../../docs/scope.md")).or(t))
	for text := range strings.SplitSeq(section(t, document, "In Kubernetes", "yaml")[0], "\n---\n") {
		var object dict
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		a.create(object)
	}
	hasKeys(t, m.store, cachedIPs, "10.3.0.1")
	const name = "clustermesh-apiserver-namespaces"
	a.expect(200, "DELETE", path(t, "ClusterRoleBinding", "")+"/"+name, nil)

	// The rights of the chart, for reading and for following.
	for _, values := range []string{"", "identityAllocationMode=doublewrite-readkvstore,etcd.enabled=true,etcd.managed=false,etcd.endpoints={http://192.0.2.1:2379}"} {
		there := all
		if values != "" {
			there = meshChart(t, values)
		}
		for _, name := range []string{meshRole, meshBinding} {
			if there[name] == nil {
				t.Fatalf("%q: the chart makes no %s, which docs/scope.md says it does", values, name)
			}
		}
	}
	a.create(all[meshRole])
	a.create(all[meshBinding])
	m = a.existingMirror(source, token)
	hasKeys(t, m.store, cachedIPs, "10.3.0.1")
	a.expect(201, "POST", namespacePath, dict{"metadata": dict{"name": "batch"}})
	hasKeys(t, m.store, cachedIPs, "10.3.0.1", "10.3.0.2")
}
