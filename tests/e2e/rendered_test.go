package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/e2e/image"
	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/lab"
	"isthmus.dev/e2e/mesh"
	"isthmus.dev/e2e/pki"
	"isthmus.dev/e2e/rendered"
)

// site is a cluster of which only the pod of Cluster Mesh exists.
type site struct {
	*kube.Cluster
	machine *lab.Machine
	api     *rendered.API
	pod     *rendered.Pod
	objects rendered.Objects
}

// The short form, which CI runs: the official chart is rendered with each set of values, and its pod runs under runc as kubelet
// would run it. Hong Kong's pod stays. Sets that only Kubernetes itself can show are left to TestChartMatrix.
func TestRenderedChart(t *testing.T) {
	shared.ca = pki.NewCA("Cilium CA", "rsa")
	shared.chart = must2(mesh.OfficialChart())(t)
	root := filepath.Join(lab.State(), "root")
	check(t, unpackOurs(root))
	tokyo, hk := newSite(t, "tokyo-cluster"), newSite(t, "hk-cluster")
	hk.start(t, root, base(hk.Cluster, peerOf(tokyo)))
	check(t, hk.pod.WaitReady(limit(20*time.Second)))

	for _, s := range slices.Concat(identitySets(2379), tlsSets(), podSets()) {
		if s.breaks != "" || s.external != "" || s.after != nil && !strings.Contains(s.name, "certmanager") || s.name == "CiliumEndpointSlice" {
			continue
		}
		if !wanted(s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			tokyo.start(t, root, base(tokyo.Cluster, append([]mesh.Values{peerOf(hk)}, s.values...)...))
			defer tokyo.pod.Stop()
			start := time.Now()
			check(t, tokyo.pod.WaitReady(limit(20*time.Second)))
			ready := time.Since(start)
			if s.containers != "etcd apiserver" {
				check(t, equal(hk, tokyo))
				check(t, mesh.Eventually(10*time.Second, func() error { return saysReady(tokyo, hk.Name) }))
			}
			if !s.noKeys {
				check(t, equal(tokyo, hk))
			}
			t.Logf("ready after %.1f s", ready.Seconds())
		})
	}
	hk.pod.Stop()
}

func unpackOurs(root string) error {
	archive := os.Getenv("E2E_IMAGE")
	if archive == "" {
		archive = filepath.Join(lab.State(), "isthmus.tar")
		if err := image.Pod(archive, ours, variable("ISTHMUS_BIN"), ""); err != nil {
			return err
		}
	}
	return image.Unpack(archive, root)
}

func newSite(t *testing.T, name string) *site {
	t.Helper()
	config := configs[name]
	config.Addresses = config.Addresses[:1]
	check(t, lab.Region(config.Region, config.Gateway+"/16"))
	machine := must2(lab.NewMachine(name, config.Region, config.Addresses[0]+"/16", config.Gateway, logs(t)))(t)
	s := &site{machine: machine, Cluster: &kube.Cluster{Config: config, Nodes: []*kube.Node{{Machine: machine}}}}
	objects := must2(rendered.Parse(mesh.Objects(s.Cluster, pods)))(t)
	s.api = must2(rendered.Serve(config.Gateway+":6443", objects))(t)
	t.Cleanup(s.api.Close)
	return s
}

func logs(t *testing.T) string {
	t.Helper()
	return filepath.Join(must2(filepath.Abs(output()))(t), "logs")
}

func limit(d time.Duration) time.Duration { return mesh.Limit(d) }

// peerOf is the entry of a cluster whose store is reached at its pod.
func peerOf(s *site) mesh.Values {
	return mesh.Set("clustermesh.config.clusters."+s.Name, mesh.Values{"ips": []string{s.machine.Address}, "port": 2379})
}

var starts int

// start renders the chart and starts its pod.
func (s *site) start(t *testing.T, root string, values mesh.Values) {
	t.Helper()
	file := filepath.Join(s.machine.Dir, "values.json")
	check(t, os.WriteFile(file, must2(json.Marshal(values))(t), 0o600))
	helm := exec.Command(filepath.Join(variable("PEERS_BIN"), "helm"), "template", "cilium", shared.chart.Path(), "-n", mesh.Namespace,
		"--kube-version", "1.36.3", "--api-versions", "monitoring.coreos.com/v1", "-f", file)
	out, err := helm.Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	objects := must2(rendered.Parse(string(out)))(t)
	if _, ok := objects["Secret/clustermesh-apiserver-server-cert"]; !ok {
		// What certgen, cert-manager or an administrator makes.
		objects = must2(rendered.Parse(string(out), mesh.Secrets(s.Name, shared.ca)))(t)
	}
	starts++
	s.objects = objects
	s.pod, err = rendered.Start(objects, s.machine, fmt.Sprintf("pod-%d", starts), root, s.api)
	check(t, err)
}

// client connects to the store of a site with the certificate of a Secret of a site.
func client(store, owner *site, secret string) (*clientv3.Client, error) {
	config, err := mesh.TLSOf(store.Name, owner.objects["Secret/"+secret].Data)
	if err != nil {
		return nil, err
	}
	return mesh.Dial(store.machine.Address+":2379", config)
}

// equal waits until a site has mirrored what the other publishes.
func equal(source, target *site) error {
	from, err := client(source, target, mesh.RemoteUser)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := client(target, target, mesh.LocalUser)
	if err != nil {
		return err
	}
	defer to.Close()
	return mesh.Eventually(15*time.Second, func() error {
		keys, err := mesh.Compare(from, source.Name, to)
		if err == nil && keys < allKeys {
			err = errFew(keys)
		}
		return err
	})
}

func saysReady(s *site, name string) error {
	out, err := s.pod.Exec("kvstoremesh", "/usr/bin/clustermesh-apiserver", "kvstoremesh-dbg", "status", "-o", "json")
	var remotes []mesh.Remote
	if err == nil {
		err = json.Unmarshal([]byte(out), &remotes)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if len(remotes) != 1 || remotes[0].Name != name || !remotes[0].Ready {
		return fmt.Errorf("status %s", out)
	}
	return nil
}
