// Package e2e runs real Kubernetes clusters, with the official chart and with our own, on one machine. README.md says what is
// needed. The Makefile passes the places of programs and images in variables.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"isthmus.dev/e2e/image"
	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/lab"
	"isthmus.dev/e2e/mesh"
	"isthmus.dev/e2e/pki"
)

// Tags of images on every node.
const (
	ours     = "e2e.local/isthmus:test"
	newer    = "e2e.local/isthmus:newer" // the same content: an upgrade to it replaces the pod
	original = "e2e.local/cilium:test"
	certgen  = "e2e.local/certgen:test"
	coreDNS  = "e2e.local/coredns:1.12.4"
)

// output is the directory of logs and tables: target/e2e.
func output() string {
	if dir := os.Getenv("E2E_OUTPUT"); dir != "" {
		return dir
	}
	return "../../target/e2e"
}

func variable(name string) string {
	path, err := filepath.Abs(os.Getenv(name))
	if err != nil || os.Getenv(name) == "" {
		fmt.Fprintf(os.Stderr, "%s is not set: run `make e2e`\n", name)
		os.Exit(1)
	}
	return path
}

func TestMain(m *testing.M) {
	out, err := filepath.Abs(output())
	if err != nil {
		panic(err)
	}
	lab.Enter(filepath.Join(out, "logs"))
	os.Exit(m.Run())
}

// world is what all tests share: regions, images, an authority, and clusters, each made when a test first needs it.
type world struct {
	once     sync.Once
	err      error
	logs     string
	images   []kube.Image
	original bool // the original's image could be made
	ca       *pki.CA
	chart    *mesh.Chart
	mu       sync.Mutex
	clusters map[string]*kube.Cluster
}

var shared = &world{clusters: map[string]*kube.Cluster{}}

// The two clusters of the walk.
var configs = map[string]kube.Config{
	"tokyo-cluster": {
		Name: "tokyo-cluster", ID: 1, Region: "tokyo", Gateway: "10.13.0.1", Addresses: []string{"10.13.1.243"},
		PodNet: "10.244", Services: "10.96",
	},
	"hk-cluster": {
		Name: "hk-cluster", ID: 2, Region: "hk", Gateway: "10.14.0.1", Addresses: []string{"10.14.1.128"},
		PodNet: "10.245", Services: "10.97",
	},
	"osaka-cluster": {
		Name: "osaka-cluster", ID: 3, Region: "tokyo", Gateway: "10.13.0.1", Addresses: []string{"10.13.2.10", "10.13.2.11"},
		PodNet: "10.246", Services: "10.98",
	},
}

func (w *world) prepare() error {
	out, err := filepath.Abs(output())
	if err != nil {
		return err
	}
	w.logs = filepath.Join(out, "logs")
	for region, gateway := range map[string]string{"tokyo": "10.13.0.1/16", "hk": "10.14.0.1/16"} {
		if err := lab.Region(region, gateway); err != nil {
			return err
		}
	}
	if w.chart, err = mesh.OfficialChart(); err != nil {
		return err
	}
	w.ca = pki.NewCA("Cilium CA", "rsa")
	pause := filepath.Join(lab.State(), "pause.tar")
	if err := image.Pause(lab.State(), pause, kube.PauseImage); err != nil {
		return err
	}
	// The job that configures CoreDNS reads its version from the tag.
	w.images = []kube.Image{{Archive: pause, Names: []string{coreDNS}}}
	return w.podImages()
}

// podImages makes the images of the pod: ours under two names, and the original's where it is built.
func (w *world) podImages() error {
	peers := variable("PEERS_BIN")
	theirs := filepath.Join(peers, "clustermesh-apiserver")
	_, err := os.Stat(theirs)
	w.original = err == nil
	mine := kube.Image{Archive: os.Getenv("E2E_IMAGE"), Names: []string{ours, newer}}
	if mine.Archive == "" {
		mine.Archive = filepath.Join(lab.State(), "isthmus.tar")
		small, err := image.Strip(variable("ISTHMUS_BIN"), filepath.Join(lab.State(), "clustermesh-apiserver"))
		if err != nil {
			return err
		}
		if err := image.Pod(mine.Archive, ours, small, ""); err != nil {
			return err
		}
	}
	w.images = append(w.images, mine)
	if program := os.Getenv("CERTGEN"); program != "" {
		archive := filepath.Join(lab.State(), "certgen.tar")
		w.images = append(w.images, kube.Image{Archive: archive})
		if err := image.Write(archive, image.Spec{Tag: certgen, Entrypoint: []string{"/usr/bin/cilium-certgen"}, Files: []image.File{
			{Path: "/usr/bin/cilium-certgen", Source: program}, {Path: "/tmp/", Mode: 0o1777},
		}}); err != nil {
			return err
		}
	}
	if w.original {
		archive := filepath.Join(lab.State(), "original.tar")
		w.images = append(w.images, kube.Image{Archive: archive})
		return image.Pod(archive, original, theirs, filepath.Join(peers, "etcd"))
	}
	return nil
}

// cluster returns a running cluster that has the definitions of Cilium.
func cluster(t *testing.T, name string) *kube.Cluster {
	t.Helper()
	shared.once.Do(func() { shared.err = shared.prepare() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if c := shared.clusters[name]; c != nil {
		return c
	}
	start := time.Now()
	programs := kube.Programs{Peers: variable("PEERS_BIN"), Isthmus: variable("ISTHMUS_BIN")}
	c, err := kube.Start(configs[name], programs, shared.logs, shared.images...)
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.chart.Definitions(c); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: a Kubernetes with %d nodes in %.1f s", name, len(c.Nodes), time.Since(start).Seconds())
	shared.clusters[name] = c
	return c
}

// base are the chart's values for a cluster with our image.
func base(c *kube.Cluster, over ...mesh.Values) mesh.Values {
	return mesh.Merge(mesh.Base(c.Name, c.ID, ours, shared.ca), over...)
}

func must[T any](t *testing.T, value T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wanted says whether E2E_SET names a set of values: parts of names, separated by semicolons.
func wanted(name string) bool {
	only := os.Getenv("E2E_SET")
	for _, part := range strings.Split(only, ";") {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
