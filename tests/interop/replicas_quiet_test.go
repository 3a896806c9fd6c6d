package interop

import (
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// TestReplicasQuietWatchThatMovesOften moves a watch of a range in which nothing happens between two replicas, more often than quiet
// watches are told their progress, and for longer than history is kept: it must not be cancelled as compacted.
func TestReplicasQuietWatchThatMovesOften(t *testing.T) {
	m := cluster(t, 1)
	// Quiet watches are told after two seconds.
	replicas := replicasOf(t, 2, m.addresses(), "--history=6s", "--progress-to-quiet-watches=true")
	writer := m.kept[0].client(t)
	defer writer.Close()
	b := try(peer.NewBalancer(replicas[0].address)).or(t)
	defer b.Close()
	c := (&server{address: b.Address()}).client(t)
	defer c.Close()
	watch := c.Watch(watching(t), "quiet/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	began := time.Now()
	for n := 0; time.Since(began) < 20*time.Second; n++ {
		for i := range 10 {
			try(writer.Put(ctx(t), fmt.Sprint("loud/", i), fmt.Sprint(n))).or(t)
			select {
			case r, ok := <-watch:
				if !ok || r.Err() != nil {
					t.Fatalf("after %d moves in %v, the watch ended: %v, compacted at %d", n, time.Since(began), r.Err(), r.CompactRevision)
				}
			case <-time.After(100 * time.Millisecond):
			}
		}
		b.Move(replicas[(n+1)%2].address)
	}
}
