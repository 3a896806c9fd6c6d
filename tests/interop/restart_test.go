package interop

import (
	"context"
	"flag"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/interop/peer"
)

// A server with a data directory is killed under its clients and started again, and the clients continue as if nothing
// had happened. restart_state_test.go covers state other than keys and watches.
var (
	restartWatchers = flag.Int("restart.watchers", 200, "number of clients, with one watch each")
	restartKeys     = flag.Int("restart.keys", 2000, "number of keys before the restart")
	restartRate     = flag.Int("restart.rate", 100, "writes per second")
	restartOnly     = flag.String("restart.only", "", "run only this server: etcd or isthmus")
	restartArgs     = flag.String("restart.args", "", "more arguments for Isthmus")
)

// === a server whose data outlives its process ===

type kept struct{ *server }

// keep prepares a server that does not run yet, with fixed addresses and a fixed directory.
func keep(t testing.TB, name, dir string, args ...string) *kept {
	t.Helper()
	address := peer.FreePort()
	url := "http://" + address
	own := []string{"--data-dir=" + dir, "--listen-client-urls=" + url, "--advertise-client-urls=" + url}
	var bin string
	if name == "etcd" {
		peerURL := "http://" + peer.FreePort()
		bin = peerBin(t, "etcd")
		own = append(own, "--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)
	} else {
		bin = isthmusBin(t)
		own = append(append([]string{"etcd"}, own...), strings.Fields(*restartArgs)...)
	}
	return &kept{&server{process(t, name, bin, append(own, args...)...), address}}
}

// up starts the server, and returns its first answer and the time until then.
func (k *kept) up(t testing.TB) (*pb.ResponseHeader, time.Duration) {
	t.Helper()
	began := time.Now()
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	// Retries faster than clients do by default.
	quick := backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1, MaxDelay: 2 * time.Millisecond}
	conn, err := grpc.NewClient(k.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		select {
		case <-k.Exited():
			cancel()
		case <-c.Done():
		}
	}()
	r, err := pb.NewKVClient(conn).Range(c, &pb.RangeRequest{Key: []byte("ready")}, grpc.WaitForReady(true))
	if err != nil && strings.Contains(err.Error(), "user name is empty") {
		return nil, time.Since(began)
	}
	if err != nil {
		t.Fatalf("%s does not answer: %v\n%s", k.Name, err, k.Tail(5))
	}
	return r.Header, time.Since(began)
}

// down ends the server and returns the time that took.
func (k *kept) down(t testing.TB, sig syscall.Signal) time.Duration {
	t.Helper()
	began := time.Now()
	k.Stop(sig)
	took := time.Since(began)
	if took > 30*time.Second {
		t.Errorf("%s was still running 30 s after %v", k.Name, sig)
	}
	return took
}

// === watchers over a restart ===

var followed = []string{
	"cilium/state/identities/v1/id/", "cilium/state/ip/v1/default/", "cilium/state/nodes/v1/",
	"cilium/state/services/v1/", "cilium/cache/serviceexports/v1/",
}

// change has everything of an event.
type change struct {
	deleted                bool
	key, value             string
	create, revision, vers int64
	lease                  int64
}

// seenEvent is an event in the short form that watchers keep.
type seenEvent struct {
	revision int64
	sum      uint64
	at       time.Time
}

var sums = maphash.MakeSeed()

type follower struct {
	prefix  string
	client  *clientv3.Client
	mu      sync.Mutex
	seen    []seenEvent
	last    atomic.Int64
	relists int
	strange int // answers of another cluster
}

