package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"isthmus.dev/interop/peer"
)

// source is the etcd of a remote cluster.
type source struct {
	name    string
	id      int
	address string
	dir     string
	ca      *authority
	etcd    *peer.Process
	client  *clientv3.Client
	durable bool
	ips     int
	more    []string
	peer    string
	at      string // the address for clients
	// The contents as far as this program knows them, of keys that are mirrored.
	mu   sync.Mutex
	want map[string]string
	// Whether all keys must be mirrored.
	good bool
	// What changes the first data of the model, if anything does.
	prepare func(*source)
	// Whether the model is forgotten once it is written, because nothing is compared with it.
	isForgetful bool
	// The network namespace of the server, if it is not this program's.
	behind *namespace
}

func newSource(base string, ca *authority, id int, durable bool) *source {
	name := fmt.Sprintf("c%03d", id)
	return &source{
		name: name, id: id, address: peer.FreePort(), dir: filepath.Join(base, name), ca: ca,
		durable: durable, ips: *ipsPer, want: map[string]string{}, good: true,
	}
}

func (s *source) data() string { return filepath.Join(s.dir, "data") }

// start starts the server at its address.
func (s *source) start() error { return s.startAt(s.address, s.data()) }

func (s *source) startAt(address, data string) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	url := "https://" + address
	listen := url
	if s.behind != nil {
		listen = "https://0.0.0.0:" + peer.PortOf(address)
	}
	s.etcd = &peer.Process{Name: s.name, Bin: *isthmus, Log: filepath.Join(s.dir, "log")}
	s.etcd.Args = append([]string{"etcd", "--listen-client-urls=" + listen, "--advertise-client-urls=" + url, "--log-level=warn"}, s.ca.flags()...)
	if *sourceKind == "etcd" {
		// With equal peer URL and token, a new data directory has the same cluster id.
		if s.peer == "" {
			s.peer = "http://" + peer.FreePort()
		}
		other := s.peer
		s.etcd.Bin = *etcdBin
		s.etcd.Args = append(s.etcd.Args[1:], "--data-dir="+data, "--unsafe-no-fsync",
			"--listen-peer-urls="+other, "--initial-advertise-peer-urls="+other, "--initial-cluster=default="+other,
			"--initial-cluster-token="+other)
	} else if s.durable {
		// Only the process is killed, so unsynced data is not lost.
		s.etcd.Args = append(s.etcd.Args, "--data-dir="+data, "--durability=none")
	}
	s.etcd.Args = append(s.etcd.Args, s.more...)
	if s.behind != nil {
		enter := append(s.behind.enter(), s.etcd.Bin)
		s.etcd.Bin, s.etcd.Args = enter[0], append(enter[1:], s.etcd.Args...)
		address = ownWay + "2:" + peer.PortOf(address)
	}
	if err := s.etcd.Start(); err != nil {
		return err
	}
	if err := s.etcd.Listening(address, time.Minute); err != nil {
		return err
	}
	return s.connect(address)
}

func (s *source) connect(address string) error {
	// The client reconnects to a restarted server.
	if s.client != nil {
		if s.at == address {
			return nil
		}
		s.client.Close()
	}
	s.at = address
	config, err := s.ca.tls("remote")
	if err != nil {
		return err
	}
	s.client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + address}, TLS: config, DialOptions: quick(), MaxCallSendMsgSize: 16 << 20,
	})
	return err
}

// quick makes a client reconnect soon after a restart.
func quick() []grpc.DialOption {
	b := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 300 * time.Millisecond}
	return []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: 2 * time.Second})}
}

func (s *source) kill() { s.etcd.Stop(syscall.SIGKILL) }

// fill writes the model: the configuration, the data, and then the canaries.
func (s *source) fill() error {
	s.mu.Lock()
	want := maps.Clone(s.want)
	s.mu.Unlock()
	if err := s.puts(map[string]string{"cilium/cluster-config/" + s.name: configOf(s.id, *most)}); err != nil {
		return err
	}
	if err := s.beat(); err != nil {
		return err
	}
	if err := s.puts(want); err != nil {
		return err
	}
	canaries := map[string]string{}
	for _, word := range words {
		canaries[canaryKey(s.name, word)] = time.Now().Format(time.RFC3339)
	}
	return s.puts(canaries)
}

// model fills the model with the first data.
func (s *source) model() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = map[string]string{}
	keys, values := first(s.name, s.id, s.ips)
	for i, key := range keys {
		s.want[key] = values[i]
	}
}

func (s *source) puts(all map[string]string) error {
	var ops []clientv3.Op
	flush := func() error {
		// A busy machine may need long.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, err := s.client.Txn(ctx).Then(ops...).Commit()
		ops = nil
		return err
	}
	for key, value := range all {
		if ops = append(ops, clientv3.OpPut(key, value)); len(ops) == 100 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(ops) > 0 {
		return flush()
	}
	return nil
}

func (s *source) beat() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := s.client.Put(ctx, "cilium/.heartbeat", time.Now().Format(time.RFC3339))
	return err
}

// put writes one key and retries until the write is confirmed. The model is changed before.
func (s *source) put(ctx context.Context, key, value string) (time.Time, error) {
	s.mu.Lock()
	s.want[key] = value
	s.mu.Unlock()
	return s.insist(ctx, clientv3.OpPut(key, value))
}

func (s *source) remove(ctx context.Context, key string) error {
	s.mu.Lock()
	delete(s.want, key)
	s.mu.Unlock()
	_, err := s.insist(ctx, clientv3.OpDelete(key))
	return err
}

func (s *source) insist(ctx context.Context, op clientv3.Op) (time.Time, error) {
	for {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := s.client.Do(one, op)
		cancel()
		if err == nil || ctx.Err() != nil {
			return time.Now(), err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// has says whether a mirrored key should exist.
func (s *source) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range origins(s.name, key) {
		if _, there := s.want[at]; there {
			return true
		}
	}
	return false
}

// known returns the value of the model where a mirrored key has the same.
func (s *source) known(key, value string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range origins(s.name, key) {
		if want, there := s.want[at]; there && want == value {
			return want
		}
	}
	return value
}

// contents reads the keys that are to be mirrored from the server.
func (s *source) contents() (map[string]string, error) {
	all, err := peer.Read(s.client, "cilium/state/")
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(key, _ string) bool { _, mirrored := here(s.name, key); return !mirrored })
	return all, nil
}

// heartbeats writes the heartbeat of all sources until the context ends.
func heartbeats(ctx context.Context, sources []*source) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(30 * time.Second):
		}
		for _, s := range sources {
			if ctx.Err() == nil && s.good && s.client != nil {
				_ = s.beat()
			}
		}
	}
}

// launch starts and fills all sources.
func launch(sources []*source) error {
	var wg sync.WaitGroup
	turns := make(chan struct{}, 8)
	errors := make(chan error, len(sources))
	for _, s := range sources {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			s.model()
			if s.prepare != nil {
				s.prepare(s)
			}
			err := s.start()
			if err == nil {
				err = s.fill()
			}
			if s.isForgetful {
				s.mu.Lock()
				s.want = nil
				s.mu.Unlock()
			}
			if err != nil {
				errors <- fmt.Errorf("%s: %w", s.name, err)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errors:
		return err
	default:
		return nil
	}
}
