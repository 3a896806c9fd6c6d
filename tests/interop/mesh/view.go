package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// view is what a watch of all of Cilium's keys shows of a cluster's own keys and of those that it mirrors.
type view struct {
	end    context.CancelFunc
	own    *objects
	remote *objects

	mu         sync.Mutex
	state      map[string]string // below cilium/state/
	cache      map[string]string // below cilium/cache/
	puts, gone int
	same       []string // keys that were written again with their value
	wronged    []string // keys that were deleted, and should be there
	compacted  int      // times that the watch was compacted
	revision   int64
	events     int
	sum        uint64
	log        map[string][]string // what happened to each key
}

func newView(c *clientv3.Client, own, remote *objects) *view {
	ctx, cancel := context.WithCancel(context.Background())
	v := &view{end: cancel, own: own, remote: remote, state: map[string]string{}, cache: map[string]string{}, log: map[string][]string{}}
	go func() {
		next := int64(1)
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			for r := range c.Watch(ctx, "cilium/", clientv3.WithPrefix(), clientv3.WithRev(next)) {
				v.take(r)
				if r.CompactRevision > 0 {
					next = r.CompactRevision
				} else if n := len(r.Events); n > 0 {
					next = r.Events[n-1].Kv.ModRevision + 1
				}
			}
		}
	}()
	return v
}

func (v *view) take(r clientv3.WatchResponse) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r.CompactRevision > 0 {
		v.compacted++
	}
	for _, e := range r.Events {
		key, value, deleted := string(e.Kv.Key), string(e.Kv.Value), e.Type == clientv3.EventTypeDelete
		if strings.HasPrefix(key, "cilium/state/probe/") {
			// It is written again every second, and mirrored by nobody.
			continue
		}
		sum := fnv.New64a()
		fmt.Fprintf(sum, "%d %d %v %s=%s", v.sum, e.Kv.ModRevision, deleted, key, value)
		v.sum, v.revision = sum.Sum64(), e.Kv.ModRevision
		v.events++
		if strings.HasPrefix(key, "cilium/state/") || strings.HasPrefix(key, "cilium/cache/") {
			what := fmt.Sprintf("%s at revision %d under lease %x: %.300s", time.Now().Format("15:04:05.000"), e.Kv.ModRevision, e.Kv.Lease, value)
			if deleted {
				what = fmt.Sprintf("%s at revision %d: deleted", time.Now().Format("15:04:05.000"), e.Kv.ModRevision)
			}
			v.log[key] = append(v.log[key], what)
		}
		switch {
		case strings.HasPrefix(key, "cilium/state/"):
			v.change(v.state, v.own, key, key, value, deleted)
		case strings.HasPrefix(key, "cilium/cache/") && v.remote != nil && clusterOf(key) == v.remote.name:
			v.change(v.cache, v.remote, key, origins(v.remote.name, key)[0], value, deleted)
		}
	}
}

func (v *view) change(keys map[string]string, of *objects, key, origin, value string, deleted bool) {
	before, there := keys[key]
	switch {
	case deleted:
		delete(keys, key)
		v.gone++
		if of.has(origin) {
			v.wronged = append(v.wronged, key)
		}
		return
	case there && before == value:
		v.same = append(v.same, key)
	default:
		v.puts++
	}
	keys[key] = value
}

// differ compares both kinds of keys with the objects.
func (v *view) differ() (wrong []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wrong = v.own.differ(v.state, func(key string) string { return key })
	return append(wrong, v.remote.differ(v.cache, func(key string) string {
		at, _ := here(v.remote.name, key)
		return at
	})...)
}

// knows says whether a key of this cluster, or one that it mirrors, was ever there.
func (v *view) knows(key string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	mine := strings.HasPrefix(key, "cilium/state/") || clusterOf(key) == v.remote.name
	return mine && len(v.log[key]) > 0
}

// tell says what happened to a key, at the etcd and in the manifests.
func (v *view) tell(key string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	of, origin := v.own, key
	if strings.HasPrefix(key, "cilium/cache/") {
		of, origin = v.remote, origins(v.remote.name, key)[0]
	}
	of.mu.Lock()
	defer of.mu.Unlock()
	const last = 12
	manifests, events := of.log[origin], v.log[key]
	manifests, events = manifests[max(0, len(manifests)-last):], events[max(0, len(events)-last):]
	return fmt.Sprintf("%s\n  manifests: %s\n  etcd: %s", key, strings.Join(manifests, "; "), strings.Join(events, "\n    "))
}

// trail is what identifies everything that was shown up to a revision.
func (v *view) trail() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return fmt.Sprintf("revision %d, %d events, sum %x", v.revision, v.events, v.sum)
}
