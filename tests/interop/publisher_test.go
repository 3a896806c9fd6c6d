package interop

import (
	"flag"
	"fmt"
	stdmaps "maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The publisher walk: Cilium's publisher and Isthmus follow the same Kubernetes API, each into a store of its own, while
// objects of all kinds are created, changed and deleted at random, and publishers are killed. In intervals the walk waits
// until all publishers have caught up, and the stores must be equal. Isthmus runs twice: as a publisher alone, and in one
// process with its store.
var (
	publisherSteps = flag.Int("publisher.steps", 200, "steps per walk; -seeds is the number of walks")
	publisherRest  = flag.Int("publisher.rest", 25, "steps between comparisons")
	publisherCalm  = flag.Duration("publisher.calm", 2*time.Second, "how long a difference may last before it counts")
	publisherKnown = flag.String("publisher.known", "", "regular expression of differences to ignore")
)

const maxDifferences = 20

func TestPublisher(t *testing.T) {
	needsCilium(t)
	start := *first
	if start == 0 {
		start = uint64(time.Now().UnixNano()) % 1_000_000
	}
	for seed := start; seed < start+uint64(*seeds); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			w := newMesh(t, seed)
			began := time.Now()
			for i := 1; i <= *publisherSteps; i++ {
				w.step()
				if i%*publisherRest == 0 || i == *publisherSteps {
					w.compare(i, i == *publisherSteps)
				} else if w.chance(30) {
					w.order()
				}
			}
			t.Logf("%d steps in %v", *publisherSteps, time.Since(began).Round(time.Millisecond))
			for _, what := range slices.Sorted(stdmaps.Keys(w.count)) {
				t.Logf("  %5d %s", w.count[what], what)
			}
		})
	}
}

func needsCilium(t testing.TB) {
	t.Helper()
	if os.Getenv("CILIUM_APISERVER") == "" {
		t.Skip("CILIUM_APISERVER is not set: run `make interop-publisher`")
	}
}

func newMesh(t *testing.T, seed uint64) *mesh {
	t.Helper()
	w := bareMesh(t, seed, seed%2 == 1)
	var flags []string
	if w.slices {
		flags = append(flags, "--enable-cilium-endpoint-slice")
	}
	if mode := []string{"", "prefer-endpointslice", "", "only-endpointslice", "prefer-legacy"}[seed%5]; mode != "" {
		flags = append(flags, "--clustermesh-service-v2="+mode)
	}
	if seed%3 == 2 {
		w.globalDefault = false
		flags = append(flags, "--clustermesh-default-global-namespace=false")
	}
	t.Logf("seed %d: %v", seed, flags)
	w.api.defineCilium()
	w.api.define(manifest(t, mcsModule, exportCRD))
	w.begin(flags)
	return w
}

// bareMesh is an API without publishers.
func bareMesh(t *testing.T, seed uint64, slices bool) *mesh {
	t.Helper()
	w := &mesh{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), api: startAPIServer(t, ours(t).address), slices: slices, globalDefault: true,
		namespaces: []string{"default", "n1", "n2", "n3"}, kinds: kindsOf(slices), objects: map[string]dict{},
		seen: map[string]int{}, dead: map[*publisher]int{}, touched: map[string]int{}, unordered: map[string]bool{},
		former: map[string]string{}, told: map[string]bool{}, count: map[string]int{},
	}
	path := namespacePath + "/default"
	w.objects[path] = w.api.expect(200, "GET", path, nil)
	return w
}

// begin starts all publishers.
func (w *mesh) begin(flags []string) {
	w.t.Helper()
	config := w.api.kubeconfig()
	w.cilium = cilium(w.t, config, theirs(w.t).address, flags)
	w.spare = cilium(w.t, config, theirs(w.t).address, flags)
	w.ours = []*publisher{
		oursAlone(w.t, config, ours(w.t).address, flags),
		oursWithStore(w.t, config, flags),
	}
	w.request("Namespace", "POST", namespacePath, dict{
		"metadata": dict{"name": "fence", "annotations": dict{"clustermesh.cilium.io/global": "true"}},
	})
	for _, name := range w.namespaces[1:] {
		w.request("Namespace", "POST", namespacePath, w.namespaceObject(name))
	}
	w.post()
	for _, p := range append([]*publisher{w.cilium}, w.ours...) {
		p.up()
	}
	w.passed(append([]*publisher{w.cilium}, w.ours...)...)
}

// === waiting until all have caught up ===

