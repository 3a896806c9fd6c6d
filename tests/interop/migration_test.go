package interop

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// A Service moves from the original's pod (etcd and a publisher) to the pod of deploy/ (`serve`) and back, as docs/migration.md
// says, under mirrors of another cluster: Isthmus', and Cilium's if CILIUM_APISERVER names it. Agents follow a store with
// the same code as Cilium's mirror. No mirrored key may be deleted, every later change must arrive, and the time without an
// answer is reported.

// service is what kube-proxy is to a client: an address whose connections end at the present pod.
type service struct {
	listener net.Listener
	mutex    sync.Mutex
	pod      string
	open     map[net.Conn]struct{}
}

func newService(t testing.TB, pod string) *service {
	t.Helper()
	s := &service{listener: try(net.Listen("tcp", "127.0.0.1:0")).or(t), pod: pod, open: map[net.Conn]struct{}{}}
	t.Cleanup(func() { s.listener.Close() })
	go func() {
		for {
			client, err := s.listener.Accept()
			if err != nil {
				return
			}
			go s.forward(client)
		}
	}()
	return s
}

func (s *service) forward(client net.Conn) {
	s.mutex.Lock()
	pod := s.pod
	s.open[client] = struct{}{}
	s.mutex.Unlock()
	if server, err := net.Dial("tcp", pod); err == nil {
		go func() {
			io.Copy(server, client)
			server.Close()
		}()
		io.Copy(client, server)
		server.Close()
	}
	client.Close()
	s.mutex.Lock()
	delete(s.open, client)
	s.mutex.Unlock()
}

// move gives new connections to another pod. Open connections stay until their pod ends, as with kube-proxy.
func (s *service) move(pod string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.pod = pod
}

func (s *service) address() string { return s.listener.Addr().String() }

// pod is a store with its publisher.
type pod struct {
	store string
	parts []*peer.Process
}

// end stops the parts, as the kubelet does. Clients stay connected until then.
func (p *pod) end(t testing.TB) {
	t.Helper()
	began := time.Now()
	for _, part := range p.parts {
		part.Stop(syscall.SIGTERM)
	}
	t.Logf("the former pod ended within %.2f s", time.Since(began).Seconds())
}

// isthmusPart starts a subcommand with a health port, and waits until it is ready.
func isthmusPart(t testing.TB, name string, args ...string) *peer.Process {
	t.Helper()
	p, health := process(t, name, isthmusBin(t), args...), peer.FreePort()
	p.Args = append(p.Args, "--health-port="+peer.PortOf(health))
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, name, health)
	return p
}

