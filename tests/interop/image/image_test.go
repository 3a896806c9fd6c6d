// Package image proves that the container image runs where Cilium's chart puts it: unpacked from the archive that `make
// image` writes, under plain runc, as user 65532 without capabilities on a read-only root, with kubelet's volumes and the
// chart's arguments. With -original it measures the original binaries in the same place.
package image

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

var original = flag.String("original", "", "directory with Cilium's clustermesh-apiserver and with etcd, to measure beside the image")

// TestMain runs the tests in a network namespace of their own, so that the chart's fixed ports are free.
func TestMain(m *testing.M) {
	if os.Getenv("ISTHMUS_IMAGE_NAMESPACE") != "" {
		if err := loopbackUp(); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "ISTHMUS_IMAGE_NAMESPACE=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	}
	if err := cmd.Run(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if os.Geteuid() != 0 {
		return nil
	}
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request)
}

// image unpacks the image, or skips the test where it cannot run.
func image(t *testing.T) (string, sizes) {
	t.Helper()
	archive := os.Getenv("ISTHMUS_IMAGE")
	if archive == "" {
		t.Skip("ISTHMUS_IMAGE is not set: run `make image-test`")
	}
	if os.Geteuid() != 0 {
		t.Skip("runc needs root to run containers of another user")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is missing: install the package runc")
	}
	root := open(t.TempDir(), t)
	return root, unpack(t, archive, root)
}

// pod is what the chart's Deployment makes of an image.
type pod struct {
	root                    string
	admin, remote           map[string][]byte
	server, secrets, mirror string
	data                    string
}

func newPod(t *testing.T, root string) *pod {
	ca := newAuthority(t)
	p := &pod{root: root, admin: ca.issue(t, "admin-tokyo"), remote: ca.issue(t, "remote")}
	p.server = volume(t, ca.issue(t, "clustermesh-apiserver.cilium.io"))
	p.secrets = volume(t, p.admin)
	p.mirror = volume(t, map[string][]byte{
		"common-etcd-client.crt": p.remote["tls.crt"], "common-etcd-client.key": p.remote["tls.key"],
		"common-etcd-client-ca.crt": p.remote["ca.crt"],
	})
	p.data = emptyDir(t)
	return p
}

const token = "INITIAL_CLUSTER_TOKEN=6f0d2b1c-1111-4222-8333-444455556666"

func (p *pod) etcdInit(t *testing.T) *container {
	return run(t, p.root, "etcd-init", []mount{{p.data, "/var/run/etcd", true}}, []string{"CILIUM_CLUSTER_NAME=tokyo", token},
		"/usr/bin/clustermesh-apiserver", "etcdinit", "--etcd-cluster-name=clustermesh-apiserver",
		"--etcd-initial-cluster-token="+strings.TrimPrefix(token, "INITIAL_CLUSTER_TOKEN="), "--etcd-data-dir=/var/run/etcd")
}

func (p *pod) etcd(t *testing.T) *container {
	return run(t, p.root, "etcd", []mount{{p.data, "/var/run/etcd", true}, {from: p.server, to: "/var/lib/etcd-secrets"}},
		[]string{"ETCDCTL_API=3", token},
		"/usr/bin/etcd", "--data-dir=/var/run/etcd", "--name=clustermesh-apiserver", "--client-cert-auth",
		"--trusted-ca-file=/var/lib/etcd-secrets/ca.crt", "--cert-file=/var/lib/etcd-secrets/tls.crt",
		"--key-file=/var/lib/etcd-secrets/tls.key", "--listen-client-urls=https://0.0.0.0:2379",
		"--advertise-client-urls=https://localhost:2379",
		"--initial-cluster-token="+strings.TrimPrefix(token, "INITIAL_CLUSTER_TOKEN="), "--auto-compaction-retention=1",
		"--enable-grpc-gateway=false", "--listen-metrics-urls=http://0.0.0.0:9963", "--metrics=basic")
}

func (p *pod) apiserver(t *testing.T) *container {
	account := volume(t, map[string][]byte{"token": []byte("token"), "ca.crt": p.admin["ca.crt"], "namespace": []byte("kube-system")})
	return run(t, p.root, "apiserver", []mount{
		{from: p.secrets, to: "/var/lib/cilium/etcd-secrets"},
		{from: volume(t, map[string][]byte{"users.yaml": []byte("users: []\n")}), to: "/var/lib/cilium/etcd-config"},
		{from: account, to: "/var/run/secrets/kubernetes.io/serviceaccount"},
	}, []string{"CLUSTER_NAME=tokyo", "CLUSTER_ID=1", "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=6443"},
		"/usr/bin/clustermesh-apiserver", "clustermesh", "--cluster-name=tokyo", "--cluster-id=1",
		"--kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml", "--kvstore-opt=etcd.qps=50",
		"--kvstore-opt=etcd.bootstrapQps=10000", "--max-connected-clusters=255", "--health-port=9880",
		"--cluster-users-enabled", "--cluster-users-config-path=/var/lib/cilium/etcd-config/users.yaml",
		"--prometheus-serve-addr=:9962", "--controller-group-metrics=all", "--clustermesh-default-global-namespace=true")
}

func (p *pod) kvstoremesh(t *testing.T) *container {
	return run(t, p.root, "kvstoremesh", []mount{
		{from: p.secrets, to: "/var/lib/cilium/etcd-secrets"}, {from: p.mirror, to: "/var/lib/cilium/clustermesh"},
	}, []string{"CLUSTER_NAME=tokyo", "CLUSTER_ID=1"},
		"/usr/bin/clustermesh-apiserver", "kvstoremesh", "--cluster-name=tokyo", "--cluster-id=1",
		"--kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml", "--kvstore-opt=etcd.qps=100",
		"--kvstore-opt=etcd.bootstrapQps=10000", "--kvstore-opt=etcd.maxInflight=10",
		"--clustermesh-config=/var/lib/cilium/clustermesh", "--max-connected-clusters=255", "--clustermesh-cache-ttl=0s",
		"--health-port=9881", "--prometheus-serve-addr=:9964", "--controller-group-metrics=all", "--enable-heartbeat=false")
}

// connect is a client of the pod's etcd with the certificate of a Secret.
func connect(t *testing.T, secret map[string][]byte) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://127.0.0.1:2379"}, TLS: client(t, secret), Logger: zap.NewNop()})
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits until the condition holds, while the container runs.
func eventually(t *testing.T, c *container, what string, condition func() bool) time.Duration {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if condition() {
			return time.Since(c.started)
		}
		c.running(t)
	}
	t.Fatalf("after a minute %s not yet: %s", c.name, what)
	return 0
}

