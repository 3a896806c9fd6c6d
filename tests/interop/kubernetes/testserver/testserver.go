// Package testserver replaces k8s.io/apiserver/pkg/storage/etcd3/testserver in a copy of that module. Instead of an embedded
// etcd it starts the binary that ETCD_BIN names, so that Kubernetes' own storage tests run on that binary. If UPSTREAM_BIN names an
// etcd, the binary is started as a replica of one.
package testserver

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// starting prevents two servers from choosing the same port.
var starting sync.Mutex

// NewTestConfig returns the configuration that tests change before they start a server.
func NewTestConfig(t testing.TB) *embed.Config {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := url.URL{Scheme: "http", Host: strings.Replace(l.Addr().String(), "127.0.0.1", "localhost", 1)}
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
	return cfg
}

// RunEtcd starts a server and returns a client of it; both end with the test.
func RunEtcd(t testing.TB, cfg *embed.Config) *kubernetes.Client {
	t.Helper()
	if cfg == nil {
		starting.Lock()
		defer starting.Unlock()
		cfg = NewTestConfig(t)
	}
	at := cfg.AdvertiseClientUrls[0].String()
	args := []string{
		"--listen-client-urls=" + cfg.ListenClientUrls[0].String(), "--advertise-client-urls=" + at,
		fmt.Sprintf("--max-request-bytes=%d", cfg.MaxRequestBytes),
		"--watch-progress-notify-interval=" + cfg.WatchProgressNotifyInterval.String(),
	}
	tls := cfg.ClientTLSInfo
	for flag, file := range map[string]string{"cert": tls.CertFile, "key": tls.KeyFile, "trusted-ca": tls.TrustedCAFile} {
		if file != "" {
			args = append(args, fmt.Sprintf("--%s-file=%s", flag, file))
		}
	}
	if bin := os.Getenv("UPSTREAM_BIN"); bin != "" {
		args = append(args, "--follow="+upstream(t, bin, cfg))
	}
	run(t, os.Getenv("ETCD_BIN"), append([]string{"etcd"}, args...)...)
	client, err := tls.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	connected, err := kubernetes.New(clientv3.Config{
		TLS:         client,
		Endpoints:   []string{at},
		DialTimeout: 30 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
		Logger:      zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	connected.KV = storagetesting.NewKVRecorder(connected.KV)
	connected.Kubernetes = storagetesting.NewKubernetesRecorder(connected.Kubernetes)
	return connected
}

// run runs a program until the test ends.
func run(t testing.TB, bin string, args ...string) {
	t.Helper()
	cmd := exec.Command(bin, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// upstream starts an etcd, and returns the file of a client that names it.
func upstream(t testing.TB, bin string, cfg *embed.Config) string {
	t.Helper()
	var urls []string
	var held []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held, urls = append(held, l), append(urls, "http://"+l.Addr().String())
	}
	for _, l := range held {
		l.Close()
	}
	dir := t.TempDir()
	run(t, bin, "--data-dir="+filepath.Join(dir, "data"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+urls[0], "--advertise-client-urls="+urls[0], "--listen-peer-urls="+urls[1],
		"--initial-advertise-peer-urls="+urls[1], "--initial-cluster=default="+urls[1],
		fmt.Sprintf("--max-request-bytes=%d", cfg.MaxRequestBytes))
	file := filepath.Join(dir, "upstream.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "endpoints: [%q]\n", urls[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
