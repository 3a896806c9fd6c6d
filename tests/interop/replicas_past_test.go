package interop

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// Other pasts: an etcd that was restored from a backup has the same ids as before, and its revisions mean something else. A
// replica finds that out, and tells its clients; without it they would wait in silence or mix both pasts.

// history writes n keys, and returns the last revision.
func write(t testing.TB, c *clientv3.Client, prefix string, n int) (last int64) {
	t.Helper()
	for i := range n {
		last = try(c.Put(ctx(t), fmt.Sprintf("%s/%d", prefix, i%50), fmt.Sprint(prefix, i))).or(t).Header.Revision
	}
	return last
}

// restore puts the contents of a snapshot in the place of a stopped member, with the ids that it had.
func (m *members) restore(t testing.TB, i int, snapshot string, args ...string) {
	t.Helper()
	if err := os.RemoveAll(m.data(i)); err != nil {
		t.Fatal(err)
	}
	run(t, "etcdutl", append([]string{
		"snapshot", "restore", snapshot, "--name=" + m.name(i), "--data-dir=" + m.data(i), "--initial-cluster=" + m.initial(),
		"--initial-cluster-token=replicas", "--initial-advertise-peer-urls=" + m.peers[i],
	}, args...)...)
}

// watching is a context for watches, which last for as long as the test.
func watching(t testing.TB) context.Context {
	c, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return c
}

// reachedBy waits until the replica has a revision.
func reachedBy(t testing.TB, r *replica, revision int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has revision %d", r.Name, revision), func() bool { return revisionOf(r.server, true) >= revision })
}

// same waits until the replica has exactly what the etcd has.
func same(t testing.TB, m *members, r *replica) {
	t.Helper()
	eventually(t, r.Name+" has what the etcd has", func() bool {
		all := func(s *server) string {
			c := s.client(t)
			defer c.Close()
			short, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			got, err := c.Get(short, "", clientv3.WithFromKey())
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(got.Header.ClusterId, got.Header.Revision, kvs(got.Kvs...))
		}
		return all(m.kept[0].server) == all(r.server)
	})
}

// ends waits for the end of a watch, which must be a compaction, and returns its compact revision.
func ends(t testing.TB, w clientv3.WatchChan, limit time.Duration) int64 {
	t.Helper()
	for deadline := time.After(limit); ; {
		select {
		case r, ok := <-w:
			switch {
			case !ok:
				t.Fatal("the watch ended without a word")
			case r.Err() != nil && r.CompactRevision > 0:
				return r.CompactRevision
			case r.Err() != nil:
				t.Fatalf("the watch ended: %v", r.Err())
			default:
				t.Errorf("the watch goes on with %d events of another past", len(r.Events))
			}
		case <-deadline:
			t.Fatalf("the watch did not end in %v", limit)
		}
	}
}

// backup is a file with a snapshot of the first member.
func (m *members) backup(t testing.TB) string {
	t.Helper()
	snapshot := filepath.Join(t.TempDir(), "snapshot.db")
	run(t, "etcdctl", "--endpoints="+m.kept[0].address, "snapshot", "save", snapshot)
	return snapshot
}

// bringsAll reads a watch of everything until it has shown every revision from the first to the last, each once.
func bringsAll(t testing.TB, w clientv3.WatchChan, first, last int64) {
	t.Helper()
	next := first
	for deadline := time.After(2 * patience); next <= last; {
		select {
		case got, ok := <-w:
			if !ok || got.Err() != nil {
				t.Fatalf("the watch ended at revision %d: %v", next, got.Err())
			}
			for _, e := range got.Events {
				if e.Kv.ModRevision != next {
					t.Fatalf("revision %d came, expected %d", e.Kv.ModRevision, next)
				}
				next++
			}
		case <-deadline:
			t.Fatalf("waited in vain for revision %d", next)
		}
	}
}

// cutOff begins with an etcd of one member, a replica that has these writes, and a watch at the replica that waits for the next
// revision. It stops the replica and kills the etcd, lets `away` happen, and lets the replica go on.
func cutOff(t *testing.T, m *members, last int64, away func(*replica)) (*replica, *clientv3.Client, clientv3.WatchChan) {
	t.Helper()
	r := replicasOf(t, 1, m.addresses())[0]
	reachedBy(t, r, last)
	c := r.client(t)
	t.Cleanup(func() { c.Close() })
	watch := c.Watch(watching(t), "", clientv3.WithPrefix(), clientv3.WithRev(last+1), clientv3.WithCreatedNotify())
	if first := <-watch; first.Err() != nil {
		t.Fatal(first.Err())
	}
	_ = r.Signal(syscall.SIGSTOP)
	m.kept[0].down(t, syscall.SIGKILL)
	away(r)
	_ = r.Signal(syscall.SIGCONT)
	return r, c, watch
}

