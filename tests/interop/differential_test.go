package interop

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sort"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The same random calls go to etcd and to us, one at a time; every answer and every watch event must be
// the same. What may differ, and why:
//   - ids, terms and sizes: each server has its own;
//   - the order of keys that a sort leaves tied: etcd's sort is unstable;
//   - remaining seconds of leases, by the time between the two calls;
//   - AuthStatus while authentication is on, which etcd allows everybody from 3.7 on only;
//   - a transaction of nothing by nobody, which etcd answers and we refuse: it tells the revision;
//   - HashKV at a revision that was compacted to, where etcd answers with the hash it took before compacting,
//     and HashKV of now after a compaction at 0, where it answers with the hash of nothing;
//   - permission for a range that ends before it begins.
var (
	seeds = flag.Int("seeds", 4, "random walks")
	calls = flag.Int("calls", 1000, "calls of each walk")
	first = flag.Uint64("seed", 0, "first seed; 0 takes one from the clock")
	trail = flag.Int("trail", 12, "calls to show before a difference")
)

func TestDifferential(t *testing.T) {
	args := []string{"--bcrypt-cost=4", "--max-txn-ops=16"}
	start := *first
	if start == 0 {
		start = uint64(time.Now().UnixNano()) % 1_000_000
	}
	for seed := start; seed < start+uint64(*seeds); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			w := newWalk(t, seed, theirs(t, args...), ours(t, args...))
			for i := 0; i < *calls; i++ {
				w.step()
				if t.Failed() {
					t.Fatalf("seed %d, call %d; the last calls were:\n%s", seed, i, strings.Join(w.trail, "\n"))
				}
			}
			w.sync()
			t.Logf("seed %d: %d calls, %d refused, %d events, at revision %d", seed, *calls, w.refused, w.events, w.revision)
		})
	}
}

// side is one of the two servers, with the state a client of it keeps.
type side struct {
	*server
	kv      pb.KVClient
	lease   pb.LeaseClient
	auth    pb.AuthClient
	cluster pb.ClusterClient
	maint   pb.MaintenanceClient
	watch   pb.WatchClient
	tokens  map[string]string
	streams []*stream
}

type walk struct {
	t         *testing.T
	rng       *rand.Rand
	sides     [2]*side
	revision  int64
	compacted int64
	hashed    map[int64]bool
	enabled   bool
	watched   bool
	user      string
	trail     []string
	refused   int
	events    int
}

func newWalk(t *testing.T, seed uint64, servers ...*server) *walk {
	w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 1)), revision: 1, hashed: map[int64]bool{}}
	for i, s := range servers {
		conn := s.dial(t)
		w.sides[i] = &side{
			server: s, kv: pb.NewKVClient(conn), lease: pb.NewLeaseClient(conn), auth: pb.NewAuthClient(conn),
			cluster: pb.NewClusterClient(conn), maint: pb.NewMaintenanceClient(conn), watch: pb.NewWatchClient(conn),
			tokens: map[string]string{},
		}
	}
	return w
}

func pick[T any](w *walk, of ...T) T { return of[w.rng.IntN(len(of))] }

func (w *walk) chance(percent int) bool { return w.rng.IntN(100) < percent }

// ctx carries the token that the present user has at one side.
func (w *walk) ctx(s *side) context.Context {
	c := ctx(w.t)
	if token := s.tokens[w.user]; token != "" {
		c = metadata.AppendToOutgoingContext(c, "token", token)
	}
	return c
}

// both makes one call at both sides and compares what `show` makes of the answers.
func both[Q, R any](w *walk, name string, q Q, call func(*side) func(context.Context, Q, ...grpc.CallOption) (R, error), show func(R) string) (r [2]R, ok bool) {
	var texts [2]string
	var errs [2]error
	for i, s := range w.sides {
		r[i], errs[i] = call(s)(w.ctx(s), q)
		if errs[i] != nil {
			st, _ := status.FromError(errs[i])
			texts[i] = fmt.Sprintf("%v: %s", st.Code(), st.Message())
		} else {
			texts[i] = show(r[i])
		}
	}
	w.trail = append(w.trail, fmt.Sprintf("%s as %q {%v} -> %s", name, w.user, q, texts[0]))
	w.trail = w.trail[max(0, len(w.trail)-*trail):]
	if texts[0] != texts[1] {
		w.t.Errorf("%s {%v}\netcd: %s\nours: %s", name, q, texts[0], texts[1])
		return r, false
	}
	if errs[0] != nil {
		w.refused++
	}
	return r, errs[0] == nil
}

