package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// idleBound is the time after which the server must have closed a connection that does nothing.
const idleBound = 90 * time.Second

var idleRows = []row{{
	name: "idle", what: "connections that stop after TCP, TLS, the HTTP/2 preface, an HTTP/1 request, or amid headers: when are they closed?",
	seconds: [2]float64{2, 100},
	attack:  idle,
}}

func idle(a *attacker) error {
	ways := map[string]func() (net.Conn, error){
		"TCP":            a.tcp,
		"TLS":            func() (net.Conn, error) { return a.tls("h2") },
		"HTTP/2 preface": func() (net.Conn, error) { return a.h2("nobody", h2options{}) },
		"HTTP/1 request": a.requested,
		"slow headers":   func() (net.Conn, error) { return a.tls("http/1.1") },
	}
	a.begin()
	if err := a.quietClient(); err != nil {
		return err
	}
	var group sync.WaitGroup
	for name, open := range ways {
		group.Go(func() {
			began := time.Now()
			conn, err := open()
			if err != nil {
				a.count("refused: "+name+" "+short(err), 1)
				return
			}
			defer conn.Close()
			if name == "slow headers" {
				go a.drip(conn, "GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ")
			}
			if a.closes(conn) {
				a.set("ms until closed after "+name, int(time.Since(began).Milliseconds()))
				return
			}
			a.set("still open after "+name, 1)
			if a.Scale.Full && time.Duration(a.Seconds*float64(time.Second)) > idleBound {
				a.fail("a connection that stopped after %s was still open after %v", name, idleBound)
			}
		})
	}
	group.Wait()
	return nil
}

// closes says whether the server closes the connection before the attack is over.
func (a *attacker) closes(conn net.Conn) bool {
	if c, ok := conn.(*h2); ok {
		return a.keep(c) != nil
	}
	limit, _ := a.ctx.Deadline()
	_ = conn.SetReadDeadline(limit)
	buffer := make([]byte, 4096)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return !a.over() && time.Until(limit) > 50*time.Millisecond
		}
	}
}

func (a *attacker) tls(protocol string) (net.Conn, error) {
	config, err := clientTLS(a.Certs, "nobody", protocol)
	if err != nil {
		return nil, err
	}
	return tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", a.Address, config)
}

// requested is a connection whose only request has been answered.
func (a *attacker) requested() (net.Conn, error) {
	conn, err := a.tls("http/1.1")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprint(conn, "GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"); err != nil {
		return nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	answer.Body.Close()
	return conn, nil
}

// drip writes a byte a second, and then more.
func (a *attacker) drip(conn net.Conn, text string) {
	for i := 0; !a.over(); i++ {
		b := byte('a')
		if i < len(text) {
			b = text[i]
		}
		if _, err := conn.Write([]byte{b}); err != nil {
			return
		}
		a.rest(time.Second)
	}
}

// quietClient is an honest client that only pings, with a watch that has no events: its connection must stay.
func (a *attacker) quietClient() error {
	conn := a.grpc("writer", grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}))
	watch, err := pb.NewWatchClient(conn).Watch(context.WithoutCancel(a.ctx))
	if err != nil {
		return err
	}
	if err := watch.Send(createWatch([]byte("honest/never"), nil)); err != nil {
		return err
	}
	if _, err := watch.Recv(); err != nil {
		return err
	}
	go func() {
		if _, err := watch.Recv(); err != nil && !a.over() {
			a.fail("a client that pings every 15 s lost its watch: %s", short(err))
		}
	}()
	return nil
}
