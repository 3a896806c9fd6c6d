package interop

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// Cases that the random walk of publisher_test.go rarely reaches.

const synced = "cilium/synced/c3/cilium/state/"

func (p *publisher) has(key string) bool {
	_, there := p.keys()[key]
	return there
}

// all waits until every publisher has published a key, or has deleted it.
func all(t testing.TB, publishers []*publisher, key string, there bool) {
	t.Helper()
	for _, p := range publishers {
		eventually(t, fmt.Sprintf("%s has %s: %v", p.Name, key, there), func() bool {
			keys := p.keys()
			_, found := keys[key]
			return keys != nil && found == there
		})
	}
}

// bothOfOurs starts only the two publishers of Isthmus, on an API that Cilium's publisher may be unable to follow.
func bothOfOurs(t *testing.T, a *apiserver) []*publisher {
	t.Helper()
	config := a.kubeconfig()
	publishers := []*publisher{oursAlone(t, config, ours(t).address, nil), oursWithStore(t, config, nil)}
	for _, p := range publishers {
		p.up()
	}
	return publishers
}

// Custom resources may be defined after the publisher has started, be removed, and return in another version.
func TestPublisherCRDsAppearLater(t *testing.T) {
	a := startAPIServer(t, ours(t).address)
	publishers := bothOfOurs(t, a)
	// Readers wait for the canary, so the publisher must write it although there are no exports yet.
	all(t, publishers, synced+"serviceexports/v1", true)
	all(t, publishers, synced+"services/v1", true)
	for _, p := range publishers {
		if p.has(synced + "nodes/v1") {
			t.Errorf("%s says that it knows all nodes, before there can be any", p.Name)
		}
	}
	a.defineCilium()
	a.expect(201, "POST", "/apis/cilium.io/v2/ciliumnodes", dict{
		"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": dict{"name": "n"}, "spec": dict{},
	})
	for _, scope := range []string{"nodes", "identities", "ip"} {
		all(t, publishers, synced+scope+"/v1", true)
	}
	all(t, publishers, "cilium/state/nodes/v1/c3/n", true)
	a.expect(201, "POST", "/api/v1/namespaces/default/services", dict{
		"metadata": dict{"name": "s"}, "spec": dict{"ports": []any{dict{"port": 80}}},
	})
	for _, versions := range [][]string{{"v1alpha1", "v1beta1"}, {"v1beta1"}, {"v1alpha1"}} {
		t.Run(strings.Join(versions, "+"), func(t *testing.T) {
			exportsComeAndGo(t, a, publishers, versions)
		})
	}
}

func exportsComeAndGo(t *testing.T, a *apiserver, publishers []*publisher, versions []string) {
	crd := manifest(t, mcsModule, exportCRD)
	name := meta(crd, "name")
	spec := crd["spec"].(dict)
	var kept []any
	for _, v := range spec["versions"].([]any) {
		for _, wanted := range versions {
			if v.(dict)["name"] == wanted {
				v.(dict)["storage"] = wanted == versions[len(versions)-1]
				kept = append(kept, v)
			}
		}
	}
	spec["versions"] = kept
	a.define(crd)
	path := "/apis/multicluster.x-k8s.io/" + versions[0] + "/namespaces/default/serviceexports"
	a.expect(201, "POST", path, dict{
		"apiVersion": "multicluster.x-k8s.io/" + versions[0], "kind": "ServiceExport", "metadata": dict{"name": "s"},
		"spec": dict{"exportedLabels": dict{"by": versions[0]}},
	})
	key := stateExports + "default/s"
	all(t, publishers, key, true)
	for _, p := range publishers {
		if value := p.keys()[key]; !strings.Contains(value, `"labels":{"by":"`+versions[0]+`"}`) {
			t.Errorf("%s publishes %s", p.Name, value)
		}
	}
	a.expect(200, "DELETE", path+"/s", nil)
	all(t, publishers, key, false)
	a.expect(201, "POST", path, dict{
		"apiVersion": "multicluster.x-k8s.io/" + versions[0], "kind": "ServiceExport", "metadata": dict{"name": "s"},
	})
	all(t, publishers, key, true)
	// The removal of a definition removes its objects.
	a.expect(200, "DELETE", crdPath+"/"+name, nil)
	eventually(t, "the definition is gone", func() bool {
		code, _ := a.call("GET", crdPath+"/"+name, nil)
		return code == 404
	})
	all(t, publishers, key, false)
}

