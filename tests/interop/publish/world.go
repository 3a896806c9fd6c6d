package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	nodeCount      = 1000
	nsCount        = 100
	podsOfIdentity = 10
	podsOfService  = 50
	podsOfSlice    = 100
	firstIdentity  = clusterID<<16 + 256
)

// podsFor is the number of pods that leads to a number of objects.
func podsFor(total int) int {
	const perService = podsOfService + podsOfService/podsOfIdentity + 2
	return max(0, total-nodeCount-nsCount) * podsOfService / perService
}

// world is the content of a cluster, from which both its objects and the expected keys are derived.
type world struct {
	mu       sync.Mutex
	store    *store
	ces      bool
	rng      *rand.Rand
	nodes    []*node
	services []*service
	pods     []*pod // alive
	slices   map[int][]*ciliumSlice
	in       map[*pod]*ciliumSlice
	nextPod  int
	nextID   int
	nextCES  int
	want     map[string]want
	// Called with the expected change of a key before the API server shows its cause. No value means a deletion.
	expect []func(key string, w *want, c *change)
}

// change is one change of an object.
type change struct {
	made time.Time
	sent [2]atomic.Int64 // when a side's watch got it, in ns
}

type pod struct{ index, ns, node, identity int }

func nsName(i int) string      { return fmt.Sprintf("team-%02d", i) }
func isGlobal(ns int) bool     { return ns%20 != 17 }
func zone(node int) string     { return fmt.Sprintf("eu-west-1%c", 'a'+node%3) }
func (p *pod) app() string     { return fmt.Sprintf("app-%05d", (p.identity-firstIdentity)%100000) }
func (p *pod) account() string { return fmt.Sprintf("account-%02d", p.ns%7) }
func (p *pod) host() string    { return (&node{index: p.node}).ip() }

func (p *pod) name() string {
	return fmt.Sprintf("app-%05d-7f9c5d6b8c-%05x", p.index/podsOfIdentity, p.index)
}

func (p *pod) ip() string {
	// Three of a node's addresses are its own.
	return fmt.Sprintf("10.%d.%d.%d", p.node/256, p.node%256, 3+p.index/nodeCount)
}

func identityLabels(id, ns int) map[string]string {
	return map[string]string{
		"k8s:app.kubernetes.io/name":                                     fmt.Sprintf("app-%05d", (id-firstIdentity)%100000),
		"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": nsName(ns),
		"k8s:io.cilium.k8s.policy.cluster":                               cluster,
		"k8s:io.cilium.k8s.policy.serviceaccount":                        (&pod{ns: ns}).account(),
		"k8s:io.kubernetes.pod.namespace":                                nsName(ns),
	}
}

type node struct{ index, touched int }

func (n *node) name() string       { return fmt.Sprintf("ip-10-0-%d-%d.internal", n.index/256, n.index%256) }
func (n *node) ip() string         { return fmt.Sprintf("172.16.%d.%d", n.index/250, n.index%250+1) }
func (n *node) inner(i int) string { return fmt.Sprintf("10.%d.%d.%d", n.index/256, n.index%256, i) }

func (n *node) labels() map[string]string {
	return map[string]string{
		"beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/hostname": n.name(),
		"topology.kubernetes.io/region": "eu-west-1", "topology.kubernetes.io/zone": zone(n.index),
		"node.kubernetes.io/instance-type": "m6i.4xlarge",
	}
}

func (n *node) annotations() map[string]string {
	return map[string]string{
		"network.cilium.io/wg-pub-key": fmt.Sprintf("%043d=", n.index),
		"example.com/touched":          fmt.Sprint(n.touched),
	}
}

type service struct {
	index, ns int
	global    bool
	pods      []*pod
	down      []bool
}

func (s *service) name() string      { return fmt.Sprintf("service-%04d", s.index) }
func (s *service) sliceName() string { return s.name() + "-x7k2p" }
func (s *service) ip() string        { return fmt.Sprintf("10.96.%d.%d", s.index/250, s.index%250+1) }

func (s *service) labels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": s.name(), "app.kubernetes.io/managed-by": "Helm"}
}

func (s *service) selector() map[string]string {
	return map[string]string{"app.kubernetes.io/name": s.name()}
}

func (s *service) sliceLabels() map[string]string {
	return map[string]string{
		"kubernetes.io/service-name": s.name(), "app.kubernetes.io/name": s.name(),
		"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
	}
}

func (s *service) sliceAnnotations() map[string]string {
	return map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": created}
}

type ciliumSlice struct {
	name string
	ns   int
	pods []*pod
}

