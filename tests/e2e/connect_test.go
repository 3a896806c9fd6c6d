package e2e

import (
	"fmt"
	"testing"
	"time"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// Two clusters with the official chart and our image, connected by the chart's values: the pods become ready, and the objects
// of each cluster are in the store of the other.
func TestChartConnectsTwoClusters(t *testing.T) {
	start := time.Now()
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	connect(t, tokyo, hk, ours)
	pairs := [][2]*kube.Cluster{{tokyo, hk}, {hk, tokyo}}
	for _, pair := range pairs {
		linked(t, pair[0], pair[1].Name)
	}
	t.Logf("%.0f s from nothing to two connected clusters", time.Since(start).Seconds())

	var stores []*mesh.Stores
	for _, pair := range pairs {
		opened := must2(mesh.Open(pair[0], pair[1]))(t)
		defer opened.Close()
		stores = append(stores, opened)
	}
	for i, pair := range pairs {
		check(t, pair[0].Apply(mesh.Objects(pair[0], pods)))
		applied := time.Now()
		var keys int
		check(t, mesh.Eventually(5*time.Second, func() (err error) {
			keys, err = stores[i].Equal()
			if err == nil && keys < allKeys {
				err = errFew(keys)
			}
			return err
		}))
		t.Logf("%d keys of %s are in the store of %s, %.1f s after kubectl", keys, pair[0].Name, pair[1].Name, time.Since(applied).Seconds())
		rightStatus(t, pair[1], pair[0].Name, mesh.Remote{Nodes: 1, Endpoints: pods, Identities: 1, Services: 1})
	}
}

// connect installs the chart in two clusters, each with the other as a peer, and waits until both pods are ready.
func connect(t *testing.T, a, b *kube.Cluster, image string) {
	t.Helper()
	for _, pair := range [][2]*kube.Cluster{{a, b}, {b, a}} {
		values := base(pair[0], mesh.Peer(pair[1].Name, pair[1].Nodes[0].Address), mesh.Set("clustermesh.apiserver.image.override", image))
		check(t, shared.chart.Install(pair[0], values))
	}
	for _, c := range []*kube.Cluster{a, b} {
		pods, err := mesh.WaitReady(c, time.Minute)
		check(t, err)
		for _, pod := range pods {
			t.Logf("%s: %s is ready %.0f s after its start", c.Name, image, pod.Ready().Sub(*pod.Status.StartTime).Seconds())
		}
	}
}

// linked waits until the mirror of a cluster is connected to a remote cluster. A pod is ready before that where the remote
// cluster had no ready pod.
func linked(t *testing.T, c *kube.Cluster, remote string) {
	t.Helper()
	check(t, mesh.Eventually(30*time.Second, func() error {
		list, err := mesh.Pods(c)
		if err != nil {
			return err
		}
		for _, pod := range list {
			remotes, err := mesh.Status(c, pod.Metadata.Name)
			if err != nil {
				return err
			}
			for _, got := range remotes {
				if got.Name == remote && !got.Ready {
					return fmt.Errorf("%s is not connected to %s: %s", pod.Metadata.Name, remote, got.Status)
				}
			}
		}
		return nil
	}))
}

// rightStatus waits until the mirror says that a remote cluster is ready with the wanted counts.
func rightStatus(t *testing.T, c *kube.Cluster, name string, want mesh.Remote) {
	t.Helper()
	want.Name, want.Ready = name, true
	check(t, mesh.Eventually(15*time.Second, func() error { return statusIs(c, want) }))
}
