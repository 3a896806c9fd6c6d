package interop

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// Watchers hop between an etcd's replicas, and clients write and read at all endpoints, while members and replicas are killed,
// stopped and cut off, and while the etcd compacts all that nobody needs any more. After each round, everything that was seen is
// held against the etcd's own history (replicas_check_test.go).
var (
	hopRounds  = flag.Int("replicas.rounds", 3, "number of rounds with faults")
	hopSeconds = flag.Int("replicas.seconds", 6, "seconds of each round")
	hopSeed    = flag.Uint64("replicas.seed", 0, "seed of the faults; 0 takes the time")
)

// hopKey is a key of the rounds: two prefixes, so that watchers of one miss the other.
func hopKey(n int) string { return fmt.Sprintf("hop/%c/%02d", 'a'+n%2, n%40) }

// hopWatch is a watcher that moves between endpoints.
type hopWatch struct {
	name       string
	prefix     string
	prev       bool
	puts, dels bool
	next       atomic.Int64
	events     []*clientv3.Event
	hops       int
	err        error
}

type hops struct {
	t        *testing.T
	m        *members
	replicas []*replica
	// The hosts of members and replicas; nil if all are here, and nothing can be cut off.
	net   *peer.Network
	round int
	stop  atomic.Bool

	mu      sync.Mutex
	calls   []call
	figures map[string]int

	watches []*hopWatch
	history hopHistory
}

// newHops starts an etcd of three members and three replicas, one on each host, with further arguments for replicas.
func newHops(t *testing.T, net *peer.Network, hosts []*peer.Host, further ...string) *hops {
	// A member that was away gets a snapshot rather than the log.
	m := clusterOn(t, hosts[:3], "--snapshot-count=200", catchUp(t, peerBin(t, "etcd")))
	h := &hops{t: t, m: m, net: net, figures: map[string]int{}, history: hopHistory{next: 2, before: 1}}
	for i, host := range hosts[3:] {
		name, args := "replica", []string{}
		if i > 0 {
			// These continue from their own copies after a kill.
			name, args = fmt.Sprint("replica with data ", i), []string{"--data-dir=" + t.TempDir(), "--checkpoint-bytes=100000"}
		}
		r := replicaOn(t, host, name, upstreamFile(m.addresses()), append(args, further...)...)
		r.answers(t)
		h.replicas = append(h.replicas, r)
	}
	for i, w := range []*hopWatch{
		{prefix: "hop/", prev: true, puts: true, dels: true}, {prefix: "hop/a/", puts: true, dels: true},
		{prefix: "hop/b/", prev: true, puts: true}, {prefix: "hop/", dels: true}, {prefix: "hop/a/0", prev: true, puts: true, dels: true},
		{prefix: "hop/", puts: true, dels: true},
	} {
		w.name = fmt.Sprint("watch ", i, " of ", w.prefix)
		w.next.Store(2)
		h.watches = append(h.watches, w)
	}
	return h
}

// TestReplicasHops kills and stops members and replicas.
func TestReplicasHops(t *testing.T) {
	h := newHops(t, nil, make([]*peer.Host, 6))
	h.run(*hopRounds, h.kills)
}

// TestReplicasPartitions also cuts members, replicas and clients off from each other, in one direction or both, and lets links be
// slow. It needs a network of its own.
func TestReplicasPartitions(t *testing.T) {
	if !alone(t) {
		return
	}
	net := try(peer.NewNetwork(6)).or(t)
	t.Cleanup(net.End)
	h := newHops(t, net, net.Hosts())
	h.run(*hopRounds, h.kills, h.cuts)
}

// run lets rounds with these kinds of faults pass.
func (h *hops) run(rounds int, faults ...func(*rand.Rand, time.Time)) {
	seed := *hopSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	h.t.Logf("-replicas.seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for h.round = range rounds {
		h.one(rng, faults)
		if h.t.Failed() {
			h.t.Fatalf("seed %d, round %d", seed, h.round)
		}
		if h.round%20 == 19 {
			h.t.Logf("after %d rounds: %v", h.round+1, h.figures)
		}
	}
	for _, w := range h.watches {
		h.figures["watches"] += w.hops
	}
	h.leasesEnd()
	h.t.Logf("%d rounds: %v", rounds, h.figures)
}

// one runs clients, watchers and faults, and compares everything afterwards.
func (h *hops) one(rng *rand.Rand, faults []func(*rand.Rand, time.Time)) {
	var clients, watchers, others sync.WaitGroup
	source := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(rng.Uint64(), n)) }
	h.stop.Store(false)
	for i := range 6 {
		own := source(uint64(i))
		clients.Go(func() { h.client(own, i) })
	}
	var last atomic.Int64
	for _, w := range h.watches {
		own := source(9)
		watchers.Go(func() { h.watch(own, w, &last) })
	}
	own := source(10)
	clients.Go(func() { h.compactions(own) })
	for i := range 3 {
		own := source(12)
		clients.Go(func() { h.renewals(own, i) })
	}
	end := time.Now().Add(time.Duration(*hopSeconds) * time.Second)
	for _, f := range faults {
		own := source(11)
		others.Go(func() { f(own, end) })
	}
	others.Wait()
	h.stop.Store(true)
	clients.Wait()
	h.m.answer(h.t)
	last.Store(h.finish())
	watchers.Wait()
	h.compare(last.Load())
}

// count adds to a figure of the run.
func (h *hops) count(what string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.figures[what] += n
}

