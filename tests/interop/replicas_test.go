package interop

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/interop/peer"
)

// Replicas that follow an etcd of three members: every answer is the one that etcd gives, whichever of the six endpoints is
// asked; watchers that hop between them see every event once; members and replicas are killed meanwhile; another past under
// the same ids ends watches as compacted. replicas_hops_test.go has the watchers, replicas_faults_test.go the faults,
// replicas_check_test.go the comparison, replicas_past_test.go other pasts.
var (
	replicaSeeds = flag.Int("replicas.seeds", 1, "number of random walks over etcd and its replicas")
	replicaCalls = flag.Int("replicas.calls", 400, "calls per walk")
)

// === an etcd of several members ===

// members is an etcd cluster on fixed ports, whose members can be killed and started again.
type members struct {
	dir   string
	args  []string
	peers []string
	kept  []*kept
}

// cluster starts an etcd with this many members, and waits until each answers.
func cluster(t testing.TB, n int, args ...string) *members {
	t.Helper()
	return clusterOn(t, make([]*peer.Host, n), args...)
}

// clusterOn starts an etcd with a member on each of the hosts; nil is this one.
func clusterOn(t testing.TB, hosts []*peer.Host, args ...string) *members {
	t.Helper()
	m := &members{dir: t.TempDir(), args: args}
	for _, h := range hosts {
		m.peers = append(m.peers, "http://"+addressOn(h))
	}
	for i, h := range hosts {
		address := addressOn(h)
		k := &kept{&server{process(t, m.name(i), peerBin(t, "etcd"), m.flags(i, address)...), address}}
		if h != nil {
			h.Run(k.Process)
		}
		m.kept = append(m.kept, k)
	}
	for _, k := range m.kept {
		if err := k.Start(); err != nil {
			t.Fatal(err)
		}
	}
	m.answer(t)
	return m
}

// addressOn is a free address on a host; nil is this one.
func addressOn(h *peer.Host) string {
	address := peer.FreePort()
	if h != nil {
		address = net.JoinHostPort(h.Address, peer.PortOf(address))
	}
	return address
}

func (m *members) name(i int) string { return fmt.Sprint("m", i) }

func (m *members) data(i int) string { return filepath.Join(m.dir, m.name(i)) }

// initial is the value of --initial-cluster, which also makes the ids of cluster and members.
func (m *members) initial() string {
	var all []string
	for i, p := range m.peers {
		all = append(all, m.name(i)+"="+p)
	}
	return strings.Join(all, ",")
}

func (m *members) flags(i int, address string) []string {
	url := "http://" + address
	return append([]string{
		"--name=" + m.name(i), "--data-dir=" + m.data(i), "--unsafe-no-fsync", "--log-level=warn",
		"--heartbeat-interval=50", "--election-timeout=500",
		"--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		"--listen-peer-urls=" + m.peers[i], "--initial-advertise-peer-urls=" + m.peers[i],
		"--initial-cluster=" + m.initial(), "--initial-cluster-token=replicas",
	}, m.args...)
}

// answer waits until every member answers linearizable reads.
func (m *members) answer(t testing.TB) {
	t.Helper()
	for _, k := range m.kept {
		eventually(t, k.Name+" answers", func() bool { return revisionOf(k.server, false) > 0 })
	}
}

func (m *members) addresses() (all []string) {
	for _, k := range m.kept {
		all = append(all, k.address)
	}
	return all
}

// connections has one connection to each address, for as long as the tests run.
var connections sync.Map

// connectionTo returns a connection to an address, which finds the server again after a restart.
func connectionTo(address string) *grpc.ClientConn {
	if found, ok := connections.Load(address); ok {
		return found.(*grpc.ClientConn)
	}
	quick := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
	if err != nil {
		panic(err)
	}
	found, _ := connections.LoadOrStore(address, conn)
	return found.(*grpc.ClientConn)
}

// revisionOf is the revision of a server; 0 if it does not answer at once.
func revisionOf(s *server, serializable bool) int64 {
	c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn := connectionTo(s.address)
	r, err := pb.NewKVClient(conn).Range(c, &pb.RangeRequest{Key: []byte("\x00"), CountOnly: true, Serializable: serializable})
	if err != nil {
		return 0
	}
	return r.Header.Revision
}