func ready(t testing.TB, name, health string) {
	t.Helper()
	eventually(t, name+" is ready", func() bool {
		r, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

func clientFile(t testing.TB, dir, name, address string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("endpoints:\n- http://"+address+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// originalPod is etcd with a publisher of its own. The keys are those of Cilium's publisher (publisher_test.go).
func originalPod(t testing.TB, manifests string) *pod {
	t.Helper()
	etcd := theirs(t)
	publisher := isthmusPart(t, "publisher", "clustermesh", "--cluster-name=hk", "--cluster-id=2", "--manifests="+manifests,
		"--kvstore-opt=etcd.config="+clientFile(t, t.TempDir(), "etcd.yaml", etcd.address), "--kvstore-opt=etcd.qps=10000")
	return &pod{etcd.address, []*peer.Process{publisher, etcd.Process}}
}

// ourPod is `serve` on a data directory.
func ourPod(t testing.TB, manifests, data, store string, more ...string) *pod {
	t.Helper()
	serve := isthmusPart(t, "serve", append([]string{"serve", "--cluster-name=hk", "--cluster-id=2", "--manifests=" + manifests,
		"--listen-client-urls=http://" + store, "--client-cert-auth=false", "--data-dir=" + data, "--api-serve-addr="}, more...)...)
	return &pod{store, []*peer.Process{serve}}
}

// mirror is a mirror of the cluster hk in another cluster, with everything that happens to its keys.
type mirror struct {
	name, metrics string
	client        *clientv3.Client
	mutex         sync.Mutex
	present       map[string]bool
	deleted       []string
}

func newMirror(t testing.TB, name, bin, source string) *mirror {
	t.Helper()
	target, remotes, health := ours(t), t.TempDir(), peer.FreePort()
	m := &mirror{name: name, metrics: peer.FreePort(), client: target.client(t), present: map[string]bool{}}
	t.Cleanup(func() { m.client.Close() })
	clientFile(t, remotes, "hk", source)
	config := clientFile(t, t.TempDir(), "etcd.yaml", target.address)
	p := process(t, name, bin, "kvstoremesh", "--cluster-name=tokyo", "--cluster-id=1", "--clustermesh-config="+remotes,
		"--kvstore-opt=etcd.config="+config, "--kvstore-opt=etcd.qps=1000", "--kvstore-opt=etcd.bootstrapQps=10000",
		"--health-port="+peer.PortOf(health), "--api-serve-addr="+peer.FreePort(), "--prometheus-serve-addr="+m.metrics)
	if bin != isthmusBin(t) {
		p.Args = append(p.Args, "--enable-gops=false", "--shell-sock-path=")
	}
	watch := m.client.Watch(context.Background(), "cilium/cache/", clientv3.WithPrefix())
	go func() {
		for answer := range watch {
			m.mutex.Lock()
			for _, event := range answer.Events {
				key := string(event.Kv.Key)
				if m.present[key] = event.Type == clientv3.EventTypePut; !m.present[key] {
					m.deleted = append(m.deleted, key)
				}
			}
			m.mutex.Unlock()
		}
	}()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ready(t, name, health)
	return m
}

// waitFor waits until the mirror has the identity, and returns when it came.
func (m *mirror) waitFor(t testing.TB, identity int) time.Time {
	t.Helper()
	key := fmt.Sprint("cilium/cache/identities/v1/hk/id/", identity)
	eventually(t, m.name+" has "+key, func() bool {
		m.mutex.Lock()
		defer m.mutex.Unlock()
		return m.present[key]
	})
	return time.Now()
}

// count reads counters of Isthmus' mirror: lists and resumed watches.
func (m *mirror) count(t testing.TB, metric string) (sum int) {
	t.Helper()
	for _, match := range regexp.MustCompile(`(?m)^`+metric+`\{[^}]*\} ([0-9]+)`).FindAllStringSubmatch(page(t, m.metrics), -1) {
		n, _ := strconv.Atoi(match[1])
		sum += n
	}
	return sum
}

func page(t testing.TB, address string) string {
	t.Helper()
	r := try(http.Get("http://" + address + "/metrics")).or(t)
	defer r.Body.Close()
	return string(try(io.ReadAll(r.Body)).or(t))
}

// identities writes manifests of the cluster hk.
type identities struct {
	dir  string
	last int
}

func (i *identities) add(t testing.TB, n int) int {
	t.Helper()
	var text strings.Builder
	for range n {
		i.last++
		// The examples have smaller numbers.
		fmt.Fprintf(&text, "---\napiVersion: cilium.io/v2\nkind: CiliumIdentity\nmetadata:\n  name: \"%d\"\nsecurity-labels:\n"+
			"  k8s:app: a%d\n  k8s:io.cilium.k8s.policy.cluster: hk\n  k8s:io.kubernetes.pod.namespace: shop\n", 2<<16+10000+i.last, i.last)
	}
	file := filepath.Join(i.dir, fmt.Sprintf("identities-%d.yaml", i.last))
	// A rename, so that nobody reads half a file.
	if err := os.WriteFile(file+".new", []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	return 2<<16 + 10000 + i.last
}

// outages measures the longest time in which the service did not answer a new or an existing client.
func outages(t testing.TB, address string) (stop func() time.Duration) {
	c := (&server{address: address}).client(t)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan time.Duration)
	go func() {
		var longest time.Duration
		answered := time.Now()
		for ctx.Err() == nil {
			call, done := context.WithTimeout(ctx, 500*time.Millisecond)
			if _, err := c.Get(call, "cilium/.heartbeat"); err == nil {
				longest = max(longest, time.Since(answered))
				answered = time.Now()
			}
			done()
			time.Sleep(5 * time.Millisecond)
		}
		result <- longest
	}()
	return func() time.Duration {
		cancel()
		defer c.Close()
		return <-result
	}
}

func TestMigration(t *testing.T) {
	objects := &identities{dir: t.TempDir()}
	examples := "../../examples/tokyo-hk/hk-cluster"
	if err := os.CopyFS(objects.dir, os.DirFS(examples)); err != nil {
		t.Fatal(err)
	}
	first := objects.add(t, 500)
	original := originalPod(t, objects.dir)
	service := newService(t, original.store)
	mirrors := []*mirror{newMirror(t, "Isthmus' mirror", isthmusBin(t), service.address())}
	if bin := os.Getenv("CILIUM_APISERVER"); bin != "" {
		mirrors = append(mirrors, newMirror(t, "Cilium's mirror", bin, service.address()))
	}
	for _, m := range mirrors {
		m.waitFor(t, first)
	}
	// Keys that the first mirror has read in lists and from watches.
	count := func() int { return mirrors[0].count(t, "cilium_kvstoremesh_remote_cluster_keys_read_total") }
	read, before := 0, count()
	step := func(name string, change func()) {
		objects.add(t, 1)
		stop := outages(t, service.address())
		began := time.Now()
		change()
		last := objects.add(t, 1)
		for _, m := range mirrors {
			arrived := m.waitFor(t, last).Sub(began)
			m.mutex.Lock()
			deleted, present := m.deleted, len(m.present)
			m.mutex.Unlock()
			if len(deleted) > 0 {
				t.Errorf("%s: %s: %d of %d keys were deleted, such as %s", name, m.name, len(deleted), present, deleted[0])
			}
			t.Logf("%s: %s: no key deleted; the next change arrived %.2f s after the step began", name, m.name, arrived.Seconds())
		}
		read, before = count()-before, count()
		t.Logf("%s: longest time without an answer %.2f s; %s read %d keys", name, stop().Seconds(), mirrors[0].name, read)
	}
	data, store := t.TempDir(), peer.FreePort()
	var pod *pod
	step("original to serve", func() {
		pod = ourPod(t, objects.dir, data, store)
		service.move(pod.store)
		original.end(t)
	})
	if read < objects.last {
		t.Errorf("the mirror read %d keys of a new store: does this test see lists?", read)
	}
	step("serve restarts on its volume", func() {
		pod.end(t)
		pod = ourPod(t, objects.dir, data, store)
	})
	// The watches resumed: only changes were read, and the heartbeat. A kind without keys is listed, which reads nothing.
	if read > 10 {
		t.Errorf("a restart on the same data directory made the mirror read %d keys", read)
	}
	step("serve to original", func() {
		original = originalPod(t, objects.dir)
		service.move(original.store)
		pod.end(t)
	})
	// The content is what a mirror of an undisturbed cluster has.
	for _, m := range mirrors {
		got := try(m.client.Get(ctx(t), "cilium/cache/identities/v1/hk/", clientv3.WithPrefix(), clientv3.WithCountOnly())).or(t)
		if want := int64(objects.last + 3); got.Count != want {
			t.Errorf("%s has %d identities, not %d", m.name, got.Count, want)
		}
	}
}
