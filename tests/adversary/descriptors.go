package main

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// descriptorRows exhaust the file descriptors of a server that may have 1,024.
var descriptorRows = []row{
	{
		name: "descriptors-tcp", what: "1,500 idle TCP connections on a server with 1,024 descriptors, then writes that need a new file",
		fixture: fixture{descriptors: 1024, isthmus: "--checkpoint-bytes=1000000"},
		seconds: [2]float64{3, 10},
		attack:  func(a *attacker) error { return a.exhaust(1500, "") },
	},
	{
		name: "descriptors-tls", what: "the same, with idle TLS connections of a certificate that is no user",
		fixture: fixture{descriptors: 1024, isthmus: "--checkpoint-bytes=1000000"},
		seconds: [2]float64{3, 10},
		attack:  func(a *attacker) error { return a.exhaust(1500, "nobody") },
	},
	{
		name: "descriptors-health", what: "1,135 idle connections to the health port of `serve` with 1,024 descriptors",
		fixture:  fixture{descriptors: 1024, serve: true},
		oursOnly: true,
		seconds:  [2]float64{3, 10},
		attack: func(a *attacker) error {
			a.begin()
			a.hold(1135, func() (net.Conn, error) { return net.DialTimeout("tcp", a.Health, 3*time.Second) })
			<-a.ctx.Done()
			return nil
		},
	},
}

// exhaust holds n idle connections while a writer writes.
func (a *attacker) exhaust(n int, common string) error {
	writer := pb.NewKVClient(a.grpc("writer"))
	if _, err := writer.Put(a.ctx, &pb.PutRequest{Key: []byte("w/first"), Value: noise(1, 100)}); err != nil {
		return err
	}
	open := func() (net.Conn, error) { return net.DialTimeout("tcp", a.Address, 3*time.Second) }
	if common != "" {
		config, err := clientTLS(a.Certs, common, "h2")
		if err != nil {
			return err
		}
		open = func() (net.Conn, error) {
			return tls.DialWithDialer(&net.Dialer{Timeout: 3 * time.Second}, "tcp", a.Address, config)
		}
	}
	a.begin()
	held := make(chan struct{})
	go func() { a.hold(n, open); close(held) }()
	select {
	case <-held:
	case <-time.After(time.Second):
	}
	// One megabyte a put: the log of either server needs new files soon.
	for i := 0; i < a.Scale.of(10, 60) && !a.over(); i++ {
		_, err := writer.Put(a.ctx, &pb.PutRequest{Key: []byte("w/log"), Value: noise(i, 1<<20)})
		if err != nil && !a.over() {
			a.fail("a writer was refused: %s", short(err))
		}
		a.count("writes", 1)
	}
	<-a.ctx.Done()
	return nil
}

// hold opens n connections that do nothing, 64 at once, and tries again where the server refuses. The connections stay until the
// process ends.
func (a *attacker) hold(n int, open func() (net.Conn, error)) (all []net.Conn) {
	var (
		mu    sync.Mutex
		begun int
	)
	// claim says whether one more connection is wanted. A failed connection gives its claim back.
	claim := func(by int) bool {
		mu.Lock()
		defer mu.Unlock()
		begun += by
		return begun <= n
	}
	a.workers(64, func() bool {
		if !claim(1) {
			return false
		}
		conn, err := open()
		if err != nil {
			claim(-1)
			a.count("refused", 1)
			a.rest(20 * time.Millisecond)
			return true
		}
		mu.Lock()
		all = append(all, conn)
		mu.Unlock()
		return true
	})
	a.count("connections", len(all))
	// The garbage collector closes connections that nothing refers to.
	a.mu.Lock()
	a.held = append(a.held, all...)
	a.mu.Unlock()
	return all
}

// dropped counts the connections that the server has closed.
func dropped(conns []net.Conn) (n int) {
	for _, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		var timeout net.Error
		// A server that closed may have answered before.
		if _, err := io.Copy(io.Discard, conn); !(errors.As(err, &timeout) && timeout.Timeout()) {
			n++
		}
	}
	return n
}
