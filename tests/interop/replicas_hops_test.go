package interop

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Watchers hop between an etcd's replicas, and clients write and read at all endpoints, while members and replicas are killed
// and stopped. Afterwards everything that was seen is held against the etcd's own history:
//
//   - a watch shows every event of its keys once and in order, no other event, and never a part of a revision; with filters, with
//     previous values, over hops, kills and restarts (etcd's robustness tests call these checks filter, ordered, unique, atomic,
//     bookmarkable, reliable, resumable, prev value and is-create);
//   - an answer to a read is what the etcd had at the revision that the answer names;
//   - an answer never names an earlier revision than an answer that was complete before its call began, whoever asked whom. With
//     the check before, this is linearizability: the order is that of the revisions, so that nothing has to be searched for.
var (
	hopRounds  = flag.Int("replicas.rounds", 3, "number of rounds with faults")
	hopSeconds = flag.Int("replicas.seconds", 6, "seconds of each round")
	hopSeed    = flag.Uint64("replicas.seed", 0, "seed of the faults; 0 takes the time")
)

// hopKey is a key of the rounds: two prefixes, so that watchers of one miss the other.
func hopKey(n int) string { return fmt.Sprintf("hop/%c/%02d", 'a'+n%2, n%40) }

// answered is a call with its times: what it read, and the revision that its answer named.
type answered struct {
	began, ended time.Time
	revision     int64
	where        string
	// read says that the call read `key`, and found it changed last at `mod`; 0 if the key was absent.
	read bool
	key  string
	mod  int64
}

// hopWatch is a watcher that moves between endpoints.
type hopWatch struct {
	name       string
	prefix     string
	prev       bool
	puts, dels bool
	next       int64
	events     []*clientv3.Event
	hops       int
	err        error
}

type hops struct {
	t        *testing.T
	m        *members
	replicas []*replica
	mu       sync.Mutex
	answers  []answered
	watches  []*hopWatch
	failed   atomic.Int64
	stop     atomic.Bool
}

func TestReplicasHops(t *testing.T) {
	seed := *hopSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	t.Logf("-replicas.seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	// A member that was away gets a snapshot rather than the log.
	m := cluster(t, 3, "--snapshot-count=200", "--snapshot-catchup-entries=20")
	h := &hops{t: t, m: m, replicas: replicasOf(t, 1, m.addresses())}
	for i := range 2 {
		// These continue from their own copies after a kill.
		r := replicaOf(t, fmt.Sprint("replica with data ", i), m.addresses(), "--data-dir="+t.TempDir(), "--checkpoint-bytes=100000")
		r.answers(t)
		h.replicas = append(h.replicas, r)
	}
	for i, w := range []*hopWatch{
		{prefix: "hop/", prev: true, puts: true, dels: true}, {prefix: "hop/a/", puts: true, dels: true},
		{prefix: "hop/b/", prev: true, puts: true}, {prefix: "hop/", dels: true}, {prefix: "hop/a/0", prev: true, puts: true, dels: true},
		{prefix: "hop/", puts: true, dels: true},
	} {
		w.name, w.next = fmt.Sprint("watch ", i, " of ", w.prefix), 2
		h.watches = append(h.watches, w)
	}
	for round := range *hopRounds {
		h.round(rng, round)
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
	var moved, events int
	for _, w := range h.watches {
		moved, events = moved+w.hops, events+len(w.events)
	}
	t.Logf("%d rounds: %d calls answered, %d failed; %d watches with %d events", *hopRounds, len(h.answers), h.failed.Load(), moved, events)
}

// round runs clients, watchers and faults, and compares everything afterwards.
func (h *hops) round(rng *rand.Rand, round int) {
	var clients, watchers sync.WaitGroup
	h.stop.Store(false)
	for i := range 6 {
		own := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		clients.Add(1)
		go func() { defer clients.Done(); h.client(own, i) }()
	}
	var last atomic.Int64
	for _, w := range h.watches {
		own := rand.New(rand.NewPCG(rng.Uint64(), 9))
		watchers.Add(1)
		go func() { defer watchers.Done(); h.watch(own, w, &last) }()
	}
	h.faults(rng, time.Duration(*hopSeconds)*time.Second)
	h.stop.Store(true)
	clients.Wait()
	h.m.answer(h.t)
	c := h.m.kept[0].client(h.t)
	defer c.Close()
	try(c.Put(ctx(h.t), "hop/a/00", fmt.Sprint("end ", round))).or(h.t)
	end := try(c.Delete(ctx(h.t), "hop/", clientv3.WithPrefix())).or(h.t).Header.Revision
	last.Store(end)
	watchers.Wait()
	h.compare(end)
}

// endpoints are all members and replicas.
func (h *hops) endpoints() (all []*server) {
	for _, k := range h.m.kept {
		all = append(all, k.server)
	}
	for _, r := range h.replicas {
		all = append(all, r.server)
	}
	return all
}

// client reads and writes at endpoints of its choice until the round ends.
func (h *hops) client(rng *rand.Rand, id int) {
	endpoints := h.endpoints()
	for n := 0; !h.stop.Load(); n++ {
		s := endpoints[rng.IntN(len(endpoints))]
		kv := pb.NewKVClient(connectionTo(s.address))
		key := []byte(hopKey(rng.IntN(80)))
		c, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		a := answered{began: time.Now(), where: s.Name}
		var err error
		switch k := rng.IntN(10); {
		case k < 4:
			var r *pb.RangeResponse
			if r, err = kv.Range(c, &pb.RangeRequest{Key: key}); err == nil {
				a.read, a.key, a.revision = true, string(key), r.Header.Revision
				for _, kv := range r.Kvs {
					a.mod = kv.ModRevision
				}
			}
		case k < 7:
			var r *pb.PutResponse
			if r, err = kv.Put(c, &pb.PutRequest{Key: key, Value: fmt.Appendf(nil, "%d/%d", id, n)}); err == nil {
				a.revision = r.Header.Revision
			}
		case k < 8:
			var r *pb.DeleteRangeResponse
			if r, err = kv.DeleteRange(c, &pb.DeleteRangeRequest{Key: key}); err == nil {
				a.revision = r.Header.Revision
			}
		default:
			put := func(key string) *pb.RequestOp {
				q := &pb.PutRequest{Key: []byte(key), Value: fmt.Appendf(nil, "txn %d/%d", id, n)}
				return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: q}}
			}
			var r *pb.TxnResponse
			q := &pb.TxnRequest{Success: []*pb.RequestOp{put(hopKey(n)), put(hopKey(n + 1)), put(hopKey(n + 2))}}
			if r, err = kv.Txn(c, q); err == nil {
				a.revision = r.Header.Revision
			}
		}
		a.ended = time.Now()
		cancel()
		if err != nil {
			h.failed.Add(1)
			time.Sleep(20 * time.Millisecond)
			continue
		}
		h.mu.Lock()
		h.answers = append(h.answers, a)
		h.mu.Unlock()
	}
}

