package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// mirror has the contents of an etcd according to a watch, with times.
type mirror struct {
	world *world
	side  int

	// Locked after the world, where both are locked.
	mu      sync.Mutex
	keys    map[string]string
	seen    seen
	pending map[string]pending
	delays  []delay
	replace int // pending changes that were replaced by a later change of the key
}

// seen counts events of keys under cilium/state/.
type seen struct {
	puts, same  int
	gone        []string
	others      int // of keys elsewhere: markers, the heartbeat, the cluster's configuration
	scopes      map[string]int
	first, last time.Time
}

// delay is the time of a change from the API server to etcd's watchers.
type delay struct {
	scope string
	took  time.Duration
}

type pending struct {
	want   *want
	change *change
}

// follow mirrors everything below cilium/ until the context ends.
func follow(ctx context.Context, c *clientv3.Client, w *world, side int) *mirror {
	m := &mirror{world: w, side: side, keys: map[string]string{}, pending: map[string]pending{}}
	m.seen.scopes = map[string]int{}
	go func() {
		next := int64(1)
		for ctx.Err() == nil {
			watch := c.Watch(ctx, "cilium/", clientv3.WithPrefix(), clientv3.WithRev(next))
			for r := range watch {
				for _, e := range r.Events {
					m.apply(e)
				}
				if r.Header.Revision > 0 {
					next = r.Header.Revision + 1
				}
				if r.Err() != nil {
					progress("watching etcd: %v", r.Err())
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return m
}

func (m *mirror) apply(e *clientv3.Event) {
	key, now := string(e.Kv.Key), time.Now()
	deleted := e.Type == mvccpb.DELETE
	m.mu.Lock()
	defer m.mu.Unlock()
	before, there := m.keys[key]
	if deleted {
		delete(m.keys, key)
	} else {
		m.keys[key] = string(e.Kv.Value)
	}
	scope := scopeOf(key)
	if scope == "other" {
		m.seen.others++
		return
	}
	m.seen.scopes[scope]++
	m.seen.last = now
	if m.seen.first.IsZero() {
		m.seen.first = now
	}
	switch {
	case deleted:
		m.seen.gone = append(m.seen.gone, key)
	case there && before == string(e.Kv.Value):
		m.seen.same++
	default:
		m.seen.puts++
	}
	if p, known := m.pending[key]; known && p.fits(e) {
		if sent := p.change.sent[m.side].Load(); sent != 0 {
			m.delays = append(m.delays, delay{scope, now.Sub(time.Unix(0, sent))})
		}
		delete(m.pending, key)
	}
}

func (p pending) fits(e *clientv3.Event) bool {
	if p.want == nil || e.Type == mvccpb.DELETE {
		return p.want == nil && e.Type == mvccpb.DELETE
	}
	return p.want.is(string(e.Kv.Value))
}

// expect registers a change before a publisher can see it.
func (m *mirror) expect(key string, w *want, c *change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.pending[key]; known {
		m.replace++
	}
	m.pending[key] = pending{w, c}
}

// collapse forgets changes that were reverted before a publisher wrote them, because no event will come.
func (m *mirror) collapse() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, p := range m.pending {
		value, there := m.keys[key]
		if p.want == nil && !there || p.want != nil && there && p.want.is(value) {
			delete(m.pending, key)
			m.replace++
		}
	}
}

// begin resets the counts.
func (m *mirror) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = seen{scopes: map[string]int{}}
	m.delays, m.replace = nil, 0
	m.pending = map[string]pending{}
}

func (m *mirror) now() (seen, []delay, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.seen
	s.scopes = maps.Clone(s.scopes)
	return s, slices.Clone(m.delays), len(m.pending)
}

// wronged counts deleted keys that should exist: no address or name is used twice in this world.
func (m *mirror) wronged() (n int) {
	s, _, _ := m.now()
	wanted := m.world.wanted()
	for _, key := range s.gone {
		if _, there := wanted[key]; there {
			n++
		}
	}
	return n
}

// left is the number of keys that have yet to change.
func (m *mirror) left() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pending)
}

// difference describes how an etcd differs from its expected contents.
type difference struct {
	missing, stale, wrong int
	example               string
}

func (d difference) none() bool { return d.missing+d.stale+d.wrong == 0 }

func (m *mirror) compare() difference {
	wanted := m.world.wanted()
	m.mu.Lock()
	defer m.mu.Unlock()
	return compare(m.keys, wanted)
}

func compare(keys map[string]string, wanted map[string]want) (d difference) {
	for key, w := range wanted {
		value, there := keys[key]
		switch {
		case !there:
			d.missing++
			d.note("missing " + key)
		case w.is(value):
		default:
			d.wrong++
			d.note(fmt.Sprintf("wrong %s: %q instead of %q", key, value, w.value))
		}
	}
	for key := range keys {
		if _, there := wanted[key]; !there && scopeOf(key) != "other" {
			d.stale++
			d.note("should not be: " + key)
		}
	}
	return d
}

func (d *difference) note(text string) {
	if d.example == "" {
		d.example = text
	}
}

// settled waits until etcd has its expected contents, and returns how long that took.
func (m *mirror) settled(limit time.Duration) (time.Duration, difference) {
	began := time.Now()
	for {
		d := m.compare()
		took := time.Since(began)
		if d.none() || took > limit {
			return took, d
		}
		time.Sleep(250 * time.Millisecond)
	}
}