func (w *walk) step() {
	w.user = ""
	if w.enabled {
		w.user = pick(w, "root", "root", "root", "ann", "bob", "")
	}
	switch n := w.rng.IntN(100); {
	case n < 20:
		w.seen(w.put())
	case n < 45:
		w.get()
	case n < 55:
		w.seen(w.delete())
	case n < 73:
		w.seen(w.txn())
	case n < 76:
		w.compact()
	case n < 84:
		w.leases()
	case n < 91:
		w.watches()
	case n < 97:
		w.auths()
	default:
		w.others()
	}
}

func (w *walk) seen(h *pb.ResponseHeader) {
	if h != nil && h.Revision > w.revision {
		w.revision = h.Revision
	}
}

// === keys and ranges ===

var keys = []string{"a", "aa", "ab", "b", "b\x00", "b\x00c", "c", "ca", "d", "\x00", "\xff", "\xff\xff"}

func (w *walk) key() []byte {
	if w.chance(2) {
		return nil
	}
	return []byte(pick(w, keys...))
}

func (w *walk) end() []byte {
	if w.chance(50) {
		return nil
	}
	return []byte(pick(w, "\x00", "b", "c", "d", "zz", "\xff", "a", "b\x00", "\x00\x00"))
}

// rangeEnd gives an end for a range from key. While authentication is on it is not before the key: whether
// a range of nothing is permitted depends, in etcd, on how its interval tree looks.
func (w *walk) rangeEnd(key []byte) []byte {
	end := w.end()
	if w.enabled && len(end) > 0 && string(end) != "\x00" && string(end) <= string(key) {
		return nil
	}
	return end
}

func (w *walk) value() []byte { return []byte(pick(w, "", "1", "2", "3", "a longer value")) }

func (w *walk) leaseID() int64 { return int64(w.rng.IntN(6)) }

// atRevision gives a revision around the interesting ones.
func (w *walk) atRevision() int64 {
	switch w.rng.IntN(8) {
	case 0:
		return w.rng.Int64N(w.revision + 1)
	case 1:
		return pick(w, int64(-1), -5, 1, w.compacted, w.compacted-1, w.revision, w.revision+1, w.revision+5)
	case 2:
		return w.revision - w.rng.Int64N(min(w.revision, 5))
	default:
		return 0
	}
}

// === KV ===

func (w *walk) putRequest() *pb.PutRequest {
	q := &pb.PutRequest{Key: w.key(), Value: w.value(), PrevKv: w.chance(30)}
	if w.chance(20) {
		q.Lease = w.leaseID()
	}
	if w.chance(8) {
		q.IgnoreValue = true
		if w.chance(80) {
			q.Value = nil
		}
	}
	if w.chance(8) {
		q.IgnoreLease = true
		if w.chance(80) {
			q.Lease = 0
		}
	}
	return q
}

func (w *walk) put() *pb.ResponseHeader {
	r, _ := both(w, "put", w.putRequest(), func(s *side) func(context.Context, *pb.PutRequest, ...grpc.CallOption) (*pb.PutResponse, error) {
		return s.kv.Put
	}, func(r *pb.PutResponse) string { return fmt.Sprintf("%s prev %s", head(r.Header), kvs(r.PrevKv)) })
	return r[0].GetHeader()
}

func (w *walk) rangeRequest() *pb.RangeRequest {
	q := &pb.RangeRequest{Key: w.key(), Revision: w.atRevision(), Serializable: w.chance(20)}
	q.RangeEnd = w.rangeEnd(q.Key)
	if w.chance(40) {
		q.Limit = pick(w, int64(-3), 1, 2, 3, 100)
	}
	if w.chance(30) {
		q.SortOrder = pb.RangeRequest_SortOrder(w.rng.IntN(3))
		q.SortTarget = pb.RangeRequest_SortTarget(w.rng.IntN(5))
	}
	if w.chance(2) {
		q.SortOrder = 7
	}
	q.KeysOnly, q.CountOnly = w.chance(15), w.chance(15)
	for _, bound := range []*int64{&q.MinModRevision, &q.MaxModRevision, &q.MinCreateRevision, &q.MaxCreateRevision} {
		if w.chance(6) {
			*bound = w.rng.Int64N(w.revision + 2)
		}
	}
	return q
}

func (w *walk) get() {
	q := w.rangeRequest()
	both(w, "range", q, func(s *side) func(context.Context, *pb.RangeRequest, ...grpc.CallOption) (*pb.RangeResponse, error) {
		return s.kv.Range
	}, func(r *pb.RangeResponse) string { return rangeText(q, r) })
}

