package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// rig is a mirror, the store that it writes to, and a watcher of the store.
type rig struct {
	shape   string
	dir     string
	ca      *authority
	local   *peer.Process // the store, where that is another process
	mirror  *peer.Process
	client  *clientv3.Client
	watcher *watcher
	sources []*source
	http    *http.Client
	// Whether nobody watches the store, because of the memory that this takes.
	blind bool
	// The address of the store.
	store, api, health, metrics string
	remotes                     string
}

func newRig(dir, shape string, ca *authority, sources []*source) (*rig, error) {
	r := &rig{
		shape: shape, dir: filepath.Join(dir, shape), ca: ca, sources: sources, http: &http.Client{Timeout: 10 * time.Second},
		store: peer.FreePort(), api: peer.FreePort(), health: peer.FreePort(), metrics: peer.FreePort(),
	}
	r.remotes = filepath.Join(r.dir, "remotes")
	for _, d := range []string{r.remotes, filepath.Join(r.dir, "manifests")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	r.mirror = &peer.Process{Name: shape, Bin: *isthmus, Log: filepath.Join(r.dir, "log")}
	if shape == "original" {
		r.mirror.Bin = *cilium
	}
	r.mirror.Args = r.args()
	if shape != "serve" {
		if err := r.startStore(); err != nil {
			return nil, err
		}
		return r, r.look()
	}
	return r, nil
}

func (r *rig) args() []string {
	args := []string{
		"kvstoremesh", "--cluster-name=local", fmt.Sprint("--cluster-id=", *most), fmt.Sprint("--max-connected-clusters=", *most),
		"--clustermesh-config=" + r.remotes, "--api-serve-addr=" + r.api, "--health-port=" + peer.PortOf(r.health),
		"--prometheus-serve-addr=" + r.metrics,
	}
	switch r.shape {
	case "serve":
		args[0] = "serve"
		args = append(args, "--manifests="+filepath.Join(r.dir, "manifests"), "--listen-client-urls=https://"+r.store,
			"--data-dir="+filepath.Join(r.dir, "data"), "--durability="+*durability)
		args = append(args, r.ca.flags()...)
	default:
		args = append(args, "--kvstore-opt=etcd.config="+filepath.Join(r.dir, "etcd.yaml"), "--kvstore-opt=etcd.qps="+*qps,
			"--kvstore-opt=etcd.bootstrapQps=10000")
	}
	if r.shape == "original" {
		return append(args, "--enable-gops=false", "--shell-sock-path=")
	}
	return append(args, strings.Fields(*more)...)
}

// startStore starts the etcd that the mirror writes to.
func (r *rig) startStore() error {
	url := "http://" + r.store
	args := []string{"--data-dir=" + filepath.Join(r.dir, "store"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=" + url, "--advertise-client-urls=" + url}
	r.local = &peer.Process{Name: "store", Bin: *etcdBin, Log: filepath.Join(r.dir, "store.log")}
	if *localKind == "isthmus" && r.shape != "original" {
		r.local.Bin, args = *isthmus, append([]string{"etcd"}, args...)
	} else {
		other := "http://" + peer.FreePort()
		args = append(args, "--listen-peer-urls="+other, "--initial-advertise-peer-urls="+other, "--initial-cluster=default="+other)
	}
	r.local.Args = args
	if err := r.local.Start(); err != nil {
		return err
	}
	text := fmt.Sprintf("endpoints:\n- %s\ninsecure-transport: true\n", url)
	return errors.Join(os.WriteFile(filepath.Join(r.dir, "etcd.yaml"), []byte(text), 0o600), r.local.Listening(r.store, time.Minute))
}

// look starts the watcher of the store.
func (r *rig) look() (err error) {
	config := clientv3.Config{Endpoints: []string{"http://" + r.store}, DialOptions: quick()}
	if r.shape == "serve" {
		config.Endpoints[0] = "https://" + r.store
		if config.TLS, err = r.ca.tls("admin-local"); err != nil {
			return err
		}
	}
	if r.client, err = clientv3.New(config); err != nil {
		return err
	}
	if !r.blind {
		r.watcher = follow(r.client, r.sources)
	}
	return nil
}

// launch starts the mirror process.
func (r *rig) launch() error {
	if err := r.mirror.Start(); err != nil {
		return err
	}
	if r.shape == "serve" {
		if err := r.mirror.Listening(r.store, time.Minute); err != nil {
			return err
		}
		if r.client == nil {
			return r.look()
		}
	}
	return nil
}

// add writes the client file of a source for the mirror.
func (r *rig) add(s *source) error {
	text := fmt.Sprintf("endpoints:\n- https://%s\ntrusted-ca-file: %s\nkey-file: %s\ncert-file: %s\n",
		s.address, r.ca.ca(), r.ca.secret("remote"), r.ca.crt("remote"))
	// Renamed into place, because the mirror could read a half-written file.
	temporary := filepath.Join(r.dir, s.name)
	return errors.Join(os.WriteFile(temporary, []byte(text), 0o600), os.Rename(temporary, filepath.Join(r.remotes, s.name)))
}

// status has the fields of the status API that this program uses.
type status struct {
	Name     string `json:"name"`
	Ready    bool   `json:"ready"`
	Failures int    `json:"num-failures"`
	Status   string `json:"status"`
}

func (r *rig) status() (all []status, err error) {
	answer, err := r.http.Get("http://" + r.api + "/v1/cluster")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(text, &all)
}

// failures is the number of lost connections to good sources that were never cut off.
func (r *rig) failures() (n int) {
	all, err := r.status()
	if err != nil {
		return -1
	}
	good := map[string]bool{}
	for _, s := range r.sources {
		good[s.name] = s.good && s.behind == nil
	}
	for _, s := range all {
		if good[s.Name] {
			n += s.Failures
		}
	}
	return n
}

// ready waits until the status API reports all good sources as ready.
func (r *rig) ready(limit time.Duration) (time.Duration, error) {
	began := time.Now()
	for {
		all, err := r.status()
		ready := map[string]bool{}
		for _, s := range all {
			ready[s.Name] = s.Ready
		}
		missing := 0
		for _, s := range r.sources {
			if s.good && !ready[s.name] {
				missing++
			}
		}
		if err == nil && missing == 0 {
			return time.Since(began), nil
		}
		if r.mirror.Ended() {
			return 0, fmt.Errorf("the mirror ended: %s", r.mirror.Complaint())
		}
		if time.Since(began) > limit {
			return time.Since(began), fmt.Errorf("%d of the sources are not ready (%v)", missing, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// figure is the sum of all series of a metric of the mirror.
func (r *rig) figure(name string) (sum float64) {
	answer, err := r.http.Get("http://" + r.metrics + "/metrics")
	if err != nil {
		return -1
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(answer.Body)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			var v float64
			fields := strings.Fields(line)
			_, _ = fmt.Sscan(fields[len(fields)-1], &v)
			sum += v
		}
	}
	return sum
}

func (r *rig) close() {
	if r.watcher != nil {
		r.watcher.end()
	}
	if r.client != nil {
		r.client.Close()
	}
	r.mirror.Stop(syscall.SIGKILL)
	r.local.Stop(syscall.SIGKILL)
}