// watch hops between replicas until it has shown revision `last`, once that is set.
func (h *hops) watch(rng *rand.Rand, w *hopWatch, last *atomic.Int64) {
	for deadline := time.Now().Add(3 * patience); ; {
		if end := last.Load(); end > 0 && w.next > end {
			return
		}
		if time.Now().After(deadline) {
			w.err = fmt.Errorf("it waits for revision %d since %v", w.next, 3*patience)
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
	stream, err := pb.NewWatchClient(connectionTo(s.address)).Watch(c)
	if err != nil {
		return
	}
	create := &pb.WatchCreateRequest{
		Key: []byte(w.prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(w.prefix)), StartRevision: w.next, PrevKv: w.prev,
	}
	if !w.puts {
		create.Filters = append(create.Filters, pb.WatchCreateRequest_NOPUT)
	}
	if !w.dels {
		create.Filters = append(create.Filters, pb.WatchCreateRequest_NODELETE)
	}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		return
	}
	w.hops++
	progress := time.NewTicker(200 * time.Millisecond)
	defer progress.Stop()
	go func() {
		for range progress.C {
			q := &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
			if c.Err() != nil || stream.Send(&pb.WatchRequest{RequestUnion: q}) != nil {
				return
			}
		}
	}()
	for {
		r, err := stream.Recv()
		if err != nil {
			return
		}
		if r.Canceled {
			w.err = fmt.Errorf("cancelled at %s from revision %d: %q, compacted at %d", s.Name, w.next, r.CancelReason, r.CompactRevision)
			return
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision < w.next && !sameRevision(w.events, e) {
				w.err = fmt.Errorf("%s sent revision %d again, or late: revision %d comes next", s.Name, e.Kv.ModRevision, w.next)
				return
			}
			w.events = append(w.events, (*clientv3.Event)(e))
			w.next = max(w.next, e.Kv.ModRevision)
		}
		switch {
		case len(r.Events) > 0:
			// No revision is split, so the next one continues.
			w.next = r.Events[len(r.Events)-1].Kv.ModRevision + 1
		case !r.Created && r.Header.Revision+1 > w.next:
			// Progress: everything up to there was sent.
			w.next = r.Header.Revision + 1
		}
		if end := last.Load(); end > 0 && w.next > end {
			return
		}
	}
}

// sameRevision says whether an event belongs to the revision of the last event.
func sameRevision(events []*clientv3.Event, e *mvccpb.Event) bool {
	return len(events) > 0 && events[len(events)-1].Kv.ModRevision == e.Kv.ModRevision
}

// faults kills and stops members and replicas, never two members at a time.
func (h *hops) faults(rng *rand.Rand, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(time.Duration(300+rng.IntN(700)) * time.Millisecond)
		all := []*kept{}
		all = append(all, h.m.kept...)
		for _, r := range h.replicas {
			all = append(all, r.kept)
		}
		k := all[rng.IntN(len(all))]
		switch rng.IntN(6) {
		case 0:
			h.moveLeader(h.m.kept[rng.IntN(3)].server)
		case 1:
			// The member answers nobody meanwhile.
			c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, _ = pb.NewMaintenanceClient(connectionTo(h.m.kept[rng.IntN(3)].address)).Defragment(c, &pb.DefragmentRequest{})
			cancel()
		case 2:
			_ = k.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(200+rng.IntN(1500)) * time.Millisecond)
			_ = k.Signal(syscall.SIGCONT)
		default:
			k.Stop(syscall.SIGKILL)
			time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
			if err := k.Start(); err != nil {
				h.t.Errorf("%s: %v", k.Name, err)
				return
			}
			eventually(h.t, k.Name+" answers again", func() bool { return revisionOf(k.server, false) > 0 })
		}
	}
}