// rangeText shows an answer without what a sort leaves open: of keys that are tied only the sorted-by
// field is shown, where a limit has chosen among them.
func rangeText(q *pb.RangeRequest, r *pb.RangeResponse) string {
	text := fmt.Sprintf("%s count %d more %v", head(r.Header), r.Count, r.More)
	list := r.Kvs
	if q.GetSortTarget() != pb.RangeRequest_KEY {
		var fields []string
		for _, kv := range list {
			fields = append(fields, sortField(q.SortTarget, kv))
		}
		text += fmt.Sprint(" by ", fields)
		if r.More {
			return text
		}
		list = append([]*mvccpb.KeyValue{}, list...)
		sort.Slice(list, func(i, j int) bool { return string(list[i].Key) < string(list[j].Key) })
	}
	return text + " " + kvs(list...)
}

func sortField(target pb.RangeRequest_SortTarget, kv *mvccpb.KeyValue) string {
	switch target {
	case pb.RangeRequest_VERSION:
		return fmt.Sprint(kv.Version)
	case pb.RangeRequest_CREATE:
		return fmt.Sprint(kv.CreateRevision)
	case pb.RangeRequest_MOD:
		return fmt.Sprint(kv.ModRevision)
	default:
		return string(kv.Value)
	}
}

func (w *walk) delete() *pb.ResponseHeader {
	q := &pb.DeleteRangeRequest{Key: w.key(), PrevKv: w.chance(40)}
	if w.chance(25) {
		q.RangeEnd = w.rangeEnd(q.Key)
	}
	r, _ := both(w, "delete", q, func(s *side) func(context.Context, *pb.DeleteRangeRequest, ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
		return s.kv.DeleteRange
	}, deleteText)
	return r[0].GetHeader()
}

func deleteText(r *pb.DeleteRangeResponse) string {
	return fmt.Sprintf("%s deleted %d %s", head(r.Header), r.Deleted, kvs(r.PrevKvs...))
}

func (w *walk) txnRequest(depth int) *pb.TxnRequest {
	q := &pb.TxnRequest{}
	for range w.rng.IntN(3) {
		c := &pb.Compare{Result: pb.Compare_CompareResult(w.rng.IntN(4)), Key: w.key()}
		if w.chance(20) {
			c.RangeEnd = w.rangeEnd(c.Key)
		}
		n := pick(w, int64(0), 1, 2, w.revision, w.revision/2)
		switch c.Target = pb.Compare_CompareTarget(w.rng.IntN(5)); c.Target {
		case pb.Compare_VERSION:
			c.TargetUnion = &pb.Compare_Version{Version: n}
		case pb.Compare_CREATE:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
		case pb.Compare_MOD:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
		case pb.Compare_LEASE:
			c.TargetUnion = &pb.Compare_Lease{Lease: n}
		default:
			c.TargetUnion = &pb.Compare_Value{Value: w.value()}
		}
		if w.chance(5) {
			c.TargetUnion = nil
		}
		q.Compare = append(q.Compare, c)
	}
	for _, branch := range []*[]*pb.RequestOp{&q.Success, &q.Failure} {
		for range w.rng.IntN(4) {
			*branch = append(*branch, w.op(depth))
		}
	}
	if w.chance(1) {
		for range 17 {
			q.Success = append(q.Success, w.op(0))
		}
	}
	return q
}

func (w *walk) op(depth int) *pb.RequestOp {
	switch n := w.rng.IntN(20); {
	case n < 8:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: w.putRequest()}}
	case n < 13:
		q := w.rangeRequest()
		// Ties would be cut anywhere, and nothing says here which answer belongs to which request.
		q.SortTarget = pb.RangeRequest_KEY
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: q}}
	case n < 17 || depth == 0:
		q := &pb.DeleteRangeRequest{Key: w.key(), PrevKv: w.chance(30)}
		if w.chance(30) {
			q.RangeEnd = w.rangeEnd(q.Key)
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: q}}
	case n < 19:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: w.txnRequest(depth - 1)}}
	default:
		return &pb.RequestOp{}
	}
}

func (w *walk) txn() *pb.ResponseHeader {
	q := w.txnRequest(2)
	if w.enabled && len(q.Compare)+len(q.Success)+len(q.Failure) == 0 {
		return nil
	}
	r, _ := both(w, "txn", q, func(s *side) func(context.Context, *pb.TxnRequest, ...grpc.CallOption) (*pb.TxnResponse, error) {
		return s.kv.Txn
	}, txnText)
	return r[0].GetHeader()
}