// finish deletes all keys, so that a round depends on none before, and returns the last revision.
func (h *hops) finish() (end int64) {
	kv := pb.NewKVClient(connectionTo(h.m.kept[0].address))
	for n := 0; end == 0; n++ {
		eventually(h.t, "the last key is written", func() bool {
			c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := kv.Put(c, &pb.PutRequest{Key: []byte("hop/a/00"), Value: fmt.Appendf(nil, "end %d/%v", h.round, time.Now())})
			return err == nil
		})
		c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		r, err := kv.DeleteRange(c, &pb.DeleteRangeRequest{Key: []byte("hop/"), RangeEnd: []byte(clientv3.GetPrefixRangeEnd("hop/"))})
		cancel()
		if err == nil && r.Deleted > 0 {
			end = r.Header.Revision
		}
		if n > 20 {
			h.t.Fatalf("the keys are not deleted: %v", err)
		}
	}
	return end
}

// endpoints are all members and replicas.
func (h *hops) endpoints() (all []*kept) {
	all = append(all, h.m.kept...)
	for _, r := range h.replicas {
		all = append(all, r.kept)
	}
	return all
}

// client reads and writes at endpoints of its choice until the round ends.
func (h *hops) client(rng *rand.Rand, id int) {
	endpoints := h.endpoints()
	known := map[string]int64{}
	for n := 0; !h.stop.Load(); n++ {
		s := endpoints[rng.IntN(len(endpoints))]
		c, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		a := call{began: time.Now(), where: s.Name}
		a.run(c, pb.NewKVClient(connectionTo(s.address)), rng, known, fmt.Sprintf("%d/%d/%d", h.round, id, n))
		a.ended = time.Now()
		cancel()
		h.mu.Lock()
		h.calls = append(h.calls, a)
		h.mu.Unlock()
		if a.err != nil {
			time.Sleep(20 * time.Millisecond)
		} else if a.read {
			known[a.key] = a.mod
		}
	}
}

// watch hops between replicas until it has shown revision `last`, once that is set.
func (h *hops) watch(rng *rand.Rand, w *hopWatch, last *atomic.Int64) {
	for deadline := time.Now().Add(4 * patience); ; {
		if end := last.Load(); end > 0 && w.next.Load() > end {
			return
		}
		if time.Now().After(deadline) {
			w.err = fmt.Errorf("it waits for revision %d since %v", w.next.Load(), 4*patience)
			return
		}
		s := h.replicas[rng.IntN(len(h.replicas))].server
		if rng.IntN(8) == 0 {
			s = h.m.kept[rng.IntN(len(h.m.kept))].server
		}
		h.once(rng, w, s, last)
		if w.err != nil {
			return
		}
	}
}

// once watches at one endpoint for about a second.
func (h *hops) once(rng *rand.Rand, w *hopWatch, s *server, last *atomic.Int64) {
	c, cancel := context.WithTimeout(context.Background(), time.Duration(300+rng.IntN(1000))*time.Millisecond)
	defer cancel()
	create := &pb.WatchCreateRequest{Key: []byte(w.prefix), StartRevision: w.next.Load(), PrevKv: w.prev}
	if !w.puts {
		create.Filters = append(create.Filters, pb.WatchCreateRequest_NOPUT)
	}
	if !w.dels {
		create.Filters = append(create.Filters, pb.WatchCreateRequest_NODELETE)
	}
	stream, err := watchOf(c, s, create)
	if err != nil {
		return
	}
	w.hops++
	for {
		r, err := stream.Recv()
		if err != nil {
			return
		}
		if w.take(s, r); w.err != nil {
			return
		}
		if end := last.Load(); end > 0 && w.next.Load() > end {
			return
		}
	}
}

// take adds what a response shows.
func (w *hopWatch) take(s *server, r *pb.WatchResponse) {
	next := w.next.Load()
	if r.Canceled {
		w.err = fmt.Errorf("cancelled at %s from revision %d: %q, compacted at %d", s.Name, next, r.CancelReason, r.CompactRevision)
		return
	}
	for _, e := range r.Events {
		if e.Kv.ModRevision < next && !sameRevision(w.events, e) {
			w.err = fmt.Errorf("%s sent revision %d again, or late: revision %d comes next", s.Name, e.Kv.ModRevision, next)
			return
		}
		w.events = append(w.events, (*clientv3.Event)(e))
		next = max(next, e.Kv.ModRevision)
	}
	w.next.Store(followsOn(next, r))
}

// watchOf opens a watch of a prefix, and asks for its progress all the time.
func watchOf(c context.Context, s *server, create *pb.WatchCreateRequest) (pb.Watch_WatchClient, error) {
	create.RangeEnd = []byte(clientv3.GetPrefixRangeEnd(string(create.Key)))
	stream, err := pb.NewWatchClient(connectionTo(s.address)).Watch(c)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		return nil, err
	}
	go func() {
		progress := time.NewTicker(200 * time.Millisecond)
		defer progress.Stop()
		for {
			q := &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
			select {
			case <-c.Done():
				return
			case <-progress.C:
			}
			if stream.Send(&pb.WatchRequest{RequestUnion: q}) != nil {
				return
			}
		}
	}()
	return stream, nil
}

// followsOn is the first revision that a watcher may still be sent after a response, if it was `next` before.
func followsOn(next int64, r *pb.WatchResponse) int64 {
	switch {
	case len(r.Events) > 0:
		// No revision is split, so the next one continues.
		return r.Events[len(r.Events)-1].Kv.ModRevision + 1
	case !r.Created && r.Header.Revision+1 > next:
		// Progress: everything up to there was sent.
		return r.Header.Revision + 1
	}
	return next
}

// sameRevision says whether an event belongs to the revision of the last event.
func sameRevision(events []*clientv3.Event, e *mvccpb.Event) bool {
	return len(events) > 0 && events[len(events)-1].Kv.ModRevision == e.Kv.ModRevision
}