// restored begins with an etcd, a replica, and a watch at the replica that waits for the next revision. `restore` replaces the
// etcd, while the replica is stopped, by a snapshot of before the last revisions.
func restored(t *testing.T, restore func(m *members, snapshot string)) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	write(t, c, "before", 200)
	snapshot := m.backup(t)
	last := write(t, c, "lost", 100)
	c.Close()
	r, rc, watch := cutOff(t, m, last, func(*replica) { restore(m, snapshot) })
	ends(t, watch, 2*patience)
	same(t, m, r)
	// The replica goes on with the new past.
	again := m.kept[0].client(t)
	defer again.Close()
	next := rc.Watch(watching(t), "after/", clientv3.WithPrefix())
	try(again.Put(ctx(t), "after/x", "1")).or(t)
	same(t, m, r)
	eventually(t, "a new watch brings the change", func() bool {
		try(again.Put(ctx(t), "after/x", "2")).or(t)
		select {
		case got := <-next:
			return got.Err() == nil && len(got.Events) > 0
		case <-time.After(time.Second):
			return false
		}
	})
}

func TestReplicasRestoredToLess(t *testing.T) {
	restored(t, func(m *members, snapshot string) {
		m.restore(t, 0, snapshot)
		m.kept[0].up(t)
	})
}

func TestReplicasRestoredAndWrittenPast(t *testing.T) {
	restored(t, func(m *members, snapshot string) {
		m.restore(t, 0, snapshot)
		m.kept[0].up(t)
		c := m.kept[0].client(t)
		defer c.Close()
		write(t, c, "other", 150)
	})
}

func TestReplicasRestoredWithBumpedRevision(t *testing.T) {
	restored(t, func(m *members, snapshot string) {
		m.restore(t, 0, snapshot, "--bump-revision=1000000", "--mark-compacted")
		m.kept[0].up(t)
	})
}

// TestReplicasRestoredAndCompacted compacts the restored etcd to the next revision of the replica, and beyond, so that the replica has
// no revision that it could compare: it knows the other past by the keys.
func TestReplicasRestoredAndCompacted(t *testing.T) {
	for name, beyond := range map[string]int64{"to the next revision": 1, "beyond": 40} {
		t.Run(name, func(t *testing.T) {
			restored(t, func(m *members, snapshot string) {
				m.restore(t, 0, snapshot)
				m.kept[0].up(t)
				c := m.kept[0].client(t)
				defer c.Close()
				// The replica has 100 revisions more than the snapshot.
				last := write(t, c, "other", 150)
				try(c.Compact(ctx(t), last-50+beyond, clientv3.WithCompactPhysical())).or(t)
			})
		})
	}
}

// TestReplicasCompactedToTheNext compacts the etcd to the next revision of a replica that is cut off, which is a deletion: nothing is
// missing, so the watch goes on.
func TestReplicasCompactedToTheNext(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	before := write(t, c, "before", 100)
	var last int64
	r, _, watch := cutOff(t, m, before, func(*replica) {
		m.kept[0].up(t)
		next := try(c.Delete(ctx(t), "before/7")).or(t).Header.Revision
		last = write(t, c, "missed", 100)
		try(c.Compact(ctx(t), next, clientv3.WithCompactPhysical())).or(t)
	})
	bringsAll(t, watch, before+1, last)
	same(t, m, r)
}

// TestReplicasCompactedPast compacts the etcd beyond the last revision of a replica that is cut off: the missing revisions are
// nowhere, and watches say so.
func TestReplicasCompactedPast(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	last := write(t, c, "before", 100)
	r, _, watch := cutOff(t, m, last, func(*replica) {
		m.kept[0].up(t)
		last = write(t, c, "missed", 100)
		try(c.Compact(ctx(t), last, clientv3.WithCompactPhysical())).or(t)
	})
	if compacted := ends(t, watch, 2*patience); compacted < last {
		t.Errorf("the compact revision is %d, and the revisions up to %d are missing", compacted, last)
	}
	same(t, m, r)
}