func txnText(r *pb.TxnResponse) string {
	text := fmt.Sprintf("%s %v", head(r.Header), r.Succeeded)
	for _, op := range r.Responses {
		switch op := op.Response.(type) {
		case *pb.ResponseOp_ResponsePut:
			text += fmt.Sprintf(" put(%s %s)", head(op.ResponsePut.Header), kvs(op.ResponsePut.PrevKv))
		case *pb.ResponseOp_ResponseRange:
			text += fmt.Sprintf(" range(%s)", rangeText(nil, op.ResponseRange))
		case *pb.ResponseOp_ResponseDeleteRange:
			text += fmt.Sprintf(" delete(%s)", deleteText(op.ResponseDeleteRange))
		case *pb.ResponseOp_ResponseTxn:
			text += fmt.Sprintf(" txn(%s)", txnText(op.ResponseTxn))
		}
	}
	return text
}

func (w *walk) compact() {
	// Previous values of events on their way would be lost to either side by chance.
	w.sync()
	if w.watched {
		// etcd reads the past for its watchers now and then, and says only in its metrics when it has.
		eventually(w.t, "etcd has no watcher that is behind", func() bool {
			r, err := http.Get("http://" + w.sides[0].address + "/metrics")
			if err != nil {
				return false
			}
			defer r.Body.Close()
			text, err := io.ReadAll(r.Body)
			return err == nil && strings.Contains(string(text), "\netcd_debugging_mvcc_slow_watcher_total 0\n")
		})
		w.sync()
		w.watched = false
	}
	at := w.revision - w.rng.Int64N(min(w.revision+1, 40))
	if w.chance(20) {
		at = pick(w, int64(0), -1, w.compacted, w.revision+1)
	}
	q := &pb.CompactionRequest{Revision: at, Physical: true}
	_, ok := both(w, "compact", q, func(s *side) func(context.Context, *pb.CompactionRequest, ...grpc.CallOption) (*pb.CompactionResponse, error) {
		return s.kv.Compact
	}, func(r *pb.CompactionResponse) string { return head(r.Header) })
	if ok {
		w.compacted, w.hashed[at] = at, true
	}
}

// === leases ===

func (w *walk) leases() {
	id := w.leaseID()
	if id == 0 {
		id = 9
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		q := &pb.LeaseGrantRequest{ID: id, TTL: pick(w, int64(5000), 9000, 9_000_000_001)}
		both(w, "grant", q, func(s *side) func(context.Context, *pb.LeaseGrantRequest, ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
			return s.lease.LeaseGrant
		}, func(r *pb.LeaseGrantResponse) string {
			return fmt.Sprintf("%s %d %d %s", head(r.Header), r.ID, r.TTL, r.Error)
		})
	case 2:
		r, _ := both(w, "revoke", &pb.LeaseRevokeRequest{ID: id}, func(s *side) func(context.Context, *pb.LeaseRevokeRequest, ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
			return s.lease.LeaseRevoke
		}, func(r *pb.LeaseRevokeResponse) string { return head(r.Header) })
		w.seen(r[0].GetHeader())
	case 3:
		q := &pb.LeaseTimeToLiveRequest{ID: id, Keys: w.chance(60)}
		both(w, "ttl", q, func(s *side) func(context.Context, *pb.LeaseTimeToLiveRequest, ...grpc.CallOption) (*pb.LeaseTimeToLiveResponse, error) {
			return s.lease.LeaseTimeToLive
		}, func(r *pb.LeaseTimeToLiveResponse) string {
			var names []string
			for _, k := range r.Keys {
				names = append(names, fmt.Sprintf("%q", k))
			}
			sort.Strings(names)
			return fmt.Sprintf("%s %d granted %d left %v keys %v", head(r.Header), r.ID, r.GrantedTTL, r.TTL > 0, names)
		})
	case 4:
		both(w, "leases", &pb.LeaseLeasesRequest{}, func(s *side) func(context.Context, *pb.LeaseLeasesRequest, ...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
			return s.lease.LeaseLeases
		}, func(r *pb.LeaseLeasesResponse) string {
			var ids []int64
			for _, l := range r.Leases {
				ids = append(ids, l.ID)
			}
			sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
			return fmt.Sprint(head(r.Header), ids)
		})
	default:
		both(w, "keepalive", &pb.LeaseKeepAliveRequest{ID: id}, func(s *side) func(context.Context, *pb.LeaseKeepAliveRequest, ...grpc.CallOption) (*pb.LeaseKeepAliveResponse, error) {
			return s.keepAlive
		}, func(r *pb.LeaseKeepAliveResponse) string { return fmt.Sprintf("%s %d %d", head(r.Header), r.ID, r.TTL) })
	}
}