// follow watches until ctx ends. After a cancellation by the server, the watch begins again at the current revision, like an
// agent's after a new list.
func (f *follower) follow(ctx context.Context, from int64, cluster uint64) {
	for {
		for r := range f.client.Watch(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
			if r.Canceled || r.CompactRevision != 0 {
				break
			}
			f.mu.Lock()
			if r.Header.ClusterId != cluster {
				f.strange++
			}
			for _, e := range r.Events {
				kv := e.Kv
				c := change{e.Type == clientv3.EventTypeDelete, string(kv.Key), string(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease}
				f.seen = append(f.seen, seenEvent{kv.ModRevision, maphash.Comparable(sums, c), time.Now()})
				f.last.Store(kv.ModRevision)
			}
			f.mu.Unlock()
		}
		if ctx.Err() != nil {
			return
		}
		f.mu.Lock()
		f.relists++
		f.mu.Unlock()
		if r, err := f.client.Get(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly()); err == nil {
			from = r.Header.Revision + 1
		}
	}
}

// writer changes one key after the other at a steady rate, and retries failed writes.
type writer struct {
	acked   map[int64]bool
	retries int
}

func (w *writer) run(ctx context.Context, c *clientv3.Client) {
	tick := time.NewTicker(time.Second / time.Duration(*restartRate))
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		key := func(i int) string { return fmt.Sprint(followed[(n+i)%len(followed)], "w", n/len(followed)%100) }
		for ctx.Err() == nil {
			short, cancel := context.WithTimeout(context.Background(), time.Second)
			put := clientv3.OpPut(key(0), fmt.Sprint(n))
			op := put
			switch n % 10 {
			case 8:
				op = clientv3.OpTxn(nil, []clientv3.Op{put, clientv3.OpPut(key(1), fmt.Sprint(n)), clientv3.OpPut(key(0)+"too", "")}, nil)
			case 9:
				op = clientv3.OpTxn(nil, []clientv3.Op{put, clientv3.OpDelete(key(1))}, nil)
			}
			r, err := c.Do(short, op)
			cancel()
			if err != nil {
				w.retries++
				continue
			}
			if op.IsPut() {
				w.acked[r.Put().Header.Revision] = true
			} else {
				w.acked[r.Txn().Header.Revision] = true
			}
			break
		}
		<-tick.C
	}
}

// mark puts a key below every prefix.
func mark(t testing.TB, c *clientv3.Client, name string) map[string]int64 {
	t.Helper()
	at := map[string]int64{}
	for _, prefix := range followed {
		at[prefix] = try(c.Put(ctx(t), prefix+name, name)).or(t).Header.Revision
	}
	return at
}

// allowFiles raises the limit of open files for this process and for the servers that it starts.
func allowFiles(t testing.TB, need uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < need {
		t.Skipf("%d files can be open, and it takes %d", limit.Max, need)
	}
	limit.Cur = max(limit.Cur, need)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

func TestRestart(t *testing.T) {
	for _, name := range []string{"etcd", "isthmus"} {
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			t.Run(fmt.Sprintf("%s/%v", name, sig), func(t *testing.T) {
				if *restartOnly != "" && *restartOnly != name {
					t.Skipf("only %s", *restartOnly)
				}
				restartUnder(t, keep(t, name, t.TempDir()), sig)
			})
		}
	}
}

func restartUnder(t *testing.T, k *kept, sig syscall.Signal) {
	// The client library logs its retries at length.
	t.Setenv("ETCD_CLIENT_DEBUG", "fatal")
	allowFiles(t, uint64(*restartWatchers)*2+500)
	header, _ := k.up(t)
	cluster := header.ClusterId
	c := k.client(t)
	defer c.Close()
	from := fillKeys(t, c)
	all, stop := context.WithCancel(context.Background())
	defer stop()
	var watching, writing sync.WaitGroup
	followers := make([]*follower, *restartWatchers)
	for i := range followers {
		f := &follower{prefix: followed[i%len(followed)], client: k.client(t)}
		followers[i] = f
		defer f.client.Close()
		watching.Go(func() { f.follow(all, from, cluster) })
	}
	reached := func(what string, at map[string]int64) {
		t.Helper()
		eventually(t, what, func() bool {
			return !slices.ContainsFunc(followers, func(f *follower) bool { return f.last.Load() < at[f.prefix] })
		})
	}
	reached("watchers have what was there before", mark(t, c, "filled"))

	w := &writer{acked: map[int64]bool{}}
	busy, rest := context.WithCancel(all)
	defer rest()
	writing.Go(func() { w.run(busy, c) })
	time.Sleep(2 * time.Second)
	gone := k.down(t, sig)
	code := k.State().ExitCode()
	if sig == syscall.SIGTERM && k.Name == "isthmus" && (gone > 5*time.Second || code != 0) {
		t.Errorf("on SIGTERM it exits with %d after %v", code, gone)
	}
	time.Sleep(time.Second)
	started := time.Now()
	header, answered := k.up(t)
	if header.ClusterId != cluster {
		t.Errorf("cluster %x has become %x", cluster, header.ClusterId)
	}
	for _, f := range followers {
		if header.Revision >= f.last.Load() {
			continue
		}
		report := t.Fatalf
		if k.Name != "isthmus" {
			// On a slow machine, etcd answers before it has applied all of its log.
			report = t.Logf
		}
		report("%s is at revision %d, and a watcher at %d", k.Name, header.Revision, f.last.Load())
	}
	again := k.client(t)
	defer again.Close()
	reached("watchers are live again", mark(t, again, "back"))
	time.Sleep(2 * time.Second)
	rest()
	writing.Wait()
	end := mark(t, again, "end")
	reached("watchers have all", end)
	// Leaves time for events that must not come.
	time.Sleep(500 * time.Millisecond)

	whole := &follower{prefix: "cilium/", client: again}
	watching.Go(func() { whole.follow(all, from, cluster) })
	last := end[followed[len(followed)-1]]
	eventually(t, "a new watch has all", func() bool { return whole.last.Load() >= last })
	want := map[string][]seenEvent{}
	for _, prefix := range followed {
		one := &follower{prefix: prefix, client: again}
		watching.Go(func() { one.follow(all, from, cluster) })
		eventually(t, "a new watch has all", func() bool { return one.last.Load() >= end[prefix] })
		want[prefix] = one.seen
	}
	stop()
	watching.Wait()
	checkHistory(t, whole.seen, from, last, w.acked)
	line := compareAll(t, followers, want, started, header.Revision)
	t.Logf("%s %v: %d watchers; exit %d after %v, first answer after %v, %s; %d written, %d tried again",
		k.Name, sig, len(followers), code, gone.Round(time.Millisecond), answered.Round(time.Millisecond), line, len(w.acked), w.retries)
}

