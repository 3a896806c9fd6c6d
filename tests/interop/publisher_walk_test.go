package interop

import (
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The walk of the publisher test: one random change of the Kubernetes API after the other, and some kills of publishers.

// mesh is the API of a cluster and its publishers.
type mesh struct {
	t   *testing.T
	rng *rand.Rand
	api *apiserver
	// Cilium's publisher, and a spare one with a store of its own, which shows what a new publisher would publish.
	cilium, spare *publisher
	ours          []*publisher
	// Addresses come from CiliumEndpointSlices.
	slices        bool
	globalDefault bool
	namespaces    []string
	kinds         []kind
	// Path → the object in the API.
	objects map[string]dict
	// Steps until a publisher that was killed is started again.
	dead  map[*publisher]int
	fence int
	// Addresses whose claims have changed since the stores were last equal, with the number of changes.
	touched map[string]int
	// Addresses whose claims the publishers may have in different orders.
	unordered map[string]bool
	// Keys that may be stale in the original's store, with the reason.
	former map[string]string
	told   map[string]bool
	count  map[string]int
	// Counts of the current comparison and of the walk so far.
	seen map[string]int
}

type kind struct {
	name       string
	group      string
	plural     string
	namespaced bool
	weight     int
	names      []string
	make       func(*mesh, string) dict
}

func names(prefix string, n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint(prefix, i+1))
	}
	return all
}

func kindsOf(slices bool) []kind {
	pods := kind{"CiliumEndpoint", "/apis/cilium.io/v2", "ciliumendpoints", true, 30, names("p", 6), (*mesh).ciliumEndpoint}
	if slices {
		pods = kind{"CiliumEndpointSlice", "/apis/cilium.io/v2alpha1", "ciliumendpointslices", false, 30, names("ces", 8), (*mesh).ciliumEndpointSlice}
	}
	return []kind{
		pods,
		{"CiliumNode", "/apis/cilium.io/v2", "ciliumnodes", false, 6, names("node", 4), (*mesh).node},
		{"CiliumIdentity", "/apis/cilium.io/v2", "ciliumidentities", false, 12, append(names("19660", 7), "abc", "0"), (*mesh).identity},
		{"Service", "/api/v1", "services", true, 20, names("s", 5), (*mesh).service},
		{"EndpointSlice", "/apis/discovery.k8s.io/v1", "endpointslices", true, 22, names("e", 7), (*mesh).slice},
		{"ServiceExport", "/apis/multicluster.x-k8s.io/v1beta1", "serviceexports", true, 10, names("s", 6), (*mesh).export},
	}
}

func (k kind) path(namespace string) string {
	if k.namespaced {
		return k.group + "/namespaces/" + namespace + "/" + k.plural
	}
	return k.group + "/" + k.plural
}

const namespacePath = "/api/v1/namespaces"

func (w *mesh) step() {
	for p, steps := range w.dead {
		if w.dead[p] = steps - 1; steps <= 1 {
			w.revive(p)
		}
	}
	switch n := w.rng.IntN(1000); {
	case n < 15:
		w.kill()
	case n < 75:
		w.stepNamespace()
	default:
		total := 0
		for _, k := range w.kinds {
			total += k.weight
		}
		n := w.rng.IntN(total)
		for _, k := range w.kinds {
			if n -= k.weight; n < 0 {
				w.stepObject(k)
				return
			}
		}
	}
}

// === kills of publishers ===

func (w *mesh) kill() {
	p := one(w, append([]*publisher{w.cilium}, w.ours...)...)
	if !p.running {
		return
	}
	p.down(one(w, syscall.SIGKILL, syscall.SIGTERM))
	w.dead[p] = 1 + w.rng.IntN(10)
	w.count["killed "+p.Name]++
	if p.theirs {
		w.former["restart"] = "it was restarted, and takes back nothing of its former life"
	}
	w.shuffle(w.namespaces...)
}

func (w *mesh) revive(p *publisher) {
	delete(w.dead, p)
	p.up()
}

// === objects ===