func (s *side) keepAlive(ctx context.Context, q *pb.LeaseKeepAliveRequest, _ ...grpc.CallOption) (*pb.LeaseKeepAliveResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(q); err != nil {
		return nil, err
	}
	return stream.Recv()
}

// === watches ===

// stream is a watch stream and what it has brought, by watcher.
type stream struct {
	pb.Watch_WatchClient
	in     chan *pb.WatchResponse
	events map[int64][]string
}

func (w *walk) watches() {
	if len(w.sides[0].streams) == 0 || (len(w.sides[0].streams) < 4 && w.chance(10)) {
		for _, s := range w.sides {
			c, cancel := context.WithCancel(context.Background())
			w.t.Cleanup(cancel)
			if token := s.tokens["root"]; token != "" {
				c = metadata.AppendToOutgoingContext(c, "token", token)
			}
			opened, err := s.watch.Watch(c)
			if err != nil {
				w.t.Fatal(err)
			}
			in := make(chan *pb.WatchResponse, 1024)
			go func() {
				defer close(in)
				for {
					r, err := opened.Recv()
					if err != nil {
						return
					}
					in <- r
				}
			}()
			s.streams = append(s.streams, &stream{Watch_WatchClient: opened, in: in, events: map[int64][]string{}})
		}
	}
	at := w.rng.IntN(len(w.sides[0].streams))
	if w.chance(25) {
		cancel := &pb.WatchCancelRequest{WatchId: int64(w.rng.IntN(6))}
		w.sync()
		w.ask(at, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}})
		w.sync()
		return
	}
	create := &pb.WatchCreateRequest{
		Key: w.key(), StartRevision: w.atRevision(), PrevKv: w.chance(50), Fragment: w.chance(20),
	}
	create.RangeEnd = w.rangeEnd(create.Key)
	if w.chance(20) {
		create.WatchId = int64(w.rng.IntN(6))
	}
	for _, f := range []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE} {
		if w.chance(15) {
			create.Filters = append(create.Filters, f)
		}
	}
	w.ask(at, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	w.watched = true
	var answers [2]string
	for i, s := range w.sides {
		r := w.receive(s, s.streams[at], func(r *pb.WatchResponse) bool { return r.Created })
		answers[i] = fmt.Sprintf("id %d created %v canceled %v %q compacted %d", r.WatchId, r.Created, r.Canceled, r.CancelReason, r.CompactRevision)
	}
	w.trail = append(w.trail, "-> "+answers[0])
	if answers[0] != answers[1] {
		w.t.Errorf("watch %v\netcd: %s\nours: %s", create, answers[0], answers[1])
	}
	// Starts in the past must be read before a compaction takes them away.
	w.sync()
}

func (w *walk) ask(at int, q *pb.WatchRequest) {
	w.trail = append(w.trail, fmt.Sprintf("watch stream %d {%v}", at, q))
	for _, s := range w.sides {
		if err := s.streams[at].Send(q); err != nil {
			w.t.Fatalf("%s: %v", s.name, err)
		}
	}
}

// receive takes messages off a stream, keeping their events, until one is wanted.
func (w *walk) receive(s *side, st *stream, wanted func(*pb.WatchResponse) bool) *pb.WatchResponse {
	for deadline := time.After(patience); ; {
		select {
		case r, ok := <-st.in:
			if !ok {
				w.t.Fatalf("%s ended a watch stream", s.name)
			}
			w.keep(st, r)
			if wanted(r) {
				return r
			}
		case <-deadline:
			w.t.Fatalf("%s: no answer on a watch stream; the last calls were:\n%s", s.name, strings.Join(w.trail, "\n"))
		}
	}
}

