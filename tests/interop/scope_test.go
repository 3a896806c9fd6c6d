package interop

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// A scope file between Isthmus and Cilium, on both sides of a connection: Cilium's publisher is the source of a mirror with
// import rules, and Cilium's mirror reads a publisher with export rules. The packages of Cilium's agent read both
// (cilium/reader), and must not complain.

// scopeFile replaces a scope file as a careful editor does.
func scopeFile(t testing.TB, path, sections string) {
	t.Helper()
	text := "apiVersion: scope.isthmus.io/v1\nkind: Scope\n" + sections
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// scopeMesh is a Kubernetes API with pods in the namespaces shop and batch: three of each, one of them a db and one behind a
// global service.
func scopeMesh(t *testing.T) *apiserver {
	t.Helper()
	api := startAPIServer(t, ours(t).address)
	api.defineCilium()
	api.define(manifest(t, mcsModule, exportCRD))
	for n, namespace := range []string{"shop", "batch"} {
		api.expect(201, "POST", namespacePath, dict{"metadata": dict{"name": namespace}})
		for p, app := range []string{"web", "db", "job"} {
			id := 3<<16 + 1000 + 10*n + p
			api.expect(201, "POST", "/apis/cilium.io/v2/ciliumidentities", dict{
				"apiVersion": "cilium.io/v2", "kind": "CiliumIdentity", "metadata": dict{"name": fmt.Sprint(id)},
				"security-labels": dict{"k8s:app": app, podNamespace: namespace},
			})
			api.scopePod(namespace, app, fmt.Sprintf("10.%d.0.%d", n+1, p+1), id)
		}
		api.expect(201, "POST", "/api/v1/namespaces/"+namespace+"/services", dict{
			"metadata": dict{"name": "front", "annotations": dict{"service.cilium.io/global": "true"}},
			"spec":     dict{"ports": []any{dict{"name": "http", "port": 80}}},
		})
		api.expect(201, "POST", "/apis/discovery.k8s.io/v1/namespaces/"+namespace+"/endpointslices", dict{
			"metadata":    dict{"name": "front-1", "labels": dict{"kubernetes.io/service-name": "front"}},
			"addressType": "IPv4", "ports": []any{dict{"name": "http", "port": 80, "protocol": "TCP"}},
			"endpoints": []any{dict{"addresses": []any{fmt.Sprintf("10.%d.0.1", n+1)}, "conditions": dict{"ready": true}}},
		})
	}
	return api
}

func (a *apiserver) scopePod(namespace, name, address string, identity int, annotations ...string) {
	a.t.Helper()
	a.expect(201, "POST", "/apis/cilium.io/v2/namespaces/"+namespace+"/ciliumendpoints", dict{
		"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": dict{"name": name, "annotations": strs(annotations...)},
		"status": dict{
			"id": 1, "state": "ready", "identity": dict{"id": identity, "labels": []any{}},
			"networking": dict{"addressing": []any{dict{"ipv4": address}}, "node": "192.0.2.1"},
		},
	})
}

// agent is what the packages of Cilium's agent made of a cluster.
type agent struct {
	t       testing.TB
	address string
}

type agentState struct {
	Addresses, Identities map[string]string
	Nodes, Services       map[string]bool
	Synced                bool
	Problems              []string
}

func newAgent(t testing.TB, store, cluster string) *agent {
	t.Helper()
	bin := os.Getenv("CILIUM_READER")
	if bin == "" {
		t.Skip("CILIUM_READER is not set: run `make interop-publisher`")
	}
	a := &agent{t: t, address: peer.FreePort()}
	p := process(t, "reader", bin, store, cluster, a.address)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent's packages are synchronized", func() bool { return a.state().Synced })
	return a
}

func (a *agent) state() (s agentState) {
	answer, err := http.Get("http://" + a.address)
	if err != nil {
		return s
	}
	defer answer.Body.Close()
	_ = json.NewDecoder(answer.Body).Decode(&s)
	return s
}

// has waits until the packages know just these addresses.
func (a *agent) has(addresses ...string) {
	a.t.Helper()
	var last []string
	eventually(a.t, fmt.Sprintf("the agent's packages know %v", addresses), func() bool {
		last = last[:0]
		for address := range a.state().Addresses {
			// A cluster id may follow the address.
			last = append(last, strings.TrimSuffix(strings.SplitN(address, "@", 2)[0], "/32"))
		}
		slices.Sort(last)
		return slices.Equal(last, addresses)
	})
	if problems := a.state().Problems; len(problems) > 0 {
		a.t.Errorf("the agent's packages complain: %v", problems)
	}
}

// hasKeys waits until a store has just these names below a prefix.
func hasKeys(t testing.TB, store *clientv3.Client, prefix string, names ...string) {
	t.Helper()
	var last []string
	defer func() {
		if t.Failed() {
			t.Logf("below %s there are %v", prefix, last)
		}
	}()
	eventually(t, fmt.Sprintf("just %v below %s", names, prefix), func() bool {
		all, err := store.Get(ctx(t), prefix, clientv3.WithPrefix())
		if err != nil {
			return false
		}
		last = last[:0]
		for _, kv := range all.Kvs {
			last = append(last, strings.TrimPrefix(string(kv.Key), prefix))
		}
		return slices.Equal(last, names)
	})
}

// mirrorInto starts a mirror of the cluster c3 at `source` into a new store, and returns the store.
func mirrorInto(t testing.TB, name, bin, source, cluster string, more ...string) *server {
	t.Helper()
	target, remotes, health := ours(t), t.TempDir(), peer.FreePort()
	clientFile(t, remotes, "c3", source)
	p := process(t, name, bin, append([]string{"kvstoremesh", "--cluster-name=" + cluster, "--cluster-id=1", "--clustermesh-config=" + remotes,
		"--kvstore-opt=etcd.config=" + clientFile(t, t.TempDir(), "etcd.yaml", target.address), "--kvstore-opt=etcd.qps=1000",
		"--kvstore-opt=etcd.bootstrapQps=10000", "--health-port=" + peer.PortOf(health), "--api-serve-addr=" + peer.FreePort()}, more...)...)
	if bin != isthmusBin(t) {
		p.Args = append(p.Args, "--enable-gops=false", "--shell-sock-path=")
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, name, health)
	return target
}

const (
	cachedIPs        = "cilium/cache/ip/v1/c3/"
	cachedIdentities = "cilium/cache/identities/v1/c3/id/"
	cachedServices   = "cilium/cache/services/v1/c3/"
)

func TestPublisherScopeImport(t *testing.T) {
	needsCilium(t)
	api := scopeMesh(t)
	source := theirs(t)
	publisher := cilium(t, api.kubeconfig(), source.address, nil)
	publisher.up()
	scope := filepath.Join(t.TempDir(), "scope.yaml")
	entry := func(rules string) string {
		return "import: {clusters: [{name: c, clusters: [\"c*\"], identities: used, " + rules + "}]}\n"
	}
	scopeFile(t, scope, entry("services: {default: exclude, rules: [{name: shop, action: include, namespaces: {names: [shop]}}]},\n"+
		"  endpoints: {default: exclude, rules: [{name: backends, action: include, backendsOfServices: true},\n"+
		"    {name: db, action: include, namespaces: {names: [shop]}, identity: {matchLabels: {app: db}}}]}"))
	target := mirrorInto(t, "Isthmus' mirror", isthmusBin(t), source.address, "tokyo", "--scope="+scope)
	store := target.client(t)
	t.Cleanup(func() { store.Close() })
	hasKeys(t, store, cachedIPs, "10.1.0.1", "10.1.0.2")
	hasKeys(t, store, cachedIdentities, "197608", "197609")
	hasKeys(t, store, cachedServices, "shop/front")
	agent := newAgent(t, target.address, "c3")
	agent.has("10.1.0.1", "10.1.0.2")
	if s := agent.state(); len(s.Identities) != 2 || !s.Services["shop/front"] && !s.Services["c3/shop/front"] {
		t.Errorf("the agent's packages have read %+v", s)
	}

	// Cilium's mirror follows the scoped mirror with the code of the agents.
	chained := mirrorInto(t, "Cilium's mirror", os.Getenv("CILIUM_APISERVER"), target.address, "osaka")
	second := chained.client(t)
	t.Cleanup(func() { second.Close() })
	hasKeys(t, second, cachedIPs, "10.1.0.1", "10.1.0.2")

	// The cluster changes: a new db, and another backend of the service.
	api.scopePod("shop", "db-2", "10.1.0.9", 3<<16+1001)
	hasKeys(t, store, cachedIPs, "10.1.0.1", "10.1.0.2", "10.1.0.9")
	api.expect(200, "PUT", "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/front-1", dict{
		"metadata":    dict{"name": "front-1", "labels": dict{"kubernetes.io/service-name": "front"}},
		"addressType": "IPv4", "ports": []any{dict{"name": "http", "port": 80, "protocol": "TCP"}},
		"endpoints": []any{dict{"addresses": []any{"10.1.0.3"}, "conditions": dict{"ready": true}}},
	})
	hasKeys(t, store, cachedIPs, "10.1.0.2", "10.1.0.3", "10.1.0.9")
	agent.has("10.1.0.2", "10.1.0.3", "10.1.0.9")

	// The scope widens to the other namespace, and the publisher restarts.
	scopeFile(t, scope, entry("endpoints: {default: exclude, rules: [{name: db, action: include, identity: {matchLabels: {app: db}}}]}"))
	hasKeys(t, store, cachedIPs, "10.1.0.2", "10.1.0.9", "10.2.0.2")
	publisher.down(syscall.SIGTERM)
	publisher.up()
	hasKeys(t, store, cachedServices, "batch/front", "shop/front")
	hasKeys(t, store, cachedIdentities, "197609", "197619")
	agent.has("10.1.0.2", "10.1.0.9", "10.2.0.2")
	hasKeys(t, second, cachedIPs, "10.1.0.2", "10.1.0.9", "10.2.0.2")
}

func TestPublisherScopeExport(t *testing.T) {
	needsCilium(t)
	api := scopeMesh(t)
	scope := filepath.Join(t.TempDir(), "scope.yaml")
	rules := "region: apac\nexport:\n  identities: used\n  endpoints: {default: exclude, rules: [" +
		"{name: backends, action: include, backendsOfGlobalServices: true}, " +
		"{name: db, action: include, namespaces: {names: [shop]}, identity: {matchLabels: {app: db}}}]}\n"
	scopeFile(t, scope, rules)
	publisher := oursWithStore(t, api.kubeconfig(), []string{"--scope=" + scope})
	publisher.up()
	source := strings.TrimPrefix(publisher.client.Endpoints()[0], "http://")
	target := mirrorInto(t, "Cilium's mirror", os.Getenv("CILIUM_APISERVER"), source, "tokyo")
	store := target.client(t)
	t.Cleanup(func() { store.Close() })
	hasKeys(t, store, cachedIPs, "10.1.0.1", "10.1.0.2", "10.2.0.1")
	hasKeys(t, store, cachedIdentities, "197608", "197609", "197618")

	// A regional endpoint, and the region in the configuration, are nothing to Cilium.
	api.scopePod("shop", "regional", "10.1.0.8", 3<<16+1001, "clustermesh.cilium.io/sync-scope", "regional")
	hasKeys(t, store, cachedIPs, "10.1.0.1", "10.1.0.2", "10.1.0.8", "10.2.0.1")
	of := func(prefix string) string {
		return string(try(publisher.client.Get(ctx(t), prefix)).or(t).Kvs[0].Value)
	}
	if value := of("cilium/state/ip/v1/default/10.1.0.8"); !strings.HasSuffix(value, `"SyncScope":"regional"}`) {
		t.Errorf("a regional endpoint is published as %s", value)
	}
	if value := of("cilium/cluster-config/c3"); !strings.HasSuffix(value, `"region":"apac"}`) {
		t.Errorf("the configuration is %s", value)
	}
	for _, address := range []string{source, target.address} {
		newAgent(t, address, "c3").has("10.1.0.1", "10.1.0.2", "10.1.0.8", "10.2.0.1")
	}
	// A mirror of ours in another region leaves the endpoint out, and one in the same region takes it.
	for region, addresses := range map[string][]string{
		"emea": {"10.1.0.1", "10.1.0.2", "10.2.0.1"},
		"apac": {"10.1.0.1", "10.1.0.2", "10.1.0.8", "10.2.0.1"},
	} {
		file := filepath.Join(t.TempDir(), "scope.yaml")
		scopeFile(t, file, "region: "+region+"\n")
		mirror := mirrorInto(t, "Isthmus' mirror in "+region, isthmusBin(t), source, "osaka", "--scope="+file)
		client := mirror.client(t)
		hasKeys(t, client, cachedIPs, addresses...)
		client.Close()
	}
	// The scope narrows.
	scopeFile(t, scope, strings.Replace(rules, "app: db", "app: nothing", 1))
	hasKeys(t, store, cachedIPs, "10.1.0.1", "10.2.0.1")
	hasKeys(t, store, cachedIdentities, "197608", "197618")
}