// === replicas ===

// replica is a replica with a fixed address.
type replica struct {
	*kept
	// follows is the file that names the etcd.
	follows string
}

// replicaOf starts a replica of the etcd at these addresses, without waiting for it.
func replicaOf(t testing.TB, name string, addresses []string, args ...string) *replica {
	t.Helper()
	return replicaBy(t, name, upstreamFile(addresses), args...)
}

// upstreamFile is a file of an etcd client that names the etcd at these addresses.
func upstreamFile(addresses []string) string {
	var urls []string
	for _, a := range addresses {
		urls = append(urls, fmt.Sprintf("%q", "http://"+a))
	}
	return "endpoints: [" + strings.Join(urls, ", ") + "]\n"
}

// replicaBy starts a replica of the etcd that a client file with this content names, without waiting for it.
func replicaBy(t testing.TB, name, client string, args ...string) *replica {
	t.Helper()
	return replicaOn(t, nil, name, client, args...)
}

// replicaOn starts a replica on a host; nil is this one.
func replicaOn(t testing.TB, h *peer.Host, name, client string, args ...string) *replica {
	t.Helper()
	file := filepath.Join(t.TempDir(), "upstream.yaml")
	if err := os.WriteFile(file, []byte(client), 0o600); err != nil {
		t.Fatal(err)
	}
	address := addressOn(h)
	url := "http://" + address
	flags := append([]string{"etcd", "--follow=" + file, "--listen-client-urls=" + url, "--advertise-client-urls=" + url}, args...)
	r := &replica{&kept{&server{process(t, name, isthmusBin(t), flags...), address}}, file}
	if h != nil {
		h.Run(r.Process)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// answers waits until the replica answers linearizable reads.
func (r *replica) answers(t testing.TB) {
	t.Helper()
	eventually(t, r.Name+" answers", func() bool { return revisionOf(r.server, false) > 0 })
}

// replicasOf starts replicas, and waits until each answers.
func replicasOf(t testing.TB, n int, addresses []string, args ...string) (all []*replica) {
	t.Helper()
	for i := range n {
		all = append(all, replicaOf(t, fmt.Sprint("replica", i), addresses, args...))
	}
	for _, r := range all {
		r.answers(t)
	}
	return all
}

// figure is the value of a metric of a server; -1 if there is none. A metric with labels is named with them.
func figure(t testing.TB, s *server, name string) float64 {
	t.Helper()
	r := try(http.Get("http://" + s.address + "/metrics")).or(t)
	defer r.Body.Close()
	page := try(io.ReadAll(r.Body)).or(t)
	for line := range strings.Lines(string(page)) {
		var value float64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err == nil {
				return value
			}
		}
	}
	return -1
}

// === one of several endpoints ===

// spread sends each call to another one of several servers.
type spread struct {
	rng   *rand.Rand
	conns []*grpc.ClientConn
}

func (s *spread) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return s.conns[s.rng.IntN(len(s.conns))].Invoke(ctx, method, args, reply, opts...)
}

func (s *spread) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return s.conns[s.rng.IntN(len(s.conns))].NewStream(ctx, desc, method, opts...)
}

// TestReplicasDifferential sends the calls of the random walk to one etcd, and each of them also to one of six endpoints: three
// members of an etcd and three replicas of it. All answers must be equal. A call begins when all endpoints have the calls
// before it, since serializable reads and new watches may otherwise be answered from before.
func TestReplicasDifferential(t *testing.T) {
	args := []string{"--max-txn-ops=16"}
	start := uint64(time.Now().UnixNano()) % 1_000_000
	for seed := start; seed < start+uint64(*replicaSeeds); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := cluster(t, 3, args...)
			replicas := replicasOf(t, 3, m.addresses(), args...)
			servers := []*server{}
			for _, k := range m.kept {
				servers = append(servers, k.server)
			}
			for _, r := range replicas {
				servers = append(servers, r.server)
			}
			w := newWalk(t, seed, theirs(t, args...), servers[0])
			conns := &spread{rng: rand.New(rand.NewPCG(seed, 2))}
			for _, s := range servers {
				conns.conns = append(conns.conns, s.dial(t))
			}
			w.sides[1].through(conns)
			w.above = true
			for i := 0; i < *replicaCalls; i++ {
				w.settle(servers)
				w.replicatedStep(m)
				if t.Failed() {
					t.Fatalf("seed %d, call %d; the last calls were:\n%s", seed, i, strings.Join(w.trail, "\n"))
				}
				if i%10 == 9 {
					sameHash(t, servers, w.revision)
				}
			}
			w.sync()
			for _, r := range replicas {
				for _, name := range []string{"isthmus_follow_gaps_total", "isthmus_follow_divergences_total"} {
					if got := figure(t, r.server, name); got != 0 {
						t.Errorf("%s: %s is %v", r.Name, name, got)
					}
				}
			}
			t.Logf("seed %d: %d calls, %d refused, %d events, at revision %d", seed, *replicaCalls, w.refused, w.events, w.revision)
		})
	}
}