// answer is the status and body of a GET, or zero while nobody listens.
func answer(url string) (int, string) {
	response, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

func ready(url string) func() bool {
	return func() bool { code, _ := answer(url); return code == http.StatusOK }
}

// times from the start of a container to its first answer.
type times struct{ init, etcd, mirror time.Duration }

// begin brings the pod up in the order of kubelet.
func (p *pod) begin(t *testing.T) (etcd, mirror *container, took times) {
	t.Helper()
	init := p.etcdInit(t)
	if code := init.wait(t, time.Minute); code != 0 {
		t.Fatalf("etcd-init ended with %d", code)
	}
	took.init = time.Since(init.started)
	etcd = p.etcd(t)
	// The metrics port has no TLS, so that a poll costs little.
	took.etcd = eventually(t, etcd, "health", ready("http://127.0.0.1:9963/health"))
	mirror = p.kvstoremesh(t)
	took.mirror = eventually(t, mirror, "readiness", ready("http://127.0.0.1:9881/readyz"))
	return etcd, mirror, took
}

func TestPodOfTheChartRunsOnTheImage(t *testing.T) {
	root, size := image(t)
	pod := newPod(t, root)
	etcd, mirror, took := pod.begin(t)
	t.Logf("layer %.1f MB, unpacked %.1f MB; etcd-init %v, etcd %v, kvstoremesh %v", float64(size.compressed)/1e6,
		float64(size.unpacked)/1e6, took.init, took.etcd, took.mirror)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	admin, remote := connect(t, pod.admin), connect(t, pod.remote)
	if _, err := admin.Put(ctx, "cilium/state/nodes/v1/tokyo/a", "value"); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Get(ctx, "cilium/state/nodes/v1/tokyo/a")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "value" {
		t.Fatalf("a remote cluster reads %v, %v", got, err)
	}
	if _, err := remote.Put(ctx, "cilium/state/nodes/v1/tokyo/b", ""); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Fatalf("a remote cluster writes: %v", err)
	}

	apiserver := pod.apiserver(t)
	eventually(t, apiserver, "an answer to the readiness probe", func() bool { code, _ := answer("http://127.0.0.1:9880/readyz"); return code != 0 })
	eventually(t, apiserver, "a log line that names the Kubernetes API", func() bool {
		return strings.Contains(apiserver.output(t), "127.0.0.1:6443")
	})
	if code, body := answer("http://127.0.0.1:9880/readyz?verbose"); code < 500 || !strings.Contains(body, "[-]publishing ") {
		t.Errorf("without a Kubernetes API the readiness of the publisher is %d: %s", code, body)
	}
	for name, url := range map[string]string{"etcd": "http://127.0.0.1:9963/metrics", "apiserver": "http://127.0.0.1:9962/metrics", "kvstoremesh": "http://127.0.0.1:9964/metrics"} {
		if code, body := answer(url); code != http.StatusOK || !strings.Contains(body, "# TYPE ") {
			t.Errorf("the metrics of %s answer %d: %s", name, code, body)
		}
	}
	for _, c := range []*container{apiserver, mirror, etcd} {
		if code := c.terminate(t); code != 0 {
			t.Errorf("after SIGTERM %s ended with %d", c.name, code)
		}
	}
	jsonLines(t, etcd)
	for _, c := range []*container{apiserver, mirror} {
		for _, line := range strings.Split(strings.TrimSpace(c.output(t)), "\n") {
			if !strings.HasPrefix(line, "time=") || !strings.Contains(line, " level=") || !strings.Contains(line, " msg=") {
				t.Errorf("%s logs %q", c.name, line)
			}
		}
	}
}