// sync waits until all streams have brought everything, and compares it. A watcher of a key of its own
// says how far a stream is: etcd answers progress requests only when all watchers are there, which those
// from the future never are.
func (w *walk) sync() {
	for at := range w.sides[0].streams {
		var seen [2]map[int64][]string
		for _, s := range w.sides {
			st := s.streams[at]
			// The answer to a create comes behind everything that was ready before it; what a new watcher of
			// the past brings comes before the end of a watcher made after it.
			probe := &pb.WatchCreateRequest{Key: []byte("\x00"), StartRevision: max(w.compacted, 1), WatchId: 1000}
			q := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: probe}}
			if err := st.Send(q); err != nil {
				w.t.Fatalf("%s: %v", s.name, err)
			}
			if made := w.receive(s, st, func(r *pb.WatchResponse) bool { return r.Created }); made.Canceled {
				// Made before there were users: this stream may ask for nothing any more.
				continue
			}
			cancel := &pb.WatchCancelRequest{WatchId: 1000}
			q = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}}
			if err := st.Send(q); err != nil {
				w.t.Fatalf("%s: %v", s.name, err)
			}
			w.receive(s, st, func(r *pb.WatchResponse) bool { return r.Canceled && r.WatchId == 1000 })
			delete(st.events, 1000)
		}
		// Events may be on their way still: the two must become equal.
		equal := func() bool {
			for i, s := range w.sides {
				for drained := false; !drained; {
					select {
					case r, ok := <-s.streams[at].in:
						if !ok {
							w.t.Fatalf("%s ended a watch stream", s.name)
						}
						w.keep(s.streams[at], r)
					default:
						drained = true
					}
				}
				seen[i] = s.streams[at].events
			}
			return fmt.Sprint(seen[0]) == fmt.Sprint(seen[1])
		}
		for deadline := time.Now().Add(5 * time.Second); !equal(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				w.t.Errorf("watch stream %d\netcd: %v\nours: %v", at, seen[0], seen[1])
				return
			}
		}
		for _, list := range seen[0] {
			w.events += len(list)
		}
		for _, s := range w.sides {
			clear(s.streams[at].events)
		}
	}
}

func (w *walk) keep(st *stream, r *pb.WatchResponse) {
	for _, e := range r.Events {
		st.events[r.WatchId] = append(st.events[r.WatchId], fmt.Sprintf("%v %s prev %s", e.Type, kvs(e.Kv), kvs(e.PrevKv)))
	}
	if r.Canceled && !r.Created {
		text := fmt.Sprintf("canceled %q compacted %d", r.CancelReason, r.CompactRevision)
		st.events[r.WatchId] = append(st.events[r.WatchId], text)
	}
}

// === auth ===

