package main

import (
	"slices"
	"sync"
	"time"
)

// kind is a resource of the API, by the path of its list.
type kind struct {
	path       string
	apiVersion string
	name       string
}

var (
	namespaces   = kind{"/api/v1/namespaces", "v1", "Namespace"}
	services     = kind{"/api/v1/services", "v1", "Service"}
	slicesOfKube = kind{"/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"}
	nodes        = kind{"/apis/cilium.io/v2/ciliumnodes", "cilium.io/v2", "CiliumNode"}
	identities   = kind{"/apis/cilium.io/v2/ciliumidentities", "cilium.io/v2", "CiliumIdentity"}
	endpoints    = kind{"/apis/cilium.io/v2/ciliumendpoints", "cilium.io/v2", "CiliumEndpoint"}
	slicesOfCil  = kind{"/apis/cilium.io/v2alpha1/ciliumendpointslices", "cilium.io/v2alpha1", "CiliumEndpointSlice"}
	crds         = kind{"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "apiextensions.k8s.io/v1", "CustomResourceDefinition"}
	kinds        = []kind{namespaces, services, slicesOfKube, nodes, identities, endpoints, slicesOfCil, crds}
)

// historyEvents is the number of events of a kind that are kept for watches.
const historyEvents = 200_000

// event is one change of an object.
type event struct {
	version int64
	action  string
	json    []byte
	change  *change
}

type stored struct {
	version int64
	json    []byte
}

// collection has all objects of a kind, and the log of their events.
type collection struct {
	kind
	objects map[string]stored
	names   []string // sorted: the order of pages
	log     []event
	lost    int64 // version up to which the log is dropped
	changed chan struct{}
}

// store is the storage of the API server.
type store struct {
	mu          sync.Mutex
	version     int64
	collections map[string]*collection
}

func newStore() *store {
	s := &store{version: 1000, collections: map[string]*collection{}}
	for _, k := range kinds {
		s.collections[k.path] = &collection{kind: k, objects: map[string]stored{}, changed: make(chan struct{})}
	}
	return s
}

// put stores an object, which render makes for its new version.
func (s *store) put(k kind, name string, c *change, render func(version int64) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	of := s.collections[k.path]
	json := render(s.version)
	action := "MODIFIED"
	if _, there := of.objects[name]; !there {
		action = "ADDED"
		at, _ := slices.BinarySearch(of.names, name)
		of.names = slices.Insert(of.names, at, name)
	}
	of.objects[name] = stored{s.version, json}
	of.append(event{s.version, action, json, c})
}

// remove deletes an object. render makes the last state, which a watch shows.
func (s *store) remove(k kind, name string, c *change, render func(version int64) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.collections[k.path]
	if _, there := of.objects[name]; !there {
		return
	}
	s.version++
	delete(of.objects, name)
	at, _ := slices.BinarySearch(of.names, name)
	of.names = slices.Delete(of.names, at, at+1)
	of.append(event{s.version, "DELETED", render(s.version), c})
}

func (of *collection) append(e event) {
	// The initial objects are only listed.
	if e.change == nil {
		of.lost = e.version
		return
	}
	e.change.made = time.Now()
	of.log = append(of.log, e)
	if len(of.log) > 2*historyEvents {
		of.lost = of.log[historyEvents-1].version
		of.log = slices.Delete(of.log, 0, historyEvents)
	}
	close(of.changed)
	of.changed = make(chan struct{})
}

// page returns up to limit objects after a name, and the last name if there are more.
func (s *store) page(path, after string, limit int) (items [][]byte, last string, left int, version int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.collections[path]
	at := 0
	if after != "" {
		at, _ = slices.BinarySearch(of.names, after)
		if at < len(of.names) && of.names[at] == after {
			at++
		}
	}
	names := of.names[at:]
	if limit > 0 && len(names) > limit {
		left = len(names) - limit
		names = names[:limit]
		last = names[limit-1]
	}
	for _, name := range names {
		items = append(items, of.objects[name].json)
	}
	return items, last, left, s.version
}

// since returns the events after a version, and a channel that is closed at the next event. It reports false if the
// version is too old.
func (s *store) since(path string, version int64) (events []event, changed <-chan struct{}, now int64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.collections[path]
	if version < of.lost {
		return nil, nil, s.version, false
	}
	at, _ := slices.BinarySearchFunc(of.log, version+1, func(e event, v int64) int {
		return int(e.version - v)
	})
	return slices.Clone(of.log[at:]), of.changed, s.version, true
}

func (s *store) get(path, name string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, there := s.collections[path].objects[name]
	return o.json, there
}

func (s *store) count() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, of := range s.collections {
		if path != crds.path {
			n += len(of.objects)
		}
	}
	return n
}
