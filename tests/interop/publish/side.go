package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// side is a publisher with an API server and an etcd of its own.
type side struct {
	name      string
	kind      publisherKind
	index     int
	dir       string
	world     *world
	api       *api
	gate      *gate
	etcd      *peer.Process
	publisher *peer.Process
	client    *clientv3.Client
	mirror    *mirror
	end       context.CancelFunc
	// The addresses of the publisher.
	store, health, metrics, gops string
	config                       string
	http                         *http.Client
	figures                      *figures
}

func newSide(f *figures, index int, w *world, base string) (*side, error) {
	s := &side{
		name: f.name, kind: f.kind, index: index, dir: filepath.Join(base, f.name), world: w, figures: f,
		store: peer.FreePort(), health: peer.FreePort(), metrics: peer.FreePort(), gops: peer.FreePort(),
		http: &http.Client{Timeout: 2 * time.Second},
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	s.api = &api{store: w.store, side: index, streaming: *streaming}
	var err error
	if s.gate, s.config, err = serve(s.api, s.dir, *plainHTTP); err != nil {
		return nil, err
	}
	other := "http://" + peer.FreePort()
	s.etcd = &peer.Process{Name: "etcd", Bin: *etcdBin, Log: filepath.Join(s.dir, "etcd.log"), Args: []string{
		"--data-dir=" + filepath.Join(s.dir, "data"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://" + s.store, "--advertise-client-urls=http://" + s.store,
		"--listen-peer-urls=" + other, "--initial-advertise-peer-urls=" + other, "--initial-cluster=default=" + other,
	}}
	if err := s.etcd.Start(); err != nil {
		return nil, err
	}
	if err := s.connect(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	s.mirror = follow(ctx, s.client, w, index)
	w.expect = append(w.expect, s.mirror.expect)
	return s, nil
}

// connect makes a client once etcd listens.
func (s *side) connect() (err error) {
	for range 300 {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", s.store, time.Second); err == nil {
			c.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("etcd does not answer (%w): %s", err, s.etcd.Complaint())
	}
	// The client library would log every intended outage.
	os.Setenv("ETCD_CLIENT_DEBUG", "fatal")
	defer os.Unsetenv("ETCD_CLIENT_DEBUG")
	s.client, err = clientv3.New(clientv3.Config{Endpoints: []string{s.store}, DialTimeout: 10 * time.Second})
	return err
}

// program sets up the publisher with a rate limit; 0 means the chart's default.
func (s *side) program(qps string) error {
	file := filepath.Join(s.dir, "etcd.yaml")
	text := fmt.Sprintf("endpoints:\n- http://%s\ninsecure-transport: true\n", s.store)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	args := []string{
		"clustermesh", "--cluster-name=" + cluster, fmt.Sprint("--cluster-id=", clusterID),
		"--kvstore-opt=etcd.config=" + file, "--kvstore-opt=etcd.qps=" + qps, "--kvstore-opt=etcd.bootstrapQps=10000",
		"--max-connected-clusters=255", "--health-port=" + peer.PortOf(s.health), "--prometheus-serve-addr=" + s.metrics,
		"--controller-group-metrics=all", "--k8s-kubeconfig-path=" + s.config, "--gops-port=" + peer.PortOf(s.gops),
		"--shell-sock-path=" + filepath.Join(s.dir, "shell.sock"),
	}
	if *ces {
		args = append(args, "--enable-cilium-endpoint-slice")
	}
	s.publisher = &peer.Process{Name: s.name, Log: filepath.Join(s.dir, "log"), Env: []string{"GOPS_CONFIG_DIR=" + s.dir}}
	s.publisher.Bin = *cilium
	if s.kind == ours {
		s.publisher.Bin = *isthmus
		// The original writes no probe.
		args = append(append(args, "--propagation-probe-interval=0"), strings.Fields(*more)...)
	}
	s.publisher.Args = accepted(s.publisher.Bin, args)
	return nil
}

var unexpected = regexp.MustCompile(`unexpected argument '(--[a-z0-9-]+)`)

// accepted drops the flags that an older build does not know.
func accepted(bin string, args []string) []string {
	for {
		out, err := exec.Command(bin, append(slices.Clone(args), "--help")...).CombinedOutput()
		unknown := unexpected.FindSubmatch(out)
		if err == nil || unknown == nil {
			return args
		}
		progress("%s does not know %s", bin, unknown[1])
		args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, string(unknown[1])) })
	}
}

// ready asks /readyz once.
func (s *side) ready() (code int, body string) {
	r, err := s.http.Get("http://" + s.health + "/readyz")
	if err != nil {
		for inner := err; inner != nil; inner = errors.Unwrap(inner) {
			err = inner
		}
		return 0, err.Error()
	}
	defer r.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(r.Body, 1000))
	return r.StatusCode, strings.TrimSpace(string(text))
}

// launch starts the publisher and waits until it is ready.
func (s *side) launch(limit time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := s.publisher.Start(); err != nil {
		return 0, err
	}
	for time.Since(began) < limit {
		if code, _ := s.ready(); code == http.StatusOK {
			return time.Since(began), nil
		}
		if s.publisher.Ended() {
			return 0, fmt.Errorf("%s ended: %s", s.name, s.publisher.Complaint())
		}
		time.Sleep(5 * time.Millisecond)
	}
	return 0, fmt.Errorf("%s is not ready after %v: %s", s.name, limit, s.publisher.Complaint())
}

// collect makes a Go process collect its garbage. 0x2 is the gops agent's command for it.
func (s *side) collect() {
	if s.kind != theirs {
		return
	}
	for range 2 {
		c, err := net.DialTimeout("tcp", s.gops, time.Second)
		if err != nil {
			progress("%s: no gops: %v", s.name, err)
			return
		}
		_, _ = c.Write([]byte{2})
		_, _ = io.ReadAll(c)
		c.Close()
	}
}

// contents reads everything from etcd itself, rather than from the mirror of its watch.
func (s *side) contents() (map[string]string, error) { return peer.Read(s.client, "cilium/") }

func (s *side) close() {
	if s.publisher != nil {
		s.publisher.Stop(syscall.SIGKILL)
	}
	s.end()
	s.client.Close()
	s.etcd.Stop(syscall.SIGKILL)
	s.gate.close()
}