// fences are one object of each kind whose keys show how far a publisher has come.
func (w *mesh) fences() []dict {
	said := fmt.Sprintf("fence-%d-", w.fence)
	labels := dict{"fence": said + "x", "kubernetes.io/service-name": "fence"}
	status := dict{
		"networking":      dict{"addressing": []any{dict{"ipv4": "192.0.2.254"}}, "node": "192.0.2.1"},
		"service-account": said,
	}
	core := stdmaps.Clone(status)
	core["name"] = "fence"
	pods := dict{"status": status}
	if w.slices {
		pods = dict{"namespace": "fence", "endpoints": []any{core}}
	}
	return []dict{
		pods,
		{"spec": dict{}},
		{"security-labels": dict{podNamespace: "fence", "k8s:fence": said}},
		{"spec": dict{"ports": []any{dict{"port": 1}}}, "metadata": dict{"annotations": dict{"service.cilium.io/global": "true"}}},
		{"addressType": "IPv4", "endpoints": []any{}},
		{"spec": dict{"exportedLabels": labels}},
	}
}

// post writes a new version of all fences.
func (w *mesh) post() {
	w.fence++
	for i := range w.kinds {
		w.postOne(i)
	}
}

func (w *mesh) postOne(i int) {
	w.t.Helper()
	k, object := w.kinds[i], w.fences()[i]
	name := "fence"
	if k.plural == "ciliumidentities" {
		name = "999999"
	}
	if object["metadata"] == nil {
		object["metadata"] = dict{}
	}
	metadata := object["metadata"].(dict)
	metadata["name"] = name
	metadata["labels"] = dict{"fence": fmt.Sprintf("fence-%d-x", w.fence), "kubernetes.io/service-name": "fence"}
	object["apiVersion"], object["kind"] = strings.TrimPrefix(strings.TrimPrefix(k.group, "/apis/"), "/api/"), k.name
	path := k.path("fence") + "/" + name
	old := w.objects[path]
	if old == nil {
		w.objects[path] = w.api.expect(201, "POST", k.path("fence"), object)
		return
	}
	metadata["resourceVersion"] = meta(old, "resourceVersion")
	if spec, ok := old["spec"].(dict); ok && k.name == "Service" {
		object["spec"] = spec
	}
	w.objects[path] = w.api.expect(200, "PUT", path, object)
}

// passed waits until the publishers have published the fences.
func (w *mesh) passed(publishers ...*publisher) {
	w.t.Helper()
	said := fmt.Sprintf("fence-%d-", w.fence)
	for _, p := range publishers {
		missing := ""
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			keys := p.keys()
			missing = ""
			for _, key := range w.fenceKeys(keys) {
				value := keys[key]
				if strings.HasPrefix(key, stateSlices) && value != "" {
					value = decodeSlice(value)
				}
				if !strings.Contains(value, said) {
					missing = key
				}
			}
			if missing == "" && keys != nil {
				break
			}
			if time.Now().After(deadline) {
				w.t.Fatalf("%s has not come to %s%s: %q of %d keys", p.Name, said, missing, keys[missing], len(keys))
			}
		}
	}
}

// fenceKeys are the published keys of the fences.
func (w *mesh) fenceKeys(keys map[string]string) []string {
	all := []string{stateIP + "192.0.2.254", "cilium/state/nodes/v1/c3/fence", stateIdentities + "999999", stateSlices + "fence/fence"}
	config := keys["cilium/cluster-config/c3"]
	if !strings.Contains(config, "endpointslices-only") {
		all = append(all, stateServices+"fence/fence")
	}
	if !strings.Contains(config, `"serviceExportsEnabled":false`) {
		all = append(all, stateExports+"fence/fence")
	}
	return all
}

// order waits until all publishers have seen the claims of addresses so far, so that all agree which claim is older.
func (w *mesh) order() {
	w.t.Helper()
	if len(w.dead) > 0 {
		return
	}
	w.fence++
	w.postOne(0)
	said := fmt.Sprintf("fence-%d-", w.fence)
	for _, p := range append([]*publisher{w.cilium}, w.ours...) {
		eventually(w.t, p.Name+" has come to "+said, func() bool {
			return strings.Contains(p.keys()[stateIP+"192.0.2.254"], said)
		})
	}
	w.agreed()
}

// compare waits until all publishers have caught up, and compares their stores.
func (w *mesh) compare(step int, anew bool) {
	w.t.Helper()
	for p := range stdmaps.Clone(w.dead) {
		w.revive(p)
	}
	w.post()
	w.passed(append([]*publisher{w.cilium}, w.ours...)...)
	w.count["comparisons"]++
	for began := time.Now(); !anew; time.Sleep(20 * time.Millisecond) {
		clear(w.seen)
		lasting, theirs := *publisherCalm, w.cilium.keys()
		var found []deviation
		for _, p := range w.ours {
			found = append(found, w.differences(p.keys(), theirs, pair{})...)
		}
		if len(found) == 0 {
			w.agreed()
			return
		}
		// Waiting does not help against stale keys of the original: they stay stale.
		if !slices.ContainsFunc(found, func(d deviation) bool { return w.stale(d.key) == "" }) {
			lasting /= 10
		}
		if time.Since(began) > lasting {
			break
		}
	}
	w.compareAnew(step)
	w.agreed()
}