// TestReplicasFarBehind leaves a replica behind by more revisions than a watch should read: it takes them out of a snapshot, in
// order, and its watches go on.
func TestReplicasFarBehind(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	last := write(t, c, "before", 10)
	c.Close()
	const missing = 25_000
	r, _, watch := cutOff(t, m, last, func(*replica) {
		m.kept[0].up(t)
		c := m.kept[0].client(t)
		defer c.Close()
		done := make(chan error)
		for worker := range 50 {
			go func() {
				for i := range missing / 50 {
					if _, err := c.Put(ctx(t), fmt.Sprintf("far/%d", worker), fmt.Sprint(i)); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 50 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	})
	bringsAll(t, watch, last+1, last+missing)
	if loads := figure(t, r.server, `isthmus_follow_loads_total{how="snapshot"}`); loads != 2 {
		t.Errorf("%v loads from a snapshot, expected the first one and that of the missing revisions", loads)
	}
	same(t, m, r)
}

// clone is another etcd with the ids of this one of one member, which went another way after the snapshot.
func (m *members) clone(t testing.TB, snapshot string) *members {
	t.Helper()
	clone := &members{dir: t.TempDir(), args: m.args, peers: m.peers}
	address := peer.FreePort()
	flags := append(clone.flags(0, address), "--listen-peer-urls=http://"+peer.FreePort())
	clone.kept = []*kept{{&server{process(t, "clone", peerBin(t, "etcd"), flags...), address}}}
	clone.restore(t, 0, snapshot)
	clone.kept[0].up(t)
	c := clone.kept[0].client(t)
	defer c.Close()
	write(t, c, "clone", 60)
	return clone
}

// names lets the file of a replica name both; it is read again for each connection.
func (r *replica) names(t testing.TB, one, other *members) {
	t.Helper()
	both := upstreamFile(append(one.addresses(), other.addresses()...))
	if err := os.WriteFile(r.follows, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReplicasCloneWhileCompacted gives a replica that has to load anew, since the etcd was compacted, a clone as another endpoint:
// nothing is loaded from it.
func TestReplicasCloneWhileCompacted(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	write(t, c, "before", 100)
	snapshot := m.backup(t)
	last := write(t, c, "real", 20)
	r, _, watch := cutOff(t, m, last, func(r *replica) {
		m.kept[0].up(t)
		last = write(t, c, "missed", 100)
		try(c.Compact(ctx(t), last, clientv3.WithCompactPhysical())).or(t)
		r.names(t, m.clone(t, snapshot), m)
	})
	if compacted := ends(t, watch, 2*patience); compacted < last {
		t.Errorf("the compact revision is %d, and the revisions up to %d are missing", compacted, last)
	}
	same(t, m, r)
}

// TestReplicasClone gives a replica a second endpoint that is a clone of the etcd with the same ids: it is shut out, whatever
// happens to the etcd.
func TestReplicasClone(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	write(t, c, "before", 100)
	snapshot := m.backup(t)
	last := write(t, c, "real", 20)
	clone := m.clone(t, snapshot)
	r := replicasOf(t, 1, m.addresses())[0]
	reachedBy(t, r, last)
	// The file is read again for each connection.
	r.names(t, clone, m)
	rc := r.client(t)
	defer rc.Close()
	watch := rc.Watch(watching(t), "real/", clientv3.WithPrefix(), clientv3.WithRev(last+1))
	for round := range 3 {
		m.kept[0].down(t, syscall.SIGKILL)
		m.kept[0].up(t)
		var at int64
		eventually(t, "the etcd takes a write", func() bool {
			short, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			put, err := c.Put(short, "real/x", fmt.Sprint(round))
			if err == nil {
				at = put.Header.Revision
			}
			return err == nil
		})
		for seen := false; !seen; {
			select {
			case got := <-watch:
				if got.Err() != nil {
					t.Fatalf("round %d: the watch ended: %v", round, got.Err())
				}
				for _, e := range got.Events {
					seen = seen || e.Kv.ModRevision == at
				}
			case <-time.After(patience):
				t.Fatalf("round %d: the write did not come", round)
			}
		}
		same(t, m, r)
	}
}

// TestReplicasSister loads a replica from another one: it has the history of the other one, although the etcd has compacted it.
func TestReplicasSister(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	first := write(t, c, "before", 100) - 99
	sister := replicasOf(t, 1, m.addresses())[0]
	last := write(t, c, "after", 50)
	reachedBy(t, sister, last)
	try(c.Compact(ctx(t), last, clientv3.WithCompactPhysical())).or(t)
	file := filepath.Join(t.TempDir(), "peers.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "endpoints: [\"http://%s\"]\n", sister.address), 0o600); err != nil {
		t.Fatal(err)
	}
	r := replicaOf(t, "replica of a sister", m.addresses(), "--peers="+file)
	r.answers(t)
	if loads := figure(t, r.server, `isthmus_follow_loads_total{how="sister"}`); loads != 1 {
		t.Errorf("%v loads from a sister, expected one", loads)
	}
	rc := r.client(t)
	defer rc.Close()
	watch := rc.Watch(watching(t), "", clientv3.WithPrefix(), clientv3.WithRev(first))
	bringsAll(t, watch, first, write(t, c, "now", 10))
	same(t, m, r)
}