func jsonLines(t *testing.T, c *container) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(c.output(t)), "\n") {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil || fields["level"] == nil || fields["msg"] == nil {
			t.Errorf("%s logs %q", c.name, line)
		}
	}
}

func TestServeIsTheDefaultAndNeedsNoWritableRoot(t *testing.T) {
	root, _ := image(t)
	pod := newPod(t, root)
	manifests, err := filepath.Abs("../../../examples/tokyo-hk/tokyo-cluster")
	check(t, err)
	serve := run(t, pod.root, "serve", []mount{
		{from: pod.server, to: "/var/lib/etcd-secrets"}, {from: pod.mirror, to: "/var/lib/cilium/clustermesh"}, {from: manifests, to: "/manifests"},
	}, nil, "/usr/bin/clustermesh-apiserver", "serve", "--cluster-name=tokyo-cluster", "--cluster-id=1", "--manifests=/manifests",
		"--cert-file=/var/lib/etcd-secrets/tls.crt", "--key-file=/var/lib/etcd-secrets/tls.key",
		"--trusted-ca-file=/var/lib/etcd-secrets/ca.crt", "--clustermesh-config=/var/lib/cilium/clustermesh")
	took := eventually(t, serve, "readiness", ready("http://127.0.0.1:9880/readyz"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got, err := connect(t, pod.remote).Get(ctx, "cilium/state/", clientv3.WithPrefix())
	check(t, err)
	if len(got.Kvs) == 0 {
		t.Error("no key of the manifests is served")
	}
	t.Logf("ready after %v with %d keys", took, len(got.Kvs))
	if code := serve.terminate(t); code != 0 {
		t.Errorf("after SIGTERM serve ended with %d", code)
	}
}

// A container that fails leaves its reason in the last line of the log, which is kubelet's termination message.
func TestMissingCertificateIsTheLastLine(t *testing.T) {
	root, _ := image(t)
	pod := newPod(t, root)
	pod.server = volume(t, nil)
	if code := pod.etcdInit(t).wait(t, time.Minute); code != 0 {
		t.Fatalf("etcd-init ended with %d", code)
	}
	etcd := pod.etcd(t)
	if code := etcd.wait(t, time.Minute); code == 0 {
		t.Error("etcd without certificates ended with 0")
	}
	lines := strings.Split(strings.TrimSpace(etcd.output(t)), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "/var/lib/etcd-secrets/") {
		t.Errorf("the last line does not name the file: %s", last)
	}
}

func TestNothingElseIsInTheImage(t *testing.T) {
	root, _ := image(t)
	for _, name := range []string{"sh", "bash", "busybox", "dash", "gops"} {
		for _, dir := range []string{"bin", "usr/bin", "sbin", "usr/sbin", "usr/local/bin"} {
			if _, err := os.Lstat(filepath.Join(root, dir, name)); err == nil {
				t.Errorf("/%s/%s is in the image", dir, name)
			}
		}
	}
	version := run(t, root, "version", nil, nil, "/usr/bin/clustermesh-apiserver", "version")
	if code := version.wait(t, time.Minute); code != 0 || version.output(t) == "" {
		t.Errorf("version ended with %d: %s", code, version.output(t))
	}
}

// The original's binaries on the files of our image: what their own image adds does not matter to their start.
func TestOriginalInTheSamePlace(t *testing.T) {
	if *original == "" {
		t.Skip("-original is not set")
	}
	root, _ := image(t)
	var bytes int64
	for _, name := range []string{"clustermesh-apiserver", "etcd"} {
		content, err := os.ReadFile(filepath.Join(*original, name))
		check(t, err)
		check(t, os.Remove(filepath.Join(root, "usr/bin", name)))
		check(t, os.WriteFile(filepath.Join(root, "usr/bin", name), content, 0o755))
		bytes += int64(len(content))
	}
	etcd, mirror, took := newPod(t, root).begin(t)
	t.Logf("binaries %.1f MB; etcd-init %v, etcd %v, kvstoremesh %v", float64(bytes)/1e6, took.init, took.etcd, took.mirror)
	mirror.terminate(t)
	etcd.terminate(t)
}
