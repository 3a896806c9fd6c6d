package mesh

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Watchers are clients that follow a prefix as Cilium's kvstore package does: each lists, then watches from the next revision,
// resumes after a lost connection, and starts again with a list where the store cannot resume or is another store.
type Watchers struct {
	Lists   atomic.Int64 // after the first list of each client
	Deletes atomic.Int64 // keys that a client was told are gone, by an event or by their absence in a list
	Events  atomic.Int64
	Dials   atomic.Int64 // connections after the first one of each client

	address string
	tls     *tls.Config
	prefix  string
	cancel  context.CancelFunc
	group   sync.WaitGroup
}

// Watch starts clients and returns when each has listed once.
func Watch(n int, address string, config *tls.Config, prefix string) *Watchers {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watchers{address: address, tls: config, prefix: prefix, cancel: cancel}
	var listed sync.WaitGroup
	listed.Add(n)
	w.group.Add(n)
	for range n {
		go func() {
			defer w.group.Done()
			first := sync.OnceFunc(listed.Done)
			defer first()
			follower{Watchers: w, keys: map[string]bool{}}.run(ctx, first)
		}()
	}
	listed.Wait()
	w.Lists.Store(0)
	w.Dials.Store(0)
	return w
}

// Stop ends the clients.
func (w *Watchers) Stop() {
	w.cancel()
	w.group.Wait()
}

type follower struct {
	*Watchers
	keys map[string]bool
}

func (f follower) run(ctx context.Context, listed func()) {
	for ctx.Err() == nil {
		client, err := dial(f.address, f.tls, &f.Dials)
		if err == nil {
			f.follow(ctx, client, listed)
			_ = client.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// follow lists and watches until the store cannot go on.
func (f follower) follow(ctx context.Context, client *clientv3.Client, listed func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limited, done := context.WithTimeout(ctx, 10*time.Second)
	answer, err := client.Get(limited, f.prefix, clientv3.WithPrefix())
	done()
	if err != nil {
		return
	}
	f.Lists.Add(1)
	found := map[string]bool{}
	for _, kv := range answer.Kvs {
		found[string(kv.Key)] = true
	}
	for key := range f.keys {
		if !found[key] {
			f.Deletes.Add(1)
			delete(f.keys, key)
		}
	}
	for key := range found {
		f.keys[key] = true
	}
	listed()
	go f.leaveAnotherStore(ctx, client, answer.Header.ClusterId, cancel)
	for response := range client.Watch(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(answer.Header.Revision+1)) {
		if response.Err() != nil {
			return
		}
		for _, event := range response.Events {
			if isProbe(string(event.Kv.Key)) {
				continue
			}
			f.Events.Add(1)
			if event.Type == clientv3.EventTypeDelete {
				f.Deletes.Add(1)
				delete(f.keys, string(event.Kv.Key))
			} else {
				f.keys[string(event.Kv.Key)] = true
			}
		}
	}
}

// leaveAnotherStore ends the watch when the store that answers is another one: its revisions mean nothing to this client.
func (f follower) leaveAnotherStore(ctx context.Context, client *clientv3.Client, id uint64, leave func()) {
	for ctx.Err() == nil {
		limited, done := context.WithTimeout(ctx, 2*time.Second)
		answer, err := client.Get(limited, "cilium/.heartbeat")
		done()
		if err == nil && answer.Header.ClusterId != id {
			leave()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// Dial makes a client of a store at an address. etcd's client takes the name to verify from the endpoint, so that the endpoint
// has the name, and the dialer the address, as in Cilium.
func Dial(address string, config *tls.Config) (*clientv3.Client, error) {
	return dial(address, config, new(atomic.Int64))
}

// dial also counts the connections that the client makes.
func dial(address string, config *tls.Config, made *atomic.Int64) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + config.ServerName + ":2379"}, TLS: config, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			made.Add(1)
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		})},
	})
}

// Probe asks a store again and again over new connections, and keeps the longest time without an answer.
type Probe struct {
	cancel context.CancelFunc
	done   chan time.Duration
}

// StartProbe starts a probe; the store must answer now.
func StartProbe(address string, config *tls.Config) *Probe {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Probe{cancel: cancel, done: make(chan time.Duration, 1)}
	go func() {
		last, longest := time.Now(), time.Duration(0)
		for ctx.Err() == nil {
			if answers(ctx, address, config) {
				last = time.Now()
			}
			longest = max(longest, time.Since(last))
			time.Sleep(20 * time.Millisecond)
		}
		p.done <- longest
	}()
	return p
}

func answers(ctx context.Context, address string, config *tls.Config) bool {
	dialer := tls.Dialer{Config: config}
	limited, done := context.WithTimeout(ctx, time.Second)
	defer done()
	connection, err := dialer.DialContext(limited, "tcp", address)
	if err != nil {
		return false
	}
	return connection.Close() == nil
}

// Stop ends the probe and returns the longest time without an answer.
func (p *Probe) Stop() time.Duration {
	p.cancel()
	return <-p.done
}