func (w *walk) auths() {
	user, role := pick(w, "root", "ann", "bob", "nobody", ""), pick(w, "root", "r1", "r2", "none", "")
	auth := func(s *side) pb.AuthClient { return s.auth }
	switch w.rng.IntN(15) {
	case 0, 1:
		q := &pb.AuthUserAddRequest{Name: user, Password: "pw"}
		if w.chance(10) {
			q.Password, q.Options = "", &authpb.UserAddOptions{NoPassword: true}
		}
		simple(w, "user add", q, func(s *side) func(context.Context, *pb.AuthUserAddRequest, ...grpc.CallOption) (*pb.AuthUserAddResponse, error) {
			return auth(s).UserAdd
		})
	case 2:
		if w.chance(40) {
			simple(w, "user delete", &pb.AuthUserDeleteRequest{Name: user}, func(s *side) func(context.Context, *pb.AuthUserDeleteRequest, ...grpc.CallOption) (*pb.AuthUserDeleteResponse, error) {
				return auth(s).UserDelete
			})
		}
	case 3:
		simple(w, "change password", &pb.AuthUserChangePasswordRequest{Name: user, Password: "pw"}, func(s *side) func(context.Context, *pb.AuthUserChangePasswordRequest, ...grpc.CallOption) (*pb.AuthUserChangePasswordResponse, error) {
			return auth(s).UserChangePassword
		})
	case 4, 5:
		simple(w, "grant role", &pb.AuthUserGrantRoleRequest{User: user, Role: role}, func(s *side) func(context.Context, *pb.AuthUserGrantRoleRequest, ...grpc.CallOption) (*pb.AuthUserGrantRoleResponse, error) {
			return auth(s).UserGrantRole
		})
	case 6:
		simple(w, "revoke role", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role}, func(s *side) func(context.Context, *pb.AuthUserRevokeRoleRequest, ...grpc.CallOption) (*pb.AuthUserRevokeRoleResponse, error) {
			return auth(s).UserRevokeRole
		})
	case 7:
		simple(w, "role add", &pb.AuthRoleAddRequest{Name: role}, func(s *side) func(context.Context, *pb.AuthRoleAddRequest, ...grpc.CallOption) (*pb.AuthRoleAddResponse, error) {
			return auth(s).RoleAdd
		})
	case 8:
		if w.chance(40) {
			simple(w, "role delete", &pb.AuthRoleDeleteRequest{Role: role}, func(s *side) func(context.Context, *pb.AuthRoleDeleteRequest, ...grpc.CallOption) (*pb.AuthRoleDeleteResponse, error) {
				return auth(s).RoleDelete
			})
		}
	case 9, 10:
		q := &pb.AuthRoleGrantPermissionRequest{Name: role}
		if w.chance(95) {
			q.Perm = &authpb.Permission{PermType: authpb.Permission_Type(w.rng.IntN(3)), Key: w.key(), RangeEnd: w.end()}
		}
		simple(w, "grant permission", q, func(s *side) func(context.Context, *pb.AuthRoleGrantPermissionRequest, ...grpc.CallOption) (*pb.AuthRoleGrantPermissionResponse, error) {
			return auth(s).RoleGrantPermission
		})
	case 11:
		q := &pb.AuthRoleRevokePermissionRequest{Role: role, Key: w.key(), RangeEnd: w.end()}
		simple(w, "revoke permission", q, func(s *side) func(context.Context, *pb.AuthRoleRevokePermissionRequest, ...grpc.CallOption) (*pb.AuthRoleRevokePermissionResponse, error) {
			return auth(s).RoleRevokePermission
		})
	case 12:
		both(w, "user get", &pb.AuthUserGetRequest{Name: user}, func(s *side) func(context.Context, *pb.AuthUserGetRequest, ...grpc.CallOption) (*pb.AuthUserGetResponse, error) {
			return auth(s).UserGet
		}, func(r *pb.AuthUserGetResponse) string { return fmt.Sprint(head(r.Header), r.Roles) })
		both(w, "role get", &pb.AuthRoleGetRequest{Role: role}, func(s *side) func(context.Context, *pb.AuthRoleGetRequest, ...grpc.CallOption) (*pb.AuthRoleGetResponse, error) {
			return auth(s).RoleGet
		}, func(r *pb.AuthRoleGetResponse) string { return fmt.Sprint(head(r.Header), r.Perm) })
	case 13:
		w.toggle()
	default:
		both(w, "user list", &pb.AuthUserListRequest{}, func(s *side) func(context.Context, *pb.AuthUserListRequest, ...grpc.CallOption) (*pb.AuthUserListResponse, error) {
			return auth(s).UserList
		}, func(r *pb.AuthUserListResponse) string { return fmt.Sprint(head(r.Header), r.Users) })
		both(w, "role list", &pb.AuthRoleListRequest{}, func(s *side) func(context.Context, *pb.AuthRoleListRequest, ...grpc.CallOption) (*pb.AuthRoleListResponse, error) {
			return auth(s).RoleList
		}, func(r *pb.AuthRoleListResponse) string { return fmt.Sprint(head(r.Header), r.Roles) })
	}
	if w.enabled && w.chance(70) {
		w.authenticate()
	}
}

// simple is a call whose answer has a header only.
func simple[Q any, R interface{ GetHeader() *pb.ResponseHeader }](w *walk, name string, q Q, call func(*side) func(context.Context, Q, ...grpc.CallOption) (R, error)) {
	both(w, name, q, call, func(r R) string { return head(r.GetHeader()) })
}

// toggle turns authentication on, or off again.
func (w *walk) toggle() {
	if w.enabled {
		w.user = "root"
		if _, ok := both(w, "auth disable", &pb.AuthDisableRequest{}, func(s *side) func(context.Context, *pb.AuthDisableRequest, ...grpc.CallOption) (*pb.AuthDisableResponse, error) {
			return s.auth.AuthDisable
		}, func(r *pb.AuthDisableResponse) string { return head(r.Header) }); ok {
			w.enabled = false
		}
		return
	}
	if w.chance(70) {
		simple(w, "user add", &pb.AuthUserAddRequest{Name: "root", Password: "pw"}, func(s *side) func(context.Context, *pb.AuthUserAddRequest, ...grpc.CallOption) (*pb.AuthUserAddResponse, error) {
			return s.auth.UserAdd
		})
		simple(w, "grant role", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, func(s *side) func(context.Context, *pb.AuthUserGrantRoleRequest, ...grpc.CallOption) (*pb.AuthUserGrantRoleResponse, error) {
			return s.auth.UserGrantRole
		})
	}
	if _, ok := both(w, "auth enable", &pb.AuthEnableRequest{}, func(s *side) func(context.Context, *pb.AuthEnableRequest, ...grpc.CallOption) (*pb.AuthEnableResponse, error) {
		return s.auth.AuthEnable
	}, func(r *pb.AuthEnableResponse) string { return head(r.Header) }); ok {
		w.enabled = true
		w.authenticate()
	}
}

