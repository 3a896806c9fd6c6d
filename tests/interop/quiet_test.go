package interop

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// quiet_test.go shows that clientv3 resumes a watch that saw nothing, after its connection broke, although the revision at
// which the watch began is compacted. Against etcd such a watch ends as compacted.

// relay passes connections on, and can break them.
type relay struct {
	net.Listener
	to    string
	mu    sync.Mutex
	conns []net.Conn
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	r := &relay{Listener: try(net.Listen("tcp", "127.0.0.1:0")).or(t), to: to}
	t.Cleanup(func() { r.Close() })
	go func() {
		for {
			client, err := r.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, client, server)
			r.mu.Unlock()
			go func() { io.Copy(server, client); server.Close() }()
			go func() { io.Copy(client, server); client.Close() }()
		}
	}()
	return r
}

// breakAll closes every connection.
func (r *relay) breakAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.conns = nil
}

// quietWatch watches a key that does not change, until the store has compacted the revision at which the watch began.
// Then the connection breaks, the key changes, and the first message with events or an error is returned, with the number
// of messages without events before it.
func quietWatch(t *testing.T, s *server) (clientv3.WatchResponse, int) {
	t.Helper()
	r := newRelay(t, s.address)
	writer := s.client(t)
	defer writer.Close()
	reader := try(clientv3.New(clientv3.Config{Endpoints: []string{r.Addr().String()}, DialTimeout: 5 * time.Second})).or(t)
	defer reader.Close()
	watching, cancel := context.WithCancel(ctx(t))
	defer cancel()
	try(writer.Put(ctx(t), "other", "")).or(t)
	messages := reader.Watch(watching, "quiet", clientv3.WithCreatedNotify())
	if created := <-messages; !created.Created {
		t.Fatalf("the watch was not created: %+v", created)
	}
	began := try(writer.Get(ctx(t), "other")).or(t).Header.Revision
	told, last := 0, began
	eventually(t, "the first revision is compacted", func() bool {
		try(writer.Put(ctx(t), "other", "")).or(t)
		for {
			select {
			case m := <-messages:
				if !m.IsProgressNotify() || m.Header.Revision <= last {
					t.Fatalf("after revision %d: %+v", last, m)
				}
				told, last = told+1, m.Header.Revision
				continue
			default:
			}
			_, err := writer.Get(ctx(t), "other", clientv3.WithRev(began))
			return err != nil
		}
	})
	r.breakAll()
	try(writer.Put(ctx(t), "quiet", "now")).or(t)
	for m := range messages {
		if m.Err() != nil || len(m.Events) > 0 {
			return m, told
		}
		told++
	}
	t.Fatal("the watch ended")
	panic("unreachable")
}

func TestQuietWatchResumes(t *testing.T) {
	s := ours(t, "--progress-to-quiet-watches", "--auto-compaction-retention=3s")
	m, told := quietWatch(t, s)
	if m.Err() != nil || len(m.Events) != 1 || string(m.Events[0].Kv.Value) != "now" {
		t.Fatalf("the watch did not resume: %+v, %v", m, m.Err())
	}
	if told == 0 {
		t.Fatal("the watch was told nothing")
	}
	t.Logf("the watch was told %d times", told)
}

// TestQuietWatchOfEtcd shows the difference: etcd's watch, and ours without the flag, end as compacted.
func TestQuietWatchOfEtcd(t *testing.T) {
	for name, s := range map[string]*server{
		"etcd":    theirs(t, "--auto-compaction-retention=3s"),
		"isthmus": ours(t, "--auto-compaction-retention=3s"),
	} {
		m, told := quietWatch(t, s)
		if m.CompactRevision == 0 || told != 0 {
			t.Errorf("%s: told %d times, then %+v", name, told, m)
		}
	}
}
