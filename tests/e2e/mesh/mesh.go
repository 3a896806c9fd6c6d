// Package mesh puts Cilium's Cluster Mesh on clusters: the official chart unmodified, the objects that an agent would make, and
// the keys that appear in the stores.
package mesh

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/pki"
)

// Version is the Cilium release whose chart and definitions the tests take.
const Version = "v1.20.2"

// Namespace is where the chart is installed.
const Namespace = "kube-system"

// Values are values of a chart.
type Values = map[string]any

// Merge lays values over values; maps are merged, everything else is replaced.
func Merge(base Values, over ...Values) Values {
	merged := maps.Clone(base)
	for _, values := range over {
		for key, value := range values {
			old, wasMap := merged[key].(Values)
			inner, isMap := value.(Values)
			if wasMap && isMap {
				merged[key] = Merge(old, inner)
			} else {
				merged[key] = value
			}
		}
	}
	return merged
}

// Set makes values of a path such as clustermesh.apiserver.replicas.
func Set(path string, value any) Values {
	parts := strings.Split(path, ".")
	slices.Reverse(parts)
	for _, part := range parts {
		value = Values{part: value}
	}
	return value.(Values)
}

// Source is the directory of a Go module in the module cache.
func Source(module, version string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", module+"@"+version)
	cmd.Dir = os.TempDir()
	out, err := cmd.Output()
	var answer struct{ Dir, Error string }
	if json.Unmarshal(out, &answer) == nil && answer.Dir != "" {
		return answer.Dir, nil
	}
	return "", fmt.Errorf("go mod download %s@%s: %w: %s", module, version, err, answer.Error)
}

// Chart is the official chart.
type Chart struct{ source string }

// OfficialChart takes Cilium's chart from Cilium's Go module.
func OfficialChart() (*Chart, error) {
	source, err := Source("github.com/cilium/cilium", Version)
	return &Chart{source: source}, err
}

// Path is the directory of the chart.
func (c *Chart) Path() string { return filepath.Join(c.source, "install/kubernetes/cilium") }

// Definitions applies the CustomResourceDefinitions, which an operator makes otherwise.
func (c *Chart) Definitions(cluster *kube.Cluster) error {
	for _, dir := range []string{"v2", "v2alpha1"} {
		path := filepath.Join(c.source, "pkg/k8s/apis/cilium.io/client/crds", dir)
		if out, err := cluster.Try("apply", "--server-side", "-f", path); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	for _, name := range []string{"ciliumnodes", "ciliumidentities", "ciliumendpoints", "ciliumendpointslices"} {
		if out, err := cluster.Try("wait", "--for=condition=Established", "--timeout=60s", "crd/"+name+".cilium.io"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// Base are the values of a cluster whose Cluster Mesh pod is all that the chart installs.
func Base(name string, id int, image string, ca *pki.CA) Values {
	off := Values{"enabled": false}
	return Values{
		"agent": false, "operator": off, "envoy": off, "hubble": off, "installNoConntrackIptablesRules": false,
		"cluster": Values{"name": name, "id": id},
		"tls": Values{"ca": Values{
			"cert": base64.StdEncoding.EncodeToString(ca.PEM), "key": base64.StdEncoding.EncodeToString(ca.KeyPEM),
		}},
		"clustermesh": Values{
			"useAPIServer": true, "config": Values{"enabled": true},
			"apiserver": Values{"image": Values{"override": image, "pullPolicy": "Never"}},
		},
	}
}

// Peer is an entry of clustermesh.config.clusters.
func Peer(name, address string) Values {
	return Set("clustermesh.config.clusters."+name, Values{"ips": []string{address}, "port": 32379})
}

// Install installs or upgrades the chart.
func (c *Chart) Install(cluster *kube.Cluster, values Values) error {
	return helmInstall(cluster, "cilium", c.Path(), values)
}

func helmInstall(cluster *kube.Cluster, release, chart string, values Values) error {
	encoded, err := json.Marshal(values) // JSON is YAML
	if err != nil {
		return err
	}
	file := filepath.Join(os.TempDir(), cluster.Name+"-values.json")
	if err := os.WriteFile(file, encoded, 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	_, err = cluster.Helm("upgrade", "--install", release, chart, "-n", Namespace, "-f", file)
	return err
}

// Uninstall removes the release, and waits until its pods are gone.
func (c *Chart) Uninstall(cluster *kube.Cluster) error {
	if _, err := cluster.Helm("uninstall", "cilium", "-n", Namespace, "--ignore-not-found"); err != nil {
		return err
	}
	return Eventually(60*time.Second, func() error {
		out, err := cluster.Try("get", "pods", "-n", Namespace, "-l", "app.kubernetes.io/part-of=cilium", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("still there: %s", out)
		}
		return err
	})
}

// slack multiplies limits of time: a machine that builds at the same time is slow. E2E_SLACK=10 sets it.
var slack = sync.OnceValue(func() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("E2E_SLACK")); err == nil && n > 1 {
		return time.Duration(n)
	}
	return 1
})

// Limit is a limit of time for this machine.
func Limit(d time.Duration) time.Duration { return d * slack() }

// Eventually waits for a condition.
func Eventually(patience time.Duration, condition func() error) error {
	deadline := time.Now().Add(Limit(patience))
	for {
		err := condition()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// OwnChart installs or upgrades the chart of this repository as the release "mesh".
func OwnChart(cluster *kube.Cluster, path string, values Values) error {
	return helmInstall(cluster, "mesh", path, values)
}
