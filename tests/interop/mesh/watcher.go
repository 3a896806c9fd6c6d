package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watcher has the contents of the local store according to a watch.
type watcher struct {
	end     context.CancelFunc
	sources map[string]*source
	latency *latency

	mu    sync.Mutex
	keys  map[string]string // below cilium/cache/
	marks map[string]string // canaries and configurations
	seen  seen
}

// seen counts events since the last call of begin.
type seen struct {
	puts, same, gone int // below cilium/cache/
	marks            int // canaries and configurations
	wronged          int // deletions of keys that the source has
	strange          int // keys of clusters that are not mirrored
	lost             int // times that the watch was compacted
	examples         []string
	last             time.Time // of a canary
}

func (s *seen) note(format string, args ...any) {
	if len(s.examples) < 5 {
		s.examples = append(s.examples, fmt.Sprintf(format, args...))
	}
}

func follow(c *clientv3.Client, sources []*source) *watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{end: cancel, sources: map[string]*source{}, latency: &latency{pending: map[string]*trip{}}, keys: map[string]string{}, marks: map[string]string{}}
	for _, s := range sources {
		w.sources[s.name] = s
	}
	go func() {
		next := int64(1)
		for ctx.Err() == nil {
			for r := range c.Watch(ctx, "cilium/", clientv3.WithPrefix(), clientv3.WithRev(next)) {
				w.apply(r.Events)
				if r.Header.Revision > 0 && len(r.Events) > 0 {
					next = r.Events[len(r.Events)-1].Kv.ModRevision + 1
				}
				if r.CompactRevision > 0 {
					next = r.CompactRevision
					w.mu.Lock()
					w.seen.lost++
					w.mu.Unlock()
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return w
}

func (w *watcher) apply(events []*clientv3.Event) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		key, deleted := string(e.Kv.Key), e.Type == mvccpb.DELETE
		switch {
		case strings.HasPrefix(key, "cilium/cache/"):
			w.cached(key, e, deleted, now)
		case strings.HasPrefix(key, "cilium/synced/"), strings.HasPrefix(key, "cilium/cluster-config/"):
			if clusterOf(key) == "local" {
				continue
			}
			w.seen.marks++
			s := w.sources[clusterOf(key)]
			if s == nil {
				w.seen.strange++
				w.seen.note("strange: %s", key)
			}
			if deleted {
				if delete(w.marks, key); s == nil || s.good {
					w.seen.wronged++
					w.seen.note("gone: %s", key)
				}
				continue
			}
			if w.seen.last = now; strings.HasPrefix(key, "cilium/synced/") {
				w.marks[key] = string(e.Kv.Value)
			}
		}
	}
}

func (w *watcher) cached(key string, e *clientv3.Event, deleted bool, now time.Time) {
	s := w.sources[clusterOf(key)]
	if s == nil {
		w.seen.strange++
		w.seen.note("strange: %s", key)
		return
	}
	before, there := w.keys[key]
	if !s.good {
		// The key is kept, but not counted.
		if w.keys[key] = string(e.Kv.Value); deleted {
			delete(w.keys, key)
		}
		return
	}
	if deleted {
		w.seen.gone++
		delete(w.keys, key)
		if s.has(key) {
			w.seen.wronged++
			w.seen.note("deleted here, not there: %s", key)
		}
		return
	}
	value := string(e.Kv.Value)
	// Of equal values, one is kept.
	value = s.known(key, value)
	w.keys[key] = value
	if there && before == value {
		w.seen.same++
		w.seen.note("written again: %s", key)
	} else {
		w.seen.puts++
	}
	w.latency.arrived(value, now)
}

// begin resets the counts.
func (w *watcher) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = seen{}
}

func (w *watcher) now() seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen
	s.examples = slices.Clone(s.examples)
	return s
}

// progress counts canaries of sources that are good, and keys below cilium/cache/.
func (w *watcher) progress() (canaries, keys int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.sources {
		for _, word := range words {
			if _, there := w.marks[canaryHere(name, word)]; there && s.good {
				canaries++
			}
		}
	}
	return canaries, len(w.keys)
}

// differs compares the watched contents with the sources.
func (w *watcher) differs(limit int) (wrong []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return differences(w.keys, w.sources, limit)
}

// differences lists keys that the mirror lacks, has with another value, or should not have.
func differences(keys map[string]string, sources map[string]*source, limit int) (wrong []string) {
	expected := 0
	for name, s := range sources {
		if !s.good {
			continue
		}
		s.mu.Lock()
		for key, value := range s.want {
			at, _ := here(name, key)
			switch got, there := keys[at]; {
			case !there:
				wrong = append(wrong, "missing "+at)
			case got != value:
				wrong = append(wrong, "wrong "+at)
			}
			if expected++; limit > 0 && len(wrong) >= limit {
				s.mu.Unlock()
				return wrong
			}
		}
		s.mu.Unlock()
	}
	for key := range keys {
		if s := sources[clusterOf(key)]; s == nil || s.good && !s.has(key) {
			wrong = append(wrong, "should not be: "+key)
		}
	}
	return wrong
}

// === latency ===

// latency measures the time of values from a source to the watch. Every value is unique.
type latency struct {
	mu      sync.Mutex
	pending map[string]*trip
	took    []time.Duration
}

type trip struct{ sent, seen time.Time }

// begin forgets all measurements.
func (l *latency) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending, l.took = map[string]*trip{}, nil
}

func (l *latency) expect(value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending[value] = &trip{}
}

func (l *latency) sent(value string, at time.Time) { l.note(value, at, time.Time{}) }

func (l *latency) arrived(value string, at time.Time) { l.note(value, time.Time{}, at) }

// note may be called for the arrival before the put is confirmed: the source answers writers and watchers in any order.
func (l *latency) note(value string, sent, seen time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, known := l.pending[value]
	if !known {
		return
	}
	if !sent.IsZero() {
		t.sent = sent
	}
	if !seen.IsZero() {
		t.seen = seen
	}
	if !t.sent.IsZero() && !t.seen.IsZero() {
		l.took = append(l.took, max(0, t.seen.Sub(t.sent)))
		delete(l.pending, value)
	}
}

// result returns the sorted latencies, and the number of values that did not arrive.
func (l *latency) result() (took []time.Duration, left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	took = slices.Sorted(slices.Values(l.took))
	return took, len(l.pending)
}