// moveLeader makes another member the leader. The leader alone can do that.
func (h *hops) moveLeader(to *server) {
	c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	target, err := pb.NewMaintenanceClient(connectionTo(to.address)).Status(c, &pb.StatusRequest{})
	if err != nil {
		return
	}
	for _, k := range h.m.kept {
		own := pb.NewMaintenanceClient(connectionTo(k.address))
		if s, err := own.Status(c, &pb.StatusRequest{}); err == nil && s.Leader == s.Header.MemberId {
			_, _ = own.MoveLeader(c, &pb.MoveLeaderRequest{TargetID: target.Header.MemberId})
		}
	}
}

// compare holds what was seen against the history of the etcd.
func (h *hops) compare(end int64) {
	t := h.t
	c := h.m.kept[0].client(t)
	defer c.Close()
	var truth []*clientv3.Event
	for r := range c.Watch(ctx(t), "hop/", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV()) {
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		truth = append(truth, r.Events...)
		if truth[len(truth)-1].Kv.ModRevision >= end {
			break
		}
	}
	for _, w := range h.watches {
		h.compareWatch(w, truth)
	}
	h.compareAnswers(truth)
}

func (h *hops) compareWatch(w *hopWatch, truth []*clientv3.Event) {
	if w.err != nil {
		h.t.Errorf("%s: %v", w.name, w.err)
		return
	}
	var want []*clientv3.Event
	for _, e := range truth {
		wanted := w.puts
		if e.Type == clientv3.EventTypeDelete {
			wanted = w.dels
		}
		if wanted && len(e.Kv.Key) >= len(w.prefix) && string(e.Kv.Key[:len(w.prefix)]) == w.prefix {
			want = append(want, e)
		}
	}
	for i := range min(len(want), len(w.events)) {
		if got, want := hopText(w.events[i], w.prev), hopText(want[i], w.prev); got != want {
			h.t.Errorf("%s: event %d is\n%s, expected\n%s", w.name, i, got, want)
			return
		}
	}
	if len(want) != len(w.events) {
		h.t.Errorf("%s: %d events, expected %d", w.name, len(w.events), len(want))
	}
}

func hopText(e *clientv3.Event, prev bool) string {
	text := fmt.Sprintf("%v create %v %s", e.Type, e.IsCreate(), kvs(e.Kv))
	if prev {
		text += " prev " + kvs(e.PrevKv)
	}
	return text
}

// compareAnswers checks that reads are true at their revisions, and that revisions do not go back.
func (h *hops) compareAnswers(truth []*clientv3.Event) {
	changes := map[string][]*clientv3.Event{}
	for _, e := range truth {
		changes[string(e.Kv.Key)] = append(changes[string(e.Kv.Key)], e)
	}
	for _, a := range h.answers {
		if !a.read {
			continue
		}
		of := changes[a.key]
		at := sort.Search(len(of), func(i int) bool { return of[i].Kv.ModRevision > a.revision })
		want := int64(0)
		if at > 0 && of[at-1].Type == clientv3.EventTypePut {
			want = of[at-1].Kv.ModRevision
		}
		if want != a.mod {
			h.t.Errorf("%s: %s at revision %d was changed last at %d, expected %d", a.where, a.key, a.revision, a.mod, want)
			return
		}
	}
	began, ended := append([]answered{}, h.answers...), append([]answered{}, h.answers...)
	sort.Slice(began, func(i, j int) bool { return began[i].began.Before(began[j].began) })
	sort.Slice(ended, func(i, j int) bool { return ended[i].ended.Before(ended[j].ended) })
	var highest answered
	for next := 0; len(began) > 0; began = began[1:] {
		for ; ended[next].ended.Before(began[0].began); next++ {
			if ended[next].revision > highest.revision {
				highest = ended[next]
			}
		}
		if a := began[0]; a.revision < highest.revision {
			h.t.Errorf("%s answered with revision %d, after %s had answered with revision %d", a.where, a.revision, highest.where, highest.revision)
			return
		}
	}
}
