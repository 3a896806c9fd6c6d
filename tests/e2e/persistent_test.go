package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

const ownChart = "../../deploy/helm/isthmus"

// ownValues are values of our own chart for a cluster with a peer.
func ownValues(c, peer *kube.Cluster, image string, over ...mesh.Values) mesh.Values {
	encode := base64.StdEncoding.EncodeToString
	return mesh.Merge(mesh.Values{
		"image":  mesh.Values{"repository": "e2e.local/isthmus", "tag": image, "pullPolicy": "Never"},
		"tls":    mesh.Values{"ca": mesh.Values{"cert": encode(shared.ca.PEM), "key": encode(shared.ca.KeyPEM)}},
		"config": mesh.Values{"enabled": true, "clusters": mesh.Values{peer.Name: mesh.Values{"ips": []string{peer.Nodes[0].Address}, "port": 32379}}},
	}, over...)
}

// volume makes a volume on the machine of a cluster, as a storage driver would.
func volume(t *testing.T, c *kube.Cluster) {
	t.Helper()
	dir := filepath.Join(c.Nodes[0].Dir, "volume")
	check(t, os.MkdirAll(dir, 0o777))
	check(t, os.Chmod(dir, 0o777))
	check(t, c.Apply(fmt.Sprintf(`apiVersion: v1
kind: PersistentVolume
metadata: {name: mesh}
spec:
  capacity: {storage: 4Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: machine
  hostPath: {path: %s}
`, dir)))
}

// Our own chart on a persistent volume: an upgrade replaces the pod, and every client resumes its watch in the same store.
func TestRollingUpgradeWithAPersistentVolume(t *testing.T) {
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	check(t, shared.chart.Uninstall(tokyo))
	check(t, shared.chart.Install(hk, base(hk, mesh.Peer(tokyo.Name, tokyo.Nodes[0].Address))))
	ownConfig(t, tokyo)
	volume(t, tokyo)
	persistent := mesh.Values{"storage": mesh.Values{"type": "persistent", "persistent": mesh.Values{"storageClassName": "machine"}}}
	t.Cleanup(func() {
		_, err := tokyo.Helm("uninstall", "mesh", "-n", mesh.Namespace, "--wait")
		check(t, err)
		_, err = tokyo.Try("delete", "pvc,pv", "-n", mesh.Namespace, "--all", "--wait=true")
		check(t, err)
	})
	check(t, mesh.OwnChart(tokyo, ownChart, ownValues(tokyo, hk, "test", persistent)))
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, c.Apply(mesh.Objects(c, pods)))
		list, err := mesh.WaitReady(c, time.Minute)
		check(t, err)
		t.Logf("%s is ready %.0f s after its start", list[0].Metadata.Name, list[0].Ready().Sub(*list[0].Status.StartTime).Seconds())
	}
	for _, pair := range [][2]*kube.Cluster{{tokyo, hk}, {hk, tokyo}} {
		check(t, mesh.Eventually(30*time.Second, func() error {
			keys, err := mesh.Mirrors(pair[0], pair[1])
			if err == nil && keys < allKeys {
				err = errFew(keys)
			}
			return err
		}))
		rightStatus(t, pair[1], pair[0].Name, mesh.Remote{Nodes: 1, Endpoints: pods, Identities: 1, Services: 1})
	}
	seen := under(t, tokyo, hk, tokyo.Nodes[0].Address+":32379", func() {
		check(t, mesh.OwnChart(tokyo, ownChart, ownValues(tokyo, hk, "newer", persistent)))
		_, err := mesh.WaitReady(tokyo, 90*time.Second)
		check(t, err)
	})
	t.Log(seen)
	if seen.lists != 0 {
		t.Errorf("%d lists", seen.lists)
	}
}