// A namespace that becomes global makes the publisher add its objects, and remove them when it no longer is.
func TestPublisherNamespaceFlips(t *testing.T) {
	needsCilium(t)
	for _, slices := range []bool{false, true} {
		for _, global := range []bool{true, false} {
			t.Run(fmt.Sprintf("slices %v default %v", slices, global), func(t *testing.T) { flip(t, slices, global) })
		}
	}
}

func flip(t *testing.T, slices, global bool) {
	w := bareMesh(t, 1, slices)
	w.api.defineCilium()
	w.api.define(manifest(t, mcsModule, exportCRD))
	w.globalDefault = global
	flags := []string{fmt.Sprintf("--clustermesh-default-global-namespace=%v", global)}
	if slices {
		flags = append(flags, "--enable-cilium-endpoint-slice")
	}
	w.begin(flags)
	path := namespacePath + "/flips"
	set := func(annotations dict) {
		t.Helper()
		object := dict{"metadata": dict{"name": "flips", "annotations": annotations}}
		if old := w.objects[path]; old != nil {
			object["metadata"].(dict)["resourceVersion"] = meta(old, "resourceVersion")
			w.objects[path] = w.api.expect(200, "PUT", path, object)
			return
		}
		w.objects[path] = w.api.expect(201, "POST", namespacePath, object)
	}
	set(nil)
	keys := w.oneOfEach("flips")
	const annotation = "clustermesh.cilium.io/global"
	for i, annotations := range []dict{
		nil, strs(annotation, "true"), strs(annotation, "false"), strs(annotation, "TrUe"), nil, strs("x", "y"), strs(annotation, ""),
		strs(annotation, "true"), strs(annotation, "yes"), strs(annotation, "true", "x", "y"), {},
	} {
		if i > 0 {
			set(annotations)
		}
		w.checkFlip(i, keys)
		// The objects outlast their namespace here, and are there when the namespace returns.
		if i%4 == 3 {
			w.dropNamespace(path)
			w.checkFlip(i, keys)
			set(annotations)
			w.checkFlip(i, keys)
		}
	}
}

// oneOfEach makes an object of each kind in a namespace and returns the keys under which they are published.
func (w *mesh) oneOfEach(namespace string) []string {
	w.t.Helper()
	status := dict{"networking": dict{"addressing": []any{dict{"ipv4": "10.3.0.1", "ipv6": "fd03::1"}}, "node": "172.18.0.2"}}
	pods := dict{"status": status}
	if w.slices {
		pods = dict{"namespace": namespace, "endpoints": []any{dict{"name": "pod", "networking": status["networking"]}}}
	}
	metadata := dict{
		"name": "o", "labels": dict{"kubernetes.io/service-name": "o"}, "annotations": dict{"service.cilium.io/global": "true"},
	}
	endpoints := []any{dict{"addresses": []any{"10.3.0.1"}}}
	for i, object := range []dict{
		pods, {"spec": dict{}}, {"security-labels": dict{podNamespace: namespace}}, {"spec": dict{"ports": []any{dict{"port": 80}}}},
		{"addressType": "IPv4", "endpoints": endpoints, "ports": []any{dict{"port": 80}}}, {"spec": dict{}},
	} {
		k := w.kinds[i]
		object["metadata"], object["kind"] = metadata, k.name
		object["apiVersion"] = strings.TrimPrefix(strings.TrimPrefix(k.group, "/apis/"), "/api/")
		w.objects[k.path(namespace)+"/o"] = w.api.expect(201, "POST", k.path(namespace), object)
	}
	return []string{
		stateIP + "10.3.0.1", stateIP + "fd03::1", stateIdentities + "o",
		stateServices + namespace + "/o", stateSlices + namespace + "/o", stateExports + namespace + "/o",
	}
}

