package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// ownMesh connects the two clusters with our own CLI. Both have the authority that the first one makes, or each its own.
func ownMesh(t *testing.T, w *walk, tokyo, hk *kube.Cluster, oneCA bool) {
	t.Helper()
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, shared.chart.Uninstall(c))
		ownConfig(t, c)
		standInAgents(t, c)
		check(t, c.Apply(mesh.Objects(c, pods)))
		if c == hk && oneCA {
			check(t, hk.Apply(authority(t, tokyo)))
		}
		w.run(step{title: "enable in " + c.Name, args: []string{"enable", "--context", c.Name, "--service-type", "NodePort", "--image", ours}})
		t.Cleanup(func() { w.run(step{title: "disable in " + c.Name, args: []string{"disable", "--context", c.Name}}) })
	}
	connect := []string{"connect", "--context", tokyo.Name, "--destination-context", hk.Name}
	if !oneCA {
		connect = append(connect, "--share-ca")
	}
	w.run(step{title: "connect", args: connect})
	t.Cleanup(func() {
		w.run(step{title: "disconnect", args: []string{"disconnect", "--context", tokyo.Name, "--destination-context", hk.Name}})
	})
	for _, pair := range [][2]*kube.Cluster{{tokyo, hk}, {hk, tokyo}} {
		// The kubelet passes the changed Secrets on within a minute and a half.
		check(t, mesh.Eventually(3*time.Minute, func() error {
			keys, err := mesh.Mirrors(pair[0], pair[1])
			if err == nil && keys < allKeys {
				err = errFew(keys)
			}
			return err
		}))
	}
}

// authority is the Secret of a cluster's authority, to be applied in another cluster.
func authority(t *testing.T, c *kube.Cluster) string {
	t.Helper()
	value := func(key string) string {
		return must2(c.Try("get", "secret", "-n", mesh.Namespace, "cilium-ca", "-o", `jsonpath={.data.ca\.`+key+`}`))(t)
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: cilium-ca, namespace: %s}\ndata: {ca.crt: %s, ca.key: %s}\n",
		mesh.Namespace, value("crt"), value("key"))
}

// `mesh certs rotate` under 200 watching clients: first the certificates of both clusters, then the authority. No client may list
// again or miss a key, and no key may be deleted on the other side. The authority takes up to ten minutes: its steps rest.
func TestCertsRotate(t *testing.T) {
	for name, oneCA := range map[string]bool{"one CA": true, "each its own CA": false} {
		t.Run(name, func(t *testing.T) { rotate(t, oneCA) })
	}
}

func rotate(t *testing.T, oneCA bool) {
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	w := &walk{t: t, tool: []string{variable("ISTHMUS_BIN"), "mesh"},
		env: []string{"KUBECONFIG=" + tokyo.Kubeconfig + ":" + hk.Kubeconfig, "NO_PROXY=*"}}
	t.Cleanup(func() { w.save(map[bool]string{true: "certs-one-ca.md", false: "certs-own-ca.md"}[oneCA]) })
	ownMesh(t, w, tokyo, hk, oneCA)
	address := tokyo.Nodes[0].Address + ":32379"
	clusters := []string{"--context", tokyo.Name, "--destination-context", hk.Name}

	seen := under(t, tokyo, hk, address, func() {
		old := must2(mesh.Serial(tokyo, address))(t)
		w.run(step{title: "rotate the certificates", args: append([]string{"certs", "rotate"}, clusters...)})
		served(t, tokyo, address, old)
	})
	t.Logf("certificates: %s", seen)
	if seen.lists != 0 {
		t.Errorf("%d lists", seen.lists)
	}
	// On a busy machine clients take a late answer to a keepalive for a dead connection.
	if seen.dials != 0 && os.Getenv("E2E_SLACK") == "" {
		t.Errorf("%d new connections: the watches did not go on", seen.dials)
	}

	before := authority(t, tokyo)
	seen = under(t, tokyo, hk, address, func() {
		old := must2(mesh.Serial(tokyo, address))(t)
		w.run(step{title: "rotate the authority", args: append([]string{"certs", "rotate", "--ca"}, clusters...)})
		served(t, tokyo, address, old)
	})
	t.Logf("authority: %s", seen)
	if seen.lists != 0 {
		t.Errorf("%d lists", seen.lists)
	}
	after := authority(t, tokyo)
	if after == before {
		t.Error("Tokyo has the old authority")
	}
	if same := authority(t, hk) == after; same != oneCA {
		t.Errorf("Hong Kong has the authority of Tokyo: %v, want %v", same, oneCA)
	}
	w.run(step{title: "certificates after the rotation", args: append([]string{"certs"}, clusters...)})
}

// served waits until new connections get another certificate than an old one.
func served(t *testing.T, c *kube.Cluster, address, old string) {
	t.Helper()
	start := time.Now()
	check(t, mesh.Eventually(2*time.Minute, func() error {
		serial, err := mesh.Serial(c, address)
		if err == nil && serial == old {
			err = fmt.Errorf("the old certificate %s is still served", old)
		}
		return err
	}))
	t.Logf("another certificate is served %.0f s after the command", time.Since(start).Seconds())
}
