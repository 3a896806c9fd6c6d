package interop

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The differential walk: the same random calls go to etcd and to Isthmus, one at a time, and all answers and watch events
// must be equal. These differences are accepted, or avoided by the walk:
//   - ids, terms and sizes, which each server has of its own;
//   - the order of keys that are equal under a sort: etcd's sort is unstable;
//   - the remaining seconds of a lease, by the time between the two calls;
//   - a RangeStream with a sort target and without an order: etcd sorts each chunk alone, and loses keys between chunks;
//   - an empty transaction without a user: etcd answers, and Isthmus refuses, because the answer shows the revision;
//   - HashKV at the compacted revision, where etcd returns the hash of before the compaction, and HashKV of the present
//     after a compaction at 0, where etcd returns the hash of an empty store;
//   - permission for a range whose end is before its beginning.
//
// Isthmus does as etcd 3.7 does. Where etcd 3.6 differs, the walk along etcd 3.6 also leaves out:
//   - RangeStream, which 3.6 does not have, and the versions in Status;
//   - AuthStatus while authentication is on, which 3.6 allows only to the role root;
//   - the leases of key-values without their values, which 3.6 returns;
//   - a put in a transaction with a missing key and an unknown lease, of which 3.6 reports the key.
var (
	seeds = flag.Int("seeds", 4, "number of random walks")
	calls = flag.Int("calls", 1000, "calls per walk")
	first = flag.Uint64("seed", 0, "first seed; 0 takes the time")
	trail = flag.Int("trail", 12, "number of calls that are printed before a difference")
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

// side is one of the two servers, with the state of a client: tokens and watch streams.
type side struct {
	*server
	pb.KVClient
	pb.LeaseClient
	pb.AuthClient
	pb.ClusterClient
	pb.MaintenanceClient
	pb.WatchClient
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
	// above says that revisions up to the compacted one are not asked for: replicas may have more history than etcd.
	above bool
	// before37 says that the peer is etcd 3.6.
	before37 bool
	user     string
	trail    []string
	refused  int
	events   int
}

func newWalk(t *testing.T, seed uint64, servers ...*server) *walk {
	w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 1)), revision: 1, hashed: map[int64]bool{}}
	for i, s := range servers {
		w.sides[i] = &side{server: s, tokens: map[string]string{}}
		w.sides[i].through(s.dial(t))
	}
	w.before37 = strings.HasPrefix(try(w.sides[0].Status(ctx(t), &pb.StatusRequest{})).or(t).Version, "3.6.")
	return w
}

// through makes the side's calls over a connection.
func (s *side) through(conn grpc.ClientConnInterface) {
	s.KVClient, s.LeaseClient, s.AuthClient = pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewAuthClient(conn)
	s.ClusterClient, s.MaintenanceClient = pb.NewClusterClient(conn), pb.NewMaintenanceClient(conn)
	s.WatchClient = pb.NewWatchClient(conn)
}

func pick[T any](w *walk, of ...T) T { return of[w.rng.IntN(len(of))] }

func (w *walk) chance(percent int) bool { return w.rng.IntN(100) < percent }

// ctx carries the token of the current user at one side.
func (w *walk) ctx(s *side) context.Context {
	c := ctx(w.t)
	if token := s.tokens[w.user]; token != "" {
		c = metadata.AppendToOutgoingContext(c, "token", token)
	}
	return c
}

// method is a call of one of the services: `(*side).Put`.
type method[Q, R any] = func(*side, context.Context, Q, ...grpc.CallOption) (R, error)

// both makes one call at both sides and compares the answers as `show` renders them.
func both[Q, R any](w *walk, name string, q Q, call method[Q, R], show func(R) string) (r [2]R, ok bool) {
	var texts [2]string
	var errs [2]error
	for i, s := range w.sides {
		r[i], errs[i] = call(s, w.ctx(s), q)
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

// rangeEnd returns an end for a range from key. While authentication is on, the end is not before the key: whether etcd
// permits such an empty range depends on the shape of its interval tree.
func (w *walk) rangeEnd(key []byte) []byte {
	end := w.end()
	if w.enabled && len(end) > 0 && string(end) != "\x00" && string(end) <= string(key) {
		return nil
	}
	return end
}

func (w *walk) value() []byte { return []byte(pick(w, "", "1", "2", "3", "a longer value")) }

func (w *walk) leaseID() int64 { return int64(w.rng.IntN(6)) }

// atRevision returns a revision near the current or the compacted one.
func (w *walk) atRevision() int64 {
	at := w.anyRevision()
	if w.above && at != 0 && at <= w.compacted {
		return w.compacted + 1
	}
	return at
}

func (w *walk) anyRevision() int64 {
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

// === rendering ===

// head renders a header without the server's own ids.
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