func (w *mesh) checkFlip(step int, keys []string) {
	w.t.Helper()
	w.compare(step, false)
	for _, p := range w.ours {
		published := p.keys()
		for _, key := range keys {
			if _, there := published[key]; there != w.global("flips") {
				w.t.Errorf("step %d: %s has %s: %v", step, p.Name, key, there)
			}
		}
	}
}

// A publisher removes the keys that an earlier publisher with other flags has left, and publishes everything else.
func TestPublisherOtherFlags(t *testing.T) {
	needsCilium(t)
	w := newMesh(t, 0)
	for i, flags := range [][]string{
		nil, {"--clustermesh-service-v2=only-endpointslice"}, {"--enable-cilium-endpoint-slice"},
		{"--clustermesh-default-global-namespace=false"}, {"--clustermesh-enable-mcs-api=false"},
		{"--max-connected-clusters=511", "--clustermesh-service-v2=prefer-endpointslice"}, nil,
	} {
		given := fmt.Sprint(flags)
		w.slices = strings.Contains(given, "cilium-endpoint-slice")
		w.kinds = kindsOf(w.slices)
		w.globalDefault = !strings.Contains(given, "namespace=false")
		for _, p := range append([]*publisher{w.cilium, w.spare}, w.ours...) {
			p.flags = flags
			if p.running {
				p.down(syscall.SIGTERM)
				p.up()
			}
		}
		w.former["restart"] = "it had other flags before"
		w.shuffle(w.namespaces...)
		w.compare(i, true)
		for range 100 {
			w.step()
		}
		w.compare(i, true)
	}
}

// An invalid object does not delay others, even where the original's client libraries fail to decode it.
func TestPublisherSurvivesOddObjects(t *testing.T) {
	a := startAPIServer(t, ours(t).address)
	a.defineCilium()
	a.define(manifest(t, mcsModule, exportCRD))
	nodes, pods := "/apis/cilium.io/v2/ciliumnodes", "/apis/cilium.io/v2/namespaces/default/ciliumendpoints"
	node := func(name string, spec dict) {
		a.expect(201, "POST", nodes, dict{"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": dict{"name": name}, "spec": spec})
	}
	pod := func(name, address string, status dict) {
		status["networking"] = dict{"addressing": []any{dict{"ipv4": address}}, "node": "172.18.0.2"}
		a.expect(201, "POST", pods, dict{"apiVersion": "cilium.io/v2", "kind": "CiliumEndpoint", "metadata": dict{"name": name}, "status": status})
	}
	publishers := bothOfOurs(t, a)
	all(t, publishers, synced+"nodes/v1", true)
	all(t, publishers, synced+"ip/v1", true)
	for round := range 2 {
		// The API accepts leading zeros, and any number as a port.
		node(fmt.Sprint("odd", round), dict{"ipam": dict{"podCIDRs": []any{"010.2.0.0/16"}}})
		pod(fmt.Sprint("large", round), fmt.Sprint("10.9.1.", round), dict{"named-ports": []any{dict{"name": "p", "port": 70000}}})
		pod(fmt.Sprint("negative", round), fmt.Sprint("10.9.2.", round), dict{"named-ports": []any{dict{"name": "p", "port": -1}}})
		node(fmt.Sprint("even", round), dict{})
		pod(fmt.Sprint("even", round), fmt.Sprint("10.9.3.", round), dict{})
		all(t, publishers, fmt.Sprint("cilium/state/nodes/v1/c3/even", round), true)
		all(t, publishers, fmt.Sprint(stateIP, "10.9.3.", round), true)
		// A new publisher lists them.
		publishers = bothOfOurs(t, a)
	}
	all(t, publishers, synced+"nodes/v1", true)
	all(t, publishers, synced+"ip/v1", true)
	all(t, publishers, stateIP+"10.9.3.1", true)
}
