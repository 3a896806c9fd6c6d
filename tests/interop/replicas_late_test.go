package interop

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// Writes that the network delays: nobody may find an older value in place of a newer one, whoever wrote it, and no key is written
// again with the value that it has.

// wire passes a connection on, and can hold back what a client sends, as a network does that loses packets and sends them again.
type wire struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	held     *sync.Cond
	holding  bool
	swallow  bool // what the server answers does not arrive
}

func newWire(t testing.TB, to string) *wire {
	t.Helper()
	w := &wire{listener: try(net.Listen("tcp", "127.0.0.1:0")).or(t), to: to}
	w.held = sync.NewCond(&w.mu)
	t.Cleanup(func() { w.listener.Close(); w.set(false, false) })
	go func() {
		for {
			c, err := w.listener.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			go w.pump(c, s, true)
			go w.pump(s, c, false)
		}
	}()
	return w
}

func (w *wire) set(holding, swallow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding, w.swallow = holding, swallow
	w.held.Broadcast()
}

// pump copies one direction. What a client sends can be held, with the end; what the server answers can be lost.
func (w *wire) pump(from, to net.Conn, requests bool) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		w.mu.Lock()
		for requests && w.holding {
			w.held.Wait()
		}
		if !requests && w.swallow {
			n = 0
		}
		w.mu.Unlock()
		if n > 0 {
			if _, e := to.Write(buffer[:n]); e != nil {
				err = e
			}
		}
		if err != nil {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// servePublisher starts a `serve` without TLS clients to serve, which publishes the manifests into the etcd behind the wires.
func servePublisher(t testing.TB, name, manifests string, wires ...string) *peer.Process {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "upstream.yaml")
	if err := os.WriteFile(file, []byte(upstreamFile(wires)), 0o600); err != nil {
		t.Fatal(err)
	}
	url := "http://" + peer.FreePort()
	p := process(t, name, isthmusBin(t), "serve", "--cluster-name=east", "--cluster-id=1", "--manifests="+manifests, "--follow="+file,
		"--listen-client-urls="+url, "--client-cert-auth=false", "--api-serve-addr="+peer.FreePort(),
		"--health-port="+peer.PortOf(peer.FreePort()), "--prometheus-serve-addr="+peer.FreePort())
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

const lateKey = "cilium/state/nodes/v1/east/east-1"

func writeNode(t testing.TB, manifests, mark string) {
	t.Helper()
	text := fmt.Sprintf("apiVersion: cilium.io/v2\nkind: CiliumNode\nmetadata:\n  name: east-1\n  labels: {mark: %s}\nspec:\n  addresses:\n  - {type: InternalIP, ip: 172.16.0.1}\n", mark)
	if err := os.WriteFile(manifests+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(manifests+".new", filepath.Join(manifests, "node.yaml")); err != nil {
		t.Fatal(err)
	}
}

func hasMark(c *clientv3.Client, mark string) bool {
	short, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := c.Get(short, lateKey)
	return err == nil && len(r.Kvs) == 1 && strings.Contains(string(r.Kvs[0].Value), mark)
}

// publisherBehindWire is an etcd of one member, a client of it, and a publisher that reaches it over a wire and has written the node of
// its manifests with the mark "first".
func publisherBehindWire(t testing.TB) (m *members, c *clientv3.Client, w *wire, publisher *peer.Process, manifests string) {
	t.Helper()
	m = cluster(t, 1)
	c = m.kept[0].client(t)
	t.Cleanup(func() { c.Close() })
	manifests = filepath.Join(t.TempDir(), "manifests")
	if err := os.Mkdir(manifests, 0o700); err != nil {
		t.Fatal(err)
	}
	writeNode(t, manifests, "first")
	w = newWire(t, m.kept[0].address)
	publisher = servePublisher(t, "one", manifests, w.listener.Addr().String())
	eventually(t, "the first value", func() bool { return hasMark(c, "first") })
	return m, c, w, publisher, manifests
}

// A write of a former leader arrives when another one has written a newer value.
func TestReplicasLateWriteOfAFormerLeader(t *testing.T) {
	for name, ended := range map[string]bool{"before it knows that it leads no more": false, "after it has ended": true} {
		t.Run(name, func(t *testing.T) {
			m, c, w, one, manifests := publisherBehindWire(t)
			// The second publisher has no wire, and waits for the lock.
			servePublisher(t, "two", manifests, m.kept[0].address)
			w.set(true, false)
			writeNode(t, manifests, "late")
			eventually(t, "the second publisher has the lock, and the late value", func() bool { return hasMark(c, "late") })
			writeNode(t, manifests, "newest")
			eventually(t, "the newest value", func() bool { return hasMark(c, "newest") })
			at := try(c.Get(ctx(t), lateKey)).or(t).Kvs[0].ModRevision
			if ended {
				eventually(t, "the first publisher has lost its lock, and ends", one.Ended)
			}
			t.Logf("the first publisher has ended: %v", one.Ended())
			w.set(false, false)
			time.Sleep(3 * time.Second)
			kv := try(c.Get(ctx(t), lateKey)).or(t).Kvs[0]
			if kv.ModRevision != at {
				before := try(c.Get(ctx(t), lateKey, clientv3.WithRev(kv.ModRevision-1))).or(t).Kvs[0]
				t.Errorf("after %q of revision %d, the key was written again: revision %d has %q, before it %q", "newest", at, kv.ModRevision, markOf(kv.Value), markOf(before.Value))
			}
		})
	}
}

func markOf(value []byte) string {
	_, rest, _ := strings.Cut(string(value), `"mark":"`)
	mark, _, _ := strings.Cut(rest, `"`)
	return mark
}

// An answer is lost, and the writer tries again.
func TestReplicasLostAnswerToAPublisher(t *testing.T) {
	m, c, w, _, manifests := publisherBehindWire(t)
	w.set(false, true)
	writeNode(t, manifests, "second")
	eventually(t, "the second value", func() bool { return hasMark(c, "second") })
	at := try(c.Get(ctx(t), lateKey)).or(t).Kvs[0].ModRevision
	// The member dies with the answer on its way.
	m.kept[0].down(t, syscall.SIGKILL)
	w.set(false, false)
	m.kept[0].up(t)
	writeNode(t, manifests, "third")
	eventually(t, "the third value", func() bool { return hasMark(c, "third") })
	kv := try(c.Get(ctx(t), lateKey)).or(t).Kvs[0]
	before := try(c.Get(ctx(t), lateKey, clientv3.WithRev(kv.ModRevision-1))).or(t).Kvs[0]
	if before.ModRevision != at {
		t.Errorf("the value of revision %d was written again at revision %d", at, before.ModRevision)
	}
}
