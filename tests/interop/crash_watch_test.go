package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// longWatch is a watch over many restarts, with the events that have not been compared yet.
type longWatch struct {
	prefix string
	prev   bool
	cancel context.CancelFunc

	mu     sync.Mutex
	events []event
	err    error
	// compared is the revision up to which all events were compared.
	compared int64
}

func newLongWatch(c *clientv3.Client, prefix string, prev bool, from int64) *longWatch {
	w := &longWatch{prefix: prefix, prev: prev, compared: from - 1}
	opts := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(from)}
	if prev {
		opts = append(opts, clientv3.WithPrevKV())
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() {
		for r := range c.Watch(ctx, prefix, opts...) {
			w.take(r)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err == nil {
			w.err = fmt.Errorf("the watch ended")
		}
	}()
	return w
}

func (w *longWatch) String() string {
	return fmt.Sprintf("the watch of %q (previous values: %v)", w.prefix, w.prev)
}

func (w *longWatch) take(r clientv3.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := r.Err(); err != nil && w.err == nil {
		w.err = fmt.Errorf("%w (compact revision %d)", err, r.CompactRevision)
	}
	for _, e := range r.Events {
		seen := watchEvent((*mvccpb.Event)(e))
		if e.PrevKv != nil {
			seen.prev, seen.prevValue = e.PrevKv.ModRevision, hashOf(e.PrevKv.Value)
		}
		w.events = append(w.events, seen)
	}
}

// seen is the highest revision that the watch has shown.
func (w *longWatch) seen() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.events); n > 0 {
		return w.events[n-1].rev
	}
	return 0
}

// compare waits until the watch has shown the last event of the history for its prefix, compares the events, and
// returns their number.
func (w *longWatch) compare(h *history) (int, error) {
	want := under(h.of(w.compared+1, h.head()), w.prefix)
	if len(want) == 0 {
		return 0, fmt.Errorf("%v: the history has no event to wait for", w)
	}
	last := want[len(want)-1].rev
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		w.mu.Lock()
		n, err := len(w.events), w.err
		arrived := n > 0 && w.events[n-1].rev >= last
		w.mu.Unlock()
		if err != nil {
			return 0, fmt.Errorf("%v: %w", w, err)
		}
		if arrived {
			break
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%v does not reach revision %d, and is at %d", w, last, w.seen())
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.prev {
		for i, e := range want {
			want[i] = e.plain()
		}
	}
	if d := difference(w.events, want); d != "" {
		return 0, fmt.Errorf("%v: %s", w, d)
	}
	w.events, w.compared = nil, h.head()
	return len(want), nil
}

// watched are the prefixes of the watches. Each round begins with a put of a mark below each of them.
var watched = []string{"", "s/", "w0/", "w1/", "w2/k1", "w3/"}

type watchers struct {
	c    *clientv3.Client
	list []*longWatch
}

// open starts the watches that last until the data is replaced.
func (ws *watchers) open(from int64) {
	ws.close()
	for i, prefix := range watched {
		ws.list = append(ws.list, newLongWatch(ws.c, prefix, i%2 == 0, from))
	}
}

func (ws *watchers) close() {
	for _, w := range ws.list {
		w.cancel()
	}
	ws.list = nil
}

// addFromPast starts a watch from a past revision. From some number on, it replaces an earlier watch of this kind.
func (ws *watchers) addFromPast(rng *rand.Rand, h *history) {
	if h.head() <= h.floor {
		return
	}
	w := newLongWatch(ws.c, watched[rng.IntN(len(watched))], rng.IntN(2) == 0, h.floor+1+rng.Int64N(h.head()-h.floor))
	if len(ws.list) < 2*len(watched) {
		ws.list = append(ws.list, w)
		return
	}
	i := len(watched) + rng.IntN(len(watched))
	ws.list[i].cancel()
	ws.list[i] = w
}

func (ws *watchers) seen() int64 {
	var rev int64
	for _, w := range ws.list {
		rev = max(rev, w.seen())
	}
	return rev
}

func (ws *watchers) compare(h *history) (int, error) {
	sum := 0
	for _, w := range ws.list {
		n, err := w.compare(h)
		if err != nil {
			return sum, err
		}
		sum += n
	}
	return sum, nil
}
