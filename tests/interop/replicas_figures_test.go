package interop

import (
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What a replica costs beside a direct connection to a member. `make replicas` prints the figures; they say something only on a
// machine that is idle.
var replicaFigures = flag.Bool("replicas.figures", false, "measure latencies at a member and at a replica")

// quantiles renders the median and the 99th percentile.
func quantiles(of []time.Duration) string {
	slices.Sort(of)
	at := func(q float64) time.Duration { return of[int(q*float64(len(of)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %v p99 %v", at(0.5), at(0.99))
}

func TestReplicasFigures(t *testing.T) {
	if !*replicaFigures {
		t.Skip("-replicas.figures is not set")
	}
	m := cluster(t, 3)
	began := time.Now()
	r := replicasOf(t, 1, m.addresses())[0]
	t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	sides := map[string]*clientv3.Client{"member": m.kept[0].client(t), "replica": r.client(t)}
	// A member that follows the leader needs a round more, and the replica may be connected to any member.
	all := map[string]*clientv3.Client{"replica": sides["replica"]}
	for _, k := range m.kept {
		all[k.Name] = k.client(t)
	}
	for name, c := range all {
		var puts, gets []time.Duration
		for i := range 1000 {
			began := time.Now()
			try(c.Put(ctx(t), fmt.Sprint("figure/", i%100), "value")).or(t)
			puts = append(puts, time.Since(began))
			began = time.Now()
			try(c.Get(ctx(t), "figure/1")).or(t)
			gets = append(gets, time.Since(began))
		}
		t.Logf("%s: put %s; linearizable get %s", name, quantiles(puts), quantiles(gets))
	}
	const writes = 3000
	var seen sync.Map
	var watchers sync.WaitGroup
	arrived := map[string]map[int64]time.Time{"member": {}, "replica": {}}
	for name, c := range sides {
		w := c.Watch(watching(t), "lag/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-w
		watchers.Add(1)
		go func() {
			defer watchers.Done()
			for len(arrived[name]) < writes {
				got := <-w
				now := time.Now()
				for _, e := range got.Events {
					arrived[name][e.Kv.ModRevision] = now
				}
			}
		}()
	}
	tick := time.NewTicker(time.Second / 325)
	defer tick.Stop()
	for i := range writes {
		<-tick.C
		put := try(sides["member"].Put(ctx(t), fmt.Sprint("lag/", i%100), "value")).or(t)
		seen.Store(put.Header.Revision, time.Now())
	}
	watchers.Wait()
	for name, times := range arrived {
		var lags []time.Duration
		for revision, at := range times {
			if answered, ok := seen.Load(revision); ok {
				lags = append(lags, at.Sub(answered.(time.Time)))
			}
		}
		if len(lags) != writes {
			t.Errorf("%s: %d events of %d writes", name, len(lags), writes)
			continue
		}
		t.Logf("%s: events behind the answer to the writer at 325 writes/s: %s", name, quantiles(lags))
	}
}