// fillKeys puts the keys and returns the revision after half of them.
func fillKeys(t testing.TB, c *clientv3.Client) int64 {
	t.Helper()
	half := *restartKeys / 2
	var from int64
	for _, part := range [][2]int{{0, half}, {half, *restartKeys}} {
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				for n := part[0] + g; n < part[1]; n += 16 {
					key := fmt.Sprintf("%s%06d", followed[n%len(followed)], n)
					if _, err := c.Put(context.Background(), key, strings.Repeat("v", 200)); err != nil {
						t.Errorf("filling: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		if from == 0 {
			from = try(c.Get(ctx(t), "ready")).or(t).Header.Revision + 1
		}
	}
	return from
}

// checkHistory checks that revisions follow one another and that every acknowledged write is among them.
func checkHistory(t testing.TB, seen []seenEvent, from, last int64, acked map[int64]bool) {
	t.Helper()
	there := map[int64]bool{}
	next := from
	for _, s := range seen {
		if s.revision != next-1 && s.revision != next {
			t.Fatalf("revision %d where %d should be", s.revision, next)
		}
		next = s.revision + 1
		there[s.revision] = true
	}
	if next != last+1 {
		t.Errorf("the last revision is %d, not %d", next-1, last)
	}
	for revision := range acked {
		if !there[revision] {
			t.Errorf("revision %d was acknowledged, and is not there", revision)
		}
	}
}

// compareAll compares the events that the watchers saw with the history.
func compareAll(t testing.TB, followers []*follower, want map[string][]seenEvent, started time.Time, back int64) string {
	t.Helper()
	relists, missed, duplicates, unknown, disordered, strange, events := 0, 0, 0, 0, 0, 0, 0
	var live []time.Duration
	for _, f := range followers {
		before := missed + duplicates + unknown
		counts := map[uint64]int{}
		for _, s := range f.seen {
			counts[s.sum]++
		}
		known := map[uint64]bool{}
		for _, s := range want[f.prefix] {
			known[s.sum] = true
			if counts[s.sum] == 0 {
				missed++
			}
		}
		for sum, n := range counts {
			duplicates += n - 1
			if !known[sum] {
				unknown++
			}
		}
		same := slices.EqualFunc(f.seen, want[f.prefix], func(a, b seenEvent) bool { return a.sum == b.sum })
		if !same && missed+duplicates+unknown == before {
			disordered++
		}
		if i := slices.IndexFunc(f.seen, func(s seenEvent) bool { return s.revision > back }); i >= 0 {
			live = append(live, f.seen[i].at.Sub(started))
		}
		relists += f.relists
		strange += f.strange
		events += len(f.seen)
	}
	slices.Sort(live)
	p50, most := live[len(live)/2].Round(time.Millisecond), live[len(live)-1].Round(time.Millisecond)
	line := fmt.Sprintf("all live again after p50 %v max %v, relists %d, missed %d, duplicates %d of %d events", p50, most, relists, missed, duplicates, events)
	if relists+missed+duplicates+unknown+disordered+strange > 0 {
		t.Errorf("%s; %d never happened, %d watchers out of order, %d answers of another cluster", line, unknown, disordered, strange)
	}
	return line
}
