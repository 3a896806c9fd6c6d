package main

import (
	"context"
	"slices"
	"time"
)

// mutate makes one change as in a real cluster: mostly pods that are created, deleted and relabelled.
func (w *world) mutate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &change{}
	switch dice := w.rng.IntN(100); {
	case dice < 55:
		w.relabel(w.pods[w.rng.IntN(len(w.pods))], c)
	case dice < 72:
		p := w.newPod(firstIdentity + w.rng.IntN(w.nextID-firstIdentity))
		if isGlobal(p.ns) {
			w.setWant(p.key(), p.want(), c)
		}
		w.joinSlice(p)
		w.putPod(p, c)
	case dice < 90:
		w.removePod(w.rng.IntN(len(w.pods)), c)
	case dice < 94:
		w.flip(w.services[w.rng.IntN(len(w.services))], c)
	case dice < 97:
		n := w.nodes[w.rng.IntN(len(w.nodes))]
		n.touched++
		w.putNode(n, c)
	default:
		w.addIdentity(w.rng.IntN(nsCount), c)
	}
}

func (w *world) relabel(p *pod, c *change) {
	p.identity = firstIdentity + (p.identity-firstIdentity+1)%(w.nextID-firstIdentity)
	if isGlobal(p.ns) {
		w.setWant(p.key(), p.want(), c)
	}
	w.putPod(p, c)
}

func (w *world) putPod(p *pod, c *change) {
	if w.ces {
		w.putCiliumSlice(w.in[p], c)
	} else {
		w.putEndpoint(p, c)
	}
}

// removePod deletes a pod. The slice of its service keeps the address, as it does for a moment in a real cluster.
func (w *world) removePod(at int, c *change) {
	p := w.pods[at]
	w.pods[at] = w.pods[len(w.pods)-1]
	w.pods = w.pods[:len(w.pods)-1]
	w.dropWant(p.key(), c)
	if !w.ces {
		w.store.remove(endpoints, nsName(p.ns)+"/"+p.name(), c, func(v int64) []byte { return w.endpoint(p, v) })
		return
	}
	s := w.in[p]
	delete(w.in, p)
	s.pods = slices.DeleteFunc(s.pods, func(o *pod) bool { return o == p })
	if len(s.pods) > 0 {
		w.putCiliumSlice(s, c)
		return
	}
	w.slices[s.ns] = slices.DeleteFunc(w.slices[s.ns], func(o *ciliumSlice) bool { return o == s })
	w.store.remove(slicesOfCil, s.name, c, func(v int64) []byte { return w.ciliumSlice(s, v) })
}

// flip toggles whether a backend is ready.
func (w *world) flip(s *service, c *change) {
	at := w.rng.IntN(len(s.down))
	s.down[at] = !s.down[at]
	w.putSlice(s, c)
}

// churn mutates at a rate until the context ends, and returns the number of changes.
func (w *world) churn(ctx context.Context, rate int) (changes int) {
	if rate == 0 {
		<-ctx.Done()
		return 0
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return changes
		case <-tick.C:
		}
		for due := int(time.Since(began).Seconds() * float64(rate)); changes < due; changes++ {
			w.mutate()
		}
	}
}