// replicatedStep is a step of the walk without users, and without calls whose answers are a member's own.
func (w *walk) replicatedStep(m *members) {
	switch n := w.rng.IntN(100); {
	case n < 24:
		w.seen(w.put())
	case n < 50:
		w.get()
	case n < 62:
		w.seen(w.delete())
	case n < 80:
		w.seen(w.txn())
	case n < 83:
		// A compaction could remove events of watchers that a member has not served yet.
		for _, k := range m.kept {
			eventually(w.t, k.Name+" has no watcher that is behind", func() bool {
				return figure(w.t, k.server, "etcd_debugging_mvcc_slow_watcher_total") == 0
			})
		}
		w.compact()
	case n < 92:
		w.leases()
	default:
		w.watches()
	}
}

// settle waits until every server has the revision that the walk has seen.
func (w *walk) settle(servers []*server) {
	w.t.Helper()
	for _, s := range servers {
		eventually(w.t, fmt.Sprintf("%s has revision %d", s.Name, w.revision), func() bool { return revisionOf(s, true) >= w.revision })
	}
}

// sameHash compares the hashes of all keys at a revision. The hash of a server that has compacted meanwhile, or less than
// others, has another base and is left out.
func sameHash(t testing.TB, servers []*server, revision int64) {
	t.Helper()
	if revision < 2 {
		return
	}
	hashes := map[int64]map[uint32][]string{}
	for _, s := range servers {
		r, err := pb.NewMaintenanceClient(connectionTo(s.address)).HashKV(ctx(t), &pb.HashKVRequest{Revision: revision})
		if err != nil {
			continue
		}
		if hashes[r.CompactRevision] == nil {
			hashes[r.CompactRevision] = map[uint32][]string{}
		}
		hashes[r.CompactRevision][r.Hash] = append(hashes[r.CompactRevision][r.Hash], s.Name)
	}
	for compacted, found := range hashes {
		if len(found) > 1 {
			t.Errorf("hashes at revision %d, compacted at %d, differ: %v", revision, compacted, found)
		}
	}
}

// TestReplicasMoveClients moves clients between replicas while the etcd compacts: nobody lists again, and nobody misses an
// event. The clients resume as Go's client does: from the last revision that they were told.
func TestReplicasMoveClients(t *testing.T) {
	m := cluster(t, 1)
	replicas := replicasOf(t, 2, m.addresses(), "--history=10m")
	writer := m.kept[0].client(t)
	defer writer.Close()
	var last atomic.Int64
	put := func(key string) {
		r := try(writer.Put(ctx(t), key, fmt.Sprint(last.Load()))).or(t)
		last.Store(r.Header.Revision)
	}
	put("moved/first")
	next := int64(2)
	for round := range 10 {
		r := replicas[round%2]
		c := r.client(t)
		w := c.Watch(ctx(t), "moved/", clientv3.WithPrefix(), clientv3.WithRev(next))
		put(fmt.Sprint("moved/", round))
		bringsAll(t, w, next, last.Load())
		next = last.Load() + 1
		c.Close()
		// The etcd forgets everything but the present, and the replicas keep it.
		if _, err := writer.Compact(ctx(t), last.Load(), clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		put("moved/while nobody watched")
	}
}
