package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// objects are the manifests of a cluster, a file each, and the keys that must be published for them.
type objects struct {
	name string
	id   int
	dir  string
	mu   sync.Mutex
	// The mark that the value of each key must contain. It is changed before the file is: a key that is not here may be absent,
	// and must be so in the end.
	want map[string]string
	// Addresses that were added, which are removed once and never come again.
	added []int
	made  int
	log   map[string][]string // the changes of each key
}

// newObjects writes the first manifests.
func newObjects(dir, name string, id int) (*objects, error) {
	o := &objects{name: name, id: id, dir: dir, want: map[string]string{}, log: map[string][]string{}, made: 150}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	err := o.file("namespace", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n")
	for n := range 20 {
		err = errors.Join(err, o.node(n))
	}
	for n := range 40 {
		err = errors.Join(err, o.identity(n))
	}
	for n := range o.made {
		err = errors.Join(err, o.endpoint(n))
	}
	return o, err
}

// file puts a manifest into place at once.
func (o *objects) file(name, text string) error {
	temporary := o.dir + "." + name
	return errors.Join(os.WriteFile(temporary, []byte(text), 0o600), os.Rename(temporary, o.path(name)))
}

func (o *objects) path(name string) string { return filepath.Join(o.dir, name+".yaml") }

// mark expects a new mark in the value of a key.
func (o *objects) mark(key string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.want[key] = fmt.Sprintf("mark-%d-", version.Add(1))
	o.log[key] = append(o.log[key], time.Now().Format("15:04:05.000 ")+o.want[key])
	return o.want[key]
}

func (o *objects) node(n int) error {
	name := fmt.Sprintf("%s-worker-%d", o.name, n)
	mark := o.mark(nodeKey(o.name, n))
	return o.file(name, fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata:\n  name: %s\n  labels:\n    version: %sx\n"+
		"spec:\n  addresses:\n  - type: InternalIP\n    ip: 172.%d.0.%d\n", name, mark, 16+o.id, n+1))
}

func (o *objects) identity(n int) error {
	mark := o.mark(identityKey(o.id, n))
	return o.file(fmt.Sprint("identity-", n), fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumIdentity\nmetadata:\n  name: \"%d\"\n"+
		"security-labels:\n  k8s:app: app-%d\n  k8s:version: %sx\n  k8s:io.cilium.k8s.policy.cluster: %s\n  k8s:io.kubernetes.pod.namespace: default\n",
		o.id<<16+n+256, n, mark, o.name))
}

func (o *objects) endpoint(n int) error {
	mark := o.mark(ipKey(o.id, n))
	return o.file(fmt.Sprint("endpoint-", n), fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata:\n  name: pod-%d\n  namespace: default\n"+
		"status:\n  identity:\n    id: %d\n  networking:\n    addressing:\n    - ipv4: 10.%d.%d.%d\n    node: 172.%d.0.1\n  service-account: %sx\n",
		n, o.id<<16+n%40+256, o.id%250, n/250, n%250+1, 16+o.id, mark))
}

// change changes, adds or removes an object.
func (o *objects) change(rng *rand.Rand) error {
	switch k := rng.IntN(20); {
	case k < 3:
		o.made++
		o.added = append(o.added, o.made)
		return o.endpoint(o.made)
	case k < 6 && len(o.added) > 10:
		at := rng.IntN(len(o.added))
		n := o.added[at]
		o.added = slices.Delete(o.added, at, at+1)
		o.mu.Lock()
		delete(o.want, ipKey(o.id, n))
		o.log[ipKey(o.id, n)] = append(o.log[ipKey(o.id, n)], time.Now().Format("15:04:05.000 ")+"removed")
		o.mu.Unlock()
		return os.Remove(o.path(fmt.Sprint("endpoint-", n)))
	case k < 8:
		return o.node(rng.IntN(20))
	case k < 10:
		return o.identity(rng.IntN(40))
	default:
		return o.endpoint(rng.IntN(150))
	}
}

// churn makes changes until it is stopped, and returns how many.
func (o *objects) churn(perSecond int, stop *atomic.Bool) (n int) {
	rng := rand.New(rand.NewPCG(uint64(o.id), uint64(time.Now().UnixNano())))
	for ; !stop.Load(); n++ {
		if err := o.change(rng); err != nil {
			finding("a manifest of %s: %v", o.name, err)
			return n
		}
		time.Sleep(time.Duration(float64(time.Second) / float64(perSecond) * (0.5 + rng.Float64())))
	}
	return n
}

// has says whether a key should be published.
func (o *objects) has(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, there := o.want[key]
	return there
}

// differ compares keys with the objects, under the names that `named` gives them.
func (o *objects) differ(keys map[string]string, named func(key string) string) (wrong []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	expected := map[string]bool{}
	for key, mark := range o.want {
		at := named(key)
		expected[at] = true
		switch value, there := keys[at]; {
		case !there:
			wrong = append(wrong, "missing "+at)
		case !strings.Contains(value, mark):
			wrong = append(wrong, fmt.Sprintf("%s is %s, without %s", at, value, mark))
		}
	}
	for key := range keys {
		if !expected[key] {
			wrong = append(wrong, "should not be: "+key)
		}
	}
	return wrong
}
