package e2e

import (
	"fmt"
	"testing"
	"time"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// watching is the number of clients that follow a store while its pod is replaced.
const watching = 200

// disturbed is what clients saw of a disturbance.
type disturbed struct {
	lists, deletes, dials int64
	without               time.Duration
}

func (d disturbed) String() string {
	return fmt.Sprintf("%d lists, %d deletions, %d new connections, %.2f s without service", d.lists, d.deletes, d.dials,
		d.without.Seconds())
}

// under runs a disturbance of Tokyo's store under watching clients, and looks at what Hong Kong's mirror of Tokyo does
// meanwhile: no key of Tokyo may be deleted there.
func under(t *testing.T, tokyo, hk *kube.Cluster, address string, disturb func()) disturbed {
	t.Helper()
	config := must2(mesh.FollowTLS(tokyo, mesh.RemoteUser))(t)
	mirror := must2(mesh.FollowTLS(hk, mesh.LocalUser))(t)
	clients := mesh.Watch(watching, address, config, "cilium/state/")
	far := mesh.Watch(1, hk.Nodes[0].Address+":32379", mirror, "cilium/cache/")
	probe := mesh.StartProbe(address, config)
	disturb()
	// A change after the disturbance reaches every client and the mirror, so that nothing is still to come.
	before := clients.Events.Load()
	check(t, tokyo.Apply(mesh.Endpoint(tokyo, marker())))
	check(t, mesh.Eventually(60*time.Second, func() error {
		if got := clients.Events.Load() - before + clients.Lists.Load(); got < watching {
			return fmt.Errorf("%d of %d clients saw the change", got, watching)
		}
		_, err := mesh.Mirrors(tokyo, hk)
		return err
	}))
	seen := disturbed{without: probe.Stop()}
	clients.Stop()
	far.Stop()
	seen.lists, seen.deletes, seen.dials = clients.Lists.Load(), clients.Deletes.Load(), clients.Dials.Load()
	if gone := far.Deletes.Load(); gone != 0 {
		t.Errorf("%d keys of %s were deleted in the store of %s", gone, tokyo.Name, hk.Name)
	}
	if seen.deletes != 0 {
		t.Errorf("clients were told of %d deletions", seen.deletes)
	}
	return seen
}

var markers = 100

// marker is the number of an endpoint that no test has used.
func marker() int {
	markers++
	return markers
}

func must2[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}

// connected returns the two clusters, connected, with objects, in their first state.
func connected(t *testing.T) (tokyo, hk *kube.Cluster) {
	t.Helper()
	tokyo, hk = cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	connect(t, tokyo, hk, ours)
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, c.Apply(mesh.Objects(c, pods)))
	}
	for _, pair := range [][2]*kube.Cluster{{tokyo, hk}, {hk, tokyo}} {
		check(t, mesh.Eventually(30*time.Second, func() error {
			keys, err := mesh.Mirrors(pair[0], pair[1])
			if err == nil && keys < allKeys {
				err = errFew(keys)
			}
			return err
		}))
	}
	return tokyo, hk
}

// upgradeTo replaces the pod of Tokyo by one with another image, and waits for the end of the rollout.
func upgradeTo(t *testing.T, tokyo, hk *kube.Cluster, image string) {
	t.Helper()
	check(t, shared.chart.Install(tokyo, base(tokyo, mesh.Peer(hk.Name, hk.Nodes[0].Address), mesh.Set(meshServer+"image.override", image))))
	list := must2(mesh.WaitReady(tokyo, 90*time.Second))(t)
	pod := list[len(list)-1]
	t.Logf("%s is ready %.0f s after its start", image, pod.Ready().Sub(*pod.Status.StartTime).Seconds())
}

// With the chart's emptyDir every pod is a new store, so that each client lists once; none is told that a key is gone. The
// original is measured in the same way where it is built.
func TestRollingUpgradeWithTheChartsVolume(t *testing.T) {
	tokyo, hk := connected(t)
	address := tokyo.Nodes[0].Address + ":32379"
	steps := [][2]string{{ours, newer}, {newer, ours}}
	if shared.original {
		steps = [][2]string{{ours, newer}, {newer, original}, {original, ours}}
	}
	for _, step := range steps {
		seen := under(t, tokyo, hk, address, func() { upgradeTo(t, tokyo, hk, step[1]) })
		t.Logf("%s → %s: %s", step[0], step[1], seen)
		if seen.lists > watching {
			t.Errorf("%d lists of %d clients", seen.lists, watching)
		}
	}
}

// A new certificate is served to new connections; the watches of old connections go on.
func TestCertificateRotationUnderWatchers(t *testing.T) {
	tokyo, hk := connected(t)
	address := tokyo.Nodes[0].Address + ":32379"
	seen := under(t, tokyo, hk, address, func() {
		old := must2(mesh.Serial(tokyo, address))(t)
		start := time.Now()
		check(t, secrets(tokyo))
		check(t, mesh.Eventually(2*time.Minute, func() error {
			serial, err := mesh.Serial(tokyo, address)
			if err == nil && serial == old {
				err = fmt.Errorf("the old certificate %s is still served", old)
			}
			return err
		}))
		t.Logf("the new certificate is served %.0f s after its Secret", time.Since(start).Seconds())
	})
	t.Log(seen)
	if seen.lists != 0 {
		t.Errorf("%d lists", seen.lists)
	}
}

// A pod that is evicted is replaced; a disconnected cluster's keys go and come back with the connection.
func TestEvictionOfThePod(t *testing.T) {
	tokyo, hk := connected(t)
	seen := under(t, tokyo, hk, tokyo.Nodes[0].Address+":32379", func() {
		list := must2(mesh.Pods(tokyo))(t)
		check(t, mesh.Evict(tokyo, list[0].Metadata.Name))
		check(t, mesh.Eventually(time.Minute, func() error {
			now, err := mesh.WaitReady(tokyo, time.Second)
			if err == nil && now[0].Metadata.UID == list[0].Metadata.UID {
				err = fmt.Errorf("%s is still there", now[0].Metadata.Name)
			}
			return err
		}))
	})
	t.Log(seen)
	if seen.lists > watching {
		t.Errorf("%d lists of %d clients", seen.lists, watching)
	}
}

func TestDisconnectRemovesTheKeysAndReconnectBringsThemBack(t *testing.T) {
	tokyo, hk := connected(t)
	client := must2(mesh.Client(tokyo, mesh.LocalUser))(t)
	defer client.Close()
	start := time.Now()
	check(t, shared.chart.Install(tokyo, base(tokyo)))
	check(t, mesh.Eventually(5*time.Minute, func() error {
		keys, err := mesh.Keys(client, "cilium/cache/")
		if err == nil && len(keys) > 0 {
			err = fmt.Errorf("%d mirrored keys are left", len(keys))
		}
		return err
	}))
	t.Logf("the keys are gone %.0f s after the upgrade without the peer", time.Since(start).Seconds())
	start = time.Now()
	check(t, shared.chart.Install(tokyo, base(tokyo, mesh.Peer(hk.Name, hk.Nodes[0].Address))))
	check(t, mesh.Eventually(2*time.Minute, func() error {
		_, err := mesh.Mirrors(hk, tokyo)
		return err
	}))
	t.Logf("the keys are back %.0f s after the upgrade with the peer", time.Since(start).Seconds())
}