// newWorld makes a cluster with a number of pods.
func newWorld(pods int, ces bool) *world {
	w := &world{
		store: newStore(), ces: ces, rng: rand.New(rand.NewPCG(1, 2)), nextID: firstIdentity,
		slices: map[int][]*ciliumSlice{}, in: map[*pod]*ciliumSlice{}, want: map[string]want{},
	}
	for i, c := range [][3]string{
		{"ciliumnodes", "CiliumNode", "v2"}, {"ciliumidentities", "CiliumIdentity", "v2"},
		{"ciliumendpoints", "CiliumEndpoint", "v2"}, {"ciliumendpointslices", "CiliumEndpointSlice", "v2alpha1"},
	} {
		w.store.put(crds, c[0]+".cilium.io", nil, func(int64) []byte { return w.crd(c[0], "cilium.io", c[1], c[2], int64(i+1)) })
	}
	for i := range nsCount {
		w.store.put(namespaces, nsName(i), nil, func(v int64) []byte { return w.namespaceObject(i, v) })
	}
	w.store.put(namespaces, "kube-system", nil, func(v int64) []byte {
		meta := w.metadata("", "kube-system", v, "", "", "")
		return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":%s,"spec":{},"status":{"phase":"Active"}}`, meta)
	})
	for i := range nodeCount {
		n := &node{index: i}
		w.nodes = append(w.nodes, n)
		w.putNode(n, nil)
	}
	for range pods {
		if w.nextPod%podsOfIdentity == 0 {
			w.addIdentity(w.nsOf(w.nextPod), nil)
		}
		p := w.newPod(firstIdentity + w.nextPod/podsOfIdentity)
		if at := p.index / podsOfService; at == len(w.services) {
			// Half are global; some of those are in a namespace that is not.
			w.services = append(w.services, &service{index: at, ns: p.ns, global: at%4 < 2})
		}
		of := w.services[len(w.services)-1]
		of.pods, of.down = append(of.pods, p), append(of.down, false)
		w.joinSlice(p)
		if !ces {
			w.putEndpoint(p, nil)
		}
	}
	for _, all := range w.slices {
		for _, s := range all {
			w.putCiliumSlice(s, nil)
		}
	}
	for _, s := range w.services {
		w.store.put(services, nsName(s.ns)+"/"+s.name(), nil, func(v int64) []byte { return w.serviceObject(s, v) })
		w.putSlice(s, nil)
	}
	return w
}

func (w *world) nsOf(pod int) int { return pod / podsOfService % nsCount }

func (w *world) newPod(identity int) *pod {
	p := &pod{index: w.nextPod, ns: w.nsOf(w.nextPod), node: w.nextPod % nodeCount, identity: identity}
	w.nextPod++
	w.pods = append(w.pods, p)
	if isGlobal(p.ns) {
		w.setWant(p.key(), p.want(), nil)
	}
	return p
}

func (w *world) addIdentity(ns int, c *change) {
	id := w.nextID
	w.nextID++
	if isGlobal(ns) {
		w.setWant(identityKey(id), identityWant(id, ns), c)
	}
	w.store.put(identities, fmt.Sprint(id), c, func(v int64) []byte { return w.identity(id, ns, v) })
}

// setWant records the expected value of a key, and the change that leads to it.
func (w *world) setWant(key string, value want, c *change) {
	w.want[key] = value
	if c != nil {
		for _, f := range w.expect {
			f(key, &value, c)
		}
	}
}

func (w *world) dropWant(key string, c *change) {
	if _, there := w.want[key]; !there {
		return
	}
	delete(w.want, key)
	for _, f := range w.expect {
		f(key, nil, c)
	}
}

// wanted returns the contents that should have been published by now.
func (w *world) wanted() map[string]want {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.want)
}

// === objects into the store ===

func (w *world) putNode(n *node, c *change) {
	w.setWant(n.key(), w.nodeWant(n), c)
	w.store.put(nodes, n.name(), c, func(v int64) []byte { return w.nodeObject(n, v) })
}

func (w *world) putSlice(s *service, c *change) {
	if s.global && isGlobal(s.ns) {
		w.setWant(s.key(), w.serviceWant(s), c)
		w.setWant(s.sliceKey(), w.sliceWant(s), c)
	}
	w.store.put(slicesOfKube, nsName(s.ns)+"/"+s.sliceName(), c, func(v int64) []byte { return w.sliceObject(s, v) })
}

func (w *world) putEndpoint(p *pod, c *change) {
	w.store.put(endpoints, nsName(p.ns)+"/"+p.name(), c, func(v int64) []byte { return w.endpoint(p, v) })
}

func (w *world) putCiliumSlice(s *ciliumSlice, c *change) {
	w.store.put(slicesOfCil, s.name, c, func(v int64) []byte { return w.ciliumSlice(s, v) })
}

// joinSlice finds a slice of the pod's namespace with room.
func (w *world) joinSlice(p *pod) {
	if !w.ces {
		return
	}
	all := w.slices[p.ns]
	if len(all) == 0 || len(all[len(all)-1].pods) == podsOfSlice {
		all = append(all, &ciliumSlice{name: fmt.Sprintf("ces-%06x", w.nextCES), ns: p.ns})
		w.nextCES++
		w.slices[p.ns] = all
	}
	s := all[len(all)-1]
	s.pods = append(s.pods, p)
	w.in[p] = s
}