// request sends a change and keeps the resulting object.
func (w *mesh) request(kind, method, path string, body dict) bool {
	code, answer := w.api.call(method, path, body)
	w.count[fmt.Sprint(kind, " ", method, " ", code)]++
	if code < 200 || code > 299 {
		if count := w.count[fmt.Sprint(kind, " ", method, " ", code)]; code != 404 && count <= 2 {
			w.t.Logf("%s %s: %d %v", method, path, code, answer["message"])
		}
		return false
	}
	if method == "POST" {
		path += "/" + meta(answer, "name")
	}
	before := w.objects[path]
	if delete(w.objects, path); method != "DELETE" {
		w.objects[path] = answer
	}
	w.note(path, before, w.objects[path])
	return true
}

func (w *mesh) stepObject(k kind) {
	collection, name := k.path(one(w, w.namespaces...)), one(w, k.names...)
	path := collection + "/" + name
	old := w.objects[path]
	if old != nil && w.chance(35) {
		w.request(k.name, "DELETE", path, nil)
		return
	}
	object := k.make(w, name)
	if old != nil && !sameShape(old, object) {
		if !w.request(k.name, "DELETE", path, nil) {
			return
		}
		old = nil
	}
	if old == nil {
		w.request(k.name, "POST", collection, object)
		return
	}
	object["metadata"].(dict)["resourceVersion"] = meta(old, "resourceVersion")
	w.request(k.name, "PUT", path, object)
}

// sameShape says whether an object can be updated to another one, and copies the fields that an update may not change.
func sameShape(old, object dict) bool {
	if old["addressType"] != object["addressType"] {
		return false
	}
	before, _ := old["spec"].(dict)
	spec, _ := object["spec"].(dict)
	shape := func(spec dict) string {
		switch {
		case spec["type"] == "ExternalName":
			return "external"
		case spec["clusterIP"] == "None":
			return fmt.Sprint("headless ", spec["ipFamilyPolicy"] == "RequireDualStack")
		}
		return "address"
	}
	if spec["ports"] == nil || before["ipFamilyPolicy"] == nil {
		// The object is not a service, or a service without addresses.
		return spec["externalName"] == before["externalName"]
	}
	if shape(spec) != shape(before) {
		return false
	}
	for _, field := range []string{"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} {
		spec[field] = before[field]
	}
	return true
}

// === namespaces ===

func (w *mesh) stepNamespace() {
	name := one(w, w.namespaces...)
	path := namespacePath + "/" + name
	old, before := w.objects[path], w.global(name)
	object := w.namespaceObject(name)
	switch {
	case old == nil:
		w.request("Namespace", "POST", namespacePath, object)
	case name != "default" && w.chance(30):
		w.dropNamespace(path)
	default:
		object["metadata"].(dict)["resourceVersion"] = meta(old, "resourceVersion")
		object["spec"] = old["spec"]
		w.request("Namespace", "PUT", path, object)
	}
	if before != w.global(name) {
		w.shuffle(name)
	}
}

// dropNamespace deletes a namespace and leaves its objects, since no controller runs that would delete them first.
func (w *mesh) dropNamespace(path string) {
	w.t.Helper()
	answer := w.api.expect(200, "DELETE", path, nil)
	answer["spec"] = dict{"finalizers": []any{}}
	w.api.expect(200, "PUT", path+"/finalize", answer)
	delete(w.objects, path)
	w.count["Namespace dropped"]++
}

// === records that explain differences ===

// note records a change that may explain a difference later.
func (w *mesh) note(path string, before, now dict) {
	addresses := w.claims(path, before)
	stdmaps.Copy(addresses, w.claims(path, now))
	for address := range addresses {
		w.touched[address]++
	}
	if before == nil || now == nil {
		return
	}
	const lost = "an object went to a namespace that is not there, which leaves what was published"
	switch {
	case strings.Contains(path, "/endpointslices/"):
		of := func(o dict) string { return labelOf(o, "kubernetes.io/service-name") }
		if of(before) != of(now) {
			key := stateServices + namespaceOf(path) + "/" + of(before)
			w.former[key] = "a slice was relabelled, which is not seen until the service changes"
		}
	case strings.Contains(path, "/ciliumidentities/"):
		if !w.exists(labelNamespace(now)) {
			w.former[stateIdentities+meta(now, "name")] = lost
		}
	case strings.Contains(path, "/ciliumendpointslices/"):
		if namespace, _ := now["namespace"].(string); !w.exists(namespace) {
			for address := range w.claims(path, before) {
				w.former[stateIP+address] = lost
			}
		}
	}
}