// authenticate gets fresh tokens for all users.
func (w *walk) authenticate() {
	for _, user := range []string{"root", "ann", "bob"} {
		w.user = ""
		password := "pw"
		if w.chance(5) {
			password = "wrong"
		}
		r, ok := both(w, "authenticate", &pb.AuthenticateRequest{Name: user, Password: password}, func(s *side) func(context.Context, *pb.AuthenticateRequest, ...grpc.CallOption) (*pb.AuthenticateResponse, error) {
			return s.auth.Authenticate
		}, func(r *pb.AuthenticateResponse) string { return fmt.Sprint(head(r.Header), r.Token != "") })
		if ok {
			for i, s := range w.sides {
				s.tokens[user] = r[i].Token
			}
		}
	}
}

// === the rest ===

func (w *walk) others() {
	switch w.rng.IntN(5) {
	case 0:
		q := &pb.AlarmRequest{Action: pb.AlarmRequest_AlarmAction(w.rng.IntN(3)), Alarm: pick(w, pb.AlarmType_NONE, pb.AlarmType_NOSPACE), MemberID: 7}
		both(w, "alarm", q, func(s *side) func(context.Context, *pb.AlarmRequest, ...grpc.CallOption) (*pb.AlarmResponse, error) {
			return s.maint.Alarm
		}, func(r *pb.AlarmResponse) string { return fmt.Sprint(head(r.Header), r.Alarms) })
		if w.chance(60) {
			w.user = pick(w, "root")
			off := &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 7}
			both(w, "disarm", off, func(s *side) func(context.Context, *pb.AlarmRequest, ...grpc.CallOption) (*pb.AlarmResponse, error) {
				return s.maint.Alarm
			}, func(r *pb.AlarmResponse) string { return fmt.Sprint(head(r.Header), r.Alarms) })
		}
	case 1:
		both(w, "members", &pb.MemberListRequest{Linearizable: true}, func(s *side) func(context.Context, *pb.MemberListRequest, ...grpc.CallOption) (*pb.MemberListResponse, error) {
			return s.cluster.MemberList
		}, func(r *pb.MemberListResponse) string {
			m := r.Members[0]
			return fmt.Sprint(head(r.Header), len(r.Members), m.Name, len(m.PeerURLs), len(m.ClientURLs), m.IsLearner)
		})
	case 2:
		both(w, "status", &pb.StatusRequest{}, func(s *side) func(context.Context, *pb.StatusRequest, ...grpc.CallOption) (*pb.StatusResponse, error) {
			return s.maint.Status
		}, func(r *pb.StatusResponse) string {
			return fmt.Sprint(head(r.Header), r.Version, r.StorageVersion, r.Errors, r.IsLearner, r.DbSizeQuota, r.Leader == r.Header.MemberId)
		})
	case 3:
		at := pick(w, int64(0), w.revision, w.revision+1, w.compacted-1, w.revision-1)
		if at == w.compacted || at == 0 {
			at = w.revision
		}
		if w.hashed[at] {
			return
		}
		both(w, "hashkv", &pb.HashKVRequest{Revision: at}, func(s *side) func(context.Context, *pb.HashKVRequest, ...grpc.CallOption) (*pb.HashKVResponse, error) {
			return s.maint.HashKV
		}, func(r *pb.HashKVResponse) string {
			return fmt.Sprint(head(r.Header), r.Hash, r.HashRevision, r.CompactRevision)
		})
	default:
		if w.enabled {
			return
		}
		both(w, "auth status", &pb.AuthStatusRequest{}, func(s *side) func(context.Context, *pb.AuthStatusRequest, ...grpc.CallOption) (*pb.AuthStatusResponse, error) {
			return s.auth.AuthStatus
		}, func(r *pb.AuthStatusResponse) string { return fmt.Sprint(head(r.Header), r.Enabled, r.AuthRevision) })
	}
}

// head shows a header without the server's own ids.
func head(h *pb.ResponseHeader) string {
	if h == nil {
		return "no header"
	}
	return fmt.Sprintf("rev %d ids %v", h.Revision, h.ClusterId != 0 && h.MemberId != 0 && h.RaftTerm != 0)
}

func kvs(list ...*mvccpb.KeyValue) string {
	var b strings.Builder
	for _, kv := range list {
		if kv != nil {
			fmt.Fprintf(&b, "[%q=%q c%d m%d v%d l%d]", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
		}
	}
	return b.String()
}
