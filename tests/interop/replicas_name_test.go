package interop

import (
	"fmt"
	"slices"
	"testing"

	"isthmus.dev/interop/peer"
)

// TestReplicasCloneBehindTheSameName starts replicas behind a name that leads one connection to a clone of the etcd, with the same
// ids, and all others to the etcd: whichever connection it is, each replica gets what the etcd has, and keeps it. The clone has as many
// revisions as the etcd, or fewer.
func TestReplicasCloneBehindTheSameName(t *testing.T) {
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	write(t, c, "before", 100)
	clone := m.clone(t, m.backup(t))
	cc := clone.kept[0].client(t)
	defer cc.Close()
	// As many as the clone has written.
	last := write(t, c, "real", 60)
	for _, isBehind := range []bool{false, true} {
		for astray := range 3 {
			t.Run(fmt.Sprint("behind ", isBehind, ", connection ", astray), func(t *testing.T) {
				connections := slices.Repeat(m.addresses(), 100)
				connections[astray] = clone.addresses()[0]
				b := try(peer.NewBalancer(connections...)).or(t)
				defer b.Close()
				r := replicasOf(t, 1, []string{b.Address()})[0]
				reachedBy(t, r, last)
				same(t, m, r)
				last = write(t, c, "later", 20)
				same(t, m, r)
				if !isBehind && astray < 2 {
					write(t, cc, "later clone", 20)
				}
			})
		}
	}
}