// compareAnew compares with a new publisher of the original in an empty store, where no key is stale. The new publisher
// replaces the old one from here on. Every stale key of the old one must have a known reason.
func (w *mesh) compareAnew(step int) {
	w.t.Helper()
	w.count["comparisons with a new one"]++
	clear(w.seen)
	w.spare.wipe()
	w.spare.up()
	w.passed(w.spare)
	var theirs map[string]string
	eventually(w.t, "the new publisher is at rest", func() bool {
		before := w.spare.keys()
		time.Sleep(300 * time.Millisecond)
		theirs = w.spare.keys()
		return isComplete(theirs) && stdmaps.Equal(before, theirs)
	})
	for _, d := range w.differences(w.cilium.keys(), theirs, pair{anew: true, originals: true}) {
		if why := w.stale(d.key); why != "" {
			w.count["stale key of the original: "+why]++
		} else {
			w.tell(step, "an older original", d)
		}
	}
	who := map[deviation][]string{}
	for _, p := range w.ours {
		var found []deviation
		for began := time.Now(); time.Since(began) < *publisherCalm; time.Sleep(20 * time.Millisecond) {
			clear(w.seen)
			if found = w.differences(p.keys(), theirs, pair{anew: true}); len(found) == 0 {
				break
			}
		}
		for _, d := range found {
			who[d] = append(who[d], p.Name)
		}
	}
	for d, names := range who {
		w.tell(step, strings.Join(names, " and "), d)
	}
	w.cilium.down(syscall.SIGKILL)
	w.cilium, w.spare = w.spare, w.cilium
	clear(w.former)
	w.shuffle(w.namespaces...)
}

// isComplete says whether a publisher that started with an empty store has published all objects.
func isComplete(keys map[string]string) bool {
	for _, scope := range []string{"nodes", "identities", "ip", "services", "endpointslices", "serviceexports"} {
		optional := scope == "services" && strings.Contains(keys["cilium/cluster-config/c3"], "endpointslices-only")
		if keys[synced+scope+"/v1"] == "" && !optional {
			return false
		}
	}
	return true
}

// stale is the reason for which the original's store may have a key that the original no longer publishes.
func (w *mesh) stale(key string) string {
	if why := w.former["restart"]; why != "" {
		return why
	}
	if why := w.former[key]; why != "" {
		return why
	}
	for _, scope := range []string{stateServices, stateExports} {
		namespace, _, _ := strings.Cut(strings.TrimPrefix(key, scope), "/")
		if strings.HasPrefix(key, scope) && !w.exists(namespace) {
			return "the namespace is gone, and nobody can tell whether that was global"
		}
	}
	return ""
}

// tell reports each difference once.
func (w *mesh) tell(step int, who string, d deviation) {
	w.t.Helper()
	text := d.String()
	if w.told[text] {
		return
	}
	w.told[text] = true
	w.t.Errorf("step %d, %s: %s\n%s", step, who, text, w.evidence(d))
	if len(w.told) > maxDifferences {
		w.t.FailNow()
	}
}

// evidence lists the objects of the API that a key may come from.
func (w *mesh) evidence(d deviation) string {
	parts := strings.Split(d.key, "/")
	names := map[string]bool{parts[len(parts)-1]: true}
	about := func(path string) bool {
		namespace := namespaceOf(path)
		if path == namespacePath+"/"+namespace || namespace != "" && len(parts) >= 7 && namespace != parts[5] {
			return false
		}
		object := w.objects[path]
		claims := w.claims(path, object)
		return names[path[strings.LastIndex(path, "/")+1:]] || names[labelOf(object, "kubernetes.io/service-name")] ||
			slices.ContainsFunc(slices.Collect(stdmaps.Keys(claims)), func(address string) bool { return names[address] })
	}
	all := slices.Sorted(stdmaps.Keys(w.objects))
	if strings.HasPrefix(d.key, stateSlices) {
		for _, path := range all {
			if about(path) {
				names[labelOf(w.objects[path], "kubernetes.io/service-name")] = true
			}
		}
	}
	var text strings.Builder
	for _, path := range all {
		if about(path) {
			fmt.Fprintf(&text, "   %s %v\n", path, plainObject(w.objects[path]))
		}
	}
	for _, namespace := range w.namespaces {
		if strings.Contains(d.String(), namespace) {
			fmt.Fprintf(&text, "   namespace %s: there %v, global %v\n", namespace, w.exists(namespace), w.global(namespace))
		}
	}
	return text.String()
}

// plainObject is an object without the fields that the API server adds.
func plainObject(object dict) dict {
	metadata := stdmaps.Clone(object["metadata"].(dict))
	for _, field := range []string{"managedFields", "uid", "resourceVersion", "generation", "name", "namespace"} {
		delete(metadata, field)
	}
	object = stdmaps.Clone(object)
	object["metadata"] = metadata
	delete(object, "apiVersion")
	delete(object, "kind")
	return object
}