func labelNamespace(identity dict) string {
	labels, _ := identity["security-labels"].(dict)
	s, _ := labels[podNamespace].(string)
	return s
}

func namespaceOf(path string) string {
	_, rest, _ := strings.Cut(path, "/namespaces/")
	namespace, _, _ := strings.Cut(rest, "/")
	return namespace
}

func labelOf(object dict, name string) string {
	labels, _ := object["metadata"].(dict)["labels"].(dict)
	s, _ := labels[name].(string)
	return s
}

func (w *mesh) exists(namespace string) bool { return w.objects[namespacePath+"/"+namespace] != nil }

// global applies Cilium's rule: a namespace that does not exist is not global.
func (w *mesh) global(namespace string) bool {
	object := w.objects[namespacePath+"/"+namespace]
	if object == nil {
		return false
	}
	annotations, _ := object["metadata"].(dict)["annotations"].(dict)
	if value, ok := annotations["clustermesh.cilium.io/global"].(string); ok {
		return strings.ToLower(value) == "true"
	}
	return w.globalDefault
}

// claimant is an endpoint that claims an address.
type claimant struct {
	namespace, pod string
	identity       float64
}

// claims are the addresses of an object, whether or not its namespace is global.
func (w *mesh) claims(path string, object dict) map[string][]claimant {
	all := map[string][]claimant{}
	add := func(namespace, pod string, id any, networking any) {
		n, _ := networking.(dict)
		pairs, _ := n["addressing"].([]any)
		identity, _ := id.(float64)
		for _, pair := range pairs {
			for _, family := range []string{"ipv4", "ipv6"} {
				text, _ := pair.(dict)[family].(string)
				if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" {
					key := address.Unmap().String()
					all[key] = append(all[key], claimant{namespace, pod, identity})
				}
			}
		}
	}
	switch {
	case strings.Contains(path, "/ciliumendpoints/"):
		status, _ := object["status"].(dict)
		identity, _ := status["identity"].(dict)
		add(namespaceOf(path), path[strings.LastIndex(path, "/")+1:], identity["id"], status["networking"])
	case strings.Contains(path, "/ciliumendpointslices/"):
		namespace, _ := object["namespace"].(string)
		endpoints, _ := object["endpoints"].([]any)
		for _, e := range endpoints {
			pod, _ := e.(dict)["name"].(string)
			add(namespace, pod, e.(dict)["id"], e.(dict)["networking"])
		}
	}
	return all
}

// contested are the addresses with several claims.
func (w *mesh) contested() map[string][]claimant {
	all, objects := map[string][]claimant{}, map[string]int{}
	for _, path := range slices.Sorted(stdmaps.Keys(w.objects)) {
		for address, claims := range w.claims(path, w.objects[path]) {
			if w.global(claims[0].namespace) {
				all[address] = append(all[address], claims...)
				objects[address]++
			}
		}
	}
	stdmaps.DeleteFunc(all, func(address string, _ []claimant) bool { return objects[address] < 2 })
	return all
}

// shuffle notes that the publishers may have the claims of these namespaces in different orders from here on.
func (w *mesh) shuffle(namespaces ...string) {
	for path, object := range w.objects {
		for address, claims := range w.claims(path, object) {
			if slices.Contains(namespaces, claims[0].namespace) {
				w.unordered[address] = true
			}
		}
	}
}

// agreed notes that all publishers have seen every change.
func (w *mesh) agreed() {
	for what, times := range w.seen {
		w.count[what] += times
	}
	clear(w.seen)
	contested := w.contested()
	stdmaps.DeleteFunc(w.unordered, func(address string, _ bool) bool { return contested[address] == nil })
	for address, times := range w.touched {
		if times > 1 && contested[address] != nil {
			w.unordered[address] = true
		}
	}
	clear(w.touched)
}
