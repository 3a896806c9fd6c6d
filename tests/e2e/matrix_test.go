package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// pods is the number of endpoints in each cluster.
const pods = 10

// row is what was seen of a set.
type row struct {
	set
	ready, keys, status, note string
}

// Every set of values that changes the pod of the official chart, with our image: is the pod ready, are the keys of both
// clusters right, is the status right? Hong Kong stays as it is, so that its mirror meets a new store for each set.
func TestChartMatrix(t *testing.T) {
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, c.Apply(mesh.Objects(c, pods)))
	}
	check(t, shared.chart.Install(hk, base(hk, mesh.Peer(tokyo.Name, tokyo.Nodes[0].Address))))
	_, err := mesh.WaitReady(hk, time.Minute)
	check(t, err)
	check(t, tokyo.Nodes[0].Start("external-etcd", variable("ISTHMUS_BIN"), "etcd", "--data-dir="+filepath.Join(tokyo.Nodes[0].Dir, "external"),
		"--listen-client-urls=http://"+external, "--advertise-client-urls=http://"+external, "--listen-peer-urls=http://127.0.0.1:22380"))

	var rows []row
	for _, s := range slices.Concat(identitySets(32379), tlsSets(), podSets()) {
		if !wanted(s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			r := row{set: s}
			defer func() { rows = append(rows, r) }()
			tryOut(t, tokyo, hk, &r)
		})
	}
	check(t, os.WriteFile(filepath.Join(filepath.Dir(shared.logs), "matrix.md"), []byte(table(rows)), 0o644))
}

// tryOut installs a set, looks, and removes everything.
func tryOut(t *testing.T, tokyo, hk *kube.Cluster, r *row) {
	r.ready, r.keys, r.status = "no", "–", "–"
	t.Cleanup(func() {
		check(t, shared.chart.Uninstall(tokyo))
		for _, object := range r.remove {
			if out, err := tokyo.Try("delete", "-n", mesh.Namespace, "--ignore-not-found", "--wait=true", object); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
	})
	for _, step := range []func(*kube.Cluster) error{r.before, func(c *kube.Cluster) error {
		values := base(c, append([]mesh.Values{mesh.Peer(hk.Name, hk.Nodes[0].Address)}, r.values...)...)
		return shared.chart.Install(c, values)
	}, r.after} {
		if step == nil {
			continue
		}
		if err := step(tokyo); err != nil {
			if r.breaks != "" && strings.Contains(err.Error(), r.breaks) {
				r.note = "the API server refuses the Deployment"
				return
			}
			t.Fatal(err)
		}
	}
	if r.breaks != "" {
		broken(t, tokyo, hk, r)
		return
	}
	list, err := mesh.WaitReady(tokyo, time.Minute)
	check(t, err)
	r.ready = fmt.Sprintf("%.0f s", list[0].Ready().Sub(*list[0].Status.StartTime).Seconds())
	rightContainers(t, list[0], r.containers)
	for _, pod := range list {
		if err := keysOf(tokyo, hk, pod, r); err != nil {
			r.keys = "no"
			t.Error(err)
		}
	}
	if strings.Contains(r.containers+"kvstoremesh", "kvstoremesh") && r.containers != "etcd apiserver" {
		if err := mesh.Eventually(15*time.Second, func() error {
			return statusIs(tokyo, mesh.Remote{Name: hk.Name, Ready: true, Nodes: 1, Endpoints: pods, Identities: 1, Services: 1})
		}); err != nil {
			r.status = "no"
			t.Error(err)
		} else {
			r.status = "yes"
		}
	}
	if r.also != nil {
		check(t, r.also(tokyo, list))
	}
}

// broken checks that a set fails in the way that is known.
func broken(t *testing.T, tokyo, hk *kube.Cluster, r *row) {
	seen := mesh.Eventually(40*time.Second, func() error {
		list, err := mesh.Pods(tokyo)
		if err != nil {
			return err
		}
		text := ""
		for _, pod := range list {
			text += pod.Why().Error()
			if events, err := tokyo.Try("get", "events", "-n", mesh.Namespace, "--field-selector", "involvedObject.name="+pod.Metadata.Name,
				"-o", "jsonpath={.items[*].message}"); err == nil {
				text += events
			}
			if !pod.Ready().IsZero() {
				if remotes, err := mesh.Status(tokyo, pod.Metadata.Name); err == nil {
					for _, remote := range remotes {
						if !remote.Ready {
							text += remote.Name + ": " + remote.Status
						}
					}
				}
			}
		}
		if !strings.Contains(text, r.breaks) {
			return fmt.Errorf("%q is not in %q", r.breaks, text)
		}
		r.note = text
		return nil
	})
	check(t, seen)
}

func rightContainers(t *testing.T, pod mesh.Pod, want string) {
	t.Helper()
	if want == "" {
		want = "etcd apiserver kvstoremesh"
	}
	wanted := strings.Fields(want)
	var got []string
	for _, container := range pod.Status.ContainerStatuses {
		got = append(got, container.Name)
		if container.RestartCount > 0 {
			t.Errorf("%s restarted %d times", container.Name, container.RestartCount)
		}
	}
	slices.Sort(got)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		t.Errorf("containers %v, want %v", got, wanted)
	}
}

// keysOf compares the keys of a pod with what both clusters have.
func keysOf(tokyo, hk *kube.Cluster, pod mesh.Pod, r *row) error {
	fromHK, err := mesh.ClientOf(hk, hk, mesh.RemoteUser)
	if err != nil {
		return err
	}
	defer fromHK.Close()
	open := func(secret string) (*clientv3.Client, error) {
		if r.external != "" {
			return clientv3.New(clientv3.Config{Endpoints: []string{"http://" + r.external}, DialTimeout: 5 * time.Second})
		}
		return mesh.ClientAt(tokyo, secret, pod.Status.PodIP+":2379")
	}
	var texts []string
	if r.containers != "etcd apiserver" {
		cache, err := open(mesh.LocalUser)
		if err != nil {
			return err
		}
		defer cache.Close()
		keys := 0
		if err := mesh.Eventually(15*time.Second, func() (err error) {
			keys, err = mesh.Compare(fromHK, hk.Name, cache)
			return err
		}); err != nil {
			return fmt.Errorf("keys of Hong Kong: %w", err)
		}
		texts = append(texts, fmt.Sprintf("%d mirrored", keys))
	}
	if !r.noKeys {
		own, err := open(mesh.AdminUser) // with authMode=cluster the own remote user is a user of the peers only
		if err != nil {
			return err
		}
		defer own.Close()
		var published map[string]string
		if err := mesh.Eventually(15*time.Second, func() (err error) {
			published, err = mesh.Keys(own, "cilium/state/")
			if err == nil && len(published) < allKeys {
				err = fmt.Errorf("%d keys are published: %v", len(published), published)
			}
			return err
		}); err != nil {
			return fmt.Errorf("keys of Tokyo: %w", err)
		}
		texts = append(texts, fmt.Sprintf("%d published", len(published)))
	}
	r.keys = strings.Join(texts, ", ")
	return nil
}

// table writes the rows as a table of Markdown.
func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| Values | Ready after | Keys | Status | Remark |\n|---|---|---|---|---|\n")
	for _, r := range rows {
		remark := r.remark
		if r.breaks != "" {
			remark = "fails with any image: " + r.around
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.name, r.ready, r.keys, r.status, remark)
	}
	return b.String()
}
